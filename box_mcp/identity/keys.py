"""The public keys of an issuer, as it publishes them: fetched when need be, and kept for a while.

Whoever sends tokens can have them fetched no more often than the pauses here allow.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import anyio
from anyio.abc import TaskGroup
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from box_mcp.errors import IdentityUnavailable

if TYPE_CHECKING:
    from jwt.algorithms import AllowedPublicKeys

logger = logging.getLogger(__name__)

FRESH = 600.0  # s that keys are not asked for again; one that was withdrawn is believed as long
LASTING = 86400.0  # s that they are believed at most while the issuer does not answer
PAUSE = 10.0  # s between two looks for a key that nobody knows
RETRY = 2.0  # s between two looks where there are no keys at all
PATIENCE = 5.0  # s that a request waits for keys
MAX_KEYS = 64
MAX_TRIED = 4  # keys that a signature is tried with, where the token does not name one
RSA_BITS = range(2048, 8193)

_RSA = frozenset(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"))
_ALGORITHMS: Mapping[tuple[str, str | None], frozenset[str]] = {
    ("RSA", None): _RSA,
    ("EC", "P-256"): frozenset(("ES256",)),
    ("EC", "P-384"): frozenset(("ES384",)),
    ("EC", "P-521"): frozenset(("ES512",)),
    ("OKP", "Ed25519"): frozenset(("EdDSA",)),
}
"""What signatures a key may make, by its type and curve: none that a public key could make."""

ALGORITHMS = frozenset[str]().union(*_ALGORITHMS.values())


@dataclass(frozen=True)
class Key:
    """A public key, and the algorithms that its issuer may use it with."""

    id: str | None
    algorithms: frozenset[str]
    public: AllowedPublicKeys


def parse_keys(document: Mapping[str, Any]) -> tuple[Key, ...]:
    """Those of a JWK set (RFC 7517) that can be used; others are left out."""
    listed = document.get("keys")
    members = cast("list[object]", listed)[:MAX_KEYS] if isinstance(listed, list) else []
    parsed = (_key(cast("dict[str, Any]", one)) for one in members if isinstance(one, dict))
    return tuple(key for key in parsed if key is not None)


def _key(jwk: dict[str, Any]) -> Key | None:
    """None for one that is no use, or whose private part everybody can read."""
    name, kind, curve = jwk.get("kid"), jwk.get("kty"), jwk.get("crv")
    if not all(text is None or isinstance(text, str) for text in (name, kind, curve)):
        return None
    algorithms = _ALGORITHMS.get((str(kind), curve), frozenset())
    if jwk.get("alg") is not None:
        algorithms &= {jwk["alg"]} if isinstance(jwk["alg"], str) else set()
    if not algorithms or not _verifies(jwk) or "d" in jwk:
        return None
    try:
        public = PyJWK(jwk, min(algorithms)).key
    except (PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, KeyError):
        return None
    if isinstance(public, RSAPublicKey) and public.key_size not in RSA_BITS:
        return None
    return Key(name, algorithms, public)


def _verifies(jwk: Mapping[str, Any]) -> bool:
    """Whether it is meant for that."""
    operations: object = jwk.get("key_ops", ["verify"])
    return (
        jwk.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations
    )


class Keys:
    """The keys of the issuer at `url`, as `fetch` brings them; it runs in `group`.

    `fetch` may raise IdentityUnavailable.
    """

    def __init__(
        self,
        url: str,
        fetch: Callable[[], Awaitable[Sequence[Key]]],
        group: TaskGroup,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._group = group
        self._clock = clock
        self._known: Sequence[Key] = ()
        self._since = self._tried = -math.inf
        self._fetching: anyio.Event | None = None
        self._trouble = IdentityUnavailable(url, "has not told its keys yet")

    def __repr__(self) -> str:
        return f"<Keys {len(self._known)}>"

    async def suiting(
        self, name: str | None, algorithm: str, *, anew: bool = False
    ) -> Sequence[Key]:
        """Those that may have made a signature; none where the issuer has no such key.

        `anew` has them fetched first, unless they just were. Raises IdentityUnavailable where no
        key is known at all.
        """
        if self._age > LASTING:
            await self._renewed(RETRY)
            if self._age > LASTING:
                raise IdentityUnavailable(self._trouble.issuer, self._trouble.detail)
        elif anew:
            await self._renewed(PAUSE)
        elif self._age > FRESH:
            self._renew(PAUSE)
        named = (key for key in self._known if name is None or key.id == name)
        return [key for key in named if algorithm in key.algorithms][:MAX_TRIED]

    @property
    def _age(self) -> float:
        return self._clock() - self._since

    async def _renewed(self, pause: float) -> None:
        """Waits for keys that are under way; has them fetched after `pause` at the earliest."""
        self._renew(pause)
        if self._fetching is not None:
            with anyio.move_on_after(PATIENCE):
                await self._fetching.wait()

    def _renew(self, pause: float) -> None:
        if self._fetching is None and self._clock() - self._tried >= pause:
            self._tried = self._clock()
            self._fetching = anyio.Event()
            self._group.start_soon(self._bring, self._fetching)

    async def _bring(self, over: anyio.Event) -> None:
        try:
            self._known = await self._fetch()
            self._since = self._clock()
        except IdentityUnavailable as error:
            logger.warning("%s", error)
            self._trouble = error
        except Exception:  # whatever it is, the server goes on with the keys that it has
            logger.exception("The keys of %s could not be read", self._trouble.issuer)
        finally:
            self._fetching = None
            over.set()
