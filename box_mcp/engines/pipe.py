"""The stdin and stdout of an exec as a `Pipe`: bytes between a file and the engine, and no more.

The direction into the box is not framed. The other is: each header tells how much of which output
comes (1 stdout, 2 stderr).
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import IO

from box_mcp.engines.base import PipeClosed

STREAM_HEADER = struct.Struct("!BxxxI")
STDERR = 2
STDERR_KEPT = 2000  # bytes of a connector's complaint that are remembered
RECEIVED = 512 * 1024  # bytes at once; more than a socket holds
SENT = 4 * 1024 * 1024  # bytes of a file at once: between two, progress is seen
FRAME_START = b"\0\0\0"  # of a header, behind its kind


class DockerPipe:
    """A Pipe on the socket of an exec, which is closed with it."""

    def __init__(self, line: socket.socket) -> None:
        line.setblocking(True)
        self._line = line
        self._buffer = memoryview(bytearray(RECEIVED))
        self._header = b""
        self._kind = 0
        self._left = 0
        self._aborted = False
        self.waiting_since: float | None = None
        self.complaint = b""

    def __repr__(self) -> str:
        return f"<DockerPipe {self._line.fileno()} {'aborted' if self._aborted else 'open'}>"

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Sends all of `data`."""
        with self._waiting():
            self._line.sendall(data)

    def send_file(self, file: IO[bytes], count: int) -> int:
        """Sends from a regular file, by the kernel where that can."""
        sent = 0
        while sent < count:
            with self._waiting():
                now = self._line.sendfile(file, file.tell(), min(SENT, count - sent))
            if not now:
                break
            sent += now
        return sent

    def receive(self, take: Callable[[memoryview], None]) -> bool:
        """What the box wrote to stdout; its stderr is kept as `complaint`."""
        with self._waiting():
            count = self._line.recv_into(self._buffer)
        payload = self._unframed(count)
        if payload:
            take(self._buffer[:payload])
        return count > 0

    def abort(self) -> None:
        """Ends the exec's stdin, which the box notices."""
        self._aborted = True
        with suppress(OSError):  # it is gone already
            self._line.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends the exec's stdin, too."""
        self._line.close()

    def _unframed(self, count: int) -> int:
        """Moves what `count` bytes bring for stdout to the buffer's beginning; how much it is."""
        start = end = 0
        while start < count:
            if not self._left:
                start = self._take_header(start, count)
                continue
            size = min(count - start, self._left)
            piece = self._buffer[start : start + size]
            if self._kind == STDERR:
                self.complaint = (self.complaint + piece.tobytes())[-STDERR_KEPT:]
            else:
                self._buffer[end : end + size] = piece
                end += size
            self._left -= size
            start += size
        return end

    def _take_header(self, start: int, count: int) -> int:
        """Where the buffer goes on behind a header, of which the start may have come before."""
        missing = STREAM_HEADER.size - len(self._header)
        self._header += self._buffer[start : min(count, start + missing)].tobytes()
        if not self._header.startswith(FRAME_START, 1) and len(self._header) > len(FRAME_START):
            # The engine could not execute the connector, and says so as plain text.
            self.complaint = self._header + self._buffer[start + missing : count].tobytes()
            raise PipeClosed(self.complaint.decode(errors="replace").strip())
        if len(self._header) == STREAM_HEADER.size:
            self._kind, self._left = STREAM_HEADER.unpack(self._header)
            self._header = b""
        return start + missing

    @contextmanager
    def _waiting(self) -> Generator[None, None, None]:
        self.waiting_since = time.monotonic()
        try:
            yield
            if self._aborted:  # what was called then ends as if all were well
                raise PipeClosed("it was given up")
        except OSError as error:
            raise PipeClosed(str(error)) from error
        finally:
            self.waiting_since = None
