"""A scripted model: Anthropic's Messages and OpenAI's Responses API on loopback, without a model.

A script is a list of turns. Which turn a request gets is read from the request itself (the number
of answers it already carries), so a client's retry gets the same answer again, and a resumed
conversation goes on where it was. Of several scripts, a conversation has the first whose name is
said in it before the model's first answer. Only requests that offer tools and name one that starts
with `tool_prefix`, in the list or as one to be loaded later, belong to a script; the client's own
side requests (titles, token counts, start-up probes) are answered politely and recorded apart.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tests.support import messages_api, responses_api
from tests.support.script import (
    Answer,
    Cut,
    Fault,
    Garbage,
    Gate,
    JsonObject,
    Overload,
    Refuse,
    Say,
    Think,
    ToolResult,
    Turn,
    Use,
)
from tests.support.webserver import Gone, web

if TYPE_CHECKING:
    from tests.support.webserver import Exchange, Web


class Api(Protocol):
    """What the modules of APIs have."""

    def messages_of(self, request: JsonObject) -> list[JsonObject]: ...
    def position(self, messages: list[JsonObject]) -> int: ...
    def opening(self, messages: list[JsonObject]) -> str: ...
    def tool_results(self, messages: list[JsonObject]) -> list[ToolResult]: ...
    def offers_tools(self, request: JsonObject) -> bool: ...
    def failure(self, status: int, words: str) -> JsonObject: ...
    def overload(self) -> JsonObject: ...
    def whole(self, answer: Answer, request: JsonObject) -> JsonObject: ...
    def events(self, answer: Answer, request: JsonObject) -> Iterable[JsonObject | Gate]: ...


APIS: Mapping[str, Api] = {"/v1/messages": messages_api, "/v1/responses": responses_api}
COUNT = "/v1/messages/count_tokens"
NO_MODELS: JsonObject = {
    "data": [],
    "models": [],
    "has_more": False,
    "first_id": None,
    "last_id": None,
}
JSON = {"Content-Type": "application/json"}
STREAM = {"Content-Type": "text/event-stream"}
FINAL = {"X-Should-Retry": "false"}
AT_ONCE = {"Retry-After": "0"}


class ScriptOverError(Exception):
    """The client goes on where the script ends."""


@dataclass
class ScriptedModel:
    """The turns to play and, for assertions, every request that came in.

    `requests` are the bodies of those that belong to a script; `web` has the heads of all.
    """

    scripts: Mapping[str, Sequence[Turn]]
    web: Web
    tool_prefix: str = ""
    requests: list[JsonObject] = field(default_factory=list[JsonObject])
    side_requests: list[JsonObject] = field(default_factory=list[JsonObject])
    refused: list[str] = field(default_factory=list[str])
    """Addresses that a client wanted to reach with this server as its web proxy."""

    problems: list[Exception] = field(default_factory=list[Exception])
    """What went wrong in the script itself; the first is raised when the server ends."""

    gates: list[Gate] = field(default_factory=list[Gate])
    """Those that were reached."""

    _asked: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])

    @property
    def url(self) -> str:
        """The base for clients of Anthropic; those of OpenAI have ``/v1`` behind it."""
        return self.web.url

    @property
    def keys(self) -> set[str]:
        """All credentials that came with requests for an answer."""
        return {
            asked.header("X-Api-Key") or asked.header("Authorization").removeprefix("Bearer ")
            for asked in self.web.asked
            if asked.path in APIS
        }

    def tool_results(self, name: str = "") -> list[ToolResult]:
        """The results of all tool calls so far, oldest first, as the model was last shown them.

        Of several conversations, `name` is said in the one that is meant.
        """
        for request in reversed(self.requests):
            api = api_of(request)
            messages = api.messages_of(request)
            if name in api.opening(messages):
                return api.tool_results(messages)
        return []

    def answer(self, request: JsonObject) -> tuple[Answer, Fault | None]:
        """The answer to this request, which is recorded, and what goes wrong with it."""
        api = api_of(request)
        if not (api.offers_tools(request) and self.tool_prefix in json.dumps(request)):
            self.side_requests.append(request)
            return Answer([Say("ok")]), None
        self.requests.append(request)
        messages = api.messages_of(request)
        name, turns = self._script(api.opening(messages))
        position = api.position(messages)
        if position >= len(turns):
            raise ScriptOverError(f"the script {name} has {len(turns)} turns, and goes on")
        turn = turns[position]
        act = turn if isinstance(turn, (Say, Think, Use, Gate, Answer)) else turn(messages)
        answer = act if isinstance(act, Answer) else Answer([act])
        before = self._asked[name, position]
        self._asked[name, position] += 1
        return answer, answer.faults[before] if before < len(answer.faults) else None

    def serve(self, exchange: Exchange) -> bool:
        """As a handler of `web`."""
        asked = exchange.asked
        asked.said = b"".join(exchange.body())
        if not asked.target.startswith("/"):  # so it is meant for another host
            self.refused.append(asked.target)
            exchange.answer(403)
        elif asked.method == "POST" and asked.path in APIS:
            self._play(exchange, json.loads(asked.said))
        else:
            counted = {"input_tokens": len(asked.said) // 4}
            reply(exchange, 200, counted if asked.path == COUNT else NO_MODELS)
        return True

    def _script(self, said: str) -> tuple[str, Sequence[Turn]]:
        for name, turns in self.scripts.items():
            if name in said:
                return name, turns
        raise ScriptOverError(f"no script is for {said}")

    def _play(self, exchange: Exchange, request: JsonObject) -> None:
        api = api_of(request)
        try:
            answer, fault = self.answer(request)
        except Exception as problem:  # noqa: BLE001, a turn may be any function of a test's
            self.problems.append(problem)
            return reply(exchange, 400, api.failure(400, repr(problem)))
        if isinstance(fault, Refuse):
            words = json.dumps(api.failure(fault.status, f"this is {fault}")).encode()
            exchange.answer(fault.status, JSON | (FINAL if fault.final else AT_ONCE), words)
        elif request.get("stream"):
            exchange.answer(200, STREAM, self._stream(api, answer, request, fault))
        else:
            for gate in answer.acts:
                if isinstance(gate, Gate):
                    self._pass(gate)
            reply(exchange, 200, api.whole(answer, request))

    def _stream(
        self, api: Api, answer: Answer, request: JsonObject, fault: Fault | None
    ) -> Iterator[bytes]:
        steps = list(api.events(answer, request))
        for number, step in enumerate(steps):
            if fault is not None and number >= len(steps) // 2:
                yield from spoilt(api, fault)
                return
            if isinstance(step, Gate):
                self._pass(step)
            else:
                yield event(step)

    def _pass(self, gate: Gate) -> None:
        self.gates.append(gate)
        gate.wait()


def api_of(request: JsonObject) -> Api:
    """The API that a request is for."""
    return responses_api if "input" in request else messages_api


def event(data: JsonObject) -> bytes:
    """One of a stream."""
    return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode()


def spoilt(api: Api, fault: Fault) -> Iterator[bytes]:
    """How a stream ends that goes wrong in the middle."""
    match fault:
        case Overload():
            yield event(api.overload())
        case Garbage():
            yield b"data: {this is not\n\n\xff\xfe\x00nor this\r\n\r\n"
        case Cut() | Refuse():
            raise Gone


def reply(exchange: Exchange, status: int, body: JsonObject) -> None:
    """A whole answer."""
    exchange.answer(status, JSON, json.dumps(body).encode())


@contextmanager
def serve_model(
    turns: Sequence[Turn] | Mapping[str, Sequence[Turn]], *, tool_prefix: str = "mcp__box__"
) -> Generator[ScriptedModel]:
    """Play one script, or several by their names, at `model.url` until the block ends."""
    with web() as server:
        scripts = turns if isinstance(turns, Mapping) else {"": turns}
        model = ScriptedModel(scripts, server, tool_prefix)
        server.handlers.append(model.serve)
        try:
            yield model
        finally:
            for gate in model.gates:
                gate.opened.set()
    if model.problems:
        raise model.problems[0]
