"""What must outlive a server process: boxes, and which box is a conversation's own.

One SQLite file, shared safely by several server processes. Every method runs in one worker thread;
a cancelled caller's change may or may not be kept. Every method raises StoreUnusable when the file
can't be read or written. A damaged file is set aside, and a new one made from what `records.py`
keeps of each box.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

from box_mcp.database import Database
from box_mcp.domain.box import Box, BoxSpec, State, Terms
from box_mcp.domain.limits import ABOUT_TO_RUN, Room, breached_by_new, breached_by_waking
from box_mcp.domain.names import BoxId, BoxName, Principal
from box_mcp.records import Record, Records

T = TypeVar("T")

KNOWN = 512  # specs and terms, parsed once: all are read often, and most boxes have the same

MIGRATIONS = (
    """
    CREATE TABLE boxes (
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
    CREATE TABLE sessions (
        principal TEXT NOT NULL,
        conversation TEXT NOT NULL,
        box TEXT NOT NULL,
        PRIMARY KEY (principal, conversation)
    );
    """,
    # Spares have a row, too, and no principal; `terms` is what a box's maker wanted for it.
    """
    CREATE TABLE new_boxes (
        id TEXT PRIMARY KEY,
        principal TEXT,
        name TEXT,
        state TEXT NOT NULL,
        spec TEXT NOT NULL,
        created REAL NOT NULL,
        used REAL NOT NULL,
        since REAL NOT NULL,
        reason TEXT NOT NULL,
        terms TEXT NOT NULL,
        UNIQUE (principal, name)
    );
    INSERT INTO new_boxes
        SELECT id, principal, name, state, spec, created, used, since, reason, '{}' FROM boxes;
    DROP TABLE boxes;
    ALTER TABLE new_boxes RENAME TO boxes;
    """,
)
"""Each takes the schema one version further; ``user_version`` is how many were run."""


class NameInUse(Exception):
    """The principal has a box of this name already."""


class Full(Exception):
    """One more would break `limit`, a field's name of Room."""

    def __init__(self, limit: str) -> None:
        super().__init__(limit)
        self.limit = limit


class Store:
    """Boxes, spares included, and sessions."""

    def __init__(self, path: Path) -> None:
        self.file = Database(path, MIGRATIONS, self._rebuild)
        self._records = Records(path.parent / "records")

    def __repr__(self) -> str:
        return f"<Store {self.file.path}>"

    async def boxes(self) -> list[Box]:
        """Every stored box."""
        return await self._run(self._boxes)

    async def box(self, box: BoxId) -> Box | None:
        """One stored box as it is now."""
        found = await self._run(partial(self._boxes, "WHERE id = ?", box))
        return found[0] if found else None

    async def own(self, box: BoxId, principal: Principal) -> Box | None:
        """The same, if it is this principal's."""
        where = "WHERE id = ? AND principal = ?"
        found = await self._run(partial(self._boxes, where, box, principal))
        return found[0] if found else None

    async def named(self, name: BoxName, principal: Principal) -> Box | None:
        """The one that this principal calls so."""
        where = "WHERE principal = ? AND name = ?"
        found = await self._run(partial(self._boxes, where, principal, name))
        return found[0] if found else None

    async def add(self, box: Box, room: Room) -> None:
        """Keeps a new box; raises NameInUse, and Full when it would be one too many."""
        await self._run(partial(self._add, box, room))

    async def assign(self, box: Box, room: Room) -> bool:
        """A stored spare becomes somebody's; False when it is gone or another server was faster.

        Raises as `add` does.
        """
        return await self._run(partial(self._assign, box, room))

    async def reserve(self, box: Box, room: Room) -> bool:
        """Writes down that the box is about to run, unless that would break one of the limits."""
        return await self._run(partial(self._reserve, box, room))

    async def changed(self) -> bool:
        """Whether another process wrote anything since this was asked last."""
        return await self._run(self.file.changed)

    async def save(self, box: Box) -> bool:
        """Keeps how `box` is, unless something newer is known; False when it is not stored.

        A box that another server removed thus stays removed, and its time of use only grows.
        """
        return await self._run(partial(self._save, box))

    async def set_terms(self, box: Box) -> bool:
        """Keeps what is wanted for `box` from now on; False when something newer is known of it."""
        return await self._run(partial(self._set_terms, box))

    async def remove(self, box: BoxId) -> None:
        """Forgets a box and that it was anybody's own."""
        await self._run(partial(self._remove, box))

    async def disown(self, box: BoxId) -> None:
        """Makes a box nobody's, as if it had never been assigned."""
        await self._run(partial(self._disown, box))

    async def own_box(self, principal: Principal, conversation: str) -> BoxId | None:
        """The box that is this conversation's own."""
        return await self._run(partial(self._own_box, principal, conversation))

    async def set_own_box(self, principal: Principal, conversation: str, box: BoxId) -> None:
        """Makes `box` this conversation's own."""
        await self._run(partial(self._set_own_box, principal, conversation, box))

    async def aclose(self) -> None:
        """Closes the file."""
        await self.file.aclose()

    async def _run(self, function: Callable[[], T]) -> T:
        return await self.file.run(function)

    def _rebuild(self, database: sqlite3.Connection) -> None:
        """What is known of boxes from before this file."""
        for record in self._records.read_all():
            database.execute(INSERT_BOX, _row(record.box))
            for conversation in record.conversations:
                database.execute(
                    "INSERT OR IGNORE INTO sessions VALUES (?, ?, ?)",
                    (record.box.principal, conversation, record.box.id),
                )

    def _boxes(self, where: str = "", *values: str) -> list[Box]:
        columns = "id, principal, name, state, spec, created, used, since, reason, terms"
        query = f"SELECT {columns} FROM boxes {where}"  # noqa: S608 - both are ours
        # Row by row, each would wait for the event loop's thread to let go of the interpreter.
        rows = self.file.connection.execute(query, values).fetchall()
        return [_box_from(*row) for row in rows]

    def _add(self, box: Box, room: Room) -> None:
        with self.file.writing() as database:
            if box.principal is not None:
                self._refuse(box, room)
            database.execute(INSERT_BOX, _row(box))
        if box.principal is not None:
            self._records.write(Record(box))

    def _assign(self, box: Box, room: Room) -> bool:
        with self.file.writing() as database:
            self._refuse(box, room)
            assigned = database.execute(
                "UPDATE boxes SET principal = ?, name = ?, terms = ?, created = ?, used = ? "
                "WHERE id = ? AND principal IS NULL",
                (
                    box.principal,
                    box.name,
                    _terms(box),
                    box.created,
                    box.used,
                    box.id,
                ),
            )
        if assigned.rowcount:
            self._records.write(Record(box))
        return assigned.rowcount > 0

    def _refuse(self, box: Box, room: Room) -> None:
        boxes = self._boxes()
        if limit := breached_by_new(boxes, box, room):
            raise Full(limit)
        if box.name is not None and any(
            (one.principal, one.name) == (box.principal, box.name) for one in boxes
        ):
            raise NameInUse(box.name)

    def _reserve(self, box: Box, room: Room) -> bool:
        with self.file.writing() as database:
            if breached_by_waking(self._boxes(), box, room):
                return False
            database.execute("UPDATE boxes SET reason = ? WHERE id = ?", (ABOUT_TO_RUN, box.id))
        return True

    def _set_terms(self, box: Box) -> bool:
        with self.file.connection as database:
            changed = database.execute(
                "UPDATE boxes SET terms = ?, since = ? "
                "WHERE id = ? AND principal = ? AND since < ?",
                (_terms(box), box.since, box.id, box.principal, box.since),
            )
        if changed.rowcount:
            self._records.change(box)
        return changed.rowcount > 0

    def _save(self, box: Box) -> bool:
        with self.file.connection as database:
            database.execute(
                "UPDATE boxes SET state = ?, since = ?, reason = ? WHERE id = ? AND since <= ?",
                (box.state.value, box.since, box.reason, box.id, box.since),
            )
            used = database.execute(
                "UPDATE boxes SET used = max(used, ?) WHERE id = ?", (box.used, box.id)
            )
        return used.rowcount > 0

    def _remove(self, box: BoxId) -> None:
        with self.file.connection as database:
            database.execute("DELETE FROM boxes WHERE id = ?", (box,))
            database.execute("DELETE FROM sessions WHERE box = ?", (box,))
        self._records.remove(box)

    def _disown(self, box: BoxId) -> None:
        with self.file.connection as database:
            database.execute("UPDATE boxes SET principal = NULL, name = NULL WHERE id = ?", (box,))
            database.execute("DELETE FROM sessions WHERE box = ?", (box,))
        self._records.remove(box)

    def _own_box(self, principal: Principal, conversation: str) -> BoxId | None:
        row = self.file.connection.execute(
            "SELECT box FROM sessions WHERE principal = ? AND conversation = ?",
            (principal, conversation),
        ).fetchone()
        return BoxId(row[0]) if row else None

    def _set_own_box(self, principal: Principal, conversation: str, box: BoxId) -> None:
        with self.file.connection as database:
            database.execute(
                "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?)", (principal, conversation, box)
            )
        self._records.add_conversation(box, conversation)


INSERT_BOX = "INSERT INTO boxes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


def _terms(box: Box) -> str:
    return json.dumps(box.terms.record())


def _row(box: Box) -> tuple[object, ...]:
    return (
        box.id,
        box.principal,
        box.name,
        box.state.value,
        json.dumps(box.spec.record()),
        box.created,
        box.used,
        box.since,
        box.reason,
        _terms(box),
    )


def _box_from(  # one per column
    box: str,
    principal: str | None,
    name: str | None,
    state: str,
    spec: str,
    created: float,
    used: float,
    since: float,
    reason: str,
    terms: str,
) -> Box:
    return Box(
        id=BoxId(box),
        spec=_spec_from(spec),
        created=created,
        state=State(state),
        principal=Principal(principal) if principal is not None else None,
        name=BoxName(name) if name is not None else None,
        used=used,
        since=since,
        reason=reason,
        terms=_terms_from(terms),
    )


@lru_cache(maxsize=KNOWN)
def _spec_from(text: str) -> BoxSpec:
    return BoxSpec.of(json.loads(text))


@lru_cache(maxsize=KNOWN)
def _terms_from(text: str) -> Terms:
    return Terms.of(json.loads(text))
