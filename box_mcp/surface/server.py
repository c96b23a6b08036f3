"""The MCP server: its tools, its instructions, and the lifespan that owns the pool."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from mcp import MCPError
from mcp.server import MCPServer
from mcp.server.context import HandlerResult, ServerRequestContext
from mcp.server.lowlevel.server import RequestHandler, Server
from mcp.server.mcpserver.tools import Tool
from mcp_types import (
    INVALID_PARAMS,
    CompleteRequestParams,
    DiscoverResult,
    GetPromptRequestParams,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    RequestParams,
    SubscribeRequestParams,
    SubscriptionsListenRequestParams,
    UnsubscribeRequestParams,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from box_mcp import __version__
from box_mcp.domain.access import Group
from box_mcp.surface import (
    agent,
    files,
    forges,
    git,
    lifecycle,
    network,
    resources,
    shell,
    subscriptions,
    transfer,
    trees,
)
from box_mcp.surface.access import Need, permitting
from box_mcp.surface.calls import told
from box_mcp.surface.consent import sealing
from box_mcp.surface.instructions import instructions
from box_mcp.surface.pacing import pacing
from box_mcp.surface.requests import granting
from box_mcp.surface.sessions import Backend
from box_mcp.surface.tasks import Tasks, listening
from box_mcp.surface.traces import believing

RESOURCE_REQUESTS: list[tuple[str, type[RequestParams], Any]] = [
    ("resources/list", PaginatedRequestParams, resources.list_resources),
    ("resources/templates/list", PaginatedRequestParams, resources.list_templates),
    ("resources/read", ReadResourceRequestParams, resources.read),
    ("resources/subscribe", SubscribeRequestParams, subscriptions.subscribe),
    ("resources/unsubscribe", UnsubscribeRequestParams, subscriptions.unsubscribe),
    ("subscriptions/listen", SubscriptionsListenRequestParams, subscriptions.listen),
    ("completion/complete", CompleteRequestParams, resources.complete),
]

TOOLSETS = (
    lifecycle.tools,
    shell.tools,
    files.tools,
    trees.tools,
    transfer.tools,
    git.tools,
    forges.tools,
    agent.tools,
    network.tools,
)
"""All tools, in the order in which they are listed."""


Lifespan = Callable[[MCPServer[Backend]], AbstractAsyncContextManager[Backend]]
"""Yields what tools work with, for as long as the server runs."""


def make_server(
    lifespan: Lifespan,
    groups: Collection[Group] = tuple(Group),
    *,
    read_only: bool = False,
    calls_per_minute: int | None = None,
    remote: bool = False,
) -> MCPServer[Backend]:
    """The server with the tools of `groups`, in a fixed order; files are resources, too.

    `read_only`: without those that change anything. `calls_per_minute` is for each principal.
    `remote`: its callers are at other machines.
    """
    offered = _offered(groups, read_only=read_only)
    paced = [] if calls_per_minute is None else [pacing(calls_per_minute)]
    server = MCPServer(
        "box_mcp",
        title="box_mcp",
        version=__version__,
        instructions=instructions(groups, read_only=read_only, remote=remote),
        tools=[tool for tool, _ in offered],
        extensions=[Tasks(shell.render)],
        middleware=[told, *paced, permitting(_needs(offered)), listening],
        request_state_security=sealing(),
        lifespan=lifespan,
        log_level="WARNING",
    )
    # MCPServer lists resources without knowing who asks, and has no way to subscribe to them.
    handlers = server._lowlevel_server  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    handlers.middleware.insert(0, believing)
    if remote:
        handlers.middleware.insert(0, granting)
    handlers.add_request_handler("server/discover", RequestParams, discovering(handlers))
    handlers.add_request_handler("prompts/get", GetPromptRequestParams, no_prompt)
    for method, params, handler in RESOURCE_REQUESTS if Group.FILES in groups else ():
        handlers.add_request_handler(method, params, handler)
    return server


def discovering(server: Server[Backend]) -> RequestHandler[Backend, RequestParams]:
    """Tells what the server can do. The SDK would have clients listen for other tools and prompts:
    these never change.
    """

    async def discover(ctx: ServerRequestContext[Backend], _: RequestParams) -> DiscoverResult:
        able = server.get_capabilities(protocol_version=ctx.protocol_version)
        for lists in (able.tools, able.prompts):
            if lists is not None:
                lists.list_changed = False
        versions = list(MODERN_PROTOCOL_VERSIONS)
        return DiscoverResult(
            supported_versions=versions, capabilities=able, instructions=server.instructions
        )

    return discover


async def no_prompt(
    _ctx: ServerRequestContext[Any, Any], _params: GetPromptRequestParams
) -> HandlerResult:
    """There are none; the SDK would say that it failed."""
    raise MCPError(INVALID_PARAMS, "There is no such prompt")


def needs_of(groups: Collection[Group], *, read_only: bool) -> Mapping[str, Need]:
    """What the tools take that such a server has, by their names."""
    return _needs(_offered(groups, read_only=read_only))


def _offered(groups: Collection[Group], *, read_only: bool) -> list[tuple[Tool, Need]]:
    return [
        (tool, Need((toolset.group,), reads=_reads(tool)))
        for toolset in TOOLSETS
        for tool in toolset.tools
        if toolset.group in groups and (_reads(tool) or not read_only)
    ]


def _needs(offered: Collection[tuple[Tool, Need]]) -> Mapping[str, Need]:
    return {tool.name: need for tool, need in offered}


def _reads(tool: Tool) -> bool:
    return tool.annotations is not None and bool(tool.annotations.read_only_hint)
