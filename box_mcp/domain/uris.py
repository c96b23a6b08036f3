"""URIs of files in boxes: ``box://NAME/files/workspace/a.txt`` is /workspace/a.txt in the box NAME.

Whatever URIs can't hold is percent-encoded, byte by byte, so every name has one. Inside, bytes
that are no UTF-8 are lone surrogates, as in `domain.paths`.
"""

from __future__ import annotations

from urllib.parse import quote_from_bytes, unquote_to_bytes

from box_mcp.domain.paths import ERRORS, UNQUOTED

SCHEME = "box://"
FILES = "files"
TEMPLATE = "box://{box}/files/{+path}"


def file_uri(box: str, path: str, *, directory: bool = False) -> str:
    """The URI of an absolute path; a directory's ends with a slash."""
    end = "/" if directory and not path.endswith("/") else ""
    return f"{SCHEME}{box}/{FILES}/{quoted(path.lstrip('/') + end)}"


def parse_file_uri(uri: str) -> tuple[str, str]:
    """The box, as an id or a name, and the absolute path; raises ValueError for what is none."""
    scheme, _, rest = uri.partition("://")
    box, _, rest = rest.partition("/")
    kind, slash, path = rest.partition("/")
    if f"{scheme.lower()}://" != SCHEME or kind != FILES or not slash or not box:
        raise ValueError(f"no URI of a file in a box: {uri!r}")
    return box.lower(), "/" + unquoted(path).lstrip("/")


def quoted(path: str) -> str:
    """`path` as a part of a URI, or as the value that a URI's template is expanded with."""
    return quote_from_bytes(path.encode(errors=ERRORS), safe=UNQUOTED)


def unquoted(text: str) -> str:
    """The path that is quoted so. ``?`` and ``#`` are part of it: such URIs have no query."""
    return unquote_to_bytes(text.encode(errors="surrogatepass")).decode(errors=ERRORS)
