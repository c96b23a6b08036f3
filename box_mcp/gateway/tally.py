"""What was refused: a bounded memory, and what came since any moment."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

MAX_TARGETS = 100  # distinct ones that are remembered
SHOWN = 8  # targets in one line


@dataclass(frozen=True)
class Refusal:
    """Connections to one host and port that were refused, the last one at a time of the clock."""

    target: str
    count: int
    last: float
    reason: str


@dataclass(frozen=True)
class Mark:
    """A moment in a tally's life."""

    total: int = 0
    counts: Mapping[str, int] = field(default_factory=dict[str, int])


class Tally:
    """Counts by target; the one that was not met for longest is forgotten first.

    `told` is up to when somebody was told; who tells, moves it.
    """

    def __init__(self) -> None:
        self.total = 0
        self.told = Mark()
        self._known: dict[str, tuple[int, Refusal]] = {}

    def add(self, target: str, reason: str) -> None:
        """One more was refused."""
        self.total += 1
        first, known = self._known.pop(target, (self.total, None))
        if len(self._known) >= MAX_TARGETS:
            del self._known[next(iter(self._known))]
        count = known.count + 1 if known else 1
        self._known[target] = first, Refusal(target, count, time.time(), reason)

    def mark(self) -> Mark:
        """This moment, for `since`."""
        return Mark(self.total, {target: one.count for target, (_, one) in self._known.items()})

    def since(self, mark: Mark | None = None) -> tuple[Refusal, ...]:
        """What was refused after `mark`, the latest last; all that is remembered without one."""
        mark = mark or Mark()
        found: list[Refusal] = []
        for target, (first, one) in self._known.items():
            before = mark.counts.get(target, 0) if first <= mark.total else 0
            if one.count > before:
                found.append(replace(one, count=one.count - before))
        return tuple(found)


def told(refusals: Sequence[Refusal]) -> str:
    """In one line: ``3 connections refused: a.example:443 (2), b.example:80``; nothing if none."""
    if not refusals:
        return ""
    total = sum(one.count for one in refusals)
    shown = [
        one.target if one.count == 1 else f"{one.target} ({one.count})" for one in refusals[-SHOWN:]
    ]
    more = len(refusals) - len(shown)
    others = f" and {more} more" if more else ""
    return f"{total} connection{'s'[: total > 1]} refused: {', '.join(shown)}{others}"
