"""Whom a TLS client says it wants to speak to: the name in its first message; pure.

Nothing is decrypted. The name is sent in the clear (SNI), but where the client hides it (ECH): then
it is the name of whoever unhides it.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_HELLO = 16 * 1024  # bytes; those with post-quantum keys have about 1,800
MAX_RECORDS = 16  # that a hello is split into; it fits into one

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_HOST_NAME = 0
_MAX_RECORD = 16 * 1024


@dataclass(frozen=True)
class Name:
    """The client wants this one; nothing for a hello without a name."""

    text: str


@dataclass(frozen=True)
class More:
    """It can't be told before so many bytes have come in all."""

    size: int


class NoTls:
    """It is something else."""


class Broken(Exception):
    """It begins as TLS, and is no first message of a client."""


def read_hello(data: bytes | bytearray) -> Name | More | NoTls:
    """What a client's first bytes say; raises Broken."""
    if bytes(data[:1]) not in (b"", b"\x16") or bytes(data[1:2]) not in (b"", b"\x03"):
        return NoTls()
    message = bytearray()
    start = 0
    for _ in range(MAX_RECORDS):
        if len(data) < start + 5:
            return More(start + 5)
        size = int.from_bytes(data[start + 3 : start + 5], "big")
        if data[start] != _HANDSHAKE or data[start + 1] != 3 or not 0 < size <= _MAX_RECORD:
            raise Broken
        message += data[start + 5 : start + 5 + size]
        if (message and message[0] != _CLIENT_HELLO) or _length(message) > MAX_HELLO:
            raise Broken
        if len(message) >= 4 + _length(message):
            return Name(_server_name(message[4 : 4 + _length(message)]))
        if len(data) < start + 5 + size:
            return More(start + 5 + size)
        start += 5 + size
    raise Broken


def _length(message: bytearray) -> int:
    """Of the handshake's message, as it says; as much as can be while that is not known."""
    return int.from_bytes(message[1:4], "big") if len(message) >= 4 else MAX_HELLO


class _Reader:
    """Takes from the front; raises Broken where there is not as much."""

    def __init__(self, data: memoryview) -> None:
        self.left = data

    def bytes(self, size: int) -> memoryview:
        if len(self.left) < size:
            raise Broken
        data, self.left = self.left[:size], self.left[size:]
        return data

    def number(self, size: int) -> int:
        return int.from_bytes(self.bytes(size), "big")

    def vector(self, size: int) -> _Reader:
        """What a length of so many bytes announces."""
        return _Reader(self.bytes(self.number(size)))


def _server_name(hello: bytes | bytearray) -> str:
    reader = _Reader(memoryview(hello))
    reader.bytes(2 + 32)  # version, random
    reader.vector(1)  # session
    reader.vector(2)  # ciphers
    reader.vector(1)  # compressions
    if not reader.left:
        return ""
    extensions = reader.vector(2)
    found: list[str] = []
    while extensions.left:
        kind, extension = extensions.number(2), extensions.vector(2)
        if kind == _SERVER_NAME:
            found += _names(extension)
    if reader.left or len(found) > 1:
        raise Broken
    return found[0] if found else ""


def _names(extension: _Reader) -> list[str]:
    names = extension.vector(2)
    found: list[str] = []
    while names.left:
        kind, name = names.number(1), bytes(names.vector(2).left)
        if kind != _HOST_NAME or not name.isascii():
            raise Broken
        found.append(name.decode())
    if extension.left or not found:
        raise Broken
    return found
