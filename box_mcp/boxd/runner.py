"""The process between boxd and one command: subreaper of everything that the command starts.

A child subreaper (prctl(2), PR_SET_CHILD_SUBREAPER) inherits the orphans among its descendants,
so whatever a command leaves behind, however it daemonised, stays below its runner, where boxd
finds it. Runners stay root where boxd is, out of reach of the user's kill.

A command's shell starts first and reads what to run afterwards, from a socket of its own. So it
can be started before there is a command: what is left for the run itself is one message.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
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
MESSAGE = 4096  # bytes of what a runner tells at once
MAX_TEXT = 128 * 1024  # bytes of a command; a socket takes as much unread

TEXT_FD = 9  # where a shell reads its command: the highest number that every shell can redirect
BASH = (
    f"IFS= read -r -N {2**30} -u {TEXT_FD} BASH_EXECUTION_STRING; exec {TEXT_FD}<&-; "
    'eval "$BASH_EXECUTION_STRING"'
)
"""What bash does: as ``bash -c`` would. Given a number, ``read`` takes more than a byte at once."""
OTHER_SHELL = f'command_text=$(cat <&{TEXT_FD}); exec {TEXT_FD}<&-; eval "$command_text"'

_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Makes this process the parent of all orphans among its descendants."""
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


class Runner:
    """A shell that waits for its command, in `cwd`, below a runner; boxd's ends of its pipes.

    Without `stdin` the command reads nothing. Raises OSError when the box can't fork.
    """

    def __init__(self, user: User, cwd: str, env: dict[str, str], *, stdin: bool) -> None:
        self.cwd = cwd
        self._place = _identity(cwd)
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as theirs:
            stdin_r, self.stdin = _pipe(theirs, undo)
            self.stdout, stdout_w = _pipe(undo, theirs)
            self.stderr, stderr_w = _pipe(undo, theirs)
            self.control, control = _socket_pair(socket.SOCK_SEQPACKET, undo, theirs)
            self._text, text = _socket_pair(socket.SOCK_STREAM, undo, theirs)
            self.pid = os.fork()
            if self.pid == 0:
                command = Command(user, cwd, env, (stdin_r, stdout_w, stderr_w), text, stdin)
                _run_child(control, command)
            undo.pop_all()
        for fd in (self.stdin, self.stdout, self.stderr, self.control.fileno()):
            os.set_blocking(fd, False)

    def waits_in(self, cwd: str) -> bool:
        """Whether its shell is alive, and in what is `cwd` now."""
        return self.cwd == cwd and self._place == _identity(cwd) and self._waits()

    def start(self, text: bytes) -> None:
        """Hands the command over. If nobody is there to run it, `control` says so."""
        with contextlib.suppress(OSError):
            self._text.send(text, socket.MSG_DONTWAIT)
        self._text.close()

    def close(self) -> None:
        """Gives up a runner that was not started: it ends by itself."""
        for fd in (self.stdin, self.stdout, self.stderr):
            os.close(fd)
        self.control.close()
        self._text.close()

    def _waits(self) -> bool:
        """False when a message or an end came: who waits says nothing."""
        for link in (self.control, self._text):
            with contextlib.suppress(BlockingIOError):
                link.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                return False
        return True


class Command:
    """What a runner's child needs in order to become a waiting shell."""

    def __init__(
        self,
        user: User,
        cwd: str,
        env: dict[str, str],
        fds: tuple[int, int, int],
        text: socket.socket,
        stdin: bool,
    ) -> None:
        self.user = user
        self.cwd = cwd
        self.env = env
        self.fds = fds
        self.text = text
        self.stdin = stdin


def _pipe(read: contextlib.ExitStack, write: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe whose ends these two will close."""
    fds = os.pipe()
    read.callback(os.close, fds[0])
    write.callback(os.close, fds[1])
    return fds


def _socket_pair(
    kind: int, ours: contextlib.ExitStack, theirs: contextlib.ExitStack
) -> tuple[socket.socket, socket.socket]:
    """Two ends that these two will close; a shell's `TEXT_FD` is not the number of theirs."""
    here, there = socket.socketpair(socket.AF_UNIX, kind)
    ours.enter_context(here)
    with there:
        number = fcntl.fcntl(there.fileno(), fcntl.F_DUPFD_CLOEXEC, TEXT_FD + 1)
    return here, theirs.enter_context(socket.socket(socket.AF_UNIX, kind, 0, number))


def _identity(path: str) -> tuple[int, int] | None:
    """What tells a directory from one that takes its place; None where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _run_child(control: socket.socket, command: Command) -> NoReturn:
    """The runner itself: never returns into boxd's code."""
    try:
        # What comes before the command has its own handlers waits: a cancel must not get lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        signal.set_wakeup_fd(-1)
        _close_all_but({0, 1, 2, control.fileno(), command.text.fileno(), *command.fds})
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.setsid()
        become_subreaper()
        main = os.fork()
        if main == 0:
            _become_shell(control, command)
        command.text.close()
        for fd in command.fds:
            os.close(fd)
        with contextlib.suppress(OSError):  # a full process table; the command may run already
            _rehearse()
        _reap(control, main)
    except OSError as error:  # the box's process table is full
        _tell(control, {"failed": repr(error)})
    finally:
        os._exit(0)


def _rehearse() -> None:
    """Touches the memory that the end of a run will need: each page is copied when first used."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    marshal.dumps(_ended(status, usage, False))  # not looking who is left: that reaps


def _close_all_but(keep: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            with contextlib.suppress(OSError):  # the descriptor that listed them
                os.close(int(name))


def _become_shell(control: socket.socket, command: Command) -> NoReturn:
    """Becomes the shell that waits for its command."""
    shell = command.user.shell
    try:
        for theirs, ours in enumerate(command.fds):
            os.dup2(ours, theirs)
        os.dup2(command.text.fileno(), TEXT_FD)
        if not command.stdin:
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.setsid()
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        _yield_memory_first()
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        files = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        command.user.become()
        os.chdir(command.cwd)
        waiting = BASH if os.path.basename(shell) == "bash" else OTHER_SHELL
        os.execve(shell, [shell, "-c", waiting], command.env)
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
