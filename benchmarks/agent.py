"""How soon a coding agent in a box says something: run by `agent_run`, and its bare program.

The model is a script that answers at once, so only the way to the first event differs. Both are
started in turns in one box, with the same words; of runs it counts what lies between the call and
the answer of `agent_status` that shows the first event.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio

from benchmarks.bench import Bench, bench, box_in
from benchmarks.calls import commands_environment
from benchmarks.direct import Direct, Starter
from benchmarks.measure import Found, Goal, Operation, interleaved, seconds_of, table, write
from benchmarks.thin import ThinClient
from box_mcp.capabilities.harnesses.base import Access, Assignment
from box_mcp.capabilities.harnesses.known import KNOWN
from box_mcp.domain.models import KEYLESS, MODELS_PORT, Dialect

if TYPE_CHECKING:
    from tests.support.model_server import ScriptedModel

RESULTS = Path(__file__).with_name("results") / "agent.json"
WARMUP = 1  # rounds that do not count
OVERHEAD_GOAL = 100.0  # ms
SECRET = "bench-secret"  # noqa: S105 - of a server of our own
MODELS: Mapping[str, tuple[Dialect, str, str]] = {
    "claude_code": (Dialect.ANTHROPIC, "claude-sonnet-4-5", ""),
    "codex": (Dialect.OPENAI, "gpt-5", "/v1"),
}
"""What each harness is given: an API, a model, and where the API is below its server's address."""
PROMPT = "Say hello."
PATIENCE = 30  # s for a first event


def by_tool(harness: str) -> str:
    """The name of the row of runs."""
    return f"{harness}: agent_run"


def by_hand(harness: str) -> str:
    """The name of the row of its bare program."""
    return f"{harness}: its bare program"


def models_of(model: ScriptedModel) -> dict[str, Any]:
    """As in settings."""
    return {
        dialect.value: {
            "api": dialect.value,
            "upstream": f"{model.url}{below}",
            "credential": {"variable": "BENCH_SECRET"},
        }
        for dialect, _, below in MODELS.values()
    }


def run(client: ThinClient, harness: str) -> float:
    """Seconds from a call to the first event; returns when the run has ended."""
    shown: dict[str, Any] = {}

    def until_first() -> None:
        begun = call(
            client,
            "agent_run",
            prompt=PROMPT,
            harness=harness,
            model=MODELS[harness][1],
            background=True,
        )
        shown.update(call(client, "agent_status", run=begun["run"], cursor=0, wait=PATIENCE))

    seconds = seconds_of(until_first)
    if not shown["events"]:
        raise RuntimeError(f"no event came: {shown}")
    ended = call(client, "agent_status", run=shown["run"], wait=PATIENCE)
    if ended["state"] != "finished":
        raise RuntimeError(f"the run did not finish: {ended}")
    return seconds


def call(client: ThinClient, tool: str, **arguments: object) -> dict[str, Any]:
    return json.loads(client.call(tool, None, **arguments))


def start(client: ThinClient, starter: Starter, harness: str) -> float:
    """Seconds from the start of the bare program to its first line."""
    dialect, model, _ = MODELS[harness]
    access = Access(dialect, f"http://127.0.0.1:{MODELS_PORT}/{dialect.value}", KEYLESS)
    session = str(uuid4())
    assignment = Assignment(PROMPT, "/tmp", access, model=model, session=session)  # noqa: S108
    launch = KNOWN[harness].launch(assignment)
    for path, content in launch.files.items():
        client.call("file_write", path=path, content=content)
    return starter.start(launch.command, launch.env, launch.stdin)


def timed(measured: partial[float]) -> Operation:
    """An operation that times itself."""

    async def operation() -> float:
        return measured()

    return operation


async def measure(bench: Bench, rounds: int, found: Found) -> None:
    from tests.support.model_server import serve_model
    from tests.support.script import Say

    with ExitStack() as stack:
        model = stack.enter_context(serve_model([Say("Hello.")], tool_prefix=""))
        bench.env["BENCH_SECRET"] = SECRET
        client = stack.enter_context(
            bench.thin(pause_after="off", models=json.dumps(models_of(model)))
        )
        box = box_in(client.call("shell_run", command="true"))
        starter = Direct(box).starter(commands_environment(client))
        stack.callback(starter.close)
        calls: dict[str, Operation] = {}
        for harness in MODELS:
            calls[by_tool(harness)] = timed(partial(run, client, harness))
            calls[by_hand(harness)] = timed(partial(start, client, starter, harness))
        rows = await interleaved(calls, rounds, WARMUP)
    p50 = {row.name: row.p50 for row in rows}
    found.rows += rows
    for harness in MODELS:
        more = p50[by_tool(harness)] - p50[by_hand(harness)]
        found.goals.append(Goal(f"{harness}: agent_run - bare program", more, OVERHEAD_GOAL, "ms"))


async def benchmark(rounds: int, path: Path) -> None:
    found = Found()
    with bench() as made:
        facts = {**made.facts(), "rounds": rounds}
        await measure(made, rounds, found)
    print(table(found.rows, found.goals, found.figures))
    write(path, facts, found.rows, found.goals, found.figures)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks agent", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=20, help="of each")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go")
    given = vars(parser.parse_args(arguments))
    anyio.run(benchmark, given["rounds"], given["json"])
