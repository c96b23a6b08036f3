"""The composition root: settings become engine, store, pool and server, here and nowhere else."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from threading import Timer

import anyio
from mcp.server import MCPServer

from box_mcp import __version__
from box_mcp.capabilities.agent.agents import Agents, Usual
from box_mcp.capabilities.harnesses.custom import Custom
from box_mcp.capabilities.harnesses.known import KNOWN
from box_mcp.capabilities.hostroots import Host
from box_mcp.capabilities.identity import OwnIdentity
from box_mcp.capabilities.setup import run_setup
from box_mcp.capabilities.watching import Watches
from box_mcp.domain.network import Surroundings
from box_mcp.engines.address import find_engine
from box_mcp.engines.base import Engine
from box_mcp.engines.docker import DockerEngine
from box_mcp.engines.marks import path_suffices, settle_mark
from box_mcp.errors import NotInstalled, first_error
from box_mcp.gateway.credentials import Secrets
from box_mcp.gateway.models.service import Models
from box_mcp.gateway.ports import Ports
from box_mcp.gateway.proxying import Proxies
from box_mcp.gateway.routes import Routes
from box_mcp.gateway.sites import Sites
from box_mcp.ledger import Ledger
from box_mcp.lifecycle import Lifecycle
from box_mcp.observe.audit import Audit
from box_mcp.observe.logging import Log, configure
from box_mcp.observe.sinks import Sinks
from box_mcp.pool import Pool
from box_mcp.settings import Settings
from box_mcp.store import Store
from box_mcp.surface.server import TOOLSETS, Lifespan, make_server
from box_mcp.surface.sessions import Backend, Limits

MIB = 1024**2
CLOSE_TIMEOUT = 0.1  # s for letting go of engine and store at exit, and as much for sinks
PROJECT_VARIABLE = "CLAUDE_PROJECT_DIR"  # Claude Code starts its servers with it
TIDY_TIMEOUT = 2.0  # s from a signal or a hang-up to the end; much less if nothing hangs


@asynccontextmanager
async def backend(
    settings: Settings,
    session: str | None = None,
    engine: Engine | None = None,
    *,
    remote: bool = False,
    sinks: Sinks | None = None,
    sites: Sites | None = None,
) -> AsyncGenerator[Backend, None]:
    """Everything below the tools, running. The engine is not spoken to before there is need.

    `remote`: callers are not at this machine, so nothing of it is theirs, nor whose it is. What
    happens goes to `sinks`, which are closed at the end.
    """
    hook = sinks = sinks or sinks_of(settings)
    if engine is None:
        engine = engine_of(settings)
    store = Store(settings.state_dir / "state.db")
    ledger = Ledger(settings.state_dir / "runs.db")
    watches = Watches()
    proxies = Proxies(Surroundings(tuple(settings.allow_cidrs), (settings.subnets,)))
    ports = sites or Ports()
    sinks.add(watches.notice, proxies.notice, ports.notice)
    secrets, authorities = Secrets(), settings.authorities()
    user = OwnIdentity(settings.git_name, settings.git_email, asks_git=not remote)
    routes = Routes(
        settings.credential_routes(), hook, user.get, secrets=secrets, authorities=authorities
    )
    prices = settings.model_prices()
    models = Models(
        settings.model_routes(),
        prices,
        ledger,
        hook,
        authorities=authorities,
        max_cost_per_day=settings.max_cost_per_day,
    )
    usual = Usual(
        settings.harness,
        settings.agent_timeout,
        settings.max_cost,
        settings.job_awake_max,
        settings.versions(),
    )
    own = {
        name: Custom(name, harness.command, harness.api)
        for name, harness in settings.harnesses.items()
    }
    agents = Agents(ledger, models, {**KNOWN, **own}, usual, prices)
    pool = Pool(
        engine,
        store,
        settings.state_dir,
        settings.policy(),
        settings.spec() if settings.warm_max else None,
        setup=run_setup,
        services=[proxies, routes, models],
        disk=settings.disk(),
        hook=hook,
    )
    limits = Limits(settings.max_output, settings.timeout, settings.yield_after)
    shared = remote and settings.http.auth != "none"
    lifecycle = Lifecycle(pool, store, engine, settings.catalogue(shared=shared))
    if sinks.metrics is not None:
        sinks.metrics.counts = pool.statistics
    try:
        async with watches.open(), pool.open(), ports.open(), _ending(sinks.flush):
            yield Backend(
                lifecycle,
                limits,
                watches,
                agents,
                session,
                None if remote else _own_machine(settings),
                proxies,
                ports,
                routes,
                hook,
                read_only=settings.read_only,
            )
    finally:
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
            await engine.aclose()
            await store.aclose()
            await ledger.aclose()
        sinks.close(CLOSE_TIMEOUT)


def engine_of(settings: Settings) -> DockerEngine:
    """The engine of the environment, and the mark that tells this server's boxes from others'."""
    if not path_suffices(find_engine()):
        settle_mark(settings.state_dir)
    return DockerEngine(settings.isolation())


def server_of(
    settings: Settings, lifespan: Lifespan, *, remote: bool = False
) -> MCPServer[Backend]:
    """The server as the settings want it; `lifespan` yields a `backend`."""
    return make_server(
        lifespan,
        settings.toolsets,
        read_only=settings.read_only,
        calls_per_minute=settings.calls_per_minute,
        remote=remote,
    )


def sinks_of(settings: Settings, *, metrics: bool = False) -> Sinks:
    """Where events go, as the settings want it; raises NotInstalled.

    Calls are logged one by one where programs read the log: people who start a server for
    themselves see them in their client.
    """
    calls = logging.INFO if settings.log_format == "json" else logging.DEBUG
    audit = Audit(settings.audit, int(settings.audit_size * MIB), settings.audit_files)
    sinks = Sinks(Log(calls), audit)
    if metrics:  # imported when there is need, as all that takes long
        from box_mcp.observe.metrics import Metrics

        names = [tool.name for toolset in TOOLSETS for tool in toolset.tools]
        sinks.metrics = sinks.added(Metrics(names))
    if settings.tracing == "otlp":
        try:
            from box_mcp.observe.tracing import Tracing
        except ImportError:
            raise NotInstalled('tracing = "otlp"', "tracing") from None
        sinks.tracing = sinks.added(Tracing(__version__))
    return sinks


@asynccontextmanager
async def _ending(begin: Callable[[], None]) -> AsyncGenerator[None, None]:
    """Has something begin when the block is over."""
    try:
        yield
    finally:
        begin()


def _own_machine(settings: Settings) -> Host:
    project = os.environ.get(PROJECT_VARIABLE)
    return Host(tuple(settings.host_roots), project, settings.state_dir)


def serve(settings: Settings, session: str | None = None) -> None:
    """Serves MCP over stdin and stdout until the client hangs up or a signal comes.

    Clients give a server about half a second after SIGINT, and the SDK's thread that reads stdin
    can't be interrupted: so the process ends itself once boxes are tidied up.
    """
    configure(settings.log_level, settings.log_format)
    sinks = sinks_of(settings)
    tidied = anyio.Event()

    @asynccontextmanager
    async def lifespan(_: MCPServer[Backend]) -> AsyncGenerator[Backend, None]:
        try:
            async with backend(settings, session, sinks=sinks) as running:
                try:
                    yield running
                finally:
                    end_within(TIDY_TIMEOUT)
        finally:
            tidied.set()

    server = server_of(settings, lifespan)
    with suppress(KeyboardInterrupt):
        try:
            anyio.run(_serve, server, tidied)
        except BaseExceptionGroup as group:
            raise first_error(group) from None
    _exit()


async def _serve(server: MCPServer[Backend], tidied: anyio.Event) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(_end_on_signal, Signals(), group.cancel_scope, tidied)
        await server.run_stdio_async()
        group.cancel_scope.cancel()


async def _end_on_signal(signals: Signals, serving: anyio.CancelScope, tidied: anyio.Event) -> None:
    """Further signals are heard and change nothing: they would kill a server that tidies up."""
    await signals.first.wait()
    serving.cancel()
    with anyio.move_on_after(TIDY_TIMEOUT, shield=True):
        await tidied.wait()
    _exit()


class Signals:
    """Hears of SIGINT and SIGTERM (on Windows of Ctrl+Break); more than two change nothing."""

    def __init__(self) -> None:
        self.first, self.second = anyio.Event(), anyio.Event()
        self._loop = asyncio.get_running_loop()
        heard = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGBREAK", signal.SIGTERM))
        for number in heard:
            signal.signal(number, self._hear)

    def at_hang_up(self, do: Callable[[], None]) -> None:
        """What SIGHUP is for, where there is one."""
        if hasattr(signal, "SIGHUP"):
            self._loop.add_signal_handler(signal.SIGHUP, do)

    def _hear(self, *_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: all is over
            self._loop.call_soon_threadsafe(self._heard)

    def _heard(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


def end_within(seconds: float) -> None:
    """An engine that takes its time holds a thread, which can't be interrupted, but left behind."""
    timer = Timer(seconds, _exit)
    timer.daemon = True
    timer.start()


def _exit() -> None:
    sys.stdout.flush()
    os._exit(0)
