"""Ids and names of boxes, parsed once into a type."""

from __future__ import annotations

import re
import secrets
import string
from typing import NewType

from box_mcp.errors import InvalidName

BoxId = NewType("BoxId", str)
BoxName = NewType("BoxName", str)
Principal = NewType("Principal", str)

LOCAL = Principal("local")
"""The principal of every caller over stdio: the user who started the server."""

_ALPHABET = string.ascii_lowercase + string.digits
_ID = re.compile(r"box-[a-z0-9]{8}")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,39}")


def mint_id() -> BoxId:
    """A new id: ``box-`` and eight random characters, 41 bits."""
    return BoxId("box-" + "".join(secrets.choice(_ALPHABET) for _ in range(8)))


def is_id(text: str) -> bool:
    """Whether `text` has the form of an id, as opposed to a name."""
    return _ID.fullmatch(text) is not None


def parse_name(text: str) -> BoxName:
    """`text` as the name of a box; raises InvalidName, also for what looks like an id."""
    if _NAME.fullmatch(text) is None or is_id(text):
        raise InvalidName(text)
    return BoxName(text)
