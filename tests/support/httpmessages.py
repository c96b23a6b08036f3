"""Messages of MCP that no client makes: any value in any place, and what is no JSON at all.

All are harmless where they are taken for what they could mean: a call names a box that is not
there, or bears an argument that no tool takes.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any, cast

from mcp_types import CLIENT_CAPABILITIES_META_KEY, CLIENT_INFO_META_KEY, PROTOCOL_VERSION_META_KEY

from tests.support.rawhttp import LEGACY, MODERN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Message = dict[str, Any]
Place = tuple[str | int, ...]

NO_BOX = "box-00000000"
NONSENSE = "nonsense"
"""An argument that no tool takes."""

RAW = {
    f"@raw{number}@": raw
    for number, raw in enumerate(
        (
            *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 4000, b"9" * 5000, b"-0", b"01"),
            *(
                b'"\\ud800"',
                b'"\\udc00\\ud800"',
                b'"\xed\xa0\x80"',
                b'"\xff"',
                b'"\xc0\xaf"',
                b".5",
            ),
            *(
                b"'x'",
                b"undefined",
                b"[1,]",
                b"/*x*/1",
                b'"\n"',
                b'"\\x41"',
                b"tru",
                b'{"a":1,"a":2}',
            ),
            *(b"[" * depth + b"]" * depth for depth in (150, 250, 2_000)),
            *(b"[" * 100_000, b'{"a":' * 250 + b"1" + b"}" * 250),
        )
    )
}
"""What stands in the place of such a word when a message is written down."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 1e308, -0.0),
    *("", " ", "\0", "\x1b]0;x\x07", "\u202e", "\ufeff", "null", "1", "true", "{}", "[]", "%s%n"),
    *("../../etc/passwd", "file:///etc/passwd", "box://x", "{0.__class__}", "\U0001f4a9" * 50),
    *([], {}, [None], [[]], {"": ""}, {"__proto__": {}}, {"_meta": {}}, [1, "a", None]),
    *(["x"] * 5000, {str(number): number for number in range(2000)}, "a" * 100_000),
    *(NO_BOX, MODERN, LEGACY, *RAW),
)
BODIES = (
    *(b"", b"null", b"[]", b"{}", b"0", b'"x"', b"true", b"{", b"}", b"\x00", b"\xff\xfe", b"{}{}"),
    *(
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        "{}".encode("utf-32"),
        b"\x1f\x8b\x08\x00",
        b"[[]]",
    ),
    *(b"[" * 200_000, b'{"a":' * 50_000, b"\n" * 5000, b"data: {}\n\n", b"<a/>", b"a=b&c=d"),
    *(b'{"jsonrpc":"2.0"}', b'{"jsonrpc":"2.0","id":1}', b'{"jsonrpc":"2.0","id":1,"result":{}}'),
    *(b'{"jsonrpc":"2.0","result":{},"error":{}}', b'{"jsonrpc":"2.0","method":1}'),
    *(b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"x"}}', b'{"id":1,"method":"ping"}'),
    *(b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', b"[" + b"{}," * 200_000 + b"{}]"),
)
SAMPLES: Mapping[str, Any] = {
    "string": "x",
    "integer": 1,
    "number": 1.0,
    "boolean": True,
    "array": [],
    "object": {},
}


def written(message: Any) -> bytes:
    """The message as JSON, or as something like it."""
    made = json.dumps(message, ensure_ascii=False).encode(errors="surrogatepass")
    for word, raw in RAW.items():
        made = made.replace(f'"{word}"'.encode(), raw)
    return made


def harmless(number: int = 1) -> Message:
    """A call that is answered well, and does nothing."""
    params = {"name": "box_info", "arguments": {"box": NO_BOX}, "_meta": meta()}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


def meta() -> Message:
    """All that a request may say of itself."""
    return {
        PROTOCOL_VERSION_META_KEY: MODERN,
        CLIENT_INFO_META_KEY: {"name": "fuzz", "version": "1"},
        CLIENT_CAPABILITIES_META_KEY: {"elicitation": {"form": {}}, "extensions": {}},
        "progressToken": "t",
        "threadId": "x",
        "sessionId": "x",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "a=b",
        "baggage": "a=b",
        "io.modelcontextprotocol/logLevel": "debug",
        "io.modelcontextprotocol/related-task": {"taskId": "x"},
    }


URI = f"box://{NO_BOX}/workspace/x"
TASK = {"taskId": f"{NO_BOX}-p1"}
ASKED: Mapping[str, Message] = {
    "initialize": {
        "protocolVersion": LEGACY,
        "capabilities": {"roots": {"listChanged": True}, "sampling": {}, "elicitation": {}},
        "clientInfo": {"name": "fuzz", "version": "1", "title": "x", "websiteUrl": "https://x"},
    },
    "ping": {},
    "server/discover": {},
    "tools/list": {"cursor": "x"},
    "prompts/list": {"cursor": "x"},
    "prompts/get": {"name": "x", "arguments": {"a": "b"}},
    "resources/list": {"cursor": "x"},
    "resources/templates/list": {"cursor": "x"},
    "resources/read": {"uri": URI},
    "resources/subscribe": {"uri": URI},
    "resources/unsubscribe": {"uri": URI},
    "completion/complete": {
        "ref": {"type": "ref/resource", "uri": "box://{box}/{path}"},
        "argument": {"name": "box", "value": "x"},
        "context": {"arguments": {"box": NO_BOX}},
    },
    "logging/setLevel": {"level": "debug"},
    "tasks/get": TASK,
    "tasks/update": {**TASK, "inputResponses": {}},
    "tasks/cancel": TASK,
    "tasks/list": {"cursor": "x"},
    "tasks/result": TASK,
    "subscriptions/listen": {
        "notifications": {"resourceSubscriptions": [URI], "toolsListChanged": True, "tasks": ["x"]}
    },
    "roots/list": {},
    "sampling/createMessage": {"messages": [], "maxTokens": 1},
    "elicitation/create": {"message": "x", "requestedSchema": {"type": "object"}},
    "notifications/initialized": {},
    "notifications/cancelled": {"requestId": 1, "reason": "x"},
    "notifications/progress": {"progressToken": 1, "progress": 1, "total": 2, "message": "x"},
    "notifications/tasks": TASK,
    "__init__": {},
}


def harmless_messages(tools: Mapping[str, Any]) -> list[Message]:
    """One of each kind that there is; `tools` are the schemas of their arguments."""
    calls = [{"name": name, "arguments": arguments(schema)} for name, schema in tools.items()]
    made = [*ASKED.items(), *(("tools/call", call) for call in calls)]
    return [
        {"jsonrpc": "2.0", "method": method, "params": {**params, "_meta": meta()}}
        | ({} if method.startswith("notifications/") else {"id": number})
        for number, (method, params) in enumerate(made)
    ]


def arguments(schema: Mapping[str, Any]) -> Message:
    """All that a tool takes; it does nothing with them."""
    given = {name: sample(one) for name, one in schema["properties"].items()}
    return given | ({"box": NO_BOX} if "box" in given else {NONSENSE: 1})


def sample(schema: Mapping[str, Any]) -> Any:
    """Something of the kind that a schema asks for."""
    return schema["enum"][0] if "enum" in schema else SAMPLES.get(schema.get("type", ""), "x")


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """The ways to all that is in a message."""
    for key, inner in _items(value):
        yield (*at, key)
        yield from places(inner, (*at, key))


def spoilt(message: Message, at: Place, value: Any) -> Any:
    """The message with another value at a place; nothing is done by it still."""
    made = copy.deepcopy(message)
    inner: Any = made
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    params: Any = made.get("params")
    if made.get("method") == "tools/call" and isinstance(params, dict):
        given: Any = cast("Message", params).get("arguments") or {}
        if isinstance(given, dict) and cast("Message", given).get("box") != NO_BOX:
            params["arguments"] = {**given, NONSENSE: 1}
    return made


def _items(value: Any) -> list[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return list(cast("Message", value).items())
    return list(enumerate(cast("list[Any]", value))) if isinstance(value, list) else []
