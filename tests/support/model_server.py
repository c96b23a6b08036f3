"""A scripted model: the Anthropic Messages API on loopback, with no model behind it.

A script is a list of turns. Which turn a request gets is read from the request itself (the number
of assistant messages it already carries), so a client's retry gets the same answer again, and a
resumed conversation goes on where it was. Only requests that offer tools and name one that starts
with `tool_prefix`, in the list or as one to be loaded later, belong to the script; the client's own
side requests (titles, token counts, start-up probes) are answered politely and recorded apart.
"""

import json
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Say:
    """End the turn with a text."""

    text: str


@dataclass(frozen=True)
class Use:
    """Call one tool, by the name under which the client offers it."""

    tool: str
    input: JsonObject


Act = Say | Use
Turn = Act | Callable[[list[JsonObject]], Act]
"""An act, or a function from the request's messages to one."""


@dataclass(frozen=True)
class ToolResult:
    """What a client reported back about one tool call."""

    text: str
    is_error: bool


class ScriptOverError(Exception):
    """The client goes on where the script ends."""


@dataclass
class ScriptedModel:
    """The turns to play and, for assertions, every request that came in."""

    turns: Sequence[Turn]
    tool_prefix: str = "mcp__box__"
    url: str = ""
    requests: list[JsonObject] = field(default_factory=list[JsonObject])
    side_requests: list[JsonObject] = field(default_factory=list[JsonObject])
    refused: list[str] = field(default_factory=list[str])
    """Addresses that a client wanted to reach with this server as its web proxy."""

    problems: list[Exception] = field(default_factory=list[Exception])
    """What went wrong in the script itself; the first is raised when the server ends."""

    def answer(self, request: JsonObject) -> Act:
        """The act for this request, which is recorded."""
        if not (offered_tools(request) and self.tool_prefix in json.dumps(request)):
            self.side_requests.append(request)
            return Say("ok")
        self.requests.append(request)
        messages: list[JsonObject] = request["messages"]
        position = sum(message["role"] == "assistant" for message in messages)
        if position >= len(self.turns):
            raise ScriptOverError(f"the script has {len(self.turns)} turns, and one more is wanted")
        turn = self.turns[position]
        return turn(messages) if callable(turn) else turn

    def tool_results(self) -> list[ToolResult]:
        """The results of all tool calls so far, oldest first, as the model was shown them."""
        return tool_results(self.requests[-1]["messages"]) if self.requests else []


def tool_results(messages: list[JsonObject]) -> list[ToolResult]:
    """The results of tool calls in these messages, oldest first."""
    return [
        ToolResult(text_of(block.get("content", "")), bool(block.get("is_error", False)))
        for message in messages
        if message["role"] == "user" and not isinstance(message["content"], str)
        for block in cast("list[JsonObject]", message["content"])
        if block["type"] == "tool_result"
    ]


def offered_tools(request: JsonObject) -> list[str]:
    """The names of the tools that a request lets the model call."""
    tools: list[JsonObject] = request.get("tools") or []
    return [tool["name"] for tool in tools]


def text_of(content: str | list[JsonObject]) -> str:
    """The text of a message's or a tool result's content."""
    if isinstance(content, str):
        return content
    return "\n".join(block["text"] for block in content if block["type"] == "text")


@contextmanager
def serve_model(
    turns: Sequence[Turn], *, tool_prefix: str = "mcp__box__"
) -> Generator[ScriptedModel]:
    """Play the script at `model.url` until the block ends."""
    model = ScriptedModel(turns, tool_prefix)

    class Handler(_Handler):
        script = model

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False  # clients keep their connections alive
        model.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield model
        finally:
            server.shutdown()
            thread.join()
    if model.problems:
        raise model.problems[0]


class _Handler(BaseHTTPRequestHandler):
    script: ScriptedModel
    protocol_version = "HTTP/1.1"

    def parse_request(self) -> bool:
        """Refuse what is meant for other hosts: a proxy is asked with the whole address."""
        if not super().parse_request():
            return False
        if self.path.startswith("/"):
            return True
        self.script.refused.append(self.path)
        self.send_error(HTTPStatus.FORBIDDEN)
        return False

    def do_HEAD(self) -> None:
        self._reply({})

    def do_GET(self) -> None:
        self._reply({"data": [], "has_more": False, "first_id": None, "last_id": None})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        path = self.path.partition("?")[0]
        if path == "/v1/messages/count_tokens":
            self._reply({"input_tokens": len(body) // 4})
        elif path == "/v1/messages":
            self._message(json.loads(body))
        else:
            self._reply({})

    def _message(self, request: JsonObject) -> None:
        try:
            act = self.script.answer(request)
        except Exception as problem:  # noqa: BLE001, a turn may be any function of a test's
            self.script.problems.append(problem)
            error = {"type": "invalid_request_error", "message": repr(problem)}
            self._reply({"type": "error", "error": error}, HTTPStatus.BAD_REQUEST)
            return
        message = as_message(act, request)
        if request.get("stream"):
            events = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in sse(message))
            self._send(events.encode(), "text/event-stream", HTTPStatus.OK)
        else:
            self._reply(message)

    def _reply(self, body: JsonObject, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(body).encode(), "application/json", status)

    def _send(self, body: bytes, content_type: str, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002, the parent's name
        """Keep the tests' output clean; requests are recorded in the script."""


def as_message(act: Act, request: JsonObject) -> JsonObject:
    """The act as the Messages API's whole (not streamed) message."""
    number = len(request["messages"])
    block: JsonObject = (
        {"type": "text", "text": act.text}
        if isinstance(act, Say)
        else {"type": "tool_use", "id": f"toolu_{number}", "name": act.tool, "input": act.input}
    )
    return {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": request["model"],
        "content": [block],
        "stop_reason": "end_turn" if isinstance(act, Say) else "tool_use",
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }


def sse(message: JsonObject) -> Iterator[JsonObject]:
    """The same message as the events of a stream."""
    (block,) = message["content"]
    empty: JsonObject
    if block["type"] == "text":
        empty = {"type": "text", "text": ""}
        delta = {"type": "text_delta", "text": block["text"]}
    else:
        empty = {**block, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
    yield {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}}
    yield {"type": "content_block_start", "index": 0, "content_block": empty}
    yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    end = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": end, "usage": {"output_tokens": 1}}
    yield {"type": "message_stop"}
