"""What must outlive a server process: boxes, and which box is a conversation's own.

One SQLite file in WAL mode, shared safely by several server processes. Every method runs in one
worker thread; a cancelled caller's change may or may not be kept.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
from anyio import to_thread

from box_mcp.domain.box import Box, BoxSpec, State
from box_mcp.domain.names import BoxId, BoxName, Principal

T = TypeVar("T")

SCHEMA_VERSION = 1
LOCK_TIMEOUT = 10.0  # s that a write waits for another server's
SCHEMA = """
CREATE TABLE IF NOT EXISTS boxes (
    id TEXT PRIMARY KEY,
    principal TEXT NOT NULL,
    name TEXT,
    state TEXT NOT NULL,
    spec TEXT NOT NULL,
    created REAL NOT NULL,
    used REAL NOT NULL,
    since REAL NOT NULL,
    reason TEXT NOT NULL,
    UNIQUE (principal, name)
);
CREATE TABLE IF NOT EXISTS sessions (
    principal TEXT NOT NULL,
    conversation TEXT NOT NULL,
    box TEXT NOT NULL,
    PRIMARY KEY (principal, conversation)
);
"""


class NameInUse(Exception):
    """The principal has a box of this name already."""


class Store:
    """Boxes that belong to somebody, and sessions. Spares are never stored."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database: sqlite3.Connection | None = None
        self._thread = anyio.CapacityLimiter(1)

    def __repr__(self) -> str:
        return f"<Store {self._path}>"

    async def boxes(self) -> list[Box]:
        """Every stored box."""
        return await self._run(self._boxes)

    async def box(self, box: BoxId) -> Box | None:
        """One stored box as it is now."""
        found = await self._run(partial(self._boxes, "WHERE id = ?", box))
        return found[0] if found else None

    async def save(self, box: Box) -> None:
        """Keeps `box` as it is; raises NameInUse when its principal has another of its name."""
        await self._run(partial(self._save, box))

    async def remove(self, box: BoxId) -> None:
        """Forgets a box and that it was anybody's own."""
        await self._run(partial(self._remove, box))

    async def own_box(self, principal: Principal, conversation: str) -> BoxId | None:
        """The box that is this conversation's own."""
        return await self._run(partial(self._own_box, principal, conversation))

    async def set_own_box(self, principal: Principal, conversation: str, box: BoxId) -> None:
        """Makes `box` this conversation's own."""
        await self._run(partial(self._set_own_box, principal, conversation, box))

    async def aclose(self) -> None:
        """Closes the file."""
        if self._database is not None:
            await to_thread.run_sync(self._database.close, limiter=self._thread)
            self._database = None

    async def _run(self, function: Callable[[], T]) -> T:
        return await to_thread.run_sync(function, limiter=self._thread)

    @property
    def _db(self) -> sqlite3.Connection:
        if self._database is None:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            database = sqlite3.connect(self._path, timeout=LOCK_TIMEOUT, check_same_thread=False)
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.executescript(SCHEMA)
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            self._database = database
        return self._database

    def _boxes(self, where: str = "", *values: str) -> list[Box]:
        columns = "id, principal, name, state, spec, created, used, since, reason"
        query = f"SELECT {columns} FROM boxes {where}"  # noqa: S608 - both are ours
        rows = self._db.execute(query, values)
        return [_box_from(*row) for row in rows]

    def _save(self, box: Box) -> None:
        row = (
            box.id,
            box.principal,
            box.name,
            box.state.value,
            json.dumps(spec_record(box.spec)),
            box.created,
            box.used,
            box.since,
            box.reason,
        )
        try:
            with self._db as database:
                database.execute(
                    "INSERT INTO boxes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
                    " ON CONFLICT (id) DO UPDATE SET state = excluded.state,"
                    " used = max(used, excluded.used), since = excluded.since,"
                    " reason = excluded.reason",
                    row,
                )
        except sqlite3.IntegrityError as error:
            raise NameInUse(box.name) from error

    def _remove(self, box: BoxId) -> None:
        with self._db as database:
            database.execute("DELETE FROM boxes WHERE id = ?", (box,))
            database.execute("DELETE FROM sessions WHERE box = ?", (box,))

    def _own_box(self, principal: Principal, conversation: str) -> BoxId | None:
        row = self._db.execute(
            "SELECT box FROM sessions WHERE principal = ? AND conversation = ?",
            (principal, conversation),
        ).fetchone()
        return BoxId(row[0]) if row else None

    def _set_own_box(self, principal: Principal, conversation: str, box: BoxId) -> None:
        with self._db as database:
            database.execute(
                "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?)", (principal, conversation, box)
            )


def spec_record(spec: BoxSpec) -> dict[str, object]:
    """`spec` as plain values."""
    return {**vars(spec), "env": dict(spec.env)}


def _box_from(  # one per column
    box: str,
    principal: str,
    name: str | None,
    state: str,
    spec: str,
    created: float,
    used: float,
    since: float,
    reason: str,
) -> Box:
    return Box(
        id=BoxId(box),
        spec=BoxSpec(**json.loads(spec)),
        created=created,
        state=State(state),
        principal=Principal(principal),
        name=BoxName(name) if name is not None else None,
        used=used,
        since=since,
        reason=reason,
    )
