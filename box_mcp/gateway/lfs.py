"""Objects of LFS, moved for boxes: what servers said of them stays here, and boxes get addresses.

Where a server sends us for an object is its to say, but within limits: to itself, or by https to
what is public. So nobody who writes a server's answers reaches the user's own network by us.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import anyio

from box_mcp.domain.gitconfig import ROUTES
from box_mcp.domain.lfs import Action, Batch, Nonsense, Place, place, rewritten
from box_mcp.domain.network import Address, Mode, Network, Surroundings
from box_mcp.domain.routes import ACTIONS, Forbidden, Route, bracketed, demand
from box_mcp.gateway.credentials import Secret
from box_mcp.gateway.dialling import LookUp, Resolver, own_addresses
from box_mcp.gateway.turns import Refused
from box_mcp.gateway.upstream import Answer, Line, Outgoing, Unanswered

MAX_ACTIONS = 1000  # of one box; git-lfs asks for 200 at once, at most
MAX_TRIED = 4  # addresses of one server
MAX_MOVES = 3  # redirects in a row
LOOK_UP = 10.0  # s
PUBLIC = Network(Mode.FULL)


@dataclass(frozen=True)
class _Kept:
    box: str
    route: str
    action: Action


class Actions:
    """What servers said of objects, and the addresses that stand for it in boxes."""

    def __init__(
        self, look_up: LookUp | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.look_up = look_up or Resolver().look_up
        self._clock = clock
        self._kept: dict[str, _Kept] = {}

    def __repr__(self) -> str:
        return f"<Actions {len(self._kept)}>"

    def rewritten(self, box: str, route: Route, batch: Batch, reply: bytes) -> bytes:
        """A server's answer as the box gets it; raises Unanswered where it is none."""
        now = self._clock()

        def keep(action: Action) -> str:
            name = secrets.token_urlsafe(24)
            place(route.upstream, action.url)  # which raises Nonsense
            self._kept[name] = _Kept(box, route.name, action)
            return f"{ROUTES}{route.name}{ACTIONS}{name}"

        self._forget(box, now)
        try:
            return rewritten(batch, reply, now, keep)
        except Nonsense:
            raise Unanswered("it speaks of LFS as nobody else does") from None

    def find(self, box: str, route: Route, method: str, target: str) -> Action:
        """What an address stands for; raises Forbidden and Refused."""
        kept = self._kept.get(target.removeprefix(ACTIONS))
        if kept is None or (kept.box, kept.route) != (box, route.name):
            raise Refused(404, "no object is known by this address, or no more: ask for it again")
        if kept.action.until < self._clock():
            raise Refused(410, "the time to move this object is over: ask for it again")
        if kept.action.method != method:
            raise Forbidden(f"{method} is not what this address is for")
        demand(route, kept.action.access)
        return kept.action

    def _forget(self, box: str, now: float) -> None:
        """What is over, and of this box's the oldest where there is too much."""
        over = [name for name, kept in self._kept.items() if kept.action.until < now]
        ours = [name for name, kept in self._kept.items() if kept.box == box]
        for name in {*over, *ours[:-MAX_ACTIONS]}:
            del self._kept[name]


class Mover:
    """Moves one object; `secret` is what the upstream is told where it said nothing else."""

    def __init__(
        self,
        route: Route,
        action: Action,
        secret: Callable[[], Awaitable[Secret]],
        line: Line,
        look_up: LookUp,
    ) -> None:
        self._route = route
        self._action = action
        self._secret = secret
        self._line = line
        self._look_up = look_up

    @asynccontextmanager
    async def answer(
        self, headers: Mapping[str, str], body: AsyncIterable[bytes] | None
    ) -> AsyncGenerator[Answer, None]:
        """What the server says that moves it; raises Forbidden, Refused, Unanswered."""
        ours = {name.lower() for name in self._action.headers}
        passed = {name: value for name, value in headers.items() if name.lower() not in ours}
        there = self._place(self._action.url)
        for _ in range(1 + MAX_MOVES):
            answer = await self._ask(there, passed | await self._own_headers(there), body)
            async with aclosing(answer):
                if answer.moved and body is None:
                    there = self._place(answer.headers.get("Location", ""), there.url)
                    continue
                if not answer.succeeded:
                    raise self._failed(there, answer)
                yield answer
                return
        raise Refused(502, "the server of the object sends us around in circles")

    def _place(self, address: str, base: str = "") -> Place:
        try:
            return place(self._route.upstream, address, base)
        except Nonsense:
            raise Unanswered("it says that an object is where nothing can be") from None

    async def _own_headers(self, there: Place) -> dict[str, str]:
        """What goes with a request, and nowhere else than where the server said."""
        first = self._place(self._action.url)
        same = (first.scheme, first.host, first.port) == (there.scheme, there.host, there.port)
        headers = dict(self._action.headers) if same else {}
        if same and there.own and not self._action.signed:
            headers["Authorization"] = (await self._secret()).basic
        return headers

    async def _ask(
        self, there: Place, headers: Mapping[str, str], body: AsyncIterable[bytes] | None
    ) -> Answer:
        proofs = [value for name, value in headers.items() if name.lower() == "authorization"]
        secrets = [word for proof in proofs for word in proof.split()[-1:]]
        outgoing = Outgoing(self._action.method, there.url, headers, body, secrets)
        if there.own:
            return await self._line.ask(outgoing)
        addresses = await self._addresses(there)
        if _by_proxy(there):
            return await self._line.ask(outgoing)
        failure = Unanswered(f"{there.host} has no address", sent=False)
        for address in addresses[:MAX_TRIED]:
            try:
                return await self._line.ask(_pinned(outgoing, there, address))
            except Unanswered as error:
                if error.sent:
                    raise
                failure = error
        raise failure

    async def _addresses(self, there: Place) -> Sequence[Address]:
        """Those of a server that is no upstream; raises Forbidden where one may not go there."""
        if there.scheme != "https":
            raise Forbidden(f"an object is at {there.host}, but not by https")
        found: Sequence[Address] = []
        if isinstance(there.host, str):
            with suppress(OSError), anyio.move_on_after(LOOK_UP):
                found = await self._look_up(there.host)
        else:
            found = [there.host]
        here = Surroundings(own=own_addresses(found))
        verdict = PUBLIC.permits(there.host, there.port, found, here)
        if found and not verdict.addresses:
            raise Forbidden(f"an object is at {there.host}, which is not public")
        return verdict.addresses

    def _failed(self, there: Place, answer: Answer) -> Refused:
        """In words of our own: the server's may repeat what is secret."""
        status = 403 if answer.unaccepted else max(answer.status, 400)
        return Refused(status, f"the object is not moved: {there.host} answered {answer.status}")


def _by_proxy(there: Place) -> bool:
    """Whether the environment says that servers are reached by another, which knows their names."""
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    host = str(there.host)
    return bool(proxies.get(there.scheme) or proxies.get("all")) and not proxy_bypass(host)


def _pinned(outgoing: Outgoing, there: Place, address: Address) -> Outgoing:
    """The same, sent to an address of the server's: what was judged is what is connected to."""
    parts = urlsplit(outgoing.url)
    url = parts._replace(netloc=f"{bracketed(str(address))}:{there.port}").geturl()
    headers = {**outgoing.headers, "Host": parts.netloc}
    return replace(outgoing, url=url, headers=headers, name=str(there.host))
