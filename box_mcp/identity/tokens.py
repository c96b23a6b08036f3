"""Tokens of our own: whoever bears one is the principal that it was made for.

They are kept in a file of their own, as hashes. What another process changes there holds for the
next request.
"""

from __future__ import annotations

import builtins
import logging
import re
import secrets
import string
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path

from box_mcp.database import Database
from box_mcp.domain.access import Grant, Scope, known_scopes
from box_mcp.domain.names import Principal
from box_mcp.errors import IdentityUnavailable, StoreUnusable

logger = logging.getLogger(__name__)

FILE = "tokens.db"  # below the state directory
PREFIX = "bxm_"
DAY = 86400.0  # s
KEPT = 90 * DAY  # s that a token is listed which is good no more
READ_WITHIN = 0.1  # s that all requests wait where another process has the file for itself
WRITE_WITHIN = 1.0  # s that one waits until another process has written

_ALPHABET = string.ascii_lowercase + string.digits
_NAME = re.compile(r"[a-z0-9]{8}")
_FORM = re.compile(PREFIX + r"([a-z0-9]{8})_([A-Za-z0-9_-]{43})")
_NONE = sha256(b"").digest()
"""No secret's hash: with it, an id that there is not takes as long as a wrong secret."""

MIGRATIONS = (
    """
    CREATE TABLE tokens (
        id TEXT PRIMARY KEY,
        digest BLOB NOT NULL,
        principal TEXT NOT NULL,
        scopes TEXT NOT NULL,
        created REAL NOT NULL,
        expires REAL,
        revoked REAL,
        used REAL
    )
    """,
)
"""Each takes the schema one version further. ``digest`` is the SHA-256 of a secret of 256 bits."""


@dataclass(frozen=True)
class Token:
    """A token without its secret. Times are in seconds since the epoch.

    `used` is when the day (UTC) of its last use began.
    """

    id: str
    principal: Principal
    scopes: tuple[Scope, ...]
    created: float
    expires: float | None = None
    revoked: float | None = None
    used: float | None = None
    digest: bytes = field(default=b"", repr=False)

    def is_good(self, now: float) -> bool:
        """Whether it opens anything."""
        return self.revoked is None and (self.expires is None or now < self.expires)


class Tokens:
    """All tokens of a state directory; it verifies them, too.

    Methods raise StoreUnusable when the file can't be read or written, but for `verify`.
    """

    def __init__(self, path: Path) -> None:
        self._file = Database(path, MIGRATIONS, patience=WRITE_WITHIN)
        # Reading takes some 20 µs, so it needs no thread, but may not wait for one that writes.
        self._reading = Database(path, MIGRATIONS, patience=READ_WITHIN)
        self._noted: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<Tokens {self._file.path}>"

    async def ready(self) -> None:
        """Opens the file, so that no request waits for that."""
        for file in (self._file, self._reading):
            await file.run(partial(getattr, file, "connection"))

    async def create(
        self, principal: Principal, scopes: Sequence[Scope], expires: float | None
    ) -> tuple[Token, str]:
        """A new token, and its text, which nobody can tell again."""
        name = "".join(secrets.choice(_ALPHABET) for _ in range(8))
        secret = secrets.token_urlsafe(32)
        digest = _digest(secret)
        made = Token(name, principal, tuple(scopes), time.time(), expires, digest=digest)
        await self._file.run(partial(self._add, made))
        return made, f"{PREFIX}{name}_{secret}"

    async def revoke(self, token: str) -> Token | None:
        """Makes the token of this id good for nothing from now on; None when there is none."""
        return await self._file.run(partial(self._revoke, token))

    async def list(self) -> list[Token]:
        """All tokens, the newest first; for a while also those that are good no more."""
        return await self._file.run(partial(self._tokens, self._file))

    async def aclose(self) -> None:
        """Closes the file."""
        await self._reading.aclose()
        await self._file.aclose()

    def knows(self, token: str) -> bool:
        """As `Verifier`."""
        return token.startswith(PREFIX)

    async def verify(self, token: str) -> Grant | None:
        """As `Verifier`."""
        form = _FORM.fullmatch(token)
        if form is None:
            return None
        name, secret = form.groups()
        found = self._read(name)
        right = compare_digest(_digest(secret), found.digest if found else _NONE)
        now = time.time()
        if found is None or not right or not found.is_good(now):
            return None
        await self._note(found, now // DAY * DAY)
        return Grant(found.principal, found.scopes, found.id, found.expires)

    async def stands(self, name: str) -> bool:
        """As `Verifier`."""
        if _NAME.fullmatch(name) is None:
            return True
        found = self._read(name)
        return found is not None and found.is_good(time.time())

    def _read(self, name: str) -> Token | None:
        try:
            return self._reading.run_here(partial(self._find, name))
        except StoreUnusable as error:
            logger.warning("%s", error)
            raise IdentityUnavailable("the file of tokens", "can't be read") from None

    async def _note(self, token: Token, day: float) -> None:
        """Writes down that it was used today, once."""
        if token.used == day or self._noted.get(token.id) == day:
            return
        self._noted[token.id] = day
        try:
            await self._file.run(partial(self._use, token.id, day))
        except StoreUnusable as error:
            logger.warning("That a token was used is not kept: %s", error)

    def _find(self, name: str) -> Token | None:
        self._reading.changed()  # another process may have set the file aside
        found = self._tokens(self._reading, "WHERE id = ?", name)
        return found[0] if found else None

    def _tokens(self, file: Database, where: str = "", *values: str) -> builtins.list[Token]:
        columns = "id, principal, scopes, created, expires, revoked, used, digest"
        query = f"SELECT {columns} FROM tokens {where} ORDER BY created DESC"  # noqa: S608 - ours
        return [_token_from(*row) for row in file.connection.execute(query, values)]

    def _add(self, token: Token) -> None:
        scopes = " ".join(map(str, token.scopes))
        row = (token.id, token.digest, token.principal, scopes, token.created, token.expires)
        with self._file.writing() as database:
            database.execute(
                "DELETE FROM tokens WHERE min(ifnull(revoked, ?1), ifnull(expires, ?1)) < ?2",
                (token.created, token.created - KEPT),
            )
            database.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, NULL, NULL)", row)

    def _revoke(self, name: str) -> Token | None:
        with self._file.writing() as database:
            database.execute(
                "UPDATE tokens SET revoked = ? WHERE id = ? AND revoked IS NULL",
                (time.time(), name),
            )
        found = self._tokens(self._file, "WHERE id = ?", name)
        return found[0] if found else None

    def _use(self, name: str, day: float) -> None:
        with self._file.writing() as database:
            database.execute(
                "UPDATE tokens SET used = ? WHERE id = ? AND ifnull(used, 0) < ?", (day, name, day)
            )


def _digest(secret: str) -> bytes:
    return sha256(secret.encode()).digest()


def _token_from(  # one per column
    name: str,
    principal: str,
    scopes: str,
    created: float,
    expires: float | None,
    revoked: float | None,
    used: float | None,
    digest: bytes,
) -> Token:
    known = known_scopes(scopes.split())
    return Token(name, Principal(principal), known, created, expires, revoked, used, digest)
