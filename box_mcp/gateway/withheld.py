"""What must not come back from a server: the secret that it was asked with; pure.

Some repeat what they are asked, such as headers on pages that explain a failure.
"""

from __future__ import annotations

from collections.abc import Iterable

SHORTEST = 8  # characters; what is shorter is found in anything


class Repeated(Exception):
    """A server has repeated a secret."""


class Withheld:
    """Lets an answer pass, piece by piece, but not a byte of a secret."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = [one.encode() for one in secrets if len(one) >= SHORTEST]
        self._waiting = b""

    def check(self, data: bytes) -> None:
        """Raises Repeated where a secret is in it."""
        if any(secret in data for secret in self._secrets):
            raise Repeated

    def let_pass(self, piece: bytes) -> bytes:
        """What can be passed on by now: a secret's beginning waits for more. Raises Repeated."""
        data = self._waiting + piece
        self.check(data)
        held = max((_begun(data, secret) for secret in self._secrets), default=0)
        self._waiting = data[len(data) - held :]
        return data[: len(data) - held]

    def rest(self) -> bytes:
        """What waits for more when no more comes."""
        return self._waiting


def repeats(secrets: Iterable[str], data: bytes) -> bool:
    """Whether one of them is in it."""
    try:
        Withheld(secrets).check(data)
    except Repeated:
        return True
    return False


def _begun(data: bytes, secret: bytes) -> int:
    """How much of a secret stands at the end."""
    start = max(0, len(data) - len(secret) + 1)
    while (start := data.find(secret[:1], start)) >= 0:
        if secret.startswith(data[start:]):
            return len(data) - start
        start += 1
    return 0
