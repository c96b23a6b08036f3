"""The wire between a server and the daemon in a box: frames over one byte stream, no I/O.

A frame is a header of ten bytes, big-endian, and a payload::

    u32 length of the payload | u8 kind | u8 label | u32 stream

======  =========  ========  ==========================================================
kind    name       sent by   payload
======  =========  ========  ==========================================================
1       HELLO      both      object, on stream 0, the first frame of each side
2       OPEN       server    object ``{"op": ..., arguments}``: opens the stream
3       DATA       both      raw bytes; the label tells which of the stream's flows
4       CREDIT     both      u32: so many more bytes of DATA may be sent on the stream
5       NOTE       both      object: something by the way (stream 0: about the whole box)
6       FINISH     server    nothing: no more DATA will come from the server
7       END        boxd      object: the result; closes the stream
8       FAIL       boxd      object ``{"code", "message"}``; closes the stream
9       CANCEL     server    nothing: give the stream up; boxd still answers END or FAIL
======  =========  ========  ==========================================================

Each direction of each stream starts with `WINDOW` bytes of credit for DATA, so that memory is
bounded at both ends; who expects much may grant more, up to `MAX_WINDOW`. Whoever receives a frame
that breaks these rules closes the connection: what comes out of a box is untrusted, and parsed here
and nowhere else.

Both ends import this module. It runs on Python 3.9 and imports little, because every
millisecond of its import is paid at each start of a box.
"""

from __future__ import annotations

import json
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 6
MAX_PAYLOAD = 256 * 1024  # bytes; bounds what one frame can make the other end hold
WINDOW = 256 * 1024  # bytes of DATA that may be under way, per stream and direction
MAX_WINDOW = 2 * 1024 * 1024  # bytes; as much, where whoever receives grants more
CHUNK = 64 * 1024  # bytes per DATA frame: small enough that streams share the line fairly

HELLO, OPEN, DATA, CREDIT, NOTE, FINISH, END, FAIL, CANCEL = range(1, 10)
FROM_SERVER = frozenset({HELLO, OPEN, DATA, CREDIT, NOTE, FINISH, CANCEL})
FROM_BOXD = frozenset({HELLO, DATA, CREDIT, NOTE, END, FAIL})

STDIN, STDOUT, STDERR = 0, 1, 2  # labels of DATA on a stream that runs a command
CONTENT = 0  # label of DATA on any other stream

_HEADER = struct.Struct("!IBBI")
_CREDIT = struct.Struct("!I")


class WireError(Exception):
    """The other end broke the rules of the wire; the connection is of no further use."""


class Frame:
    """One parsed frame. `payload` is raw; `object()` and `credit()` parse it strictly."""

    __slots__ = ("kind", "label", "payload", "stream")

    def __init__(self, kind: int, label: int, stream: int, payload: bytes) -> None:
        self.kind = kind
        self.label = label
        self.stream = stream
        self.payload = payload

    def __repr__(self) -> str:
        return f"<Frame kind={self.kind} stream={self.stream} {len(self.payload)} bytes>"

    def object(self) -> dict[str, Any]:
        """The payload as a JSON object; raises WireError when it is none."""
        try:
            value = json.loads(self.payload)
        except (ValueError, RecursionError) as error:
            raise WireError(f"a frame's payload is no JSON: {error}") from None
        if not isinstance(value, dict):
            raise WireError("a frame's payload is no JSON object")
        return value  # pyright: ignore[reportUnknownVariableType]  # JSON keys are strings

    def credit(self) -> int:
        """The payload as a number of bytes; raises WireError when it is none."""
        if len(self.payload) != _CREDIT.size:
            raise WireError("a CREDIT frame's payload is not four bytes")
        return int(_CREDIT.unpack(self.payload)[0])


class Decoder:
    """Turns received bytes into frames, holding at most one incomplete frame.

    `allowed` is the set of kinds that the other end may send: `FROM_SERVER` or `FROM_BOXD`.
    """

    def __init__(self, allowed: frozenset[int]) -> None:
        self._allowed = allowed
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """All frames that `data` completes, in order; raises WireError on the first bad header."""
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        start = 0
        with memoryview(buffer) as view:
            while len(buffer) - start >= _HEADER.size:
                length, kind, label, stream = _HEADER.unpack_from(buffer, start)
                if kind not in self._allowed:
                    raise WireError(f"a frame of kind {kind} is not allowed here")
                if length > MAX_PAYLOAD:
                    raise WireError(f"a frame of {length} bytes is over the limit of {MAX_PAYLOAD}")
                begin, end = start + _HEADER.size, start + _HEADER.size + length
                if len(buffer) < end:
                    break
                frames.append(Frame(kind, label, stream, bytes(view[begin:end])))
                start = end
        del buffer[:start]
        return frames


class Window:
    """The credit of one direction of one stream, as its sender or its receiver keeps it."""

    __slots__ = ("_owed", "_size", "left")

    def __init__(self) -> None:
        self.left = self._size = WINDOW
        self._owed = 0

    def __repr__(self) -> str:
        return f"<Window left={self.left}>"

    def spend(self, size: int) -> None:
        """Takes `size` bytes of credit; raises WireError when there is less."""
        if size > self.left:
            raise WireError(f"{size} bytes of DATA came with a credit of {self.left}")
        self.left -= size

    def grant(self, size: int) -> None:
        """The sender hears that `size` more bytes may go; raises WireError beyond `MAX_WINDOW`."""
        if self.left + size > MAX_WINDOW:
            raise WireError("more credit was granted than a window holds")
        self.left += size

    def widened(self, size: int) -> int:
        """The receiver expects `size` bytes; returns the credit to send for that, often 0."""
        more = max(min(size, MAX_WINDOW) - self._size, 0)
        self._size += more
        self.left += more
        return more

    def consumed(self, size: int) -> int:
        """The receiver is done with `size` bytes; returns the credit to send now, often 0."""
        self._owed += size
        if self._owed < self._size // 2:
            return 0
        owed, self._owed = self._owed, 0
        self.left += owed
        return owed


def pack(kind: int, stream: int, payload: bytes = b"", label: int = 0) -> bytes:
    """One frame as bytes; raises ValueError when the payload is over `MAX_PAYLOAD`."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a payload of {len(payload)} bytes is over {MAX_PAYLOAD}")
    return _HEADER.pack(len(payload), kind, label, stream) + payload


def pack_object(kind: int, stream: int, value: dict[str, Any]) -> bytes:
    """One frame with a JSON object; raises ValueError when it is over `MAX_PAYLOAD`."""
    return pack(kind, stream, json.dumps(value, separators=(",", ":")).encode())


def pack_credit(stream: int, size: int) -> bytes:
    """One CREDIT frame."""
    return pack(CREDIT, stream, _CREDIT.pack(size))


def pack_data(stream: int, data: bytes, label: int = CONTENT) -> bytes:
    """`data` as DATA frames of at most `CHUNK` bytes each."""
    return b"".join(
        pack(DATA, stream, data[start : start + CHUNK], label)
        for start in range(0, len(data), CHUNK)
    )
