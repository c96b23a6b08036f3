"""Searches with Python's `re`, for boxes without ripgrep; only the expressions differ a little."""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import stat
from collections import deque

from .connection import Refusal
from .query import COUNT, FILES, Page
from .walking import NONBLOCKING, View, Walk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Callable

    from .query import Record, Search

MAX_LINES = 5000  # that are counted
PROBE = 64 * 1024  # bytes of a file, of which one that is 0 makes it binary
NO_FILES = (errno.ELOOP, errno.ENXIO, errno.ENOENT)  # of links, sockets, and what is gone
TYPES = {
    "c": "c h",
    "cpp": "cc cpp cxx c++ h hh hpp hxx inl",
    "css": "css scss",
    "go": "go",
    "html": "htm html ejs",
    "java": "java jsp jspx properties",
    "js": "js jsx mjs cjs vue",
    "json": "json jsonl",
    "md": "markdown md mdown mdwn mkd mkdn mdx",
    "php": "php php3 php4 php5 phtml",
    "py": "py pyi",
    "ruby": "rb rbw gemspec",
    "rust": "rs",
    "sh": "sh bash zsh ksh csh tcsh fish",
    "sql": "sql psql",
    "toml": "toml",
    "ts": "ts tsx cts mts",
    "txt": "txt",
    "xml": "xml xsd xsl xslt svg",
    "yaml": "yaml yml",
}
"""Types of files by their endings, where there is no ripgrep to know many more."""


def search_with_python(wanted: Search) -> tuple[Page, bool]:
    """The page, and whether some files could not be read."""
    page = Page(wanted)
    walk = _Files(wanted)
    page.take(walk, MAX_LINES)
    return page, walk.unreadable


class _Files:
    """Iterates over the records of all files, in order."""

    def __init__(self, wanted: Search) -> None:
        self.unreadable = False
        self._wanted = wanted
        self._finds = _matcher(wanted)
        self._endings = _endings(wanted.type)

    def __iter__(self) -> Iterator[Record]:
        for path in [self._wanted.start] if self._wanted.one_file else self._paths():
            yield from self._in_file(path)

    def _in_file(self, path: str) -> Iterator[Record]:
        try:
            with open(os.path.join(self._wanted.top, path), "rb", opener=_open) as file:
                lines = _lines(file)
                yield from _records(os.fsencode(path), lines, self._finds, self._wanted)
        except OSError as error:
            self.unreadable |= error.errno not in NO_FILES

    def _paths(self) -> Iterator[str]:
        wanted = self._wanted
        walk = Walk(View(wanted.top, hidden=wanted.hidden, gitignore=wanted.gitignore), 1 << 30)
        for visit in walk:
            if (
                visit is not None
                and not visit.is_directory
                and (wanted.glob is None or wanted.glob.matches(visit.path, False))
                and (not self._endings or visit.path.endswith(self._endings))
            ):
                yield visit.path
        self.unreadable |= bool(walk.unreadable)


def _matcher(wanted: Search) -> Callable[[str], object]:
    """Finds what is searched for in a line."""
    letters = re.sub(r"\\.", "", wanted.pattern)
    ignore_case = wanted.case == "-i" or (wanted.case == "-S" and letters == letters.lower())
    pattern = re.escape(wanted.pattern) if wanted.literal else wanted.pattern
    try:
        return re.compile(pattern, re.IGNORECASE if ignore_case else 0).search
    except (re.error, OverflowError, RecursionError) as error:
        raise Refusal("bad_pattern", f"regex parse error: {error}") from None


def _endings(name: str) -> tuple[str, ...]:
    if name and name not in TYPES:
        known = ", ".join(TYPES)
        raise Refusal("bad_type", f"unrecognized file type: {name} (without ripgrep: {known})")
    return tuple(f".{ending}" for ending in TYPES.get(name, "").split())


def _open(path: str, _flags: int) -> int:
    return os.open(path, NONBLOCKING | os.O_NOFOLLOW)


def _lines(file: io.BufferedReader) -> Iterator[bytes]:
    """The lines of a text file; of any other, those before it shows that it is none."""
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return
    start = file.read(PROBE)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = (start + file.read()).decode("utf-16", "replace")
        yield from io.BytesIO(text.encode(errors="replace"))
        return
    if b"\0" in start:
        return
    file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
    for line in file:
        if b"\0" in line:
            return
        yield line


def _records(
    path: bytes, lines: Iterator[bytes], finds: Callable[[str], object], wanted: Search
) -> Iterator[Record]:
    """What one file has to tell."""
    before: deque[Record] = deque(maxlen=wanted.context)
    following = found = 0
    for number, line in enumerate(lines, 1):
        text = line[:-1] if line.endswith(b"\n") else line
        if finds(text.decode(errors="surrogateescape")):
            found += 1
            if wanted.mode == FILES:
                yield path, 0, True, b""
                return
            if wanted.mode != COUNT:
                yield from before
                yield path, number, True, text
            before.clear()
            following = wanted.context
        elif following:
            following -= 1
            yield path, number, False, text
        else:
            before.append((path, number, False, text))
    if found and wanted.mode == COUNT:
        yield path, 0, True, b"%d" % found
