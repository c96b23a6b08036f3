"""What every kind of token is looked at by, and which one looks at which token."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from box_mcp.domain.access import Grant

MAX_TOKEN = 8 * 1024  # characters; longer ones are not looked at

_BEARER = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""RFC 6750, 2.1."""


class Verifier(Protocol):
    """Knows the tokens of one kind."""

    def knows(self, token: str) -> bool:
        """Whether `token` has the form of this kind; tells nothing of whether it is good."""
        ...

    async def verify(self, token: str) -> Grant | None:
        """What the token grants; None for one that is forged, expired, revoked or another's.

        Raises IdentityUnavailable when that can't be told now: its issuer does not answer.
        """
        ...

    async def stands(self, name: str) -> bool:
        """Whether the token that grants name so is still good, as far as can be told without it.

        True for those that are of another kind. Raises IdentityUnavailable.
        """
        ...


@dataclass(frozen=True)
class ProtectedResource:
    """What clients need to know to get a token for this server (RFC 9728).

    `scopes` are those that they should ask `issuer` for; empty where it gives them unasked.
    """

    url: str
    issuer: str
    scopes: Sequence[str] = ()


class Identity:
    """Who is behind a token, of whatever kind. `resource` is None where there is no issuer."""

    def __init__(
        self, verifiers: Sequence[Verifier], resource: ProtectedResource | None = None
    ) -> None:
        self.resource = resource
        self._verifiers = tuple(verifiers)

    async def whose(self, token: str) -> Grant | None:
        """What `token`, as a bearer brings it, grants; None for any that is not good.

        Nobody hears why it is not. Raises IdentityUnavailable when that can't be told now.
        """
        if len(token) > MAX_TOKEN or _BEARER.fullmatch(token) is None:
            return None
        for verifier in self._verifiers:
            if verifier.knows(token):
                return await verifier.verify(token)
        return None

    async def stands(self, grant: Grant) -> bool:
        """Whether what was granted is granted still: whoever asks brings the token no more.

        Raises IdentityUnavailable when that can't be told now.
        """
        if grant.expires is not None and time.time() >= grant.expires:
            return False
        for verifier in self._verifiers:
            if not await verifier.stands(grant.token):
                return False
        return True
