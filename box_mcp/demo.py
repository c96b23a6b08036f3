"""A box at work, seen by a real MCP client: what `scripts/quickstart.sh` ends with.

The client is the SDK's own; it starts the server as any client would, over stdio. Server and box
are the demo's own, and nothing of them is left afterwards.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
from mcp import Client, StdioServerParameters
from mcp_types import CallToolResult, TextContent

from box_mcp import clients

PAUSE_AFTER = 1.5  # s; the demo's own patience, shorter than the setting's
PAUSE_TIMEOUT = 30.0  # s in which the box must have paused by itself

PROGRAM = """\
import platform, sys
print(f"Python {platform.python_version()} on {platform.node()} says hello")
print("this line is an error's", file=sys.stderr)
"""
COUNT = 'for n in 1 2 3 4 5; do echo "counting: $n"; sleep 0.5; done'
LOOK = 'echo "$(id -un) on $(uname -sm)"; python3 --version; node --version; git --version'


class DemoFailed(Exception):
    """A step did not do what it should; the text says which and how."""


async def demo() -> None:
    """Prints each step with its time, then configurations to copy; raises DemoFailed."""
    print("A box at work, by a real MCP client and the real server:\n")
    with TemporaryDirectory(prefix="box-mcp-demo-") as directory:
        env = {
            **os.environ,
            "BOX_MCP_STATE_DIR": directory,
            "BOX_MCP_PAUSE_AFTER": str(PAUSE_AFTER),
            "BOX_MCP_WARM_MAX": "0",
            "BOX_MCP_LOG_LEVEL": "WARNING",
        }
        arguments = ["-m", "box_mcp", "serve", "--session", "demo"]
        server = StdioServerParameters(command=sys.executable, args=arguments, env=env)
        started = time.perf_counter()
        async with Client(server) as client:
            tools = (await client.list_tools()).tools
            told("start the server, list its tools", started, f"{len(tools)} tools")
            async with box(client) as name:
                await walk(client, name)
    print(configurations())


@asynccontextmanager
async def box(client: Client) -> AsyncGenerator[str, None]:
    """A box for the length of the block."""
    started = time.perf_counter()
    made = await call(client, "box_create", name="demo")
    try:
        told("make a box", started, f"{made['id']}, {made['size']}, from {made['image']}")
        yield str(made["id"])
    finally:
        started = time.perf_counter()
        with anyio.CancelScope(shield=True):
            told("delete the box", started, await say(client, "box_delete", box=made["id"]))


async def walk(client: Client, name: str) -> None:
    """What an agent does in a box."""
    await step(client, "run a command in it", "shell_run", command=LOOK, box=name)
    await step(client, "write a file", "file_write", path="hello.py", content=PROGRAM, box=name)
    await step(client, "run it", "shell_run", command="python3 hello.py", box=name)
    await step(client, "read it back", "file_read", path="hello.py", max_lines=1, box=name)
    await watch(client, name)
    await let_it_pause(client, name)
    await step(client, "wake it by a command", "shell_run", command="wc -l hello.py", box=name)


async def step(client: Client, what: str, tool: str, **arguments: object) -> None:
    """One call, its time and its answer."""
    started = time.perf_counter()
    told(what, started, await say(client, tool, **arguments))


async def watch(client: Client, name: str) -> None:
    """A command's lines, as they come while it runs."""
    started = time.perf_counter()
    lines = 0

    async def show(_progress: float, _total: float | None, message: str | None) -> None:
        nonlocal lines
        lines += 1
        print(f"      {time.perf_counter() - started:4.1f} s  {message}")

    print("  watch output while a command runs:")
    await say(client, "shell_run", show, command=COUNT, box=name)
    if lines == 0:
        raise DemoFailed("No line came while the command was running")
    told("it has ended", started, f"{lines} lines came live")


async def let_it_pause(client: Client, name: str) -> None:
    """Waits until the pool has paused the idle box."""
    started = time.perf_counter()
    with anyio.move_on_after(PAUSE_TIMEOUT):
        while True:
            info = await call(client, "box_info", box=name)
            if info["state"] == "paused":
                return told("leave it alone: it pauses", started, str(info["note"]))
            await anyio.sleep(0.1)
    raise DemoFailed(f"The idle box did not pause within {PAUSE_TIMEOUT:g} s")


async def call(client: Client, tool: str, **arguments: object) -> dict[str, Any]:
    """The record that `tool` returns."""
    result = await client.call_tool(tool, arguments)
    text = refused_or_text(tool, result)
    if result.structured_content is None:
        raise DemoFailed(f"{tool} returned no record: {text}")
    return result.structured_content


async def say(client: Client, tool: str, on_progress: Any = None, **arguments: object) -> str:
    """The text that `tool` returns."""
    result = await client.call_tool(tool, arguments, progress_callback=on_progress)
    return refused_or_text(tool, result)


def refused_or_text(tool: str, result: CallToolResult) -> str:
    """The text of a good result; raises DemoFailed for an error's."""
    parts = [part.text for part in result.content if isinstance(part, TextContent)]
    text = "\n".join(parts).strip()
    if result.is_error:
        raise DemoFailed(f"{tool} failed: {text}")
    return text


def told(what: str, started: float, answer: str) -> None:
    """Prints a step, its time, and what came of it below."""
    milliseconds = (time.perf_counter() - started) * 1000
    print(f"  {what:34} {milliseconds:7.0f} ms")
    for line in answer.splitlines():
        print(f"      {line}")


def configurations() -> str:
    """What to paste where, for this very installation."""
    program = Path(sys.executable).with_name("box-mcp")
    if not program.exists():
        program = Path(sys.executable).with_name("box-mcp.exe")
    return f"""
Everything works. To use it:

Claude Code:

  {clients.claude_code_command(str(program))}

Claude Desktop (Settings > Developer > Edit Config; quit and reopen it afterwards):

{clients.claude_desktop(str(program))}
Codex, Cursor, VS Code: see configs/clients/, with {program} for box-mcp."""
