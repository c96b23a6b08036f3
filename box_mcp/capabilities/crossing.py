"""A transfer under way: a thread that moves the bytes, and what goes on beside it.

    the thread          source ─▶ pipe, or pipe ─▶ sink: blocks, is woken by `Pipe.abort`
    listens to the box   its END or FAIL comes by the channel, whichever way the bytes go
    looks on             tells progress, gives up when the box lets us wait too long

Whatever ends one ends the others, and no thread is left behind.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import anyio
from anyio import from_thread, to_thread
from anyio.lowlevel import checkpoint_if_cancelled

from box_mcp.boxd import wire
from box_mcp.channel import RemoteCall
from box_mcp.engines.base import Pipe, PipeClosed
from box_mcp.errors import BoxError, CallInterrupted

LOOK_EVERY = 0.25  # s; so often progress is told at most
STALLED_AFTER = 60.0  # s without a byte taken or sent: the box is frozen by somebody, or hangs
END_PATIENCE = 10.0  # s for the box's word on why a pipe broke
READ_AT_ONCE = 256 * 1024  # bytes of a file
AHEAD = 4  # frames that wait for the thread

T = TypeVar("T")
OnProgress = Callable[[int, int, str], Awaitable[None]]
"""Bytes done, bytes in all as far as known, and the name of what is under way."""


async def unheard(_done: int, _total: int, _name: str) -> None:
    """Where nobody wants to know."""


class FramedPipe:
    """A Pipe through the channel, for little. Its methods run in a thread of anyio's."""

    def __init__(self, call: RemoteCall) -> None:
        self._call = call
        self._deliver, self._inbox = anyio.create_memory_object_stream[bytes](AHEAD)
        self._sending = anyio.CancelScope()
        self._aborted = False
        self.waiting_since: float | None = None

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Sends DATA, as credit comes."""
        self._await(self._send, bytes(data))

    def send_file(self, file: IO[bytes], count: int) -> int:
        """Reads it here."""
        sent = 0
        while sent < count and (data := file.read(min(READ_AT_ONCE, count - sent))):
            self.send(data)
            sent += len(data)
        return sent

    def receive(self, take: Callable[[memoryview], None]) -> bool:
        """What `deliver` was given."""
        try:
            data = self._await(self._inbox.receive)
        except anyio.EndOfStream:
            return False
        take(memoryview(data))
        return True

    def abort(self) -> None:
        """Only from the event loop."""
        self._aborted = True
        self._sending.cancel()
        self._inbox.close()

    def close(self) -> None:
        """The call is its maker's to end."""
        self._deliver.close()
        self._inbox.close()

    async def deliver(self, data: bytes) -> None:
        """DATA came; waits until there is room for it."""
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # it was given up
            await self._deliver.send(data)

    def end(self) -> None:
        """No more will come."""
        self._deliver.close()

    def _await(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: bytes) -> T:
        self.waiting_since = time.monotonic()
        try:
            return from_thread.run(function, *arguments)
        except anyio.ClosedResourceError:
            raise PipeClosed("it was given up") from None
        finally:
            self.waiting_since = None

    async def _send(self, data: bytes) -> None:
        with self._sending:
            await self._call.send(data)
        if self._aborted:
            raise PipeClosed("it was given up")
        self._sending = anyio.CancelScope()


@dataclass(frozen=True)
class Line:
    """The request at one box, and the way that its bytes go; `piped` when that is its own."""

    box: str
    call: RemoteCall
    pipe: Pipe

    @property
    def piped(self) -> bool:
        """Whether the bytes go past the channel."""
        return not isinstance(self.pipe, FramedPipe)


class Crossing:
    """A transfer by one line or two. The thread tells in `done` and `name` how far it is."""

    def __init__(self, lines: Sequence[Line], total: int, on_progress: OnProgress) -> None:
        self.done = 0
        self.name = ""
        self._lines = lines
        self._total = total
        self._on_progress = on_progress
        self._failure: BaseException | None = None
        self._open = len(lines)
        self._ended = anyio.Event()

    async def carry(self, work: Callable[[], None]) -> list[dict[str, Any]]:
        """Runs `work` in a thread, and returns each box's END.

        Raises what `work` raises, CallRefused, CallInterrupted and BoxBroken: whatever came first.
        """
        async with anyio.create_task_group() as group:
            for line in self._lines:
                group.start_soon(self._listen, line)
            group.start_soon(self._look_on)
            error = await self._in_thread(work)
            await self._conclude(error)
            group.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure
        await self._on_progress(self.done, self._total, self.name)
        return [line.call.result or {} for line in self._lines]

    async def _in_thread(self, work: Callable[[], None]) -> BaseException | None:
        """What `work` raised. Cancelled, it ends all the same."""
        running = True
        error: BaseException | None = None

        def run() -> BaseException | None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - it is raised where the others are seen
                return error
            return None

        async def wake_when_cancelled() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                if running:
                    self._abort()

        async with anyio.create_task_group() as group:
            group.start_soon(wake_when_cancelled)
            with anyio.CancelScope(shield=True):
                error = await to_thread.run_sync(run, limiter=anyio.CapacityLimiter(1))
            running = False
            group.cancel_scope.cancel()
        await checkpoint_if_cancelled()
        return error

    async def _conclude(self, error: BaseException | None) -> None:
        """After the thread: the boxes' words are awaited, unless all is lost anyway."""
        if error is not None and not isinstance(error, PipeClosed):
            return self._give_up(error)
        if self._failure is None:
            with anyio.move_on_after(STALLED_AFTER if error is None else END_PATIENCE):
                await self._ended.wait()
        if error is not None or not self._ended.is_set():
            broke = f"its connection broke ({error})" if error else "it does not finish"
            self._give_up(CallInterrupted(self._lines[0].box, broke))

    async def _listen(self, line: Line) -> None:
        pipe = line.pipe
        try:
            async for label, item in line.call.labelled():
                if label == wire.CONTENT and isinstance(item, bytes):
                    if not isinstance(pipe, FramedPipe):
                        raise CallInterrupted(line.box, "it sends what was not asked for")
                    await pipe.deliver(item)
        except BoxError as error:
            self._give_up(error)
            self._ended.set()
        if isinstance(pipe, FramedPipe):
            pipe.end()
        self._open -= 1
        if not self._open:
            self._ended.set()

    async def _look_on(self) -> None:
        told = (0, "")
        while True:
            await anyio.sleep(LOOK_EVERY)
            now = time.monotonic()
            for line in self._lines:
                since = line.pipe.waiting_since
                if since is not None and now - since > STALLED_AFTER:
                    stalled = f"for {STALLED_AFTER:g} s it neither took nor sent anything"
                    self._give_up(CallInterrupted(line.box, stalled))
            if told != (self.done, self.name):
                told = (self.done, self.name)
                await self._on_progress(self.done, self._total, self.name)

    def _give_up(self, error: BaseException) -> None:
        """The first reason is the one that counts."""
        if self._failure is None:
            self._failure = error
            self._abort()

    def _abort(self) -> None:
        for line in self._lines:
            line.pipe.abort()
