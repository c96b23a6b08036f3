"""What git calls revisions, branches, remotes and sources, parsed once into types; pure.

None of them can be taken for an option, nor for a program to run.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NewType
from urllib.parse import urlsplit

from box_mcp.errors import InvalidArgument

Revision = NewType("Revision", str)
"""What names a commit or a range of them, such as ``main``, ``HEAD~2`` or ``v1..v2``."""
Branch = NewType("Branch", str)
"""A branch's name without ``refs/heads/``."""
Remote = NewType("Remote", str)
"""A remote's name, or its URL."""
Source = NewType("Source", str)
"""What can be cloned: a URL, or a path in the box."""

MAX_LENGTH = 1024  # characters
SHORT = 10  # characters of a commit's hash, as people read them
HEADS = "refs/heads/"
"""Before a branch's name: its whole name."""
FROM_BOXES = "box/"
"""What the branches begin with that came home from boxes."""
HOST = "host:"
"""Before a path: a repository of the user's machine."""
HOME = Remote("host")
"""The remote of a repository in a box that is the user's own one."""

_HELPER = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*::")
_NO_BRANCH = re.compile(r"[ ~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|$)|^[/.]|[/.]$|^@$|^HEAD$")
"""What git-check-ref-format(1) does not let a branch be called."""


def parse_revision(name: str, text: str) -> Revision:
    """`text`, if it can name commits; raises InvalidArgument, as all of these do.

    `name` is what the caller calls the argument.
    """
    return Revision(_plain(name, text))


def parse_branch(name: str, text: str) -> Branch:
    """`text`, if a branch may be called so."""
    if _NO_BRANCH.search(_plain(name, text)):
        raise InvalidArgument(name, f"is {text!r}, which can't be the name of a branch")
    return Branch(text)


def parse_remote(name: str, text: str) -> Remote:
    """`text`, if it can be a remote."""
    if text.startswith(HOST):
        raise InvalidArgument(name, f"is {HOME!r} for the user's own repository, without its path")
    return Remote(_reachable(name, text))


def parse_source(name: str, text: str) -> Source:
    """`text`, if it can be cloned; a password in it would stay in the box."""
    try:
        password = "://" in _reachable(name, text) and urlsplit(text).password
    except ValueError:
        raise InvalidArgument(name, "is no URL") from None
    if password:
        raise InvalidArgument(
            name,
            "has a password in it, which would stay in the box: leave it out, and have the user "
            "give box_mcp's settings a route with that credential",
        )
    return Source(text)


def directory_of(source: Source) -> str:
    """What git calls the directory into which it clones `source`."""
    path = source.rstrip("/").removesuffix("/.git").removesuffix(".git").rstrip("/")
    return re.split(r"[/:]", path)[-1]


def _reachable(name: str, text: str) -> str:
    if _HELPER.match(_plain(name, text)):
        raise InvalidArgument(name, f"is {text!r}: transports that are programs are not used")
    return text


def _plain(name: str, text: str) -> str:
    """`text`, unless git would take it for an option, or nobody could read it."""
    if not text or len(text) > MAX_LENGTH:
        wrong = f"has more than {MAX_LENGTH:,} characters" if text else "is empty"
        raise InvalidArgument(name, wrong)
    if text.startswith("-"):
        hint = ": the branch before is @{-1}" if text == "-" else ""
        raise InvalidArgument(name, f"is {text!r}, which git would take for an option{hint}")
    if any(unicodedata.category(one) in ("Cc", "Cs") for one in text):
        raise InvalidArgument(name, f"has control characters: {text!r}")
    return text
