"""HTTP as bytes: requests of any shape, and answers taken apart strictly."""

from __future__ import annotations

import re
import socket
import struct
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

Head = list[tuple[bytes, bytes]]

MODERN, LEGACY = "2026-07-28", "2025-11-25"
PATIENCE = 10.0
"""Seconds; whoever gets no answer for so long is stuck."""

STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [ -~]*")
FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\t -~]*)")


class Malformed(AssertionError):
    """What came is no answer of HTTP."""


class CutOff(Malformed):
    """The server hung up within an answer."""


@dataclass(frozen=True)
class Caller:
    """Who sends: to which server, by which token, in which session of the older era."""

    port: int
    token: str
    session: str = ""

    def head(self, message: Any = None, era: str = MODERN) -> Head:
        """What a client would send with `message`, as far as that makes sense."""
        head = [
            (b"Host", b"127.0.0.1:%d" % self.port),
            (b"Authorization", b"Bearer " + self.token.encode()),
            (b"Accept", b"application/json, text/event-stream"),
            (b"Content-Type", b"application/json"),
            (b"MCP-Protocol-Version", era.encode()),
        ]
        if era == LEGACY:
            return [*head, *([(b"Mcp-Session-Id", self.session.encode())] if self.session else [])]
        method, name = routed(message)
        return [*head, (b"Mcp-Method", method), *([(b"Mcp-Name", name)] if name else [])]

    def post(self, body: bytes, message: Any = None, era: str = MODERN) -> bytes:
        """A whole request."""
        return request([*self.head(message, era), (b"Content-Length", b"%d" % len(body))], body)


@dataclass(frozen=True)
class Answer:
    """One answer; `raw` is all of it."""

    status: int
    headers: dict[str, str]
    body: bytes
    raw: bytes = field(repr=False)

    @property
    def closes(self) -> bool:
        """Whether it is the last one on its connection."""
        return self.headers.get("connection", "").lower() == "close"


class RawLine:
    """A connection on which anything may be sent."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        self._bodiless = False

    def close(self) -> None:
        self.socket.close()

    def end(self) -> None:
        """Says that no more will come."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Closes it as if the client had crashed."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Sends it, or as much as the server takes before it hangs up."""
        self._bodiless = data.startswith(b"HEAD ")
        with suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def answer(self, timeout: float = PATIENCE, *, whole: bool = True) -> Answer | None:
        """The next answer, or only its head; None when the server hung up.

        Raises TimeoutError, and Malformed.
        """
        self.socket.settimeout(timeout)
        raw = self._rest
        while b"\r\n\r\n" not in raw:
            if not (piece := self._more()):
                if raw:
                    raise CutOff(f"the server hung up within {raw[:200]!r}")
                return None
            raw += piece
        head, _, self._rest = raw.partition(b"\r\n\r\n")
        status, headers = parsed(head)
        if 100 <= status < 200:
            return self.answer(timeout, whole=whole)
        bodiless = not whole or self._bodiless or status in (204, 304)
        body = b"" if bodiless else self._body(headers)
        return Answer(status, headers, body, head + b"\r\n\r\n" + body)

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            return b"".join(self._chunks())
        if "content-length" in headers:
            return self._take(int(headers["content-length"]))
        if headers.get("connection") == "close":
            rest, self._rest = self._rest, b""
            return b"".join([rest, *iter(self._more, b"")])
        raise Malformed(f"an answer without a length: {headers}")

    def _chunks(self) -> Generator[bytes, None, None]:
        while True:
            size = int(self._line(), 16)
            if not size:
                self._line()
                return
            piece = self._take(size + 2)
            if not piece.endswith(b"\r\n"):
                raise Malformed(f"a chunk that does not end: {piece[-80:]!r}")
            yield piece[:-2]

    def _line(self) -> bytes:
        while b"\r\n" not in self._rest:
            self._rest += self._more() or self._cut()
        line, _, self._rest = self._rest.partition(b"\r\n")
        return line

    def _take(self, size: int) -> bytes:
        while len(self._rest) < size:
            self._rest += self._more() or self._cut()
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def _cut(self) -> bytes:
        raise CutOff("the server hung up within an answer")

    def _more(self) -> bytes:
        try:
            return self.socket.recv(1 << 16)
        except ConnectionResetError:
            return b""


def parsed(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers, their names in small letters; raises Malformed."""
    first, *lines = head.split(b"\r\n")
    if (status := STATUS.fullmatch(first)) is None:
        raise Malformed(f"no status line: {first[:200]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        if (field := FIELD.fullmatch(line)) is None:
            raise Malformed(f"no header: {line[:200]!r}")
        name = field[1].decode().lower()
        if name in headers and name in ("content-length", "transfer-encoding", "content-type"):
            raise Malformed(f"two headers {name}")
        headers[name] = field[2].decode()
    if "content-length" in headers and "transfer-encoding" in headers:
        raise Malformed("a length and chunks")
    return int(status[1]), headers


@contextmanager
def raw_line(port: int) -> Generator[RawLine, None, None]:
    line = RawLine(port)
    try:
        yield line
    finally:
        line.close()


def routed(message: Any) -> tuple[bytes, bytes]:
    """What the headers of the newer era say of a message, if it has what they speak of."""
    match message:
        case {"method": method, "params": {"name": name} | {"uri": name}}:
            return _sendable(method), _sendable(name)
        case {"method": method}:
            return _sendable(method), b""
        case _:
            return b"ping", b""


def _sendable(value: Any) -> bytes:
    text = value if isinstance(value, str) else ""
    return bytes(byte for byte in text.encode(errors="replace")[:200] if 0x20 <= byte < 0x7F)


def request(
    head: Iterable[tuple[bytes, bytes]],
    body: bytes = b"",
    *,
    method: bytes = b"POST",
    target: bytes = b"/mcp",
    version: bytes = b"HTTP/1.1",
    end: bytes = b"\r\n",
) -> bytes:
    """A request; nothing is added to what is given."""
    lines = [b" ".join((method, target, version)), *(b": ".join(pair) for pair in head)]
    return end.join([*lines, b"", b""]) + body
