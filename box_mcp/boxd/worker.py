"""A request that is done by a process of its own: what takes long, or runs other programs.

    server ──DATA──▶ boxd ──pipe──▶ standard input of the worker
    server ◀──DATA── boxd ◀──pipe── its standard output
    server ◀──NOTE, END, FAIL── boxd ◀──pipe── its words, a JSON object a line

The worker is the box's user for good, so the kernel checks all that it does. When the server gives
the request up, the worker is asked to end (`Terminated` is raised in its task, for it to clear
up), and killed when that takes too long; whatever it started is in its process group, and killed
with it.

Where much is to be moved, `PipedWork` leaves boxd out: standard input and output are a connection
of their own, which a connector brings with a token that the request named.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal

from . import wire
from .connection import MAX_MESSAGE, Refusal, Stream
from .identity import become
from .runner import close_all_but, yield_memory_first
from .slices import refusal_of, refusals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, NoReturn

    from .connection import Connection
    from .identity import User
    from .loop import Loop, Timer

    Tell = Callable[[dict[str, Any]], None]
    Task = Callable[[Tell], dict[str, Any]]

F_SETPIPE_SZ = 1031  # <fcntl.h>; Python names it from 3.10 on
PIPE_SIZE = 1024 * 1024  # bytes; the most that the kernel gives without privilege
MAX_WORKERS = 64  # at once; each takes some MiB, and ripgrep a thread for each processor
MAX_WORD = wire.MAX_PAYLOAD  # bytes of one line of words, which become one frame
ANSWER_FD = 3  # where a worker says what it has to say
END_GRACE = 10.0  # s that a worker has for clearing up: thousands of files may have to go
MEETING_PATIENCE = 30.0  # s for a connection to come; an engine that is busy takes one


class Terminated(BaseException):
    """Nobody wants the task's result any more: raised in it, wherever it is, once."""


class Work(Stream):
    """One worker. `task` runs in it, reads descriptor 0, writes descriptor 1, and returns the END.

    It is given a function that sends a NOTE. Refusal and OSError become FAIL, as anything else
    that it raises does. Raises OSError and Refusal when there can't be one more.
    """

    def __init__(
        self, connection: Connection, number: int, loop: Loop, user: User, task: Task
    ) -> None:
        super().__init__(connection, number)
        self._loop = loop
        self._user = user
        self._task = task
        self._backlog = bytearray()
        self._finished = False
        self._reading = False
        self._last_word: dict[str, Any] = {}
        self._words = b""
        self._pid = self._input = self._output = self._answer = -1
        self._fds: set[int] = set()
        self._ending: Timer | None = None
        self._start()

    def _start(self) -> None:
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as theirs:
            source, self._input = _pipe(theirs, undo)
            self._output, sink = _pipe(undo, theirs)
            self._fork(source, sink)
            undo.pop_all()
        for fd in (self._input, self._output):
            os.set_blocking(fd, False)
        self._fds |= {self._input, self._output}
        self.on_credit()

    def _fork(self, source: int, sink: int) -> None:
        """Starts the worker, which reads `source` and writes `sink`."""
        if len(self._loop.awaited) >= MAX_WORKERS:
            raise Refusal("busy", f"{MAX_WORKERS} searches, copies and transfers are under way")
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as theirs:
            self._answer, answer = _pipe(undo, theirs)
            # Until the worker has its own handler, boxd's would take the signal and do nothing.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            undo.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
            try:
                self._pid = os.fork()
            except BlockingIOError:
                raise Refusal("not_started", "the box's process table is full") from None
            if self._pid == 0:
                _work(self._task, self._user, (source, sink, answer))
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            undo.pop_all()
        self._loop.awaited[self._pid] = self._gone
        os.set_blocking(self._answer, False)
        self._fds.add(self._answer)
        self._loop.on_readable(self._answer, self._hear)

    def on_data(self, _label: int, data: bytes, /) -> None:
        """More for its standard input; what does not fit waits, within the stream's window."""
        waiting = bool(self._backlog)
        self._backlog += data
        if not waiting:
            self._feed()

    def on_finish(self) -> None:
        """Its standard input ends."""
        self._finished = True
        if not self._backlog:
            self._release(self._input)

    def on_credit(self) -> None:
        """Goes on reading its output."""
        if self._output in self._fds and not self._reading:
            self._reading = True
            self._loop.on_readable(self._output, self._forward)

    def on_cancel(self) -> None:
        """Ends it."""
        self._ask_to_end()
        super().on_cancel()

    def on_disconnect(self) -> None:
        """Nobody waits any more."""
        self._ask_to_end()

    def _feed(self) -> None:
        try:
            if self._input not in self._fds:  # its number may be another's by now
                raise BrokenPipeError
            written = os.write(self._input, self._backlog)
        except BlockingIOError:
            written = 0
        except OSError:  # it reads no more: the rest is of no interest
            written, self._finished = len(self._backlog), True
        del self._backlog[:written]
        self.consumed(written)
        if self._backlog:
            self._loop.on_writable(self._input, self._feed)
        else:
            self._loop.on_writable(self._input, None)
            if self._finished:
                self._release(self._input)

    def _forward(self) -> None:
        room = min(self.outgoing.left, wire.CHUNK)
        if self.connection.congested or not room:
            if room:
                self.connection.notify_when_clear(self)
            self._reading = False
            return self._loop.on_readable(self._output, None)
        data = _read(self._output, room)
        if data:
            self.send(data)
        elif data is not None:
            self._release(self._output)
            self._conclude()

    def _hear(self) -> None:
        data = _read(self._answer, wire.CHUNK)
        if data is None:
            return
        *lines, self._words = (self._words + data).split(b"\n")
        for line in lines:
            self._last_word = word = json.loads(line)
            if "note" in word and self.open:
                self.note(word["note"])
        if not data or len(self._words) > MAX_WORD:
            self._release(self._answer)
            self._conclude()

    def _conclude(self) -> None:
        if self._fds & {self._output, self._answer}:
            return
        word = self._last_word
        if "end" in word:
            self.end(word["end"])
        elif "fail" in word:
            self.fail(*word["fail"])
        else:
            self.fail("failed", "the process that worked on it was killed")
        self._kill()

    def _ask_to_end(self) -> None:
        if self._answer in self._fds:  # it has not ended yet; that is heard by this
            self._signal(signal.SIGTERM)
            self._ending = self._loop.call_later(END_GRACE, self._kill)
        for fd in (self._input, self._output):
            self._release(fd)

    def _kill(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
        self._signal(signal.SIGKILL)
        for fd in list(self._fds):
            self._release(fd)

    def _gone(self) -> None:
        """It has ended; so does what it left. From now on, its id may be another's."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        self._pid = 0

    def _signal(self, number: int) -> None:
        if self._pid <= 0:
            return
        with contextlib.suppress(ProcessLookupError):
            try:
                os.killpg(self._pid, number)
            except ProcessLookupError:  # it was forked just now
                os.kill(self._pid, number)

    def _release(self, fd: int) -> None:
        if fd in self._fds:
            self._fds.remove(fd)
            self._loop.on_readable(fd, None)
            self._loop.on_writable(fd, None)
            os.close(fd)


class Meeting:
    """Where requests that wait for a connection of their own, and those connections, meet."""

    def __init__(self) -> None:
        self._expected: dict[bytes, PipedWork] = {}

    def expect(self, token: str, work: PipedWork) -> bytes:
        """From now on `token` means `work`; returns what `forget` takes."""
        name = token.encode()
        if not name or name in self._expected:
            raise Refusal("invalid", "a token is used once")
        self._expected[name] = work
        return name

    def forget(self, name: bytes) -> None:
        """Nobody waits there any more."""
        self._expected.pop(name, None)

    def bring(self, name: bytes, fds: tuple[int, int], connector: int) -> bool:
        """A connection has come; False when nobody waits for it. `fds` stay the caller's."""
        work = self._expected.pop(name, None)
        if work is not None:
            work.begin(fds, connector)
        return work is not None


class PipedWork(Work):
    """One worker whose standard input and output are a connection of their own.

    Sends a note once the connection may be made; its first byte, which is the server's, is no
    part of what the task reads.
    """

    def __init__(
        self,
        connection: Connection,
        number: int,
        loop: Loop,
        user: User,
        task: Task,
        meeting: Meeting,
        token: str,
    ) -> None:
        self._meeting = meeting
        self._token = token
        self._connector = 0
        super().__init__(connection, number, loop, user, _told_to_begin(task))

    def _start(self) -> None:
        self._name = self._meeting.expect(self._token, self)
        self._patience = self._loop.call_later(MEETING_PATIENCE, self._give_up, patient=True)
        self.note({"ready": True})

    def begin(self, fds: tuple[int, int], connector: int) -> None:
        """The connection has come, by a process that is ended with the work."""
        self._patience.cancel()
        self._connector = connector
        try:
            with refusals():
                self._fork(*fds)
        except Refusal as refusal:
            self._kill()
            self.fail(refusal.code, str(refusal))

    def on_data(self, _label: int, _data: bytes, /) -> None:
        """None comes this way."""
        raise wire.WireError("the request's data come another way")

    def on_finish(self) -> None:
        """Nothing to do."""

    def on_credit(self) -> None:
        """Nothing to do."""

    def _give_up(self) -> None:
        self._kill()
        self.fail("failed", "the connection for it never came")

    def _ask_to_end(self) -> None:
        if self._pid < 0:
            self._kill()
        else:
            self._end_connector()
            super()._ask_to_end()

    def _kill(self) -> None:
        self._patience.cancel()
        self._meeting.forget(self._name)
        self._end_connector()
        super()._kill()

    def _end_connector(self) -> None:
        end_connector(self._connector)
        self._connector = 0


def end_connector(pid: int) -> None:
    """Ends the process that keeps the engine's streams of a connection open; 0 is none."""
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _told_to_begin(task: Task) -> Task:
    """What a worker does once the server has sent the first byte."""

    def begin(tell: Tell) -> dict[str, Any]:
        os.read(0, 1)
        return task(tell)

    return begin


def _read(fd: int, size: int) -> bytes | None:
    """Nothing at the end; None while there is nothing."""
    try:
        return os.read(fd, size)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _pipe(read: contextlib.ExitStack, write: contextlib.ExitStack) -> tuple[int, int]:
    """A large pipe whose ends these two will close."""
    fds = os.pipe()
    read.callback(os.close, fds[0])
    write.callback(os.close, fds[1])
    with contextlib.suppress(OSError):
        fcntl.fcntl(fds[1], F_SETPIPE_SZ, PIPE_SIZE)
    return fds


def _work(task: Task, user: User, fds: tuple[int, int, int]) -> NoReturn:
    """The worker itself: never returns into boxd's code."""
    try:
        os.setsid()
        _take_signals()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 16) for fd in fds]
        for fd, place in zip(high, (0, 1, ANSWER_FD)):
            os.dup2(fd, place, inheritable=place != ANSWER_FD)
        close_all_but({0, 1, 2, ANSWER_FD})
        yield_memory_first()
        become(user.uid, user.gid, user.groups)
        with contextlib.suppress(Terminated):
            _say(_done(task))
    finally:
        os._exit(0)


def _take_signals() -> None:
    """As a new program has them, but for the one that asks it to end."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, _terminate)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _terminate(_number: int, _frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: it clears up now
    raise Terminated


def _done(task: Task) -> dict[str, Any]:
    """How the task ended, in words."""
    try:
        return {"end": task(lambda note: _say({"note": note}))}
    except Refusal as refusal:
        code, message = refusal.code, str(refusal)
    except OSError as error:
        code, message = refusal_of(error)
    except Exception as error:  # noqa: BLE001 - whatever it was, the server must hear of it
        code, message = "failed", f"boxd failed: {error!r}"
    return {"fail": (code, message[:MAX_MESSAGE])}


def _say(word: dict[str, Any]) -> None:
    data = json.dumps(word).encode() + b"\n"
    while data:
        data = data[os.write(ANSWER_FD, data) :]
