"""What must outlive a server process: boxes, and which box is a conversation's own.

One SQLite file in WAL mode, shared safely by several server processes. Every method runs in one
worker thread; a cancelled caller's change may or may not be kept. Every method raises
StoreUnusable when the file can't be read or written.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
from anyio import to_thread

from box_mcp.domain.box import Box, BoxSpec, State
from box_mcp.domain.names import BoxId, BoxName, Principal
from box_mcp.errors import StoreUnusable

T = TypeVar("T")

SCHEMA_VERSION = 1
LOCK_TIMEOUT = 10.0  # s that a write waits for another server's
LOCK_RETRY = 0.01  # s between attempts where SQLite itself does not wait
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

    async def add(self, box: Box) -> None:
        """Keeps a new box; raises NameInUse when its principal has another of its name."""
        await self._run(partial(self._add, box))

    async def save(self, box: Box) -> bool:
        """Keeps how `box` is, unless something newer is known; False when it is not stored.

        A box that another server removed thus stays removed, and its time of use only grows.
        """
        return await self._run(partial(self._save, box))

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
        return await to_thread.run_sync(self._guarded, function, limiter=self._thread)

    def _guarded(self, function: Callable[[], T]) -> T:
        try:
            return function()
        except (sqlite3.Error, OSError) as error:
            raise StoreUnusable(self._path, str(error)) from error

    @property
    def _db(self) -> sqlite3.Connection:
        if self._database is None:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._database = self._opened()
        return self._database

    def _opened(self) -> sqlite3.Connection:
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            database = sqlite3.connect(self._path, timeout=LOCK_TIMEOUT, check_same_thread=False)
            try:
                self._prepare(database)
            except BaseException as error:
                database.close()
                # SQLite does not wait for its turn to switch a new file to WAL.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(LOCK_RETRY)
            else:
                return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StoreUnusable(
                self._path,
                f"a newer box_mcp wrote it (schema {version}; this one knows {SCHEMA_VERSION})",
            )
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.executescript(SCHEMA)
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _boxes(self, where: str = "", *values: str) -> list[Box]:
        columns = "id, principal, name, state, spec, created, used, since, reason"
        query = f"SELECT {columns} FROM boxes {where}"  # noqa: S608 - both are ours
        rows = self._db.execute(query, values)
        return [_box_from(*row) for row in rows]

    def _add(self, box: Box) -> None:
        row = (
            box.id,
            box.principal,
            box.name,
            box.state.value,
            json.dumps(box.spec.record()),
            box.created,
            box.used,
            box.since,
            box.reason,
        )
        try:
            with self._db as database:
                database.execute("INSERT INTO boxes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        except sqlite3.IntegrityError as error:
            raise NameInUse(box.name) from error

    def _save(self, box: Box) -> bool:
        with self._db as database:
            database.execute(
                "UPDATE boxes SET state = ?, since = ?, reason = ? WHERE id = ? AND since <= ?",
                (box.state.value, box.since, box.reason, box.id, box.since),
            )
            used = database.execute(
                "UPDATE boxes SET used = max(used, ?) WHERE id = ?", (box.used, box.id)
            )
        return used.rowcount > 0

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
        spec=BoxSpec.of(json.loads(spec)),
        created=created,
        state=State(state),
        principal=Principal(principal),
        name=BoxName(name) if name is not None else None,
        used=used,
        since=since,
        reason=reason,
    )
