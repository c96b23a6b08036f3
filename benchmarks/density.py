"""What many frozen boxes cost: CPU, memory, and whether one more box is slower for them.

no other box         calls to one, and `docker exec` in it
many boxes, frozen   seconds in which nothing is asked for; then calls to one more
all stopped          is their memory back?
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

from benchmarks import cgroups
from benchmarks.bench import bench, box_in, boxes_in
from benchmarks.cgroups import Cgroup
from benchmarks.direct import Direct
from benchmarks.measure import Figure, Goal, Row, row, seconds_of, table, write
from benchmarks.thin import ThinClient

RESULTS = Path(__file__).with_name("results") / "density.json"
WARMUP = 20  # calls that do not count
APART = 0.02  # s between two calls
EXECS = 40  # `docker exec` at most: what the engine itself, and the kernel, have to do with it
REST = 3.0  # s that the kernel may take to free what has ended
BOXD = "boxd.pyz"
MIB = 1024**2

CALL, CALL_BESIDE = "shell_run true, no other box", "shell_run true, beside the frozen"
EXEC, EXEC_BESIDE = "docker exec true, no other box (API)", "docker exec true, beside (API)"
MAKE, MAKE_BESIDE = "creation, no other box", "creation, beside the frozen"
MAKE_ALL = "creation, each of the many"
FREEZE, STOP = "box_pause, frozen", "box_pause, stopped"
GROUP_HELD = "memory of a frozen box: its control group"
BOXD_HELD = "memory of a frozen box: PSS of boxd"
ALL_HELD = "memory of a frozen box: PSS of all in it"
SHARE_HELD = "memory of a frozen box: its share of the machine's"
GIVEN_BACK = "memory of the machine, given back by stopping"
SERVER_CPU = "the server meanwhile, of one core"
GROUPS_LEFT = "memory of all boxes' control groups, stopped"
SHARE_BACK = "memory given back by stopping, of what was taken"


@dataclass(frozen=True)
class Amounts:
    """How much of everything; `creations` are without the frozen, and as many beside them."""

    boxes: int = 200
    calls: int = 200
    creations: int = 5
    watched: float = 10.0


def boxes_cpu(watched: float) -> str:
    """The name of the goal of so many seconds."""
    return f"CPU time of all frozen boxes in {watched:g} s"


@dataclass(frozen=True)
class Held:
    """Bytes of one box: what its control group counts, and its processes' own (PSS)."""

    group: int
    boxd: int
    processes: int


@dataclass(frozen=True)
class Quiet:
    """So many seconds in which nothing was asked for, and the CPU seconds used in them."""

    seconds: float
    boxes: float
    server: float


def create(client: ThinClient, name: str) -> None:
    client.call("box_create", name=name)
    client.call("shell_run", command="true", box=name)


def measure_one_more(
    client: ThinClient, amounts: Amounts, names: tuple[str, str, str]
) -> list[Row]:
    """A few boxes one after another, and calls to the last of them; `names` are the rows'."""
    made: list[float] = []
    taken: list[float] = []
    executed: list[float] = []
    for number in range(amounts.creations):
        box = f"one-more-{number}"
        made.append(seconds_of(partial(create, client, box)))
        if number == amounts.creations - 1:
            call = partial(client.call, "shell_run", command="true", box=box)
            taken = spaced(call, amounts.calls)
            direct = Direct(box_in(client.call("box_info", box=box)))
            executed = spaced(direct.execute, min(amounts.calls, EXECS))
        client.call("box_delete", box=box)
    rows = zip(names, (taken, executed, made), strict=True)
    return [row(name, seconds) for name, seconds in rows]


def spaced(operation: Callable[[], object], times: int) -> list[float]:
    """Seconds of each of so many, not back to back: no agent calls like that."""
    taken: list[float] = []
    for _ in range(WARMUP + times):
        sleep(APART)
        taken.append(seconds_of(operation))
    return taken[WARMUP:]


def make_frozen(client: ThinClient, boxes: Sequence[str]) -> list[Row]:
    made: list[float] = []
    frozen: list[float] = []
    for box in boxes:
        made.append(seconds_of(partial(create, client, box)))
        frozen.append(seconds_of(partial(client.call, "box_pause", box=box, depth="frozen")))
    return [row(MAKE_ALL, made), row(FREEZE, frozen)]


def stop(client: ThinClient, boxes: Sequence[str]) -> Row:
    calls = [partial(client.call, "box_pause", box=box, depth="stopped") for box in boxes]
    return row(STOP, [seconds_of(call) for call in calls])


def available_at_rest() -> int:
    sleep(REST)
    return cgroups.available_bytes()


def held_by(group: Cgroup) -> Held:
    sizes = {pid: cgroups.pss_bytes(pid) for pid in group.processes()}
    boxd = sum(size for pid, size in sizes.items() if BOXD in cgroups.command_line(pid))
    return Held(group.memory_bytes(), boxd, sum(sizes.values()))


def keep_quiet(groups: Sequence[Cgroup], server: int, seconds: float) -> Quiet:
    def used() -> tuple[float, float, float]:
        boxes = sum(group.cpu_seconds() for group in groups)
        return perf_counter(), boxes, cgroups.cpu_seconds(server)

    before = used()
    sleep(seconds)
    return Quiet(*(now - then for now, then in zip(used(), before, strict=True)))


def run(amounts: Amounts, path: Path) -> None:
    names = [f"frozen-{number}" for number in range(amounts.boxes)]
    with bench() as made, made.thin(max_boxes=amounts.boxes + 1) as client:
        facts = {**made.facts(), **asdict(amounts)}
        rows = measure_one_more(client, amounts, (CALL, EXEC, MAKE))
        empty = available_at_rest()
        rows += make_frozen(client, names)
        pids = [made.engine.first_process(box) for box in boxes_in(client.call("box_list"))]
        groups = [cgroups.of(pid) for pid in pids]
        full = available_at_rest()
        held = [held_by(group) for group in groups]
        quiet = keep_quiet(groups, client.pid, amounts.watched)
        rows += measure_one_more(client, amounts, (CALL_BESIDE, EXEC_BESIDE, MAKE_BESIDE))
        rows.append(stop(client, names))
        back = available_at_rest() - full
        left = sum(group.memory_bytes() for group in groups if group.exists())
    taken = empty - full
    figures = [
        Figure(GROUP_HELD, each(one.group for one in held), "MiB"),
        Figure(BOXD_HELD, each(one.boxd for one in held), "MiB"),
        Figure(ALL_HELD, each(one.processes for one in held), "MiB"),
        Figure(SHARE_HELD, taken / amounts.boxes / MIB, "MiB"),
        Figure(GIVEN_BACK, back / MIB, "MiB"),
    ]
    p50 = {row.name: row.p50 for row in rows}
    goals = [
        Goal(boxes_cpu(amounts.watched), quiet.boxes, 0, "s"),
        Goal(SERVER_CPU, 100 * quiet.server / quiet.seconds, 1, "%"),
        Goal(f"{CALL_BESIDE} / {CALL}", p50[CALL_BESIDE] / p50[CALL], 1.5),
        Goal(GROUPS_LEFT, left / MIB, 0, "MiB"),
        Goal(SHARE_BACK, 100 * back / taken, 90, "%", at_least=True),
    ]
    print(table(rows, goals, figures))
    write(path, facts, rows, goals, figures)


def each(amounts: Iterable[int]) -> float:
    """The median of so many bytes, in MiB."""
    return median(amounts) / MIB


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks density", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    whole = Amounts()
    add = parser.add_argument
    add("--boxes", type=int, default=whole.boxes)
    add("--calls", type=int, default=whole.calls, help="to one box, before and after")
    add("--creations", type=int, default=whole.creations, help="of one more, before and after")
    add("--watched", type=float, default=whole.watched, help="seconds without a call")
    add("--json", type=Path, default=RESULTS, help="where the figures go")
    given = parser.parse_args(arguments)
    amounts = Amounts(given.boxes, given.calls, given.creations, given.watched)
    run(amounts, given.json)
