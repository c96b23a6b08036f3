"""Bytes both ways between two streams, until both have ended."""

from __future__ import annotations

from typing import Protocol

import anyio

CHUNK = 64 * 1024  # bytes that are taken at once

DEAD = (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)
"""What streams raise when there is nobody any more at the other end."""


class Duplex(Protocol):
    """A stream whose two directions end separately, such as anyio's of sockets."""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Some bytes; raises anyio.EndOfStream at the end."""
        ...

    async def send(self, item: bytes) -> None:
        """Sends all of `item`."""
        ...

    async def send_eof(self) -> None:
        """Nothing more will be sent."""
        ...


async def relay(one: Duplex, other: Duplex, idle: float) -> bool:
    """Passes on what each sends, and its end; returns when both have ended, or one is gone.

    Or when nothing came for `idle` seconds. Closes neither. Tells whether both have ended.
    """
    with anyio.move_on_after(idle) as scope:

        async def pump(source: Duplex, sink: Duplex) -> None:
            try:
                while True:
                    data = await source.receive(CHUNK)
                    await sink.send(data)
                    scope.deadline = anyio.current_time() + idle
            except anyio.EndOfStream:
                await sink.send_eof()

        async def guarded(source: Duplex, sink: Duplex) -> None:
            try:
                await pump(source, sink)
            except DEAD:
                scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(guarded, one, other)
            group.start_soon(guarded, other, one)
    return not scope.cancel_called
