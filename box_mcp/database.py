"""A SQLite file in WAL mode, shared safely by several server processes.

A damaged file is set aside, and a new one made, which only its owner may read.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import anyio
from anyio import to_thread

from box_mcp.errors import StoreUnusable
from box_mcp.tickets import Ticket

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOCK_TIMEOUT = 10.0  # s that a write waits for another server's
LOCK_RETRY = 0.01  # s between attempts where SQLite itself does not wait


class Database:
    """One file. Whatever is `run` with it is run in one worker thread.

    `migrations` each take the schema one version further; ``user_version`` is how many were run.
    `begin` fills a new file. `patience` is how long one waits for another server, in seconds.
    """

    def __init__(
        self,
        path: Path,
        migrations: Sequence[str],
        begin: Callable[[sqlite3.Connection], None] = lambda _: None,
        *,
        patience: float = LOCK_TIMEOUT,
    ) -> None:
        self.path = path
        self._migrations = migrations
        self._begin = begin
        self._patience = patience
        self._database: sqlite3.Connection | None = None
        self._thread = anyio.CapacityLimiter(1)
        self._version = 0
        self._file = 0

    async def run(self, function: Callable[[], T]) -> T:
        """What `function` returns, run in the file's thread; raises StoreUnusable.

        It is run a second time where the file turned out to be damaged.
        """
        return await to_thread.run_sync(self.run_here, function, limiter=self._thread)

    async def aclose(self) -> None:
        """Closes the file."""
        if self._database is not None:
            await to_thread.run_sync(self._database.close, limiter=self._thread)
            self._database = None

    @property
    def connection(self) -> sqlite3.Connection:
        """For functions that are `run`."""
        if self._database is None:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._database = self._opened()
            self._file = self.path.stat().st_ino
        return self._database

    @contextmanager
    def writing(self) -> Generator[sqlite3.Connection, None, None]:
        """A transaction that no other server reads or writes beside."""
        database = self.connection
        database.execute("BEGIN IMMEDIATE")
        with database:
            yield database

    def changed(self) -> bool:
        """Whether another process wrote anything since this was asked last."""
        if self._database is not None and not self._is_our_file():
            self.disconnect()  # another server set it aside
        before = self._version
        (self._version,) = self.connection.execute("PRAGMA data_version").fetchone()
        return self._version != before

    def run_here(self, function: Callable[[], T]) -> T:
        """As `run`, in whatever thread this is."""
        try:
            try:
                return function()
            except sqlite3.DatabaseError as error:
                if not _corrupt(error):
                    raise
                self._set_aside()
                return function()
        except (sqlite3.Error, OSError) as error:
            raise StoreUnusable(self.path, str(error)) from error

    def _set_aside(self) -> None:
        """Takes a file that is none out of the way; of several servers, one does.

        The next connection makes a new one.
        """
        self.disconnect()
        ticket = Ticket(self.path.with_suffix(".lock"))
        try:
            while not ticket.take():
                time.sleep(LOCK_RETRY)
            if self._sound():
                return
            aside = self.path.with_name(f"{self.path.name}.corrupt-{time.time():.0f}")
            for suffix in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    self.path.with_name(self.path.name + suffix).rename(f"{aside}{suffix}")
            logger.warning("%s was damaged: it is now %s, and a new one is made", self.path, aside)
        finally:
            ticket.close()

    def _sound(self) -> bool:
        try:
            with closing(sqlite3.connect(self.path, timeout=LOCK_TIMEOUT)) as database:
                return database.execute("PRAGMA quick_check").fetchone() == ("ok",)
        except sqlite3.DatabaseError as error:
            if _corrupt(error):
                return False
            raise

    def disconnect(self) -> None:
        """Closes the file in whatever thread this is; the next use opens it again."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _opened(self) -> sqlite3.Connection:
        deadline = time.monotonic() + self._patience
        with suppress(FileExistsError):
            self.path.touch(mode=0o600, exist_ok=False)
        while True:
            database = sqlite3.connect(self.path, timeout=self._patience, check_same_thread=False)
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
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        if _version(database) == len(self._migrations):
            return
        database.execute("BEGIN IMMEDIATE")
        with database:
            version = _version(database)
            if version > len(self._migrations):
                raise StoreUnusable(
                    self.path,
                    f"a newer box_mcp wrote it (schema {version}; "
                    f"this one knows {len(self._migrations)})",
                )
            for migration in self._migrations[version:]:
                for statement in migration.split(";"):
                    database.execute(statement)
            if version == 0:
                self._begin(database)
            database.execute(f"PRAGMA user_version = {len(self._migrations)}")

    def _is_our_file(self) -> bool:
        try:
            return self.path.stat().st_ino == self._file
        except FileNotFoundError:
            return False


def _corrupt(error: sqlite3.DatabaseError) -> bool:
    codes = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return getattr(error, "sqlite_errorcode", None) in codes


def _version(database: sqlite3.Connection) -> int:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    return version
