"""What every kind of token is looked at by."""

from __future__ import annotations

from typing import Protocol

from box_mcp.domain.access import Grant


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
