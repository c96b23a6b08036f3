"""An ASGI app asked by hand, without a server."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Message, Scope

PEER = "198.51.100.7"
LOCAL = ("127.0.0.1", 8765)


@dataclass
class Asking:
    """One request; what it is answered is written here as it comes.

    `pieces` are what its body comes in, and `gone` is set when the client hangs up.
    """

    scope: Scope
    pieces: list[bytes] = field(default_factory=lambda: [b""])
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    over: bool = False
    begun: anyio.Event = field(default_factory=anyio.Event)
    gone: anyio.Event = field(default_factory=anyio.Event)

    async def receive(self) -> Message:
        if self.pieces:
            piece = self.pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self.pieces)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        assert not self.over, f"an answer was over, and went on: {message}"
        if message["type"] == "http.response.start":
            assert not self.status, f"an answer began twice: {message}"
            self.status = message["status"]
            self.headers = {k.decode(): v.decode() for k, v in message.get("headers", ())}
            self.begun.set()
        else:
            assert self.status, "a body came before its head"
            self.body += message.get("body", b"")
            self.over = not message.get("more_body", False)

    async def of(self, app: ASGIApp) -> Asking:
        """The same, once the app is done with it."""
        await app(self.scope, self.receive, self.send)
        return self

    @property
    def words(self) -> str:
        """What a refusal says."""
        return json.loads(self.body)["error"]["message"]


def asking(
    method: str = "POST",
    path: str = "/mcp",
    body: bytes | list[bytes] = b"",
    *,
    headers: Sequence[tuple[str, str]] = (),
    token: str = "",
    host: str | None = "localhost:8765",
    client: str | None = PEER,
    **scope: Any,
) -> Asking:
    """A request, ready to be asked. `client` None: by a unix socket."""
    own = [("host", host)] if host is not None else []
    bearer = [("authorization", f"Bearer {token}")] if token else []
    pairs = [(k.lower().encode(), v.encode("latin-1")) for k, v in (*own, *bearer, *headers)]
    about: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": pairs,
        "client": (client, 40000) if client else None,
        "server": LOCAL if client else ("/run/box_mcp.sock", None),
        **scope,
    }
    return Asking(about, [body] if isinstance(body, bytes) else list(body))
