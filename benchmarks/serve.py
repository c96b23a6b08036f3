"""What serving many over HTTP costs, and whether each of them gets what is theirs, and only that.

single     one caller of either era, beside the SDK's echo server by HTTP and a bare fork
fair       one principal's calls, while another floods the server in some way
many       many principals, each in boxes of their own, all tools mixed; then the server is killed
           in the middle of it, started again, and all boxes must be found again
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from statistics import median
from time import monotonic

import anyio
from anyio import to_thread

from benchmarks import cgroups, fair, single
from benchmarks.bench import Bench, bench
from benchmarks.crowd import Owned, Principal, Tally
from benchmarks.fair import FLOODS
from benchmarks.measure import MS, Figure, Found, Goal, row, table, write
from benchmarks.served import HOST, Served, descriptors, served
from benchmarks.thinhttp import thin_http
from box_mcp.domain import names
from box_mcp.domain.access import EVERYTHING
from box_mcp.identity.tokens import Tokens

RESULTS = Path(__file__).with_name("results") / "serve.json"
PARTS = ("single", "fair", "many")  # in this order: the many leave boxes behind
MIB = 1024**2
SAMPLED = 0.25  # s between two looks at the server's process
MAKERS = 8  # boxes made at once
AFTER = 15.0  # s that the load goes on once the server was killed; as long as before at most
STEADY = 1.1  # what the last third of the time may take of what the second took
SHOWN = 20  # breaches and lines of the log
ALARMS = ("Traceback", "failed unexpectedly", "was damaged", "ERROR")
"""Words that no server may log."""

NO_RATES = {"http__requests_per_minute": "off", "http__refusals_per_minute": "off"}
"""How much there can be at all is what is measured."""

ALL = "all calls, many"
WRONG, ERRORS, LOST = "wrong boxes", "errors", "boxes lost by the kill"
BACK = "principals served again after the kill"
GROWTH = "server's memory, last third / second"
LEAK = "server's descriptors, last third / second"


@dataclass(frozen=True)
class Amounts:
    """How much of everything."""

    principals: int = 50
    boxes: int = 200
    seconds: float = 60
    rounds: int = 200
    fair: int = 2
    calls: int = 60
    flood: float = 1.0
    kinds: tuple[str, ...] = tuple(FLOODS)

    def floods(self) -> Mapping[str, int]:
        """How much there is of each kind."""
        return {kind: max(int(FLOODS[kind] * self.flood), 2) for kind in self.kinds}


@dataclass(frozen=True)
class Sample:
    """The server's process at some time: bytes in memory, open descriptors, CPU seconds."""

    when: float
    memory: int
    descriptors: int
    cpu: float


async def tokens(bench: Bench, *principals: str) -> list[str]:
    """One for each."""
    file = Tokens(bench.state / "tokens.db")
    try:
        every = [names.Principal(name) for name in principals]
        return [(await file.create(one, [EVERYTHING], None))[1] for one in every]
    finally:
        await file.aclose()


async def measure_single(bench: Bench, amounts: Amounts, found: Found) -> None:
    (token,) = await tokens(bench, "single")
    with served(bench, **NO_RATES) as server:
        await single.measure(bench, server, token, amounts.rounds, found)


async def measure_fair(bench: Bench, amounts: Amounts, found: Found) -> None:
    good, bad = await tokens(bench, "good", "bad")
    with served(bench, **NO_RATES) as server:
        floods = amounts.floods()
        await fair.measure(server, (good, bad), floods, amounts.fair, amounts.calls, found)


async def measure_many(bench: Bench, amounts: Amounts, found: Found) -> None:
    called = [f"p{number:02}" for number in range(amounts.principals)]
    tally, crowd = Tally(), list[Principal]()
    async with AsyncExitStack() as stack:
        server = stack.enter_context(served(bench, max_boxes=amounts.boxes + 10, **NO_RATES))
        for number, token in enumerate(await tokens(bench, *called)):
            modern = number % 2 == 0
            client = thin_http(HOST, server.port, token, modern=modern)
            crowd.append(Principal(called[number], await stack.enter_async_context(client), tally))
        began = monotonic()
        await make_boxes(crowd, amounts.boxes)
        found.figures.append(Figure("boxes made", amounts.boxes / (monotonic() - began), "/s"))
        tally.taken.clear()
        samples = await load(server, crowd, amounts.seconds, tally)
        lost = await lost_boxes(crowd)
    tell_calls(found, tally, samples)
    tell_server(found, samples)
    back = [when - tally.killed for when in tally.back.values()]
    found.figures += [
        Figure("calls cut off by the kill", tally.cut, ""),
        Figure("from the kill to the first answer", min(back), "s"),
        Figure("from the kill to everybody's first answer", max(back), "s"),
    ]
    found.goals += [
        Goal(WRONG, len(tally.wrong), 0),
        Goal(ERRORS, len(tally.errors), 0),
        Goal(LOST, len(lost), 0),
        Goal(BACK, len(back), amounts.principals, at_least=True),
    ]
    for breach in [*tally.wrong, *tally.errors][:SHOWN]:
        print(breach)


async def make_boxes(crowd: Sequence[Principal], boxes: int) -> None:
    """So many for all together."""
    slots = anyio.CapacityLimiter(MAKERS)

    async def make(owner: Principal, boxes: Sequence[int]) -> None:
        for number in boxes:
            async with slots:
                await owner.make(f"b{number}")

    async with anyio.create_task_group() as group:
        for index, owner in enumerate(crowd):
            group.start_soon(make, owner, range(index, boxes, len(crowd)))
    for owner in crowd:
        owner.strangers = [box for other in crowd if other is not owner for box in other.boxes]


async def load(
    server: Served, crowd: Sequence[Principal], seconds: float, tally: Tally
) -> list[Sample]:
    """All call for so long, and what the server was like meanwhile; then it is killed."""
    samples: list[Sample] = []
    tally.until = monotonic() + seconds
    end = tally.until + min(AFTER, seconds)
    async with anyio.create_task_group() as group:
        for owner in crowd:
            group.start_soon(owner.run, end)
        while monotonic() < tally.until:
            memory, cpu = cgroups.resident_bytes(server.pid), cgroups.cpu_seconds(server.pid)
            samples.append(Sample(monotonic(), memory, descriptors(server.pid), cpu))
            await anyio.sleep(SAMPLED)
        tally.killed = monotonic()
        await to_thread.run_sync(server.kill)
        await to_thread.run_sync(server.start)
    return samples


async def lost_boxes(crowd: Sequence[Principal]) -> list[Owned]:
    """Those that are not found as they must be."""
    lost: list[Owned] = []
    for owner in crowd:
        found = await owner.examine()
        lost += [box for box in owner.boxes if box.id not in found]
    return lost


def tell_calls(found: Found, tally: Tally, samples: Sequence[Sample]) -> None:
    every = list(chain.from_iterable(tally.taken.values()))
    found.rows.append(row(ALL, every))
    found.rows += [row(f"{kind}, many", taken) for kind, taken in sorted(tally.taken.items())]
    seconds = samples[-1].when - samples[0].when
    cpu = samples[-1].cpu - samples[0].cpu
    found.figures += [
        Figure("calls", len(every) / seconds, "/s"),
        Figure("server's CPU, of one core", 100 * cpu / seconds, "%"),
        Figure("server's CPU for a call", MS * cpu / len(every), "ms"),
    ]


def tell_server(found: Found, samples: Sequence[Sample]) -> None:
    """What it held, by thirds of the time."""
    third = max(len(samples) // 3, 1)
    parts = [samples[:third], samples[third : 2 * third], samples[-third:]]
    memory = [median(sample.memory for sample in part) for part in parts]
    opened = [median(sample.descriptors for sample in part) for part in parts]
    for number in range(len(parts)):
        name = f"third {number + 1} of the time"
        found.figures.append(Figure(f"server's memory, {name}", memory[number] / MIB, "MiB"))
        found.figures.append(Figure(f"server's descriptors, {name}", opened[number], ""))
    found.goals.append(Goal(GROWTH, memory[-1] / memory[1], STEADY))
    found.goals.append(Goal(LEAK, opened[-1] / opened[1], STEADY))


MEASURES = {"single": measure_single, "many": measure_many, "fair": measure_fair}


async def run(amounts: Amounts, parts: Sequence[str], path: Path) -> None:
    found = Found()
    with bench() as made:
        facts = {**made.facts(), **asdict(amounts)}
        for part in [part for part in PARTS if part in parts]:
            await MEASURES[part](made, amounts, found)
        lines = made.log.read_text(errors="replace").splitlines()
    for line in [line for line in lines if any(alarm in line for alarm in ALARMS)][:SHOWN]:
        print(f"logged: {line}")
    print(table(found.rows, found.goals, found.figures))
    write(path, facts, found.rows, found.goals, found.figures)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks serve", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    whole = Amounts()
    add = parser.add_argument
    add("--principals", type=int, default=whole.principals)
    add("--boxes", type=int, default=whole.boxes, help="of all principals together")
    add("--seconds", type=float, default=whole.seconds, help="of load before the server is killed")
    add("--rounds", type=int, default=whole.rounds, help="of one caller's calls")
    add("--fair", type=int, default=whole.fair, help="rounds without and beside each flood")
    add("--calls", type=int, default=whole.calls, help="in such a round")
    add("--flood", type=float, default=whole.flood, help="of each flood's usual amount")
    add("--kinds", nargs="+", choices=whole.kinds, default=whole.kinds, help="of floods")
    add("--only", nargs="+", choices=PARTS, default=PARTS, help="parts")
    add("--json", type=Path, default=RESULTS, help="where the figures go")
    given = vars(parser.parse_args(arguments))
    parts, path = given.pop("only"), given.pop("json")
    kinds = tuple(given.pop("kinds"))
    anyio.run(run, Amounts(**given, kinds=kinds), parts, path)
