"""The process between boxd and one command: subreaper of everything that the command starts.

A child subreaper (prctl(2), PR_SET_CHILD_SUBREAPER) inherits the orphans among its descendants,
so whatever a command leaves behind, however it daemonised, stays below its runner, where boxd
finds it. Runner and command are forked ahead of time, the latter as the box's user: what is left
for the run itself is one exec. Runners stay root where boxd is, out of reach of the user's kill.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import marshal
import os
import resource
import signal
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from .identity import User

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
OPEN_FILES = 65536  # per process of a command; less where the engine allows less
OOM_SCORE_ADJ = b"500"  # commands go before boxd when memory runs out
MESSAGE = 384 * 1024  # bytes of one message; a command comes in one frame of the wire, and is less

_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Makes this process the parent of all orphans among its descendants."""
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


class Spare:
    """A runner that waits for its command; boxd's ends of its pipes."""

    def __init__(self, user: User) -> None:
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as theirs:
            stdin_r, self.stdin = _pipe(theirs, undo)
            self.stdout, stdout_w = _pipe(undo, theirs)
            self.stderr, stderr_w = _pipe(undo, theirs)
            self.control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE)
            undo.enter_context(self.control)
            theirs.enter_context(control)
            self.pid = os.fork()
            if self.pid == 0:
                _run_child(control, (stdin_r, stdout_w, stderr_w), user)
            undo.pop_all()
        for fd in (self.stdin, self.stdout, self.stderr, self.control.fileno()):
            os.set_blocking(fd, False)

    def start(self, command: dict[str, Any]) -> None:
        """Sends the command: ``argv, cwd, env, stdin``; raises OSError when nobody is there."""
        if self._spoke():
            raise BrokenPipeError(errno.EPIPE, "the runner ended while it waited")
        self.control.send(marshal.dumps(command))

    def close(self) -> None:
        """Gives the spare up: it ends by itself."""
        for fd in (self.stdin, self.stdout, self.stderr):
            os.close(fd)
        self.control.close()

    def _spoke(self) -> bool:
        """True when `control` has a message or its end: a runner that waits says nothing."""
        try:
            self.control.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        return True


def _pipe(read: contextlib.ExitStack, write: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe whose ends these two will close."""
    fds = os.pipe()
    read.callback(os.close, fds[0])
    write.callback(os.close, fds[1])
    return fds


def _run_child(control: socket.socket, fds: tuple[int, int, int], user: User) -> NoReturn:
    """The runner itself: never returns into boxd's code."""
    try:
        # What comes before the command has its own handlers waits: a cancel must not get lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        signal.set_wakeup_fd(-1)
        _close_all_but({0, 1, 2, control.fileno(), *fds})
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.setsid()
        become_subreaper()
        main = os.fork()
        if main == 0:
            _become_command(control, fds, user)
        for fd in fds:
            os.close(fd)
        with contextlib.suppress(OSError):  # a full process table; the command may run already
            _rehearse()
        _reap(control, main)
    except OSError as error:  # the box's process table is full
        _tell(control, {"failed": repr(error)})
    finally:
        os._exit(0)


def _rehearse() -> None:
    """Touches the memory that a run will need: its first use after a fork copies each page."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    marshal.dumps(_ended(status, usage, False))  # not looking who is left: that reaps


def _rehearse_exec() -> None:
    """The same for the command's side: a directory can't be executed."""
    message = marshal.dumps({"argv": ["/"], "cwd": "/", "env": {"PATH": "/"}, "stdin": True})
    command = marshal.loads(message)  # noqa: S302 - our own
    with contextlib.suppress(OSError):
        os.chdir(command["cwd"])
        os.execvpe(command["argv"][0], command["argv"], command["env"])


def _close_all_but(keep: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            with contextlib.suppress(OSError):  # the descriptor that listed them
                os.close(int(name))


def _become_command(control: socket.socket, fds: tuple[int, int, int], user: User) -> NoReturn:
    """Prepares all that can be, waits for the command, and executes it."""
    try:
        for theirs, ours in enumerate(fds):
            os.dup2(ours, theirs)
        os.setsid()
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        _yield_memory_first()
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        files = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        null = os.open("/dev/null", os.O_RDONLY)
        _rehearse_exec()
        message = control.recv(MESSAGE)
        if not message:  # boxd has gone, or does not need this spare
            os._exit(0)
        command = marshal.loads(message)  # noqa: S302 - from boxd itself
        user.become()  # not before: the user's `kill -9 -1` must not meet what waits
        if not command["stdin"]:
            os.dup2(null, 0)
        os.chdir(command["cwd"])
        os.execvpe(command["argv"][0], command["argv"], command["env"])
    except OSError as error:
        about = error.filename or "the command"
        _tell(control, {"failed": f"{os.strerror(error.errno or 0)}: {about}"})
    except Exception as error:  # noqa: BLE001 - whatever it was, boxd must hear of it
        _tell(control, {"failed": repr(error)})
    finally:
        os._exit(127)


def _yield_memory_first() -> None:
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
        file.write(OOM_SCORE_ADJ)


def _reap(control: socket.socket, main: int) -> None:
    while True:
        try:
            pid, status, usage = os.wait4(-1, 0)
        except ChildProcessError:
            return  # nobody is left: the end of file on `control` says so
        if pid == main:
            _tell(control, {"ended": _ended(status, usage, _anybody_left())})


def _ended(status: int, usage: resource.struct_rusage, left: bool) -> dict[str, Any]:
    code = os.waitstatus_to_exitcode(status)
    return {
        "exit": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
        "cpu": round(usage.ru_utime + usage.ru_stime, 6),
        "peak": usage.ru_maxrss * 1024,
        "left": left,
    }


def _anybody_left() -> bool:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _tell(control: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        control.send(marshal.dumps(message))
