"""What a caller may have meant by a path in a box that leads to nothing."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from difflib import get_close_matches

import anyio
from anyio import to_thread

from box_mcp.capabilities.trees import Trees
from box_mcp.domain.paths import ERRORS, shown
from box_mcp.errors import BoxError, CallRefused

PATIENCE = 3.0  # s for looking around
MAX_LEVELS = 10  # directories above that are looked for
MAX_NAMES = 1000  # of a directory that are compared
MAX_LENGTH = 200  # characters of a path for which it is worth it
NAMED = 3  # names that are told
LIKE = 0.65  # from this likeness on a name is worth telling
WILD = "*?["


async def advise(refused: CallRefused, trees: Trees) -> None:
    """Has a refusal tell what may be meant, if it is about a path that leads to nothing here."""
    if refused.code == "not_found" and refused.place and refused.place[0] == trees.box:
        refused.advice = await _suggestion(trees, refused.place[1])


async def _suggestion(trees: Trees, path: str) -> str:
    """What to do about `path`, which is missing; nothing when nobody can tell."""
    if len(path) > MAX_LENGTH or not path.isprintable():
        return ""
    if any(char in path for char in WILD):
        return "A path takes no wildcards: `file_list` and `file_search` have `glob`"
    with anyio.move_on_after(PATIENCE):
        return await _elsewhere(trees, path) or await _nearby(trees, path)
    return ""


async def _elsewhere(trees: Trees, path: str) -> str:
    """The same path from the workspace on, or from / on, if there is something."""
    other = path.lstrip("/") if path.startswith("/") else f"/{path}"
    return f"Did you mean `{other}`?" if await _exists(trees, other) else ""


async def _nearby(trees: Trees, path: str) -> str:
    missing = path.rstrip("/")
    for _ in range(MAX_LEVELS):
        parent, name = posixpath.split(missing)
        names = await _names(trees, parent or ".")
        if names is not None:
            break
        missing = parent
    else:
        return ""
    found = await to_thread.run_sync(alike, name, names, abandon_on_cancel=True)  # may take seconds
    near = [f"`{posixpath.join(parent, one)}`" for one in found]
    above = "" if missing == path.rstrip("/") else f"There is no `{missing}`. "
    if near:
        return f"{above}Did you mean {' or '.join(near)}?"
    where = f'path="{parent}", ' if parent.strip("/") else ""
    return (
        f"{above}Look for it: "
        f'`file_list` with {where}depth=9, glob="{posixpath.basename(path.rstrip("/"))}"'
    )


async def _exists(trees: Trees, path: str) -> bool:
    try:
        return await trees.kind(path) is not None
    except BoxError:
        return False


async def _names(trees: Trees, directory: str) -> list[str] | None:
    """What is in a directory; None when it can't be read."""
    try:
        listing = await trees.listing(directory, limit=MAX_NAMES)
    except BoxError:
        return None
    return [
        entry.path.decode(errors=ERRORS) + ("/" if entry.kind == "directory" else "")
        for entry in listing.entries
    ]


def alike(name: str, names: Sequence[str]) -> list[str]:
    """The few of `names` that are most like `name`: but for upper and lower case, or by letters."""
    readable = [one for one in names if shown(one) == one]
    folded = name.casefold()
    same = [one for one in readable if one.rstrip("/").casefold() == folded]
    return same[:NAMED] or get_close_matches(name, readable, NAMED, LIKE)
