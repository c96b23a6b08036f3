"""A tree by name, depth first, holding no more of it than some thousand names a level."""

from __future__ import annotations

import os
import stat
from itertools import islice

from .connection import Refusal
from .ignore import NOTHING, Ignore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from typing import Optional

    Found = Optional["Visit"]

WINDOW = 10_000  # names of one directory that are held at once; of more, it is read again
SCANNED = 500  # names that are looked at in one slice
MAX_RULES = 1024 * 1024  # bytes of a .gitignore that are read
MAX_GLOBS = 200  # that one pattern's braces may stand for
NONBLOCKING = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Visit:
    """One thing below the top; `path` is relative to it."""

    __slots__ = ("is_directory", "path")

    def __init__(self, path: str, is_directory: bool) -> None:
        self.path = path
        self.is_directory = is_directory


class View:
    """What of a tree is shown: with hidden names or not, without what .gitignore files hide."""

    def __init__(self, top: str, *, hidden: bool, gitignore: bool) -> None:
        self.top = top
        self._hidden = hidden
        self._gitignore = gitignore
        self._outer, self._prefix = _rules_above(top) if gitignore else (NOTHING, "")
        self._known: dict[str, Ignore] = {}

    def rules(self, directory: str, outer: Ignore | None = None) -> Ignore:
        """The rules that hold right below `directory`; `outer` are those that hold for itself."""
        if not self._gitignore:
            return NOTHING
        text = read_rules(self.located(directory))
        outer = self._outer if outer is None else outer
        return outer.below((self._prefix + directory).rstrip("/"), text) if text else outer

    def located(self, path: str) -> str:
        """Where `path` really is."""
        return os.path.join(self.top, path) if path else self.top

    def shows(self, rules: Ignore, path: str, is_directory: bool) -> bool:
        """Whether `path` is to be seen by who sees the directory that it is in."""
        name = path[path.rfind("/") + 1 :]
        if name.startswith(".") and (not self._hidden or (self._gitignore and name == ".git")):
            return False
        return not rules.hides(self._prefix + path, is_directory)

    def reaches(self, path: str) -> bool:
        """Whether a walk from the top would come to the file `path`."""
        parts = path.split("/")
        rules = self._rules_of("")
        for depth in range(1, len(parts)):
            directory = "/".join(parts[:depth])
            if not self.shows(rules, directory, True):
                return False
            rules = self._rules_of(directory, rules)
        return self.shows(rules, path, False)

    def _rules_of(self, directory: str, outer: Ignore | None = None) -> Ignore:
        if directory not in self._known:
            self._known[directory] = self.rules(directory, outer)
        return self._known[directory]


class Walk:
    """Iterates over Visits, and None from time to time, so that others have their turn.

    `after` is the path after which to go on; it need not exist any more. What can't be read is
    in `unreadable`. `beside` counts all that is shown right below the top, once it was looked at.
    """

    def __init__(self, view: View, depth: int, after: str = "") -> None:
        self.unreadable: list[str] = []
        self.beside = 0
        self._view = view
        self._depth = depth
        self._after = after.split("/") if after else []

    def __iter__(self) -> Iterator[Found]:
        levels = [_Level("", self._view.rules(""), self._after)]
        visits = [self._visits(levels[0])]
        while levels:
            found = next(visits[-1], "end")
            if isinstance(found, str):
                levels.pop()
                visits.pop()
                continue
            if found is None:
                yield None
                continue
            level = levels[-1]
            told = bool(level.after) and found.path == level.path(level.after[0])
            after, level.after = level.after[1:] if told else [], []
            if not told:
                yield found
            if found.is_directory and len(levels) < self._depth:
                rules = self._view.rules(found.path, level.rules)
                levels.append(_Level(found.path, rules, after))
                visits.append(self._visits(levels[-1]))

    def _visits(self, level: _Level) -> Iterator[Found]:
        """What is right below a directory, by name, from the first of its `after` on."""
        first = os.fsencode(level.after[0]) if level.after else b""
        try:
            while True:
                names = yield from self._window(level, first)
                for name, is_directory in names[:WINDOW]:
                    yield Visit(level.path(os.fsdecode(name)), is_directory)
                if len(names) <= WINDOW:
                    return
                first = names[WINDOW][0]
        except OSError:
            if not level.directory:
                raise
            self.unreadable.append(level.directory)

    def _window(
        self, level: _Level, first: bytes
    ) -> Generator[None, None, list[tuple[bytes, bool]]]:
        """The names from `first` on, sorted: all of them, or one more than `WINDOW`."""
        names: list[tuple[bytes, bool]] = []
        seen = shown = 0
        with os.scandir(self._view.located(level.directory)) as entries:
            for entry in entries:
                seen += 1
                if seen % SCANNED == 0:
                    yield None
                is_directory = entry.is_dir(follow_symlinks=False)
                if not self._view.shows(level.rules, level.path(entry.name), is_directory):
                    continue
                shown += 1
                name = os.fsencode(entry.name)
                if name >= first:
                    names.append((name, is_directory))
                if len(names) > 2 * WINDOW:
                    names.sort()
                    del names[WINDOW + 1 :]
        if not level.directory:
            self.beside = shown
        names.sort()
        return names[: WINDOW + 1]


class _Level:
    """A directory that a walk is in."""

    def __init__(self, directory: str, rules: Ignore, after: list[str]) -> None:
        self.directory = directory
        self.rules = rules
        self.after = after
        """Parts of the path to go on behind, as long as that may still come."""

    def path(self, name: str) -> str:
        return f"{self.directory}/{name}" if self.directory else name


class Glob:
    """A pattern for paths as in a .gitignore, with braces; "!" before it turns it round."""

    def __init__(self, glob: str) -> None:
        self.negative = glob.startswith("!")
        patterns = list(islice(_braces(glob[self.negative :]), MAX_GLOBS + 1))
        if "\n" in glob or "\0" in glob or len(patterns) > MAX_GLOBS:
            raise Refusal("invalid", f"{glob!r} is no glob pattern that could be used")
        lines = "\n".join(f"\\{p}" if p[:1] in ("#", "!") else p for p in patterns)
        self._rules = NOTHING.below("", os.fsencode(lines))

    def matches(self, path: str, is_directory: bool) -> bool:
        """Whether the pattern selects `path`; what is below a directory, it selects by itself."""
        return self._rules.hides(path, is_directory) != self.negative


def _braces(glob: str) -> Iterator[str]:
    """`glob` with each choice in braces taken, as shells do: "*.{c,h}" is "*.c" and "*.h"."""
    depth, start, commas = 0, -1, [0]
    for place, char in enumerate(glob):
        if char == "{":
            if depth == 0:
                start, commas = place, [place]
            depth += 1
        elif char == "," and depth == 1:
            commas.append(place)
        elif char == "}" and depth == 1:
            ends = [*commas, place]
            for tail in _braces(glob[place + 1 :]):
                for before, behind in zip(ends, ends[1:]):
                    for choice in _braces(glob[before + 1 : behind]):
                        yield glob[:start] + choice + tail
            return
        elif char == "}" and depth:
            depth -= 1
    yield glob


def _rules_above(top: str) -> tuple[Ignore, str]:
    """The rules that directories above `top` have for it, and `top` as they name it.

    As in git, a repository's rules end where it does. Outside of one, all directories count.
    """
    above = [top]
    while not os.path.lexists(os.path.join(above[-1], ".git")) and above[-1] != "/":
        above.append(os.path.dirname(above[-1]))
    highest = above[-1].rstrip("/") + "/"
    rules = NOTHING
    for directory in reversed(above[1:]):
        text = read_rules(directory)
        rules = rules.below(directory[len(highest) :], text) if text else rules
    prefix = top[len(highest) :]
    return rules, f"{prefix}/" if prefix else ""


def read_rules(directory: str) -> bytes:
    """What the .gitignore in `directory` says, if there is one."""
    try:
        fd = os.open(os.path.join(directory, ".gitignore"), NONBLOCKING)
    except OSError:
        return b""
    try:
        return os.read(fd, MAX_RULES) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    except OSError:
        return b""
    finally:
        os.close(fd)
