"""One HTTP request sent on, and its answer passed back, as it comes."""

from __future__ import annotations

from enum import Enum, auto

import anyio
import h11
from anyio.abc import SocketStream

from box_mcp.gateway.heads import HEAD_LIMIT
from box_mcp.gateway.inlet import Inlet
from box_mcp.gateway.relay import CHUNK, DEAD

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer "
    b"transfer-encoding upgrade http2-settings".split()
)
"""Headers that are between two neighbours, besides those that Connection names."""

WEBSOCKET = b"websocket"
"""The one protocol that may be switched to: HTTP/2 would name hosts of its own."""

Head = h11.Request | h11.Response | h11.InformationalResponse


class Outcome(Enum):
    """How it went."""

    DONE = auto()
    SWITCHED = auto()
    """To another protocol: what follows are bytes."""
    UNANSWERED = auto()
    """By the upstream, which said nothing yet, or nothing that could be passed on."""
    BROKEN = auto()


def end_to_end(head: Head) -> list[tuple[bytes, bytes]]:
    """The headers that are meant for the other end; how the body ends is told anew."""
    dropped = HOP_BY_HOP | (tokens(head, b"connection") - {b"content-length", b"host"})
    if tokens(head, b"transfer-encoding"):
        dropped |= {b"content-length"}
    return [
        (name, value) for name, value in head.headers.raw_items() if name.lower() not in dropped
    ]


def tokens(head: Head, name: bytes) -> set[bytes]:
    """What its headers of this name list, in lower case."""
    values = b",".join(value for one, value in head.headers if one == name)
    return {token.strip().lower() for token in values.split(b",")} - {b""}


class Exchange:
    """`near` has read the head of a request; the upstream is connected, and not used yet."""

    def __init__(self, client: Inlet, near: h11.Connection, upstream: SocketStream) -> None:
        self._client = client
        self._near = near
        self._upstream = upstream
        self._far = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)
        self._all_sent = False

    async def run(self, request: h11.Request) -> Outcome:
        """Sends `request` with the body that follows at the client, and passes the answer back."""
        if not await self._say(self._far.send(request)):
            return Outcome.UNANSWERED
        outcome = Outcome.BROKEN
        async with anyio.create_task_group() as group:
            group.start_soon(self._send_body, group.cancel_scope)
            outcome = await self._pass_back()
            group.cancel_scope.cancel()
        return outcome

    async def _send_body(self, exchange: anyio.CancelScope) -> None:
        """Cancels the exchange where the client breaks off, or sends what is no body."""
        try:
            while True:
                event = self._near.next_event()
                if event is h11.NEED_DATA:
                    self._near.receive_data(await self._client_said())
                elif isinstance(event, h11.Data):
                    if not await self._say(self._far.send(h11.Data(data=event.data))):
                        return
                else:
                    await self._say(self._far.send(h11.EndOfMessage()))
                    self._all_sent = True
                    return
        except (h11.ProtocolError, *DEAD):
            exchange.cancel()

    async def _pass_back(self) -> Outcome:
        broken = Outcome.UNANSWERED
        try:
            while True:
                event = self._far.next_event()
                if event is h11.NEED_DATA:
                    self._far.receive_data(await self._upstream_said())
                elif isinstance(event, h11.InformationalResponse):
                    if event.status_code == 101:
                        return await self._switch(event)
                    await self._inform(event)
                elif isinstance(event, h11.Response):
                    broken = Outcome.BROKEN
                    await self._pass_head(event)
                elif isinstance(event, h11.Data):
                    await self._client.send(self._near.send(event))
                else:
                    await self._client.send(self._near.send(h11.EndOfMessage()))
                    return Outcome.DONE
        except h11.ProtocolError:
            return broken
        except DEAD:
            return Outcome.BROKEN

    async def _pass_head(self, answer: h11.Response) -> None:
        head = h11.Response(
            status_code=answer.status_code,
            reason=answer.reason,
            headers=end_to_end(answer),
        )
        await self._client.send(self._near.send(head))

    async def _inform(self, word: h11.InformationalResponse) -> None:
        if self._near.their_http_version == b"1.1":
            passed = h11.InformationalResponse(
                status_code=word.status_code, headers=end_to_end(word)
            )
            await self._client.send(self._near.send(passed))

    async def _switch(self, word: h11.InformationalResponse) -> Outcome:
        if not self._all_sent:
            return Outcome.BROKEN
        headers = [*end_to_end(word), (b"Connection", b"Upgrade"), (b"Upgrade", WEBSOCKET)]
        passed = h11.InformationalResponse(status_code=101, reason=word.reason, headers=headers)
        await self._client.send(self._near.send(passed) + self._far.trailing_data[0])
        return Outcome.SWITCHED

    async def _client_said(self) -> bytes:
        try:
            return await self._client.receive()
        except anyio.EndOfStream:
            return b""

    async def _upstream_said(self) -> bytes:
        try:
            return await self._upstream.receive(CHUNK)
        except anyio.EndOfStream:
            return b""
        except DEAD as error:
            raise h11.RemoteProtocolError("it reset the connection") from error

    async def _say(self, data: bytes) -> bool:
        """Sends to the upstream, unless that listens no more: it may have answered already."""
        try:
            if data:
                await self._upstream.send(data)
        except DEAD:
            return False
        return True
