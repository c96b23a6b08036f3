"""What callers may want of a harness, held to what all of them can do; pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from box_mcp.capabilities.harnesses.reading import members
from box_mcp.errors import InvalidArgument

LONGEST_WORD = 120_000
"""Bytes that Linux takes as one word of a command, nearly."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@\[\]+-]{0,199}")

_ASKED = (
    "Your last message must be nothing but JSON that fits this JSON Schema, without a fence or "
    "any other words:\n"
)


@dataclass(frozen=True)
class Server:
    """An MCP server: a command, or a URL."""

    command: str = ""
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    kind: str = "stdio"

    def as_json(self) -> dict[str, Any]:
        """As it stands in ``.mcp.json``."""
        if self.kind == "stdio":
            return {"command": self.command, "args": [*self.args], "env": {**self.env}}
        return {"type": self.kind, "url": self.url, "headers": {**self.headers}}


def parse_servers(servers: Mapping[str, Any]) -> dict[str, Server]:
    """The servers of a ``.mcp.json``, with or without ``mcpServers`` around them."""
    inner = servers.get("mcpServers")
    if len(servers) == 1 and isinstance(inner, Mapping):
        servers = cast("Mapping[str, Any]", inner)
    return {_plain_name("mcp_servers", name): _server(name, said) for name, said in servers.items()}


def _server(name: str, said: object) -> Server:
    if not isinstance(said, Mapping):
        raise InvalidArgument("mcp_servers", f"has no object for {name!r}")
    told = cast("Mapping[str, Any]", said)
    kind = told.get("type") or ("http" if "url" in told else "stdio")
    if kind not in {"stdio", "http", "sse"}:
        raise InvalidArgument("mcp_servers", f"has a type for {name!r} other than stdio, http, sse")
    needed = "command" if kind == "stdio" else "url"
    if not isinstance(told.get(needed), str) or not told[needed]:
        raise InvalidArgument("mcp_servers", f"has no {needed!r} for {name!r}")
    args = cast("Sequence[Any]", told.get("args") or [])
    if not isinstance(args, list) or not all(isinstance(arg, str) for arg in args):
        raise InvalidArgument("mcp_servers", f"has 'args' for {name!r} that is no list of texts")
    return Server(
        command=told.get("command") or "",
        args=tuple(args),
        env=_texts(name, told, "env"),
        url=told.get("url") or "",
        headers=_texts(name, told, "headers"),
        kind=kind,
    )


def _texts(name: str, told: Mapping[str, Any], key: str) -> dict[str, str]:
    said: object = told.get(key) or {}
    texts = {str(k): v for k, v in members(said).items() if isinstance(v, str)}
    if not isinstance(said, Mapping) or len(texts) != len(members(cast("object", said))):
        raise InvalidArgument("mcp_servers", f"has {key!r} for {name!r} that is no object of texts")
    return texts


def skill_files(skills: Mapping[str, str], place: str) -> dict[str, str]:
    """The files of skills below the directory `place`."""
    return {
        f"{place}/{_plain_name('skills', name)}/SKILL.md": text for name, text in skills.items()
    }


def _plain_name(argument: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            argument, f"has a name other than up to 64 letters, digits, - and _: {name!r:.80}"
        )
    return name


def conversation(resume: str) -> str:
    """The id of a conversation, which is a UUID: harnesses take other words for titles."""
    if not _UUID.fullmatch(resume):
        raise InvalidArgument("resume", "is neither a run's id nor the UUID of a conversation")
    return resume


def model_name(model: str) -> str:
    """The name of a model, which no program can take for an option."""
    if model and not _MODEL.fullmatch(model):
        raise InvalidArgument("model", "is no name of a model")
    return model


def word(argument: str, value: str) -> str:
    """What is to be one word of a command."""
    if len(value.encode("utf-8", "replace")) > LONGEST_WORD:
        raise InvalidArgument(argument, f"has more than {LONGEST_WORD // 1000} kB")
    return value


def instructed(system: str, schema: Mapping[str, Any] | None) -> str:
    """Instructions that ask for an answer in words, where a harness can't ask its model for it."""
    if schema is None:
        return system
    asked = _ASKED + json.dumps(schema, ensure_ascii=False)
    return f"{system}\n\n{asked}" if system else asked
