"""Who did what, on disk: a line of JSON for each call, and for what boxes asked of others.

None has a secret, or what a file holds; of what a call was given it has a digest. Lines are written
by a thread: who emits events waits for no disk. What a crash takes away is at most what came in its
last moment; what there was no room for is counted in the next line.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Any

from box_mcp.events import CallEnded, Event, ModelUsed, PortUsed, RequestRefused, RouteUsed
from box_mcp.observe.bounding import Bounds
from box_mcp.observe.chain import Chain
from box_mcp.observe.fields import fields

logger = logging.getLogger(__name__)

MIB = 1024 * 1024
MAX_SIZE = 16 * MIB  # bytes of a file: some 40,000 lines
FILES = 8
MAX_WAITING = 10_000  # lines that are not written yet
GATHER = 0.02  # s from a line to its writing: others come along, and its call is answered first
RETRY = 1.0  # s after lines could not be written
PATIENCE = 1.0  # s; others hold the lock for microseconds, unless they were stopped meanwhile

AUDITED = (CallEnded, RequestRefused, RouteUsed, ModelUsed, PortUsed)


class Audit:
    """A listener that writes to `path`, and `files - 1` full ones beside it. What fails is logged.

    `close` it: lines may wait.
    """

    def __init__(
        self,
        path: Path,
        max_size: int = MAX_SIZE,
        files: int = FILES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._chain = Chain(path, max_size, files)
        self._bounds = Bounds(clock)
        self._waiting = deque[Mapping[str, Any]]()
        self._taken = deque[Mapping[str, Any]]()  # by the thread, which alone touches it
        self._lost = 0
        self._come, self._ending = Flag(), Flag()
        self._thread: Thread | None = None

    def __call__(self, event: Event) -> None:
        """As `Hook`."""
        if not isinstance(event, AUDITED) or not self._bounds.take(event):
            return
        if len(self._waiting) >= MAX_WAITING:
            self._lost += 1
            return
        self._add(fields(event), self._bounds.left_out(event))

    def _add(self, told: Mapping[str, Any], left_out: int) -> None:
        entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **told}
        if left_out:
            entry["left_out"] = left_out
        if self._lost:
            entry["lost"], self._lost = self._lost, 0
        self._waiting.append(entry)
        if not self._come.is_set():
            self._come.set()
        if self._thread is None:
            thread = Thread(target=self._write, name="audit", daemon=True)
            with suppress(RuntimeError):  # there are too many: the next line tries again
                thread.start()
                self._thread = thread

    def _write(self) -> None:
        failing = ended = False
        while not ended or (self._waiting and not failing):
            self._come.wait()
            self._come.clear()  # before one looks whether it ends, and for what has come
            ended = self._ending.wait(RETRY if failing else GATHER)
            while self._waiting and not failing:
                self._taken.append(self._waiting.popleft())
            try:
                self._chain.append(self._taken, PATIENCE)
            except OSError as error:
                if not failing:
                    logger.error("%s can't be written: %s", self._path, error)  # noqa: TRY400
                failing = True
                self._come.set()
            else:
                if failing:
                    logger.warning("%s is written again", self._path)
                    self._come.set()
                failing = False

    def close(self, timeout: float) -> None:
        """Writes what waits, for `timeout` seconds at most; what is left then is told in the log.

        Events that come later are left out.
        """
        for principal, left_out in self._bounds.rest().items():
            self._add({"event": "LeftOut", "principal": principal}, left_out)
        if self._lost:
            self._add({"event": "Lost"}, 0)
        self._ending.set()
        self._come.set()
        if self._thread is not None:
            self._thread.join(timeout)
        if left := len(self._waiting) + len(self._taken):
            logger.error("%s: %d lines were not written", self._path, left)
