"""Tokens of our own: whoever bears one is the principal that it was made for.

They are kept in a file of their own, as hashes; servers see at once what others change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from box_mcp.domain.access import Grant, Scope
from box_mcp.domain.names import Principal


@dataclass(frozen=True)
class Token:
    """A token without its secret. Times are in seconds since the epoch, `used` is a day (UTC)."""

    id: str
    principal: Principal
    scopes: tuple[Scope, ...]
    created: float
    expires: float | None = None
    revoked: float | None = None
    used: str = ""


class Tokens:
    """All tokens of a state directory; it verifies them, too.

    Every other method raises StoreUnusable when the file can't be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    async def create(
        self, principal: Principal, scopes: Sequence[Scope], expires: float | None
    ) -> tuple[Token, str]:
        """A new token, and its text, which nobody can tell again."""
        raise NotImplementedError

    async def revoke(self, token: str) -> Token | None:
        """Makes the token of this id good for nothing from now on; None when there is none."""
        raise NotImplementedError

    async def list(self) -> list[Token]:
        """All tokens, the newest first; for a while also those that are good no more."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Closes the file."""
        raise NotImplementedError

    def knows(self, token: str) -> bool:
        """As `Verifier`."""
        raise NotImplementedError

    async def verify(self, token: str) -> Grant | None:
        """As `Verifier`."""
        raise NotImplementedError
