"""What a directory holds, and what lies below it."""

from __future__ import annotations

import json
import os
import time

from . import wire
from .slices import facts, version
from .walking import Glob, View, Walk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .slices import Slices

BATCH = 32  # entries per slice, which are looked up one by one
MAX_PAGE = 1024 * 1024  # bytes of entries in one answer, and a last one
TELL_AFTER = 20.0  # s; a listing that takes longer tells what it has, and where it came to
MAX_UNREADABLE = 10  # directories that are named


def status(path: str) -> Slices:
    """The facts of `path`, symlinks not followed."""
    yield from ()
    return {**_facts(path), "version": version(os.lstat(path))}


def list_tree(path: str, request: dict[str, Any]) -> Slices:
    """What is below `path`, as JSON lines; see `Files.open_list`."""
    top = os.path.realpath(path)
    depth, limit = int(request["depth"]), int(request["limit"])
    glob = Glob(str(request["glob"])) if request.get("glob") else None
    view = View(top, hidden=bool(request["hidden"]), gitignore=bool(request.get("gitignore")))
    walk = Walk(view, depth, below(top, str(request.get("after") or "")))
    tell_at = time.monotonic() + TELL_AFTER
    told = size = 0
    more = False
    reached = None
    lines: list[bytes] = []
    for visit in walk:
        if visit is None or len(lines) >= BATCH or sum(map(len, lines)) > wire.CHUNK // 8:
            yield b"".join(lines)
            lines.clear()
        if visit is None:
            continue
        if not glob or glob.matches(visit.path, visit.is_directory):
            if more := told >= limit or size > MAX_PAGE:
                break
            if line := _line(top, visit.path):
                lines.append(line)
                told, size = told + 1, size + len(line)
        if more := time.monotonic() > tell_at:
            reached = visit.path
            break
    yield b"".join(lines)
    return {
        "directory": top,
        "more": more,
        "reached": reached,
        "total": walk.beside if depth == 1 and not glob else None,
        "unreadable": walk.unreadable[:MAX_UNREADABLE],
    }


def below(top: str, path: str) -> str:
    """`path`, which may be absolute, relative to `top`."""
    return os.path.relpath(os.path.join(top, path), top) if path else ""


def _line(top: str, path: str) -> bytes:
    """An entry, or nothing when it is gone."""
    try:
        found = _facts(os.path.join(top, path))
    except FileNotFoundError:
        return b""
    return json.dumps({"path": path, **found}).encode() + b"\n"


def _facts(path: str) -> dict[str, Any]:
    found = facts(os.lstat(path))
    if found["kind"] == "symlink":
        found["target"] = os.readlink(path)
    return found
