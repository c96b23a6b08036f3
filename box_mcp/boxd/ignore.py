"""What .gitignore files leave out of a tree, as git itself reads them; no I/O.

Git compares bytes, so this does too. Each file's rules become a few regular expressions: rules in
a row that hide are one, and so are those that show again, since of all that match the last wins.
Both ends import this module; see `wire`.
"""

from __future__ import annotations

import re
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Table = dict[str, set[int]]
    Wildcard = tuple[bytes, bytes]
    Part = tuple[Wildcard, bytes]

BOM = b"\xef\xbb\xbf"
SPECIAL = b"*?[\\"
SLASH = ord("/")
PRINTED = set(range(0x21, 0x7F))
CLASSES: Table = {
    "alpha": {*range(0x41, 0x5B), *range(0x61, 0x7B)},
    "blank": {0x09, 0x20},
    "cntrl": {*range(0x20), 0x7F},
    "digit": set(range(0x30, 0x3A)),
    "graph": PRINTED,
    "lower": set(range(0x61, 0x7B)),
    "print": {0x20, *PRINTED},
    "space": {0x09, 0x0A, 0x0D, 0x20},
    "upper": set(range(0x41, 0x5B)),
    "xdigit": {*range(0x30, 0x3A), *range(0x41, 0x47), *range(0x61, 0x67)},
}
CLASSES["alnum"] = CLASSES["alpha"] | CLASSES["digit"]
CLASSES["punct"] = PRINTED - CLASSES["alnum"]


START = (b"", b"")
NEAR = (b"[^/]*", b"[^/]*?")
DEEP = (b"(?:.*/)?", b"(?:.*?/)??")
ALL = (b".*", b".*?")
"""What is matched by nothing and by stars: as much as possible, and as little."""

ONCE = b"(?>%s)" if sys.version_info >= (3, 11) else b"(?:%s)"
"""Does not look for another way to match when what follows does not."""


class Ignore:
    """The rules that hold in a tree; `Ignore()` has none.

    Names are text with lone surrogates for what is no UTF-8, paths relative to the tree's top and
    divided by "/".
    """

    def __init__(self, groups: tuple[_Group, ...] = ()) -> None:
        self._groups = groups

    def __repr__(self) -> str:
        return f"<Ignore {len(self._groups)} groups of rules>"

    def below(self, directory: str, text: bytes) -> Ignore:
        """These, and the rules of `directory`'s own .gitignore; "" is the top of the tree."""
        base = _encoded(directory) + b"/" if directory else b""
        return Ignore((*reversed(_groups(base, _rules(text))), *self._groups))

    def hides(self, path: str, is_directory: bool) -> bool:
        """What the last rule that matches `path` says of it.

        Of its parents only whoever walks the tree knows: what is below a hidden one is hidden.
        """
        name = _encoded(path)
        for group in self._groups:
            if group.matches(name, is_directory):
                return group.hides
        return False


NOTHING = Ignore()


class Rule:
    """One line: does it hide or show again, of directories only, by name or by path, what?"""

    def __init__(self, line: bytes) -> None:
        self.hides = not line.startswith(b"!")
        line = line[not self.hides :]
        self.for_directories = line.endswith(b"/")
        line = line[: len(line) - self.for_directories]
        self.by_path = b"/" in line
        line = line[line.startswith(b"/") :]
        self.pattern = _translated(line) if line else None
        """A regular expression, or None when nothing can match."""


class _Group:
    """Rules in a row that say the same, as two expressions for files and two for directories."""

    def __init__(self, base: bytes, rules: list[Rule]) -> None:
        self.hides = rules[0].hides
        self._base = base
        self._for_files = _Either([rule for rule in rules if not rule.for_directories])
        self._for_directories = _Either(rules)

    def matches(self, path: bytes, is_directory: bool) -> bool:
        if not path.startswith(self._base):
            return False
        either = self._for_directories if is_directory else self._for_files
        return either.matches(path[len(self._base) :])


class _Either:
    """Whether one of some rules matches."""

    def __init__(self, rules: list[Rule]) -> None:
        self._by_name = _any_of(rule.pattern for rule in rules if not rule.by_path)
        self._by_path = _any_of(rule.pattern for rule in rules if rule.by_path)

    def matches(self, path: bytes) -> bool:
        if self._by_name and self._by_name.fullmatch(path, path.rfind(b"/") + 1):
            return True
        return bool(self._by_path and self._by_path.fullmatch(path))


def _groups(base: bytes, rules: list[Rule]) -> list[_Group]:
    runs: list[list[Rule]] = []
    for rule in rules:
        if not runs or runs[-1][0].hides != rule.hides:
            runs.append([])
        runs[-1].append(rule)
    return [_Group(base, run) for run in runs]


def _rules(text: bytes) -> list[Rule]:
    """The rules of a .gitignore file that can match something."""
    text = text[len(BOM) :] if text.startswith(BOM) else text
    lines = (line[:-1] if line.endswith(b"\r") else line for line in text.split(b"\n"))
    rules = [
        Rule(_without_spaces(line.partition(b"\0")[0]))
        for line in lines
        if not line.startswith(b"#")
    ]
    return [rule for rule in rules if rule.pattern is not None]


def _without_spaces(line: bytes) -> bytes:
    """`line` without the spaces at its end, unless the first of them is escaped."""
    stripped = line.rstrip(b" ")
    backslashes = len(stripped) - len(stripped.rstrip(b"\\"))
    return line[: len(stripped) + 1] if backslashes % 2 else stripped


def _any_of(patterns: Iterable[bytes | None]) -> re.Pattern[bytes] | None:
    known = list(dict.fromkeys(pattern for pattern in patterns if pattern is not None))
    return re.compile(b"|".join(known), re.DOTALL) if known else None


def _encoded(path: str) -> bytes:
    return path.encode(errors="surrogateescape")


def _translated(glob: bytes) -> bytes | None:
    """A regular expression for all of a path, or of a name; None when `glob` is malformed."""
    parts: list[Part] = []
    wildcard, text = START, b""
    place = 0
    first = next((place for place, char in enumerate(glob) if char in SPECIAL), len(glob))
    while place < len(glob):
        char = glob[place : place + 1]
        if char == b"*":
            end = len(glob) - len(glob[place:].lstrip(b"*"))
            # Git takes what is before the first special character for known: so ** stands at the
            # beginning there, even in "a**/b".
            at_start = place == first or glob[place - 1] == SLASH
            parts.append((wildcard, text))
            wildcard, place = _stars(glob, end, at_start and end - place > 1)
            text = b""
            continue
        if char == b"[":
            found = _set(glob, place + 1)
            if found is None:
                return None
            piece, place = found
        elif char == b"\\":
            if place + 1 == len(glob):
                return None
            piece, place = re.escape(glob[place + 1 : place + 2]), place + 2
        else:
            piece, place = b"[^/]" if char == b"?" else re.escape(char), place + 1
        text += piece
    return _joined([*parts, (wildcard, text)])


def _joined(parts: list[Part]) -> bytes:
    """One expression for wildcards, each with the text behind it.

    All but the last of a kind are content with the first place where what is behind them matches,
    since the next can make up for any other: so no name, however wicked, takes long.
    """
    expression = block = b""
    near_follows = deep_follows = False
    for wildcard, text in reversed(parts):
        if wildcard is NEAR:
            block = _matching(wildcard, text, near_follows) + block
            near_follows = True
        else:
            expression = _matching(wildcard, text + block, deep_follows) + expression
            block, near_follows, deep_follows = b"", False, True
    return expression


def _matching(wildcard: Wildcard, behind: bytes, another_follows: bool) -> bytes:
    most, least = wildcard
    return ONCE % (least + behind) if another_follows else most + behind


def _stars(glob: bytes, end: int, across: bool) -> tuple[Wildcard, int]:
    """What stars that end before `end` match, and where the glob goes on."""
    following = glob[end : end + 2]
    if across and following.startswith(b"/"):
        return DEEP, end + 1
    if across and (not following or following == b"\\/"):
        return ALL, end
    return NEAR, end


def _set(glob: bytes, place: int) -> tuple[bytes, int] | None:
    """The set of characters that begins at `place`, and where the glob goes on."""
    negated = glob[place : place + 1] in (b"!", b"^")
    found = _members(glob, place + negated)
    if found is None:
        return None
    members, place = found
    chosen = (set(range(1, 256)) - members if negated else members) - {SLASH}
    if not chosen:
        return b"(?!)", place
    return b"[" + b"".join(b"\\x%02x" % char for char in sorted(chosen)) + b"]", place


def _members(glob: bytes, place: int) -> tuple[set[int], int] | None:
    """The bytes between brackets, and the position behind the closing one; None without one."""
    members: set[int] = set()
    previous = 0  # where a range may begin
    start = place
    while place < len(glob):
        char = glob[place]
        if char == ord("]") and place > start:
            return members, place + 1
        if char == ord("[") and glob[place + 1 : place + 2] == b":":
            name, bracket, _ = glob[place + 2 :].partition(b"]")
            if not bracket:
                return None
            if name.endswith(b":"):
                known = CLASSES.get(name[:-1].decode("latin-1"))
                if known is None:
                    return None
                members |= known
                previous, place = 0, place + 3 + len(name)
                continue
        is_range = char == ord("-") and previous and glob[place + 1 : place + 2] not in (b"", b"]")
        place += bool(is_range)
        if glob[place] == ord("\\"):
            place += 1
            if place == len(glob):
                return None
        char = glob[place]
        members |= set(range(previous, char + 1)) if is_range else {char}
        previous, place = 0 if is_range else char, place + 1
    return None
