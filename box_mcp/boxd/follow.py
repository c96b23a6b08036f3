"""Streams that are about a run: the call that started it, pages of its output, input for it."""

from __future__ import annotations

import re
import signal

from .connection import Refusal, Stream
from .output import Excerpt
from .run import Listener

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .connection import Connection
    from .history import Past
    from .loop import Loop, Timer
    from .process import Process
    from .run import Run

EXCERPT_LIMIT = 100 * 1024  # bytes of head or tail: both fit into a stream's window
PAGE_LIMIT = 100 * 1024  # bytes of one page: it fits into a stream's window
INPUT_LIMIT = 256 * 1024  # bytes of input in one request
SEARCHED = 1024 * 1024  # bytes before the newest in which a pattern is looked for
CARRY = 4096  # bytes before new ones with which they may make a match
MATCH_TIME = 0.1  # s of CPU for one search; a pattern that backtracks for ever must not stop boxd
QUIET = 0.25  # s without output, after some, that count as an answer to input


class Attentive(Stream, Listener):
    """A stream that passes on what it hears of a run."""

    def on_newest(self, note: dict[str, Any], /) -> None:
        """Passes it on, unless the line is full."""
        if self.open and not self.connection.congested:
            self.note(note)

    def on_failed(self, message: str, /) -> None:
        """There will be no result."""
        self.fail("not_started", message)


class Follower(Attentive):
    """The stream of a `run` request, from its OPEN to its END."""

    def __init__(self, connection: Connection, number: int, request: dict[str, Any]) -> None:
        super().__init__(connection, number)
        head = max(0, min(int(request.get("head", 0)), EXCERPT_LIMIT))
        tail = max(0, min(int(request.get("tail", 0)), EXCERPT_LIMIT))
        self._excerpt = Excerpt(head, tail)
        self._run: Run | None = None
        self._process: Process | None = None
        self._quiet: float | None = None
        self._silence: Timer | None = None

    def follow(self, run: Run, process: Process | None = None) -> None:
        """Answers with what `run` printed when it has ended. What input comes is for `process`."""
        self._run, self._process = run, process
        run.join(self)

    def limit(self, yield_after: float | None, quiet: float | None) -> None:
        """Answers after `yield_after` seconds, or `quiet` seconds in which nothing is printed."""
        assert self._run is not None
        self._quiet = quiet
        if yield_after is not None:
            self._run.later(yield_after, self.on_ended)
        if quiet is not None:
            self._silence = self._run.later(quiet, self.on_ended)

    def on_data(self, _label: int, data: bytes, /) -> None:
        """Input for the command."""
        if self._process is not None:
            self._process.write(data, self.consumed)

    def on_finish(self) -> None:
        """The command's input ends here."""
        if self._process is not None:
            self._process.end_input()

    def on_cancel(self) -> None:
        """Ends the command's whole tree; END follows when it is gone."""
        if self._run is not None:
            self._run.end_tree("cancelled")

    def on_disconnect(self) -> None:
        """The command goes on: its server may come back, and its deadline stands."""
        if self._run is not None:
            self._run.leave(self)

    def on_output(self, label: int, data: bytes, /) -> None:
        """Keeps the head and the tail."""
        self._excerpt.add(label, data)
        if self._silence is not None:
            self._silence.cancel()
            self.limit(None, self._quiet)

    def on_ended(self) -> None:
        """Sends the kept output and the result."""
        assert self._run is not None
        self._run.leave(self)
        if self._silence is not None:
            self._silence.cancel()
        if self._process is not None and self._process.streamed:
            self._process.end_input()  # no more can come
        if self.open:
            with self.connection.in_one_piece():
                self._send_all(self._run.record())

    def _send_all(self, record: dict[str, Any]) -> None:
        for label, data in self._excerpt.head():
            self.send(data, label)
        if self._excerpt.skipped:
            self.note({"skipped": self._excerpt.skipped})
        for label, data in self._excerpt.tail():
            self.send(data, label)
        self.end(record)


class Ending(Follower):
    """The stream of an `end` request: it ends the tree, and answers when that is gone."""

    def on_cancel(self) -> None:
        """The tree is ended all the same."""


class Watcher(Attentive):
    """The stream of an `output` request: a page of the log, when what is waited for has come.

    ``cursor`` is an offset in the log, null for the newest bytes; ``limit`` bytes at most are
    sent. ``wait`` is how many seconds to wait for ``until``: ``output`` beyond the cursor,
    ``quiet`` after such output, ``exit``, or a match of ``pattern`` beyond the cursor, or anywhere
    without one. An exit always ends the wait. Its END is the record with ``start`` and ``end`` of
    the page, and ``matched``.
    """

    def __init__(
        self,
        connection: Connection,
        number: int,
        loop: Loop,
        run: Run | Past,
        request: dict[str, Any],
    ) -> None:
        super().__init__(connection, number)
        self._loop = loop
        self._run = run
        self._limit = max(1, min(int(request["limit"]), PAGE_LIMIT))
        cursor = request.get("cursor")
        self._cursor = None if cursor is None else max(0, int(cursor))
        self._until = str(request.get("until") or "output")
        self._pattern = compiled(request.get("pattern"))
        newest = run.log.size if self._pattern is None else 0
        self._seen = newest if self._cursor is None else self._cursor
        self._searched = max(self._seen, run.log.size - SEARCHED)
        self._match: int | None = None  # where it ends
        self._timers: dict[str, Timer] = {}

    def watch(self, wait: float) -> None:
        """Answers at once, if it can or may not wait, else within `wait` seconds."""
        self._search()
        if not wait or self._over() or self._satisfied():
            return self._answer()
        self._run.join(self)
        self._timers["wait"] = self._loop.call_later(wait, self._answer)
        self._await_quiet()

    def on_output(self, _label: int, _data: bytes, /) -> None:
        """Looks whether that is what is waited for."""
        try:
            self._search()
        except Refusal as refusal:
            self.on_disconnect()
            return self.fail(refusal.code, str(refusal))
        if self._satisfied():
            self._answer()
        else:
            self._await_quiet()

    def on_ended(self) -> None:
        """Nothing more will come, unless from what the command has left in the background."""
        if self._over():
            self._answer()

    def on_cancel(self) -> None:
        """Nobody waits any more; the command goes on."""
        self.on_disconnect()
        super().on_cancel()

    def on_disconnect(self) -> None:
        """Nobody waits any more; the command goes on."""
        self._run.leave(self)
        for timer in self._timers.values():
            timer.cancel()

    def _over(self) -> bool:
        run = self._run
        return run.settled or (run.concluded and self._until == "exit" and self._pattern is None)

    def _satisfied(self) -> bool:
        if self._pattern is not None:
            return self._match is not None
        return self._until == "output" and self._run.log.size > self._seen

    def _await_quiet(self) -> None:
        if self._pattern is None and self._until == "quiet" and self._run.log.size > self._seen:
            if (timer := self._timers.get("quiet")) is not None:
                timer.cancel()
            self._timers["quiet"] = self._loop.call_later(QUIET, self._answer)

    def _search(self) -> None:
        """Looks for the pattern in what is new, and a little before, where a match may begin."""
        log = self._run.log
        while self._pattern is not None and self._match is None and self._searched < log.size:
            start, text = log.read(max(self._seen, self._searched - CARRY), PAGE_LIMIT)
            if start + len(text) <= self._searched:
                return  # somebody has cut the log off
            self._searched = start + len(text)
            if (found := first_match(self._pattern, text)) is not None:
                self._match = start + found

    def _answer(self) -> None:
        self.on_disconnect()
        if not self.open:
            return
        start, data = self._page()
        page = {"start": start, "end": start + len(data), "matched": self._match is not None}
        with self.connection.in_one_piece():
            if data:
                self.send(data)
            self.end({**self._run.record(), **page})

    def _page(self) -> tuple[int, bytes]:
        log = self._run.log
        if self._match is not None:  # what was waited for is on the page
            start = max(self._seen, self._match - self._limit)
        elif self._cursor is None:
            start = max(0, log.size - self._limit)
        else:
            start = min(self._cursor, log.size)
        start, data = log.read(start, self._limit)
        if start + len(data) < log.size:
            whole = data[: data.rfind(b"\n") + 1] or whole_characters(data)
            return start, data if start + len(whole) < (self._match or 0) else whole
        return start, data if self._run.concluded else whole_characters(data)


class Input(Stream):
    """The stream of an `input` request: DATA, then FINISH; END is the run's record."""

    def __init__(self, connection: Connection, number: int, done: Callable[[bytes], Any]) -> None:
        super().__init__(connection, number)
        self._done = done
        self._data = bytearray()

    def on_data(self, _label: int, data: bytes, /) -> None:
        """Part of the input."""
        self._data += data
        if len(self._data) > INPUT_LIMIT:
            raise Refusal("too_large", f"input of one request is over {INPUT_LIMIT} bytes")
        self.consumed(len(data))

    def on_finish(self) -> None:
        """All of it is here."""
        self.end(self._done(bytes(self._data)))


def compiled(pattern: object) -> re.Pattern[bytes] | None:
    """A regular expression over bytes; raises Refusal when it is none."""
    if pattern is None:
        return None
    try:
        return re.compile(str(pattern).encode(), re.MULTILINE)
    except (re.error, RecursionError, OverflowError) as error:
        raise Refusal("invalid", f"the pattern is no regular expression: {error}") from None


def first_match(pattern: re.Pattern[bytes], text: bytes) -> int | None:
    """Where the first match ends; raises Refusal when looking for it takes too long."""

    def give_up(_number: int, _frame: object) -> None:
        raise Refusal("invalid", "the pattern takes too long to match: make it simpler")

    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, MATCH_TIME)
    try:
        found = pattern.search(text)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    return found.end() if found is not None else None


def whole_characters(data: bytes) -> bytes:
    """`data` without the first bytes of a character that is cut off at its end."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte >= 0xC0:  # the first byte of a character of several
            needs = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[:-back] if back < needs else data
        if byte < 0x80:
            break
    return data
