"""What an answer of a model cost, as it says itself while it passes; pure.

Where it says nothing, because somebody left too early, it is estimated, rather too high than too
low: budgets hold for what nobody counted, too.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from box_mcp.domain.modelrequests import Wanted
from box_mcp.domain.models import PER, Price, Prices, Tokens

MAX_EVENT = 32 * 1024 * 1024  # bytes; an answer's last one repeats all of it
MAX_COUNT = 10**12  # tokens; no answer has as many

BYTES_READ = 3  # of a request, for a token; English and code have 3.5 to 4.5
BYTES_WRITTEN = 2  # of what an answer says, for a token
SPEED = 100  # tokens a second: what a model thinks is not always said
CONTINUED = 200_000  # tokens of a conversation that is not in the request: it may be as long
UNSAID = 16_000  # tokens of an answer that came to no end, where the request sets no limit

HOUR = 1.6  # what the cache costs for an hour, by its price for five minutes
NEARBY = 1.1  # what an answer costs at most that is made in a certain region, by its usual price
SEARCH = 0.01  # US dollars for a search by Claude's servers
HOSTED: Mapping[str, float] = {
    "web_search_call": 0.01,
    "file_search_call": 0.0025,
    "code_interpreter_call": 0.03,
    "image_generation_call": 0.25,
}
"""US dollars, at most, for what OpenAI's servers do beside an answer: items of its output."""

FAILED = frozenset(("response.failed", "error"))
OVER = frozenset(("message_stop", "response.completed", "response.incomplete")) | FAILED
"""Events behind which nothing more is counted."""

_CLOUD = re.compile(r"^(?:[a-z-]{2,12}\.)?anthropic\.|-v\d+(?::\d+)?$")


@dataclass(frozen=True)
class Metered:
    """What was counted. `hour` are those of `cache_write` that are kept for an hour.

    `beside` is what other things cost, in US dollars, and `factor` what prices are multiplied by.
    """

    tokens: Tokens = field(default_factory=Tokens)
    hour: int = 0
    beside: float = 0.0
    factor: float = 1.0

    def cost(self, prices: Sequence[Price]) -> float:
        """In US dollars, by the dearest of some prices."""
        return max(map(self._cost, prices), default=0.0) * self.factor + self.beside

    def _cost(self, price: Price) -> float:
        kept = self.hour * price.at(self.tokens.prompt).cache_write * (HOUR - 1) / PER
        return self.tokens.cost(price) + kept

    def or_more(self, other: Metered) -> Metered:
        """What one of two says, whichever says more: counts in a stream grow."""
        ours, theirs = self.tokens, other.tokens
        tokens = Tokens(
            max(ours.input, theirs.input),
            max(ours.cache_read, theirs.cache_read),
            max(ours.cache_write, theirs.cache_write),
            max(ours.output, theirs.output),
        )
        hour, beside = max(self.hour, other.hour), max(self.beside, other.beside)
        return Metered(tokens, hour, beside, max(self.factor, other.factor))


def prices_of(prices: Prices, models: Sequence[str]) -> tuple[Price, ...] | None:
    """What each of them costs, also as clouds call it; None when one of them has no price."""
    found = [
        prices.of(model) or prices.of(_CLOUD.sub("", model).replace("@", "-")) for model in models
    ]
    known = tuple(price for price in found if price is not None)
    return known if len(known) == len(found) else None


@dataclass
class Total:
    """What is known of an answer by now.

    `said` are bytes that a model wrote. `over` tells that all is counted, `failed` that the server
    gave up.
    """

    metered: Metered | None = None
    said: int = 0
    over: bool = False
    failed: bool = False

    def hear(self, event: Mapping[str, Any]) -> None:
        """One event, or a whole answer."""
        kind = event.get("type")
        if (found := _told(event)) is not None:
            self.metered = found if self.metered is None else self.metered.or_more(found)
            # The last piece of a streamed chat completion has no choices left.
            self.over = self.over or event.get("choices") == []
        self.said += _written(event)
        self.over = self.over or kind in OVER
        self.failed = self.failed or kind in FAILED

    def settle(self, wanted: Wanted, seconds: float) -> Metered:
        """What the answer is taken to have cost, if no more of it comes, after so many seconds."""
        if self.metered is not None and self.over and not self.failed:
            return self.metered
        if self.failed and not self.said:
            return self.metered or Metered()
        written = self.said // BYTES_WRITTEN
        if wanted.streams and not self.failed:
            thought = int(seconds * SPEED) * wanted.answers
            written = max(written, thought if wanted.most is None else min(thought, wanted.most))
        elif not self.over:
            written = max(written, UNSAID if wanted.most is None else wanted.most)
        told = self.metered or Metered(Tokens(input=_given(wanted)))
        return told.or_more(Metered(Tokens(output=min(written, MAX_COUNT))))


class Lines:
    """Counts in server-sent events, as they come. Each has one line of data."""

    def __init__(self) -> None:
        self.total = Total()
        self._rest = bytearray()

    def feed(self, piece: bytes) -> None:
        """More of the answer."""
        *ended, rest = piece.split(b"\n")
        for line in ended:
            self._line(bytes(self._rest + line))
            self._rest.clear()
        self._rest += rest
        if len(self._rest) > MAX_EVENT:
            self._rest.clear()

    def _line(self, line: bytes) -> None:
        name, _, data = line.partition(b":")
        if name != b"data":
            return
        if data.strip() == b"[DONE]":
            self.total.over = True
        elif (event := _parsed(data)) is not None:
            self.total.hear(event)


class Frames:
    """Counts in AWS's binary events, which have Claude's in base64 in JSON."""

    def __init__(self) -> None:
        self.total = Total()
        self._rest = bytearray()

    def feed(self, piece: bytes) -> None:
        """More of the answer."""
        self._rest += piece
        while len(self._rest) >= 12:
            size, heads = int.from_bytes(self._rest[:4]), int.from_bytes(self._rest[4:8])
            if not 16 + heads <= size <= MAX_EVENT:
                size = MAX_EVENT  # it is none: nothing can be counted in it
                self._rest.clear()
            if len(self._rest) < size:
                return
            self._frame(bytes(self._rest[12 + heads : size - 4]))
            del self._rest[:size]

    def _frame(self, payload: bytes) -> None:
        inside = (_parsed(payload) or {}).get("bytes")
        event = _decoded(inside) if isinstance(inside, str) else None
        if event is not None:
            self.total.hear(event)


class Whole:
    """Counts in an answer of JSON that is there in one piece."""

    def __init__(self) -> None:
        self.total = Total()

    def feed(self, piece: bytes) -> None:
        """All of the answer."""
        self.total.said = len(piece)
        self.total.over = True
        if (answer := _parsed(piece)) is not None:
            self.total.hear(answer)


STREAMS: Mapping[str, type[Lines | Frames]] = {
    "text/event-stream": Lines,
    "application/vnd.amazon.eventstream": Frames,
}
"""What counts in what streams, by its type."""


def _given(wanted: Wanted) -> int:
    return len(wanted.body) // BYTES_READ + (CONTINUED if wanted.continues else 0)


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", said) if isinstance(said, dict) else None


def _decoded(text: str) -> dict[str, Any] | None:
    try:
        return _parsed(b64decode(text))
    except ValueError:
        return None


def _told(event: Mapping[str, Any]) -> Metered | None:
    """What an event says of tokens; None when it says nothing."""
    inside = _part(event, "message") or _part(event, "response") or event
    if metrics := _part(event, "amazon-bedrock-invocationMetrics"):
        return Metered(
            Tokens(
                _count(metrics, "inputTokenCount"),
                _count(metrics, "cacheReadInputTokenCount"),
                _count(metrics, "cacheWriteInputTokenCount"),
                _count(metrics, "outputTokenCount"),
            )
        )
    usage = _part(inside, "usage")
    if not usage:
        return None
    output = inside.get("output")
    items = cast("list[Any]", output) if isinstance(output, list) else []
    kinds = [cast("dict[str, Any]", item).get("type") for item in items if isinstance(item, dict)]
    beside = sum(HOSTED.get(kind, 0.0) for kind in kinds if isinstance(kind, str))
    beside += _count(_part(usage, "server_tool_use"), "web_search_requests") * SEARCH
    factor = NEARBY if usage.get("inference_geo") == "us" else 1.0
    hour = _count(_part(usage, "cache_creation"), "ephemeral_1h_input_tokens")
    told = Metered(_tokens(usage), hour, beside, factor)
    steps = usage.get("iterations")
    if not isinstance(steps, list):
        return told
    tokens = Tokens()
    for step in cast("list[Any]", steps):
        tokens += _tokens(cast("dict[str, Any]", step)) if isinstance(step, dict) else Tokens()
    return told.or_more(Metered(tokens))


def _tokens(usage: Mapping[str, Any]) -> Tokens:
    """OpenAI counts what the cache had a part in among the input; Anthropic does not."""
    details = _part(usage, "input_tokens_details") or _part(usage, "prompt_tokens_details")
    whole = _count(usage, "input_tokens") + _count(usage, "prompt_tokens")
    output = _count(usage, "output_tokens") + _count(usage, "completion_tokens")
    if details:
        read = _count(details, "cached_tokens")
        write = _count(details, "cache_write_tokens")
        return Tokens(max(0, whole - read - write), read, write, output)
    read = _count(usage, "cache_read_input_tokens")
    return Tokens(whole, read, _count(usage, "cache_creation_input_tokens"), output)


def _written(event: Mapping[str, Any]) -> int:
    """How many bytes of an event are of the model's."""
    choices = event.get("choices")
    listed = cast("list[Any]", choices) if isinstance(choices, list) else []
    deltas = [event.get("delta"), *(_part(choice, "delta") for choice in listed)]
    return sum(_size(delta) for delta in deltas)


def _size(delta: object) -> int:
    if isinstance(delta, str):
        return len(delta.encode("utf-8", "replace"))
    if not isinstance(delta, dict):
        return 0
    parts = cast("dict[str, Any]", delta)
    return sum(
        _size(value) if isinstance(value, str) else _length(value)
        for name, value in parts.items()
        if name != "type" and value
    )


def _length(value: object) -> int:
    """Of something in JSON; what is too deep to be written is nothing that a model says."""
    try:
        return len(json.dumps(value))
    except RecursionError:
        return 0


def _part(of: object, name: str) -> dict[str, Any]:
    """An object in an object, or an empty one."""
    found = cast("dict[str, Any]", of).get(name) if isinstance(of, dict) else None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _count(of: Mapping[str, Any], name: str) -> int:
    found = of.get(name)
    if not isinstance(found, int) or isinstance(found, bool):
        return 0
    return min(max(found, 0), MAX_COUNT)
