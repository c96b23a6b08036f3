"""Services for attacks to aim at, as one program: ``python3 services.py NAME LOG SERVICE...``.

It runs in network namespaces and in boxes, so it takes nothing but the standard library. A service
is ``tcp:PORT``, ``udp:PORT``, ``http:PORT``, ``tls:PORT:CERTIFICATE``, ``ws:PORT``,
``dns:PORT:ZONE`` (a JSON object: a name's addresses, of which each query gets the next one),
``udp:PORT:GROUP`` for a multicast group, or ``unix:@NAME`` for an abstract socket. Whoever is
answered hears NAME; LOG has a line for all that was heard, answered or not. It prints ``ready``
when everything listens.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import json
import socket
import ssl
import struct
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

WEBSOCKET = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
A = 1
NO_ERROR, NO_SUCH_NAME = 0, 3

Serve = Callable[[StreamReader, StreamWriter], Awaitable[None]]
Answer = Callable[[bytes, str], bytes]


class Services:
    """All of one host."""

    def __init__(self, name: str, log: str) -> None:
        self._name = name.encode()
        self._log = open(log, "a", buffering=1)  # noqa: PTH123, SIM115 - until the program ends

    def heard(self, *what: object) -> None:
        self._log.write(" ".join(map(str, what)) + "\n")

    async def tcp(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Says its name, and repeats every line."""
        peer = writer.get_extra_info("peername")
        self.heard("tcp", peer[0] if peer else "unix")
        writer.write(b"this is %b\n" % self._name)
        while line := await reader.readline():
            self.heard("tcp said", said(line))
            writer.write(b"echo " + line)
            await writer.drain()

    async def http(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Answers one request; ``/to/URL`` leads to there, the URL being quoted once more."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode(errors="replace").split("\r\n")
        host = next((line for line in head if line.lower().startswith("host:")), "")
        self.heard("http", writer.get_extra_info("peername")[0], head[0], host)
        target = head[0].split()[1]
        body = b"this is %b, asked for %b\n" % (self._name, target.encode())
        if target.startswith("/to/"):
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: %b\r\n" % unquote(target[4:]).encode())
        else:
            writer.write(b"HTTP/1.1 200 OK\r\n")
        writer.write(b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()

    async def ws(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Shakes hands, and answers one short text after the other."""
        head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        key = next(line.split()[1] for line in head if line.lower().startswith(b"sec-websocket-k"))
        accept = base64.b64encode(hashlib.sha1(key + WEBSOCKET).digest())
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept
        )
        while (await reader.readexactly(1))[0] & 15 == 1:
            length = (await reader.readexactly(1))[0] & 127
            mask = await reader.readexactly(4)
            masked = await reader.readexactly(length)
            message = bytes(byte ^ mask[at % 4] for at, byte in enumerate(masked))
            self.heard("ws said", said(message))
            answer = b"%b heard %b" % (self._name, message)
            writer.write(bytes([0x81, len(answer)]) + answer)

    def udp(self, data: bytes, peer: str) -> bytes:
        """Says its name, and repeats what came."""
        self.heard("udp", peer, said(data))
        return b"this is %b, echo %b" % (self._name, data)

    def dns(self, zone: dict[str, list[str]]) -> Answer:
        """What answers queries from a zone."""
        rounds = {name: itertools.cycle(addresses) for name, addresses in zone.items()}

        def answer(query: bytes, peer: str) -> bytes:
            name, question = question_in(query)
            (kind,) = struct.unpack("!H", question[-4:-2])
            self.heard("dns", peer, name, kind)
            found = b""
            if kind == A and name in rounds:
                address = socket.inet_aton(next(rounds[name]))
                found = struct.pack("!3HIH", 0xC00C, A, 1, 0, 4) + address
            code = NO_ERROR if name in rounds else NO_SUCH_NAME
            counts = struct.pack("!5H", 0x8580 | code, 1, bool(found), 0, 0)
            return query[:2] + counts + question + found

        return answer


def said(data: bytes) -> str:
    """As it stands in the log."""
    return json.dumps(data.decode(errors="replace").rstrip("\n"))


def question_in(query: bytes) -> tuple[str, bytes]:
    """The name that a query asks for, and its whole question."""
    labels: list[str] = []
    at = 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode(errors="replace"))
        at += 1 + length
    return ".".join(labels).lower(), query[12 : at + 5]


class Datagrams(asyncio.DatagramProtocol):
    """Answers each datagram, or leaves it."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        try:
            self._transport.sendto(self._answer(data, addr[0]), addr)
        except (IndexError, struct.error):
            return


def closing(serve: Serve) -> Serve:
    """The same, for connections that come to any end."""

    async def handle(reader: StreamReader, writer: StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (OSError, EOFError, asyncio.LimitOverrunError, IndexError, StopIteration):
            pass
        finally:
            writer.close()

    return handle


def bound(port: int, group: str) -> socket.socket:
    """A socket for datagrams to any address, and to a multicast group on all interfaces."""
    line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    line.bind(("0.0.0.0", port))
    for number, _ in reversed(socket.if_nameindex()) if group else ():
        member = struct.pack("4s4si", socket.inet_aton(group), bytes(4), number)
        try:
            line.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        except OSError:  # it has been removed, or knows no groups, or these are twenty: the newest
            continue
    return line


async def offer(services: Services, words: str) -> None:
    """Listens."""
    kind, port, more = (*words.split(":", 2), "")[:3]
    loop = asyncio.get_running_loop()
    if kind == "unix":
        await asyncio.start_unix_server(closing(services.tcp), port.replace("@", "\0"))
    elif kind == "dns":
        line, answer = bound(int(port), ""), services.dns(json.loads(more))
        await loop.create_datagram_endpoint(lambda: Datagrams(answer), sock=line)
    elif kind == "udp":
        line = bound(int(port), more)
        await loop.create_datagram_endpoint(lambda: Datagrams(services.udp), sock=line)
    else:
        context = None
        if kind == "tls":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(more)
        serve: Serve = services.http if kind == "tls" else getattr(services, kind)
        await asyncio.start_server(closing(serve), None, int(port), ssl=context)


async def main(name: str, log: str, *offers: str) -> None:
    """Serves until it is ended."""
    services = Services(name, log)
    for words in offers:
        await offer(services, words)
    print("ready", flush=True)  # noqa: T201 - for whoever started it
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
