"""What boxes asked of credential routes, on disk: a line of JSON for each request, none secret.

Several servers append to one file. A full one is kept beside it until the next is full, too.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import portalocker
from portalocker.exceptions import LockException

from box_mcp.events import Event, RouteUsed

logger = logging.getLogger(__name__)

MAX_SIZE = 16 * 1024 * 1024  # bytes of the file, and as many of the one before: 100,000 lines
MAX_TEXT = 500  # characters of one value
LOCK_TIMEOUT = 0.05  # s; others hold it for microseconds, unless they were stopped meanwhile
LOCK_RETRY = 0.002  # s

_private = partial(os.open, mode=0o600)


class Audit:
    """A listener that writes to `path`. It returns quickly, and what fails is logged."""

    def __init__(self, path: Path, max_size: int = MAX_SIZE) -> None:
        self._path = path
        self._before = path.with_name(f"{path.name}.1")
        self._lock = path.with_name(f"{path.name}.lock")
        self._max_size = max_size

    def __call__(self, event: Event) -> None:
        """As `Hook`."""
        if isinstance(event, RouteUsed):
            try:
                self._append(_line(event))
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


def _line(event: RouteUsed) -> bytes:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    values = {
        name: value[:MAX_TEXT] if isinstance(value, str) else value
        for name, value in asdict(event).items()
    }
    return json.dumps({"time": now, **values}).encode() + b"\n"
