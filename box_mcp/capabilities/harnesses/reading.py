"""What the readers of harnesses share: JSON of whatever shape, words for what agents do; pure.

What is read here was written in a box. Nothing here raises, whatever it is given.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any, cast

from box_mcp.domain.models import Tokens

NAME = 200
"""Characters of a name or an id."""

ACT = 120
"""Characters of what is said to be done."""

COMMAND = 10_000
"""Characters of a command."""

RESULT = 50_000
"""Characters of what came of a tool call."""

TEXT = 1_000_000
"""Characters of what an agent says."""

MANY = 1000
"""Things of one kind in one line, and tool calls that are under way at once."""

MOST = 10**15
"""The largest number."""


def parsed(printed: str) -> Mapping[str, Any]:
    """The JSON object in a text; an empty one where there is none."""
    try:
        return members(json.loads(printed))
    except (ValueError, RecursionError):
        return {}


def text(value: object, limit: int = TEXT) -> str:
    """What is text, up to a length; nothing where it is none."""
    if not isinstance(value, str):
        return ""
    return value[:limit].encode("utf-8", "replace").decode()  # JSON may have halves of characters


def name(value: object) -> str:
    """A name or an id."""
    return line(value, NAME)


def line(value: object, limit: int = ACT) -> str:
    """One printable line of it."""
    if not isinstance(value, str):
        return ""
    shown = " ".join("".join(c if c.isprintable() else " " for c in value[: 2 * limit]).split())
    cut = len(shown) > limit or len(value) > 2 * limit
    return f"{shown[: limit - 1]}…" if cut else shown


def place(value: object, base: str) -> str:
    """A path as one says it in the directory `base`, on one line."""
    path = text(value, 4 * NAME)
    if base and path.startswith("/") and (path + "/").startswith(base.rstrip("/") + "/"):
        path = posixpath.relpath(path, base)
    return line(path)


def act(verb: str, what: str, otherwise: str = "") -> str:
    """Words for what is done, such as ``edits src/app.py``; `otherwise` where nothing is known."""
    return line(f"{verb} {what}" if what else otherwise or verb)


def count(value: object) -> int:
    """A number of tokens, or of other things."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return 0
    return min(value, MOST)


def members(value: object) -> Mapping[str, Any]:
    """An object's members; none where it is no object."""
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def items(value: object) -> Sequence[Mapping[str, Any]]:
    """The objects in a list; none where it is no list."""
    if not isinstance(value, list):
        return ()
    return [members(item) for item in cast("list[Any]", value)[:MANY]]


def texts(value: object) -> str:
    """The texts in a list, a line for each."""
    if not isinstance(value, list):
        return ""
    told = [text(item, COMMAND) for item in cast("list[Any]", value)[:MANY]]
    return "\n".join(one for one in told if one)[:COMMAND]


def blocks_text(value: object) -> str:
    """The text of a message's or a result's content: text, or a list of blocks."""
    if isinstance(value, str):
        return text(value, RESULT)
    said = (text(block.get("text"), RESULT) for block in items(value))
    return "\n".join(part for part in said if part)[:RESULT]


def tokens(said: Mapping[str, Any], *, input: str, read: str, write: str, output: str) -> Tokens:  # noqa: A002
    """Counts of tokens under the names that a harness has for them."""
    return Tokens(
        input=count(said.get(input)),
        cache_read=count(said.get(read)),
        cache_write=count(said.get(write)),
        output=count(said.get(output)),
    )
