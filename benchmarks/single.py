"""What one caller's calls cost over HTTP, beside the SDK's echo server and a bare fork."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Generator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import Any

from benchmarks.bench import Bench, box_in
from benchmarks.calls import ECHO, KIB, PRINT_ENVIRONMENT
from benchmarks.direct import Direct
from benchmarks.fleet import Answer
from benchmarks.measure import Found, Goal, Operation, interleaved, timed, timed_async
from benchmarks.served import HOST, Served, free_port, until_there
from benchmarks.thinhttp import ThinHttp, thin_http

WARMUP = 3  # rounds that do not count, at most: as many as do count
MOST = 2.0  # ms over an echo
RUN, WRITE, READ = "shell_run true", "file_write 1 KiB", "file_read 1 KiB"
ECHOED = "SDK echo"
FORK = "fork+exec over a held connection"
CALLS = (RUN, WRITE, READ, ECHOED)
ERAS = {"2026-07-28": True, "2025-11-25": False}
"""Revisions of the protocol, and whether they are modern."""


def by_http(what: str, era: str) -> str:
    """The name of a row."""
    return f"{what} by HTTP, {era}"


@contextmanager
def echo_server(bench: Bench) -> Generator[int, None, None]:
    """The port of the SDK's least server."""
    port = free_port()
    with bench.log.open("ab") as log:
        process = subprocess.Popen([*ECHO, str(port)], stdout=log, stderr=log)
    try:
        until_there(port, process, bench.log)
        yield port
    finally:
        process.kill()
        process.wait()


async def measure(bench: Bench, server: Served, token: str, rounds: int, found: Found) -> None:
    """The same calls by either era, all in turns, in one box."""
    operations: dict[str, Operation] = {}
    async with AsyncExitStack() as stack:
        port = stack.enter_context(echo_server(bench))

        client = thin_http(HOST, server.port, token, modern=True)
        box, environment = await a_box(await stack.enter_async_context(client))
        of_file = {"box": box, "path": "call.txt"}
        for era, modern in ERAS.items():
            client = thin_http(HOST, server.port, token, modern=modern)
            ours = await stack.enter_async_context(client)
            echo = await stack.enter_async_context(thin_http(HOST, port, modern=modern))
            operations |= {
                by_http(RUN, era): calling(ours, "shell_run", box=box, command="true"),
                by_http(WRITE, era): calling(ours, "file_write", **of_file, content=KIB),
                by_http(READ, era): calling(ours, "file_read", **of_file),
                by_http(ECHOED, era): calling(echo, "echo", text="true"),
            }
        forker = Direct(box).forker(environment)
        stack.callback(forker.close)
        operations[FORK] = timed(forker.fork)
        rows = await interleaved(operations, rounds, min(WARMUP, rounds))
    found.rows += rows
    p50 = {row.name: row.p50 for row in rows}
    for era in ERAS:
        echoed = p50[by_http(ECHOED, era)]
        for what, own in {RUN: p50[FORK], WRITE: 0.0, READ: 0.0}.items():
            name = f"{by_http(what, era)} - {'(echo + fork+exec)' if own else 'echo'}"
            found.goals.append(Goal(name, p50[by_http(what, era)] - echoed - own, MOST, "ms"))


async def a_box(client: ThinHttp) -> tuple[str, dict[str, str]]:
    """A box with a file in it, and the variables that its commands have."""
    await well(client, "file_write", path="call.txt", content=KIB)
    shown = (await well(client, "shell_run", command=PRINT_ENVIRONMENT)).text
    box = box_in((await well(client, "box_info")).text)
    return box, json.loads(shown.partition("\n")[2])


def calling(client: ThinHttp, tool: str, **arguments: Any) -> Operation:
    return timed_async(partial(well, client, tool, **arguments))


async def well(client: ThinHttp, tool: str, **arguments: Any) -> Answer:
    """What a call succeeds with; raises RuntimeError."""
    answer = await client.call(tool, **arguments)
    if answer.failed:
        raise RuntimeError(f"{tool} failed: {answer.text}")
    return answer
