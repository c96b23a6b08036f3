"""Whose tokens are believed beside our own, and what they grant; pure.

An issuer is an OAuth 2.1 authorization server. What it says of a token, signed in the token itself
(RFC 9068) or when it is asked (RFC 7662), is judged here alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

from box_mcp.domain.access import Grant, Scope, foreign, known_scopes
from box_mcp.domain.names import Principal
from box_mcp.domain.routes import Credential, demand_privacy, parse_upstream
from box_mcp.errors import InvalidArgument

SKEW = 60.0  # s that an issuer's clock may differ from ours
MAX_CLAIM = 1000  # characters of the claim that says who somebody is
ORIGIN = "oauth"
"""What the names of an issuer's people begin with, so that they are nobody's of ours."""

VERIFIED = (None, True, "true")
"""What issuers say of an address that they looked at, if anything; some write it as text."""

_SCOPE = re.compile(r"[!#-\[\]-~]+")
"""RFC 6749, 3.3."""

_SERVER, _OPENID = "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"


class Untrusted(Exception):
    """A token grants nothing, for a reason that is for logs alone and quotes nothing of it."""


@dataclass(frozen=True)
class Issuer:
    """An authorization server, by the URL that it calls itself.

    `audience` is what its tokens must be for. It is asked about each at `introspection`, where that
    is set, as `client` with `secret`; else tokens are signed with the keys at `jwks`, or where its
    own metadata say. `subject` is the claim that says who somebody is. `scopes` says what its
    scopes are among ours; those that are called as ours are them anyway. `always` is had by
    everybody.
    """

    url: str
    audience: str
    jwks: str = ""
    introspection: str = ""
    client: str = ""
    secret: Credential | None = None
    subject: str = "sub"
    scopes: Mapping[str, Sequence[Scope]] = field(default_factory=dict[str, Sequence[Scope]])
    always: Sequence[Scope] = ()

    def __post_init__(self) -> None:
        """Raises InvalidArgument for names of scopes that are none: they go into headers."""
        if odd := [name for name in self.scopes if not _SCOPE.fullmatch(name)]:
            raise InvalidArgument(
                "scopes", f"has {odd[0]!r}, which is no word that a token can have"
            )

    @property
    def metadata(self) -> Sequence[str]:
        """Where its metadata may be (RFC 8414, OpenID Connect), in the order in which MCP looks."""
        parts = urlsplit(self.url)
        server, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
        places = (f"{_SERVER}{path}", f"{_OPENID}{path}", f"{path}{_OPENID}")
        return [f"{server}{place}" for place in dict.fromkeys(places)]

    @property
    def requested(self) -> Sequence[str]:
        """The scopes that clients should ask it for; none where everybody has some anyway."""
        return tuple(self.scopes) or (() if self.always else (str(Scope()),))


def parse_endpoint(text: str, name: str, *, query: bool = True) -> str:
    """`text`, if it is a URL that nobody on the way can answer for, or hear secrets at.

    Issuers' own URLs have no `query`. Raises InvalidArgument.
    """
    upstream = parse_upstream(text.partition("?")[0] if query else text, name)
    try:
        demand_privacy(upstream)
    except InvalidArgument:
        detail = f"is {text!r}, which anybody on the way could answer for: use https"
        raise InvalidArgument(name, detail) from None
    return text


def parse_object(text: bytes) -> dict[str, Any]:
    """The JSON object that somebody unknown wrote; raises Untrusted."""
    try:
        parsed: object = json.loads(text.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise Untrusted("it is no JSON") from None
    if not isinstance(parsed, dict):
        raise Untrusted("it is no JSON object")
    return cast("dict[str, Any]", parsed)


def granted(
    issuer: Issuer, claims: Mapping[str, Any], now: float, name: str, *, signed: bool
) -> Grant:
    """What `issuer` grants by a token, called `name`, of which it says `claims`.

    Those that are `signed` in the token itself must say who issued it, and until when it is good;
    for others an issuer was asked by its own address. Raises Untrusted.
    """
    source = claims.get("iss")
    if source != issuer.url and (signed or source is not None):
        raise Untrusted("it is another issuer's")
    if issuer.audience not in _texts(claims.get("aud")):
        raise Untrusted("its audience is not this server")
    if claims.get("cnf") is not None:
        raise Untrusted("whoever bears it would have to prove that a key is theirs")
    expires = _moment(claims, "exp")
    if expires is None and signed:
        raise Untrusted("it does not say until when it is good")
    if expires is not None and now >= expires + SKEW:
        raise Untrusted("it has expired")
    if any(now < (_moment(claims, begin) or 0.0) - SKEW for begin in ("nbf", "iat")):
        raise Untrusted("it is not good yet")
    until = None if expires is None else expires + SKEW
    return Grant(_principal(issuer, claims), _scopes(issuer, claims), name, until)


def _principal(issuer: Issuer, claims: Mapping[str, Any]) -> Principal:
    said = claims.get(issuer.subject)
    if not isinstance(said, str) or not 0 < len(said) <= MAX_CLAIM:
        raise Untrusted(f"its claim {issuer.subject!r} names nobody")
    if issuer.subject == "email" and claims.get("email_verified") not in VERIFIED:
        raise Untrusted("nobody looked whether its email address is its subject's")
    return foreign(ORIGIN, said)


def _scopes(issuer: Issuer, claims: Mapping[str, Any]) -> tuple[Scope, ...]:
    """Issuers have them in `scope` (RFC 9068) or `scp`, as words in a text or as a list."""
    words = [
        word
        for claim in ("scope", "scp")
        for text in _texts(claims.get(claim))
        for word in text.split()
    ]

    def theirs() -> Iterator[Scope]:
        for word in words:
            yield from issuer.scopes.get(word, ())
        yield from issuer.always

    return tuple(dict.fromkeys((*known_scopes(words), *theirs())))


def _texts(value: object) -> Sequence[str]:
    """A claim's texts, of which there may be one or a list."""
    several = cast("list[object]", value) if isinstance(value, list) else [value]
    return [text for text in several if isinstance(text, str)]


def _moment(claims: Mapping[str, Any], name: str) -> float | None:
    """A claim's time in seconds since the epoch."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Untrusted(f"its claim {name!r} is no time")
    try:
        moment = float(value)
    except OverflowError:
        moment = math.inf
    if not math.isfinite(moment):
        raise Untrusted(f"its claim {name!r} is no time")
    return moment


def _refuse(constant: str) -> object:
    raise ValueError(constant)
