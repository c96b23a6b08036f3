"""Lines of files that match: found by ripgrep where the box has it, else by Python."""

from __future__ import annotations

import os

from .deadline import DEADLINE, set_deadline
from .query import Search
from .ripgrep import search_with_ripgrep
from .scanning import search_with_python

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .worker import Task


def search(path: str, request: dict[str, Any]) -> Task:
    """A worker's task: prints a page of what is found, as JSON lines, and returns the END."""

    def task(_tell: object) -> dict[str, Any]:
        set_deadline(DEADLINE, "the search")
        wanted = Search(path, request)
        ripgrep = _program("rg")
        if ripgrep:
            page, unreadable = search_with_ripgrep(wanted, ripgrep)
        else:
            page, unreadable = search_with_python(wanted)
        with open(1, "wb", closefd=False) as out:
            out.writelines(page.lines)
        return {
            "directory": wanted.top,
            "one_file": wanted.one_file,
            "engine": "ripgrep" if ripgrep else "python",
            "unreadable": unreadable,
            "more": page.more,
            "matches": page.matches if page.complete else None,
            "files": page.files if page.complete else None,
        }

    return task


def _program(name: str) -> str:
    """Where a program lies, by the box's own PATH; nothing where there is none."""
    for directory in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(directory or ".", name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return ""
