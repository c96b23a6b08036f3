"""Exact replacements in a text, and which lines they changed. No I/O.

The text is bytes in an encoding in which a line break is one byte. What takes long is a generator
that yields now and then, so that others get their turn.
"""

from __future__ import annotations

from .connection import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from typing import Any

    Span = tuple[int, int, int]  # of the original, from and to; size of what is there instead
    Hunk = tuple[int, int, bytes, bytes]  # number of the first line, and the lines: old and new

MAX_SIZE = 16 * 1024 * 1024  # bytes of a text, before and after
MAX_PLACES = 5_000  # replacements by all edits together
MAX_TOLD = 10  # lines that are told where an edit matches more than once
CONTEXT = 3  # lines around a change
STEP = 256  # matches between two turns of others


class Edit:
    """`old` is to become `new`: where it is found, which must be one place unless `everywhere`."""

    __slots__ = ("everywhere", "new", "old")

    def __init__(self, old: str, new: str, everywhere: bool) -> None:
        if not old:
            raise Refusal("invalid", "`old` is empty: file_write makes and appends to files")
        if old == new:
            raise Refusal("invalid", "`old` and `new` are the same")
        self.old = old
        self.new = new
        self.everywhere = everywhere


class Unmatched(Exception):
    """An edit, counted from 1, matches nothing, or more than one place."""

    def __init__(self, edit: int, matches: int, lines: list[int]) -> None:
        super().__init__(edit, matches, lines)
        self.told: dict[str, Any] = {"edit": edit, "matches": matches, "lines": lines}


def apply(
    text: bytes, edits: Iterable[Edit], encoding: str, *, crlf: bool
) -> Generator[bytes, None, tuple[bytes, list[Span], int]]:
    """What `text` becomes by one edit after the other, what was replaced, and how often.

    `crlf`: lines end so. Raises Unmatched and Refusal.
    """
    spans: list[Span] = []
    total = 0
    for number, edit in enumerate(edits, 1):
        places: list[int] = []
        old = new = b""
        for old, new in _spellings(edit, encoding, crlf):  # noqa: B007 - the last one tried
            places = yield from _places(text, old)
            if places:
                break
        if not places or (len(places) > 1 and not edit.everywhere):
            raise Unmatched(number, len(places), _lines_of(text, places))
        total += len(places)
        if total > MAX_PLACES:
            raise Refusal("too_large", f"the edits match more than {MAX_PLACES:,} places")
        if len(text) + len(places) * (len(new) - len(old)) > MAX_SIZE:
            raise Refusal("too_large", f"the file would grow beyond {MAX_SIZE:,} bytes")
        text = yield from _replaced(text, places, old, new)
        spans = composed(spans, [(place, place + len(old), len(new)) for place in places])
    return text, spans, total


def composed(first: list[Span], second: list[Span]) -> list[Span]:
    """Spans of the original for both, where `second` was done to what `first` had left."""
    marks: list[tuple[int, int, int, int]] = []  # in between: from and to; growth before, after
    shift = 0
    for start, end, size in first:
        marks.append((start + shift, start + shift + size, end - start - size, 0))
        shift += size - (end - start)
    marks += [(start, end, 0, size - (end - start)) for start, end, size in second]
    groups: list[tuple[int, int, int, int]] = []
    for start, end, before, after in sorted(marks):
        if groups and start <= groups[-1][1]:
            begin, last, so_far, also = groups[-1]
            groups[-1] = (begin, max(last, end), so_far + before, also + after)
        else:
            groups.append((start, end, before, after))
    spans: list[Span] = []
    shift = 0
    for start, end, before, after in groups:
        spans.append((start + shift, end + shift + before, end - start + after))
        shift += before
    return spans


def hunks(old: bytes, new: bytes, spans: list[Span]) -> Generator[Hunk, None, None]:
    """The lines that changed, with some around them, in order."""
    old_line = new_line = 1
    at = 0
    for old_start, old_end, new_start, new_end in _line_ranges(old, new, spans):
        untouched = old.count(b"\n", at, old_start)
        old_line, new_line, at = old_line + untouched, new_line + untouched, old_end
        before, after = old[old_start:old_end], new[new_start:new_end]
        yield old_line, new_line, before, after
        old_line += before.count(b"\n")
        new_line += after.count(b"\n")


def _spellings(edit: Edit, encoding: str, crlf: bool) -> Generator[tuple[bytes, bytes], None, None]:
    """The edit in bytes: where lines end in CR LF, so do its own, or else as they are."""
    if crlf:
        yield from _encoded(_with_crlf(edit.old), _with_crlf(edit.new), encoding)
    yield from _encoded(edit.old, edit.new, encoding)


def _encoded(old: str, new: str, encoding: str) -> Generator[tuple[bytes, bytes], None, None]:
    try:
        wanted = old.encode(encoding)
    except UnicodeEncodeError:  # so it can't be in the file
        return
    try:
        yield wanted, new.encode(encoding)
    except UnicodeEncodeError as error:
        bad = ascii(new[error.start : error.end][:20])
        raise Refusal("invalid", f"the file's encoding, {encoding}, has no {bad}") from None


def _with_crlf(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\n", "\r\n")


def _places(text: bytes, wanted: bytes) -> Generator[bytes, None, list[int]]:
    places: list[int] = []
    start = text.find(wanted)
    while start >= 0:
        places.append(start)
        if len(places) > MAX_PLACES:
            raise Refusal("too_large", f"an edit matches more than {MAX_PLACES:,} places")
        if len(places) % STEP == 0:
            yield b""
        start = text.find(wanted, start + len(wanted))
    yield b""
    return places


def _replaced(
    text: bytes, places: list[int], old: bytes, new: bytes
) -> Generator[bytes, None, bytes]:
    kept = memoryview(text)
    parts: list[bytes | memoryview] = []
    at = 0
    for place in places:
        parts += (kept[at:place], new)
        at = place + len(old)
    yield b""
    return b"".join([*parts, kept[at:]])


def _lines_of(text: bytes, places: list[int]) -> list[int]:
    lines: list[int] = []
    line, at = 1, 0
    for place in places[:MAX_TOLD]:
        line += text.count(b"\n", at, place)
        at = place
        lines.append(line)
    return lines


def _line_ranges(
    old: bytes, new: bytes, spans: list[Span]
) -> Generator[tuple[int, int, int, int], None, None]:
    """From and to, in `old` and in `new`, of the lines of each hunk."""
    shift = begun = old_start = old_end = line_end = 0
    for number, (start, end, size) in enumerate(spans):
        grown = shift + size - (end - start)
        if end < line_end:  # in the line that the last one ended in: lines can be very long
            shift = grown
            continue
        first = _lines_back(old, start)
        if number and first > old_end:
            yield old_start, old_end, old_start + begun, old_end + shift
        if not number or first > old_end:
            old_start, begun = first, shift
        shift = grown
        # Where whole lines gave way to whole lines, the next one is untouched.
        whole = _at_line_start(old, end) and _at_line_start(new, end + shift)
        line_end = end if whole else _lines_on(old, end, 1)
        old_end = _lines_on(old, line_end, CONTEXT)
    if spans:
        yield old_start, old_end, old_start + begun, old_end + shift


def _at_line_start(text: bytes, position: int) -> bool:
    return position == 0 or text[position - 1] == 0x0A


def _lines_back(text: bytes, position: int) -> int:
    """Where the line begins that lies `CONTEXT` lines before the one of `position`."""
    start = text.rfind(b"\n", 0, position) + 1
    for _ in range(CONTEXT):
        if start == 0:
            break
        start = text.rfind(b"\n", 0, start - 1) + 1
    return start


def _lines_on(text: bytes, position: int, count: int) -> int:
    """Where the line ends that is the `count`-th from `position` on."""
    for _ in range(count):
        position = text.find(b"\n", position) + 1 or len(text)
    return position
