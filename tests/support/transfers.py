"""What transfers read from and write to on the user's side."""

from __future__ import annotations

import hashlib
import threading
from typing import IO, TYPE_CHECKING

from box_mcp.boxd.parcel import DIRECTORY, FILE, LINK, Entry, Sink
from tests.support.engines import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class OneFile:
    """A Source of one file, or of a tree with it."""

    def __init__(self, path: Path, *, in_tree: bool = False) -> None:
        self.size = path.stat().st_size
        self._path = path
        self._in_tree = in_tree

    def entries(self) -> Iterator[tuple[Entry, IO[bytes] | bytes | None]]:
        name = b""
        if self._in_tree:
            yield Entry(DIRECTORY, 0o755, 0, 0, b""), None
            yield Entry(LINK, 0o777, 3, 0, b"link"), b"big"
            name = b"big"
        with self._path.open("rb") as file:
            yield Entry(FILE, 0o640, self.size, 0, name), file


class Hashed(Sink):
    """Files as their hashes; `hold` makes it wait at the first content."""

    def __init__(self) -> None:
        self.hashes: dict[bytes, str] = {}
        self.begun = threading.Event()
        self.hold = threading.Event()
        self.hold.set()
        self._hash = hashlib.sha256()

    def begin(self, entry: Entry) -> None:
        self._hash = hashlib.sha256()

    def content(self, data: memoryview) -> None:
        self.begun.set()
        self.hold.wait(PATIENCE)
        self._hash.update(data)

    def finish(self, entry: Entry) -> None:
        self.hashes[entry.path] = self._hash.hexdigest()


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
