"""Looks whether a chain of lines is whole, and says where it is not."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from box_mcp.observe.chain import MAX_LINE, Files, Head, digest, links

PATIENCE = 5.0  # s for a server that is writing
MAX_BREAKS = 20  # that are told
MAX_SEEN = 10_000  # lines; of more that were put in at once it is told less well


@dataclass
class Verdict:
    """What was found. `breaks` are where lines were changed, removed, put in or cut off.

    `left_out` more of them are not told. `notes` are what there is an innocent reason for, too.
    `last` is to be noted elsewhere, and given as the head another time.
    """

    lines: int = 0
    first: int = 0
    last: Head = field(default_factory=Head)
    files: list[Path] = field(default_factory=list[Path])
    notes: list[str] = field(default_factory=list[str])
    breaks: list[str] = field(default_factory=list[str])
    left_out: int = 0


@dataclass(frozen=True)
class _Line:
    place: str
    text: bytes


def verify(path: Path, head: str = "") -> Verdict:
    """Reads the present file and the full ones beside it; servers may write meanwhile.

    `head` is ``NUMBER:HASH``, or only a hash, as it was told by an earlier verdict: the lines up to
    that must be there as they were. Raises OSError, and TimeoutError when a server that writes
    does not come to an end.
    """
    verdict = Verdict()
    with _opened(Files(path)) as (files, stored):
        verdict.files = [file for file, _, _ in files]
        reader = _Reader(verdict, head.rpartition(":")[2])
        for file, content, size in files:
            reader.read(_lines(file.name, content, size))
        reader.end(stored, head)
    return verdict


Opened = tuple[Path, IO[bytes], int]


@contextmanager
def _opened(files: Files) -> Generator[tuple[list[Opened], Head | None], None, None]:
    """All files as they are at one moment, the oldest first, and the head that belongs to them."""
    with ExitStack() as stack:
        with files.alone(PATIENCE) if files.written else nullcontext():
            paths = [*(files.older(age) for age in reversed(files.ages())), files.present]
            opened: list[Opened] = []
            for path in paths:
                if path.exists():
                    content = stack.enter_context(path.open("rb"))
                    opened.append((path, content, os.fstat(content.fileno()).st_size))
            stored = files.stored_head()
        if not opened and stored is None:
            raise FileNotFoundError("there is none; servers begin it with their first call")
        yield opened, stored


def _lines(name: str, content: IO[bytes], size: int) -> Iterator[_Line]:
    at = number = 0
    while at < size:
        text = content.readline(min(MAX_LINE, size - at))
        at, number = at + len(text), number + 1
        yield _Line(f"{name}, line {number}", text.removesuffix(b"\n"))


class _Reader:
    """Goes along the chain. `seen` are the hashes of the last lines, by their numbers."""

    def __init__(self, verdict: Verdict, wanted: str) -> None:
        self._verdict = verdict
        self._wanted = wanted
        self._found: int | None = None
        self._seen: OrderedDict[int, str] = OrderedDict()
        self._strangers: list[_Line] = []

    def read(self, lines: Iterable[_Line]) -> None:
        """The lines of one file, after those of all older ones."""
        for line in lines:
            link = links(line.text)
            if link is None:
                self._strangers.append(line)
            else:
                self._take(line, *link)

    def _take(self, line: _Line, n: int, before: str) -> None:
        verdict, counted = self._verdict, self._explain_strangers(before)
        last = verdict.last
        if not verdict.first:
            verdict.first = n
            if n > 1 and not counted:
                verdict.notes.append(
                    f"it begins with line {n}: those before are not there any more"
                )
        elif before != last.hash or n != last.n + 1:
            self._tell(line, n, before)
        verdict.lines += 1
        verdict.last = last.next(line.text, n)
        self._seen[n] = verdict.last.hash
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        if verdict.last.hash == self._wanted:
            self._found = n

    def _explain_strangers(self, before: str) -> bool:
        """Lines that are none of ours: the last may have been cut off in the middle.

        Who went on after a crash counted what was left of its line, and bears the hash of it.
        """
        if not self._strangers:
            return False
        *others, last = self._strangers
        self._strangers = []
        known = digest(last.text) == before
        if known:
            self._verdict.notes.append(f"{last.place} was cut off by a crash or a full disk")
            self._verdict.last = self._verdict.last.next(last.text)
        for line in others if known else [*others, last]:
            self._break(f"{line.place} is no line of an audit: it was put in, or changed")
        return known

    def _tell(self, line: _Line, n: int, before: str) -> None:
        last = self._verdict.last
        if n > last.n + 1:
            one = n == last.n + 2
            gone = f"line {n - 1} is" if one else f"lines {last.n + 1} to {n - 1} are"
            self._break(f"{line.place}: before it, {gone} missing")
        elif n == last.n + 1:
            self._break(f"{line.place}: line {last.n}, which is before it, was changed")
        elif self._seen.get(n - 1) == before:
            self._break(f"{line.place}: before it, lines were put in ({last.n - n + 1})")
        elif n == 1 and not before:
            self._break(f"{line.place}: a new chain begins: the files before were taken away")
        else:
            self._break(
                f"{line.place}: it is line {n}, after line {last.n}: it was put in or moved"
            )

    def end(self, stored: Head | None, head: str) -> None:
        """Compares the end of it with what is known of that."""
        last = self._verdict.last
        for line in self._strangers:
            self._verdict.notes.append(f"{line.place} was cut off by a crash or a full disk")
        if stored is not None and stored.n > last.n:
            self._break(
                f"the last line is {last.n}, but lines up to {stored.n} were written: "
                "they were cut off, or lost by a power cut"
            )
        elif stored is not None and stored.n == last.n and stored.hash != last.hash:
            self._break(f"line {last.n}, the last, was changed")
        if head and self._found is None:
            self._break(self._missing(head))

    def _missing(self, head: str) -> str:
        n = head.rpartition(":")[0]
        verdict = self._verdict
        if not n.isdecimal() or verdict.first <= int(n) <= verdict.last.n:
            return f"no line has the hash that was given ({head}): lines were changed or cut off"
        if int(n) < verdict.first:
            return (
                f"line {n}, whose hash was given, is not there any more: it may be in older files"
            )
        return f"line {n}, whose hash was given, is missing: the end was cut off"

    def _break(self, what: str) -> None:
        if len(self._verdict.breaks) < MAX_BREAKS:
            self._verdict.breaks.append(what)
        else:
            self._verdict.left_out += 1
