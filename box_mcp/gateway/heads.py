"""The heads of requests, read so that they can have one meaning only; and answers in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus

import anyio
import h11

from box_mcp.gateway.inlet import Inlet

HEAD_LIMIT = 64 * 1024  # bytes of a request's or an answer's head; servers take 8 to 32 KiB
MAX_TOLD = 200  # characters of a request that are repeated to who sent it
LINGER = 2.0  # s for a client to read an answer: closing while it still sends is a reset
LINGER_LIMIT = 1024 * 1024  # bytes of what it still sends
TEXT = "text/plain; charset=utf-8"

_END = re.compile(rb"\n\r?\n")
_AMBIGUOUS = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]")


class Malformed(Exception):
    """A request that no policy would let through; `str` is for whoever sent it."""

    def __init__(self, detail: str, status: int = 400) -> None:
        super().__init__(detail)
        self.status = HTTPStatus(status)


async def next_request(client: Inlet, near: h11.Connection) -> h11.Request | None:
    """The next request's head; None when there is nothing more. Raises Malformed."""
    head = await _head(client)
    if head is None:
        return None
    near.receive_data(head)
    try:
        request = near.next_event()
    except h11.RemoteProtocolError as error:
        raise Malformed(str(error)[:MAX_TOLD], error.error_status_hint) from None
    if not isinstance(request, h11.Request):
        raise Malformed("there is no request")
    lengths = {name for name, _ in request.headers} & {b"content-length", b"transfer-encoding"}
    if request.http_version not in (b"1.0", b"1.1"):
        raise Malformed("HTTP/1.1 is spoken here", HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    if len(lengths) > 1 or (b"transfer-encoding" in lengths and request.http_version == b"1.0"):
        raise Malformed("how long the request is can be understood in two ways")
    return request


async def _head(client: Inlet) -> bytes | None:
    """Up to the empty line; None when there is nothing more. Raises Malformed."""
    seen = 0
    while (end := _END.search(client.buffer, seen, HEAD_LIMIT)) is None:
        if client.buffer and client.buffer[0] <= 0x20:
            raise Malformed("this is no request of plain HTTP/1.1")
        if len(client.buffer) >= HEAD_LIMIT:
            raise Malformed("its head is too large", 431)
        seen = max(0, len(client.buffer) - 3)
        if not await client.more():
            if client.buffer:
                raise Malformed("it ends too early")
            return None
    head = client.take(end.end())
    if _AMBIGUOUS.search(head):
        raise Malformed("its lines do not end in CR LF, or are folded")
    return head


async def answer(
    client: Inlet,
    status: int,
    text: str,
    reason: str = "",
    headers: Mapping[str, str] | None = None,
) -> None:
    """The last answer of a connection, in words; with `headers`, `text` is as these say."""
    body = (text if headers else f"box_mcp: {text}\n").encode()
    lines = [
        f"HTTP/1.1 {status} {reason or _phrase(status)}",
        *(f"{name}: {value}" for name, value in (headers or {"Content-Type": TEXT}).items()),
        "Connection: close",
        f"Content-Length: {len(body)}",
    ]
    await client.send("\r\n".join([*lines, "", ""]).encode() + body)


def _phrase(status: int) -> str:
    """What a status is called; some that others' servers say are nobody's."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


async def part(client: Inlet) -> None:
    """Lets the client read all that was said, before the connection is closed."""
    await client.send_eof()
    left = LINGER_LIMIT
    with anyio.move_on_after(LINGER):
        while left > 0 and await client.more():
            left -= len(client.take())
