"""The MCP server: its tools, its instructions, and the lifespan that owns the pool."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.tools import Tool
from mcp_types import (
    CompleteRequestParams,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    RequestParams,
    SubscribeRequestParams,
    SubscriptionsListenRequestParams,
    UnsubscribeRequestParams,
)

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
from box_mcp.surface.sessions import Backend
from box_mcp.surface.tasks import Tasks, listening

RESOURCE_REQUESTS: list[tuple[str, type[RequestParams], Any]] = [
    ("resources/list", PaginatedRequestParams, resources.list_resources),
    ("resources/templates/list", PaginatedRequestParams, resources.list_templates),
    ("resources/read", ReadResourceRequestParams, resources.read),
    ("resources/subscribe", SubscribeRequestParams, subscriptions.subscribe),
    ("resources/unsubscribe", UnsubscribeRequestParams, subscriptions.unsubscribe),
    ("subscriptions/listen", SubscriptionsListenRequestParams, subscriptions.listen),
    ("completion/complete", CompleteRequestParams, resources.complete),
]

INSTRUCTIONS = """\
box_mcp gives you boxes: isolated Linux containers (Debian, bash, python3, node, git, build \
tools) in which you may run anything without risk to the user's machine. Files and processes \
in a box are not the user's: nothing there is visible on the user's machine, and the other way \
round.

Just call shell_run, file_read or file_write. Without `box` they act in this session's own \
box, which is made by the first call and remembered. Work in /workspace. If several \
conversations share this session, or you want separate work kept apart, make a box of your own \
with box_create(name=...) and pass box=<name> in every call.

Commands run as user `box` with passwordless sudo. Each shell_run is a new shell: use cwd and \
env, chain with &&, or pass session="main" to keep one bash between calls. A call returns after \
45 s at the latest: a longer command goes on in the box, and the reply gives its process id. \
process_output waits for more output, for a pattern or for the end, process_input answers \
questions, process_signal ends it. Start servers with background=true, and programs that ask or \
draw (vim, sudo, installers) with tty=true. Long output is cut in the middle; nothing is lost: \
process_output reads any part of it.

Prefer file_edit (exact replacements, returns a diff) and file_search (ripgrep) to sed and \
grep. file_upload and file_download are the only way to and from the user's machine, within the \
directories that the user allows. Where a name can't be written as text, its path is shown as a \
file:// URL, and taken as one.

git_clone, git_status, git_diff, git_log, git_commit, git_checkout and git_push do most of git, \
shell_run("git ...") the rest. A box has no credentials or SSH keys, and needs none: git in it is \
let in wherever the user's settings have a route to. git_clone("host:/path") brings a repository \
of the user's machine, and git_push(remote="host") takes your branch home to it. \
pull_request_create pushes first, and opens one at GitHub or GitLab; issue_create opens issues.

agent_run has a coding agent (Claude Code, Codex) do a task in a box by itself: tell it all that \
it must know. It needs no key, max_cost and timeout bound it, and it goes on when the call has \
returned: agent_status waits for it, agent_cancel ends it. agent_run(resume=RUN) goes on in its \
conversation. To have several ways tried: box_fork, and an agent in each box.

port_expose gives the user's browser an address for a server in a box: tell it to them. Where a \
reply says that connections were refused, network_policy shows what the box may reach and changes \
it, as far as the settings or the user allow.

Before something risky: snapshot_create, and box_create(snapshot=...) brings it back. To try \
several ways from one state: box_fork.

Idle boxes pause by themselves and wake at the next call; frozen ones keep their processes, \
stopped ones their files. A reply in [brackets] at the top is from box_mcp, everything below \
is the command's or the file's own."""


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


def make_server(
    lifespan: Callable[[MCPServer[Backend]], AbstractAsyncContextManager[Backend]],
    groups: Collection[Group] = tuple(Group),
    *,
    read_only: bool = False,
) -> MCPServer[Backend]:
    """The server with the tools of `groups`, in a fixed order; `lifespan` yields what they work
    with. `read_only`: without those that change anything.
    """
    offered = [
        (tool, Need((toolset.group,), reads=_reads(tool)))
        for toolset in TOOLSETS
        for tool in toolset.tools
        if toolset.group in groups and (_reads(tool) or not read_only)
    ]
    needs = {tool.name: need for tool, need in offered}
    server = MCPServer(
        "box_mcp",
        title="box_mcp",
        version=__version__,
        instructions=INSTRUCTIONS,
        tools=[tool for tool, _ in offered],
        extensions=[Tasks(shell.render)],
        middleware=[told, permitting(needs), listening],
        lifespan=lifespan,
        log_level="WARNING",
    )
    # MCPServer lists resources without knowing who asks, and has no way to subscribe to them.
    handlers = server._lowlevel_server  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    for method, params, handler in RESOURCE_REQUESTS:
        handlers.add_request_handler(method, params, handler)
    return server


def _reads(tool: Tool) -> bool:
    return tool.annotations is not None and bool(tool.annotations.read_only_hint)
