"""A unix socket in front of the container engine's own, which a test can cut and mend."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import anyio
from anyio.streams.stapled import MultiListener

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

    from anyio.abc import SocketStream

ENGINE = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


class Proxy:
    """Joins every client to the engine, until `cut`."""

    def __init__(self, path: Path) -> None:
        self.host = f"unix://{path}"
        self._path = path
        self._scope = anyio.CancelScope()

    def cut(self) -> None:
        """Ends all connections, and refuses new ones."""
        self._path.unlink()
        self._scope.cancel()

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Serves until `cut`."""
        self._scope = anyio.CancelScope()
        listener = await anyio.create_unix_listener(self._path)
        with self._scope:
            async with MultiListener([listener]):
                task_status.started()
                await listener.serve(_join)


@asynccontextmanager
async def engine_proxy(
    path: Path,
) -> AsyncGenerator[tuple[Proxy, Callable[[], Awaitable[None]]], None]:
    """A proxy that serves, and what to await after a `cut` to make it serve again."""
    proxy = Proxy(path)
    async with anyio.create_task_group() as group:
        await group.start(proxy.serve)

        async def mend() -> None:
            await group.start(proxy.serve)

        yield proxy, mend
        group.cancel_scope.cancel()


async def _join(client: SocketStream) -> None:
    async with (
        client,
        await anyio.connect_unix(ENGINE) as engine,
        anyio.create_task_group() as group,
    ):
        group.start_soon(_pass_on, client, engine)
        group.start_soon(_pass_on, engine, client)


async def _pass_on(source: SocketStream, sink: SocketStream) -> None:
    with suppress(*GONE):
        async for data in source:
            await sink.send(data)
    with suppress(*GONE):
        await sink.send_eof()
