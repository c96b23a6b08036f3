"""The door of the HTTP server: every request passes it, whatever it wants.

    Host ─▶ Origin ─▶ path ─▶ token ─▶ how often ─▶ scope ─▶ body ─▶ MCP
      │       │         │       │          │          │        │
     421     403       404     401        429        403      413

It lays the grant on the request's ASGI scope; whatever lies behind believes nothing else. Its
answers say nothing of others, and nothing of why a token is not good.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import anyio
from anyio.abc import TaskGroup
from mcp.server.auth.middleware.auth_context import AuthContextMiddleware
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from starlette.types import ASGIApp, Receive, Scope, Send

from box_mcp.domain.access import Grant
from box_mcp.events import Hook, RequestRefused
from box_mcp.gateway.passing import BrokenOff
from box_mcp.surface.access import Need
from box_mcp.surface.http import heads
from box_mcp.surface.http.admission import AGAIN, Admission
from box_mcp.surface.http.answers import CLOSE, Headers, Refused, Said, retry_after
from box_mcp.surface.http.bearer import METADATA, challenge, metadata, metadata_path
from box_mcp.surface.http.bodies import check
from box_mcp.surface.http.heads import Names, Proxies
from box_mcp.surface.http.health import Readiness
from box_mcp.surface.http.running import Exchange
from box_mcp.surface.http.turns import Turns
from box_mcp.surface.requests import GRANT, HOLDING

logger = logging.getLogger(__name__)

MCP_PATH = "/mcp"
METHODS = ("GET", "POST", "DELETE")
STREAMS = (b"subscriptions/listen",)
"""Requests of MCP that are answered for as long as the client likes."""

TOO_MANY = 429
SLOWLY = 1.0  # s after which it is told who asked for too much

LOOK_EVERY = 30.0  # s between two looks whether the tokens of open streams are still good

Needs = Callable[[str, str], Need | None]
"""What a request of this method, about the tool of this name, takes; None for what is free."""

Elsewhere = Callable[[str], ASGIApp | None]
"""Who answers under another name than the server's own, if anybody. The client of its scope is who
asks, whatever proxies are between.
"""


@dataclass(frozen=True)
class Page:
    """What is answered to GET at a path: to all if it is `open`, else to those that it is for."""

    answer: Callable[[], Awaitable[Said]]
    open: bool = False
    is_for: Callable[[Grant], bool] = lambda _: True


@dataclass(frozen=True)
class Rules:
    """By which names one comes, through which proxies, and with how many bytes at most.

    `secret`: who comes from elsewhere comes by TLS, or through a proxy.
    """

    names: Names = field(default_factory=Names)
    proxies: Proxies = field(default_factory=Proxies)
    max_body: int = 16 * 1024 * 1024
    secret: bool = False


class Door:
    """An ASGI app before `mcp`, another. Use `open` for the length of serving."""

    def __init__(
        self,
        mcp: ASGIApp,
        admission: Admission,
        rules: Rules,
        readiness: Readiness,
        hook: Hook,
        *,
        needs: Needs = lambda _method, _name: None,
        pages: Mapping[str, Page] | None = None,
        elsewhere: Elsewhere = lambda _host: None,
        slowly: float = SLOWLY,
    ) -> None:
        self._mcp = AuthContextMiddleware(mcp)
        self._admission = admission
        self._rules = rules
        self._readiness = readiness
        self._hook = hook
        self._turns = Turns()
        self._needs = needs
        self._pages = {**self._own_pages(), **(pages or {})}
        self._elsewhere = elsewhere
        self._slowly = slowly
        self._exchanges: set[Exchange] = set()
        self._draining = False
        self._tasks: TaskGroup

    def __repr__(self) -> str:
        draining = " draining" if self._draining else ""
        return f"<Door {len(self._exchanges)} exchanges{draining}>"

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None, None]:
        """Looks after what takes long, meanwhile."""
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._look_after_streams)
            yield
            self._tasks.cancel_scope.cancel()

    def drain(self) -> None:
        """From now on nothing new is let in, and streams end; calls go on."""
        self._draining = True
        for exchange in self._exchanges:
            if exchange.stream:
                exchange.end()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it; only HTTP is spoken here."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send)
        self._exchanges.add(exchange)
        try:
            await self._serve(exchange)
        except BrokenOff:
            return  # an answer that is not whole must not look so: the connection ends with it
        except Exception:
            logger.exception("A request over HTTP failed")
            if not exchange.started:
                mistake = Refused(500, "mistake", "box_mcp made a mistake; its log tells more")
                await mistake.answer().send(exchange.send)
        finally:
            self._exchanges.discard(exchange)
            self._admission.leave(exchange)
        await exchange.finish()

    async def _serve(self, exchange: Exchange) -> None:
        try:
            exchange.client = _peer(exchange.scope)
            said, version = exchange.scope["headers"], exchange.scope["http_version"]
            exchange.headers = heads.only(said, version)
            exchange.client = self._rules.proxies.client(exchange.client, exchange.headers)
            app = await self._app(exchange)
            await app(exchange.scope, exchange.receive, exchange.send)
        except Refused as refused:
            refused = self._admission.count(refused, exchange.client)
            self._hook(RequestRefused(exchange.client, refused.status, refused.why))
            if refused.status == TOO_MANY:  # who asks again at once would keep the server busy
                await anyio.sleep(self._slowly)
            await refused.answer().send(exchange.send)

    async def _app(self, exchange: Exchange) -> ASGIApp:
        """Who answers the request; raises Refused."""
        scope, headers = exchange.scope, exchange.headers
        host = heads.host_of(headers.get(b"host", b""))
        scheme = self._rules.proxies.scheme(_peer(scope), scope["scheme"], headers)
        scope["scheme"] = scheme
        if (other := self._elsewhere(host)) is not None:
            self._refuse_if_draining()
            self._refuse_in_the_clear(scope)
            scope["client"] = (exchange.client, 0)
            return other
        local = scope.get("server") or ("", None)
        if not self._rules.names.has(host, local[0]):
            words = "This server does not go by that name; the setting http.hosts lists its names"
            raise Refused(421, "another's name", words)
        self._look_at_origin(exchange)
        if exchange.extra and scope["method"] == "OPTIONS" and heads.PREFLIGHT in headers:
            return _app(Said(204, headers=_preflight(headers)))
        page = self._pages.get(scope["path"])
        if page is not None:
            return _app(await self._page(page, exchange))
        self._refuse_if_draining()
        if scope["path"] != MCP_PATH:
            raise Refused(404, "no such path", f"There is nothing here: MCP is at {MCP_PATH}")
        return await self._to_mcp(exchange)

    def _look_at_origin(self, exchange: Exchange) -> None:
        """Lets pages of some origins in, and tells their browsers so."""
        scope, origin = exchange.scope, exchange.headers.get(b"origin")
        if origin is None:
            return
        if self._rules.names.welcome(origin):
            exchange.extra = ((b"access-control-allow-origin", origin), *_CROSS_ORIGIN)
        elif not heads.same_origin(origin, scope["scheme"], exchange.headers[b"host"]):
            words = "Pages of that origin may not ask this server; see the setting http.origins"
            raise Refused(403, "foreign origin", words)

    async def _page(self, page: Page, exchange: Exchange) -> Said:
        if exchange.scope["method"] not in ("GET", "HEAD"):
            raise Refused(405, "method", "Only GET is answered here", [(b"allow", b"GET, HEAD")])
        if not page.open:
            self._refuse_in_the_clear(exchange.scope)
        if not page.open and not page.is_for(await self._admission.admit(exchange)):
            words = "The token is not for this page; see `box-mcp token create --help`"
            raise Refused(403, "insufficient scope", words, counts=False)
        return await page.answer()

    async def _to_mcp(self, exchange: Exchange) -> ASGIApp:
        scope = exchange.scope
        if scope["method"] not in METHODS:
            allowed = ", ".join(METHODS)
            raise Refused(405, "method", f"MCP takes {allowed}", [(b"allow", allowed.encode())])
        self._refuse_in_the_clear(scope)
        grant = await self._admission.admit(exchange)
        self._refuse_beyond(grant, exchange.headers)
        body = await exchange.read(self._rules.max_body)
        if body is None:
            return _silent
        method = exchange.headers.get(heads.MCP_METHOD)
        exchange.stream = scope["method"] == "GET" or method in STREAMS
        self._refuse_if_draining()  # it may have come to that meanwhile
        scope[GRANT], scope["user"] = grant, _user(grant)
        scope[HOLDING] = partial(self._admission.holding, exchange)
        return partial(self._in_turn, grant.principal, body)

    async def _in_turn(
        self, who: str, body: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        async with self._turns.turn(who):
            if scope["method"] == "POST":
                check(body)
            await self._mcp(scope, receive, send)

    def _refuse_beyond(self, grant: Grant, headers: Mapping[bytes, bytes]) -> None:
        """Tells clients that can get a token for more. Others hear of it by the tool, in words."""
        method, resource = headers.get(heads.MCP_METHOD), self._admission.resource
        if method is None or resource is None:
            return
        name = headers.get(heads.MCP_NAME, b"")
        need = self._needs(method.decode("latin-1"), name.decode("latin-1"))
        if need is not None and not need.met_by(grant):
            wanted = challenge(resource, error="insufficient_scope", scope=str(need))
            words = f"The token is not for this, which takes the scope {need}"
            raise Refused(403, "insufficient scope", words, [wanted], counts=False)

    def _refuse_in_the_clear(self, scope: Scope) -> None:
        """Whose token can be read on the way learns of it at once, not when it was stolen."""
        peer, proxies = _peer(scope), self._rules.proxies
        known = proxies.trusts(peer) or heads.is_here(peer) or scope["scheme"] == "https"
        if self._rules.secret and not known:
            words = "Come by https: what is sent here in the clear can be read on the way"
            raise Refused(403, "in the clear", words, counts=False)

    def _refuse_if_draining(self) -> None:
        if self._draining:
            words = "This server of box_mcp is shutting down; boxes stay as they are"
            head = [retry_after(AGAIN), CLOSE]
            raise Refused(503, "draining", words, head, counts=False)

    def _own_pages(self) -> dict[str, Page]:
        pages = {"/healthz": Page(_alive, open=True), "/readyz": Page(self._ready, open=True)}
        if (resource := self._admission.resource) is not None:

            async def about() -> Said:
                return metadata(resource)

            paths = METADATA, METADATA + MCP_PATH, metadata_path(resource)
            pages |= dict.fromkeys(paths, Page(about, open=True))
        return pages

    async def _ready(self) -> Said:
        if self._draining:
            return Said(503, b"draining\n", headers=[CLOSE])
        if not await self._readiness.ready(self._tasks):
            return Said(503, b"no engine\n")
        return Said(200, b"ok\n")

    async def look_at_streams(self) -> None:
        """Ends those whose tokens are good no more."""
        await self._admission.end_expired(self._exchanges)

    async def _look_after_streams(self) -> None:
        while True:
            await anyio.sleep(LOOK_EVERY)
            await self.look_at_streams()


_CROSS_ORIGIN: Headers = (
    (b"access-control-expose-headers", b"mcp-session-id, www-authenticate, retry-after"),
    (b"vary", b"origin"),
)


def _preflight(headers: Mapping[bytes, bytes]) -> Headers:
    """What a page may send: whatever it wants to; it is looked at as from any other client."""
    wanted = headers.get(b"access-control-request-headers", b"")
    return (
        (b"access-control-allow-methods", ", ".join(METHODS).encode()),
        (b"access-control-allow-headers", wanted),
        (b"access-control-max-age", b"600"),
    )


async def _alive() -> Said:
    return Said(200, b"ok\n")


def _app(said: Said) -> ASGIApp:
    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await said.send(send)

    return answer


async def _silent(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """For who went away before the request was whole."""


def _peer(scope: Scope) -> str:
    """The other end of the connection."""
    return scope["client"][0] if scope.get("client") else heads.UNIX


def _user(grant: Grant) -> AuthenticatedUser:
    """The same, as the SDK binds sessions to whom they are of, and what it has clients keep."""
    scopes = [str(one) for one in grant.scopes]
    return AuthenticatedUser(AccessToken(token="", client_id=grant.principal, scopes=scopes))
