"""What became of commands, kept beside their logs: a box that was stopped can still tell.

<log_dir>/p7.log      what it printed
<log_dir>/p7.json     its record, once it ran for a moment or printed something
<log_dir>/count       ids up to here are taken
"""

from __future__ import annotations

import contextlib
import json
import os

from .output import LOG_HEAD, Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

KEEP_ENDED = 100  # ended runs that are remembered
KEEP_BYTES = 512 * 1024 * 1024  # of all logs together
RESERVED = 100  # ids that are taken at once: one write for many commands
RECORD_LIMIT = 64 * 1024  # bytes of a record's file


class Past:
    """A run of an earlier boxd: its end, as far as it is on record."""

    concluded = gone = settled = True

    def __init__(self, record: dict[str, Any], log: Log) -> None:
        self.name = str(record["id"])
        self.printed = int(record["printed"])
        self.log = log
        self._record = record

    def record(self) -> dict[str, Any]:
        """What was known of it."""
        return self._record

    def tell(self, _listener: object) -> None:
        """Nothing happens to it any more."""

    def leave(self, _listener: object) -> None:
        """Nothing happens to it any more."""


class History:
    """The directory of logs and records, which anybody who is root in the box can change."""

    def __init__(self, directory: str, uid: int, gid: int) -> None:
        self._directory = directory
        self._owner = uid, gid
        os.makedirs(directory, exist_ok=True)
        self._reserved = self._count = self._read_count()

    def next_name(self) -> str:
        """An id that no run had since the box was made."""
        if self._count >= self._reserved:
            self._reserved = self._count + RESERVED
            self._write("count", str(self._reserved).encode())
        self._count += 1
        return f"p{self._count}"

    def log(self, name: str) -> Log:
        """A new log."""
        return Log(self._path(f"{name}.log"), *self._owner)

    def keep(self, record: dict[str, Any]) -> None:
        """Writes a record down; a full disk costs no more than the record."""
        self._write(f"{record['id']}.json", json.dumps(record).encode())

    def forget(self, name: str) -> None:
        """Removes a run's log and record."""
        for suffix in (".log", ".json"):
            with contextlib.suppress(OSError):
                os.unlink(self._path(name + suffix))

    def past(self) -> list[Past]:
        """Runs of earlier boxds, oldest first. What ran when the box was stopped is told so."""
        names = [name[:-5] for name in os.listdir(self._directory) if name.endswith(".json")]
        names = [name for name in names if name[:1] == "p" and name[1:].isdigit()]
        found = (self._read_past(name) for name in sorted(names, key=lambda name: int(name[1:])))
        return [past for past in found if past is not None]

    def _read_past(self, name: str) -> Past | None:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            record = json.loads(self._read(f"{name}.json"))
            if record["running"] or record["left"]:
                record["cause"] = record["cause"] or "box_stopped"
                record["running"], record["left"] = False, 0
            log = self.log(name)
            log.size, log.hole = int(record["logged"]), LOG_HEAD + int(record["dropped"])
            with contextlib.suppress(OSError):  # the record may be older than the log's end
                log.size = os.stat(log.path).st_size
            record.update({"id": name, "printed": log.size, "logged": log.size, "log": log.path})
            return Past(record, log)
        return None

    def _read_count(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            return max(0, min(int(self._read("count")), 2**50))
        return 0

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def _read(self, name: str) -> bytes:
        fd = os.open(self._path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            return file.read(RECORD_LIMIT)

    def _write(self, name: str, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(OSError):
            fd = os.open(self._path(f".{name}"), flags | os.O_NONBLOCK, 0o644)
            with open(fd, "wb") as file:
                file.write(data)
            os.rename(self._path(f".{name}"), self._path(name))
