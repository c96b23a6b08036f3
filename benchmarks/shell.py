"""What commands cost when they are not alone: many callers, streams of output, floods, sessions.

1, 10, 50 callers, shell_run true           as many callers of docker exec true
a line that is printed at once              how long until a client sees it
head -c 100M /dev/zero, into the log        the same through a pipe, into a file and to nobody
calls to a box                              the same calls while a command floods it
a hundred commands at once                  the sum of their own seconds
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from time import perf_counter

import anyio

from benchmarks import cgroups
from benchmarks.bench import Bench, bench, box_in
from benchmarks.calls import ECHO
from benchmarks.direct import Direct, execute_at_once
from benchmarks.measure import (
    MS,
    Batch,
    Figure,
    Found,
    Goal,
    Operation,
    batches_in_turns,
    interleaved,
    percentile,
    row,
    seconds_of,
    table,
    timed,
    write,
)
from benchmarks.thin import Call, Reply, ThinClient

RESULTS = Path(__file__).with_name("results") / "shell.json"
WARMUP = 3  # rounds that do not count, at most: as many as do count
STREAM_ROUNDS = 30  # at most; each takes a second
VOLUME_ROUNDS = 7  # at most; each writes everything to the disk twice
MIB = 1024**2
NAP = 0.5  # s that a command goes on after its line: longer than the first note of it takes
LINE = "printed-at-once"
PROCESS_ID = re.compile(r"\bp\d+\b")
PRINTED = re.compile(r"bytes [\d,]+-[\d,]+ of ([\d,]+)")
DONE = re.compile(r"\[exit 0 · ([\d.]+) s\]\n(word-\d+)\n\Z")
LASTING = 1.0  # s that each of many commands takes
BOUND = 8  # MiB that output of any size may take in memory

TRUE = {"command": "true"}
RUN, EXEC, ECHOED = "shell_run true", "docker exec true (API)", "SDK echo"
RUN_SESSION, RUN_ALONE = "shell_run true, session", "shell_run true, no session"
ECHO_BESIDE_SESSIONS = "SDK echo, beside sessions"
STREAMED = "shell_run to its first line as progress"
BEGUN = "shell_run in the background"
PAGED = "shell_run in the background to the first page"
PAGE = "process_output of what is there"
ECHO_BESIDE_STREAMS = "SDK echo, beside streams"
QUIET = "shell_run true, box alone"
BESIDE_FLOOD = "shell_run true, yes in its box"
BESIDE_OTHER = "shell_run true, yes in another box"
BESIDE_BUSY = "shell_run true, yes > /dev/null in its box"
SESSIONS = (RUN_SESSION, RUN_ALONE, ECHO_BESIDE_SESSIONS)
STREAMS = (STREAMED, BEGUN, PAGED, PAGE, ECHO_BESIDE_STREAMS)
FAIRNESS = (QUIET, BESIDE_FLOOD, BESIDE_OTHER, BESIDE_BUSY)
FLOODS = (FLOOD, OTHER_FLOOD) = ("yes in its box", "yes in another box")
SERVER_GREW, BOXD_GREW = "peak growth of the server, printing", "peak growth of boxd, printing"
PARTS = ("parallel", "streams", "volume", "sessions", "fairness", "crowd")


@dataclass(frozen=True)
class Amounts:
    """How much of everything; `calls` are of each kind in a round, `big` is in MB."""

    rounds: int = 5
    calls: int = 100
    callers: tuple[int, ...] = (1, 10, 50)
    boxes: int = 10
    crowd: int = 100
    single: int = 200
    big: int = 100


def among(callers: int, boxes: int, name: str) -> str:
    """The name of the row of so many callers."""
    who = "one caller" if callers == 1 else f"{callers} callers"
    return f"{name}, {who}" if boxes == 1 else f"{name}, {who}, {boxes} boxes"


def printing(big: int) -> tuple[str, str, str]:
    """The names of the rows of so many MB."""
    size = f"{big} MB"
    return f"{size} into the log", f"{size} | cat > FILE", f"{size} | cat > /dev/null"


def crowd(commands: int, boxes: int) -> str:
    """The name of the row of so many commands at once."""
    where = "one box" if boxes == 1 else f"{boxes} boxes"
    return f"{commands} commands of {LASTING:g} s at once, {where}"


def measure_parallel(bench: Bench, amounts: Amounts, found: Found) -> None:
    """So many callers, each of which calls again when it was answered; in one box, then in all."""
    with bench.thin() as client, bench.thin(ECHO) as echo:
        made = make_boxes(client, "parallel", amounts.boxes)
        for count in sorted({1, len(made)}):
            boxes = dict(islice(made.items(), count))
            for callers in amounts.callers:
                if callers >= count:
                    compare(client, echo, boxes, callers, amounts, found)


def make_boxes(client: ThinClient, part: str, count: int) -> dict[str, str]:
    """Boxes by the conversations that they belong to."""
    threads = [f"{part}-{number}" for number in range(count)]
    return {thread: box_in(client.call("shell_run", thread, command="true")) for thread in threads}


def compare(
    client: ThinClient,
    echo: ThinClient,
    boxes: dict[str, str],
    callers: int,
    amounts: Amounts,
    found: Found,
) -> None:
    """The same callers of ours, of the engine, and of the SDK's least server."""
    calls = max(amounts.calls // callers, 1) * callers
    ours = [Call("shell_run", thread, TRUE) for thread in islice(cycle(boxes), calls)]
    echoes = [Call("echo", arguments={"text": "true"})] * calls
    directs = [Direct(box) for box in islice(cycle(boxes.values()), callers)]
    run, execute, echoed = (among(callers, len(boxes), name) for name in (RUN, EXEC, ECHOED))
    operations = {
        run: partial(batch_of, client, ours, callers),
        execute: partial(execute_at_once, directs, calls),
    }
    if len(boxes) == 1:
        operations[echoed] = partial(batch_of, echo, echoes, callers)
    done = batches_in_turns(operations, amounts.rounds, warmup=1)
    for name, batch in done.items():
        found.add(name, batch)
    ratio = done[run].rate / done[execute].rate
    found.figures.append(Figure(f"{run} / {execute}", ratio, "x as many a second"))


def batch_of(client: ThinClient, calls: Sequence[Call], at_once: int) -> Batch:
    started = perf_counter()
    replies = client.call_many(calls, at_once)
    return Batch([reply.seconds for reply in replies], perf_counter() - started)


async def measure_streams(bench: Bench, rounds: int, found: Found) -> None:
    """From a call until its client sees what its command printed at once."""
    command = f"echo {LINE}; sleep {NAP}"
    with bench.thin() as client, bench.thin(ECHO) as echo:
        client.call("shell_run", command="true")
        waits = begin(client, f"echo {LINE}; sleep infinity")
        begun = partial(begin, client, command)
        page = partial(client.call, "process_output", cursor=0, wait=NAP)

        def paged() -> None:
            if LINE not in (shown := page(id=begun())):
                raise RuntimeError(f"the first page is {shown!r}")

        async def streamed() -> float:
            return client.stream("shell_run", LINE, command=command)

        operations: dict[str, Operation] = {
            STREAMED: streamed,
            BEGUN: timed(begun),
            PAGED: timed(paged),
            PAGE: timed(partial(page, id=waits)),
            ECHO_BESIDE_STREAMS: timed(partial(echo.call, "echo", text="true")),
        }
        found.rows += await interleaved(operations, rounds, min(WARMUP, rounds))


def begin(client: ThinClient, command: str, thread: str | None = None) -> str:
    """The id of a command that runs in the background."""
    said = client.call("shell_run", thread, command=command, background=True)
    if not (ids := PROCESS_ID.findall(said)):
        raise RuntimeError(f"no process is named in {said!r}")
    return ids[0]


async def measure_volume(bench: Bench, amounts: Amounts, found: Found) -> None:
    """A command that prints much, and what is held of it in memory meanwhile."""
    logged, filed, dropped = printing(amounts.big)
    print_all = f"head -c {amounts.big}000000 /dev/zero"
    with bench.thin() as client:
        box = box_in(client.call("shell_run", command="true"))
        boxd = bench.engine.first_process(box)
        grown = {SERVER_GREW: cgroups.growth_of(client.pid), BOXD_GREW: cgroups.growth_of(boxd)}

        def running(command: str) -> Operation:
            async def operation() -> float:
                client.call("shell_run", command="rm -f piped")
                os.sync()  # each begins with nothing else to be written
                return seconds_of(partial(client.call, "shell_run", command=command))

            return operation

        operations = {
            logged: running(print_all),
            filed: running(f"{print_all} | cat > piped"),
            dropped: running(f"{print_all} | cat > /dev/null"),
        }
        rows = await interleaved(operations, min(amounts.rounds, VOLUME_ROUNDS), warmup=1)
        found.goals += [Goal(name, read() / MIB, BOUND, "MiB") for name, read in grown.items()]
    p50 = {row.name: row.p50 for row in rows}
    found.rows += rows
    found.figures += [Figure(name, amounts.big / p50[name] * MS, "MB/s") for name in operations]
    found.figures += [
        Figure(f"{logged} / {other}", p50[logged] / p50[other], "x the time")
        for other in (filed, dropped)
    ]


async def measure_sessions(bench: Bench, rounds: int, found: Found) -> None:
    """A command in a bash that is there, beside one in a bash of its own."""
    with bench.thin() as client, bench.thin(ECHO) as echo:
        run = partial(client.call, "shell_run", command="true")
        operations = {
            RUN_SESSION: timed(partial(run, session="bench")),
            RUN_ALONE: timed(run),
            ECHO_BESIDE_SESSIONS: timed(partial(echo.call, "echo", text="true")),
        }
        rows = await interleaved(operations, rounds, min(WARMUP, rounds))
    p50 = {row.name: row.p50 for row in rows}
    found.rows += rows
    above = p50[RUN_SESSION] - p50[ECHO_BESIDE_SESSIONS]
    found.goals.append(Goal(f"{RUN_SESSION} - {ECHOED}", above, 3, "ms"))


def measure_fairness(bench: Bench, amounts: Amounts, found: Found) -> None:
    """Calls to a box while another command prints as fast as it can, there or elsewhere.

    One that prints to nobody shows how much of it is the cores' doing.
    """
    floods: dict[str, list[float]] = {FLOOD: [], OTHER_FLOOD: []}
    with bench.thin() as client:
        own, other = make_boxes(client, "fairness", 2)

        def calls() -> Batch:
            return batch_of(client, [Call("shell_run", own, TRUE)] * amounts.calls, 1)

        def beside(command: str, thread: str, flood: str | None = None) -> Batch:
            with flooding(client, command, thread) as rate:
                batch = calls()
                if flood is not None:
                    floods[flood].append(rate())
            return batch

        operations = {
            QUIET: calls,
            BESIDE_FLOOD: partial(beside, "yes", own, FLOOD),
            BESIDE_OTHER: partial(beside, "yes", other, OTHER_FLOOD),
            BESIDE_BUSY: partial(beside, "yes > /dev/null", own),
        }
        done = batches_in_turns(operations, amounts.rounds, warmup=1)
    found.rows += [row(name, batch.each) for name, batch in done.items()]
    found.figures += [Figure(name, median(rates), "MB/s") for name, rates in floods.items()]
    p50, p95 = ({n: percentile(b.each, part) for n, b in done.items()} for part in (0.5, 0.95))
    for name in (BESIDE_FLOOD, BESIDE_OTHER, BESIDE_BUSY):
        found.figures.append(Figure(f"{name} / alone, p50", p50[name] / p50[QUIET], "x"))
        if name != BESIDE_FLOOD:
            found.figures.append(Figure(f"{name} / alone, p95", p95[name] / p95[QUIET], "x"))
    ratio = p95[BESIDE_FLOOD] / p95[QUIET]
    found.goals.append(Goal(f"{BESIDE_FLOOD} / alone, p95", ratio, 2.5))


@contextmanager
def flooding(
    client: ThinClient, command: str, thread: str
) -> Generator[Callable[[], float], None, None]:
    """While `command` runs; yields how to ask for the MB that it printed a second until then."""
    process = begin(client, command, thread)
    started = perf_counter()

    def rate() -> float:
        shown = client.call("process_output", thread, id=process)
        if (said := PRINTED.search(shown)) is None:
            raise RuntimeError(f"no count of bytes in {shown[:200]!r}")
        return int(said[1].replace(",", "")) / (perf_counter() - started) / 1e6

    try:
        yield rate
    finally:
        client.call("process_signal", thread, id=process)


def measure_crowd(bench: Bench, amounts: Amounts, found: Found) -> None:
    """Many commands at once, in one box and in many; each must have its own output."""
    with bench.thin() as client:
        boxes = list(make_boxes(client, "crowd", amounts.boxes))
        for count in sorted({1, len(boxes)}):
            name = crowd(amounts.crowd, count)
            calls = [
                Call("shell_run", thread, {"command": f"echo word-{number}; sleep {LASTING:g}"})
                for number, thread in enumerate(islice(cycle(boxes[:count]), amounts.crowd))
            ]
            started = perf_counter()
            replies = client.call_many(calls, len(calls))
            wall = perf_counter() - started
            own = [seconds for reply in replies if (seconds := own_seconds(reply)) is not None]
            found.rows.append(row(name, [reply.seconds for reply in replies]))
            found.figures.append(Figure(f"{name}: all", wall, "s"))
            found.figures.append(Figure(f"{name}: sum of their own", sum(own), "s"))
            found.goals.append(Goal(f"{name}: succeeded", len(own), amounts.crowd, at_least=True))


def own_seconds(reply: Reply) -> float | None:
    """What its command took by the box's own word; None unless it succeeded and told its word."""
    end = DONE.search(reply.text)
    if end is None or f"echo {end[2]};" not in str(reply.call.arguments["command"]):
        return None
    return float(end[1])


async def run(amounts: Amounts, parts: Sequence[str], path: Path) -> None:
    found = Found()
    with bench() as made:
        facts = {**made.facts(), **asdict(amounts)}
        if "sessions" in parts:
            await measure_sessions(made, amounts.single, found)
        if "streams" in parts:
            await measure_streams(made, min(amounts.single, STREAM_ROUNDS), found)
        if "volume" in parts:
            await measure_volume(made, amounts, found)
        if "fairness" in parts:
            measure_fairness(made, amounts, found)
        if "parallel" in parts:
            measure_parallel(made, amounts, found)
        if "crowd" in parts:
            measure_crowd(made, amounts, found)
    print(table(found.rows, found.goals, found.figures))
    write(path, facts, found.rows, found.goals, found.figures)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks shell", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    whole = Amounts()
    add = parser.add_argument
    add("--rounds", type=int, default=whole.rounds, help="of many calls")
    add("--calls", type=int, default=whole.calls, help="of each kind in a round")
    add("--callers", type=int, nargs="+", default=whole.callers, help="that call at once")
    add("--boxes", type=int, default=whole.boxes, help="where there are many")
    add("--crowd", type=int, default=whole.crowd, help="commands at once")
    add("--single", type=int, default=whole.single, help="rounds of single calls")
    add("--big", type=int, default=whole.big, help="MB that are printed")
    add("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    add("--json", type=Path, default=RESULTS, help="where the figures go")
    given = parser.parse_args(arguments)
    amounts = Amounts(
        given.rounds,
        given.calls,
        tuple(given.callers),
        given.boxes,
        given.crowd,
        given.single,
        given.big,
    )
    anyio.run(run, amounts, given.only, given.json)
