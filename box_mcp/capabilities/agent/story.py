"""What one has read of a run so far: its account, as far as its box has told, and how it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
from anyio.lowlevel import checkpoint

from box_mcp.capabilities.agent.account import Account
from box_mcp.capabilities.agent.asked import Place
from box_mcp.capabilities.harnesses.base import Event, Reader
from box_mcp.capabilities.shell import Page, RunRecord, Until
from box_mcp.domain.runs import Run

PAGE = 100_000  # bytes that are read at once
PATIENCE = 10.0  # s in which one reads; what is left then is for the next look
REST = 1.0  # s for the last of what an ended process has printed to arrive
ROOM = 1024 * 1024  # bytes of lines whose events are held for one look


class Sink:
    """Events from a cursor on, `limit` at most; `behind` is where the next one is.

    `more` tells that there was no room for all.
    """

    def __init__(self, cursor: int, limit: int) -> None:
        self.events: list[Event] = []
        self.behind = self._start = cursor
        self.more = False
        self._limit = limit

    def take(self, events: Sequence[tuple[int, Event]]) -> None:
        """Takes what is wanted of these, which follow on those that came before."""
        for cursor, event in events:
            if cursor < self._start or self.more:
                continue
            full = len(self.events) >= self._limit or cursor - self._start > ROOM
            if full and self.events:
                self.more = True
                continue
            if not self.events:
                self._start = cursor
            self.events.append(event)
            self.behind = cursor + 1


class Story:
    """All that was read of one run, from its beginning. `record` is its present process's."""

    def __init__(self, reader: Callable[[], Reader]) -> None:
        self._reader = reader
        self.account = Account(reader)
        self.record: RunRecord | None = None
        self.violations: Sequence[str] | None = None
        """Of the present leg's answer; None before that was looked at."""
        self.over_budget_since: float | None = None
        """On the clock of anyio."""
        self.may_mend = True
        """Whether its answer may be asked for once more."""
        self.left_to_others = False
        """Whether it would be, by somebody who may start it."""
        self.forgotten = False
        """Whether its box can't tell any more what it printed."""
        self._unread = False
        self._seconds: dict[int, float] = {}

    @property
    def seconds(self) -> float:
        """How long all processes took, as far as they were looked at."""
        return sum(self._seconds.values())

    @property
    def leg_is_over(self) -> bool:
        """Whether the present process has ended, and everything of it was read."""
        return self.record is not None and not self.record.running and not self._unread

    def begin_again(self) -> Story:
        """One that has read nothing, and knows what was decided."""
        other = Story(self._reader)
        other.over_budget_since, other.may_mend = self.over_budget_since, self.may_mend
        return other

    async def read(
        self, place: Place, run: Run, sink: Sink | None = None, wait: float = 0.0
    ) -> None:
        """Reads what there is of all legs; where that is nothing, waits so long for more.

        What takes too long to read is not read to its end: the present process is not over then.
        Raises CallRefused (``not_found``) when the box knows a process no longer.
        """
        until = anyio.current_time() + wait + PATIENCE
        while self.account.leg < len(run.legs):
            if not self.leg_is_over:
                await self._read_leg(place, run.legs[self.account.leg], sink, wait, until)
            if not self.leg_is_over or self.account.leg + 1 == len(run.legs):
                return
            self.account.next_leg()
            self.record = self.violations = None

    async def _read_leg(
        self, place: Place, leg: str, sink: Sink | None, wait: float, until: float
    ) -> None:
        awaited: Until = "output" if self.account.word is None else "exit"
        page = await self._read_pages(place, leg, sink, wait, awaited, until)
        if not page.running:
            page = await self._read_pages(place, leg, sink, REST, "exit", until)
            late = anyio.current_time() >= until
            self._unread = late and self.account.lines.end < page.logged
            if not self._unread:
                await self._take(sink, last=True)
        self.record = page
        self._seconds[self.account.leg] = page.seconds

    async def _read_pages(
        self,
        place: Place,
        leg: str,
        sink: Sink | None,
        wait: float,
        awaited: Until,
        until: float,
    ) -> Page:
        """Reads what is there when it is asked: what comes meanwhile may have no end."""
        lines, most = self.account.lines, None
        while True:
            before = lines.end
            page, data = await place.shell.output(
                leg, limit=PAGE, cursor=before, wait=wait, until=awaited
            )
            lines.put(page.start, data)
            await self._take(sink)
            most = page.logged if most is None else most
            if lines.end >= most or lines.end == before or anyio.current_time() >= until:
                return page

    async def _take(self, sink: Sink | None, *, last: bool = False) -> None:
        """Takes what was read; others get their turn meanwhile: it may be many short lines."""
        before = -1
        while before != (before := self.account.cursor):
            events = self.account.read(last=last)
            if sink is not None:
                sink.take(events)
            await checkpoint()
