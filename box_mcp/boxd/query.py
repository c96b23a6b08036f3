"""What is searched for, and the page of it that is told."""

from __future__ import annotations

import json
import os

from .connection import Refusal
from .listing import below
from .text import guessed
from .walking import Glob

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Record = tuple[bytes, int, bool, bytes]
    """Path, number of the line, whether it matches, its text; or path, 0, True, and a count."""

MAX_TEXT = 400  # characters of one line that are told
MAX_BYTES = 4 * (MAX_TEXT + 1)  # that they may need, and one more
MATCHES, FILES, COUNT = "matches", "files", "count"  # what is told
CASES = {"exact": "-s", "smart": "-S", "ignore": "-i"}


class Search:
    """What is searched for, and how much of it told; see `Files.open_search`."""

    def __init__(self, path: str, request: dict[str, Any]) -> None:
        path = os.path.realpath(path)
        os.stat(path)  # an error tells more than finding nothing
        self.one_file = not os.path.isdir(path)
        self.top = os.path.dirname(path) if self.one_file else path
        self.start = os.path.basename(path) if self.one_file else ""
        self.pattern = str(request["pattern"])
        self.literal = bool(request.get("literal"))
        self.case = CASES[str(request.get("case") or "exact")]
        self.type = str(request.get("type") or "")
        self.mode = str(request.get("mode") or MATCHES)
        self.context = int(request.get("context") or 0) if self.mode == MATCHES else 0
        self.hidden = bool(request.get("hidden"))
        self.gitignore = bool(request["gitignore"])
        self.limit = int(request["limit"])
        self.max_bytes = int(request["max_bytes"])
        glob = str(request.get("glob") or "")
        self.glob = Glob(glob) if glob and not self.one_file else None
        self.glob_text = glob
        after = below(self.top, str(request.get("after") or ""))
        self.after = (os.fsencode(after).split(b"/"), int(request.get("after_line") or 0))
        if "\n" in self.pattern or "\0" in self.pattern:
            raise Refusal("invalid", "a pattern can't contain a line break: lines are searched")


class Page:
    """Takes records in order; of those behind the cursor, what fits is kept as lines of JSON.

    `matches` and `files` count all, if `complete`. `more` tells that others would follow.
    """

    def __init__(self, wanted: Search) -> None:
        self.lines: list[bytes] = []
        self.more = False
        self.complete = False
        self.matches = self.files = 0
        self._wanted = wanted
        self._size = 0

    def take(self, records: Iterable[Record], counted: int) -> None:
        """Takes as many as it needs, and `counted` to count them."""
        seen = 0
        last = b""
        for record in records:
            path, line, hit, text = record
            self.matches += int(text) if self._wanted.mode == COUNT else hit
            self.files += path != last
            last = path
            seen += 1
            if not self.more and (path.split(b"/"), line) > self._wanted.after:
                self._keep(record)
            if self.more and seen > counted:
                return
        self.complete = seen <= counted

    def _keep(self, record: Record) -> None:
        line, size = _told(record, self._wanted.mode)
        wanted = self._wanted
        full = len(self.lines) >= wanted.limit or self._size + size > wanted.max_bytes
        if full and self.lines:
            self.more = True
        else:
            self.lines.append(line)
            self._size += size


def _told(record: Record, mode: str) -> tuple[bytes, int]:
    """A line of JSON, and about how long it is when shown."""
    path, line, hit, text = record
    told: dict[str, Any] = {"path": os.fsdecode(path)}
    size = len(path) + 10
    if mode == COUNT:
        told["count"] = int(text)
    elif mode != FILES:
        start = text[:MAX_BYTES]
        shown = start.decode(guessed(start, whole=len(start) == len(text)), "replace")
        if len(shown) > MAX_TEXT:
            shown = shown[:MAX_TEXT] + "…"
        told.update(line=line, hit=hit, text=shown)
        size += len(shown)
    return json.dumps(told).encode() + b"\n", size
