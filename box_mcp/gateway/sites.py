"""Exposed ports of a shared server: ``https://<box>-<port>.<domain>/``, by its own address.

Whoever comes must be the box's owner: by a token, or by a browser's cookie. A browser gets that by
a link with a key, which works once and for some minutes. A site, its keys and its cookies are in
this server's memory only, and end together.
"""

from __future__ import annotations

import math
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from hashlib import sha256

import anyio

from box_mcp.domain.access import Grant, Group
from box_mcp.domain.names import BoxId, Principal
from box_mcp.domain.sites import DOOR, Domain, label_of, parse_label
from box_mcp.errors import InvalidArgument, LimitReached
from box_mcp.events import Hook, PortUsed
from box_mcp.gateway.exposures import MAX_PORTS, Door, Exposures, OpenClaim

KEY_LIFE = 600.0  # s in which a link can be followed
COOKIE_LIFE = 4 * 3600.0  # s, and never longer than the token that asked for the link
LOOK_EVERY = 15.0  # s between two looks whether those who are connected still may be
TOLD_EVERY = 60.0  # s between two times that it is told how often a port was asked
MAX_OWN_CONNECTIONS = 512  # to all ports of one principal: the server has some thousands for all
MAX_KEYS = 16  # of one site: links that nobody followed yet, and browsers that are let in, each

NO_DOMAIN = (
    "can't be exposed by this server, which has no name for it: whoever runs it sets "
    "`ports_domain` under [http] in its settings"
)

Standing = Callable[[], Awaitable[bool]]
"""Whether somebody may still come."""


@dataclass(frozen=True)
class Pass:
    """What a key or a cookie is good for: as this grant, until then (s since the epoch)."""

    grant: Grant
    until: float

    @property
    def left(self) -> float:
        """For how many seconds more."""
        return self.until - time.time()


class Site(Door):
    """An exposed port, with the links to it and the browsers that followed one."""

    def __init__(
        self, box: BoxId, port: int, url: str, claim: OpenClaim, principal: Principal
    ) -> None:
        super().__init__(box, port, url, claim)
        self.principal = principal
        self._keys: dict[bytes, Pass] = {}
        self._cookies: dict[bytes, Pass] = {}
        self.visits: dict[anyio.CancelScope, tuple[Grant, Standing]] = {}
        self._asked = 0  # times that were not told yet
        self._token = ""
        self._told = -math.inf

    def link(self, grant: Grant) -> str:
        """Where a browser is let in, once, in the name of who has this grant."""
        key = _given(self._keys, Pass(grant, _until(grant, KEY_LIFE)))
        return f"{self.url}{DOOR.removeprefix('/')}{key}"

    def redeem(self, key: str) -> tuple[str, Pass] | None:
        """A cookie for the key of a link; None where it is none, or none any more."""
        known = self._keys.pop(_digest(key), None)
        if known is None or known.left <= 0:
            return None
        made = Pass(known.grant, _until(known.grant, COOKIE_LIFE))
        return _given(self._cookies, made), made

    def grant(self, cookie: str) -> Grant | None:
        """In whose name a browser with this cookie comes."""
        known = self._cookies.get(_digest(cookie))
        return known.grant if known is not None and known.left > 0 else None

    @contextmanager
    def visit(self, grant: Grant, standing: Standing) -> Generator[None, None, None]:
        """As `connection`, for as long as who has this grant may come; asked now and then."""
        self._asked += 1
        self._token = grant.token
        with self.connection() as scope:
            self.visits[scope] = grant, standing
            try:
                yield
            finally:
                del self.visits[scope]

    def used(self, now: float = math.inf) -> PortUsed | None:
        """What is to be told of its use, if anything: pages may ask for something all the time."""
        if not self._asked or now - self._told < TOLD_EVERY:
            return None
        asked, self._asked, self._told = self._asked, 0, now
        return PortUsed(self.box, self.principal, self.port, self._token, asked)


class Sites(Exposures[Site]):
    """All exposed ports of one server; `domain` is None where nobody said how to call them.

    `hook` hears of their use.
    """

    def __init__(self, domain: Domain | None, hook: Hook = lambda _: None) -> None:
        super().__init__()
        self.domain = domain
        self._hook = hook

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None, None]:
        """Looks after them; at exit all connections end."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._look_after)
            try:
                yield
            finally:
                group.cancel_scope.cancel()
                for site in list(self.doors.values()):
                    self.forget(site)

    @contextmanager
    def visit(self, site: Site, grant: Grant, standing: Standing) -> Generator[None, None, None]:
        """As the site's own, and told."""
        with site.visit(grant, standing):
            self.tell(site, time.monotonic())
            yield

    def tell(self, site: Site, now: float = math.inf) -> None:
        """Tells of its use, where that is due; at the end of time all is."""
        if (used := site.used(now)) is not None:
            self._hook(used)

    def forget(self, door: Site) -> None:
        """As `Exposures`."""
        super().forget(door)
        self.tell(door)

    async def _look_after(self) -> None:
        while True:
            await anyio.sleep(LOOK_EVERY)
            for site in list(self.doors.values()):
                self.tell(site, time.monotonic())
            await self.look()

    async def look(self) -> None:
        """Ends the connections of those who may come no more; of each grant is asked once."""
        asking: dict[Grant, Standing] = {}
        visits: defaultdict[Grant, list[anyio.CancelScope]] = defaultdict(list)
        for site in self.doors.values():
            for scope, (grant, standing) in site.visits.items():
                asking[grant] = standing
                visits[grant].append(scope)
        async with anyio.create_task_group() as group:
            for grant, standing in asking.items():
                group.start_soon(_end_unless, standing, visits[grant])

    def expose(self, claim: OpenClaim, box: BoxId, port: int, principal: Principal) -> Site:
        """Opens a port of a box to its owner; one that is open already stays as it is.

        Raises LimitReached, and InvalidArgument where there is no domain.
        """
        if (known := self.doors.get((box, port))) is not None:
            return known
        domain = self.named()
        if sum(site.principal == principal for site in self.doors.values()) >= MAX_PORTS:
            raise LimitReached("own_ports", MAX_PORTS)
        url = f"{domain.origin(label_of(box, port))}/"
        made = self.doors[box, port] = Site(box, port, url, claim, principal)
        return made

    def connections(self, principal: Principal) -> int:
        """How many there are to all ports of one principal."""
        own = (site for site in self.doors.values() if site.principal == principal)
        return sum(site.connections for site in own)

    def named(self) -> Domain:
        """The domain; raises InvalidArgument where there is none."""
        if self.domain is None:
            raise InvalidArgument("port", NO_DOMAIN)
        return self.domain

    def at(self, label: str) -> Site | None:
        """What is called so, whosoever it is."""
        place = parse_label(label)
        return None if place is None else self.doors.get(place)

    def owned(self, label: str, grant: Grant) -> Site | None:
        """What is called so, and may be used by who has this grant."""
        site = self.at(label)
        allowed = grant.allows(Group.NETWORK, reads=False)
        return site if site is not None and allowed and site.principal == grant.principal else None


async def _end_unless(standing: Standing, visits: Sequence[anyio.CancelScope]) -> None:
    if not await standing():
        for visit in visits:
            visit.cancel()


def _until(grant: Grant, life: float) -> float:
    return min(time.time() + life, grant.expires or float("inf"))


def _given(known: dict[bytes, Pass], made: Pass) -> str:
    """A new secret that is good for `made`; the oldest goes where there are too many."""
    for digest in [digest for digest, one in known.items() if one.left <= 0]:
        del known[digest]
    if len(known) >= MAX_KEYS:
        del known[next(iter(known))]
    secret = secrets.token_urlsafe(32)
    known[_digest(secret)] = made
    return secret


def _digest(secret: str) -> bytes:
    """How secrets are kept: what takes how long to find tells nothing of them."""
    return sha256(secret.encode("utf-8", "surrogatepass")).digest()
