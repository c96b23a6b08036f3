"""One server's connection: frames in, frames out, and the streams that are open on it."""

from __future__ import annotations

import contextlib
import os

from . import wire
from .loop import report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any, Callable

    from .loop import Loop

    Opener = Callable[["Connection", int, dict[str, Any]], "Stream"]

MAX_STREAMS = 1024  # per connection; more is a server gone wrong
MAX_MESSAGE = 4096  # characters of what a FAIL says
HIGH_WATER = 1024 * 1024  # bytes waiting to be sent; beyond it, streams stop producing


class Refusal(Exception):
    """A request that can't be served: becomes a FAIL frame with this code and message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Stream:
    """One request under way. Subclasses override what they care about."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection = connection
        self.number = number
        self.outgoing = wire.Window()
        self.incoming = wire.Window()
        self.open = True

    def on_data(self, _label: int, _data: bytes, /) -> None:
        """The server sent data; call `consumed` when it may send more."""
        raise wire.WireError("this request takes no data")

    def on_finish(self) -> None:
        """The server will send no more data."""

    def on_note(self, note: dict[str, Any]) -> None:
        """The server says something about the running request."""

    def on_credit(self) -> None:
        """More may be sent than before."""

    def on_cancel(self) -> None:
        """The server gives the request up: `end` or `fail` soon."""
        self.fail("cancelled", "the request was cancelled")

    def on_disconnect(self) -> None:
        """The connection is gone; nothing can be sent any more."""

    def consumed(self, size: int) -> None:
        """`size` received bytes are dealt with."""
        if credit := self.incoming.consumed(size):
            self.connection.send(wire.pack_credit(self.number, credit))

    def send(self, data: bytes, label: int = wire.CONTENT) -> None:
        """Sends `data`, for which there must be credit."""
        self.outgoing.spend(len(data))
        self.connection.send(wire.pack_data(self.number, data, label))

    def note(self, note: dict[str, Any]) -> None:
        """Tells the server something by the way."""
        self.connection.send(wire.pack_object(wire.NOTE, self.number, note))

    def end(self, result: dict[str, Any]) -> None:
        """Closes the stream with its result; nothing happens when it is closed."""
        self._close(wire.END, result)

    def fail(self, code: str, message: str) -> None:
        """Closes the stream with a failure; nothing happens when it is closed."""
        self._close(wire.FAIL, {"code": code, "message": message[:MAX_MESSAGE]})

    def _close(self, kind: int, value: dict[str, Any]) -> None:
        if self.open:
            self.open = False
            self.connection.forget(self)
            self.connection.send(wire.pack_object(kind, self.number, value))


class Connection:
    """Reads frames from one descriptor, writes to another or the same, until end of file.

    `opener` makes the stream for an OPEN frame; when it answers at once, the stream comes closed.
    """

    def __init__(
        self,
        loop: Loop,
        fds: tuple[int, int],
        hello: Callable[[], dict[str, Any]],
        opener: Opener,
        on_close: Callable[[Connection], None],
    ) -> None:
        self._loop = loop
        self._read_fd, self._write_fd = fds
        self._opener = opener
        self._on_close = on_close
        self._decoder = wire.Decoder(wire.FROM_SERVER)
        self._greeted = False
        self._closed = False
        self._streams: dict[int, Stream] = {}
        self._outgoing = bytearray()
        self._corked = False
        self._waiting: list[Stream] = []
        for fd in fds:
            os.set_blocking(fd, False)
        self._hello = hello
        loop.on_readable(self._read_fd, self._readable)

    @property
    def congested(self) -> bool:
        """True while so much waits to be sent that streams should not produce more."""
        return len(self._outgoing) > HIGH_WATER

    def send(self, data: bytes | bytearray) -> None:
        """Sends bytes now if the line takes them, else as soon as it does."""
        if self._closed:
            return
        if not self._outgoing and not self._corked:
            data = data[self._write(data) :]
        if data and not self._closed:
            if not self._outgoing and not self._corked:
                self._loop.on_writable(self._write_fd, self._writable)
            self._outgoing += data

    @contextlib.contextmanager
    def in_one_piece(self) -> Generator[None, None, None]:
        """What is sent inside goes out at the end, in one piece: each write wakes four processes.

        That is: what lies between boxd and its server, and the server.
        """
        if self._corked or self._outgoing:
            yield
            return
        self._corked = True
        try:
            yield
        finally:
            self._corked = False
            data, self._outgoing = self._outgoing, bytearray()
            self.send(data)

    def tell(self, note: dict[str, Any]) -> None:
        """Sends something about the whole box; whoever has yet to be greeted learns it by HELLO."""
        if self._greeted:
            self.send(wire.pack_object(wire.NOTE, 0, note))

    def notify_when_clear(self, stream: Stream) -> None:
        """Calls `stream.on_credit()` when the connection is no longer congested."""
        if stream not in self._waiting:
            self._waiting.append(stream)

    def forget(self, stream: Stream) -> None:
        """`stream` is closed."""
        self._streams.pop(stream.number, None)

    def close(self) -> None:
        """Ends the connection and tells its streams; twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._loop.on_readable(self._read_fd, None)
        self._loop.on_writable(self._write_fd, None)
        for fd in {self._read_fd, self._write_fd}:
            os.close(fd)
        self._on_close(self)
        self._disconnect_streams()

    def _disconnect_streams(self) -> None:
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            stream.open = False
            stream.on_disconnect()

    def _write(self, data: bytes | bytearray) -> int:
        try:
            return os.write(self._write_fd, data)
        except BlockingIOError:
            return 0
        except OSError:
            self.close()
            return 0

    def _writable(self) -> None:
        del self._outgoing[: self._write(self._outgoing[: wire.MAX_PAYLOAD])]
        if self._closed or self._outgoing:
            return
        self._loop.on_writable(self._write_fd, None)
        waiting, self._waiting = self._waiting, []
        for stream in waiting:
            if stream.open:
                stream.on_credit()

    def _readable(self) -> None:
        try:
            data = os.read(self._read_fd, wire.CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            return self.close()
        try:
            frames = self._decoder.feed(data)
            with self.in_one_piece():
                for frame in frames:
                    if not self._closed:
                        self._dispatch(frame)
        except wire.WireError:
            self.close()

    def _dispatch(self, frame: wire.Frame) -> None:
        if not self._greeted:
            self._greet(frame)
        elif frame.kind == wire.OPEN:
            self._open(frame)
        elif (stream := self._streams.get(frame.stream)) is not None:
            deliver(stream, frame)
        # A frame for a stream that has just ended crossed its END on the way: not an error.

    def _greet(self, frame: wire.Frame) -> None:
        if frame.kind != wire.HELLO or frame.object().get("version") != wire.VERSION:
            raise wire.WireError("the server speaks another version")
        self._greeted = True
        # The server speaks first: bytes before its own could get lost in the engine's HTTP reply.
        self.send(wire.pack_object(wire.HELLO, 0, self._hello()))

    def _open(self, frame: wire.Frame) -> None:
        number, request = frame.stream, frame.object()
        if number == 0 or number in self._streams or len(self._streams) >= MAX_STREAMS:
            raise wire.WireError(f"the stream {number} can't be opened")
        try:
            stream = self._opener(self, number, request)
        except Refusal as refusal:
            return Stream(self, number).fail(refusal.code, str(refusal))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            return Stream(self, number).fail("invalid", f"malformed request: {error!r}")
        except Exception as error:  # noqa: BLE001 - the other streams go on
            report(error)
            return Stream(self, number).fail("failed", f"boxd failed: {error!r}")
        if not stream.open:
            return
        self._streams[number] = stream
        if self._closed:  # by what the opener sent
            self._disconnect_streams()


def deliver(stream: Stream, frame: wire.Frame) -> None:
    """Hands `frame` to the hook of `stream` that it is for; an error there fails the stream."""
    try:
        _call_hook(stream, frame)
    except Refusal as refusal:
        stream.fail(refusal.code, str(refusal))
    except wire.WireError:
        raise
    except Exception as error:  # noqa: BLE001 - the other streams go on
        report(error)
        stream.fail("failed", f"boxd failed: {error!r}")


def _call_hook(stream: Stream, frame: wire.Frame) -> None:
    if frame.kind == wire.DATA:
        stream.incoming.spend(len(frame.payload))
        stream.on_data(frame.label, frame.payload)
    elif frame.kind == wire.CREDIT:
        stream.outgoing.grant(frame.credit())
        stream.on_credit()
    elif frame.kind == wire.NOTE:
        stream.on_note(frame.object())
    elif frame.kind == wire.FINISH:
        stream.on_finish()
    elif frame.kind == wire.CANCEL:
        stream.on_cancel()
    else:
        raise wire.WireError(f"a frame of kind {frame.kind} is not for a stream")
