"""Operations timed in turns, so that what else the machine does befalls all of them alike.

Figures of two runs can't be compared; ratios within one run can.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

MS = 1000.0

Operation = Callable[[], Awaitable[float]]
"""Does something once and returns the seconds that it took."""


@dataclass(frozen=True)
class Row:
    """What one operation took, in milliseconds."""

    name: str
    n: int
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Batch:
    """Many operations, several of them at once: the seconds of each, and of all together."""

    each: Sequence[float]
    wall: float

    @property
    def rate(self) -> float:
        """Operations per second."""
        return len(self.each) / self.wall


@dataclass(frozen=True)
class Figure:
    """Something measured that is no operation's time."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True)
class Goal:
    """A figure and what it should be: `limit` at most, or at least."""

    name: str
    value: float
    limit: float
    unit: str = ""
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass
class Found:
    """What was measured."""

    rows: list[Row] = field(default_factory=list[Row])
    figures: list[Figure] = field(default_factory=list[Figure])
    goals: list[Goal] = field(default_factory=list[Goal])

    def add(self, name: str, batch: Batch) -> None:
        """A row of single operations, and how many there were a second."""
        self.rows.append(row(name, batch.each))
        self.figures.append(Figure(name, batch.rate, "/s"))


def seconds_of(function: Callable[[], object]) -> float:
    started = perf_counter()
    function()
    return perf_counter() - started


def timed(function: Callable[[], object]) -> Operation:
    """An operation that calls `function`, which blocks."""

    async def operation() -> float:
        return seconds_of(function)

    return operation


def timed_async(function: Callable[[], Awaitable[object]]) -> Operation:
    """An operation that awaits `function`."""

    async def operation() -> float:
        started = perf_counter()
        await function()
        return perf_counter() - started

    return operation


async def interleaved(
    operations: Mapping[str, Operation], rounds: int, warmup: int = 0, in_a_row: int = 1
) -> list[Row]:
    """Does every operation `in_a_row` times a round, each round in another order; the last counts.

    Once in a row, an operation pays for the caches that the one before it filled with its own, and
    for cores that went idle meanwhile; from the second time on, it pays for itself.
    """
    samples: dict[str, list[float]] = {name: [] for name in operations}
    order = list(operations)
    dice = random.Random(1)  # noqa: S311 - the same orders in every run
    for number in range(-warmup, rounds):
        dice.shuffle(order)
        for name in order:
            seconds = 0.0
            for _ in range(in_a_row):
                seconds = await operations[name]()
            if number >= 0:
                samples[name].append(seconds)
    return [row(name, taken) for name, taken in samples.items()]


def batches_in_turns(
    operations: Mapping[str, Callable[[], Batch]], rounds: int, warmup: int = 0
) -> dict[str, Batch]:
    """Does every batch once a round, each round in another order; all batches of a name as one."""
    done: dict[str, list[Batch]] = {name: [] for name in operations}
    order = list(operations)
    dice = random.Random(1)  # noqa: S311 - the same orders in every run
    for number in range(-warmup, rounds):
        dice.shuffle(order)
        for name in order:
            batch = operations[name]()
            if number >= 0:
                done[name].append(batch)
    return {
        name: Batch([one for batch in batches for one in batch.each], sum(b.wall for b in batches))
        for name, batches in done.items()
    }


def row(name: str, samples: Sequence[float]) -> Row:
    """The percentiles of `samples`, which are seconds."""
    p95, p99 = percentile(samples, 0.95), percentile(samples, 0.99)
    return Row(name, len(samples), MS * statistics.median(samples), MS * p95, MS * p99)


def percentile(samples: Sequence[float], share: float) -> float:
    """The least sample that `share` of all do not exceed."""
    ordered = sorted(samples)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def table(rows: Sequence[Row], goals: Sequence[Goal], figures: Sequence[Figure] = ()) -> str:
    """Rows, figures and goals for a human to read."""
    width = max(len(item.name) for item in [*rows, *goals, *figures])
    lines = [f"{'':{width}}  {'p50 ms':>9} {'p95 ms':>9} {'p99 ms':>9} {'n':>5}"]
    lines += [
        f"{row.name:{width}}  {row.p50:9.2f} {row.p95:9.2f} {row.p99:9.2f} {row.n:5}"
        for row in rows
    ]
    lines.append("")
    for figure in figures:
        lines.append(f"{figure.name:{width}}  {figure.value:9.2f} {figure.unit}")
    lines += [""] if figures else []
    for goal in goals:
        wanted = f"{'≥' if goal.at_least else '≤'} {goal.limit:.4g} {goal.unit}".rstrip()
        verdict = "met" if goal.met else "MISSED"
        lines.append(f"{goal.name:{width}}  {goal.value:9.2f} {wanted:>9}  {verdict}")
    return "\n".join(lines)


def write(
    path: Path,
    facts: Mapping[str, object],
    rows: Sequence[Row],
    goals: Sequence[Goal],
    figures: Sequence[Figure] = (),
) -> None:
    """The same for a program to read."""
    report: dict[str, Any] = {
        **facts,
        "rows": {
            row.name: {"n": row.n, "p50_ms": row.p50, "p95_ms": row.p95, "p99_ms": row.p99}
            for row in rows
        },
        "figures": {
            figure.name: {"value": figure.value, "unit": figure.unit} for figure in figures
        },
        "goals": [{**asdict(goal), "met": goal.met} for goal in goals],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
