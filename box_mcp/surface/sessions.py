"""Who is calling, in which conversation, and which box that means.

Never keyed on connection objects: on MCP's 2026-07-28 path each request has a new one. What comes
in `_meta`, headers and environment are hints that choose among the caller's own boxes, never
authentication: whose they are is told by the grant, which the HTTP server lays on a request once
it has looked at its token. A request that came by no HTTP server is of whoever started this one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

from mcp.server.mcpserver import Context
from pydantic import Field

from box_mcp.capabilities.agent.agents import Agents
from box_mcp.capabilities.files import Files
from box_mcp.capabilities.hostroots import Host
from box_mcp.capabilities.missing import advise
from box_mcp.capabilities.shell import Shell
from box_mcp.capabilities.transfer import Transfers
from box_mcp.capabilities.trees import Trees
from box_mcp.capabilities.watching import Watches
from box_mcp.domain.names import BoxId
from box_mcp.domain.network import Surroundings
from box_mcp.errors import CallRefused
from box_mcp.events import Hook
from box_mcp.gateway.ports import Ports
from box_mcp.gateway.proxying import Proxies
from box_mcp.gateway.routes import Routes
from box_mcp.gateway.sites import Sites
from box_mcp.gateway.tally import Mark
from box_mcp.lifecycle import Caller, Lifecycle
from box_mcp.slots import Claim
from box_mcp.surface.requests import grant, noted

META_KEYS = ("threadId", "sessionId")  # Codex names its conversations so
SESSION_VARIABLES = ("CLAUDE_CODE_SESSION_ID",)  # survives `claude --resume`; stdio only
SESSION_HEADER = "Mcp-Session-Id"  # over HTTP, up to MCP 2025-11-25; the SDK checks whose it is
EVERYWHERE = "http"
"""The conversation of who names none over HTTP: one for all of a principal's."""

MAX_HINT = 200  # characters

BoxRef = Annotated[str | None, Field(description="Id or name. Default: this session's.")]


@dataclass(frozen=True)
class Limits:
    """Settings that tools need: characters of output, seconds."""

    max_output: int = 12_000
    timeout: float = 600.0
    yield_after: float = 45.0


@dataclass(frozen=True)
class Backend:
    """What the server's lifespan yields to its tools. `session` is the name given to `serve`.

    `host` is None where there is no user's machine: over HTTP. `read_only`: for whoever calls.
    """

    lifecycle: Lifecycle
    limits: Limits
    watches: Watches
    agents: Agents
    session: str | None = None
    host: Host | None = None
    proxies: Proxies = field(default_factory=partial(Proxies, Surroundings()))
    ports: Ports | Sites = field(default_factory=Ports)
    routes: Routes = field(default_factory=partial(Routes, (), lambda _: None))
    hook: Hook = lambda _: None
    process: str = field(default_factory=lambda: f"process-{secrets.token_hex(8)}")
    read_only: bool = False


Ctx = Context[Backend, Any]


@dataclass(frozen=True)
class OpenBox:
    """A claimed box with what can be done in it.

    `heard` is up to when somebody was told of what it was refused. `only_reads`: its caller.
    """

    claim: Claim
    heard: Mark
    shell: Shell
    files: Files
    transfers: Transfers
    trees: Trees
    only_reads: bool = False

    @property
    def id(self) -> BoxId:
        """The box's."""
        return self.claim.box.id

    def reply(self, text: str) -> str:
        """`text`, with the news of the box before it."""
        return f"{self.claim.news}\n{text}" if self.claim.news else text


def backend(ctx: Ctx) -> Backend:
    """What the lifespan made."""
    return ctx.request_context.lifespan_context


def caller(ctx: Ctx) -> Caller:
    """Who is calling and in which conversation."""
    given = grant(ctx.request_context)
    only_reads = given.only_reads or backend(ctx).read_only
    return Caller(given.principal, _conversation(ctx), only_reads)


def _conversation(ctx: Ctx) -> str:
    server, request = backend(ctx), ctx.request_context
    if (hint := server.session or _hinted(request.meta)) is not None:
        return hint
    if request.request is None:
        return _of_process() or server.process
    return request.request.headers.get(SESSION_HEADER, "")[:MAX_HINT] or EVERYWHERE


async def meant(ctx: Ctx, box: str | None) -> BoxId:
    """The box that the call means, for what does not take hold of it."""
    found = await backend(ctx).lifecycle.meant(caller(ctx), box)
    noted(found)
    return found


@asynccontextmanager
async def open_box(ctx: Ctx, box: str | None) -> AsyncGenerator[OpenBox, None]:
    """Holds the box that the call means, awake and connected."""
    server, who = backend(ctx), caller(ctx)
    async with server.lifecycle.open(who, box) as claim:
        server.watches.claimed(claim)
        noted(claim.box.id)
        shell = Shell(claim.channel, claim.box.spec.cwd)
        transfers = Transfers(claim.channel, claim.open_pipe)
        files, trees = Files(claim.channel), Trees(claim.channel)
        heard = server.proxies.egress(claim.box.id).refused.told
        try:
            yield OpenBox(claim, heard, shell, files, transfers, trees, who.only_reads)
        except CallRefused as refused:
            await advise(refused, trees)
            raise


def look_into(ctx: Ctx, box: str) -> AbstractAsyncContextManager[Claim]:
    """Holds the box of this id or name; news of it are left to the next call of a tool."""
    return claimed(backend(ctx), caller(ctx), box)


@asynccontextmanager
async def claimed(server: Backend, who: Caller, box: str) -> AsyncGenerator[Claim, None]:
    """As `look_into`, for who goes on when the call is over."""
    async with server.lifecycle.look_into(who, box) as claim:
        server.watches.claimed(claim)
        noted(claim.box.id)
        yield claim


def _hinted(meta: Mapping[str, Any] | None) -> str | None:
    hints = ((meta or {}).get(key) for key in META_KEYS)
    return next((hint[:MAX_HINT] for hint in hints if isinstance(hint, str) and hint), None)


def _of_process() -> str | None:
    hints = (os.environ.get(variable) for variable in SESSION_VARIABLES)
    return next((hint[:MAX_HINT] for hint in hints if hint), None)
