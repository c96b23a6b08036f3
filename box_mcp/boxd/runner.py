"""The process between boxd and one command: subreaper of everything that the command starts.

A child subreaper (prctl(2), PR_SET_CHILD_SUBREAPER) inherits the orphans among its descendants,
so whatever a command leaves behind, however it daemonised, stays below its runner, where boxd
finds it. Runners stay root where boxd is, out of reach of the user's kill.

A command's shell starts first and reads what to run afterwards, from a socket of its own. So it
can be started before there is a command: what is left for the run itself is one message. A
session's shell reads one command after the other.

Of memory that is shared with a child, each page is copied when it is first written to, which on a
virtual machine costs more than most work. So boxd forks once only: a zygote, which then forks the
runners, twice, so that they become boxd's own children (it is a subreaper, too).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import marshal
import os
import resource
import signal
import socket
import struct

from .identity import become

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from .identity import Account

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
OPEN_FILES = 65536  # per process of a command; less where the engine allows less
OOM_SCORE_ADJ = b"500"  # commands go before boxd when memory runs out
MESSAGE = 384 * 1024  # bytes of one message; a request comes in one frame of the wire, and is less
FORK_PATIENCE = 5.0  # s; boxd serves nobody while it waits for a runner
MAX_TEXT = 128 * 1024  # bytes of a command; a socket takes as much unread

FDS = 6  # that a runner is given at most: control, text, standard input, output, error, status

TEXT_FD = 9  # where a shell reads its command: the highest number that every shell can redirect
STATUS_FD = 8  # where a session's shell tells how a command ended
FREE_FDS = 20  # from here on, no descriptor that a shell is given
TIOCSCTTY, TIOCSWINSZ = 0x540E, 0x5414  # <asm-generic/ioctls.h>
BASH = (
    f"IFS= read -r -N {2**30} -u {TEXT_FD} BASH_EXECUTION_STRING; exec {TEXT_FD}<&-; "
    'eval "$BASH_EXECUTION_STRING"'
)
"""What bash does: as ``bash -c`` would. Given a number, ``read`` takes more than a byte at once."""
SESSION = (
    f"trap : INT; while IFS=' ' \\builtin read -r -u {TEXT_FD} _box_mcp && "
    f'LC_ALL=C IFS= \\builtin read -r -N "$_box_mcp" -u {TEXT_FD} _box_mcp; '
    'do \\builtin eval "$_box_mcp"; done'
)
"""What a session's bash does: each message is one command, made by `session_message`.

Their length comes first, since bash reads byte by byte where it looks for an end.
"""
OTHER_SHELL = f'command_text=$(cat <&{TEXT_FD}); exec {TEXT_FD}<&-; eval "$command_text"'

_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Makes this process the parent of all orphans among its descendants."""
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


class Zygote:
    """The process that forks runners; it is forked from boxd when the first is needed."""

    def __init__(self) -> None:
        self.pid = 0

    def fork_runner(self, control: socket.socket, fds: list[int], command: dict[str, Any]) -> int:
        """Returns the id of a new runner, at the other end of `control`.

        Raises OSError when the box can't fork, ChildProcessError when nobody answered: then the
        next call forks a new zygote.
        """
        if self.pid == 0:
            self._start()
        control.settimeout(FORK_PATIENCE)
        try:
            socket.send_fds(self._link, [marshal.dumps(command)], fds)
            message = control.recv(MESSAGE)
        except OSError:
            message = b""
        if not message:
            self._end()
            raise ChildProcessError(errno.ECHILD, "what boxd forks is ended or stopped")
        answer = marshal.loads(message)  # noqa: S302 - from our own fork
        if "runner" not in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        return answer["runner"]

    def child_ended(self, pid: int) -> None:
        """A child of boxd has ended."""
        if pid == self.pid:
            self._forget()

    def _start(self) -> None:
        self._link, link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE)
        self._link.settimeout(FORK_PATIENCE)
        with link:
            self.pid = os.fork()
            if self.pid == 0:
                _fork_runners(link)

    def _end(self) -> None:
        """Not politely: what it was asked for must not come later."""
        os.kill(self.pid, signal.SIGKILL)
        self._forget()

    def _forget(self) -> None:
        self.pid = 0
        self._link.close()


class Runner:
    """A shell that waits for its command, in `cwd`, below a runner; boxd's ends of its pipes.

    Without `stdin` and `terminal` the command reads nothing. `terminal` is (rows, columns):
    standard input, output and error are one then, and `stderr` is None. A session's shell waits for
    one command after the other, and tells `status` how each ended. Raises what
    `Zygote.fork_runner` does.
    """

    def __init__(
        self,
        zygote: Zygote,
        account: Account,
        cwd: str,
        env: dict[str, str],
        *,
        stdin: bool = False,
        terminal: tuple[int, int] | None = None,
        session: bool = False,
    ) -> None:
        self.cwd = cwd
        self.stderr: int | None = None
        self.status: socket.socket | None = None
        self._place = _identity(cwd)
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as theirs:
            if terminal is not None:
                standard = self._open_terminal(account, terminal, undo, theirs)
            else:
                standard = self._open_pipes(undo, theirs)
            self.control, control = _socket_pair(socket.SOCK_SEQPACKET, undo, theirs)
            self._text, text = _socket_pair(socket.SOCK_STREAM, undo, theirs)
            fds = [control.fileno(), text.fileno(), *standard]
            if session:
                self.status, status = _socket_pair(socket.SOCK_SEQPACKET, undo, theirs)
                self.status.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                self.status.setblocking(False)
                fds.append(status.fileno())
            command = {
                "cwd": cwd,
                "env": env,
                "stdin": stdin or terminal is not None,
                "terminal": terminal is not None,
                "account": (account.uid, account.gid, account.groups),
                "shell": account.shell,
                "session": session,
            }
            self.pid = zygote.fork_runner(self.control, fds, command)
            undo.pop_all()
        self.control.setblocking(False)
        for fd in self._ends():
            os.set_blocking(fd, False)

    def _open_pipes(
        self, undo: contextlib.ExitStack, theirs: contextlib.ExitStack
    ) -> tuple[int, ...]:
        stdin, self.stdin = _pipe(theirs, undo)
        self.stdout, stdout = _pipe(undo, theirs)
        self.stderr, stderr = _pipe(undo, theirs)
        return stdin, stdout, stderr

    def _open_terminal(
        self,
        account: Account,
        size: tuple[int, int],
        undo: contextlib.ExitStack,
        theirs: contextlib.ExitStack,
    ) -> tuple[int, ...]:
        self.stdout, slave = os.openpty()
        undo.callback(os.close, self.stdout)
        theirs.callback(os.close, slave)
        self.stdin = os.dup(self.stdout)
        undo.callback(os.close, self.stdin)
        resize(slave, *size)
        if os.geteuid() == 0:
            os.fchown(slave, account.uid, -1)
        return slave, slave, slave

    def waits_in(self, cwd: str) -> bool:
        """Whether its shell is alive, and in what is `cwd` now."""
        return self.cwd == cwd and self._place == _identity(cwd) and self.waits()

    def start(self, text: bytes) -> None:
        """Hands the command over. If nobody is there to run it, `control` says so."""
        with contextlib.suppress(OSError):
            self._text.send(text, socket.MSG_DONTWAIT)
        self._text.close()

    def start_next(self, message: bytes) -> None:
        """Hands a session's shell its next command."""
        with contextlib.suppress(OSError):
            self._text.send(message, socket.MSG_DONTWAIT)

    def close(self) -> None:
        """Gives up a runner that was not started: it ends by itself."""
        for fd in self._ends():
            os.close(fd)
        self.control.close()
        self._text.close()

    def _ends(self) -> list[int]:
        return [fd for fd in (self.stdin, self.stdout, self.stderr) if fd is not None]

    def waits(self) -> bool:
        """Whether its shell is alive and at rest: who waits says nothing."""
        for link in (self.control, self._text):
            with contextlib.suppress(BlockingIOError):
                link.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                return False
        return True


def session_message(text: str, token: str, before: str = "") -> bytes:
    """What makes a session's bash evaluate `text`, and then tell ``token status``.

    The loop of one turn takes a stray `break`; while `text` runs, it can see neither descriptor,
    nor the token in any variable. `before` is code of our own that goes before it.
    """
    evaluated = f"{before}\\builtin eval {quoted(text)}"
    told = f'\\builtin printf %s "{token} $?" >&{STATUS_FD}'
    hidden = f"{TEXT_FD}<&- {STATUS_FD}>&-"
    text = f"for _box_mcp in ''; do {{ {evaluated}; }} {hidden}; done; {told}"
    message = text.encode(errors="surrogatepass")
    return b"%d\n" % len(message) + message


def quoted(text: str) -> str:
    """`text` as one word of a shell."""
    return "'" + text.replace("'", "'\"'\"'") + "'"


def resize(terminal: int, rows: int, cols: int) -> None:
    """Tells a terminal, and by SIGWINCH who uses it, how large it is."""
    fcntl.ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


def _script(shell: str) -> str:
    return BASH if os.path.basename(shell) == "bash" else OTHER_SHELL


def _pipe(read: contextlib.ExitStack, write: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe whose ends these two will close."""
    fds = os.pipe()
    read.callback(os.close, fds[0])
    write.callback(os.close, fds[1])
    return fds


def _socket_pair(
    kind: int, ours: contextlib.ExitStack, theirs: contextlib.ExitStack
) -> tuple[socket.socket, socket.socket]:
    """Two ends that these two will close."""
    here, there = socket.socketpair(socket.AF_UNIX, kind)
    return ours.enter_context(here), theirs.enter_context(there)


def _identity(path: str) -> tuple[int, int] | None:
    """What tells a directory from one that takes its place; None where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _fork_runners(link: socket.socket) -> NoReturn:
    """The zygote itself: never returns into boxd's code, ends with boxd."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for its children
        os.setsid()
        close_all_but({0, 1, 2, link.fileno()})
        while True:
            message, fds, _, _ = socket.recv_fds(link, MESSAGE, FDS)
            if not message:
                break
            for fd in fds:
                os.set_inheritable(fd, False)
            _fork_runner(fds, marshal.loads(message))  # noqa: S302 - from boxd itself
            for fd in fds:
                os.close(fd)
    finally:
        os._exit(0)


def _fork_runner(fds: list[int], command: dict[str, Any]) -> None:
    """Forks twice: the child's end makes the grandchild boxd's own."""
    try:
        if os.fork() != 0:
            return
    except OSError as error:
        return _tell(fds[0], {"errno": error.errno})
    try:
        if os.fork() == 0:
            _run(fds, command)
    except OSError as error:
        _tell(fds[0], {"errno": error.errno})
    finally:
        os._exit(0)


def _run(fds: list[int], command: dict[str, Any]) -> NoReturn:
    """The runner itself."""
    control, *others = fds
    try:
        # What comes before the command has its own handlers waits: a cancel must not get lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        become_subreaper()
        _tell(control, {"runner": os.getpid()})
        main = os.fork()
        if main == 0:
            _become_shell(fds, command)
        for fd in others:
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


def close_all_but(keep: set[int]) -> None:
    """Closes what this process has inherited, other than `keep`."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            with contextlib.suppress(OSError):  # the descriptor that listed them
                os.close(int(name))


def _become_shell(fds: list[int], command: dict[str, Any]) -> NoReturn:
    """Becomes the shell that waits for its command."""
    control, *others = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FREE_FDS) for fd in fds]
    try:
        for theirs, ours in zip((TEXT_FD, 0, 1, 2, STATUS_FD), others):
            os.dup2(ours, theirs)
        if not command["stdin"]:
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.setsid()
        if command["terminal"]:
            fcntl.ioctl(0, TIOCSCTTY, 0)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        yield_memory_first()
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        files = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        become(*command["account"])
        os.chdir(command["cwd"])
        shell = command["shell"]
        if command["session"]:
            _tell(control, {"main": os.getpid()})
        script = SESSION if command["session"] else _script(shell)
        os.execve(shell, [shell, "-c", script], command["env"])
    except OSError as error:
        about = error.filename or "the command"
        _tell(control, {"failed": f"{os.strerror(error.errno or 0)}: {about}"})
    except Exception as error:  # noqa: BLE001 - whatever it was, boxd must hear of it
        _tell(control, {"failed": repr(error)})
    finally:
        os._exit(127)


def yield_memory_first() -> None:
    """Has the kernel end this process before boxd when memory runs out."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
        file.write(OOM_SCORE_ADJ)


def _reap(control: int, main: int) -> None:
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


def _tell(control: int, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        os.write(control, marshal.dumps(message))
