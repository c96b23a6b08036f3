"""Files and trees, whole, into a box and out of it, and from one box to another.

They travel as `boxd.parcel` has it. A little goes over the box's channel; much has a connection of
its own, which the engine joins to the process in the box that packs or unpacks. Memory is constant
either way. What works on the files here blocks, so it runs in a thread; what goes on beside it,
progress and the box's answer, is in `capabilities/crossing.py`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import IO, Annotated, Any, Protocol

from pydantic import Field

from box_mcp.boxd import parcel
from box_mcp.capabilities.calls import Count, Said, answering, checked_path, collected, parsed
from box_mcp.capabilities.crossing import (
    Crossing,
    FramedPipe,
    Line,
    OnProgress,
    unheard,
)
from box_mcp.capabilities.refusals import advising
from box_mcp.channel import Channel, RemoteCall
from box_mcp.engines.base import OpenPipe, Pipe, PipeClosed
from box_mcp.errors import BoxBroken

OPEN_PIPE_FROM = 16 * 1024 * 1024  # bytes; for less, a connection of its own is too dear
READY_TIMEOUT = 15.0  # s for a box to answer that it waits for a pipe
SMALL = 64 * 1024  # bytes; smaller files are read, and sent together
SLICE = 16 * 1024 * 1024  # bytes of a file at once, as progress is told
GATHERED = 256 * 1024  # bytes of small things that are sent together
MAX_LEFT_OUT = 100  # names that a box tells at most
GO = b"\n"  # what the server says first on a pipe, and last when it received


class Source(Protocol):
    """Files to be sent. Its methods block, so they are called in a worker thread."""

    @property
    def size(self) -> int:
        """Bytes of content, as far as known: only for choosing the way and telling progress."""
        ...

    def entries(self) -> Iterator[tuple[parcel.Entry, IO[bytes] | bytes | None]]:
        """Each entry with its content, in the order that `boxd.parcel` wants.

        A file is at its beginning, and closed by the source once the next entry is asked for.
        """
        ...


@dataclass(frozen=True)
class Moved:
    """What a transfer moved; `left_out` names the first few that it did not, and why."""

    files: int
    directories: int
    links: int
    bytes: int
    left_out: tuple[str, ...] = ()
    more_left_out: int = 0
    seconds: float = 0.0


Names = Annotated[list[str], Field(max_length=MAX_LEFT_OUT)]


class Tally(Said):
    """How much a box says that it packed or unpacked."""

    files: Count
    directories: Count
    links: Count
    bytes: Count
    left_out: Names
    more_left_out: Count


class Survey(Tally):
    """What a download would bring; `kind` is of the path itself: ``file`` or ``directory``."""

    kind: str


class Transfers:
    """Transfers between this server and one box. Relative paths start at its working directory.

    Every method raises CallRefused when the box's user can't do it, InvalidArgument, BoxBroken when
    the box answers nonsense, CallInterrupted when it falls silent, and what channels raise.
    Cancelled, or after an error, nothing of an upload is left in the box.
    """

    def __init__(self, channel: Channel, open_pipe: OpenPipe | None = None) -> None:
        self._channel = channel
        self._open_pipe = open_pipe

    async def upload(
        self,
        source: Source,
        destination: str,
        *,
        overwrite: bool = False,
        on_progress: OnProgress = unheard,
    ) -> Moved:
        """Makes `destination` be what the source is: a file, a link, or a directory with all in it.

        A directory joins one that is there. Without `overwrite` nothing is replaced: the code
        ``exists`` names what stands in the way, and nothing was changed. Whatever the source
        raises comes out.
        """
        began = time.monotonic()
        async with self.receiving(destination, overwrite, source.size) as line:
            crossing = Crossing([line], source.size, on_progress)
            packer = _Packer(line.pipe, crossing)
            (said,) = await crossing.carry(lambda: packer.send_all(source))
        return _moved(self.box, said, began, packer.shrunk)

    async def survey(self, path: str, *, gitignore: bool = False) -> Survey:
        """What a download of `path` would bring."""
        _, said = await collected(self._channel, "survey", path, 0, gitignore=gitignore)
        return parsed(self.box, Survey, said)

    async def download(
        self,
        path: str,
        sink: parcel.Sink,
        *,
        gitignore: bool = False,
        found: Survey | None = None,
        max_bytes: int = parcel.MAX_BYTES,
        max_entries: int = parcel.MAX_ENTRIES,
        on_progress: OnProgress = unheard,
    ) -> Moved:
        """Sends a file or a tree to `sink`, whose methods are called in a worker thread.

        `found` is what a survey told, if there was one. What the sink raises comes out. Raises
        parcel.TooMuch before the sink is given more than `max_bytes` or `max_entries`.
        """
        began = time.monotonic()
        size = (found or await self.survey(path, gitignore=gitignore)).bytes
        async with self.sending(path, gitignore, size) as line:
            crossing = Crossing([line], size, on_progress)
            counting = _Counting(sink, crossing)
            unpacker = parcel.Unpacker(counting, max_bytes, max_entries)
            said = await self._receive(crossing, line, unpacker)
        return _moved(self.box, {**said, **counting.counts()}, began)

    @property
    def box(self) -> str:
        """The id of the box."""
        return self._channel.box

    def receiving(self, path: str, overwrite: bool, size: int) -> AbstractAsyncContextManager[Line]:
        """A line to a box that unpacks what is sent by it; `size` chooses the way."""
        return self._line("unpack", size, path, overwrite=overwrite)

    def sending(self, path: str, gitignore: bool, size: int) -> AbstractAsyncContextManager[Line]:
        """A line from a box that packs."""
        return self._line("pack", size, path, gitignore=gitignore)

    @asynccontextmanager
    async def _line(
        self, op: str, size: int, path: str, **arguments: Any
    ) -> AsyncGenerator[Line, None]:
        path = checked_path("path", path)
        much = self._open_pipe is not None and size >= OPEN_PIPE_FROM
        token = secrets.token_hex(16) if much else None
        with advising(self.box, path):
            async with self._channel.call(op, path=path, pipe=token, **arguments) as call:
                pipe = await self._pipe(call, token)
                try:
                    yield Line(self.box, call, pipe)
                finally:
                    pipe.close()

    async def _pipe(self, call: RemoteCall, token: str | None) -> Pipe:
        if token is None or self._open_pipe is None:
            return FramedPipe(call)
        async with answering(self._channel, READY_TIMEOUT):
            await anext(call.labelled(), None)  # the box knows the token now
        return await self._open_pipe(token)

    async def _receive(
        self, crossing: Crossing, line: Line, unpacker: parcel.Unpacker
    ) -> dict[str, Any]:
        try:
            return (await crossing.carry(lambda: receive_all(line, unpacker)))[0]
        except parcel.TooMuch:
            raise
        except parcel.ParcelError as error:
            raise BoxBroken(self.box, f"what it sends can't be unpacked: {error}") from None


async def copy_between(
    source: Transfers,
    path: str,
    target: Transfers,
    destination: str,
    *,
    overwrite: bool = False,
    gitignore: bool = False,
    on_progress: OnProgress = unheard,
) -> Moved:
    """Copies a file or a tree from one box to another; nothing of it is kept here."""
    began = time.monotonic()
    found = await source.survey(path, gitignore=gitignore)
    async with AsyncExitStack() as stack:
        coming = await stack.enter_async_context(source.sending(path, gitignore, found.bytes))
        going = await stack.enter_async_context(
            target.receiving(destination, overwrite, found.bytes)
        )
        crossing = Crossing([coming, going], found.bytes, on_progress)

        def work() -> None:
            packer = _Packer(going.pipe, crossing)
            receive_all(coming, parcel.Unpacker(packer))
            packer.finish_all()

        try:
            packed, unpacked = await crossing.carry(work)
        except parcel.ParcelError as error:
            raise BoxBroken(source.box, f"what it sends can't be unpacked: {error}") from None
    told = parsed(source.box, Tally, packed)
    moved = _moved(target.box, unpacked, began)
    return replace(moved, left_out=tuple(told.left_out), more_left_out=told.more_left_out)


def receive_all(line: Line, unpacker: parcel.Unpacker) -> None:
    """Feeds all that a box packs; for a worker thread."""
    if line.piped:
        line.pipe.send(GO)
    while not unpacker.ended:
        if not line.pipe.receive(unpacker.feed):
            raise PipeClosed("it ended too early")
    if line.piped:
        line.pipe.send(GO)  # all is here: the box need not keep it any more


class _Packer(parcel.Sink):
    """Sends entries through a pipe, the small ones many at once."""

    def __init__(self, pipe: Pipe, crossing: Crossing) -> None:
        self.shrunk: list[str] = []
        self._pipe = pipe
        self._crossing = crossing
        self._gathered = bytearray(b"" if isinstance(pipe, FramedPipe) else GO)

    def send_all(self, source: Source) -> None:
        for entry, content in source.entries():
            self.begin(entry)
            if isinstance(content, bytes):
                self.content(memoryview(content))
            elif content is not None and entry.size:
                self._send_file(entry, content)
        self.finish_all()

    def begin(self, entry: parcel.Entry) -> None:
        self._crossing.name = entry.path.decode(errors="backslashreplace")
        self._send(entry.packed())

    def content(self, data: memoryview) -> None:
        if len(data) >= GATHERED:
            self._flush()
            self._pipe.send(data)
        else:
            self._send(data)
        self._crossing.done += len(data)

    def finish_all(self) -> None:
        self._send(parcel.LAST.packed())
        self._flush()

    def _send_file(self, entry: parcel.Entry, file: IO[bytes]) -> None:
        left = entry.size
        if left <= SMALL:
            data = file.read(left)
            self.content(memoryview(data))
            left -= len(data)
        else:
            self._flush()
            while left and (sent := self._pipe.send_file(file, min(left, SLICE))):
                self._crossing.done += sent
                left -= sent
        if left:
            name = entry.path.decode(errors="backslashreplace")
            self.shrunk.append(f"{name}: it shrank meanwhile, and ends in zeros now")
        while left:
            zeros = memoryview(bytes(min(left, GATHERED)))
            self.content(zeros)
            left -= len(zeros)

    def _send(self, data: bytes | memoryview) -> None:
        self._gathered += data
        if len(self._gathered) >= GATHERED:
            self._flush()

    def _flush(self) -> None:
        self._pipe.send(self._gathered)
        self._gathered.clear()


class _Counting(parcel.Sink):
    """Counts what goes to another sink: a box may tell anything."""

    def __init__(self, sink: parcel.Sink, crossing: Crossing) -> None:
        self._sink = sink
        self._crossing = crossing
        self._kinds = [0] * 4

    def counts(self) -> dict[str, int]:
        _, directories, files, links = self._kinds
        told = {"directories": directories, "files": files, "links": links}
        return {**told, "bytes": self._crossing.done}

    def begin(self, entry: parcel.Entry) -> None:
        self._kinds[entry.kind] += 1
        self._crossing.name = entry.path.decode(errors="backslashreplace")
        self._sink.begin(entry)

    def content(self, data: memoryview) -> None:
        self._sink.content(data)
        self._crossing.done += len(data)

    def finish(self, entry: parcel.Entry) -> None:
        self._sink.finish(entry)


def _moved(box: str, said: dict[str, Any], began: float, shrunk: Sequence[str] = ()) -> Moved:
    told = parsed(box, Tally, said)
    return Moved(
        told.files,
        told.directories,
        told.links,
        told.bytes,
        (*shrunk[:MAX_LEFT_OUT], *told.left_out),
        told.more_left_out,
        time.monotonic() - began,
    )
