"""Searches with ripgrep, which is quicker than anything else.

It searches with many threads, but then tells files in no order; in order, it takes one. So it is
run without order first, and what it finds is sorted. Only when that is more than `MAX_LINES` or
`MAX_BYTES` is it run again in order, until there is enough for a page.
"""

from __future__ import annotations

import os
import re
import signal

from .connection import Refusal
from .query import COUNT, FILES, Page
from .walking import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .query import Record, Search

MAX_LINES = 5000  # that are sorted, and so counted
MAX_BYTES = 4 * 1024 * 1024  # of them
CUT_AT = 2000  # bytes of a line that it prints: always more characters than are told
BLOCK = 256 * 1024  # bytes read at once
PANICKED = 101  # how it ends then
FAULTS = {"regex parse error": "bad_pattern", "unrecognized file type": "bad_type"}
NOTICE = re.compile(
    rb"[^\0]*?: (?:WARNING: stopped searching )?binary file (?:matches|after match) "
    rb'\(found "\\0" byte around offset \d+\)\n'
)
"""What ripgrep prints after matches in a file that turns out to be binary."""


def search_with_ripgrep(wanted: Search, program: str) -> tuple[Page, bool]:
    """The page, and whether some files could not be read."""
    page = Page(wanted)
    ripgrep = _Ripgrep(wanted, program, in_order=False)
    records: list[Record] = []
    size = 0
    for record in ripgrep:
        size += len(record[3])
        records.append(record)
        if len(records) > MAX_LINES or size > MAX_BYTES:
            ripgrep.kill()
            ripgrep = _Ripgrep(wanted, program, in_order=True)
            page.take(ripgrep, 0)
            ripgrep.kill()
            return page, ripgrep.unreadable
    records.sort(key=lambda record: (record[0].split(b"/"), record[1]))
    page.take(records, MAX_LINES)
    return page, ripgrep.unreadable


class _Ripgrep:
    """One run of it; iterates over its records."""

    def __init__(self, wanted: Search, program: str, *, in_order: bool) -> None:
        self.unreadable = False
        self._wanted = wanted
        self._view = View(wanted.top, hidden=wanted.hidden, gitignore=wanted.gitignore)
        self._errors = os.memfd_create("errors", os.MFD_CLOEXEC)
        os.chdir(wanted.top)
        self._output, sink = os.pipe()
        environment = {k: v for k, v in os.environ.items() if k != "RIPGREP_CONFIG_PATH"}
        places = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)]
        places += [(os.POSIX_SPAWN_DUP2, sink, 1), (os.POSIX_SPAWN_DUP2, self._errors, 2)]
        arguments = [program, *_flags(wanted), *(["--sort", "path"] if in_order else [])]
        arguments += ["-e", wanted.pattern, "--", f"./{wanted.start}"]
        try:
            self._pid = os.posix_spawn(program, arguments, environment, file_actions=places)
        except BlockingIOError:
            raise _no_process() from None
        os.close(sink)

    def __iter__(self) -> Iterator[Record]:
        parse = _without_content if self._wanted.mode == FILES else _with_content
        data = b""
        while piece := os.read(self._output, BLOCK):
            records, data = parse(data + piece)
            for record in records:
                if self._is_shown(record[0]):
                    yield record
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        self._judge(os.waitstatus_to_exitcode(status))

    def kill(self) -> None:
        """Ends it, however far it is."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0
        os.close(self._output)

    def _is_shown(self, path: bytes) -> bool:
        """To ripgrep, a glob that matches outweighs that a file is hidden or ignored."""
        glob = self._wanted.glob
        return glob is None or glob.negative or self._view.reaches(os.fsdecode(path))

    def _judge(self, status: int) -> None:
        """Raises Refusal when it could not search."""
        said = os.pread(self._errors, 4096, 0).decode(errors="replace").strip()
        if status == PANICKED and "failed to spawn" in said:  # a thread
            raise _no_process()
        if status not in (0, 1) and said:
            said = said.partition("\n\nConsider ")[0]  # using options that callers don't have
            code = next(
                (code for start, code in FAULTS.items() if said.startswith(start)), "invalid"
            )
            raise Refusal(code, said)
        if status < 0:
            raise Refusal("failed", f"ripgrep was ended by signal {-status}")
        self.unreadable = status == 2


def _no_process() -> Refusal:
    return Refusal("not_started", "the box's process table is full")


def _flags(wanted: Search) -> list[str]:
    flags = ["--no-config", "--color=never", "--no-heading", "--with-filename", "--line-number"]
    flags += ["--null", "--no-messages", "--no-require-git", "--no-ignore-global"]
    flags += ["--no-ignore-exclude", "--no-ignore-dot", "--no-context-separator", wanted.case]
    flags += [f"--max-columns={CUT_AT}", "--max-columns-preview"]
    flags += ["--fixed-strings"] if wanted.literal else []
    flags += ["--hidden"] if wanted.hidden else []
    flags += [] if wanted.gitignore else ["--no-ignore"]
    flags += [f"--glob={wanted.glob_text}"] if wanted.glob else []
    flags += ["--glob=!.git"] if wanted.hidden and wanted.gitignore else []
    flags += [f"--type={wanted.type}"] if wanted.type else []
    if wanted.mode == FILES:
        return [*flags, "--files-with-matches"]
    return [*flags, "--count" if wanted.mode == COUNT else f"--context={wanted.context}"]


def _without_content(data: bytes) -> tuple[list[Record], bytes]:
    """The records that `data` holds, a path each, and what is left of it."""
    *paths, rest = data.split(b"\0")
    return [(_relative(path), 0, True, b"") for path in paths], rest


def _with_content(data: bytes) -> tuple[list[Record], bytes]:
    """The records that `data` holds, and what is left of it.

    Each is a path, a byte 0, and a line: a count, or a number, ":" or "-", and text.
    """
    records: list[Record] = []
    start = 0
    while True:
        if notice := NOTICE.match(data, start):
            start = notice.end()
        path_end = data.find(b"\0", start)
        end = data.find(b"\n", path_end) if path_end >= 0 else -1
        if end < 0:
            return records, data[start:]
        content = data[path_end + 1 : end]
        number = content[: len(content) - len(content.lstrip(b"0123456789"))]
        mark, text = content[len(number) : len(number) + 1], content[len(number) + 1 :]
        path = _relative(data[start:path_end])
        records.append((path, int(number), mark == b":", text) if mark else (path, 0, True, number))
        start = end + 1


def _relative(path: bytes) -> bytes:
    return path[2:] if path.startswith(b"./") else path
