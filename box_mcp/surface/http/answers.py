"""Short answers over HTTP, and refusals: in words that MCP clients show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from mcp_types import INTERNAL_ERROR, INVALID_REQUEST
from starlette.types import Send

Headers = Sequence[tuple[bytes, bytes]]

CLOSE = (b"connection", b"close")


@dataclass(frozen=True)
class Said:
    """A whole answer."""

    status: int
    body: bytes = b""
    kind: bytes = b"text/plain; charset=utf-8"
    headers: Headers = ()

    async def send(self, send: Send) -> None:
        """Gives the answer."""
        head = [
            (b"content-type", self.kind),
            (b"content-length", b"%d" % len(self.body)),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            *self.headers,
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": head})
        await send({"type": "http.response.body", "body": self.body})


class Refused(Exception):
    """A request is not let in. `why` is for logs, `words` are for the client.

    `counts`: enough of them, and their address is not listened to for a while. `code` is
    JSON-RPC's for it.
    """

    def __init__(
        self, status: int, why: str, words: str, headers: Headers = (), *, counts: bool = True
    ) -> None:
        super().__init__(why)
        self.status = status
        self.why = why
        self.words = words
        self.headers = headers
        self.counts = counts
        self.code = INVALID_REQUEST if status < 500 else INTERNAL_ERROR

    def answer(self) -> Said:
        """As MCP clients read it: an error of JSON-RPC."""
        error = {"code": self.code, "message": self.words}
        body = json.dumps({"jsonrpc": "2.0", "id": None, "error": error}).encode()
        return Said(self.status, body, b"application/json", self.headers)


def retry_after(seconds: float) -> tuple[bytes, bytes]:
    """The header that says when to come again."""
    return b"retry-after", b"%d" % max(1, -int(-seconds // 1))
