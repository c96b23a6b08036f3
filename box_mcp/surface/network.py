"""Tools that change what a box may reach, and that let the user's browser reach a box."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from box_mcp.capabilities.tunnels import connect
from box_mcp.channel import Channel
from box_mcp.domain.access import Group
from box_mcp.domain.catalogue import wished
from box_mcp.domain.network import Mode, Network
from box_mcp.errors import BeyondCeiling, CallRefused, InvalidArgument
from box_mcp.gateway.proxying import PROXY_PORT
from box_mcp.gateway.sites import KEY_LIFE, Sites
from box_mcp.surface.consent import Consent, Question, asks, consenting, question
from box_mcp.surface.refusals import listed
from box_mcp.surface.requests import grant
from box_mcp.surface.sessions import BoxRef, Ctx, backend, caller, claimed, meant, open_box
from box_mcp.surface.toolset import Toolset
from box_mcp.surface.words import reach

tools = Toolset(Group.NETWORK)

Port = Annotated[int, Field(ge=1, le=65535, description="Of the server in the box.")]
NetworkMode = Literal["full", "allowlist", "none"]

BY_PROXY = (
    "commands get out only by the proxy that HTTPS_PROXY names to them when they start "
    f"(127.0.0.1:{PROXY_PORT}; it speaks SOCKS, too): programs that do not use it find no host"
)


async def may_expose(ctx: Ctx, port: int) -> Question:
    """Asks for an exposed port, where the settings allow none."""
    return question(ctx, f"show you port {port} of a box in your browser", _beyond(ctx))


@tools.tool(repeatable=True, open_world=True)
async def port_expose(
    port: Port,
    ctx: Ctx,
    answer: Annotated[Consent, asks(may_expose)],
    box: BoxRef = None,
) -> str:
    """Give the user's browser, and nobody else, an address of an HTTP server in the box, such as
    http://box-a1b2c3d4.localhost:3000/: tell them. It may listen on 127.0.0.1; WebSockets pass;
    requests wake the box.
    """
    server, who = backend(ctx), caller(ctx)
    with consenting(answer) as approved:
        if (beyond := _beyond(ctx)) and not approved:
            raise BeyondCeiling(beyond)
    async with open_box(ctx, box) as opened:
        held = opened.claim.box
        claim = partial(claimed, server, who, held.id)
        if isinstance(server.ports, Sites):
            site = server.ports.expose(claim, held.id, port, who.principal)
            link = site.link(grant(ctx.request_context))
            told = (
                f"{link} leads the user's browser to port {port} in {held.id}: it works once, "
                f"within {KEY_LIFE / 60:.0f} min, and {site.url} in that browser from then on. "
                "Each call gives another link"
            )
            end = "port_close, or the end of box_mcp's server"
        else:
            url = server.ports.expose(claim, held.id, held.name, port).url
            told = f"{url} on the user's machine leads to port {port} in {held.id}"
            end = "port_close, or the end of this session"
        if not await _listens(opened.claim.channel, port):
            told += " · nobody listens on it yet: start the server"
        return opened.reply(f"[{told} · until {end}]")


@tools.tool(repeatable=True)
async def port_close(port: Port, ctx: Ctx, box: BoxRef = None) -> str:
    """Take back what port_expose did. The server in the box goes on."""
    server = backend(ctx)
    owner = await meant(ctx, box)
    if not await server.ports.close(owner, port):
        exposed = ", ".join(str(one.port) for one in server.ports.of(owner)) or "none"
        raise InvalidArgument("port", f"is {port}, which is not exposed; exposed: {exposed}")
    return f"[port {port} in {owner} is not reachable for the user any more]"


async def may_reach(
    ctx: Ctx,
    network: NetworkMode | None,
    allow: Sequence[str] | None,
    box: str | None,
) -> Question:
    """Asks for what is beyond the settings' ceiling and what the box may reach already."""
    lifecycle = backend(ctx).lifecycle
    known = (await lifecycle.info(caller(ctx), box)).box
    wanted = changed(known.network, network, allow)
    purpose = f"let the box {known.name or known.id} reach more of the network"
    return question(ctx, purpose, lifecycle.beyond(wanted, known.network))


@tools.tool(repeatable=True, open_world=True)
async def network_policy(
    ctx: Ctx,
    answer: Annotated[Consent, asks(may_reach)],
    network: Annotated[
        NetworkMode | None,
        Field(description="full: what is public. allowlist: what `allow` lists."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        Field(
            description="example.org (ports 80, 443), *.example.org:8443, 10.1.0.0/16:*. "
            "Without `network`: added."
        ),
    ] = None,
    box: BoxRef = None,
) -> str:
    """Show or change what a box may reach; show what was refused. Beyond the settings the user is
    asked.
    """
    lifecycle, who = backend(ctx).lifecycle, caller(ctx)
    report = await lifecycle.info(who, await meant(ctx, box))
    wanted = changed(report.box.network, network, allow)
    if network is not None or allow is not None:  # an earlier change may not have been done
        with consenting(answer) as approved:
            report = await lifecycle.set_network(who, report.box.id, wanted, approved=approved)
    known, ceiling = report.box, lifecycle.catalogue.ceiling.network
    refused = listed(backend(ctx).proxies.egress(known.id).refused.since(), known.network)
    header = f"[{known.id}: network {known.network} · without asking: up to {reach(ceiling)}]"
    way = [BY_PROXY] if known.network.mode is Mode.ALLOWLIST else []
    return "\n".join([header, *way, *(f"refused: {one}" for one in refused)])


def changed(now: Network, mode: str | None, allow: Sequence[str] | None) -> Network:
    """What a box is to reach: `allow` is the whole list with a mode, else added to it.

    Raises InvalidArgument. Rules alone do not narrow a box down: whoever misses one thing in a box
    that has `full` would lose all the rest.
    """
    if mode is None and allow is not None:
        if now.mode is not Mode.ALLOWLIST:
            told = f'is of use with network="allowlist" only, and the box has {now.mode.value!r}'
            raise InvalidArgument("allow", f"{told}: pass both, and it reaches nothing else")
        allow = [*map(str, now.allow), *allow]
    return wished(now, mode, allow)


def _beyond(ctx: Ctx) -> tuple[str, ...]:
    """What is beyond the ceiling in an exposed port; raises InvalidArgument where none can be."""
    server = backend(ctx)
    if isinstance(server.ports, Sites):
        server.ports.named()
    return () if server.lifecycle.catalogue.ceiling.ports else ("exposed ports",)


async def _listens(channel: Channel, port: int) -> bool:
    try:
        async with connect(channel, port):
            return True
    except CallRefused:
        return False
