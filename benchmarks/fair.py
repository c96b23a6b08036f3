"""What one principal's calls feel of another, who takes all that the server gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from statistics import median
from time import perf_counter, sleep

import anyio

from benchmarks import cgroups
from benchmarks.flood import FLOODING
from benchmarks.measure import Figure, Found, Goal, percentile, row
from benchmarks.served import HOST, Served, descriptors
from benchmarks.single import well
from benchmarks.thinhttp import ThinHttp, thin_http

MIB = 1024**2
APART = 0.05  # s between two calls of who does not flood
UNFOLDS = 1.0  # s for a flood to rise
SETTLED = 20.0  # s until connections that were cut off are closed, at most
LOOK_AGAIN = 0.2  # s
SLOWER, BIGGER = 4.0, 256  # times and MiB at most
FLOODS = {"calls": 1000, "sessions": 10_000, "bodies": 200, "deaf": 50, "dribble": 500}
"""Kinds of floods, and how much there is of each."""


def quiet(kind: str) -> str:
    """The name of a row."""
    return f"shell_run true, without a flood of {kind}"


def beside(kind: str) -> str:
    """The name of a row, and of what is told of a flood."""
    return f"shell_run true, in a flood of {kind}"


async def measure(
    server: Served,
    tokens: tuple[str, str],
    floods: Mapping[str, int],
    rounds: int,
    calls: int,
    found: Found,
) -> None:
    """Calls without and beside each flood, in turns; the second of the tokens is the flood's."""
    async with thin_http(HOST, server.port, tokens[0], modern=True) as client:
        await well(client, "shell_run", command="true")
        async with thin_http(HOST, server.port, tokens[1], modern=True) as other:
            await well(other, "shell_run", command="true")  # its box takes descriptors, too
        for kind, amount in floods.items():
            open_before, growth = descriptors(server.pid), cgroups.growth_of(server.pid)
            pairs: list[tuple[list[float], list[float]]] = []
            for _ in range(rounds):
                alone = await spaced(client, calls)
                with flooding(server, kind, amount, tokens[1]):
                    pairs.append((alone, await spaced(client, calls)))
            tell(kind, pairs, found)
            found.goals.append(
                Goal(f"{beside(kind)}: server's growth", growth() / MIB, BIGGER, "MiB")
            )
            left = await descriptors_left(server.pid, open_before) - open_before
            found.goals.append(Goal(f"{beside(kind)}: descriptors left", left, 0))


def tell(kind: str, pairs: Sequence[tuple[list[float], list[float]]], found: Found) -> None:
    found.rows.append(row(quiet(kind), list(chain.from_iterable(alone for alone, _ in pairs))))
    found.rows.append(row(beside(kind), list(chain.from_iterable(many for _, many in pairs))))
    p50, p95 = (
        median(percentile(many, share) / percentile(alone, share) for alone, many in pairs)
        for share in (0.5, 0.95)
    )
    found.goals.append(Goal(f"{beside(kind)} / without, p50", p50, SLOWER))
    found.figures.append(Figure(f"{beside(kind)} / without, p95", p95, "x"))


async def spaced(client: ThinHttp, calls: int) -> list[float]:
    """Seconds of each call, not back to back."""
    taken: list[float] = []
    for _ in range(calls):
        await anyio.sleep(APART)
        began = perf_counter()
        await well(client, "shell_run", command="true")
        taken.append(perf_counter() - began)
    return taken


@contextmanager
def flooding(server: Served, kind: str, amount: int, token: str) -> Generator[None, None, None]:
    """While another process floods the server."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.flood", kind, HOST, str(server.port), str(amount)],
        env={**os.environ, "FLOOD_TOKEN": token},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None  # a pipe
        if process.stdout.readline().strip() != FLOODING:
            raise RuntimeError(f"no flood of {kind}")
        sleep(UNFOLDS)
        yield
        came, _ = process.communicate()
        print(f"a flood of {amount} {kind} was answered: {json.loads(came)}")
    finally:
        process.kill()
        process.wait()


async def descriptors_left(pid: int, before: int) -> int:
    """Once they are no more than before, or after a while."""
    with anyio.move_on_after(SETTLED):
        while descriptors(pid) > before:  # noqa: ASYNC110 - the kernel tells nobody
            await anyio.sleep(LOOK_AGAIN)
    return descriptors(pid)
