"""Tokens of an OAuth 2.1 authorization server: this server is a resource of its.

Their claims are signed in them, or the issuer is asked; what they grant is judged the same.
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import quote_plus, urlencode
from weakref import WeakValueDictionary

import anyio
from jwt import PyJWS
from jwt.exceptions import PyJWTError

from box_mcp.domain.access import Grant
from box_mcp.domain.issuers import ORIGIN, Issuer, Untrusted, granted, parse_endpoint, parse_object
from box_mcp.domain.routes import Credential, Upstream, parse_upstream
from box_mcp.errors import InvalidArgument, NoCredential
from box_mcp.gateway.credentials import Secret, Secrets
from box_mcp.identity.asking import Asker
from box_mcp.identity.keys import ALGORITHMS, Key, Keys, parse_keys

logger = logging.getLogger(__name__)

REMEMBERED = 30.0  # s that a token is not looked at again: as long, one that was revoked is good
MAX_REMEMBERED = 1024  # tokens
MAX_KEY_NAME = 512  # characters
TYPES = frozenset(("jwt", "at+jwt", "application/at+jwt"))
"""What an access token may call itself; many do not."""

_SIGNED = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


class Source(Protocol):
    """Knows what an issuer says of a token."""

    signed: bool
    """Whether it is the token itself that says so."""

    async def claims(self, token: str) -> Mapping[str, Any]:
        """What it says; raises Untrusted and IdentityUnavailable."""
        ...


class OAuth:
    """The verifier of an issuer's tokens. It takes each token that nobody else knows for one."""

    def __init__(self, issuer: Issuer, source: Source) -> None:
        self._issuer = issuer
        self._source = source
        self._known: OrderedDict[str, tuple[Grant, float]] = OrderedDict()
        self._asked: OrderedDict[str, str] = OrderedDict()  # tokens, by what grants name them
        self._turns: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<OAuth {self._issuer.url}, {len(self._known)} remembered>"

    def knows(self, token: str) -> bool:  # noqa: ARG002 - any other is not of ours
        """As `Verifier`."""
        return True

    async def verify(self, token: str) -> Grant | None:
        """As `Verifier`."""
        digest = sha256(token.encode()).hexdigest()
        turn = self._turns.setdefault(digest, anyio.Lock())
        async with turn:  # who brings the same token at the same time shares one look at it
            return self._remembered(digest) or await self._look(token, digest)

    async def stands(self, name: str) -> bool:
        """As `Verifier`: the issuer is asked again, unless its word is in the token itself."""
        if not name.startswith(f"{ORIGIN}:") or self._source.signed:
            return True
        token = self._asked.get(name)
        return token is not None and await self.verify(token) is not None

    async def _look(self, token: str, digest: str) -> Grant | None:
        issuer, source = self._issuer, self._source
        name = f"{ORIGIN}:{digest[:16]}"
        try:
            claims = await source.claims(token)
            grant = granted(issuer, claims, time.time(), name, signed=source.signed)
        except Untrusted as error:
            logger.debug("A token is refused, as one of %s: %s", issuer.url, error)
            self._asked.pop(name, None)
            return None
        self._known[digest] = grant, time.monotonic() + REMEMBERED
        if not source.signed:
            self._asked[name] = token
            self._asked.move_to_end(name)
        for kept in (self._known, self._asked):
            while len(kept) > MAX_REMEMBERED:
                kept.popitem(last=False)
        return grant

    def _remembered(self, digest: str) -> Grant | None:
        grant, until = self._known.get(digest, (None, 0.0))
        if grant is None:
            return None
        if time.monotonic() < until and (grant.expires is None or time.time() < grant.expires):
            return grant
        del self._known[digest]
        return None


class Signatures:
    """What tokens say of themselves (RFC 7519), believed by an issuer's keys."""

    signed = True

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._signatures = PyJWS(algorithms=sorted(ALGORITHMS))

    async def claims(self, token: str) -> Mapping[str, Any]:
        """As `Source`."""
        name, algorithm = _head(token)
        for anew in (False, True):  # the key may be a new one
            for key in await self._keys.suiting(name, algorithm, anew=anew):
                with suppress(PyJWTError):
                    return parse_object(self._signatures.decode(token, key.public, [algorithm]))
        raise Untrusted("it is not signed with a key of its issuer's")


def _head(token: str) -> tuple[str | None, str]:
    """The name of a token's key and its algorithm; keys that it brings along are not looked at."""
    form = _SIGNED.fullmatch(token)
    if form is None:
        raise Untrusted("it has not the form of a signed token")
    try:
        head = parse_object(base64.urlsafe_b64decode(form[1] + "=" * (-len(form[1]) % 4)))
    except binascii.Error:
        raise Untrusted("its head is no base64") from None
    name, algorithm, kind = head.get("kid"), head.get("alg"), head.get("typ", "JWT")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise Untrusted("its algorithm is none that is believed")
    if not isinstance(kind, str) or kind.lower() not in TYPES:
        raise Untrusted("it is a token for something else")
    if name is not None and not (isinstance(name, str) and len(name) <= MAX_KEY_NAME):
        raise Untrusted("the name of its key is none")
    if "crit" in head or "b64" in head:
        raise Untrusted("it wants something that is not understood")
    return name, algorithm


class Published:
    """The keys of an issuer at the place that its metadata, or the settings, name."""

    def __init__(self, issuer: Issuer, asker: Asker) -> None:
        self._issuer = issuer
        self._asker = asker

    async def fetch(self) -> Sequence[Key]:
        """The keys as they are now; raises IdentityUnavailable."""
        status, document = await self._asker.ask(self._issuer.jwks or await self._place())
        keys = parse_keys(document)
        if not keys:
            told = "publishes no keys that can be used" if document else f"answered {status}"
            raise self._asker.silent(f"{told} where its keys should be")
        return keys

    async def _place(self) -> str:
        for place in self._issuer.metadata:
            _, said = await self._asker.ask(place)
            if said.get("issuer") == self._issuer.url:
                try:
                    return parse_endpoint(str(said.get("jwks_uri")), "jwks_uri")
                except InvalidArgument as error:
                    raise self._asker.silent(f"does not say where its keys are: {error}") from None
        places = " and ".join(self._issuer.metadata)
        raise self._asker.silent(f"does not call itself so at {places}")


@dataclass(frozen=True)
class _Client:
    """What this server is to an issuer, as `Keyed`."""

    upstream: Upstream
    credential: Credential
    name: str = ORIGIN


class Introspection:
    """What an issuer says of tokens when it is asked (RFC 7662)."""

    signed = False

    def __init__(self, issuer: Issuer, asker: Asker, secrets: Secrets) -> None:
        assert issuer.secret is not None
        self._issuer = issuer
        self._asker = asker
        self._secrets = secrets
        address = issuer.introspection.partition("?")[0]
        self._client = _Client(parse_upstream(address), issuer.secret)

    async def claims(self, token: str) -> Mapping[str, Any]:
        """As `Source`."""
        status, said = await self._answer(token)
        if status != HTTPStatus.OK:
            raise self._asker.silent(f"answered {status} to who asks about a token")
        if said.get("active") is not True:
            raise Untrusted("its issuer says that it is not active")
        return said

    async def _answer(self, token: str) -> tuple[int, Mapping[str, Any]]:
        secret = await self._secret()
        answer = await self._ask(token, secret)
        if answer[0] == HTTPStatus.UNAUTHORIZED:
            fresh = await self._secret(but=secret)
            if fresh != secret:
                return await self._ask(token, fresh)
        return answer

    async def _ask(self, token: str, secret: Secret) -> tuple[int, Mapping[str, Any]]:
        form = urlencode({"token": token, "token_type_hint": "access_token"}).encode()
        proof = Secret(quote_plus(self._issuer.client), quote_plus(secret.value)).basic
        url = self._issuer.introspection
        return await self._asker.ask(url, form, {"Authorization": proof})

    async def _secret(self, but: Secret | None = None) -> Secret:
        try:
            return await self._secrets.of(self._client, but)
        except NoCredential as error:
            logger.warning("%s", error)
            raise self._asker.silent("can't be asked: the client's secret is not there") from None
