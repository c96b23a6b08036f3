"""One request over HTTP while it is answered: read whole, its answer ended when it must be."""

from __future__ import annotations

import anyio
from starlette.types import Message, Receive, Scope, Send

from box_mcp.domain.access import Grant
from box_mcp.surface.http.answers import CLOSE, Headers, Refused
from box_mcp.surface.requests import ENDING

DISCONNECTED: Message = {"type": "http.disconnect"}
MAX_DIGITS = 15  # of a length


class Exchange:
    """Between the server and who answers.

    `headers` has each once, `client` is who asks, `extra` headers go with whatever answer there is.
    `token` is what `grant` came of. The answer of a `stream` has no end of its own. `holders` keep
    what was admitted from being over: the request itself, and calls that it began.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.headers: dict[bytes, bytes] = {}
        self.client = ""
        self.extra: Headers = ()
        self.token = ""
        self.grant: Grant | None = None
        self.holders = 0
        self.stream = False
        self.started = False
        self._over = False
        self._ended = False
        self._body: Message | None = None
        self._listeners: set[anyio.CancelScope] = set()
        self._receive = receive
        self._send = send

    def __repr__(self) -> str:
        state = "over" if self._over else "started" if self.started else "new"
        return f"<Exchange {self.scope['method']} {self.scope['path']} {state}>"

    @property
    def length(self) -> int | None:
        """How long the body is said to be; None where nobody knows before it has come."""
        length = self.headers.get(b"content-length", b"")
        if length.isdigit() and len(length) <= MAX_DIGITS:
            return int(length)
        return None if b"transfer-encoding" in self.headers else 0

    async def read(self, most: int) -> bytes | None:
        """Reads the body; None when the client went away. Raises Refused beyond `most` bytes."""
        body, more = bytearray(), True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > most:
                raise too_large(most)
        whole = bytes(body)
        self._body = {"type": "http.request", "body": whole, "more_body": False}
        return whole

    async def receive(self) -> Message:
        """The body that was read, in one piece; then the end, when it has come to that."""
        if self._body is not None:
            body, self._body = self._body, None
            return body
        if self._ended:
            return DISCONNECTED
        with anyio.CancelScope() as listening:
            self._listeners.add(listening)
            try:
                return await self._receive()
            finally:
                self._listeners.discard(listening)
        return DISCONNECTED

    async def send(self, message: Message) -> None:
        """Passes on a piece of the answer; what comes after its end is dropped."""
        if self._over:
            return
        if message["type"] == "http.response.start":
            self.started = True
            if self.extra:
                message = {**message, "headers": [*message.get("headers", ()), *self.extra]}
        elif not message.get("more_body", False):
            self._over = True
        await self._send(message)

    def end(self) -> None:
        """Has the answer end. For who knows no end of his own, it is as if the client were gone."""
        if closers := self.scope.get(ENDING):
            for close in closers:
                close()
            return
        self._ended = True
        for listening in self._listeners:
            listening.cancel()

    async def finish(self) -> None:
        """Ends an answer that was begun as if it were whole: what it streamed is over."""
        if self.started and not self._over:
            await self.send({"type": "http.response.body", "body": b""})


def too_large(most: int) -> Refused:
    """For a request whose body has more than `most` bytes."""
    words = f"The request is larger than the {most:,} bytes that this server takes at once"
    return Refused(413, "too large", words, [CLOSE])
