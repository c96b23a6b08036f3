"""TCP connections to ports in a box, and from ports that boxd listens on, as byte streams.

Each direction of a tunnel ends by itself. A tunnel that is closed, or whose block ends well, still
brings what was sent; one whose block is left by an error or a cancellation is a connection reset.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any, Literal

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import ByteStream, TaskStatus
from anyio.lowlevel import checkpoint_if_cancelled

from box_mcp.capabilities.calls import Count, Model, Said, answering, parsed
from box_mcp.channel import Channel, RemoteCall
from box_mcp.errors import BoxError, CallInterrupted, first_error

logger = logging.getLogger(__name__)

MAX_SERVED = 256  # connections of one listener at once; each can hold a window of what came
BEGIN_TIMEOUT = 30.0  # s for boxd to begin listening, or to connect; it gives up after 10 itself

GONE = (
    BoxError,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.EndOfStream,
)
"""How a handler hears that one of two ends has left: nothing to be told of."""

Handler = Callable[["Tunnel"], Awaitable[None]]
"""Serves one connection; the tunnel is closed when it returns."""


class _Connected(Said):
    connected: Literal[True]


class _Listening(Said):
    listening: Literal[True]


class _Accepted(Said):
    accepted: Count


class _Ended(Said):
    eof: Literal[True]


class Tunnel(ByteStream):
    """One connection. Its two directions may be used by two tasks.

    When the connection broke or the box went away, `receive` and `send` raise
    anyio.BrokenResourceError.
    """

    def __init__(self, box: str, call: RemoteCall, open_call: AsyncExitStack) -> None:
        self._box = box
        self._call = call
        self._open_call = open_call
        self._received = b""
        self._heard_out = False
        self._finished = False
        self._closed = False
        self._receiving = anyio.ResourceGuard("receiving from")
        self._sending = anyio.ResourceGuard("sending to")

    def __repr__(self) -> str:
        state = "closed" if self._closed else "ended" if self._call.ended else "open"
        return f"<Tunnel {self._box} {state}>"

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Some bytes; raises anyio.EndOfStream when the other end has said all.

        Nothing is lost where it is cancelled.
        """
        await checkpoint_if_cancelled()
        with self._receiving, self._usable():
            if not (self._received or self._heard_out):
                self._received = await self._next()
        if not self._received:
            raise anyio.EndOfStream
        data, self._received = self._received[:max_bytes], self._received[max_bytes:]
        return data

    async def send(self, item: bytes) -> None:
        """Sends all of `item`, waiting until the other end takes it, but for a window of it."""
        await checkpoint_if_cancelled()
        with self._sending, self._usable():
            if self._finished:
                raise anyio.ClosedResourceError
            await self._call.send(item)
            if self._call.ended:
                raise anyio.BrokenResourceError

    async def send_eof(self) -> None:
        """The other end hears that no more will come; twice is fine."""
        with self._usable():
            await self._finish()

    async def aclose(self) -> None:
        """Receives no more; what was sent still arrives. Twice is fine."""
        try:
            await checkpoint_if_cancelled()
            if not self._closed:
                with suppress(BoxError):
                    await self._finish()
        finally:
            await self.abort()

    async def abort(self) -> None:
        """Closes it at once: unless `send_eof` was called, the other end sees a reset."""
        self._closed = True
        try:
            await self._open_call.aclose()
        finally:  # who waits for something hears of it
            self._call.interrupt(CallInterrupted(self._box, "the tunnel was closed"))

    async def _next(self) -> bytes:
        """What the box sends next; nothing at the end."""
        _, said = await self._call.receive() or (0, None)
        if isinstance(said, bytes):
            return said
        parsed(self._box, _Ended, said)
        self._heard_out = True
        return b""

    async def _finish(self) -> None:
        if not (self._finished or self._call.ended):
            self._finished = True
            await self._call.finish()

    @contextmanager
    def _usable(self) -> Generator[None, None, None]:
        """What goes wrong inside is raised as streams of anyio do."""
        if self._closed:
            raise anyio.ClosedResourceError
        try:
            yield
        except BoxError as error:
            if self._closed:
                raise anyio.ClosedResourceError from error
            raise anyio.BrokenResourceError from error


@asynccontextmanager
async def connect(channel: Channel, port: int) -> AsyncGenerator[Tunnel, None]:
    """A tunnel to a TCP port that something listens on in the box, also on 127.0.0.1 only.

    Raises CallRefused (``not_listening``, ``too_slow``, ``too_many``), and what channels raise.
    """
    async with _tunnel(channel, "connect", port=port) as (tunnel, call):
        await _begun(channel, call, _Connected)
        yield tunnel


async def listen(
    channel: Channel,
    port: int,
    env: Mapping[str, str],
    handler: Handler,
    *,
    files: Mapping[str, str] | None = None,
    task_status: TaskStatus[None] = TASK_STATUS_IGNORED,
) -> None:
    """Serves connections to 127.0.0.1:`port` of the box, each by a call of `handler`.

    While it listens, all commands that are started in the box have the variables `env`, and those
    that `files` has texts for: each names a file in the box with its text, which stays for some
    minutes more. An error of one handler ends its connection only. It goes on until it is
    cancelled; raises CallRefused (``in_use``, ``denied``, ``too_many``, ``failed``), and what
    channels raise when they end.
    """
    room = anyio.Semaphore(MAX_SERVED)
    async with channel.call("listen", port=port, env=dict(env), files=dict(files or {})) as call:
        await _begun(channel, call, _Listening)
        task_status.started()
        try:
            async with anyio.create_task_group() as group:
                while True:
                    token = (await _note(channel, call, _Accepted)).accepted
                    await room.acquire()
                    group.start_soon(_serve, channel, token, handler, room)
        except BaseExceptionGroup as errors:
            raise first_error(errors) from None


async def _serve(channel: Channel, token: int, handler: Handler, room: anyio.Semaphore) -> None:
    try:
        async with _tunnel(channel, "accept", token=token) as (tunnel, _):
            await handler(tunnel)
    except ExceptionGroup as errors:
        _report(channel.box, first_error(errors))
    except Exception as error:  # noqa: BLE001 - the other connections go on
        _report(channel.box, error)
    finally:
        room.release()


def _report(box: str, error: BaseException) -> None:
    if not isinstance(error, GONE):
        logger.error("a connection from %s could not be served", box, exc_info=error)


@asynccontextmanager
async def _tunnel(
    channel: Channel, op: str, **arguments: Any
) -> AsyncGenerator[tuple[Tunnel, RemoteCall], None]:
    async with AsyncExitStack() as open_call:
        call = await open_call.enter_async_context(channel.call(op, **arguments))
        tunnel = Tunnel(channel.box, call, open_call)
        try:
            yield tunnel, call
        except BaseException:
            await tunnel.abort()
            raise
        await tunnel.aclose()


async def _begun(channel: Channel, call: RemoteCall, model: type[Model]) -> None:
    async with answering(channel, BEGIN_TIMEOUT):
        await _note(channel, call, model)


async def _note(channel: Channel, call: RemoteCall, model: type[Model]) -> Model:
    """The next thing that the box says, which must be this; raises BoxBroken otherwise."""
    _, said = await call.receive() or (0, None)
    return parsed(channel.box, model, None if isinstance(said, bytes) else said)
