"""A bare repository of this server's own, for one call, between the user's and a box's.

It borrows the user's objects and has copies of the user's refs, but none of its settings. So a
bundle for a box can be made from it, and one that came from a box can be looked at in it, without
a byte written to the user's repository::

    user's objects ◀─borrows─ scratch ──▶ bundle for a box
    user's repository ◀─pack, with fsck─ scratch ◀─pack, with fsck─ bundle from a box

Blocking, as `run` is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from box_mcp.capabilities.hostgit.bundle import Head
from box_mcp.capabilities.hostgit.find import Repository
from box_mcp.capabilities.hostgit.run import GitCommandError, Guarded, Leash, complaint, guarded
from box_mcp.domain.refs import HEADS
from box_mcp.errors import HostFailed

TAGS = "refs/tags/"
ORIGIN = "refs/remotes/origin/"
DETACHED = "refs/box-mcp/head"
"""Where the scratch repository keeps a commit that is checked out and on no branch."""
SIDE = "refs/box-mcp/side/"
"""Where it keeps a branch of what is not committed."""

PROMISED = r"^remote\..*\.promisor$"
MEMORY = "512m"  # for any one thing that git holds while it unpacks what came out of a box
STREAMED = "core.bigFileThreshold=64m"  # larger files are not held in memory
_REF = re.compile(r"([0-9a-f]{40,64}) (refs/[^ ]+) (\S*)")
DUBIOUS = "detected dubious ownership"


@dataclass(frozen=True)
class Ref:
    """One of the user's; `upstream` is the ref that a branch follows, or empty."""

    name: str
    commit: str
    upstream: str = ""


@dataclass(frozen=True)
class Scratch:
    """The scratch repository in `directory`; `theirs` is git in the user's, `git` in this one."""

    repository: Repository
    directory: Path
    theirs: Guarded
    git: Guarded
    object_format: str
    refs: Sequence[Ref]
    head: str
    """The branch that is checked out, as a ref, or empty."""
    commit: str
    """The commit that is checked out, or empty."""
    shallow: str = field(default="", repr=False)
    """At which commits its history was cut off, a line each."""

    def named(self, ref: str) -> Ref | None:
        """The user's ref of this whole name."""
        return next((one for one in self.refs if one.name == ref), None)

    def branches(self) -> list[str]:
        """The names of the user's branches."""
        return [one.name.removeprefix(HEADS) for one in self.refs if one.name.startswith(HEADS)]

    def missing(self, commits: Iterable[str]) -> list[str]:
        """Those that the user's repository does not have."""
        asked = "".join(f"{commit}^{{commit}}\n" for commit in commits).encode()
        said = self.git.run("cat-file", "--batch-check=%(objectname)", stdin=asked)
        found = (line.partition(" ") for line in os.fsdecode(said).splitlines())
        return [name.partition("^")[0] for name, _, rest in found if rest]

    def is_ancestor(self, older: str, newer: str) -> bool:
        """Whether `newer` has all that `older` has."""
        try:
            self.git.run("merge-base", "--is-ancestor", older, newer)
        except GitCommandError as error:
            if error.status == 1:
                return False
            raise
        return True

    def write_refs(self, refs: Iterable[tuple[str, str]]) -> None:
        """Makes these (commit, name) the scratch repository's refs, and no others."""
        lines = sorted((name, commit) for commit, name in refs)
        text = "".join(f"{commit} {name}\n" for name, commit in lines)
        (self.directory / "packed-refs").write_bytes(os.fsencode(text))

    def bundle(self, file: IO[bytes]) -> None:
        """Writes a bundle of all its refs; there must be one. Raises HostFailed."""
        try:
            self.git.run("bundle", "create", "--quiet", "-", "--all", stdout=file)
        except GitCommandError as error:
            failed = HostFailed(str(self.repository), f"git says: {complaint(error)}")
            if self.theirs.run("config", "--get-regexp", PROMISED, good=(0, 1)):
                failed.advice = (
                    "It is a partial clone, which lacks what was not needed yet: clone it from its "
                    "server, or ask the user for `git fetch --refetch` there"
                )
            raise failed from None

    def take_in(self, file: IO[bytes], head: Head, size: int) -> None:
        """Unpacks what a box sent, with all that git can check; raises GitCommandError.

        Afterwards its tip is a whole commit: all that it leads to is here.
        """
        file.seek(head.offset)
        os.lseek(file.fileno(), head.offset, os.SEEK_SET)
        careful = self.git.also(STREAMED, GIT_ALLOC_LIMIT=MEMORY)
        strict = ("--stdin", "--fix-thin", "--strict", "--threads=1", f"--max-input-size={size}")
        careful.run("index-pack", *strict, stdin=file)
        self.check(head.tip)

    def check(self, tip: str) -> None:
        """Raises GitCommandError unless it is a commit, and all that it leads to is here."""
        self.git.run("rev-parse", "--quiet", "--verify", f"{tip}^{{commit}}")
        wanted = f"{tip}\n" + "".join(f"^{ref.commit}\n" for ref in self.refs)
        walk = ("rev-list", "--objects", "--quiet", "--ignore-missing", "--stdin")
        self.git.run(*walk, stdin=wanted.encode())

    def bring_home(self, ref: str, tip: str, old: str) -> None:
        """Has the user's repository take `tip` as `ref`, which is at `old`, or not there yet.

        Nothing else there is changed, and nothing is fetched: of a fetch, settings may say much.
        Raises GitCommandError.
        """
        new = "".join(f"{one}\n" for one in (tip, *(f"^{ref.commit}" for ref in self.refs)))
        if self.git.run("rev-list", "--max-count=1", "--stdin", stdin=new.encode()):
            pack = self.directory.parent / "new.pack"
            sent = ("--revs", "--stdout", "--quiet", "--delta-base-offset", "--threads=1")
            with pack.open("wb") as file:
                self.git.also(STREAMED).run("pack-objects", *sent, stdin=new.encode(), stdout=file)
            with pack.open("rb") as file:
                taken = ("--stdin", "--strict", "--threads=1")  # else it could leave half a pack
                self.theirs.also(STREAMED).run("index-pack", *taken, stdin=file, whole=True)
        before = old or "0" * len(tip)
        told = ("--no-deref", "-m", "box-mcp: brought home")
        self.theirs.run("update-ref", *told, ref, tip, before, whole=True)


def fresh_objects(directory: Path) -> Path:
    """Where what is written finds nothing that is there already.

    Of that, git would change the time, be it the user's.
    """
    return directory / "fresh"


def open_scratch(leash: Leash, repository: Repository, directory: Path) -> Scratch:
    """Makes the scratch repository in `directory`, which is empty.

    Raises HostFailed, and GitCommandError where git says something unforeseen.
    """
    nothing = directory / "nothing"
    there = guarded(leash, repository.path, nothing)
    object_format = _examine(there, repository)
    theirs = there.also(GIT_DIR=repository.git_dir)
    bare = directory / "scratch.git"
    (fresh_objects(directory) / "pack").mkdir(parents=True)
    guarded(leash, directory, nothing).run(
        "init", "--quiet", "--bare", "--template=", f"--object-format={object_format}", str(bare)
    )
    lenders = (repository.objects, fresh_objects(directory))
    (bare / "objects" / "info" / "alternates").write_bytes(b"".join(map(_quoted, lenders)))
    shallow = _shallow(repository)
    if shallow:
        (bare / "shallow").write_text(shallow)
    head = theirs.line("symbolic-ref", "--quiet", "HEAD", good=(0, 1))
    commit = theirs.line("rev-parse", "--quiet", "--verify", "HEAD^{commit}", good=(0, 1))
    return Scratch(
        repository,
        bare,
        theirs,
        guarded(leash, bare, nothing).also(GIT_DIR=bare),
        object_format,
        _refs(theirs),
        head,
        commit,
        shallow,
    )


def _examine(there: Guarded, repository: Repository) -> str:
    """Has git itself look at the repository, in its own careful way; returns its hash."""
    above = there.also(GIT_CEILING_DIRECTORIES=repository.path.parent)
    try:
        said = above.run("rev-parse", "--show-object-format", "--absolute-git-dir")
    except GitCommandError as error:
        failed = HostFailed(str(repository), f"git says: {complaint(error)}")
        if DUBIOUS in complaint(error):
            failed.advice = (
                "It belongs to another user, and git does not trust those: ask the user whether "
                f"to run `git config --global --add safe.directory {repository}`"
            )
        raise failed from None
    object_format, _, git_dir = os.fsdecode(said).removesuffix("\n").partition("\n")
    if Path(git_dir).resolve() != repository.git_dir:
        raise HostFailed(str(repository), f"git looks for its data in {git_dir}")
    return object_format


def _refs(theirs: Guarded) -> list[Ref]:
    wanted = (HEADS, TAGS, ORIGIN)
    form = "--format=%(objectname) %(refname) %(upstream)"
    said = os.fsdecode(theirs.run("for-each-ref", form, *wanted))
    found = (_REF.fullmatch(line) for line in said.splitlines())
    return [Ref(one[2], one[1], one[3]) for one in found if one is not None]


def _shallow(repository: Repository) -> str:
    """The commits at which its history ends, checked: they go into a box's repository too."""
    try:
        text = repository.shallow.read_text()
    except (FileNotFoundError, UnicodeDecodeError):
        return ""
    return "".join(f"{line}\n" for line in text.split() if re.fullmatch("[0-9a-f]{40,64}", line))


def _quoted(path: Path) -> bytes:
    """As a file of alternates takes any path."""
    plain = os.fsencode(path.as_posix())
    kept = (
        bytes([one]) if 32 < one < 127 and one not in b'"\\' else b"\\%03o" % one for one in plain
    )
    return b'"' + b"".join(kept) + b'"\n'
