"""What is known of a repository while it goes between the user's machine and a box."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from box_mcp.boxd import parcel
from box_mcp.capabilities.hostgit.find import Repository
from box_mcp.capabilities.leftout import LeftOut
from box_mcp.domain.refs import HOST

SPARED = 256 * 1024**2  # bytes that are left free on the user's disk
BUNDLE, SHALLOW = "bundle", "shallow"


class MissingHistory(Exception):
    """What comes from a box builds on a commit that the user's repository has not, or no more."""


@dataclass(frozen=True)
class Going:
    """A repository on its way into a box: what its git there is told.

    `branch` is checked out, or `commit` where that is empty; where there is no commit
    yet, both are. The branch follows `upstream`, and `origin` is the URL of the user's own, where a
    box can do anything with it. `side` is the branch of what was not committed. Each may be empty.
    """

    repository: Repository
    object_format: str
    branch: str
    commit: str
    upstream: str
    origin: str
    side: str
    proof: str
    shallow: bool
    left_out: LeftOut

    @property
    def name(self) -> str:
        """What its directory in a box is called."""
        return self.repository.path.name.removesuffix(".git") or "repository"

    @property
    def home(self) -> str:
        """As a box is told, and says again."""
        return f"{HOST}{self.repository}"


@dataclass(frozen=True)
class Said:
    """What a box says of a branch that is to go home: nothing of it is believed.

    `home` is what the branch is called at the user's, `seen` where that was when the box last
    heard of it, or empty; `new` is how many commits are new there; `lfs` whether the box has
    contents of files that come as pointers.
    """

    url: str
    proof: str
    branch: str
    home: str
    seen: str
    tip: str
    new: int
    lfs: bool = False

    @classmethod
    def of(cls, told: Mapping[str, str]) -> Self:
        """From the lines of a box; raises ValueError."""
        new = told.get("new", "")
        if not re.fullmatch("[0-9]{1,9}", new):
            raise ValueError(new)
        return cls(
            url=told.get("url", ""),
            proof=told.get("proof", ""),
            branch=told.get("branch", ""),
            home=told.get("home", ""),
            seen=told.get("seen", ""),
            tip=told.get("tip", ""),
            new=int(new),
            lfs="lfs" in told,
        )


@dataclass(frozen=True)
class Home:
    """What became of it: the branch that it is now in the user's repository, and at which commit.

    `before` is where that branch was, or empty; `rewritten` whether that is no part of it any more.
    """

    repository: Repository
    branch: str
    tip: str
    before: str
    rewritten: bool


@dataclass(frozen=True)
class Bundle:
    """As `transfer.Source`: a directory with a bundle and what goes with it, as far as there."""

    directory: Path

    @property
    def size(self) -> int:
        """Bytes."""
        with suppress(FileNotFoundError):
            return (self.directory / BUNDLE).stat().st_size
        return 0

    def entries(self) -> Iterator[tuple[parcel.Entry, IO[bytes] | bytes | None]]:
        """The directory, then what is in it."""
        now = time.time_ns()
        yield parcel.Entry(parcel.DIRECTORY, 0o700, 0, now, b""), None
        for name in (BUNDLE, SHALLOW):
            path = self.directory / name
            if path.exists():
                with path.open("rb") as file:
                    size = path.stat().st_size
                    yield parcel.Entry(parcel.FILE, 0o600, size, now, name.encode()), file


class OneFile(parcel.Sink):
    """Takes one file, and nothing else, out of a box."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def begin(self, entry: parcel.Entry, /) -> None:
        """Raises ParcelError for anything else."""
        if entry.kind != parcel.FILE or entry.path:
            raise parcel.ParcelError("it is no file")

    def content(self, data: memoryview, /) -> None:
        """Writes it."""
        self._file.write(data)
