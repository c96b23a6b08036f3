"""What tunnels, the way out by the proxy, and networks of boxes' own cost.

tunnel    this process to a server in a box    beside a client in the box, directly to that server
egress    a client in a box without a network  beside the same client on the host, directly
creation  a box on a network of its own        beside the same container without one
crowd     many boxes on networks of their own at once

A direct connection from the host to a box's address is none to compare with: what a box sends to
the host is dropped, its answers included. So the direct client of `tunnel` runs in the box, and its
bytes pass through loopback only, the least that TCP can cost. The egress client's target is on the
host's loopback, for both.
"""

from __future__ import annotations

import argparse
import inspect
import json
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import anyio
from anyio import to_thread

from benchmarks import cgroups, peer
from benchmarks.bench import Bench, bench
from benchmarks.measure import Figure, Found, Goal, Operation, interleaved, row, table, write
from box_mcp.capabilities.shell import Shell
from box_mcp.capabilities.tunnels import Tunnel, connect, listen
from box_mcp.channel import Channel, open_channel
from box_mcp.domain.box import BoxSpec
from box_mcp.domain.names import BoxId, mint_id
from box_mcp.domain.network import Mode, Network, parse_rules
from box_mcp.engines.docker import DockerEngine
from box_mcp.gateway.egress import Egress
from box_mcp.settings import Settings

RESULTS = Path(__file__).with_name("results") / "network.json"
PORT, PROXY_PORT = 7000, 3128
MB, MIB = 1_000_000, 1024**2
SPEC_MEMORY = 512 * MIB
PATIENCE = 60.0  # s for a command in a box
AT_ONCE = 4  # creations of a crowd; the engine gets no faster by more
ASKED = 50  # boxes of a crowd
WARMUP = 1

TUNNEL, BESIDE = "tunnel", "direct, in the box"
EGRESS, HOST = "box by the proxy", "direct, on the host"
WAYS = (TUNNEL, BESIDE, EGRESS, HOST)
DOWN, UP = "from the server to the client", "from the client to the server"
OWN, STOCKED = "creation, own network", "creation, own network in stock"
WITHOUT = "creation, without a network (API)"
CREATIONS = (OWN, STOCKED, WITHOUT)
MAKE, REMOVE = "creation, each of the crowd", "removal, each of the crowd"
PING = "a box's daemon asked, beside the crowd"
EXIST, LEFT = "boxes with an address of their own at once", "networks left afterwards"
HELD = "memory of a box of the crowd: its share of the machine's"


def trip(way: str) -> str:
    """The name of the row of short messages there and back."""
    return f"64 bytes there and back, {way}"


def first(way: str) -> str:
    """The name of the row of new connections up to the first answer."""
    return f"connection to first answer, {way}"


def rate(way: str, direction: str) -> str:
    """The name of the figure of much in one direction, as its client sees it."""
    return f"{direction}, {way}"


@dataclass(frozen=True)
class Amounts:
    """How much of everything; `megabytes` go each way in each round."""

    rounds: int = 5
    megabytes: int = 200
    trips: int = 200
    creations: int = 15
    boxes: int = 300


@dataclass
class Sample:
    """Seconds of what `peer.probe` measures."""

    down: float
    up: float
    trips: list[float]
    connects: list[float]


class Boxes:
    """Boxes of one engine, without a pool: what is timed is the engine's part alone."""

    def __init__(self, bench: Bench) -> None:
        self._options = Settings(state_dir=bench.directory / "state").isolation()
        self._bench = bench
        self.engine = DockerEngine(self._options)
        self.spec = BoxSpec(image=bench.image, cpus=2, memory=SPEC_MEMORY, pids=256)

    @asynccontextmanager
    async def box(self, network: Network | None = None) -> AsyncGenerator[Channel, None]:
        """A channel to a box of its own, which has an interface unless told otherwise."""
        box = mint_id()
        await self.create(box, network)
        async with self.channel(box) as channel:
            yield channel
        await self.engine.delete(box)

    async def create(self, box: BoxId, network: Network | None = None) -> None:
        await self.engine.create(box, replace(self.spec, network=network or Network()))
        await self.engine.start(box)

    def create_without(self, box: BoxId) -> None:
        """The same container on no network, by the engine's API."""
        self._bench.engine.create_without_network(box, self.spec, self._options)

    @asynccontextmanager
    async def channel(self, box: BoxId) -> AsyncGenerator[Channel, None]:
        channel = await open_channel(box, await self.engine.open_channel(box))
        async with anyio.create_task_group() as group:
            group.start_soon(channel.receive_forever)
            try:
                yield channel
            finally:
                await channel.aclose()

    async def answers(self, box: BoxId) -> None:
        """Returns when its daemon has answered."""
        async with self.channel(box) as channel:
            await channel.request("stat", path="/")

    def addresses(self) -> int:
        return self._bench.engine.addresses(self._options.owner)

    def networks(self) -> int:
        return self._bench.engine.networks(self._options.owner)


async def ran(channel: Channel, command: str, *, stdin: str | None = None) -> str:
    """What a command prints; raises RuntimeError if it fails."""
    outcome = await Shell(channel).run(
        command, stdin=stdin, timeout=PATIENCE, yield_after=PATIENCE, max_output=MB
    )
    if outcome.record.exit != 0:
        raise RuntimeError(f"{command}: {(outcome.head + outcome.tail).decode()}")
    return (outcome.head + outcome.tail).decode()


async def bring_peer(channel: Channel) -> None:
    await ran(channel, "cat > peer.py", stdin=inspect.getsource(peer))


async def probed_in_box(channel: Channel, amounts: Amounts, port: int, proxy: int = 0) -> Sample:
    said = await ran(channel, f"python3 peer.py probe {' '.join(arguments(amounts, port, proxy))}")
    return Sample(**json.loads(said))


async def probed_here(amounts: Amounts, port: int) -> Sample:
    command = [sys.executable, peer.__file__, "probe", *arguments(amounts, port, 0)]
    return Sample(**json.loads((await anyio.run_process(command)).stdout))


def arguments(amounts: Amounts, port: int, proxy: int) -> list[str]:
    return [str(number) for number in (port, amounts.megabytes * MB, amounts.trips, proxy)]


async def probed_by_tunnel(channel: Channel, amounts: Amounts) -> Sample:
    """As `peer.probe` does it."""
    count = amounts.megabytes * MB
    async with connect(channel, PORT) as tunnel:
        await tunnel.send(peer.SOURCE)
        await anyio.sleep(0.05)
        began = perf_counter()
        await tunnel.send(b"%d" % count)
        came = sum([len(data) async for data in tunnel])
        down = perf_counter() - began
    async with connect(channel, PORT) as tunnel:
        await tunnel.send(peer.SINK)
        block = bytes(peer.BLOCK)
        began = perf_counter()
        for start in range(0, count, len(block)):
            await tunnel.send(block[: count - start])
        await tunnel.send_eof()
        went = int(await tunnel.receive())
        up = perf_counter() - began
    if (came, went) != (count, count):
        raise RuntimeError(f"{came} and {went} bytes of {count} arrived")
    async with connect(channel, PORT) as tunnel:
        await tunnel.send(peer.ECHO)
        trips = [await tripped(tunnel) for _ in range(amounts.trips)]
    connects: list[float] = []
    for _ in range(amounts.trips):
        began = perf_counter()
        async with connect(channel, PORT) as tunnel:
            await tunnel.send(peer.ECHO)
            await tripped(tunnel)
            connects.append(perf_counter() - began)
    return Sample(down, up, trips, connects)


async def tripped(tunnel: Tunnel) -> float:
    began = perf_counter()
    await tunnel.send(peer.WORD)
    await tunnel.receive()
    return perf_counter() - began


async def compare(
    ways: Mapping[str, Callable[[], Awaitable[Sample]]], amounts: Amounts, found: Found
) -> None:
    """Measures them in turns, and tells all of it."""
    samples: dict[str, list[Sample]] = {way: [] for way in ways}
    for _ in range(amounts.rounds):
        for way, take in ways.items():
            samples[way].append(await take())
    total = amounts.rounds * amounts.megabytes
    for way, taken in samples.items():
        found.rows.append(row(trip(way), [one for sample in taken for one in sample.trips]))
        found.rows.append(row(first(way), [one for sample in taken for one in sample.connects]))
        for direction, seconds in (
            (DOWN, sum(sample.down for sample in taken)),
            (UP, sum(sample.up for sample in taken)),
        ):
            found.figures.append(Figure(rate(way, direction), total / seconds, "MB/s"))


async def measure_tunnel(boxes: Boxes, amounts: Amounts, found: Found) -> None:
    async with boxes.box() as channel:
        await bring_peer(channel)
        await ran(
            channel, f"setsid python3 peer.py serve {PORT} > up & until grep -q up up; do :; done"
        )
        ways = {
            TUNNEL: partial(probed_by_tunnel, channel, amounts),
            BESIDE: partial(probed_in_box, channel, amounts, PORT),
        }
        await compare(ways, amounts, found)


async def measure_egress(boxes: Boxes, amounts: Amounts, found: Found) -> None:
    network = Network(Mode.ALLOWLIST, parse_rules([f"{peer.HOST}:*"]))
    egress = Egress(lambda: network)
    async with boxes.box(network) as channel, anyio.create_task_group() as group:
        await bring_peer(channel)
        await group.start(listen, channel, PROXY_PORT, {}, egress.serve)
        with serving() as port:
            ways = {
                EGRESS: partial(probed_in_box, channel, amounts, port, PROXY_PORT),
                HOST: partial(probed_here, amounts, port),
            }
            await compare(ways, amounts, found)
        group.cancel_scope.cancel()


@contextmanager
def serving() -> Generator[int, None, None]:
    """The port of a server on this machine."""
    with socket.create_server((peer.HOST, 0)) as taken:
        port: int = taken.getsockname()[1]
    command = [sys.executable, peer.__file__, "serve", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            server.stdout.readline()
            yield port
        finally:
            server.terminate()


async def measure_creation(boxes: Boxes, amounts: Amounts, found: Found) -> None:
    """Each up to the first answer of the box's daemon."""

    async def without(box: BoxId) -> None:
        await to_thread.run_sync(boxes.create_without, box)

    def making(make: Callable[[BoxId], Awaitable[None]], *, stocked: bool = False) -> Operation:
        async def operation() -> float:
            box = mint_id()
            if stocked:
                await boxes.engine.prepare(box)
            began = perf_counter()
            await make(box)
            await boxes.answers(box)
            seconds = perf_counter() - began
            await boxes.engine.delete(box)
            return seconds

        return operation

    operations = {
        OWN: making(boxes.create),
        STOCKED: making(boxes.create, stocked=True),
        WITHOUT: making(without),
    }
    found.rows += await interleaved(operations, amounts.creations, WARMUP)


async def measure_crowd(boxes: Boxes, amounts: Amounts, found: Found) -> None:
    """Makes them all, then looks what there is, then removes them all."""
    made: list[BoxId] = []
    limiter = anyio.CapacityLimiter(AT_ONCE)
    before = cgroups.available_bytes()

    async def of_all(act: Callable[[], Awaitable[object]], name: str) -> None:
        taken: list[float] = []

        async def one() -> None:
            async with limiter:
                began = perf_counter()
                await act()
                taken.append(perf_counter() - began)

        began = perf_counter()
        async with anyio.create_task_group() as group:
            for _ in range(amounts.boxes):
                group.start_soon(one)
        found.figures.append(Figure(f"{name}, all", perf_counter() - began, "s"))
        found.rows.append(row(name, taken))

    async def make() -> None:
        made.append(mint_id())
        await boxes.create(made[-1])

    async def remove() -> None:
        await boxes.engine.delete(made.pop())

    await of_all(make, MAKE)
    asked: list[float] = []
    for box in made[:: max(len(made) // ASKED, 1)]:
        async with boxes.channel(box) as channel:
            await channel.request("stat", path="/")
            began = perf_counter()
            await channel.request("stat", path="/")
            asked.append(perf_counter() - began)
    found.rows.append(row(PING, asked))
    found.goals.append(
        Goal(EXIST, await to_thread.run_sync(boxes.addresses), amounts.boxes, at_least=True)
    )
    held = (before - cgroups.available_bytes()) / amounts.boxes / MIB
    found.figures.append(Figure(HELD, held, "MiB"))
    await of_all(remove, REMOVE)
    found.goals.append(Goal(LEFT, await to_thread.run_sync(boxes.networks), 0))


def judge(found: Found) -> None:
    """The goals that what was measured can be held to."""
    p50 = {one.name: one.p50 for one in found.rows}
    rates = {one.name: one.value for one in found.figures}
    if trip(TUNNEL) in p50:
        added = p50[trip(TUNNEL)] - p50[trip(BESIDE)]
        found.goals.append(Goal(f"{trip(TUNNEL)} - {BESIDE}, p50", added, 1, "ms"))
        for direction in (DOWN, UP):
            name = rate(TUNNEL, direction)
            found.goals.append(Goal(name, rates[name], 100, "MB/s", at_least=True))
    if trip(EGRESS) in p50:
        added = p50[trip(EGRESS)] - p50[trip(HOST)]
        found.goals.append(Goal(f"{trip(EGRESS)} - {HOST}, p50", added, 2, "ms"))
    if OWN in p50:
        found.goals.append(Goal(f"{OWN} / without", p50[OWN] / p50[WITHOUT], 1.8))
        found.goals.append(Goal(f"{STOCKED} / without", p50[STOCKED] / p50[WITHOUT], 1.5))


MEASURES = {
    "tunnel": measure_tunnel,
    "egress": measure_egress,
    "creation": measure_creation,
    "crowd": measure_crowd,
}


async def run(amounts: Amounts, parts: Sequence[str], path: Path) -> None:
    found = Found()
    with bench() as made:
        boxes = Boxes(made)
        try:
            for part in parts:
                await MEASURES[part](boxes, amounts, found)
        finally:
            await boxes.engine.aclose()
        facts = {**made.facts(), **asdict(amounts)}
    judge(found)
    print(table(found.rows, found.goals, found.figures))
    write(path, facts, found.rows, found.goals, found.figures)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks network", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for name, amount in asdict(Amounts()).items():
        parser.add_argument(f"--{name}", type=int, default=amount)
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES), help="parts")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go")
    given = vars(parser.parse_args(arguments))
    parts, path = given.pop("only"), given.pop("json")
    anyio.run(run, Amounts(**given), parts, path)
