"""What a box's way through life costs, beside the engine's own calls: waking, making, saving.

box_pause, then shell_run true              docker unpause
a new session's first shell_run             docker run IMAGE echo, on the bridge that is there
snapshot_create                             docker commit of the same box
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from time import perf_counter

import anyio

from benchmarks.bench import Bench, bench, box_in
from benchmarks.measure import (
    Goal,
    Operation,
    Row,
    interleaved,
    row,
    seconds_of,
    table,
    timed,
    write,
)
from benchmarks.thin import ThinClient
from box_mcp.domain.plan import TRUST

RESULTS = Path(__file__).with_name("results") / "lifecycle.json"
WARMUP = 2  # rounds that do not count
REST = TRUST + 0.5  # s; a server does not believe what it knew of a box that long ago
CREATION_ROUNDS = 15  # at most; each makes eight boxes and containers
SAVE_ROUNDS = 9  # at most, of changes; each writes everything to the disk twice
NO_CHANGE = "true"
SPARES = 1
BUILT_IN = {"warm_min": 1, "warm_max": 3}  # what servers keep ready if nobody sets that
UNFORESEEN = {"FOR": "a box that no spare can be"}  # variables

AWAKE = "shell_run true, box running"
WAKE, WAKE_RESTED = "shell_run true, box frozen", f"shell_run true, box frozen for {REST:g} s"
UNPAUSE = "docker unpause (API)"
UNPAUSE_RESTED = f"docker unpause after {REST:g} s (API)"
WARM_FIRST, WARM_CREATE = "new session's shell_run, spare", "box_create + shell_run, spare"
COLD = "box_create + shell_run, no spare"
COLD_BARE = "box_create + shell_run, no spare, no network"
RUN, RUN_CLI = "docker run echo (API)", "docker run echo (CLI)"
RUN_NETWORK = "docker run echo, new network (API)"
RESTED = (WAKE_RESTED, UNPAUSE_RESTED)
WAKES = (AWAKE, WAKE, UNPAUSE, *RESTED)
CREATIONS = (WARM_FIRST, WARM_CREATE, COLD, COLD_BARE, RUN, RUN_NETWORK, RUN_CLI)
PARTS = ("wakes", "creations", "saves", "queues")


@dataclass(frozen=True)
class Amounts:
    """How much of everything; `rested` are rounds that take seconds each, `big` is in MB."""

    rounds: int = 50
    rested: int = 10
    sequence: int = 100
    burst: int = 50
    big: int = 500
    files: int = 20_000

    def changes(self) -> dict[str, str]:
        """What boxes are saved with, and the command that makes it."""
        many = f"for n in range({self.files}): open(f'{{n}}', 'w').write('x' * 100)"
        return {
            "no change": NO_CHANGE,
            f"one file of {self.big} MB": f"head -c {self.big}000000 /dev/urandom > big",
            f"{self.files} small files": f'mkdir many; cd many; python3 -c "{many}"',
        }

    def queues(self) -> tuple[str, str, str]:
        """The names of the rows of many boxes."""
        return (
            f"new session's shell_run, {self.sequence} in a row",
            f"new session's shell_run, {self.burst} at once",
            f"docker run echo, {self.burst} at once (API)",
        )


def saving(change: str) -> tuple[str, str]:
    """The names of the rows of a change."""
    return f"snapshot_create, {change}", f"docker commit, {change} (API)"


async def measure_wakes(bench: Bench, amounts: Amounts) -> list[Row]:
    """From a call to a frozen box to its command's output."""
    engine = bench.engine
    with bench.thin() as client, engine.idle(bench.image) as container:
        box = box_in(client.call("shell_run", command="true"))
        call = partial(client.call, "shell_run", command="true")

        async def wake(rest: float = 0) -> float:
            client.call("box_pause", box=box)
            await anyio.sleep(rest)
            return seconds_of(call)

        async def unpause(rest: float = 0) -> float:
            engine.pause(container)
            await anyio.sleep(rest)
            return seconds_of(partial(engine.unpause, container))

        at_once = {AWAKE: timed(call), WAKE: wake, UNPAUSE: unpause}
        rested = {WAKE_RESTED: partial(wake, REST), UNPAUSE_RESTED: partial(unpause, REST)}
        rows = await interleaved(at_once, amounts.rounds, WARMUP)
        return rows + await interleaved(rested, amounts.rested)


async def measure_creations(ready: Bench, bare: Bench, rounds: int) -> list[Row]:
    """From the wish for a box to its first command's output.

    `ready` keeps a spare and networks in stock, `bare` nothing.
    """
    engine, image, numbers = ready.engine, ready.image, count()
    with ready.thin() as client, bare.thin() as poor:

        def first_call(thread: str) -> str:
            return client.call("shell_run", thread, command="true")

        def create(client: ThinClient, thread: str, **wishes: object) -> str:
            made = client.call("box_create", thread, name=thread, **wishes)
            client.call("shell_run", thread, command="true", box=thread)
            return made

        def making(client: ThinClient, make: partial[str]) -> Operation:
            async def operation() -> float:
                ready.settle()
                started = perf_counter()
                made = make(thread=f"thread-{next(numbers)}")
                seconds = perf_counter() - started
                client.call("box_delete", box=box_in(made))
                return seconds

            return operation

        def running(run: partial[float]) -> Operation:
            async def operation() -> float:
                ready.settle()
                return run()

            return operation

        operations = {
            WARM_FIRST: making(client, partial(first_call)),
            WARM_CREATE: making(client, partial(create, client)),
            COLD: making(client, partial(create, client, env=UNFORESEEN)),
            COLD_BARE: making(poor, partial(create, poor)),
            RUN: running(partial(engine.run, image)),
            RUN_NETWORK: running(partial(engine.run, image, on_new_network=True)),
        }
        if engine.cli is not None:
            operations[RUN_CLI] = running(partial(engine.run_by_cli, image))
        return await interleaved(operations, rounds, warmup=1)


def measure_queues(bench: Bench, amounts: Amounts) -> list[Row]:
    """Many boxes, one after another and all at once, by a server as it is set by default."""
    in_a_row, at_once, raw_at_once = amounts.queues()
    room = max(amounts.sequence, amounts.burst)
    with bench.thin(**BUILT_IN, max_boxes=room) as client:
        bench.settle()
        call = partial(client.call, "shell_run", command="true")
        calls = [partial(call, thread=f"row-{number}") for number in range(amounts.sequence)]
        rows = [row(in_a_row, [seconds_of(call) for call in calls])]
        bench.clear(client)
        bench.settle()
        threads = [f"burst-{number}" for number in range(amounts.burst)]
        rows.append(row(at_once, client.call_at_once("shell_run", threads, command="true")))
        bench.clear(client)
    with ThreadPoolExecutor(amounts.burst) as threads:
        images = [bench.image] * amounts.burst
        rows.append(row(raw_at_once, list(threads.map(bench.engine.run, images))))
    return rows


async def measure_saves(bench: Bench, amounts: Amounts) -> list[Row]:
    """From a running box to an image of its files; each image is removed at once.

    One change after another: what a large one leaves the disk to do would befall the next.
    """
    rows: list[Row] = []
    with bench.thin(pause_after="off") as client:

        async def snapshot(box: str) -> float:
            os.sync()  # each begins with nothing else to be written
            started = perf_counter()
            client.call("snapshot_create", name="saved", box=box)
            seconds = perf_counter() - started
            client.call("snapshot_delete", name="saved")
            return seconds

        async def commit(box: str) -> float:
            os.sync()
            return bench.engine.commit(box)

        for change, command in amounts.changes().items():
            box = box_in(client.call("shell_run", change, command=f"set -e; {command}"))
            ours, raw = saving(change)
            pair = {ours: partial(snapshot, box), raw: partial(commit, box)}
            rounds = amounts.rounds if command == NO_CHANGE else min(amounts.rounds, SAVE_ROUNDS)
            rows += await interleaved(pair, rounds, warmup=1)
    return rows


def goals(rows: Sequence[Row], amounts: Amounts) -> list[Goal]:
    """What was set out to be reached, and how far it is, as far as it was measured."""
    p50 = {row.name: row.p50 for row in rows}
    found: list[Goal] = []
    for wake, unpause in ((WAKE, UNPAUSE), RESTED):
        if wake in p50:
            found.append(Goal(wake, p50[wake], 1.3 * p50[unpause] + 5, "ms"))
    found += [Goal(name, p50[name], 30, "ms") for name in (WARM_FIRST, WARM_CREATE) if name in p50]
    ratios = [(COLD, RUN, 1.5), (COLD_BARE, RUN, 1.8)]
    ratios += [(*saving(change), 1.2) for change in amounts.changes()]
    found += [
        Goal(f"{ours} / {raw}", p50[ours] / p50[raw], limit)
        for ours, raw, limit in ratios
        if ours in p50
    ]
    return found


async def run(amounts: Amounts, parts: Sequence[str], path: Path) -> None:
    rows: list[Row] = []
    with bench(SPARES) as ready, bench() as bare:
        facts = {**ready.facts(), **asdict(amounts)}
        if "wakes" in parts:
            rows += await measure_wakes(bare, amounts)
        if "creations" in parts:
            rows += await measure_creations(ready, bare, min(amounts.rounds, CREATION_ROUNDS))
        if "saves" in parts:
            rows += await measure_saves(bare, amounts)
        if "queues" in parts:
            rows += measure_queues(ready, amounts)
    reached = goals(rows, amounts)
    print(table(rows, reached))
    write(path, facts, rows, reached)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks lifecycle", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    whole = Amounts()
    parser.add_argument("--rounds", type=int, default=whole.rounds, help="of each, at most")
    parser.add_argument("--rested", type=int, default=whole.rested, help="rounds after a rest")
    parser.add_argument("--sequence", type=int, default=whole.sequence, help="boxes in a row")
    parser.add_argument("--burst", type=int, default=whole.burst, help="boxes at once")
    parser.add_argument("--big", type=int, default=whole.big, help="MB of the one file")
    parser.add_argument("--files", type=int, default=whole.files, help="small ones")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go")
    given = parser.parse_args(arguments)
    amounts = Amounts(
        given.rounds, given.rested, given.sequence, given.burst, given.big, given.files
    )
    anyio.run(run, amounts, given.only, given.json)
