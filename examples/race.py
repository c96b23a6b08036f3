"""Three coding agents try one task in copies of a box, each in another way; the best is kept.

    ANTHROPIC_API_KEY=... python examples/race.py
    OPENAI_API_KEY=... python examples/race.py codex

A plain MCP client: of box_mcp it uses the command that starts the server, and its tools.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anyio
from mcp import Client, StdioServerParameters

FILES = {
    "slugs.py": """\
def slug(title):
    return title.lower().replace(" ", "-")
""",
    "test_slugs.py": """\
import unittest
from slugs import slug


class Slugs(unittest.TestCase):
    def test_signs_separate_words(self):
        self.assertEqual(slug("Boxes, and more: a tale!"), "boxes-and-more-a-tale")

    def test_letters_lose_their_accents(self):
        self.assertEqual(slug("  Crème brûlée "), "creme-brulee")
""",
}
CHECK = "python3 -m unittest -q"
TASK = f"`{CHECK}` fails. Mend slugs.py and leave the tests alone. "
WAYS = (
    "Write the shortest code that works.",
    "Write down all edge cases first, then a function that treats each.",
    "Use one regular expression and unicodedata, nothing else.",
)
MAX_COST = 0.50  # US dollars for each agent


@dataclass
class Runner:
    """One agent: where it works, how it was told to, and what came of that."""

    box: str
    way: str
    result: dict[str, Any]
    passed: bool = False

    @property
    def cost(self) -> float:
        """US dollars."""
        return float(self.result["cost_usd"])


async def race(client: Client, harness: str) -> Runner | None:
    """The cheapest agent whose work passes the check; the other boxes are deleted."""
    start = (await call(client, "box_create"))["id"]
    await write(client, start, FILES)
    copies = (await call(client, "box_fork", box=start, count=len(WAYS)))["boxes"]
    runners = [Runner(copy["id"], way, {}) for copy, way in zip(copies, WAYS, strict=True)]
    async with anyio.create_task_group() as together:
        for runner in runners:
            together.start_soon(run, client, harness, runner)
    finished = [runner for runner in runners if runner.passed]
    winner = min(finished, key=lambda runner: runner.cost, default=None)
    for box in (start, *(runner.box for runner in runners if runner is not winner)):
        await call(client, "box_delete", box=box, discard=True)
    return winner


async def run(client: Client, harness: str, runner: Runner) -> None:
    """Lets an agent work until it is done, and checks what it did."""
    told = {"prompt": TASK + runner.way, "harness": harness, "max_cost": MAX_COST}
    result = await call(client, "agent_run", box=runner.box, **told)
    while result["state"] == "running":  # no call lasts longer than its client's patience
        result = await call(client, "agent_status", run=result["run"], wait=45)
    await write(client, runner.box, {"test_slugs.py": FILES["test_slugs.py"]})  # as they were
    checked = await call(client, "shell_run", box=runner.box, command=CHECK)
    runner.result, runner.passed = result, "[exit 0" in checked["text"]
    print(f"{runner.box}: {result['state']}, ${runner.cost:.4f}, passed: {runner.passed}")


async def write(client: Client, box: str, files: Mapping[str, str]) -> None:
    """Puts files into a box."""
    for path, content in files.items():
        await call(client, "file_write", box=box, path=path, content=content)


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """The record that a tool answers with; of those that answer with text, that as ``text``."""
    result = await client.call_tool(tool, arguments)
    text = "".join(getattr(part, "text", "") for part in result.content)
    if result.is_error:
        raise RuntimeError(f"{tool}: {text}")
    return dict(result.structured_content or {"text": text})


async def main(harness: str) -> None:
    """Prints the winner, its way and its work."""
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "box_mcp", "serve", "--session", "race"],
        env=dict(os.environ),
    )
    async with Client(command) as client:
        winner = await race(client, harness)
        if winner is None:
            raise SystemExit("No agent has passed the check")
        print(f"{winner.box} wins: {winner.way}")
        print((await call(client, "file_read", box=winner.box, path="slugs.py"))["text"])


if __name__ == "__main__":
    anyio.run(main, sys.argv[1] if sys.argv[1:] else "claude_code")
