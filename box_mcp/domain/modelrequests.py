"""What boxes may ask of models: only what can be metered, and what costs nothing; pure.

Of each dialect, what its clients say is understood: https://platform.claude.com/docs/en/api,
https://developers.openai.com/api/reference, and how Vertex AI and Bedrock have Claude.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import unquote

from box_mcp.domain.modelreach import confined, has_address
from box_mcp.domain.models import Dialect, ModelRoute
from box_mcp.domain.routes import Forbidden

MAX_BODY = 32 * 1024 * 1024  # bytes; servers of models take as much
MAX_PARTS = 2_000_000  # brackets and commas in it: each can become an object of some 100 bytes
MAX_NAME = 200  # characters of a model's name
MAX_TARGET = 2048  # characters

_MODEL = r"[A-Za-z0-9](?:[A-Za-z0-9._:@-]|%3[Aa]|%2[Ff])*"
_STEP = r"[A-Za-z0-9][A-Za-z0-9._:-]*"
_VERTEX = rf"(?:/v1)?(?:/projects/{_STEP}/locations/{_STEP})?/publishers/anthropic/models"
_LIST = r"(?:(?:limit|after_id|before_id|after|order|client_version)=[A-Za-z0-9._-]*&?)*"


@dataclass(frozen=True)
class _Form:
    """What may be asked; `path` may have a group `model`. `free` costs nothing."""

    method: str
    path: str
    query: str = ""
    free: bool = False


_FORMS: Mapping[Dialect, Sequence[_Form]] = {
    Dialect.ANTHROPIC: (
        _Form("POST", "/v1/messages", r"(?:beta=true)?"),
        _Form("POST", "/v1/messages/count_tokens", r"(?:beta=true)?", free=True),
        _Form("GET", rf"/v1/models(?:/{_STEP})?", _LIST, free=True),
    ),
    Dialect.OPENAI: (
        _Form("POST", "/responses"),
        _Form("POST", "/responses/compact"),
        _Form("POST", "/responses/input_tokens", free=True),
        _Form("POST", "/chat/completions"),
        _Form("POST", "/embeddings"),
        _Form("GET", rf"/models(?:/{_STEP})?", _LIST, free=True),
    ),
    Dialect.VERTEX: (
        _Form("POST", rf"{_VERTEX}/count-tokens:rawPredict", free=True),
        _Form("POST", rf"{_VERTEX}/(?P<model>{_MODEL}?):(?:rawPredict|streamRawPredict)"),
    ),
    Dialect.BEDROCK: (
        _Form("POST", rf"/model/(?P<model>{_MODEL})/invoke(?:-with-response-stream)?"),
        _Form("POST", rf"/model/(?P<model>{_MODEL})/count-tokens", free=True),
    ),
}

_COMMON = ("Accept", "Content-Type", "User-Agent")
_CLAUDE = (*_COMMON, "anthropic-version", "anthropic-beta", "x-app", "x-claude-code-session-id")
_OPENAI = (
    *(*_COMMON, "OpenAI-Beta", "originator", "version", "session-id", "session_id", "thread-id"),
    *("conversation_id", "x-client-request-id", "x-codex-beta-features", "x-codex-turn-metadata"),
    *("x-codex-window-id", "x-codex-turn-state"),
)
PASSED_ON: Mapping[Dialect, Sequence[str]] = {
    Dialect.ANTHROPIC: _CLAUDE,
    Dialect.OPENAI: _OPENAI,
    Dialect.VERTEX: _CLAUDE,
    Dialect.BEDROCK: _CLAUDE,
}
"""What an upstream hears of a box's headers: nothing of keys, cookies, accounts and projects."""


@dataclass(frozen=True)
class Asked:
    """A request as far as its first line tells; `model` may be said there, or in its body."""

    target: str
    model: str = ""
    free: bool = False


def judge(route: ModelRoute, method: str, target: str) -> Asked:
    """What a request is for; `target` follows the route's name. Raises Forbidden."""
    path, mark, query = target.partition("?")
    for form in _FORMS[route.dialect]:
        found = re.fullmatch(form.path, path)
        if found and form.method == method and re.fullmatch(form.query, query):
            named = unquote(found.groupdict().get("model") or "")
            whole = f"{route.upstream.path}{path}{mark}{query}"
            if len(target) <= MAX_TARGET and ".." not in unquote(path):
                return Asked(whole, named, form.free)
    told = f"{method} {path[:MAX_NAME]}"
    raise Forbidden(
        f"{told} is not asked here: the route {route.name!r} is for requests to models that can be "
        "metered, as its clients make them"
    )


@dataclass(frozen=True)
class Wanted:
    """What a body says: of which models, and how. The first of `models` answers.

    Whatever has no plain price is a model of its own in `priced`: ``<model>-fast`` and
    ``<model>-priority``. `most` is how many tokens the answer may have, where it says so.
    """

    models: tuple[str, ...] = ()
    priced: tuple[str, ...] = ()
    streams: bool = False
    most: int | None = None
    continues: bool = False
    """Whether more belongs to it than is said in it."""
    answers: int = 1
    """How many are wanted at once."""
    body: bytes = field(default=b"", repr=False)


def parse(route: ModelRoute, asked: Asked, body: bytes, *, alone: bool = False) -> Wanted:
    """What is wanted; its `body` is what to send, mostly as it is. Raises Forbidden.

    Who is `alone` has no network by its server's either.
    """
    said, refers = _object(body)
    if alone:
        if refers:
            raise Forbidden("an address would have a server reach what this box's network does not")
        said = confined(said)
        body = json.dumps(said).encode()
    model = asked.model or said.get("model")
    if not isinstance(model, str) or not model:
        raise Forbidden("the request names no model")
    models = tuple(dict.fromkeys((model, *_others(said))))
    for one in models:
        if len(one) > MAX_NAME or not one.isprintable():  # it is shown to users, too
            raise Forbidden(f"{one[:MAX_NAME]!r} is no name of a model")
        if not route.offers(one):
            offered = ", ".join(route.models)
            raise Forbidden(f"the route {route.name!r} offers {offered} only, not {one!r}")
    if said.get("background"):
        raise Forbidden("answers in the background are not offered: they can't be metered")
    if not isinstance(said.get("stream", False), bool):
        raise Forbidden("'stream' is neither true nor false")
    suffix = _suffix(said)
    streams = said.get("stream") is True or "stream" in asked.target.rpartition("/")[2].lower()
    limits = _numbers(said, "max_tokens", "max_output_tokens", "max_completion_tokens")
    answers = max(_numbers(said, "n"), default=1)
    return Wanted(
        models=models,
        priced=tuple(f"{one}{suffix}" for one in models),
        streams=streams,
        most=max(limits) * answers if limits else None,
        continues=refers
        or any(said.get(name) for name in ("previous_response_id", "conversation", "prompt")),
        answers=answers,
        body=_counted(asked, said, body),
    )


def _numbers(said: Mapping[str, Any], *names: str) -> list[int]:
    """Those that are there and make sense: servers differ in which of several they heed."""
    found = [said.get(name) for name in names]
    return [one for one in found if isinstance(one, int) and one > 0]


def _object(body: bytes) -> tuple[dict[str, Any], bool]:
    """What a body says, if nobody can read it as anything else, and whether it has addresses.

    Raises Forbidden.
    """
    if sum(map(body.count, (b"[", b"{", b","))) > MAX_PARTS:
        raise Forbidden(f"the request has more than {MAX_PARTS:,} parts")
    once, plain, refers = True, True, False

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal once, plain, refers
        made = dict(found)
        once = once and len(made) == len(found)
        plain = all(name == name.casefold() for name in made)  # the outermost is the last
        refers = refers or has_address(made)
        return made

    try:
        said = json.loads(body.decode(), object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        raise Forbidden("the request's body is no JSON") from None
    if not isinstance(said, dict) or not once or not plain:
        raise Forbidden("the request's body is no JSON object whose names stand there once")
    return cast("dict[str, Any]", said), refers


def _others(said: Mapping[str, Any]) -> list[str]:
    """Further models that may have a part in the answer: where one gives up, or asks another."""
    listed: list[Any] = []
    for name in ("tools", "fallbacks", "models"):
        found = said.get(name)
        listed += cast("list[Any]", found) if isinstance(found, list) else []
    named: list[Any] = []
    for one in listed:
        members = cast("dict[str, Any]", one).items() if isinstance(one, dict) else [("model", one)]
        named += [value for name, value in members if name.casefold() == "model"]
    return [model for model in named if isinstance(model, str) and model]


def _suffix(said: Mapping[str, Any]) -> str:
    """What a model is called here when its answers cost more for coming faster."""
    if said.get("speed") not in (None, "standard"):
        return "-fast"
    tier = said.get("service_tier")
    return "" if tier in (None, "auto", "default", "standard_only", "flex") else "-priority"


def _counted(asked: Asked, said: Mapping[str, Any], body: bytes) -> bytes:
    """The body, made to have tokens counted where a stream would not tell."""
    if not asked.target.endswith("/chat/completions") or said.get("stream") is not True:
        return body
    options = said.get("stream_options")
    known = cast("dict[str, Any]", options) if isinstance(options, dict) else {}
    if known.get("include_usage") is True:
        return body
    return json.dumps({**said, "stream_options": {**known, "include_usage": True}}).encode()
