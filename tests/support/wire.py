"""Requests to the real server over stdio, spelt out: each says what it likes of its client.

The SDK's client says the same of itself in every request of a connection.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from mcp import MCPError, StdioServerParameters, stdio_client
from mcp.shared.message import SessionMessage
from mcp_types import (
    CLIENT_CAPABILITIES_META_KEY,
    INVALID_PARAMS,
    PROTOCOL_VERSION_META_KEY,
    CallToolResult,
    JSONRPCError,
    JSONRPCRequest,
    JSONRPCResponse,
)

from box_mcp.surface.tasks import TASKS
from tests.support.client import COMMAND, MODERN, PATIENCE, text, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterator, Mapping

    from mcp.client import Transport

SOON = 0.3
"""Seconds after which a call is left behind by its command."""

WAIT = "rm -f go; echo started; until [ -e go ]; do sleep .02; done; echo done"


@dataclass(frozen=True)
class Wire:
    """A server's input and output: one request at a time, which declares tasks or does not."""

    send: Any
    receive: Any
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    async def ask(self, method: str, *, declares: bool = True, **params: Any) -> dict[str, Any]:
        """The result of one request, but for who the server says it is; raises MCPError."""
        meta: dict[str, Any] = {
            PROTOCOL_VERSION_META_KEY: MODERN,
            CLIENT_CAPABILITIES_META_KEY: {"extensions": {TASKS: {}}} if declares else {},
        }
        number, params = next(self.numbers), {**params, "_meta": meta}
        request = JSONRPCRequest(jsonrpc="2.0", id=number, method=method, params=params)
        await self.send.send(SessionMessage(request))
        with anyio.fail_after(PATIENCE):
            async for item in self.receive:
                if isinstance(answer := item.message, JSONRPCError) and answer.id == number:
                    raise MCPError.from_jsonrpc_error(answer)
                if isinstance(answer, JSONRPCResponse) and answer.id == number:
                    return {name: answer.result[name] for name in answer.result if name != "_meta"}
        raise AssertionError("the server has hung up")

    async def call(self, tool: str, *, declares: bool = True, **arguments: Any) -> dict[str, Any]:
        """What a tool call is answered with."""
        return await self.ask("tools/call", declares=declares, name=tool, arguments=arguments)

    async def run(self, command: str, **arguments: Any) -> str:
        """What a quick command prints, with its headline."""
        return said(await self.call("shell_run", command=command, **arguments))

    async def begin(self, command: str = WAIT, line: str = "started", **arguments: Any) -> str:
        """The id of a task that is made of a command, and has printed this line."""
        made = await self.call("shell_run", command=command, yield_after=SOON, **arguments)
        assert (made["resultType"], made["status"]) == ("task", "working"), made
        await self.shows(made["taskId"], line)
        return made["taskId"]

    async def get(self, task: str) -> dict[str, Any]:
        """How a task is."""
        told = await self.ask("tasks/get", taskId=task)
        assert told["resultType"] == "complete"
        return told

    async def shows(self, task: str, line: str) -> None:
        """Waits until a task that goes on has printed this line."""

        async def shown() -> bool:
            told = await self.get(task)
            return (told["status"], told["statusMessage"]) == ("working", line)

        await until(shown, f"{line} of {task}")

    async def end_of(self, task: str) -> dict[str, Any]:
        """How a task is when it has ended."""

        async def ended() -> dict[str, Any] | None:
            told = await self.get(task)
            return told if told["status"] != "working" else None

        return await until(ended, f"the end of {task}")

    async def refusal(self, task: str, method: str = "tasks/get") -> str:
        """What a request about no task of the caller's is answered with."""
        with pytest.raises(MCPError) as caught:
            await self.ask(method, taskId=task)
        assert caught.value.code == INVALID_PARAMS
        return str(caught.value)


@contextmanager
def server(env: Mapping[str, str]) -> Generator[Transport, None, None]:
    """The way to a server of one's own, of the session that tests share a box in."""
    program, *arguments = COMMAND
    parameters = StdioServerParameters(
        command=program, args=[*arguments, "--session", "shared"], env=dict(env)
    )
    with (Path(env["BOX_MCP_STATE_DIR"]).parent / "server.log").open("a") as errors:
        yield stdio_client(parameters, errlog=errors)


@asynccontextmanager
async def wired(env: Mapping[str, str]) -> AsyncGenerator[Wire, None]:
    """A server whose input and output are one's own."""
    with server(env) as transport:
        async with transport as (receive, send):
            yield Wire(send, receive)


def said(result: Mapping[str, Any]) -> str:
    """All text of a tool's result, which is no task."""
    assert result["resultType"] == "complete", result
    return text(CallToolResult.model_validate(result))
