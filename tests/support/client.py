"""The real server over stdio with the SDK's client, and the container engine seen from outside."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import psutil
from mcp import Client, MCPError, StdioServerParameters, stdio_client
from mcp_types import CallToolResult, TextContent

from box_mcp.engines.isolation import OWNER_LABEL
from box_mcp.engines.marks import FILE as MARK

T = TypeVar("T")

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping

    from mcp.client.session import ElicitationFnT, MessageHandlerFnT

LEGACY = "legacy"
MODERN = "2026-07-28"
ERAS = (LEGACY, MODERN)

PATIENCE = 30.0
"""Seconds; no wait in these tests is longer, however busy the machine."""

POLL = 0.05
"""Seconds between two looks at something that takes its time."""

LONG = "echo kept > kept; echo $$ > running; sleep 300"

COMMAND = [sys.executable, "-m", "box_mcp", "serve"]


@dataclass(frozen=True)
class Server:
    """A server process with a client of its own; `log` is what it writes to stderr."""

    client: Client
    process: psutil.Process
    log: Path

    async def call(self, tool: str, *, meta: Any = None, **arguments: Any) -> CallToolResult:
        """The result of one call, good or bad."""
        return await self.client.call_tool(tool, arguments, meta=meta)

    async def say(self, tool: str, *, meta: Any = None, **arguments: Any) -> str:
        """The text that a call succeeds with."""
        result = await self.call(tool, meta=meta, **arguments)
        assert not result.is_error, text(result)
        return text(result)

    async def run(self, command: str, **arguments: Any) -> str:
        """What shell_run answers."""
        return await self.say("shell_run", command=command, **arguments)

    async def tell(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The record that a call succeeds with."""
        result = await self.call(tool, **arguments)
        assert not result.is_error, text(result)
        return result.structured_content or {}

    async def fail(self, tool: str, **arguments: Any) -> str:
        """The text that a call fails with."""
        result = await self.call(tool, **arguments)
        assert result.is_error, text(result)
        return text(result)

    async def hostname(self, *, meta: Any = None, **arguments: Any) -> str:
        """The id of the box that a call without `box` acts in, by the box's own words."""
        answer = await self.say("shell_run", command="hostname", meta=meta, **arguments)
        return answer.split()[-1]

    async def pid_in(self, path: str, **arguments: Any) -> int:
        """The process id that a command writes into a file of the box."""

        async def written() -> int | None:
            answer = await self.run(f"cat {path} 2>/dev/null; true", **arguments)
            last = answer.rstrip().splitlines()[-1]
            return int(last) if last.isdigit() else None

        return await until(written, f"a process id in {path}")

    async def misses(self, **arguments: Any) -> None:
        """Waits until the server knows that a box has ended: calls before that are cut short."""

        async def known() -> bool:
            return (await self.tell("box_info", **arguments))["state"] != "running"

        await until(known, "the end of a box, as its server knows it")

    async def lives(self, pid: int, **arguments: Any) -> bool:
        """Whether a process of this number runs in the box."""
        answer = await self.run(f"kill -0 {pid} 2>/dev/null && echo lives; true", **arguments)
        return answer.endswith("lives\n")


@asynccontextmanager
async def serving(
    env: Mapping[str, str],
    *arguments: str,
    mode: str = MODERN,
    on_message: MessageHandlerFnT | None = None,
    ask: ElicitationFnT | None = None,
) -> AsyncGenerator[Server, None]:
    """A server of one's own, for the length of the block.

    `on_message` hears it talk unasked; `ask` answers what it asks the user.
    """
    log = Path(env["BOX_MCP_STATE_DIR"]).parent / "server.log"
    program, *first = COMMAND
    parameters = StdioServerParameters(command=program, args=[*first, *arguments], env=dict(env))
    before = {child.pid for child in psutil.Process().children()}
    with log.open("a") as errors:
        client = Client(
            stdio_client(parameters, errlog=errors),
            mode=mode,
            message_handler=on_message,
            elicitation_callback=ask,
        )
        async with client:
            (process,) = (c for c in psutil.Process().children() if c.pid not in before)
            yield Server(client, process, log)


@dataclass
class Call:
    """A call under way; afterwards what came of it."""

    answer: str = ""
    failed: bool = False
    errors: list[MCPError] = field(default_factory=list[MCPError])


@asynccontextmanager
async def under_way(
    server: Server, command: str = LONG, **arguments: float
) -> AsyncGenerator[Call]:
    """A command that surely runs while the block does; its end is awaited."""
    await server.run("rm -f running kept")
    call = Call()

    async def run() -> None:
        try:
            result = await server.call("shell_run", command=command, **arguments)
        except MCPError as error:
            call.errors.append(error)
        else:
            call.answer, call.failed = text(result), bool(result.is_error)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await server.pid_in("running")
            yield call


@contextmanager
def fresh_state(directory: Path) -> Generator[dict[str, str], None, None]:
    """Variables of a server with its own state; its boxes are deleted afterwards."""
    state = directory / "state"
    try:
        yield {
            "BOX_MCP_STATE_DIR": str(state),
            "BOX_MCP_WARM_MAX": "0",
            "BOX_MCP_IMAGE": "box-mcp:base",
            "PATH": os.environ["PATH"],
        }
    finally:
        remove_boxes(directory)


def remove_boxes(directory: Path) -> None:
    """Deletes the boxes that the servers of a `fresh_state` know, or told of in their log.

    And what was saved of them, their copies' images among it.
    """
    boxes: set[str] = set()
    if (database := directory / "state" / "state.db").exists():
        with closing(sqlite3.connect(database)) as connection:
            boxes.update(str(row[0]) for row in connection.execute("SELECT id FROM boxes"))
    if (log := directory / "server.log").exists():
        boxes.update(re.findall(r"\bbox-[a-z0-9]{8}\b", log.read_text()))
    if not boxes:
        return
    docker("rm", "-fv", *boxes, check=False)
    docker("network", "rm", *(f"{box}-net" for box in boxes), check=False)
    if (mark := directory / "state" / MARK).exists():
        saved = docker("images", "-q", "-f", f"label={OWNER_LABEL}={mark.read_text()}").split()
        if saved:
            docker("rmi", "-f", *dict.fromkeys(saved), check=False)


def docker(*arguments: str, check: bool = True) -> str:
    """What the engine's own command line prints."""
    done = subprocess.run(
        ["docker", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0 or not check, f"docker {arguments}: {done.stderr}"
    return done.stdout.strip()


def container_state(box: str) -> str:
    """``running``, ``paused`` or ``exited``, by the engine's own word."""
    return docker("inspect", "-f", "{{.State.Status}}", box)


def kill_boxd(box: str) -> None:
    """SIGKILL to the daemon of a box, its first process."""
    docker("kill", box, check=False)


def boxd_memory(box: str) -> dict[str, int]:
    """Bytes of a box's daemon, by the kernel's own count: now (VmRSS) and at its peak (VmHWM)."""
    status = docker("exec", box, "cat", "/proc/1/status")
    found = re.findall(r"^(Vm\w+):\s+(\d+) kB", status, re.MULTILINE)
    return {name: int(kib) * 1024 for name, kib in found}


def text(result: CallToolResult) -> str:
    """All text of a result."""
    return "".join(part.text for part in result.content if isinstance(part, TextContent))


async def until(look: Callable[[], Awaitable[T | None]], what: str) -> T:
    """The first result of `look` that is true."""
    found: T | None = None
    with anyio.move_on_after(PATIENCE):
        while not (found := await look()):  # noqa: ASYNC110 - it happens elsewhere
            await anyio.sleep(POLL)
    assert found, f"never came: {what}"
    return found
