"""The real server over HTTP, in a process of its own, with tokens for whoever is to call it."""

from __future__ import annotations

import re
import subprocess
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
import psutil
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from box_mcp.domain.access import EVERYTHING, parse_principal, parse_scope
from box_mcp.identity.tokens import Tokens
from tests.support.client import COMMAND, MODERN, PATIENCE, POLL, Server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from mcp.client.session import ElicitationFnT, MessageHandlerFnT

SERVED = re.compile(r"served at (https?://\S+?)(?=[\s\"]|$)")
END_PATIENCE = 75.0  # s; a server that is told to end may take `drain` for it


@dataclass
class HttpServer:
    """A server process; `url` is its endpoint, `log` what it writes to stderr.

    `uds` is its unix socket, where it has one, and `verify` what its certificate is checked by.
    """

    url: str
    process: psutil.Popen
    log: Path
    state: Path
    uds: str | None = None
    verify: Any = True
    _tokens: dict[tuple[str, tuple[str, ...]], str] = field(
        default_factory=dict[tuple[str, tuple[str, ...]], str]
    )

    @property
    def base(self) -> str:
        """The address without a path."""
        return self.url.removesuffix("/mcp")

    async def token(self, principal: str, *scopes: str, expires: float | None = None) -> str:
        """A token for `principal`, the same each time unless it `expires`. No scopes: all."""
        key = (principal, scopes)
        if expires is not None or key not in self._tokens:
            tokens = Tokens(self.state / "tokens.db")
            try:
                parsed = [parse_scope(scope) for scope in scopes] or [EVERYTHING]
                _, text = await tokens.create(parse_principal(principal), parsed, expires)
            finally:
                await tokens.aclose()
            if expires is not None:
                return text
            self._tokens[key] = text
        return self._tokens[key]

    def raw(self, token: str = "", **headers: str) -> httpx2.AsyncClient:
        """A plain HTTP client that has the token, if any, in all its requests."""
        bearer = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx2.AsyncClient(
            base_url=self.base,
            headers={**bearer, **{name.replace("_", "-"): text for name, text in headers.items()}},
            timeout=httpx2.Timeout(PATIENCE, read=300),
            transport=httpx2.AsyncHTTPTransport(uds=self.uds, verify=self.verify),
        )

    @asynccontextmanager
    async def client(
        self,
        principal: str,
        mode: str = MODERN,
        *,
        scopes: tuple[str, ...] = (),
        token: str | None = None,
        ask: ElicitationFnT | None = None,
        on_message: MessageHandlerFnT | None = None,
    ) -> AsyncGenerator[Client, None]:
        """The SDK's client, with a token of `principal`. `ask` answers what users are asked."""
        token = await self.token(principal, *scopes) if token is None else token
        async with self.raw(token) as http:
            client = Client(
                streamable_http_client(self.url, http_client=http),
                mode=mode,
                elicitation_callback=ask,
                message_handler=on_message,
            )
            async with client:
                yield client

    @asynccontextmanager
    async def caller(
        self, principal: str, mode: str = MODERN, **arguments: Any
    ) -> AsyncGenerator[Server, None]:
        """As `client`, with the words of `tests.support.client`: say, run, tell, fail."""
        async with self.client(principal, mode, **arguments) as client:
            yield Server(client, self.process, self.log)

    async def stop(self) -> int:
        """Has it end as by `systemctl stop`; its exit status."""
        with suppress(psutil.NoSuchProcess):
            self.process.terminate()
        return await self.ended()

    def kill(self) -> None:
        """Ends it without a word."""
        with suppress(psutil.NoSuchProcess):
            self.process.kill()

    async def ended(self) -> int:
        """Its exit status, once it has ended."""
        with anyio.fail_after(END_PATIENCE):
            while (status := self.process.poll()) is None:  # noqa: ASYNC110 - it happens elsewhere
                await anyio.sleep(POLL)
        return status


@asynccontextmanager
async def serving_http(
    env: Mapping[str, str],
    listen: str = "127.0.0.1:0",
    *,
    command: Sequence[str] = (*COMMAND, "--http"),
    **settings: str,
) -> AsyncGenerator[HttpServer, None]:
    """A server process for the length of the block; `settings` as in ``BOX_MCP_HTTP__DRAIN``.

    `env` is as from `fresh_state`; `command` is another one that serves as ours does.
    """
    log = Path(env["BOX_MCP_STATE_DIR"]).parent / "server.log"
    log.touch()
    before = log.stat().st_size
    variables = {**env, **{f"BOX_MCP_{name.upper()}": value for name, value in settings.items()}}
    with log.open("a") as errors:
        process = psutil.Popen(
            [*command, listen],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
        )
    server = HttpServer("", process, log, Path(env["BOX_MCP_STATE_DIR"]))
    if listen.startswith("unix:"):
        server.uds = listen.removeprefix("unix:")
    try:
        server.url = await _address(server, before)
        yield server
    finally:
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(PATIENCE):
                await server.stop()
            server.kill()


async def _address(server: HttpServer, before: int) -> str:
    """Where it says that it serves."""
    with anyio.fail_after(PATIENCE):
        while True:
            said = server.log.read_bytes()[before:].decode()
            if found := SERVED.search(said):
                return found[1]
            assert server.process.poll() is None, said
            await anyio.sleep(POLL)
