"""The head of a git bundle, parsed strictly: what comes out of a box says one thing, or nothing.

::

    # v2 git bundle                      or v3, with lines such as @object-format=sha1
    -<commit> <its subject>              what must be there already; any number
    <commit> refs/heads/<branch>         what the bundle brings; here exactly one
                                         an empty line, and then a pack
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import IO

MAX_HEAD = 4 * 1024**2  # bytes: some 50,000 commits that must be there, or fewer with long subjects
SIGNATURES = (b"# v2 git bundle\n", b"# v3 git bundle\n")
FORMAT = b"@object-format="
HASH_LENGTHS = {"sha1": 40, "sha256": 64}

_NEEDED = re.compile(rb"-([0-9a-f]+)(?: [^\n]*)?\n")
_BROUGHT = re.compile(rb"([0-9a-f]+) (refs/heads/[^\n\0]+)\n")


class NoBundle(Exception):
    """It is not what was asked for."""


@dataclass(frozen=True)
class Head:
    """What a bundle brings, and what must be there before; its pack begins at `offset`."""

    tip: str
    ref: str
    needed: tuple[str, ...]
    offset: int


def read_head(file: IO[bytes], object_format: str) -> Head:
    """The head of the bundle in `file`, whose next byte is then the pack's; raises NoBundle."""
    if file.readline(len(SIGNATURES[0])) not in SIGNATURES:
        raise NoBundle("it does not begin as a bundle does")
    length = HASH_LENGTHS[object_format]
    needed: list[str] = []
    brought: list[tuple[str, str]] = []
    while (line := file.readline(MAX_HEAD)) != b"\n":
        if not line.endswith(b"\n") or file.tell() > MAX_HEAD:
            raise NoBundle("its head does not end")
        if line.startswith(b"@"):
            if line != FORMAT + object_format.encode() + b"\n":
                raise NoBundle("it wants something that is not understood here")
        elif found := _NEEDED.fullmatch(line):
            needed.append(found[1].decode())
        elif found := _BROUGHT.fullmatch(line):
            brought.append((found[1].decode(), found[2].decode(errors="surrogateescape")))
        else:
            raise NoBundle("its head has a line that means nothing")
    if len(brought) != 1:
        raise NoBundle(f"it brings {len(brought)} branches instead of one")
    if any(len(one) != length for one in (brought[0][0], *needed)):
        raise NoBundle("its head names what can't be a commit")
    return Head(*brought[0], tuple(needed), file.tell())
