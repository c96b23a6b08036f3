"""SOCKS 5, as far as TCP connections go: no passwords, names or addresses."""

from __future__ import annotations

from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from box_mcp.domain.network import Host, parse_host, plain
from box_mcp.gateway import http
from box_mcp.gateway.inlet import Inlet
from box_mcp.gateway.visit import Visit
from box_mcp.gateway.ways import Refused, Unreachable

VERSION = 5
_NO_PASSWORD = 0
_CONNECT = 1


class Reply(IntEnum):
    """What a client is told."""

    DONE = 0
    FAILED = 1
    NOT_ALLOWED = 2
    UNREACHABLE = 4
    LATE = 6
    NO_SUCH_COMMAND = 7
    NO_SUCH_ADDRESS = 8


class _NotUnderstood(Exception):
    """The client's request can't be served."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply


async def converse(visit: Visit) -> None:
    """Serves a connection, from the client's first byte on."""
    client = visit.client
    if not await _greet(client):
        return
    try:
        host, port = await _request(client)
        async with visit.reach(host, port) as upstream:
            await _reply(client, Reply.DONE)
            if await visit.tunnel(host, port, upstream):
                await http.converse(visit, (host, port), upstream)
    except _NotUnderstood as error:
        await _reply(client, error.reply)
    except Refused:
        await _reply(client, Reply.NOT_ALLOWED)
    except Unreachable as error:
        await _reply(client, Reply.LATE if error.late else Reply.UNREACHABLE)


async def _greet(client: Inlet) -> bool:
    """Whether client and server agree on going without a password."""
    version, count = await client.exactly(2)
    if version != VERSION:
        return False
    agreed = _NO_PASSWORD in await client.exactly(count)
    await client.send(bytes([VERSION, _NO_PASSWORD if agreed else 0xFF]))
    return agreed


async def _request(client: Inlet) -> tuple[Host, int]:
    version, command, _, kind = await client.exactly(4)
    if version != VERSION:
        raise _NotUnderstood(Reply.FAILED)
    host = await _host(client, kind)
    port = int.from_bytes(await client.exactly(2), "big")
    if command != _CONNECT:
        raise _NotUnderstood(Reply.NO_SUCH_COMMAND)
    if host is None or not port:
        raise _NotUnderstood(Reply.NO_SUCH_ADDRESS)
    return host, port


async def _host(client: Inlet, kind: int) -> Host | None:
    if kind == 1:
        return IPv4Address(await client.exactly(4))
    if kind == 4:
        return plain(IPv6Address(await client.exactly(16)))
    if kind != 3:
        raise _NotUnderstood(Reply.NO_SUCH_ADDRESS)
    (size,) = await client.exactly(1)
    name = await client.exactly(size)
    try:
        return parse_host(name.decode())
    except UnicodeDecodeError:
        return None


async def _reply(client: Inlet, reply: Reply) -> None:
    nowhere = bytes(4 + 2)  # the address and port that this end connects from are nobody's business
    await client.send(bytes([VERSION, reply, 0, 1]) + nowhere)
