"""Anthropic's Messages API as Claude Code uses it: what requests say, and answers to them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import cast

from tests.support.script import Answer, Gate, JsonObject, Say, Think, ToolResult, Use

INTERRUPTED = "No response requested."
"""What Claude Code has the model say where it was interrupted before an answer."""

ERRORS = {400: "invalid_request_error", 429: "rate_limit_error", 529: "overloaded_error"}


def messages_of(request: JsonObject) -> list[JsonObject]:
    """All that was said so far."""
    return request["messages"]


def position(messages: list[JsonObject]) -> int:
    """How many answers the model has given."""
    return sum(
        message["role"] == "assistant" and text_of(message["content"]) != INTERRUPTED
        for message in messages
    )


def opening(messages: list[JsonObject]) -> str:
    """What was said before the model's first answer."""
    said: list[str] = []
    for message in messages:
        if message["role"] == "assistant":
            break
        said.append(text_of(message["content"]))
    return "\n".join(said)


def tool_results(messages: list[JsonObject]) -> list[ToolResult]:
    """The results of tool calls in these messages, oldest first."""
    return [
        ToolResult(text_of(block.get("content", "")), bool(block.get("is_error", False)))
        for message in messages
        if message["role"] == "user" and not isinstance(message["content"], str)
        for block in cast("list[JsonObject]", message["content"])
        if block["type"] == "tool_result"
    ]


def text_of(content: str | list[JsonObject]) -> str:
    """The text of a message's or a tool result's content."""
    if isinstance(content, str):
        return content
    return "\n".join(block["text"] for block in content if block["type"] == "text")


def offers_tools(request: JsonObject) -> bool:
    """Whether the model may call any."""
    return bool(request.get("tools"))


def failure(status: int, words: str) -> JsonObject:
    """The body of an error."""
    kind = ERRORS.get(status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": words}}


def overload() -> JsonObject:
    """The event of an answer that ends for it."""
    return failure(529, "Overloaded")


def whole(answer: Answer, request: JsonObject) -> JsonObject:
    """An answer in one piece."""
    number = len(request["messages"])
    acts = [act for act in answer.acts if not isinstance(act, Gate)]
    uses = any(isinstance(act, Use) for act in acts)
    return {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": request["model"],
        "content": [_block(act, f"{number}_{index}") for index, act in enumerate(acts)],
        "stop_reason": "tool_use" if uses else "end_turn",
        "stop_sequence": None,
        "usage": _usage(answer),
    }


def events(answer: Answer, request: JsonObject) -> Iterator[JsonObject | Gate]:
    """The same as the events of a stream, with the gates on their way."""
    message = whole(answer, request)
    begun = {**_usage(answer), "output_tokens": 1}
    empty: JsonObject = {**message, "content": [], "stop_reason": None, "usage": begun}
    yield {"type": "message_start", "message": empty}
    blocks = enumerate(message["content"])
    for act in answer.acts:
        if isinstance(act, Gate):
            yield act
        else:
            yield from _block_events(*next(blocks))
    end = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": end, "usage": _usage(answer)}
    yield {"type": "message_stop"}


def _block(act: Say | Think | Use, name: str) -> JsonObject:
    match act:
        case Say(text):
            return {"type": "text", "text": text}
        case Think(text):
            return {"type": "thinking", "thinking": text, "signature": "c2lnbmVk"}
        case Use(tool, given):
            return {"type": "tool_use", "id": f"toolu_{name}", "name": tool, "input": given}


def _block_events(index: int, block: JsonObject) -> Iterator[JsonObject]:
    empty: JsonObject
    match block["type"]:
        case "text":
            empty = {"text": ""}
            deltas = [{"type": "text_delta", "text": block["text"]}]
        case "thinking":
            empty = {"thinking": "", "signature": ""}
            deltas = [
                {"type": "thinking_delta", "thinking": block["thinking"]},
                {"type": "signature_delta", "signature": block["signature"]},
            ]
        case _:
            empty = {"input": {}}
            deltas = [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]
    yield {"type": "content_block_start", "index": index, "content_block": {**block, **empty}}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}


def _usage(answer: Answer) -> JsonObject:
    return {
        "input_tokens": answer.tokens.input,
        "cache_creation_input_tokens": answer.tokens.cache_write,
        "cache_read_input_tokens": answer.tokens.cache_read,
        "output_tokens": answer.tokens.output,
    }
