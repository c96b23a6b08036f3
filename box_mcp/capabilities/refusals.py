"""What a box refuses of its files, with what to do next."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from box_mcp.errors import CallRefused

ADVICE = {
    "bad_pattern": "literal=true takes the pattern as plain text",
    "bad_type": 'glob="*.EXT" chooses files by their names',
    "binary": "`file_write` replaces all of it, and `shell_run` can do what is needed",
    "busy": "Repeat the call when some of them are done",
    "changed": (
        "Nothing was done: read it again, then repeat the call with its new version "
        "(`new` where there is no file)"
    ),
    "denied": "`shell_run` may do it, by sudo",
    "exists": "overwrite=true replaces it, unless it is a directory that is not empty",
    "is_directory": "`file_list` tells what is in it",
    "kept": "What is in it can be deleted by name; `box_delete` deletes the whole box",
    "not_a_file": "`shell_run` can read and write it, with a timeout",
    "not_directory": "`file_read` shows a file",
    "not_empty": "recursive=true deletes it with all that is in it",
    "not_started": "`process_list` shows what runs, `process_signal` ends it",
    "too_large": "`shell_run` can do it, by sed, head, split or python3",
    "too_slow": "Ask for less: a deeper path; or let shell_run do it, in the background",
}
"""What to do about a refusal, by its code."""


@contextmanager
def advising(box: str, path: str) -> Generator[None, None, None]:
    """Has refusals inside say what to do next, and what they are about."""
    try:
        yield
    except CallRefused as refused:
        refused.advice = ADVICE.get(refused.code, "")
        refused.place = refused.place or (box, path)
        raise
