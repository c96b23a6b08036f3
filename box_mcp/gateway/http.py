"""An HTTP/1.1 proxy: CONNECT, and requests for ``http://`` addresses, each judged by itself.

Requests are read by h11 and written anew, so that what is sent on has one meaning only; what could
have two is refused. Each gets a connection of its own; the client's is kept.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from http import HTTPStatus

import h11
from anyio.abc import SocketStream

from box_mcp.domain.network import Host, parse_host
from box_mcp.gateway.exchange import WEBSOCKET, Exchange, Outcome, end_to_end, tokens
from box_mcp.gateway.heads import (
    HEAD_LIMIT,
    MAX_TOLD,
    Malformed,
    answer,
    next_request,
    part,
)
from box_mcp.gateway.visit import Visit
from box_mcp.gateway.ways import Refused, Unreachable, target

_ABSOLUTE = re.compile(r"(?i:http)://([^/?#]+)([^#]*)")
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f]*:[0-9A-Fa-f:.]*)\]|([^:\[\]@]+))(?::([0-9]{1,5}))?")
_LENGTHS = frozenset((b"content-length", b"transfer-encoding"))
_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


Place = tuple[Host, int]


async def converse(
    visit: Visit, place: Place | None = None, upstream: SocketStream | None = None
) -> None:
    """Serves one request after the other, from the first byte of a connection on.

    In a tunnel, the client believes to speak to a `place` itself, which is connected already.
    """
    client = visit.client
    try:
        more = await _serve_one(visit, place, upstream)
        while more:
            more = await _serve_one(visit, place)
    except Malformed as error:
        await answer(client, error.status, str(error))
    except Refused as error:
        reason = f"{error.target} is refused by the network policy of this box"
        await answer(client, HTTPStatus.FORBIDDEN, str(error), reason)
    except Unreachable as error:
        status = HTTPStatus.GATEWAY_TIMEOUT if error.late else HTTPStatus.BAD_GATEWAY
        await answer(client, status, str(error), f"{error.target} can not be reached")
    if visit.sound:
        await part(client)


async def _serve_one(
    visit: Visit, place: Place | None, connected: SocketStream | None = None
) -> bool:
    """Whether another request may follow."""
    near = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)
    request = await next_request(visit.client, near)
    if request is None:
        return False
    if request.method == b"CONNECT" and _LENGTHS.intersection(name for name, _ in request.headers):
        raise Malformed("CONNECT takes no body")
    if place is None and request.method == b"CONNECT":
        await _tunnel(visit, *_authority(request.target.decode()))
        return False
    host, port, path = _within(visit, request, place) if place else _destination(request)
    async with nullcontext(connected) if connected else visit.reach(host, port) as upstream:
        outcome = await Exchange(visit.client, near, upstream).run(
            _outgoing(request, host, port, path)
        )
        # What came behind the request: the next one, or the first bytes of another protocol.
        visit.client.buffer[:0] = near.trailing_data[0]
        if outcome is Outcome.SWITCHED:
            await visit.join(upstream)
    if outcome is Outcome.UNANSWERED:
        raise Unreachable(target(host, port), "it gave no answer in HTTP")
    if outcome is Outcome.BROKEN:
        visit.sound = False
    return near.our_state is near.their_state is h11.DONE


async def _tunnel(visit: Visit, host: Host, port: int) -> None:
    async with visit.reach(host, port) as upstream:
        await visit.client.send(_ESTABLISHED)
        if await visit.tunnel(host, port, upstream):
            await converse(visit, (host, port), upstream)


def _within(visit: Visit, request: h11.Request, place: Place) -> tuple[Host, int, bytes]:
    """As `_destination`, for a request in a tunnel; raises Refused when it is for another host."""
    if not request.target.startswith(b"/") and request.target != b"*":
        raise Malformed("a request in a tunnel names a path")
    named = [value.decode("latin-1") for name, value in request.headers if name == b"host"]
    if named and _authority(named[0], place[1])[0] != place[0]:
        raise visit.refuse(*place, f"its request is meant for {named[0][:MAX_TOLD]!r}")
    return *place, request.target


def _destination(request: h11.Request) -> tuple[Host, int, bytes]:
    """Host, port and path of a request to a proxy; raises Malformed."""
    asked = request.target.decode()
    found = _ABSOLUTE.fullmatch(asked)
    if found is None:
        raise Malformed(
            "this is a proxy: it takes CONNECT, and addresses that begin with http://, "
            f"not {asked[:MAX_TOLD]!r}"
        )
    host, port = _authority(found[1], 80)
    path = found[2]
    return host, port, (path if path.startswith("/") else f"/{path}").encode()


def _authority(text: str, port: int = 0) -> tuple[Host, int]:
    """Host and port, or this one where it names none; raises Malformed."""
    found = _AUTHORITY.fullmatch(text)
    host = parse_host(found[1] or found[2]) if found else None
    number = int(found[3] or port) if found else 0
    if found is None or host is None or not 0 < number <= 65535:
        raise Malformed(f"{text[:MAX_TOLD]!r} is neither a name nor an address with a port")
    return host, number


def _outgoing(request: h11.Request, host: Host, port: int, path: bytes) -> h11.Request:
    authority = target(host, port).removesuffix(":80").encode()
    headers = [(name, value) for name, value in end_to_end(request) if name.lower() != b"host"]
    if tokens(request, b"transfer-encoding"):
        headers.append((b"Transfer-Encoding", b"chunked"))
    connection = [(b"Connection", b"close")]
    upgrade = b"upgrade" in tokens(request, b"connection")
    if upgrade and tokens(request, b"upgrade") == {WEBSOCKET}:
        connection = [(b"Connection", b"Upgrade"), (b"Upgrade", WEBSOCKET)]
    return h11.Request(
        method=request.method,
        target=path,
        headers=[(b"Host", authority), *headers, *connection],
    )
