"""The composition root over HTTP: as `app`, for many callers, until a signal comes.

    SIGTERM ─▶ nothing new is let in ─▶ calls end, or yield ─▶ what is left is cut ─▶ boxes put away
                                          within `drain`        (a second signal: at once)

Whatever runs in boxes goes on.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from socket import socket
from ssl import SSLContext
from urllib.parse import urlsplit

import anyio
from mcp.server import MCPServer

from box_mcp.app import (
    TIDY_TIMEOUT,
    Signals,
    backend,
    end_within,
    engine_of,
    server_of,
    sinks_of,
)
from box_mcp.domain.names import mint_id
from box_mcp.domain.sites import Domain
from box_mcp.errors import CannotServe, first_error
from box_mcp.events import RequestRefused
from box_mcp.gateway.sites import Sites
from box_mcp.identity.opening import identity
from box_mcp.identity.tokens import FILE
from box_mcp.identity.verifying import Identity
from box_mcp.observe.logging import configure
from box_mcp.observe.sinks import Sinks
from box_mcp.settings import HttpSettings, Settings
from box_mcp.surface.access import told_by_head
from box_mcp.surface.http.admission import Admission
from box_mcp.surface.http.connections import Bounds, Connections, Web
from box_mcp.surface.http.door import MCP_PATH, Door, Page, Rules
from box_mcp.surface.http.figures import BY_TOKEN, PATH, Figures, parse_secluded
from box_mcp.surface.http.heads import Names, Proxies, bracketed
from box_mcp.surface.http.health import Readiness
from box_mcp.surface.http.listening import (
    Listen,
    bind,
    demand_name,
    demand_privacy,
    parse_listen,
    release,
    renew,
    tls_context,
)
from box_mcp.surface.http.ports import PortsApp
from box_mcp.surface.http.sessions import Sessions
from box_mcp.surface.server import needs_of
from box_mcp.surface.sessions import Backend

logger = logging.getLogger(__name__)

MIB = 1024**2
CUT_GRACE = 1.0  # s in which calls that are given up are told so
FEWER_DESCRIPTORS = 10_240  # where that is too many: macOS always gives as many
DESCRIPTORS = 65_536  # that one may have open: a connection each, for clients and for boxes


def serve_http(settings: Settings, listen: str = "") -> None:
    """Serves MCP over HTTP until SIGINT or SIGTERM; raises CannotServe before it begins.

    `listen` is as in the settings, instead of theirs.
    """
    configure(settings.log_level, settings.log_format)
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what it tells is told by us
    http = settings.http
    where = parse_listen(listen or http.listen)
    tls = tls_context(http.tls_certificate, http.tls_key) if http.tls_certificate else None
    demand_name(http.url, where, issuer=settings.oauth is not None)
    demand_privacy(
        where,
        tokens=http.auth == "token",
        tls=tls is not None,
        proxies=bool(http.trusted_proxies),
    )
    sockets = bind(where)
    try:
        anyio.run(partial(_serve, settings, where, sockets, tls))
    except BaseExceptionGroup as group:
        raise first_error(group) from None
    finally:
        release(where, sockets)


async def _serve(
    settings: Settings, where: Listen, sockets: Sequence[socket], tls: SSLContext | None
) -> None:
    http, signals = settings.http, Signals()
    url = http.url or _url(where, sockets, tls)
    engine, sinks = engine_of(settings), sinks_of(settings, metrics=bool(http.metrics))
    sites = Sites(Domain.beside(url, http.ports_domain), sinks)
    most = int(http.max_body * MIB)
    proxies = Proxies(http.trusted_proxies)
    names = Names(_hosts(http, url, where), http.origins)
    rules = Rules(names, proxies, most, secret=not where.private)

    def refusing(address: str, why: str) -> None:
        sinks(RequestRefused(address, 400, why))

    async with AsyncExitStack() as stack:
        serving = backend(settings, engine=engine, remote=True, sinks=sinks, sites=sites)
        running = await stack.enter_async_context(serving)
        who = await stack.enter_async_context(_identity(settings, url))
        server = server_of(settings, partial(_already, running), remote=True)
        sessions = Sessions(server._lowlevel_server, most)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        await stack.enter_async_context(sessions.run())
        admission = Admission(who, http.requests_per_minute, http.refusals_per_minute, most)
        door = Door(
            sessions,
            admission,
            rules,
            Readiness(partial(engine.inspect, mint_id())),
            sinks,
            needs=partial(told_by_head, needs_of(settings.toolsets, read_only=settings.read_only)),
            pages=await stack.enter_async_context(_metrics(http, sinks)),
            elsewhere=PortsApp(sites, admission).under,
        )
        await stack.enter_async_context(door.open())
        bounds = Bounds(max_body=most).within(_descriptors())
        connections = Connections(bounds, proxies.trusts, refusing)
        web = Web(door, sockets, connections, tls)
        await stack.enter_async_context(web.open())
        if tls is not None or not _at_terminal():  # else it ends with its terminal
            signals.at_hang_up(partial(_renew, tls, http))
        logger.info("MCP is served at %s by %s", url, _bound(where, sockets))
        await signals.first.wait()
        logger.info("Ending: calls may go on for %g s", http.drain)
        await _drain(door, web, running, signals, http.drain)
        end_within(TIDY_TIMEOUT)


async def _drain(door: Door, web: Web, running: Backend, signals: Signals, seconds: float) -> None:
    """Lets calls end; cuts them off after so long, or at a second signal."""
    door.drain()
    web.stop_listening()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_cancel_at, signals.second, tasks.cancel_scope)
        with anyio.move_on_after(seconds):
            await web.connections.none_left()
        tasks.cancel_scope.cancel()
    await running.lifecycle.let_go()  # of calls, too, whose clients are gone
    with anyio.move_on_after(CUT_GRACE):
        await web.connections.none_left()
    if web.connections.open:
        logger.warning("%d connections are cut", len(web.connections.open))


async def _cancel_at(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()  # pyright: ignore[reportUnnecessaryComparison]


def _renew(tls: SSLContext | None, http: HttpSettings) -> None:
    """A proxy may do TLS: who has it read anew should not end the server."""
    if tls is None or http.tls_certificate is None:
        logger.info("There is no TLS certificate to read anew")
        return
    try:
        renew(tls, http.tls_certificate, http.tls_key)
    except CannotServe as error:
        logger.error("%s The one before is still used.", error.explain())  # noqa: TRY400
    else:
        logger.info("The TLS certificate was read anew")


@asynccontextmanager
async def _already(running: Backend, _: MCPServer[Backend]) -> AsyncGenerator[Backend, None]:
    yield running


@asynccontextmanager
async def _identity(settings: Settings, url: str) -> AsyncGenerator[Identity | None, None]:
    """None where whoever comes is who started the server."""
    if settings.http.auth == "none":
        yield None
        return
    issuer, tokens = settings.oauth and settings.oauth.described(url), settings.state_dir / FILE
    async with identity(tokens, issuer, settings.authorities(), resource=url) as who:
        yield who


@asynccontextmanager
async def _metrics(http: HttpSettings, sinks: Sinks) -> AsyncGenerator[Mapping[str, Page], None]:
    """Shows them at an address of their own; else the page of the server that they are on."""
    if sinks.metrics is None:
        yield {}
        return
    text, kind = sinks.metrics.text, sinks.metrics.type
    if http.metrics == BY_TOKEN:
        figures = Figures(text, kind)
        own = http.auth == "none"  # whoever comes is who started the server
        yield {PATH: Page(figures.page, is_for=lambda grant: own or grant.sees_metrics)}
        return
    where = parse_secluded(http.metrics)
    figures = Figures(text, kind, Names(_hosts(http, http.url, where)))
    sockets = bind(where)
    try:
        async with Web(figures, sockets, Connections(Bounds())).open():
            logger.info("Metrics are at %s, for whoever asks", where)
            yield {}
    finally:
        release(where, sockets)


def _url(where: Listen, sockets: Sequence[socket], tls: SSLContext | None) -> str:
    """The endpoint, as a client on this machine would call it."""
    scheme = "https" if tls else "http"
    authority = "localhost" if where.path is not None else _bound(where, sockets)
    return f"{scheme}://{authority}{MCP_PATH}"


def _bound(where: Listen, sockets: Sequence[socket]) -> Listen:
    """Where it really listens: the port is known now."""
    return where if where.path is not None else replace(where, port=sockets[0].getsockname()[1])


def _hosts(http: HttpSettings, url: str, where: Listen) -> list[str]:
    """By which names the server is known, beside the loopback's."""
    return [*http.hosts, *map(bracketed, filter(None, (urlsplit(url).hostname, where.named)))]


def _descriptors() -> int:
    """How many one may have from now on: as many as the system lets one have, up to a bound."""
    if sys.platform == "win32":
        return DESCRIPTORS
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return DESCRIPTORS
    unbounded = hard == resource.RLIM_INFINITY
    for wanted in (DESCRIPTORS, FEWER_DESCRIPTORS) if unbounded else (min(hard, DESCRIPTORS),):
        if soft < wanted:
            with suppress(ValueError, OSError):  # macOS says that there is no bound, and has one
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                soft = wanted
    return soft
