"""What git prints for programs, parsed; pure.

All of it comes out of a box: what git would not print raises ValueError, and nothing else.
Paths stay bytes, and are relative to the top of the working tree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from box_mcp.domain.refs import HEADS

DETACHED, INITIAL = "(detached)", "(initial)"
COMMIT_MARK = b"\x01"
"""What precedes each commit in `LOG_FIELDS`; no other field can be just that, but a path."""
LOG_FIELDS = "%x01%x00%h%x00%ad%x00%an%x00%D%x00%s"
BODY_FIELD = "%x00%b"

_NUMBERS = re.compile(rb"(\d{1,18}|-)\t(\d{1,18}|-)\t(.*)", re.DOTALL)
_SHORTSTAT = re.compile(
    rb" (\d{1,18}) files? changed"
    rb"(?:, (\d{1,18}) insertions?\(\+\))?(?:, (\d{1,18}) deletions?\(-\))?\n"
)
_COMMITTED = re.compile(rb"\[(?:(\S+)|detached HEAD)(?: \(root-commit\))? ([0-9a-f]{4,64})\] ")
_PUSHED = re.compile(rb"([ +*=!-])\t([^\t\n]*):([^\t\n]*)\t([^\n]*)\n")

STATES = {
    "MERGE_HEAD": "merging",
    "CHERRY_PICK_HEAD": "cherry-picking",
    "REVERT_HEAD": "reverting",
    "BISECT_LOG": "bisecting",
    "rebase-merge": "rebasing",
    "rebase-apply": "rebasing",
    "applying": "applying patches",
}
"""What a repository is in the middle of, by what lies in its directory then."""


@dataclass(frozen=True)
class Change:
    """A path that changed, how (a letter of git-status(1)), and what it was called before."""

    letter: str
    path: bytes
    before: bytes | None = None


@dataclass
class Status:
    """What git-status tells. `commit` is None before the first one, `branch` without a branch."""

    root: bytes
    state: str = ""
    branch: str | None = None
    commit: str | None = None
    upstream: str | None = None
    ahead: int | None = None
    behind: int | None = None
    stashed: int = 0
    staged: list[Change] = field(default_factory=list[Change])
    unstaged: list[Change] = field(default_factory=list[Change])
    untracked: list[Change] = field(default_factory=list[Change])
    conflicts: list[Change] = field(default_factory=list[Change])

    @property
    def clean(self) -> bool:
        """Whether there is nothing to commit, and nothing that git does not know."""
        return not (self.staged or self.unstaged or self.untracked or self.conflicts)


@dataclass(frozen=True)
class Numbers:
    """Lines that a file gained and lost; None for a binary one."""

    added: int | None
    deleted: int | None
    path: bytes
    before: bytes | None = None


@dataclass(frozen=True)
class Summary:
    """How much a diff is."""

    files: int
    added: int
    deleted: int


@dataclass
class Commit:
    """One line of history."""

    name: str
    date: str
    author: str
    refs: str
    subject: str
    body: str = ""
    files: list[Numbers] = field(default_factory=list[Numbers])


@dataclass(frozen=True)
class Pushed:
    """What became of a branch that was pushed; `flag` is git-push(1)'s."""

    flag: str
    target: str
    summary: str


def parse_status(said: bytes) -> Status:
    """`Git.status`'s own two fields, then ``status --porcelain=v2 --branch --show-stash -z``."""
    root, marks, *items = _terminated(said)
    status = Status(root, state=_state(_text(marks).split()))
    rest = iter(items)
    for item in rest:
        kind, _, content = item.partition(b" ")
        if kind == b"#":
            _header(status, *_text(content).partition(" ")[::2])
        elif kind == b"1":
            _changed(status, *_split(content, 8), None)
        elif kind == b"2":
            *others, _, path = _split(content, 9)
            _changed(status, *others, path, next(rest, None))
        elif kind == b"u":
            letters, *_, path = _split(content, 10)
            status.conflicts.append(Change(_text(letters), path))
        elif kind == b"?":
            status.untracked.append(Change("?", content))
        else:
            raise ValueError(f"git-status told {item[:80]!r}")
    return status


def parse_numbers(said: bytes) -> tuple[list[Numbers], int]:
    """What ``--numstat -z`` tells, as far as it came, and how many bytes that was."""
    *items, _ = said.split(b"\0")
    found: list[Numbers] = []
    used = 0
    rest = iter(items)
    for item in rest:
        if not (match := _NUMBERS.fullmatch(item)):
            raise ValueError(f"--numstat told {item[:80]!r}")
        size, path, before = len(item) + 1, match[3], None
        if not path:
            before, path = next(rest, None), next(rest, None)
            if before is None or path is None:
                break
            size += len(before) + len(path) + 2
        found.append(Numbers(_count(match[1]), _count(match[2]), path, before))
        used += size
    return found, used


def take_summary(said: bytes) -> tuple[Summary | None, bytes]:
    """The line of ``--shortstat`` in `said`, and the rest without it."""
    if not (found := _SHORTSTAT.search(said)):
        return None, said
    summary = Summary(*(int(one or 0) for one in found.groups()))
    return summary, said[: found.start()] + said[found.end() :].removeprefix(b"\n")


def parse_log(said: bytes, *, body: bool, whole: bool) -> list[Commit]:
    """What ``log -z`` with `LOG_FIELDS` tells, and ``--numstat`` if that was asked for.

    Not `whole`: it was cut off somewhere, and so may be the files of the last commit, or the text
    of the only one.
    """
    width = 6 if body else 5
    fields = said.split(b"\0")
    if whole or len(fields) != width + 1:
        del fields[-1]
    commits: list[Commit] = []
    at = 0
    while at < len(fields):
        following = fields[at + 1 : at + 1 + width]
        numbers = _NUMBERS.fullmatch(fields[at].removeprefix(b"\n"))
        if fields[at] == COMMIT_MARK and len(following) == width:
            name, date, author, refs, subject, *rest = map(_text, following)
            commits.append(Commit(name, date, author, refs, subject, "".join(rest)))
            at += 1 + width
        elif numbers and commits and (numbers[3] or len(following) > 1):
            before, path = (None, numbers[3]) if numbers[3] else following[:2]
            added, deleted = _count(numbers[1]), _count(numbers[2])
            commits[-1].files.append(Numbers(added, deleted, path, before))
            at += 1 if numbers[3] else 3
        elif whole:
            raise ValueError(f"git-log told {fields[at][:80]!r}")
        else:
            break
    return commits


def parse_committed(said: bytes) -> tuple[str | None, str]:
    """Branch and short hash that git-commit told."""
    if not (found := _COMMITTED.match(said)):
        raise ValueError(f"git-commit told {said[:80]!r}")
    return _text(found[1]) if found[1] else None, _text(found[2])


def parse_pushed(said: bytes) -> list[Pushed]:
    """What ``push --porcelain`` told of each branch."""
    return [
        Pushed(_text(flag), _text(target), _text(summary))
        for flag, _, target, summary in _PUSHED.findall(said)
    ]


def _header(status: Status, name: str, value: str) -> None:
    if name == "branch.oid":
        status.commit = None if value == INITIAL else value
    elif name == "branch.head":
        status.branch = None if value == DETACHED else value
    elif name == "branch.upstream":
        status.upstream = value
    elif name == "branch.ab":
        ahead, behind = map(int, value.split())
        status.ahead, status.behind = ahead, -behind
    elif name == "stash":
        status.stashed = int(value)


def _changed(status: Status, letters: bytes, *facts: bytes | None) -> None:
    *_, path, before = facts
    staged, unstaged = _text(letters)
    if path is None:
        raise ValueError("git-status told no path")
    if staged != ".":
        status.staged.append(Change(staged, path, before))
    if unstaged != ".":
        status.unstaged.append(Change(unstaged, path, None if staged in "RC" else before))


def _state(marks: Sequence[str]) -> str:
    """What a repository is in the middle of, with how far a rebase of which branch is."""
    said: list[str] = []
    for mark in marks:
        name, _, rest = mark.partition(":")
        words = STATES.get(name, "")
        step, _, branch = rest.partition(":")
        branch = branch.removeprefix(HEADS)
        said.append(" ".join(filter(None, (words, branch, step))))
    return ", ".join(filter(None, said))


def _terminated(said: bytes) -> Iterator[bytes]:
    *items, rest = said.split(b"\0")
    if rest or len(items) < 2:
        raise ValueError(f"git told {rest[:80]!r}")
    return iter(items)


def _split(content: bytes, parts: int) -> list[bytes]:
    found = content.split(b" ", parts - 1)
    if len(found) != parts or len(found[0]) != 2:
        raise ValueError(f"git-status told {content[:80]!r}")
    return found


def _count(number: bytes) -> int | None:
    return None if number == b"-" else int(number)


def _text(said: bytes) -> str:
    return said.decode(errors="backslashreplace")
