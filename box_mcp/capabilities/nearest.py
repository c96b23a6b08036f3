"""The place in a text that is most like one that was not found in it, in words for who looked."""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from heapq import nlargest

MAX_LINES = 200_000  # of a text that are looked at
MAX_COMPARED = 3_000  # lines that are compared letter by letter
MAX_LENGTH = 400  # characters of a line that are compared
MAX_SECONDS = 2.0  # for comparing; wicked lines take 30 ms each, and nobody can end it
MAX_SHOWN = 20  # lines that are shown
SHOWN_LENGTH = 150  # characters of each of them
LIKE = 0.6  # from this likeness on a place is worth showing
NUMBER = re.compile(r"\s*\d+(?:→\t?|[\t:|])")  # of a line, as file_read and other tools tell it
COMMON = 50  # lines that a text has more often than this tell no place


@dataclass(frozen=True)
class Place:
    """Lines `first` to `last` (from 1) of a text; `spaces`: only white space is different there."""

    first: int
    last: int
    spaces: bool


def explain(text: str, wanted: str) -> str:
    """What is most like `wanted` in `text`, where it is, and what is different there."""
    lines, sought = _lines(text), _lines(wanted)
    bare = "\n".join(NUMBER.sub("", line, 1) for line in sought)
    if bare and all(map(NUMBER.match, sought)) and bare in "\n".join(lines):
        return "Without the line numbers in `old` it is there: they are no part of the file"
    place = nearest(lines, sought)
    if place is None:
        return "There is nothing like it: read the file again"
    found = lines[place.first - 1 : place.last]
    spaces = "only white space is different, " if place.spaces else ""
    difference = _difference(place.first, found, sought)
    if len(found) == 1:
        return f"The nearest text: {spaces}{difference}"
    shown = [f"{n}\t{line[:SHOWN_LENGTH]}" for n, line in enumerate(found, place.first)]
    if len(shown) > MAX_SHOWN:
        shown[MAX_SHOWN:] = ["..."]
    where = f"lines {place.first}-{place.last}"
    return "\n".join([f"The nearest text is on {where}: {spaces}{difference}:", *shown, ""])


def nearest(lines: Sequence[str], sought: Sequence[str]) -> Place | None:
    """The lines that are most like those `sought`; None when none are."""
    if not any(line.strip() for line in sought):
        return None
    start = _same(lines, sought)
    if start is not None:
        return Place(start + 1, start + len(sought), spaces=True)
    tidy, wanted = [_tidy(line) for line in lines], [_tidy(line) for line in sought]
    start = _start_by_votes(tidy, wanted)
    if start is None:
        start = _start_by_likeness(tidy, wanted)
    if start is None:
        return None
    return Place(max(start, 0) + 1, min(start + len(sought), len(lines)), spaces=False)


def _same(lines: Sequence[str], sought: Sequence[str]) -> int | None:
    """Where all is the same but for white space; the outer lines may be parts of lines."""
    bare, wanted = ["".join(line.split()) for line in lines], ["".join(s.split()) for s in sought]
    if len(wanted) == 1:
        return next((start for start, line in enumerate(bare) if wanted[0] in line), None)
    first, *inner, last = wanted
    for start in range(len(bare) - len(wanted) + 1):
        end = start + len(wanted) - 1
        if (
            bare[start].endswith(first)
            and bare[end].startswith(last)
            and bare[start + 1 : end] == inner
        ):
            return start
    return None


def _start_by_votes(lines: list[str], sought: list[str]) -> int | None:
    """Where a third of the lines sought are, at least, each where it should be."""
    places: defaultdict[str, list[int]] = defaultdict(list)
    for number, line in enumerate(lines):
        places[line].append(number)
    told = [(number, line) for number, line in enumerate(sought) if line]
    votes = Counter(
        place - number
        for number, line in told
        if len(places.get(line, ())) <= COMMON
        for place in places.get(line, ())
    )
    start, count = votes.most_common(1)[0] if votes else (None, 0)
    return start if count * 3 >= len(told) else None


def _start_by_likeness(lines: list[str], sought: list[str]) -> int | None:
    """Where the line is that is most like the longest one sought."""
    number, longest = max(enumerate(sought), key=lambda item: len(item[1]))
    matcher = SequenceMatcher(b=longest[:MAX_LENGTH], autojunk=False)
    best, place = LIKE, None
    deadline = time.monotonic() + MAX_SECONDS
    for candidate in _candidates(lines, longest):
        if time.monotonic() > deadline:
            break
        matcher.set_seq1(lines[candidate][:MAX_LENGTH])
        if matcher.real_quick_ratio() > best and matcher.quick_ratio() > best:
            ratio = matcher.ratio()
            if ratio > best:
                best, place = ratio, candidate
    return None if place is None else place - number


def _candidates(lines: list[str], line: str) -> Iterable[int]:
    """The lines that share the most words with `line`, at most `MAX_COMPARED`."""
    if len(lines) <= MAX_COMPARED:
        return range(len(lines))
    words = _words(line)
    shared = ((len(words & _words(other)), -number) for number, other in enumerate(lines))
    return [-number for common, number in nlargest(MAX_COMPARED, shared) if common]


def _words(line: str) -> set[str]:
    return set("".join(c if c.isalnum() else " " for c in line[:MAX_LENGTH]).split())


def _lines(text: str) -> list[str]:
    """The lines of a text as files count them: no other signs than line feeds begin one."""
    lines = text.split("\n", MAX_LINES)[:MAX_LINES]
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _tidy(line: str) -> str:
    return " ".join(line.split())


def _difference(first: int, found: Sequence[str], sought: Sequence[str]) -> str:
    """The first line that is not the same, as it is here and there."""
    for number, (here, there) in enumerate(zip(found, sought, strict=False)):
        outer = number in (0, len(sought) - 1)  # `old` may begin and end within a line
        if here != there and not (outer and there in here):
            # As literals, in which tabs and spaces can be told apart.
            return (
                f"line {first + number} is {here[:SHOWN_LENGTH]!r}, "
                f"where `old` has {there[:SHOWN_LENGTH]!r}"
            )
    return "`old` has a line break, at its beginning or end, that is not there"
