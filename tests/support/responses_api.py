"""OpenAI's Responses API as Codex uses it: what requests say, and answers to them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby, takewhile

from tests.support.script import Answer, Gate, JsonObject, Say, Think, ToolResult, Use

CALLS = ("function_call", "custom_tool_call")
ERRORS = {400: "invalid_request_error", 429: "rate_limit_exceeded", 503: "server_is_overloaded"}


def messages_of(request: JsonObject) -> list[JsonObject]:
    """All that was said so far."""
    return request["input"]


def position(messages: list[JsonObject]) -> int:
    """How many answers the model has given: each may consist of several items."""
    return sum(by_model for by_model, _ in groupby(messages, _by_model))


def opening(messages: list[JsonObject]) -> str:
    """What was said before the model's first answer."""
    first = takewhile(lambda item: not _by_model(item), messages)
    return "\n".join(_text(item["content"]) for item in first if item.get("role") == "user")


def tool_results(messages: list[JsonObject]) -> list[ToolResult]:
    """The results of tool calls in these items, oldest first; failures are told in words alone."""
    return [
        ToolResult(_text(item["output"]), is_error=False)
        for item in messages
        if item["type"] in {f"{call}_output" for call in CALLS}
    ]


def offers_tools(request: JsonObject) -> bool:
    """Whether the model may call any."""
    return bool(request.get("tools")) or any(
        item["type"] == "additional_tools" for item in request["input"]
    )


def failure(status: int, words: str) -> JsonObject:
    """The body of an error."""
    return {"error": {**_error(status, words), "param": None}}


def overload() -> JsonObject:
    """The event of an answer that ends for it."""
    failed = {"id": "resp_failed", "status": "failed", "error": _error(503, "Overloaded")}
    return {"type": "response.failed", "response": failed}


def whole(answer: Answer, request: JsonObject) -> JsonObject:
    """An answer in one piece."""
    number = len(request["input"])
    acts = [act for act in answer.acts if not isinstance(act, Gate)]
    return {
        "id": f"resp_{number}",
        "object": "response",
        "status": "completed",
        "model": request["model"],
        "output": [_item(act, f"{number}_{index}") for index, act in enumerate(acts)],
        "usage": _usage(answer),
    }


def events(answer: Answer, request: JsonObject) -> Iterator[JsonObject | Gate]:
    """The same as the events of a stream, with the gates on their way."""
    response = whole(answer, request)
    empty: JsonObject = {**response, "status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": empty}
    items = enumerate(response["output"])
    for act in answer.acts:
        if isinstance(act, Gate):
            yield act
        else:
            index, item = next(items)
            for kind in ("response.output_item.added", "response.output_item.done"):
                yield {"type": kind, "output_index": index, "item": item}
    yield {"type": "response.completed", "response": response}


def _by_model(item: JsonObject) -> bool:
    return item["type"] in {*CALLS, "reasoning"} or item.get("role") == "assistant"


def _text(content: str | list[JsonObject]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content)


def _item(act: Say | Think | Use, name: str) -> JsonObject:
    match act:
        case Say(text):
            content = [{"type": "output_text", "text": text}]
            said = {"role": "assistant", "status": "completed", "content": content}
            return {"type": "message", "id": f"msg_{name}", **said}
        case Think(text):
            summary = [{"type": "summary_text", "text": text}]
            return {"type": "reasoning", "id": f"rs_{name}", "summary": summary}
        case Use(tool, str() as given):
            call = {"call_id": f"call_{name}", "name": tool, "input": given}
            return {"type": CALLS[1], "id": f"ctc_{name}", "status": "completed", **call}
        case Use(tool, given):
            space, _, own = tool.rpartition("__")  # tools of MCP servers are in name spaces
            named = {"name": own, "namespace": space} if space else {"name": tool}
            call = {"call_id": f"call_{name}", **named, "arguments": json.dumps(given)}
            return {"type": CALLS[0], "id": f"fc_{name}", "status": "completed", **call}


def _error(status: int, words: str) -> JsonObject:
    kind = ERRORS.get(status, "server_error")
    return {"message": words, "type": kind, "code": kind}


def _usage(answer: Answer) -> JsonObject:
    """Its input counts all that was read, from the cache or not."""
    tokens = answer.tokens
    read = tokens.input + tokens.cache_read + tokens.cache_write
    cached = {"cached_tokens": tokens.cache_read, "cache_write_tokens": tokens.cache_write}
    return {
        "input_tokens": read,
        "input_tokens_details": cached,
        "output_tokens": tokens.output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + tokens.output,
    }
