"""What boxes asked of routes and models, on disk: a line of JSON for each request, none secret.

Several servers append to one file. A full one is kept beside it until the next is full, too. So
that nobody can have what was done forgotten by asking for what is refused, a user's refusals
beyond some are counted only.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import portalocker
from portalocker.exceptions import LockException

from box_mcp.events import Event, ModelUsed, RouteUsed

logger = logging.getLogger(__name__)

MAX_SIZE = 16 * 1024 * 1024  # bytes of the file, and as many of the one before: 100,000 lines
MAX_TEXT = 500  # characters of one value
REFUSALS = 200.0  # of one user, at once
AGAIN = 0.1  # more of them a second: some 10 MiB a day
LOCK_TIMEOUT = 0.05  # s; others hold it for microseconds, unless they were stopped meanwhile
LOCK_RETRY = 0.002  # s

_private = partial(os.open, mode=0o600)


class Audit:
    """A listener that writes to `path`. It returns quickly, and what fails is logged."""

    def __init__(
        self, path: Path, max_size: int = MAX_SIZE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._room: dict[str, _Room] = {}
        self._path = path
        self._before = path.with_name(f"{path.name}.1")
        self._lock = path.with_name(f"{path.name}.lock")
        self._max_size = max_size

    def __call__(self, event: Event) -> None:
        """As `Hook`."""
        if not isinstance(event, RouteUsed | ModelUsed):
            return
        room = self._room.setdefault(event.principal, _Room(self._clock()))
        if not room.takes(event, self._clock()):
            return
        try:
            self._append(_line(event, room.uncounted()))
        except OSError as error:
            logger.error("%s could not be written: %s", self._path, error)  # noqa: TRY400

    def _append(self, line: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._alone() as alone:
            if alone and self._path.exists() and self._is_full(len(line)):
                self._path.replace(self._before)
            # Path.open takes no opener.
            with open(self._path, "ab", buffering=0, opener=_private) as file:
                file.write(line)

    def _is_full(self, more: int) -> bool:
        return self._path.stat().st_size + more > self._max_size

    @contextmanager
    def _alone(self) -> Generator[bool, None, None]:
        """Whether no other server writes meanwhile; without that a line is written all the same."""
        lock = portalocker.Lock(
            self._lock, "a", timeout=LOCK_TIMEOUT, check_interval=LOCK_RETRY, opener=_private
        )
        try:
            lock.acquire()
        except LockException:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()


@dataclass
class _Room:
    """How many refusals of one user are still written; `left_out` were not since the last line."""

    at: float
    left: float = REFUSALS
    left_out: int = 0

    def takes(self, event: RouteUsed | ModelUsed, now: float) -> bool:
        """Whether there is a line for it: what an upstream may have heard has one always."""
        if event.asked:
            return True
        self.left = min(REFUSALS, self.left + (now - self.at) * AGAIN)
        self.at = now
        if self.left < 1:
            self.left_out += 1
            return False
        self.left -= 1
        return True

    def uncounted(self) -> int:
        """How many were left out; they are told then."""
        count, self.left_out = self.left_out, 0
        return count


def _line(event: RouteUsed | ModelUsed, left_out: int) -> bytes:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    values = {
        name: value[:MAX_TEXT] if isinstance(value, str) else value
        for name, value in asdict(event).items()
    }
    more = {"left_out": left_out} if left_out else {}
    return json.dumps({"time": now, **values, **more}).encode() + b"\n"
