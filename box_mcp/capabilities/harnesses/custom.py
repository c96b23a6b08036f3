"""Harnesses of the user's own: any command that prints the events of all harnesses; pure.

``docs/agents.md`` tells people what such a command is given, and what it prints.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from box_mcp.capabilities.harnesses import asking, reading
from box_mcp.capabilities.harnesses.base import (
    CAUSES,
    Access,
    Assignment,
    Event,
    Failed,
    FileChange,
    Finished,
    Launch,
    Notice,
    Reasoning,
    Started,
    Text,
    ToolCall,
    ToolResult,
    Unknown,
    Used,
)
from box_mcp.domain.models import Dialect


@dataclass(frozen=True)
class Custom:
    """A command; `api` is how it talks to models, where it needs one of ours."""

    name: str
    words: Sequence[str]
    api: Dialect | None = None
    package = ""
    limits_turns = False

    @property
    def program(self) -> str:
        """See `Harness`."""
        return self.words[0]

    @property
    def dialects(self) -> Sequence[Dialect]:
        """See `Harness`."""
        return (self.api,) if self.api else ()

    def launch(self, assignment: Assignment) -> Launch:
        """See `Harness`."""
        scratch = assignment.scratch
        files = asking.skill_files(assignment.skills, f"{scratch}/skills")
        told = {
            "prompt_file": f"{scratch}/prompt.md",
            "model": asking.model_name(assignment.model),
            "resume": assignment.resume,
            "session": assignment.session,
            "scratch": scratch,
            "max_turns": "" if assignment.max_turns is None else str(assignment.max_turns),
            "system_file": f"{scratch}/system.md" if assignment.system else "",
            "schema_file": f"{scratch}/schema.json" if assignment.schema is not None else "",
            "mcp_file": f"{scratch}/mcp.json" if assignment.servers else "",
            "skills_directory": f"{scratch}/skills" if assignment.skills else "",
        }
        files[told["prompt_file"]] = assignment.prompt
        if assignment.system:
            files[told["system_file"]] = assignment.system
        if assignment.schema is not None:
            files[told["schema_file"]] = json.dumps(assignment.schema)
        if assignment.servers:
            servers = asking.parse_servers(assignment.servers)
            config = {name: server.as_json() for name, server in servers.items()}
            files[told["mcp_file"]] = json.dumps({"mcpServers": config})
        return Launch(
            command=[_filled(word, told) for word in self.words],
            stdin=assignment.prompt,
            env={
                **{f"BOX_MCP_{name.upper()}": value for name, value in told.items()},
                **_variables(assignment.access),
            },
            files=files,
        )

    def reader(self, path: str = "") -> CustomReader:
        """See `Harness`."""
        return CustomReader(path)


def _filled(word: str, told: Mapping[str, str]) -> str:
    """The word with ``{model}`` and its like replaced."""
    return re.sub(r"\{([a-z_]+)\}", lambda found: told.get(found[1], found[0]), word)


def _variables(access: Access | None) -> dict[str, str]:
    if access is None:
        return {}
    known = access.dialect in {Dialect.ANTHROPIC, Dialect.OPENAI}
    usual = access.dialect.value.upper()
    return {
        "BOX_MCP_MODEL_API": access.dialect.value,
        "BOX_MCP_MODEL_URL": access.base_url,
        "BOX_MCP_MODEL_KEY": access.key,
        **({f"{usual}_BASE_URL": access.base_url, f"{usual}_API_KEY": access.key} if known else {}),
    }


class CustomReader:
    """Reads the events as they are."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._said = ""

    def read(self, said: Mapping[str, Any]) -> Sequence[Event]:
        """See `Reader`."""
        kind = reading.name(said.get("type"))
        if kind in KINDS:
            return [KINDS[kind](said)]
        if kind == "text":
            self._said = reading.text(said.get("text"))
            return [Text(self._said)]
        if kind == "finished":
            text = reading.text(said.get("text")) or self._said
            turns = reading.count(said.get("turns")) or None
            return [Finished(text, answer=said.get("answer"), turns=turns)]
        return [Unknown(kind)]


def _started(said: Mapping[str, Any]) -> Event:
    return Started(reading.name(said.get("session")), reading.name(said.get("model")))


def _reasoning(said: Mapping[str, Any]) -> Event:
    return Reasoning(reading.text(said.get("text")))


def _call(said: Mapping[str, Any]) -> Event:
    tool, command = (
        reading.name(said.get("name")),
        reading.text(said.get("command"), reading.COMMAND),
    )
    usual = reading.act("uses", tool, "uses a tool")
    act = reading.act("runs", reading.line(command)) if command else usual
    return ToolCall(
        id=reading.name(said.get("id")),
        name=tool,
        act=reading.line(said.get("act")) or act,
        input=reading.members(said.get("input")),
        command=command,
    )


def _result(said: Mapping[str, Any]) -> Event:
    text = reading.text(said.get("text"), reading.RESULT)
    return ToolResult(reading.name(said.get("id")), text, said.get("failed") is True)


def _change(said: Mapping[str, Any]) -> Event:
    change = reading.name(said.get("change"))
    path = reading.text(said.get("path"), reading.COMMAND)
    return FileChange(path, change if change in {"added", "deleted"} else "changed")


def _used(said: Mapping[str, Any]) -> Event:
    names = {"input": "input", "read": "cache_read", "write": "cache_write", "output": "output"}
    return Used(reading.tokens(said, **names), whole=said.get("whole") is True)


def _notice(said: Mapping[str, Any]) -> Event:
    return Notice(reading.line(said.get("text"), reading.NAME))


def _failed(said: Mapping[str, Any]) -> Event:
    cause = reading.name(said.get("cause"))
    message = reading.text(said.get("message"), reading.COMMAND) or "no reason was told"
    return Failed(message, cause if cause in CAUSES else "error")


KINDS: Mapping[str, Callable[[Mapping[str, Any]], Event]] = {
    "started": _started,
    "reasoning": _reasoning,
    "tool_call": _call,
    "tool_result": _result,
    "file_change": _change,
    "usage": _used,
    "notice": _notice,
    "failed": _failed,
}
