"""Who is let in, and how often: by token, by principal, by address."""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from weakref import WeakValueDictionary

import anyio

from box_mcp.domain.access import OWN, Grant
from box_mcp.domain.rates import Rates
from box_mcp.errors import IdentityUnavailable
from box_mcp.identity.verifying import Identity
from box_mcp.surface.http.answers import Refused, retry_after
from box_mcp.surface.http.bearer import bad_token, bearer
from box_mcp.surface.http.heads import neighbourhood
from box_mcp.surface.http.running import Exchange, too_large

logger = logging.getLogger(__name__)

MAX_OWN = 256  # requests of one principal at once, streams included
OWN_BYTES = 64 * 1024 * 1024  # of their bodies, which are held whole and parsed
ALL_BYTES = 512 * 1024 * 1024  # of everybody's
KNOWN_TOKENS = 4096  # that were good lately
STRANGERS = 8  # of one address whose tokens are looked at at once
AGAIN = 5.0  # s after which to come again, where there is nothing to tell it from


class Admission:
    """Without `identity`, whoever comes is who started the server. Methods raise Refused."""

    def __init__(
        self,
        identity: Identity | None,
        requests_per_minute: int | None = None,
        refusals_per_minute: int | None = None,
        max_body: int = 16 * 1024 * 1024,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.resource = identity.resource if identity else None
        self.identity = identity
        self._requests = Rates(requests_per_minute)
        self._refusals = Rates(refusals_per_minute)
        self._guesses = Rates(refusals_per_minute)
        self._now = now
        self._good: OrderedDict[int, None] = OrderedDict()
        self._turns: WeakValueDictionary[str, anyio.CapacityLimiter] = WeakValueDictionary()
        self._own: Counter[str] = Counter()
        self._own_bytes: Counter[str] = Counter()
        self._all_bytes = 0
        self._max_body = max_body

    async def admit(self, exchange: Exchange) -> Grant:
        """What the request may do, and in whose name; `leave` is to be called at its end."""
        grant = OWN
        if self.identity is not None:
            exchange.token = bearer(exchange.headers, self.resource)
            known = await self.whose(self.identity, exchange.token, exchange.client)
            if known is None:
                raise bad_token(self.resource)
            grant = known
        who, weight = grant.principal, self._weight(exchange)
        if weight > self._max_body:
            raise too_large(self._max_body)
        if self._own[who] >= MAX_OWN or self._own_bytes[who] + weight > self._most(OWN_BYTES):
            raise _too_many("You have too many requests open already; wait for some of them")
        if self._all_bytes + weight > self._most(ALL_BYTES):
            raise _too_many("There are too many requests open already")
        if wait := self._requests.take(who, self._now()):
            raise _too_often("You have made all the requests that you may make in a minute", wait)
        exchange.grant = grant
        self._enter(exchange)
        return grant

    @contextmanager
    def holding(self, exchange: Exchange) -> Generator[None, None, None]:
        """For as long as what was asked is done, whether its client still waits or not."""
        self._enter(exchange)
        try:
            yield
        finally:
            self.leave(exchange)

    def _enter(self, exchange: Exchange) -> None:
        exchange.holders += 1
        if exchange.holders == 1:
            self._add(exchange, 1)

    def leave(self, exchange: Exchange) -> None:
        """The request is answered."""
        if exchange.holders:
            exchange.holders -= 1
            if not exchange.holders:
                self._add(exchange, -1)

    def _add(self, exchange: Exchange, sign: int) -> None:
        assert exchange.grant is not None, "it was admitted"
        who, weight = exchange.grant.principal, sign * self._weight(exchange)
        self._own[who] += sign
        self._own_bytes[who] += weight
        self._all_bytes += weight
        if not self._own[who]:
            del self._own[who], self._own_bytes[who]

    def count(self, refused: Refused, client: str) -> Refused:
        """What is answered to who was `refused`: too many of them, and it is only that."""
        if refused.counts and (wait := self._refusals.take(neighbourhood(client), self._now())):
            return _refused_often(wait)
        return refused

    async def end_expired(self, exchanges: Iterable[Exchange]) -> None:
        """Ends streams whose tokens are good no more."""
        for exchange in [one for one in exchanges if one.stream and one.token]:
            assert self.identity is not None  # else nobody has a token
            try:
                if await self.identity.whose(exchange.token) is None:
                    exchange.end()
            except IdentityUnavailable as error:
                logger.warning("%s", error)
            except Exception:  # others are looked at all the same, and again the next time
                logger.exception("Whether a stream's token is still good could not be found out")

    def _weight(self, exchange: Exchange) -> int:
        """How much its body may hold: who does not say is taken to send all that one may."""
        return self._max_body if exchange.length is None else exchange.length

    def _most(self, budget: int) -> int:
        return max(budget, self._max_body)

    async def whose(self, identity: Identity, token: str, client: str) -> Grant | None:
        """What `token` grants to who comes with it from `client`; None where it is not good.

        Nobody can have others kept out whose tokens were good lately, and no page in a browser can
        have anybody: it brings no tokens, so what it is refused does not count here. Of one address
        few others are looked at at once: else all that come together would be, however few may be.
        """
        if hash(token) in self._good:
            return await self._look(identity, token)
        key = neighbourhood(client)
        turn = self._turns.setdefault(key, anyio.CapacityLimiter(STRANGERS))
        async with turn:
            if wait := self._guesses.wait(key, self._now()):
                raise _refused_often(wait)
            grant = await self._look(identity, token)
            if grant is None:
                self._guesses.take(key, self._now())
            return grant

    async def _look(self, identity: Identity, token: str) -> Grant | None:
        try:
            grant = await identity.whose(token)
        except IdentityUnavailable as error:
            raise unavailable(error) from None
        self._good.pop(hash(token), None)
        if grant is not None:
            self._good[hash(token)] = None
            if len(self._good) > KNOWN_TOKENS:
                self._good.popitem(last=False)
        return grant


def unavailable(error: IdentityUnavailable) -> Refused:
    """What is answered where nobody can tell who comes."""
    logger.warning("%s", error)
    why, words = "identity unavailable", "Whether the token is good can't be told now"
    return Refused(503, why, words, [retry_after(AGAIN)], counts=False)


def _refused_often(wait: float) -> Refused:
    return _too_often("Too many requests from this address were refused", wait)


def _too_many(words: str) -> Refused:
    return Refused(429, "too many at once", words, [retry_after(1)], counts=False)


def _too_often(words: str, wait: float) -> Refused:
    words = f"{words}; the next is free in {max(1, round(wait))} s"
    return Refused(429, "too often", words, [retry_after(wait)], counts=False)
