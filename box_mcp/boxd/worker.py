"""A request that is done by a process of its own: what takes long, or runs other programs.

    server ──DATA──▶ boxd ──pipe──▶ standard input of the worker
    server ◀──DATA── boxd ◀──pipe── its standard output
    server ◀──NOTE, END, FAIL── boxd ◀──pipe── its words, a JSON object a line

The worker is the box's user for good, so the kernel checks all that it does, and whatever it
starts is in its process group, which is killed when the server gives the request up.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal

from . import wire
from .connection import Refusal, Stream
from .identity import become
from .runner import close_all_but, yield_memory_first
from .slices import refusal_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, NoReturn

    from .connection import Connection
    from .identity import User
    from .loop import Loop

    Tell = Callable[[dict[str, Any]], None]
    Task = Callable[[Tell], dict[str, Any]]

F_SETPIPE_SZ = 1031  # <fcntl.h>; Python names it from 3.10 on
PIPE_SIZE = 1024 * 1024  # bytes; the most that the kernel gives without privilege
MAX_WORD = 64 * 1024  # bytes of one line of words
ANSWER_FD = 3  # where a worker says what it has to say


class Work(Stream):
    """One worker. `task` runs in it, reads descriptor 0, writes descriptor 1, and returns the END.

    It is given a function that sends a NOTE. Refusal and OSError become FAIL, as anything else
    that it raises does. Raises OSError when the box can't fork.
    """

    def __init__(
        self, connection: Connection, number: int, loop: Loop, user: User, task: Task
    ) -> None:
        super().__init__(connection, number)
        self._loop = loop
        self._backlog = bytearray()
        self._finished = False
        self._reading = False
        self._last_word: dict[str, Any] = {}
        self._words = b""
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as theirs:
            source, self._input = _pipe(theirs, undo)
            self._output, sink = _pipe(undo, theirs)
            self._answer, answer = _pipe(undo, theirs)
            self._pid = os.fork()
            if self._pid == 0:
                _work(task, user, (source, sink, answer))
            undo.pop_all()
        for fd in (self._input, self._output, self._answer):
            os.set_blocking(fd, False)
        self._fds = {self._input, self._output, self._answer}
        loop.on_readable(self._answer, self._hear)
        self.on_credit()

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
        self._kill()
        super().on_cancel()

    def on_disconnect(self) -> None:
        """Nobody waits any more."""
        self._kill()

    def _feed(self) -> None:
        try:
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
            if "note" in word:
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

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        for fd in list(self._fds):
            self._release(fd)

    def _release(self, fd: int) -> None:
        if fd in self._fds:
            self._fds.remove(fd)
            self._loop.on_readable(fd, None)
            self._loop.on_writable(fd, None)
            os.close(fd)


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
        _say(_done(task))
    finally:
        os._exit(0)


def _take_signals() -> None:
    """As a new program has them."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)


def _done(task: Task) -> dict[str, Any]:
    """How the task ended, in words."""
    try:
        return {"end": task(lambda note: _say({"note": note}))}
    except Refusal as refusal:
        return {"fail": (refusal.code, str(refusal))}
    except OSError as error:
        return {"fail": refusal_of(error)}
    except Exception as error:  # noqa: BLE001 - whatever it was, the server must hear of it
        return {"fail": ("failed", f"boxd failed: {error!r}")}


def _say(word: dict[str, Any]) -> None:
    data = json.dumps(word).encode() + b"\n"
    while data:
        data = data[os.write(ANSWER_FD, data) :]
