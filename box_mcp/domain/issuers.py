"""Whose tokens are believed beside our own, and what they grant; pure.

An issuer is an OAuth 2.1 authorization server. What it says of a token (RFC 9068 or RFC 7662) is
parsed here alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from box_mcp.domain.access import Scope
from box_mcp.domain.routes import Credential

SKEW = 60.0  # s that an issuer's clock may differ from ours
MAX_CLAIM = 1000  # characters of the claim that says who somebody is
ORIGIN = "oauth"
"""What the names of an issuer's people begin with, so that they are nobody's of ours."""


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
