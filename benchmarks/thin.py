"""The least that an MCP client over stdio can be: nothing of its own in the figures."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

PROTOCOL = "2025-11-25"  # the newest revision with a handshake
PROGRESS = "notifications/progress"
EXIT_TIMEOUT = 5.0  # s from the end of a server's stdin to its end


@dataclass(frozen=True)
class Call:
    """A tool's call, in conversation `thread`."""

    tool: str
    thread: str | None = None
    arguments: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True)
class Reply:
    """The text that a call was answered with, and the seconds until then."""

    call: Call
    text: str
    seconds: float


class ThinClient:
    """A server's process and a synchronous line to it; its stderr is appended to `log`."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                command,
                env=dict(env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        self._last = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        client = {"name": "thin", "version": "1"}
        about = {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": client}
        try:
            self.request("initialize", about)
            self._send({"method": "notifications/initialized"})
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hangs up and waits for the server to end, which it must."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def request(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """The result of one request; raises RuntimeError when it is an error."""
        return result(method, self._reply({self._ask(method, params)}))

    def tools(self) -> dict[str, Any]:
        """The result of ``tools/list``."""
        return self.request("tools/list", {})

    def call(self, tool: str, thread: str | None = None, **arguments: object) -> str:
        """The text that `tool` returns, called in conversation `thread`; raises RuntimeError."""
        return text(tool, self.request(*called(tool, thread, arguments)))

    def call_at_once(self, tool: str, threads: Sequence[str], **arguments: object) -> list[float]:
        """Calls `tool` in all `threads` at once; the seconds to each reply."""
        calls = [Call(tool, thread, arguments) for thread in threads]
        return [reply.seconds for reply in self.call_many(calls, len(calls))]

    def call_many(self, calls: Iterable[Call], at_once: int) -> list[Reply]:
        """Makes all `calls`, so many at any time; replies as they come. Raises RuntimeError."""
        replies: list[Reply] = []
        waiting: dict[object, tuple[Call, float]] = {}
        left = iter(calls)

        def ask(call: Call) -> None:
            asked = perf_counter()
            waiting[self._ask(*called(call.tool, call.thread, call.arguments))] = call, asked

        for call in islice(left, at_once):
            ask(call)
        while waiting:
            reply = self._reply(waiting)
            now = perf_counter()
            call, asked = waiting.pop(reply["id"])
            for following in islice(left, 1):
                ask(following)
            said = text(call.tool, result(call.tool, reply))
            replies.append(Reply(call, said, now - asked))
        return replies

    def stream(self, tool: str, line: str, **arguments: object) -> float:
        """Seconds from a call of `tool` until its progress shows `line`; it is answered then."""
        method, params = called(tool, None, arguments)
        params["_meta"] = {"progressToken": "stream"}
        started, number = perf_counter(), self._ask(method, params)
        while (message := self._next()).get("method") != PROGRESS:
            if message.get("id") == number:
                raise RuntimeError(f"{tool} was answered without progress: {message}")
        seconds = perf_counter() - started
        if (shown := message["params"].get("message")) != line:
            raise RuntimeError(f"the first progress showed {shown!r}")
        text(tool, result(tool, self._reply({number})))
        return seconds

    def _ask(self, method: str, params: Mapping[str, Any]) -> int:
        self._last += 1
        self._send({"id": self._last, "method": method, "params": params})
        return self._last

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None  # a pipe
        line = json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":"))
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def _reply(self, numbers: Container[object]) -> dict[str, Any]:
        """The next reply to a request of one of these `numbers`."""
        while True:
            message = self._next()
            if message.get("id") in numbers and "method" not in message:
                return message

    def _next(self) -> dict[str, Any]:
        """The next message, whatever it is."""
        assert self._process.stdout is not None  # a pipe
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"{self._process.args} hung up")
        return json.loads(line)


def called(
    tool: str, thread: str | None, arguments: Mapping[str, object]
) -> tuple[str, dict[str, Any]]:
    """Method and parameters of a tool's call."""
    params: dict[str, Any] = {"name": tool, "arguments": arguments}
    if thread is not None:
        params["_meta"] = {"threadId": thread}
    return "tools/call", params


def result(method: str, reply: Mapping[str, Any]) -> dict[str, Any]:
    if "error" in reply:
        raise RuntimeError(f"{method} failed: {reply['error']}")
    return reply["result"]


def text(tool: str, result: Mapping[str, Any]) -> str:
    said = "".join(content.get("text", "") for content in result["content"])
    if result.get("isError"):
        raise RuntimeError(f"{tool} failed: {said}")
    return said
