"""Paths in a box as tools take and tell them.

A path is text as the user would type it. Names that text can't hold (other bytes than UTF-8, line
breaks, control characters) are written as a ``file:`` URL (RFC 8089), whose bytes are
percent-encoded: ``file:///workspace/caf%E9``. Inside, such bytes are lone surrogates, as Python's
``os.fsdecode`` makes them.
"""

from __future__ import annotations

from urllib.parse import quote_from_bytes, unquote_to_bytes

WORKSPACE = "/workspace"  # where relative paths start, as `boxd.identity` has it
SCHEME = "file://"
UNQUOTED = "/!$&'()*+,;=:@~"  # what a URL's path may hold, beside letters, digits and -._
ERRORS = "surrogateescape"


def parse(text: str) -> str:
    """The path that a caller means; raises ValueError for what can't be one."""
    path = text
    if text.startswith(SCHEME):
        host, slash, rest = text[len(SCHEME) :].partition("/")
        if host not in ("", "localhost") or not slash:
            raise ValueError("is a file: URL of another machine: use file:///...")
        path = unquote_to_bytes("/" + rest).decode(errors=ERRORS)
    if not path:
        raise ValueError("is empty")
    if "\0" in path:
        raise ValueError("contains a NUL byte")
    return path


def shown(path: str) -> str:
    """`path` as text that `parse` takes; only an absolute one can be told whatever it holds."""
    if path.isprintable() and not path.startswith(SCHEME):
        return path
    if path.startswith("/"):
        return SCHEME + quote_from_bytes(path.encode(errors=ERRORS), safe=UNQUOTED)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in path)
