"""A runner's pipes, as boxd holds them: what is printed goes to a run, input comes from servers.

Process    one command: it ends when nothing of the command's tree is left
Session    one bash that evaluates one command after the other, each a run of its own
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import marshal
import os
import signal
import socket
import struct

from . import wire
from .connection import Refusal
from .run import Host
from .runner import MAX_TEXT, MESSAGE, resize, session_message
from .tree import Family, below, children, now, stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .identity import Account
    from .loop import Loop, Timer
    from .run import Run
    from .runner import Runner
    from .tree import Stat

DRAIN_AFTER_EXIT = 0.2  # s; output of children that outlive their command is not waited for longer
PIPE_SIZE = 1024 * 1024  # bytes; a flood then costs fewer turns of the loop
READ_SIZE = 256 * 1024
INPUT_LIMIT = 1024 * 1024  # bytes that wait for a command to read them
F_SETPIPE_SZ = 1031  # <linux/fcntl.h>; in Python's fcntl since 3.10
END_OF_INPUT = b"\x04"  # VEOF, as terminals are set up; termios(3)
UCRED = struct.Struct("3i")  # pid, uid, gid; see unix(7), SCM_CREDENTIALS
MAX_SIDE = 1000  # rows or columns of a terminal
LOOK_EVERY = 1.0  # s between two looks whether a session's background processes live


class Process(Host):
    """A runner and its pipes. `run` is the command that they belong to now.

    With `stdin` the command can be given input; `streamed` tells that it all comes with the request
    that started the command.
    """

    def __init__(
        self,
        loop: Loop,
        runner: Runner,
        *,
        stdin: bool,
        streamed: bool,
        terminal: tuple[int, int] | None,
        gone: Callable[[Process], None],
    ) -> None:
        self.pid = runner.pid
        self.terminal = terminal
        self.run: Run | None = None
        self._loop = loop
        self._runner = runner
        self._gone = gone
        self._stdin: int | None = runner.stdin
        self._waiting = bytearray()
        self._taken: Callable[[int], None] | None = None
        self.streamed = streamed
        self._input_ends = False
        self._outputs = {runner.stdout: wire.STDOUT}
        if runner.stderr is not None:
            self._outputs[runner.stderr] = wire.STDERR
        self._takes_input = stdin or terminal is not None
        self._watched = False
        self.surroundings: dict[str, str] = {}
        """What `Processes.surround` was given when its command began."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} runner={self.pid} {self.run!r}>"

    @property
    def runs(self) -> list[Run]:
        """All runs of which something may live."""
        return [self.run] if self.run is not None else []

    def begin(self, text: str) -> None:
        """Starts the command `text`; `adopt` is told of its run at once. Raises Refusal."""
        self._runner.start(text.encode(errors="surrogatepass"))

    def adopt(self, run: Run) -> None:
        """`run` is the command that was begun."""
        self.run = run
        self._watch()

    def members(self, _run: Run, family: Family, /, *, whole: bool = True) -> list[Stat]:  # noqa: ARG002
        """All below the runner."""
        return family.below(self.pid)

    def polite(self, run: Run, told: set[int], /) -> list[int]:
        """All, once; those, too, who were forked while all others were looked for."""
        if told:
            return []
        found = [one.pid for one in self.members(run, Family())]
        return [*found, *(pid for pid in below(self.pid) if pid not in found)]

    def write(self, data: bytes, taken: Callable[[int], None] | None = None) -> None:
        """Queues input; `taken` hears how much of it the command has read, or can't any more.

        Without `taken`, raises Refusal when too much waits already, or there is nobody to read.
        """
        if taken is None:
            self._check_input(len(data))
        elif self._stdin is None:
            return taken(len(data))
        else:
            self._taken = taken
        self._waiting += data
        self._feed()

    def end_input(self) -> None:
        """End of input, once what waits was written."""
        if self.terminal is not None:
            return self.write(END_OF_INPUT)
        self._input_ends = True
        self._feed()

    def resize(self, size: Any) -> tuple[int, int]:
        """Changes the terminal's size, but for what is None; raises Refusal where there is none."""
        if self.terminal is None:
            raise Refusal("invalid", "it has no terminal")
        rows, cols = size
        sized = terminal_of((rows or self.terminal[0], cols or self.terminal[1]))
        if self._runner.stdout not in self._outputs:
            raise Refusal("invalid", "its terminal is closed")
        resize(self._runner.stdout, *sized)
        self.terminal = sized
        return sized

    def ended(self) -> None:
        """The runner has exited: its tree is empty, or it was killed by root in the box."""
        self._read_control()
        run = self.run
        if run is not None and not run.ended:
            run.finish({"exit": None, "signal": int(signal.SIGKILL)})
        self._drain()
        self._close()
        if run is not None:
            run.release()
        self._gone(self)

    def _watch(self) -> None:
        if self._watched:
            return
        self._watched = True
        if not self._takes_input:
            self._close_stdin()
        for fd, label in self._outputs.items():
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE_SIZE)
            self._loop.on_readable(fd, functools.partial(self._output_ready, fd, label))
        self._loop.on_readable(self._runner.control.fileno(), self._read_control)

    def _check_input(self, size: int) -> None:
        if self._stdin is None or self._input_ends or self.streamed:
            raise Refusal("no_input", "it takes no input: it has none, or its input was ended")
        if len(self._waiting) + size > INPUT_LIMIT:
            raise Refusal("too_large", "it does not read its input: too much waits already")

    def _output_ready(self, fd: int, label: int) -> None:
        self._read_output(fd, label)

    def _read_output(self, fd: int, label: int) -> bool:
        """Reads once; False at end of file or when there is nothing (yet)."""
        try:
            data = os.read(fd, READ_SIZE)
        except BlockingIOError:
            return False
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        if not data:
            self._close_output(fd)
            return False
        if (run := self._printing()) is not None:
            run.feed(label, data)
        return True

    def _printing(self) -> Run | None:
        """Whose output it is that comes now."""
        return self.run

    def _close_output(self, fd: int) -> None:
        if self._outputs.pop(fd, None) is not None:
            self._loop.on_readable(fd, None)
            os.close(fd)
        run = self.run
        if not self._outputs and run is not None and run.ended and run.cause is None:
            run.conclude()

    def _drain(self) -> None:
        # Bounded: a survivor that floods must not hold boxd here.
        for fd, label in list(self._outputs.items()):
            for _ in range(2 * PIPE_SIZE // READ_SIZE):
                if fd not in self._outputs or not self._read_output(fd, label):
                    break

    def _read_control(self) -> None:
        control = self._runner.control
        while True:
            try:
                message = control.recv(MESSAGE)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                if control.fileno() >= 0:
                    self._loop.on_readable(control.fileno(), None)
                return
            self._heard(marshal.loads(message))  # noqa: S302 - from our own fork

    def _heard(self, message: dict[str, Any]) -> None:
        if (failed := message.get("failed")) is not None and self.run is not None:
            self.run.fail(str(failed))
        elif (ended := message.get("ended")) is not None:
            self._main_ended(ended)

    def _main_ended(self, ended: dict[str, Any]) -> None:
        left = ended.pop("left")
        self._close_stdin()
        if (run := self.run) is None:
            return
        run.left = left
        run.finish(ended)
        self._drain()
        if self._outputs and run.cause is None:
            run.later(DRAIN_AFTER_EXIT, run.conclude)
        elif run.cause is None:
            run.conclude()

    def _feed(self) -> None:
        if self._stdin is None:
            return
        try:
            written = os.write(self._stdin, self._waiting) if self._waiting else 0
        except BlockingIOError:
            written = 0
        except OSError:  # EPIPE: the command does not read any more
            written = len(self._waiting)
            self._input_ends = True
        del self._waiting[:written]
        if written and self._taken is not None:
            self._taken(written)
        if self._waiting:
            self._loop.on_writable(self._stdin, self._feed)
        elif self._input_ends:
            self._close_stdin()
        else:
            self._loop.on_writable(self._stdin, None)

    def _close_stdin(self) -> None:
        if self._stdin is not None:
            self._loop.on_writable(self._stdin, None)
            os.close(self._stdin)
            self._stdin = None
        self._waiting.clear()

    def _close(self) -> None:
        self._close_stdin()
        for fd in list(self._outputs):
            self._loop.on_readable(fd, None)
            os.close(fd)
        self._outputs.clear()
        self._loop.on_readable(self._runner.control.fileno(), None)
        self._runner.control.close()


class Span:
    """From when on a session's command was the newest, and until when; in ticks.

    A tick is long: who was there when it began, and when the next one began, is known besides.
    """

    def __init__(self, began: int, before: set[int]) -> None:
        self.began = began
        self.before = before
        self._ended: int | None = None
        self._after = set[int]()

    def end(self, following: Span) -> None:
        """The next command begins."""
        self._ended, self._after = following.began, following.before

    def has(self, one: Stat) -> bool:
        """Whether a process that the session or the runner is the parent of began meanwhile."""
        if one.started < self.began or one.pid in self.before:
            return False
        if self._ended is None or one.started < self._ended:
            return True
        return one.started == self._ended and one.pid in self._after


NOBODYS = Span(2**63, set())


class Session(Process):
    """A bash that lives on between its commands, with what they left: directory, variables ...

    How a command ended it tells on a socket of its own. The kernel says who wrote there: nobody is
    believed but the session's own bash, with the token that came with the command.
    """

    session = True

    def __init__(
        self,
        loop: Loop,
        runner: Runner,
        name: str,
        account: Account,
        *,
        terminal: tuple[int, int] | None,
        gone: Callable[[Process], None],
    ) -> None:
        super().__init__(loop, runner, stdin=False, streamed=False, terminal=terminal, gone=gone)
        assert runner.status is not None
        self.name = name
        self.account = account
        self.over = False
        self.before = ""  # what its bash does before the next command
        self._status = runner.status
        self._main = 0
        self._token = ""
        self._spans: dict[Run, Span] = {}
        self._next = Span(0, set())
        self._cpu = 0.0
        self._looking: Timer | None = None
        loop.on_readable(self._status.fileno(), self._read_status)

    def waits(self) -> bool:
        """Whether its bash is alive, as far as can be known."""
        self._read_control()  # which process it is, or that it has ended
        return not self.over and self._runner.waits()

    @property
    def evaluates(self) -> Run | None:
        """The run whose command is being evaluated, if any."""
        return self.run if self._token else None

    @property
    def runs(self) -> list[Run]:
        """The newest, and those that left something in the background."""
        return list(self._spans)

    def begin(self, text: str) -> None:
        """Starts the command `text`; raises Refusal when it is too long."""
        token = os.urandom(8).hex()
        message = session_message(text, token, self.before)
        if len(message) > MAX_TEXT:
            raise Refusal("too_large", "the command is too long for a session")
        if b"\0" in message:
            raise Refusal("invalid", "a session's command, directory or variables have a NUL")
        main = stat(self._main)
        self._cpu = main.cpu_with_children if main is not None else 0.0
        self._token = token
        self._next = Span(now(), set(self._heads()))
        self._runner.start_next(message)

    def adopt(self, run: Run) -> None:
        """What is printed from now on, and begins, is the work of `run`."""
        if self.run in self._spans:
            self._spans[self.run].end(self._next)
        self._spans[run] = self._next
        super().adopt(run)

    def members(self, run: Run, family: Family, /, *, whole: bool = False) -> list[Stat]:
        """What began while the run's command was the newest, and what is below that."""
        everybody = family.below(self.pid)
        if whole:
            return everybody
        span, heads = self._spans.get(run, NOBODYS), (self.pid, self._main)
        ours: set[int] = set()
        for one in everybody:
            if one.pid == self._main:
                continue
            if one.parent in ours or (one.parent in heads and span.has(one)):
                ours.add(one.pid)
        return [one for one in everybody if one.pid in ours]

    def polite(self, run: Run, told: set[int], /) -> list[int]:
        """At first all, then what the session's bash goes on to start."""
        members = self.members(run, Family())
        return [one.pid for one in members if not told or one.parent == self._main]

    def _heard(self, message: dict[str, Any]) -> None:
        if (main := message.get("main")) is not None:
            self._main = main
        else:
            super()._heard(message)

    def _read_status(self) -> None:
        try:
            message, ancillary, _, _ = self._status.recvmsg(256, socket.CMSG_SPACE(UCRED.size))
        except BlockingIOError:
            return
        except OSError:
            message, ancillary = b"", []
        if not message:
            return self._loop.on_readable(self._status.fileno(), None)
        self._read_control()
        writer = next((UCRED.unpack(data)[0] for _, _, data in ancillary), None)
        token, _, status = message.decode(errors="replace").partition(" ")
        if self._token and writer == self._main and token == self._token and status.isdigit():
            self._evaluated(int(status))

    def _evaluated(self, status: int) -> None:
        run, self._token = self.run, ""
        assert run is not None
        self._drain()
        main = stat(self._main)
        cpu = main.cpu_with_children - self._cpu if main is not None else 0.0
        run.left = bool(self._heads() and self.members(run, Family()))
        run.finish({"exit": status, "signal": None, "cpu": round(cpu, 6)})
        run.conclude()
        self._look()

    def _main_ended(self, ended: dict[str, Any]) -> None:
        self.over, self._token = True, ""
        if self.run is not None and not self.run.ended:
            self.run.facts["over"] = True
        super()._main_ended(ended)

    def _look(self) -> None:
        """Runs go when nothing that they left in the background lives."""
        family = Family() if self._heads() else None
        for run in self.runs:
            if run.ended and not (family and run.left and self.members(run, family)):
                del self._spans[run]
                run.release()
        if family is not None and (self._looking is None or self._looking.callback is None):
            self._looking = self._loop.call_later(LOOK_EVERY, self._look)

    def _printing(self) -> Run | None:
        """The newest run that may still print: the jobs of older ones share its pipes."""
        return next(reversed(self._spans), self.run)

    def _heads(self) -> list[int]:
        """What its commands started and left to the session, or to the runner."""
        return [pid for pid in children(self.pid) + children(self._main) if pid != self._main]

    def _close(self) -> None:
        super()._close()
        self._loop.on_readable(self._status.fileno(), None)
        self._status.close()
        if self._looking is not None:
            self._looking.cancel()
        for run in self.runs:
            run.release()


def terminal_of(size: Any) -> tuple[int, int]:
    """A request's ``[rows, columns]``."""
    rows, cols = (max(1, min(int(side), MAX_SIDE)) for side in size)
    return rows, cols


def check_command(text: object) -> None:
    """Raises Refusal where no shell takes `text` as a command."""
    if not isinstance(text, str):
        raise Refusal("invalid", "the command is no text")
    data = text.encode(errors="surrogatepass")
    if b"\0" in data:
        raise Refusal("invalid", "the command has a NUL character, which no shell takes")
    if len(data) > MAX_TEXT:
        raise Refusal("too_large", f"the command is over {MAX_TEXT} bytes")
