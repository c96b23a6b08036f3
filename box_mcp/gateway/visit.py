"""One connection from a box, and where it leads."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
from anyio.abc import SocketStream

from box_mcp.domain.network import Address, Host, Mode
from box_mcp.gateway.dialling import connect
from box_mcp.gateway.inlet import Inlet
from box_mcp.gateway.relay import Duplex, relay
from box_mcp.gateway.screening import Screened
from box_mcp.gateway.ways import Refused, Unreachable, Ways, target, worded

ACCESS_DENIED = bytes.fromhex("15 0303 0002 02 31")
"""TLS's own word for it (a fatal alert), so that a client can tell its user."""


@dataclass(frozen=True)
class Led:
    """A connection that was made."""

    host: Host
    port: int
    address: Address


class Visit:
    """A connection from the box, under way in `scope`.

    `sound` tells whether its end is the end of all that was to be said.
    """

    def __init__(self, stream: Duplex, ways: Ways, scope: anyio.CancelScope) -> None:
        self.client = Inlet(stream, self._touch)
        self.sound = True
        self._ways = ways
        self._scope = scope
        self._led: Led | None = None
        self._touch()

    def enforce(self) -> None:
        """Cuts it if it leads where the policy does not allow any more."""
        led = self._led
        if led is None or self._ways.permits(led.host, led.port, [led.address]).addresses:
            return
        self.refuse(led.host, led.port, "no rule allows it any more")
        self.cut()

    def cut(self) -> None:
        """Ends it."""
        self.sound = False
        self._scope.cancel()

    @asynccontextmanager
    async def reach(self, host: Host, port: int) -> AsyncGenerator[SocketStream, None]:
        """A connection to there, as long as that is allowed; raises Refused, Unreachable."""
        addresses = await self._ways.find(host, port)
        address, upstream = await self._connect(host, port, addresses)
        try:
            # The policy may have changed in the meantime.
            if reason := self._ways.permits(host, port, [address]).reason:
                raise self.refuse(host, port, reason)
            self._led = Led(host, port, address)
            yield upstream
        finally:
            self._led = None
            await anyio.aclose_forcefully(upstream)

    async def tunnel(self, host: Host, port: int, upstream: SocketStream) -> bool:
        """As `join`, but what passes must be meant for the host, where that is a name.

        Whether the client speaks HTTP instead, of which nothing has passed.
        """
        near: Inlet | Screened = self.client
        if isinstance(host, str) and self._ways.policy().mode is Mode.ALLOWLIST:
            near = Screened(self.client, host)
        await self.join(upstream, near)
        if not isinstance(near, Screened):
            return False
        if near.complaint:
            self.refuse(host, port, near.complaint)
            if near.speaks_tls:
                await self.client.send(ACCESS_DENIED)
        self.sound = self.sound or near.speaks_http
        return near.speaks_http

    def refuse(self, host: Host, port: int, reason: str) -> Refused:
        """Notes it down."""
        return self._ways.refuse(host, port, reason)

    async def join(self, upstream: SocketStream, near: Duplex | None = None) -> None:
        """Bytes both ways, from and to the client, until both ends are done."""
        self.sound = await relay(near or self.client, upstream, self._ways.limits.idle)

    async def _connect(
        self, host: Host, port: int, addresses: Sequence[Address]
    ) -> tuple[Address, SocketStream]:
        try:
            with anyio.fail_after(self._ways.limits.connect):
                return await connect(addresses, port)
        except TimeoutError:
            raise Unreachable(target(host, port), "it does not answer", late=True) from None
        except OSError as error:
            raise Unreachable(target(host, port), worded(error)) from None

    def _touch(self) -> None:
        self._scope.deadline = anyio.current_time() + self._ways.limits.idle
