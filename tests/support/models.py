"""Models as a box has them, on loopback, without a box; and servers that answer as models do."""

from __future__ import annotations

import binascii
import json
from base64 import b64encode
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import anyio

from box_mcp.domain.box import Box, BoxSpec
from box_mcp.domain.models import Dialect, ModelRoute, Price, Prices
from box_mcp.domain.names import LOCAL, BoxId
from box_mcp.domain.routes import Credential, parse_upstream
from box_mcp.domain.runs import Run, mint_key, mint_run_id
from box_mcp.gateway.models.service import Models
from box_mcp.ledger import Ledger
from tests.support.egress import Door, reachable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable
    from pathlib import Path

    from box_mcp.events import Event, ModelUsed
    from box_mcp.gateway.turns import Limits
    from tests.support.webserver import Exchange

KEY = "sk-the-real-key-of-the-host"
HOST = "Host: 127.0.0.1:3130"
JSON = {"Content-Type": "application/json"}
STREAM = {"Content-Type": "text/event-stream; charset=utf-8"}
FRAMES = {"Content-Type": "application/vnd.amazon.eventstream"}

PRICES = Prices([("m*", Price(1, 10, 0.1, 2)), ("claude-*", Price(1, 10, 0.1, 2))])
"""Of the models that tests ask, in US dollars for a million tokens."""

ASKED: dict[str, Any] = {"model": "m1", "max_tokens": 100, "messages": []}
USAGE = {"input_tokens": 1000, "cache_read_input_tokens": 500, "output_tokens": 1}
COST = (1000 * 1 + 500 * 0.1 + 200 * 10) / 1_000_000
"""Of what `claude` says."""


@dataclass
class Place(Door):
    """A box's models, and what may be changed about the box."""

    box: Box
    ledger: Ledger
    events: list[ModelUsed] = field(default_factory=list["ModelUsed"])
    heard: anyio.Event = field(default_factory=anyio.Event)
    """Set when a request has been told of; made anew by the next."""

    async def told(self, count: int) -> list[ModelUsed]:
        """What was told, as soon as it is so much."""
        with anyio.fail_after(10):
            while len(self.events) < count:
                await self.heard.wait()
        return self.events

    def hook(self, event: Event) -> None:
        """As Hook."""
        self.events.append(event)  # pyright: ignore[reportArgumentType]  # models tell nothing else
        self.heard.set()
        self.heard = anyio.Event()

    async def run(self, **more: Any) -> Run:
        """A run of the box's, which has begun."""
        made = Run(mint_run_id(), LOCAL, self.box.id, mint_key(), "codex", 1.0)
        made = replace(made, **more)
        await self.ledger.add(made)
        return made

    async def spent(self, run: Run) -> float:
        """What counts for its budget."""
        return round(await self.ledger.charged(run.id), 9)


def route(name: str, url: str, dialect: Dialect = Dialect.ANTHROPIC, **more: Any) -> ModelRoute:
    """With a key from the variable SECRET."""
    made = ModelRoute(name, dialect, parse_upstream(url), Credential(variable="SECRET"))
    return replace(made, **more)


@asynccontextmanager
async def models(
    directory: Path,
    *known: ModelRoute,
    prices: Prices = PRICES,
    per_day: float | None = None,
    limits: Limits | None = None,
) -> AsyncGenerator[Place, None]:
    """Models that serve a box of `LOCAL`."""
    spec = BoxSpec("image", 1, 1 << 30)
    box = Box(BoxId("box-aaaaaaaa"), spec, created=1.0, principal=LOCAL)
    ledger = Ledger(directory / "runs.db")
    place = Place(box, ledger)
    made = Models(known, prices, ledger, place.hook, max_cost_per_day=per_day, limits=limits)
    try:
        async with made.serving(lambda: place.box) as serve, reachable(serve) as place.port:
            yield place
    finally:
        await ledger.aclose()


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    """A request as a box sends it."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", HOST, *headers, "", ""]).encode()


def post(path: str, said: Any, *headers: str, key: str = "box-mcp") -> bytes:
    """A question as a box asks it, with its key; the connection ends with the answer."""
    data = said if isinstance(said, bytes) else json.dumps(said).encode()
    more = (f"x-api-key: {key}", "Content-Type: application/json", f"Content-Length: {len(data)}")
    return get(path, *more, "Connection: close", *headers, method="POST") + data


def messages(said: Any = None, *headers: str, key: str = "box-mcp") -> bytes:
    """A question for Claude, whose answer streams."""
    path = "/a/v1/messages?beta=true"
    return post(path, said or ASKED | {"stream": True}, *headers, key=key)


def events(said: Iterable[dict[str, Any]]) -> list[bytes]:
    """As server-sent events have them, a piece each."""
    return [f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in said]


def frames(said: Iterable[dict[str, Any]]) -> list[bytes]:
    """The same as Bedrock has them."""
    return [
        _frame(json.dumps({"bytes": b64encode(json.dumps(one).encode()).decode()})) for one in said
    ]


def _frame(payload: str) -> bytes:
    name, value = b":event-type", b"chunk"
    head = bytes([len(name)]) + name + b"\7" + len(value).to_bytes(2) + value
    body = payload.encode()
    start = (16 + len(head) + len(body)).to_bytes(4) + len(head).to_bytes(4)
    start += binascii.crc32(start).to_bytes(4)
    return start + head + body + binascii.crc32(start + head + body).to_bytes(4)


def claude(text: str = "hello", **usage: Any) -> list[dict[str, Any]]:
    """The events of an answer of Claude's, with 1,000 tokens read, 500 cached, 200 written."""
    delta = {"type": "text_delta", "text": text}
    return [
        {"type": "message_start", "message": {"usage": USAGE | usage}},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 200}},
        {"type": "message_stop"},
    ]


def whole_claude(**usage: Any) -> dict[str, Any]:
    """The same in one piece."""
    return {"type": "message", "content": [], "usage": USAGE | {"output_tokens": 200} | usage}


Said = dict[str, Any] | list[bytes]
"""An answer: JSON, or a stream of pieces."""


def reply(exchange: Exchange, said: Said | Callable[[bytes], Said]) -> bool:
    """Answers, perhaps by what a request's body says; a handler's last line."""
    exchange.asked.said = b"".join(exchange.body())
    answer = said(exchange.asked.said) if callable(said) else said
    if isinstance(answer, dict):
        exchange.answer(200, JSON, json.dumps(answer).encode())
    else:
        exchange.answer(200, FRAMES if answer[0][:1] == b"\0" else STREAM, answer)
    return True
