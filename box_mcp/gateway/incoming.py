"""A request from a box, as it comes, and the answer to it, as it goes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

import anyio
import h11
from anyio.lowlevel import checkpoint

from box_mcp.gateway.heads import HEAD_LIMIT, Malformed, next_request
from box_mcp.gateway.inlet import Inlet
from box_mcp.gateway.relay import DEAD

Headers = Sequence[tuple[str, str]]


class HungUp(Exception):
    """The box has left."""


class Incoming:
    """A request whose head was read; iterating over it gives its body, once.

    `answered` tells whether an answer has begun. `sent` and `received` count the bytes of the two
    bodies, as the box sees them.
    """

    def __init__(self, client: Inlet, near: h11.Connection, request: h11.Request) -> None:
        self.method = request.method.decode()
        self.target = request.target.decode()
        self.sent = 0
        self.received = 0
        self.begun = False
        self.answered = False
        self._headers = request.headers
        self._client = client
        self._near = near
        self._over = anyio.Event()
        self._unsent = b""

    @classmethod
    async def next(cls, client: Inlet) -> Incoming | None:
        """The next one of a connection; None when there are no more. Raises Malformed."""
        near = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)
        request = await next_request(client, near)
        return request and cls(client, near, request)

    def header(self, name: str) -> str | None:
        """The value of a header; raises Malformed where there are several."""
        found = [value for key, value in self._headers if key == name.lower().encode()]
        if len(found) > 1:
            raise Malformed(f"it has several headers {name}")
        return found[0].decode("latin-1") if found else None

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        """The body; raises HungUp."""
        self.begun = True
        if self._near.they_are_waiting_for_100_continue:
            await self._say(h11.InformationalResponse(status_code=100, headers=[]))
        while (piece := await self._piece()) is not None:
            await checkpoint()  # very many small ones may be there at once
            self.sent += len(piece)
            yield piece
        self._over.set()

    async def read(self, limit: int) -> bytes:
        """All of the body; raises Malformed where it is longer, and HungUp."""
        whole = bytearray()
        async for piece in self:
            whole += piece
            if len(whole) > limit:
                raise Malformed(f"its body is longer than {limit:,} bytes", 413)
        return bytes(whole)

    async def gone(self) -> None:
        """Returns when the box has left although all was not said that was to be said to it.

        It never returns where the box has sent another request already.
        """
        await self._over.wait()
        with suppress(*DEAD):
            if await self._client.more():
                await anyio.sleep_forever()

    def begin(self, status: int, headers: Headers) -> None:
        """The answer's head, which goes with what follows; raises ValueError where it is none."""
        more = [] if self._near.their_state is h11.DONE else [("Connection", "close")]
        try:
            head = h11.Response(status_code=status, headers=[*headers, *more])
        except h11.LocalProtocolError as error:
            raise ValueError(str(error)) from None
        self._unsent = self._near.send(head) or b""

    async def say(self, piece: bytes) -> None:
        """More of the answer's body; raises HungUp, and ValueError where its head said less."""
        self.received += len(piece)
        await self._say(h11.Data(data=piece))

    async def end(self) -> bool:
        """The answer is whole. Whether another request may follow; raises as `say`."""
        await self._say(h11.EndOfMessage())
        # What came behind the request is the next one.
        self._client.buffer[:0] = self._near.trailing_data[0]
        return self._near.our_state is self._near.their_state is h11.DONE

    async def _say(self, event: h11.Event) -> None:
        try:
            data = self._near.send(event)
        except h11.LocalProtocolError as error:
            raise ValueError(str(error)) from None
        self.answered = self.answered or isinstance(event, h11.Data | h11.EndOfMessage)
        try:
            await self._client.send(self._unsent + (data or b""))
        except DEAD:
            raise HungUp from None
        self._unsent = b""

    async def _piece(self) -> bytes | None:
        try:
            while (event := self._near.next_event()) is h11.NEED_DATA:
                self._near.receive_data(await self._heard())
        except (h11.RemoteProtocolError, *DEAD):
            raise HungUp from None
        return bytes(event.data) if isinstance(event, h11.Data) else None

    async def _heard(self) -> bytes:
        try:
            return await self._client.receive()
        except anyio.EndOfStream:
            return b""
