"""What commands in the box find because servers offer it: variables, and files they name.

A server gives a file as the name of a variable and a text. Every user in the box may read it, and
commands find its path in the variable. It is there as long as the port that it came with is
listened on, so that what was told of it never goes without while one server follows another.
"""

from __future__ import annotations

import contextlib
import os
import re

from .connection import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    Texts = dict[str, str]

MAX_FILES = 8  # of one offer
MAX_TEXT = 128 * 1024  # bytes of all of them; a request has to fit into a frame besides
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


class Surroundings:
    """Those of a box. `surround` is called with the variables that commands should have."""

    def __init__(self, directory: str, surround: Callable[[Texts], None]) -> None:
        self._directory = directory
        self._surround = surround
        self._there: set[str] = set()

    def change(self, env: Texts, files: Texts, gone: Texts) -> None:
        """From now on commands have `env` and `files`; those that began before, also `gone`.

        Raises Refusal when a file can't be written; the variables are what they were then.
        """
        wanted = {**gone, **files}
        try:
            self._write(wanted)
        except OSError as error:
            why = f"boxd can't write into {self._directory}: {error.strerror}"
            raise Refusal("failed", why) from None
        self._surround({**env, **{name: self._path(name) for name in files}})
        for name in self._there - wanted.keys():
            with contextlib.suppress(OSError):
                os.unlink(self._path(name))
        self._there = set(wanted)

    def _write(self, files: Texts) -> None:
        if files:
            os.makedirs(self._directory, mode=0o755, exist_ok=True)
        for name, text in files.items():
            self._there.add(name)
            new = self._path(f".{name}")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            with open(fd, "wb") as file:
                file.write(text.encode())
            os.rename(new, self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)


def variables_of(request: dict[str, Any]) -> Texts:
    """The ``env`` of a request; raises ValueError for what no program could be given."""
    env = {str(name): str(value) for name, value in dict(request.get("env") or {}).items()}
    if any(not name or "=" in name or "\0" in name + value for name, value in env.items()):
        raise ValueError("these can't be variables")
    return env


def files_of(request: dict[str, Any]) -> Texts:
    """The ``files`` of a request; raises ValueError for anything else than few, short texts."""
    files: dict[str, Any] = dict(request.get("files") or {})
    if len(files) > MAX_FILES or not all(map(_VARIABLE.fullmatch, files)):
        raise ValueError("these can't be the names of files")
    if not all(isinstance(text, str) for text in files.values()):
        raise ValueError("the files are no texts")
    if sum(len(text.encode()) for text in files.values()) > MAX_TEXT:
        raise ValueError("the files are too long")
    return files
