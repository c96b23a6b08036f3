"""What a body must be before anything behind the door reads it; pure.

The SDK reads bodies by two parsers, neither of which is strict: one takes NaN, the other halves of
surrogate pairs too, and nesting that nobody can write down again. Nor is there a bound for what is
made of a body: each `{}` takes twenty times the room of its two bytes.
"""

from __future__ import annotations

from typing import Any, cast

import pydantic_core
from mcp_types import INVALID_REQUEST, PARSE_ERROR

from box_mcp.surface.http.answers import Refused

MAX_VALUES = 100_000
MAX_BEGINNING = 32 * 1024  # bytes of what begins a session, which keeps who the client says it is

_STRUCTURE = b'"[{,'
_ALL_ELSE = bytes(byte for byte in range(256) if byte not in _STRUCTURE)


class Unreadable(Refused):
    """The body is no message."""

    def __init__(self, status: int, why: str, words: str, code: int) -> None:
        super().__init__(status, why, words, counts=False)
        self.code = code


def check(body: bytes) -> None:
    """Raises Refused unless it is one message of JSON-RPC."""
    if _may_be_many(body) and _values(body) > MAX_VALUES:
        words = f"The message has more than {MAX_VALUES:,} values"
        raise Unreadable(413, "too many values", words, INVALID_REQUEST)
    try:
        message = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError:
        raise Unreadable(400, "no JSON", "Parse error: the body is no JSON", PARSE_ERROR) from None
    if not _is_message(message):
        words = "The body must be one request, notification or response of JSON-RPC 2.0"
        raise Unreadable(400, "no JSON-RPC", words, INVALID_REQUEST)
    if len(body) > MAX_BEGINNING and message.get("method") == "initialize":
        words = f"What begins a session has {MAX_BEGINNING:,} bytes at most"
        raise Unreadable(413, "too large a beginning", words, INVALID_REQUEST)


def _may_be_many(body: bytes) -> bool:
    return len(body) > MAX_VALUES and sum(map(body.count, (b",", b"{", b"["))) > MAX_VALUES


def _values(body: bytes) -> int:
    """About how many there are; what stands in strings does not count."""
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    strings = unescaped.count(b'"') // 2
    if strings > MAX_VALUES:
        return strings
    return sum(map(len, unescaped.translate(None, _ALL_ELSE).split(b'"')[::2]))


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict):
        return False
    fields = cast("dict[str, Any]", message)
    number = fields.get("id", "")
    if (
        fields.get("jsonrpc") != "2.0"
        or isinstance(number, bool)
        or not isinstance(number, int | str)
    ):
        return False
    if "method" in fields:
        return isinstance(fields["method"], str) and isinstance(fields.get("params", {}), dict)
    return "id" in fields and isinstance(fields.get("result", fields.get("error")), dict)
