"""What a file's content is, in MIME's words."""

from __future__ import annotations

from functools import cache
from mimetypes import MimeTypes

from box_mcp.boxd.text import MEDIA

BINARY = "application/octet-stream"
DIRECTORY = "inode/directory"
JSON = "application/json"
PLAIN = "text/plain"

TEXTUAL = ("xml", "json", "yaml", "toml", "javascript", "/sql", "/x-sh", "/x-csh", "/x-tex")
"""How types end whose content is text, beside those that begin with ``text/``."""

PACKED = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}
BEGINNINGS = {
    **MEDIA,
    b"PK\x03\x04": "application/zip",
    b"\x1f\x8b": "application/gzip",
}

ENDINGS = {
    ".md": "text/markdown",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".toml": "application/toml",
}
"""What not every Python knows."""


def as_text(content: bytes) -> str | None:
    """`content` as text, if it is UTF-8 without NUL."""
    try:
        return None if b"\0" in content else content.decode()
    except UnicodeDecodeError:
        return None


def media_type(name: str, content: bytes, *, text: bool) -> str:
    """The type that a file's name tells, unless its content can't be of it; else what that tells.

    A ``.ts`` that is text is no video, and a ``.txt`` that is none is not plain text.
    """
    told, packed = _names().guess_type(name)
    guess = PACKED.get(packed, BINARY) if packed else told or ""
    if guess and _textual(guess) is text:
        return guess
    if text:
        return PLAIN
    beginnings = (told for start, told in BEGINNINGS.items() if content.startswith(start))
    return next(beginnings, BINARY)


@cache
def _names() -> MimeTypes:
    """What Python knows, without the machine's own tables."""
    names = MimeTypes()
    for ending, media in ENDINGS.items():
        names.add_type(media, ending)
    return names


def _textual(media: str) -> bool:
    return media.startswith("text/") or media.endswith(TEXTUAL)
