"""The least that an MCP client over HTTP can be, of either era: nothing of its own in figures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from mcp_types import CLIENT_CAPABILITIES_META_KEY, CLIENT_INFO_META_KEY, PROTOCOL_VERSION_META_KEY
from mcp_types.version import LATEST_MODERN_VERSION

from benchmarks.fleet import Answer
from benchmarks.thin import PROTOCOL, called

PATH = "/mcp"
CLIENT = {"name": "thin", "version": "1"}
ENVELOPE = {
    PROTOCOL_VERSION_META_KEY: LATEST_MODERN_VERSION,
    CLIENT_INFO_META_KEY: CLIENT,
    CLIENT_CAPABILITIES_META_KEY: {},
}
MAX_LINE = 16 * 1024 * 1024  # bytes of a head, or of one event
OK, ACCEPTED, NOT_FOUND = 200, 202, 404
JSON_HEAD = "Accept: application/json, text/event-stream\r\nContent-Type: application/json\r\n"


class HungUp(Exception):
    """No server answers there, or it went away before it did."""


class Refused(Exception):
    """The server answered with another status than one that there is for what was asked."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status {status}: {body[:300].decode(errors='replace')}")
        self.status = status


@dataclass(frozen=True)
class Response:
    """An answer's status, headers by their names in small letters, and body."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""

    def message(self) -> dict[str, Any]:
        """The answer to a request: the body, or the last event of a stream."""
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            lines = self.body.splitlines()
            data = [line[len(b"data: ") :] for line in lines if line.startswith(b"data: {")]
            return json.loads(data[-1])
        return json.loads(self.body)


class Line:
    """A connection that is made anew whenever the server has closed it."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, head: str = "", body: bytes = b"") -> Response:
        """One request; `head` are further lines of its head, each with its end.

        Raises HungUp.
        """
        try:
            reader, writer = self._streams or await self._connect()
            writer.write(
                f"{method} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n{head}"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            return await self._answer(reader)
        except (OSError, EOFError) as error:
            self.close()
            raise HungUp(repr(error)) from None
        except BaseException:
            self.close()
            raise

    def written(self, method: str, path: str, head: str = "", body: bytes = b"") -> bytes:
        """The same as it goes over the wire."""
        host = f"Host: {self._host}:{self._port}\r\n"
        size = f"Content-Length: {len(body)}\r\n"
        return f"{method} {path} HTTP/1.1\r\n{host}{head}{size}\r\n".encode() + body

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._streams = await asyncio.open_connection(self._host, self._port, limit=MAX_LINE)
        return self._streams

    async def _answer(self, reader: asyncio.StreamReader) -> Response:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in head[1:] if line)
        headers = {name.lower(): value.strip() for name, value in pairs}
        if headers.get("transfer-encoding") == "chunked":
            body = b"".join([chunk async for chunk in _chunks(reader)])
        else:
            body = await reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection") == "close":
            self.close()
        return Response(int(head[0].split()[1]), headers, body)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _chunks(reader: asyncio.StreamReader) -> AsyncGenerator[bytes, None]:
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")


class ThinHttp:
    """A client of the `modern` era or of the one before it, whose calls come one at a time.

    An old one opens a session with its first call, and a new one when the server knows it no more.
    """

    def __init__(self, host: str, port: int, token: str | None = None, *, modern: bool) -> None:
        self.line = Line(host, port)
        self.modern = modern
        self._token = token
        self._session: str | None = None
        self._last = 0

    async def call(self, tool: str, thread: str | None = None, **arguments: object) -> Answer:
        """What `tool` returns; raises HungUp and Refused."""
        method, params = called(tool, thread, arguments)
        message = await self.request(method, params, tool)
        if (error := message.get("error")) is not None:
            return Answer(f"{tool} failed: {error}", failed=True)
        result = message["result"]
        text = "".join(part.get("text", "") for part in result["content"])
        failed = result.get("isError", False)
        return Answer(text, failed, result.get("structuredContent") or {})

    async def request(
        self, method: str, params: Mapping[str, Any], name: str = ""
    ) -> dict[str, Any]:
        """The answer to a request, good or bad; `name` is what it is about."""
        if self._session is None and not self.modern:
            await self.open()
        response = await self._post(self._numbered(method, params), self.head(method, name))
        if response.status == NOT_FOUND and not self.modern:
            await self.open()
            response = await self._post(self._numbered(method, params), self.head(method, name))
        return _well(response).message()

    def written(self, method: str, params: Mapping[str, Any], name: str) -> bytes:
        """The same as it goes over the wire; an old one must have a session already."""
        return self.line.written(
            "POST", PATH, self.head(method, name), self._numbered(method, params)
        )

    async def open(self) -> None:
        """Opens a session, as only old clients do."""
        self._session = None
        about = {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": CLIENT}
        opened = _well(await self._post(self._numbered("initialize", about), self.head()))
        self._session = opened.headers["mcp-session-id"]
        note = json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}).encode()
        _well(await self._post(note, self.head()))

    def head(self, method: str = "", name: str = "") -> str:
        """What is in the head of its requests."""
        head = JSON_HEAD
        if self._token is not None:
            head += f"Authorization: Bearer {self._token}\r\n"
        if self.modern:
            head += f"MCP-Protocol-Version: {LATEST_MODERN_VERSION}\r\nMcp-Method: {method}\r\n"
            head += f"Mcp-Name: {name}\r\n" if name else ""
        elif self._session is not None:
            head += f"MCP-Protocol-Version: {PROTOCOL}\r\nMcp-Session-Id: {self._session}\r\n"
        return head

    async def _post(self, body: bytes, head: str) -> Response:
        return await self.line.ask("POST", PATH, head, body)

    def _numbered(self, method: str, params: Mapping[str, Any]) -> bytes:
        self._last += 1
        if self.modern:
            params = {**params, "_meta": {**params.get("_meta", {}), **ENVELOPE}}
        message = {"jsonrpc": "2.0", "id": self._last, "method": method, "params": params}
        return json.dumps(message, separators=(",", ":")).encode()


def _well(response: Response) -> Response:
    if response.status not in (OK, ACCEPTED):
        raise Refused(response.status, response.body)
    return response


@asynccontextmanager
async def thin_http(
    host: str, port: int, token: str | None = None, *, modern: bool
) -> AsyncGenerator[ThinHttp, None]:
    client = ThinHttp(host, port, token, modern=modern)
    try:
        yield client
    finally:
        client.line.close()
