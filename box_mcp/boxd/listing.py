"""What a directory holds."""

from __future__ import annotations

import json
import os

from .slices import facts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .slices import Slices

BATCH = 32  # directory entries per slice; with the longest names still below wire.CHUNK


def status(path: str) -> Slices:
    """The facts of `path`, symlinks not followed."""
    yield from ()
    found = facts(os.lstat(path))
    if found["kind"] == "symlink":
        found["target"] = os.readlink(path)
    return found


def list_directory(path: str, limit: int) -> Slices:
    """The entries of a directory as JSON lines."""
    names = sorted(os.listdir(path))
    for start in range(0, min(len(names), limit), BATCH):
        lines: list[str] = []
        for name in names[start : min(start + BATCH, limit)]:
            try:
                found = facts(os.lstat(os.path.join(path, name)))
            except FileNotFoundError:
                continue
            lines.append(json.dumps({"name": name, **found}) + "\n")
        yield "".join(lines).encode()
    return {"total": len(names)}
