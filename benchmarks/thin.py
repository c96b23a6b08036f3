"""The least that an MCP client over stdio can be: nothing of its own in the figures."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

PROTOCOL = "2025-11-25"  # the newest revision with a handshake
EXIT_TIMEOUT = 5.0  # s from the end of a server's stdin to its end


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

    def call_at_once(self, tool: str, threads: Iterable[str], **arguments: object) -> list[float]:
        """Calls `tool` in all `threads` at once; the seconds from then to each reply."""
        started, seconds = perf_counter(), list[float]()
        waiting = {self._ask(*called(tool, thread, arguments)) for thread in threads}
        while waiting:
            reply = self._reply(waiting)
            seconds.append(perf_counter() - started)
            waiting.remove(reply["id"])
            text(tool, result(tool, reply))
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
        assert self._process.stdout is not None  # a pipe
        while line := self._process.stdout.readline():
            message: dict[str, Any] = json.loads(line)
            if message.get("id") in numbers and "method" not in message:
                return message
        raise RuntimeError(f"{self._process.args} hung up")


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
