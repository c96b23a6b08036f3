"""What became of commands, kept beside their logs: a box that was stopped can still tell.

<log_dir>/p7.log*     what it printed
<log_dir>/p7.json     its record, once it ran for a moment or printed something
<log_dir>/count       ids up to here are taken
"""

from __future__ import annotations

import contextlib
import json
import os
import re

from .output import Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

KEEP_ENDED = 100  # ended runs that are remembered
KEEP_BYTES = 512 * 1024 * 1024  # of all logs together
RESERVED = 100  # ids that are taken at once: one write for many commands
RECORD_LIMIT = 64 * 1024  # bytes of a record's file
MAX_STRING = 1000  # characters in a record
FIELDS: dict[str, tuple[type, ...]] = {
    "command": (str,),
    "session": (str, type(None)),
    "fresh": (bool,),
    "over": (bool,),
    "started": (float,),
    "running": (bool,),
    "exit": (int, type(None)),
    "signal": (int, type(None)),
    "cause": (str, type(None)),
    "seconds": (float,),
    "cpu": (float, type(None)),
    "peak": (int, type(None)),
}
"""What is believed of a record: anybody who is root in the box can have written it."""

_RECORD = re.compile(r"p[0-9]{1,15}\.json").fullmatch


class Past:
    """A run of an earlier boxd: its end, as far as it is on record."""

    concluded = gone = settled = put_away = on_record = True

    def __init__(self, record: dict[str, Any], log: Log) -> None:
        self.name = str(record["id"])
        self.printed = int(record["printed"])
        self.log = log
        self._record = record

    def record(self) -> dict[str, Any]:
        """What was known of it."""
        return self._record

    def join(self, _listener: object) -> None:
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

    def forget(self, name: str, log: Log) -> None:
        """Removes a run's log and record."""
        log.remove()
        with contextlib.suppress(OSError):
            os.unlink(self._path(f"{name}.json"))

    def past(self) -> list[Past]:
        """Runs of earlier boxds, oldest first. What ran when the box was stopped is told so."""
        numbers = sorted(int(name[1:-5]) for name in os.listdir(self._directory) if _RECORD(name))
        self._count = max([self._count, *numbers])
        found = (self._read_past(f"p{number}") for number in numbers)
        return [past for past in found if past is not None]

    def _read_past(self, name: str) -> Past | None:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            told = json.loads(self._read(f"{name}.json"))
            record = {field: _checked(told[field], kinds) for field, kinds in FIELDS.items()}
            log = self.log(name)
            log.recover()
            if record["running"]:
                seconds = max(record["seconds"], log.changed() - record["started"])
                record.update(running=False, cause="box_stopped", seconds=seconds)
            own = {"id": name, "left": 0, "terminal": None, "printed": log.size, "logged": log.size}
            return Past({**record, **own, "dropped": log.dropped, "log": log.files}, log)
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


def _checked(value: Any, kinds: tuple[type, ...]) -> Any:
    if type(value) not in kinds:
        raise TypeError(value)
    if isinstance(value, str) and len(value) > MAX_STRING:
        raise ValueError("too long")
    if isinstance(value, (int, float)) and not 0 <= value < 2**60:  # nor a NaN
        raise ValueError(value)
    return value
