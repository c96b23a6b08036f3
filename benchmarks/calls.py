"""What single calls cost: box_mcp beside the engine's own calls, the SDK's echo and a bare fork.

client ──stdio──▶ server ──held connection──▶ boxd ──▶ bash -c true    shell_run
client ──stdio──▶ echo server                                          what the SDK costs
                  socket ──held connection──▶ python ──▶ bash -c true  what a process costs
                  engine's API ──▶ runc ──▶ true                       docker exec
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from time import perf_counter

import anyio
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from benchmarks.bench import OURS, Bench, bench, box_in
from benchmarks.direct import Direct
from benchmarks.measure import (
    Goal,
    Operation,
    Row,
    interleaved,
    table,
    timed,
    timed_async,
    write,
)
from benchmarks.thin import ThinClient

ECHO = [sys.executable, str(Path(__file__).with_name("echo.py"))]
RESULTS = Path(__file__).with_name("results") / "calls.json"
WARMUP = 3  # rounds that do not count, at most: as many as do count
CLAIM_ROUNDS = 15  # at most; each makes two boxes
SPAWN_ROUNDS = 10  # at most
SPARES = 2
KIB = ("x" * 63 + "\n") * 16

RUN, WRITE, READ = "shell_run true", "file_write 1 KiB", "file_read 1 KiB"
ECHOED = "SDK echo"
FORK = "fork+exec over a held connection"
EXEC, EXEC_CLI = "docker exec true (API)", "docker exec true (CLI)"
PUT, GET = "put_archive 1 KiB (API)", "get_archive 1 KiB (API)"
FIRST_CALL = "warm claim: a new session's first shell_run"
CREATE_CALL = "warm claim: box_create and shell_run in it"
SPAWN, SPAWN_ECHO = "spawn to tools/list", "spawn to tools/list, SDK echo"
SDK = " (SDK client)"


async def full(bench: Bench, stack: AsyncExitStack, command: Sequence[str]) -> Client:
    """The SDK's client, with a server of its own."""
    program, *arguments = command
    parameters = StdioServerParameters(command=program, args=arguments, env=bench.env)
    errlog = stack.enter_context(bench.log.open("a"))
    return await stack.enter_async_context(Client(stdio_client(parameters, errlog)))


async def measure_calls(bench: Bench, rounds: int, in_a_row: int) -> list[Row]:
    """All single calls, in turns, in one box."""
    ours = [*OURS, "--session", "bench"]  # both clients' servers then mean the same box
    async with AsyncExitStack() as stack:
        thin = stack.enter_context(bench.thin(ours))
        echo = stack.enter_context(bench.thin(ECHO))
        box = box_in(thin.call("shell_run", command="true"))
        direct = Direct(box)
        forker = direct.forker(commands_environment(thin))
        stack.callback(forker.close)
        operations = {
            RUN: timed(partial(thin.call, "shell_run", command="true")),
            WRITE: timed(partial(thin.call, "file_write", path="call.txt", content=KIB)),
            READ: timed(partial(thin.call, "file_read", path="call.txt")),
            ECHOED: timed(partial(echo.call, "echo", text="true")),
            **await sdk_operations(await full(bench, stack, ours), await full(bench, stack, ECHO)),
            FORK: timed(forker.fork),
            EXEC: timed(direct.execute),
            PUT: timed(partial(direct.put, KIB.encode())),
            GET: timed(direct.get),
        }
        if direct.cli is not None:
            operations[EXEC_CLI] = timed(direct.execute_by_cli)
        thin.call("file_write", path="call.txt", content=KIB)  # the rounds' order is random
        direct.put(KIB.encode())
        return await interleaved(operations, rounds, min(WARMUP, rounds), in_a_row=in_a_row)


PRINT_ENVIRONMENT = "python3 -c 'import json, os; print(json.dumps(dict(os.environ)))'"


def commands_environment(client: ThinClient) -> dict[str, str]:
    """The variables that commands have in the client's box."""
    _, _, shown = client.call("shell_run", command=PRINT_ENVIRONMENT).partition("\n")
    return json.loads(shown)


async def sdk_operations(ours: Client, echo: Client) -> dict[str, Operation]:
    """The tools' rows again, by the SDK's client, whose own cost is not small."""

    def calling(client: Client, tool: str, **arguments: object) -> Operation:
        return timed_async(partial(client.call_tool, tool, arguments))

    return {
        RUN + SDK: calling(ours, "shell_run", command="true"),
        WRITE + SDK: calling(ours, "file_write", path="call.txt", content=KIB),
        READ + SDK: calling(ours, "file_read", path="call.txt"),
        ECHOED + SDK: calling(echo, "echo", text="true"),
    }


async def measure_claims(bench: Bench, rounds: int) -> list[Row]:
    """From a call without a box to its command's output, a spare being ready."""
    claims = 0
    with bench.thin() as client:

        async def claim(work: partial[str]) -> float:
            nonlocal claims
            bench.settle()
            claims += 1
            started = perf_counter()
            text = work(thread=f"thread-{claims}")
            seconds = perf_counter() - started
            client.call("box_delete", box=box_in(text))
            return seconds

        def create_and_run(thread: str) -> str:
            made = client.call("box_create", thread, name=thread)
            client.call("shell_run", thread, command="true", box=thread)
            return made

        first_call = partial(client.call, "shell_run", command="true")
        operations = {
            FIRST_CALL: partial(claim, first_call),
            CREATE_CALL: partial(claim, partial(create_and_run)),
        }
        return await interleaved(operations, rounds)


async def measure_spawns(bench: Bench, rounds: int) -> list[Row]:
    """From the start of a server's process to the reply to its first ``tools/list``."""

    async def spawn(command: Sequence[str]) -> float:
        started = perf_counter()
        with bench.thin(command) as client:
            client.tools()
            return perf_counter() - started

    operations = {SPAWN: partial(spawn, OURS), SPAWN_ECHO: partial(spawn, ECHO)}
    return await interleaved(operations, rounds, warmup=1)


def tools_size(bench: Bench) -> int:
    """Bytes of ``tools/list`` as compact JSON."""
    with bench.thin(OURS) as client:
        return len(json.dumps(client.tools(), separators=(",", ":"), ensure_ascii=False).encode())


def goals(rows: Sequence[Row], size: int) -> list[Goal]:
    """What was set out to be reached, and how far it is."""
    p50 = {row.name: row.p50 for row in rows}
    return [
        Goal("docker exec true / shell_run true", p50[EXEC] / p50[RUN], 11, "x", at_least=True),
        Goal("shell_run true / (SDK echo + fork+exec)", p50[RUN] / (p50[ECHOED] + p50[FORK]), 1.3),
        Goal("file_write - SDK echo", p50[WRITE] - p50[ECHOED], 1, "ms"),
        Goal("file_read - SDK echo", p50[READ] - p50[ECHOED], 1, "ms"),
        Goal(FIRST_CALL, p50[FIRST_CALL], 30, "ms"),
        Goal("spawn / SDK echo's spawn", p50[SPAWN] / p50[SPAWN_ECHO], 1.2),
        Goal("size of tools/list", size / 1024, 32, "KiB"),
    ]


async def run(rounds: int, in_a_row: int, path: Path) -> None:
    with bench() as made:
        facts = {**made.facts(), "rounds": rounds, "in a row": in_a_row}
        rows = await measure_calls(made, rounds, in_a_row)
        rows += await measure_spawns(made, min(rounds, SPAWN_ROUNDS))
        size = tools_size(made)
    with bench(SPARES) as made:
        rows += await measure_claims(made, min(rounds, CLAIM_ROUNDS))
    reached = goals(rows, size)
    print(table(rows, reached))
    write(path, facts, rows, reached)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks calls", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--in-a-row", type=int, default=1, help="of each call; the last counts")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go")
    options = parser.parse_args(arguments)
    anyio.run(run, options.rounds, options.in_a_row, options.json)
