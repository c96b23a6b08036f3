"""Server processes that may be killed at any moment, and lines to them that bear many calls."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
from anyio.abc import TaskGroup

from benchmarks.thin import EXIT_TIMEOUT, PROTOCOL

CALL_TIMEOUT = 60.0  # s; clients give calls up after that
START_TIMEOUT = 30.0  # s from a server's start to its first answer
POLL = 0.02  # s between two looks for a server that can be called
CLOSED = -32000  # the SDK's code for calls that are cut off by the end of the line
MAX_LINE = 16 * 1024 * 1024  # bytes of one message
ABOUT = {
    "protocolVersion": PROTOCOL,
    "capabilities": {},
    "clientInfo": {"name": "soak", "version": "1"},
}


class ServerGone(Exception):
    """The server ended before it answered."""


@dataclass(frozen=True)
class Answer:
    """What a tool returned, good or bad."""

    text: str
    failed: bool = False
    record: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Journal:
    """One file in which everything that happens is told in its order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._began = monotonic()

    def note(self, who: str, what: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{monotonic() - self._began:9.3f} {who:>6} {what}\n")

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()


class Server:
    """One process and the line to it. `run` must run as long as it lives."""

    def __init__(self, name: str, process: Process, journal: Journal) -> None:
        self.name = name
        self.ready = anyio.Event()
        self.gone = anyio.Event()
        self.ending = False
        self._process = process
        self._journal = journal
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last = 0

    @property
    def ended_with(self) -> int | None:
        return self._process.returncode

    async def run(self) -> None:
        assert self._process.stdout is not None  # a pipe
        async with anyio.create_task_group() as group:
            group.start_soon(self._keep_log)
            async for line in self._process.stdout:
                message = json.loads(line)
                future = self._waiting.get(message.get("id", 0))
                if "method" not in message and future is not None and not future.done():
                    future.set_result(message)
            await self._process.wait()
        self._journal.note(self.name, f"ended with {self.ended_with}")
        self.gone.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ServerGone())

    async def greet(self) -> None:
        """The handshake; raises ServerGone and TimeoutError."""
        with anyio.fail_after(START_TIMEOUT):
            await self._request("initialize", ABOUT)
            await self._send({"method": "notifications/initialized"})
        self.ready.set()

    async def call(self, tool: str, thread: str | None, arguments: Mapping[str, Any]) -> Answer:
        """Calls a tool; raises ServerGone, and TimeoutError after what clients bear."""
        params: dict[str, Any] = {"name": tool, "arguments": arguments}
        if thread is not None:
            params["_meta"] = {"threadId": thread}
        with anyio.fail_after(CALL_TIMEOUT):
            result = await self._request("tools/call", params)
        text = "".join(part.get("text", "") for part in result["content"])
        failed = result.get("isError", False)
        return Answer(text, failed, result.get("structuredContent") or {})

    def kill(self) -> None:
        """SIGKILL, as a crash or the kernel's memory manager would."""
        self.send_signal(signal.SIGKILL)

    async def hang_up(self) -> None:
        """Ends it as clients do; raises TimeoutError when it does not end."""
        self.ending = True
        assert self._process.stdin is not None  # a pipe
        self._process.stdin.close()
        await self._end()

    async def interrupt(self) -> None:
        """Ends it as Claude Code does: SIGINT, then SIGTERM; raises TimeoutError."""
        self.send_signal(signal.SIGINT)
        with anyio.move_on_after(0.1):
            return await self._end()
        self.send_signal(signal.SIGTERM)
        await self._end()

    def send_signal(self, number: signal.Signals) -> None:
        self.ending = True
        if self.ended_with is None:
            self._process.send_signal(number)

    async def _end(self) -> None:
        # One that is still starting hears of it when it has started.
        with anyio.fail_after(EXIT_TIMEOUT if self.ready.is_set() else START_TIMEOUT):
            await self.gone.wait()

    async def _request(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        if self.gone.is_set():
            raise ServerGone
        self._last += 1
        number = self._last
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            await self._send({"id": number, "method": method, "params": params})
            reply = await future
        finally:
            del self._waiting[number]
        if "error" not in reply:
            return reply["result"]
        if reply["error"]["code"] == CLOSED:
            raise ServerGone
        return {"content": [{"text": f"{method} failed: {reply['error']}"}], "isError": True}

    async def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None  # a pipe
        line = json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":"))
        try:
            self._process.stdin.write(line.encode() + b"\n")
            await self._process.stdin.drain()
        except OSError:
            raise ServerGone from None

    async def _keep_log(self) -> None:
        assert self._process.stderr is not None  # a pipe
        async for line in self._process.stderr:
            self._journal.note(self.name, line.decode(errors="replace").rstrip())


class Fleet:
    """So many servers at any time, all of one state directory; `complain` is told of faults."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        journal: Journal,
        complain: Callable[[str], None],
    ) -> None:
        self._command = command
        self._env = dict(env)
        self._journal = journal
        self._complain = complain
        self._all: list[Server] = []
        self._tasks: TaskGroup
        self.servers: list[Server] = []

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Fleet, None]:
        """Has no server yet; kills what still runs at the end."""
        async with anyio.create_task_group() as self._tasks:
            try:
                yield self
            finally:
                with anyio.CancelScope(shield=True):
                    for server in self._all:
                        server.kill()
                        await server.gone.wait()

    async def start(self, **settings: object) -> Server:
        """One more; `settings` go over those that all have."""
        given = {f"BOX_MCP_{name.upper()}": str(value) for name, value in settings.items()}
        env = {**self._env, **given}
        process = await asyncio.create_subprocess_exec(
            *self._command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=env, limit=MAX_LINE
        )
        server = Server(f"s{len(self._all)}", process, self._journal)
        self._all.append(server)
        self.servers.append(server)
        self._journal.note(server.name, f"started as {process.pid}")
        self._tasks.start_soon(server.run)
        self._tasks.start_soon(self._greet, server)
        return server

    async def pick(self, dice: random.Random) -> Server:
        """One of the servers that can be called."""
        while True:
            there = [one for one in self.servers if one.ready.is_set() and not one.ending]
            if there:
                return dice.choice(there)
            await anyio.sleep(POLL)

    async def _greet(self, server: Server) -> None:
        try:
            await server.greet()
        except (ServerGone, TimeoutError) as error:
            if not server.ending:
                self._complain(f"{server.name} did not start: {error!r}")
