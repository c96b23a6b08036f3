"""Exposed ports of boxes over HTTP, under names of their own: who may come in, and how it passes.

It stands behind the door, which has looked at the name only. What is unknown, and what is somebody
else's, is answered alike. A box gets to see neither tokens of ours nor our cookie.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from functools import partial
from http import HTTPStatus

import anyio
import h11
from starlette.types import ASGIApp, Receive, Scope, Send

from box_mcp.capabilities.tunnels import Tunnel, connect
from box_mcp.domain.access import OWN, Grant
from box_mcp.domain.sites import DOOR, Domain, cookies, from_box, to_box
from box_mcp.errors import BoxError, BoxLost, BoxNotFound, IdentityUnavailable
from box_mcp.gateway.admission import Answer
from box_mcp.gateway.exchange import WEBSOCKET, Outcome, end_to_end, tokens
from box_mcp.gateway.exposures import IDLE, MAX_CONNECTIONS, crowded, unreached
from box_mcp.gateway.incoming import HungUp
from box_mcp.gateway.passing import BrokenOff, Headers, Passing, rewritten
from box_mcp.gateway.relay import DEAD, Duplex, relay
from box_mcp.gateway.sites import MAX_OWN_CONNECTIONS, Site, Sites
from box_mcp.identity.tokens import PREFIX
from box_mcp.surface.http.admission import Admission, unavailable
from box_mcp.surface.http.answers import CLOSE, Refused, Said
from box_mcp.surface.http.connections import STREAMED
from box_mcp.surface.http.switching import STREAM

logger = logging.getLogger(__name__)

UNKNOWN = (
    "this address takes a link that works once, which the tool port_expose gives, or a token for "
    "box_mcp. Ask your agent to expose the port again"
)
NOTHING = "no port of a box of yours is exposed here"
FOREIGN = (
    "this request came from a page of another site, and boxes take none from there. Open the "
    "address itself, or call it from a page of the same box"
)
NO_HTTP = "what listens there gave no answer in HTTP"


class Unwelcome(Refused):
    """A request that no box gets to see; told as text, since a person may read it."""

    @classmethod
    def of(cls, refused: Refused) -> Unwelcome:
        """The same, told so."""
        why, words = refused.why, refused.words
        return cls(refused.status, why, words, refused.headers, counts=refused.counts)

    def answer(self) -> Said:
        """In words."""
        return _text(self.status, self.words, *self.headers)


class PortsApp:
    """An ASGI app for the names below the domain of `sites`.

    Where `admission` has no identity, whoever comes is who started the server.
    """

    def __init__(self, sites: Sites, admission: Admission) -> None:
        self._sites = sites
        self._admission = admission

    def under(self, host: str) -> ASGIApp | None:
        """Who answers under that name, if it is below the domain."""
        domain = self._sites.domain
        return self if domain is not None and domain.label(host) is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it; raises Refused, and BrokenOff."""
        domain, request = self._sites.named(), _parsed(scope)
        headers = dict(request.headers)
        label = domain.label(headers[b"host"].decode("latin-1")) or ""
        if (path := request.target.decode("ascii")).startswith(DOOR):
            await self._lead(domain, label, path.removeprefix(DOOR), request, send)
            return
        client = str(scope["client"][0])
        grant, by_token = await self._whose(domain, label, request, client)
        if not by_token and domain.foreign(label, scope["method"], headers):
            raise Unwelcome(403, "page of another site", FOREIGN)
        site = self._sites.owned(label, grant)
        if site is None:
            raise Unwelcome(404, "no port of theirs", NOTHING, counts=False)
        ours = by_token or _bearer(headers).startswith(PREFIX)
        kept = to_box(end_to_end(request), domain.cookie, authorization=not ours)
        stream: Duplex | None = scope.get("extensions", {}).get(STREAM)
        if tokens(request, b"upgrade") != {WEBSOCKET}:
            stream = None
        about = [
            (b"X-Forwarded-Host", headers[b"host"]),
            (b"X-Forwarded-Proto", domain.scheme.encode()),
        ]
        passed = rewritten(request, kept, about, upgrade=stream is not None)
        asking = Asking(site, _Caller(receive, send, domain), stream)
        scope[STREAMED] = True
        with self._sites.visit(site, grant, partial(self._may_stay, grant)):
            await asking.run(passed, self._sites)
            return
        raise BrokenOff

    async def _lead(
        self, domain: Domain, label: str, key: str, request: h11.Request, send: Send
    ) -> None:
        """Gives a browser its cookie for the key of a link, and leads it on to the box."""
        ahead = any(name in (b"purpose", b"sec-purpose") for name, _ in request.headers)
        if request.method != b"GET" or ahead:  # a program that looks what links lead to
            raise Unwelcome(403, "link not followed", "open this in a browser", counts=False)
        site = self._sites.at(label)
        given = site.redeem(key) if site is not None else None
        if given is None or not await self._stands(given[1].grant):
            raise _unknown()
        secure = "; Secure" if domain.secure else ""
        cookie = (
            f"{domain.cookie}={given[0]}; Path=/; Max-Age={given[1].left:.0f}; "
            f"HttpOnly; SameSite=Lax{secure}"
        )
        lead = [
            (b"location", b"/"),
            (b"set-cookie", cookie.encode()),
            (b"referrer-policy", b"no-referrer"),
        ]
        await Said(303, headers=lead).send(send)

    async def _whose(
        self, domain: Domain, label: str, request: h11.Request, client: str
    ) -> tuple[Grant, bool]:
        """In whose name a request is, and whether by a token; raises Refused.

        With our cookie, what a page of the box says as Authorization is for the box.
        """
        if (site := self._sites.at(label)) is not None:
            for value in cookies(request.headers, domain.cookie):
                grant = site.grant(value)
                if grant is not None and await self._stands(grant):
                    return grant, False
        identity = self._admission.identity
        if identity is None:
            return OWN, False
        if not (token := _bearer(dict(request.headers))):
            raise _unknown()
        try:
            grant = await self._admission.whose(identity, token, client)
        except Refused as refused:
            raise Unwelcome.of(refused) from None
        if grant is None:
            raise _unknown()
        return grant, True

    async def _stands(self, grant: Grant) -> bool:
        """Whether the token that a grant came of is still good; raises Refused."""
        identity = self._admission.identity
        try:
            return identity is None or await identity.stands(grant)
        except IdentityUnavailable as error:
            raise Unwelcome.of(unavailable(error)) from None

    async def _may_stay(self, grant: Grant) -> bool:
        """The same of who is here already; where nobody can tell, they stay."""
        try:
            return await self._stands(grant)
        except Refused:
            return True
        except Exception:  # others are looked at all the same, and this one again the next time
            logger.exception("Whether a visitor's token is still good could not be found out")
            return True


class Asking:
    """One request to a site. With `stream`, it may go on as bytes of another protocol."""

    def __init__(self, site: Site, caller: _Caller, stream: Duplex | None) -> None:
        self._site = site
        self._caller = caller
        self._stream = stream

    async def run(self, request: h11.Request, sites: Sites) -> None:
        """Has it answered, by the box or in words; raises BrokenOff."""
        try:
            answer = await self._answer(request, sites)
        except BoxError as error:
            answer = unreached(self._site, error)
            if isinstance(error, BoxNotFound | BoxLost):  # perhaps another server did it
                sites.forget(self._site)
        if answer is not None:
            await self._caller.tell(answer)

    async def _answer(self, request: h11.Request, sites: Sites) -> Answer | None:
        """None where the box has answered."""
        if self._site.connections > MAX_CONNECTIONS:
            return crowded()
        if sites.connections(self._site.principal) > MAX_OWN_CONNECTIONS:
            return crowded(MAX_OWN_CONNECTIONS, "your ports")
        with anyio.move_on_after(IDLE) as silence:

            def touched() -> None:
                silence.deadline = anyio.current_time() + IDLE

            async with (
                self._site.claim() as claim,
                connect(claim.channel, self._site.port) as tunnel,
            ):
                passing = Passing(tunnel, touched)
                outcome = await passing.run(request, self._caller)
                if outcome is Outcome.SWITCHED:
                    silence.deadline = float("inf")
                    return await self._switch(passing, tunnel)
                if outcome is Outcome.DONE:
                    return await self._caller.end()
                await tunnel.abort()
            if outcome is Outcome.UNANSWERED:
                return Answer(HTTPStatus.BAD_GATEWAY, f"port {self._site.port}: {NO_HTTP}")
            raise BrokenOff
        return Answer(HTTPStatus.GATEWAY_TIMEOUT, f"port {self._site.port}: {NO_HTTP} in time")

    async def _switch(self, passing: Passing, tunnel: Tunnel) -> None:
        assert passing.head is not None, "it switched"
        assert self._stream is not None, "nobody else asks for it"
        headers = [
            *self._caller.shown(end_to_end(passing.head)),
            (b"Connection", b"Upgrade"),
            (b"Upgrade", WEBSOCKET),
        ]
        lines = [b"HTTP/1.1 101 Switching Protocols", *(b": ".join(one) for one in headers)]
        try:
            await self._stream.send(b"\r\n".join([*lines, b"", passing.first]))
            whole = await relay(self._stream, tunnel, IDLE)
        except DEAD:
            whole = False
        if not whole:
            await tunnel.abort()
            raise BrokenOff


class _Caller:
    """Who asked, by ASGI."""

    def __init__(self, receive: Receive, send: Send, domain: Domain) -> None:
        self._receive = receive
        self._send = send
        self._domain = domain
        self._begun = False

    async def body(self) -> AsyncGenerator[bytes, None]:
        """What they send."""
        more = True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                raise HungUp
            yield message.get("body", b"")
            more = message.get("more_body", False)

    async def gone(self) -> None:
        """Returns when they have left."""
        while (await self._receive())["type"] == "http.request":
            pass

    def shown(self, headers: Headers) -> Headers:
        """What they get to see of an answer's."""
        return from_box(headers, self._domain.cookie)

    async def begin(self, status: int, headers: Headers) -> None:
        """The head of the box's answer."""
        self._begun = True
        start = {"type": "http.response.start", "status": status, "headers": self.shown(headers)}
        await self._send(start)

    async def say(self, piece: bytes) -> None:
        """More of its body."""
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        """It is whole."""
        await self._send({"type": "http.response.body", "body": b""})

    async def tell(self, answer: Answer) -> None:
        """What is said instead of the box; raises BrokenOff where that has begun already."""
        if self._begun:
            raise BrokenOff
        await _text(answer.status, answer.text, CLOSE).send(self._send)


def _parsed(scope: Scope) -> h11.Request:
    """The request, where it can have one meaning only; raises Refused."""
    target: bytes = scope["raw_path"]
    if query := scope["query_string"]:
        target += b"?" + query
    names = {name for name, _ in scope["headers"]}
    both = {b"content-length", b"transfer-encoding"} <= names
    if both or not target.startswith(b"/"):
        raise Unwelcome(400, "ambiguous", "this request can be understood in two ways")
    try:
        return h11.Request(method=scope["method"], target=target, headers=scope["headers"])
    except h11.LocalProtocolError:
        raise Unwelcome(400, "no request", "this is no request of HTTP") from None


def _bearer(headers: dict[bytes, bytes]) -> str:
    """The token that a request bears, of whomsoever it is."""
    kind, _, token = headers.get(b"authorization", b"").strip().partition(b" ")
    return token.strip().decode("latin-1") if kind.lower() == b"bearer" else ""


def _text(status: int, words: str, *headers: tuple[bytes, bytes]) -> Said:
    return Said(status, f"box_mcp: {words}\n".encode(), headers=headers)


def _unknown() -> Unwelcome:
    return Unwelcome(401, "no pass to a port", UNKNOWN, [(b"www-authenticate", b"Bearer")])
