"""Codex: how it is started (``codex exec``), and what its JSON lines mean; pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, cast

from box_mcp.capabilities.harnesses import asking, reading, strict
from box_mcp.capabilities.harnesses.base import (
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
from box_mcp.domain.models import Dialect, Tokens
from box_mcp.errors import InvalidArgument

KEY_VARIABLE = "BOX_MCP_MODEL_KEY"
PROVIDER = "box-mcp"

QUIET = (
    "check_for_update_on_startup=false",
    "analytics.enabled=false",
    "feedback.enabled=false",
    'otel.metrics_exporter="none"',
    "features.plugins=false",  # else it looks for some at GitHub, at each start
    "features.apps=false",
)

REFUSED = "box_mcp_refused"
"""The code in an error by which the gateway refuses."""


class Codex:
    """Codex, without a terminal."""

    name = "codex"
    program = "codex"
    package = "@openai/codex@{version}-linux-{arch}"
    dialects = (Dialect.OPENAI,)
    limits_turns = False

    def launch(self, assignment: Assignment) -> Launch:
        """See `Harness`."""
        files = asking.skill_files(assignment.skills, "~/.codex/skills")
        settings = [*QUIET, *_provider(assignment.access)]
        words = ["--json", "--dangerously-bypass-approvals-and-sandbox", "--skip-git-repo-check"]
        for name, server in asking.parse_servers(assignment.servers).items():
            told = asking.word("mcp_servers", _server(name, server))
            settings.append(f"mcp_servers.{name}={told}")
        if assignment.model:
            settings.append(f"model={toml(asking.model_name(assignment.model))}")
        system = assignment.system
        if assignment.schema is not None:
            if strict.takes(assignment.schema):
                place = f"{assignment.scratch}/schema.json"
                files[place] = json.dumps(assignment.schema)
                words += ["--output-schema", place]
            else:
                system = asking.instructed(system, assignment.schema)
        prompt = assignment.prompt
        if system and assignment.resume:  # a conversation keeps the instructions that it began with
            prompt = f"{system}\n\n{prompt}"
        elif system:
            told = asking.word("append_system_prompt", toml(system))
            settings.append(f"developer_instructions={told}")
        for setting in settings:
            words += ["--config", setting]
        if assignment.resume:
            words = ["resume", *words, asking.conversation(assignment.resume)]
        return Launch(
            command=[self.program, "exec", *words, "-"],
            stdin=prompt,
            env={KEY_VARIABLE: assignment.access.key} if assignment.access else {},
            files=files,
        )

    def reader(self, path: str = "") -> CodexReader:
        """See `Harness`."""
        return CodexReader(path)


def _provider(access: Access | None) -> list[str]:
    """The settings of its model's server."""
    if access is None:
        return []
    provider = {
        "name": PROVIDER,
        "base_url": access.base_url,
        "env_key": KEY_VARIABLE,
        "wire_api": "responses",
    }
    return [f"model_provider={toml(PROVIDER)}", f"model_providers.{PROVIDER}={toml(provider)}"]


def _server(name: str, server: asking.Server) -> str:
    if server.kind == "sse":
        raise InvalidArgument("mcp_servers", f"has an SSE server, {name!r}, which Codex can't use")
    if server.kind == "http":
        return toml({"url": server.url, "http_headers": server.headers})
    return toml({"command": server.command, "args": server.args, "env": server.env})


def toml(value: object) -> str:
    """Text, lists of it, and tables of these in TOML."""
    if isinstance(value, Mapping):
        table = cast("Mapping[str, object]", value)
        inner = ", ".join(f"{toml(key)} = {toml(each)}" for key, each in table.items())
        return f"{{{inner}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml(each) for each in cast('Sequence[object]', value))}]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


class CodexReader:
    """Reads its JSON lines."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._said = ""

    def read(self, said: Mapping[str, Any]) -> Sequence[Event]:
        """See `Reader`."""
        kind = reading.name(said.get("type"))
        stage = kind.removeprefix("item.")
        if stage in {"started", "updated", "completed"}:
            return self._item(stage, reading.members(said.get("item")))
        match kind:
            case "thread.started":
                events = [Started(reading.name(said.get("thread_id")))]
            case "turn.started":
                events = []
            case "turn.completed":
                events = [Used(_used(said), whole=True), Finished(self._said)]
            case "turn.failed":
                events = [_failed(reading.members(said.get("error")).get("message"))]
            case "error":  # one that ends the turn is told again by that
                events = [Notice(reading.line(_message(said.get("message")), reading.NAME))]
            case _:
                events = [Unknown(kind)]
        return events

    def _item(self, stage: str, item: Mapping[str, Any]) -> list[Event]:
        kind = reading.name(item.get("type"))
        if kind == "todo_list":
            return [Notice(_plan(item))] if stage != "completed" else []
        if kind in SAYINGS:
            return self._saying(kind, item) if stage == "completed" else []
        if kind not in TOOLS:
            return [Unknown(f"item/{kind}")]
        if stage == "started":
            return [_call(kind, item, self._path)]
        if stage == "completed":
            return _result(kind, item)
        return []

    def _saying(self, kind: str, item: Mapping[str, Any]) -> list[Event]:
        if kind == "error":
            return [Notice(reading.line(item.get("message"), reading.NAME))]
        text = reading.text(item.get("text"))
        if not text:
            return []
        if kind == "reasoning":
            return [Reasoning(text)]
        self._said = text
        return [Text(text)]


SAYINGS = {"agent_message", "reasoning", "error"}
TOOLS = {"command_execution", "file_change", "mcp_tool_call", "web_search", "collab_tool_call"}


def _call(kind: str, item: Mapping[str, Any], path: str) -> ToolCall:
    id = reading.name(item.get("id"))  # noqa: A001
    if kind == "command_execution":
        command = plain_command(reading.text(item.get("command"), reading.COMMAND))
        act = reading.act("runs", reading.line(command), "runs a command")
        return ToolCall(id, "shell", act, {"command": command}, command)
    if kind == "file_change":
        changes = reading.items(item.get("changes"))
        paths = [reading.place(change.get("path"), path) for change in changes]
        verb = "edits" if any(change.get("kind") == "update" for change in changes) else "writes"
        if changes and all(change.get("kind") == "delete" for change in changes):
            verb = "deletes"
        return ToolCall(id, "apply_patch", reading.act(verb, ", ".join(paths)), {"paths": paths})
    if kind == "mcp_tool_call":
        tool, server = reading.name(item.get("tool")), reading.name(item.get("server"))
        given = reading.members(item.get("arguments"))
        return ToolCall(id, f"{server}.{tool}", reading.line(f"uses {tool} of {server}"), given)
    if kind == "web_search":
        query = reading.line(item.get("query"), reading.NAME)
        act = reading.act("searches the web for", query, "searches the web")
        return ToolCall(id, kind, act, {"query": query})
    tool, prompt = reading.name(item.get("tool")), reading.line(item.get("prompt"))
    act = {
        "spawn_agent": reading.act("has a sub-agent work:", prompt, "has a sub-agent work"),
        "wait": "waits for its sub-agents",
    }.get(tool, reading.act("uses", tool, "uses a tool"))
    return ToolCall(id, tool, act, {"prompt": prompt} if prompt else {})


def _result(kind: str, item: Mapping[str, Any]) -> list[Event]:
    id = reading.name(item.get("id"))  # noqa: A001
    failed = reading.name(item.get("status")) in {"failed", "declined"}
    if kind == "command_execution":
        text = reading.text(item.get("aggregated_output"), reading.RESULT)
    elif kind == "mcp_tool_call":
        text = reading.blocks_text(reading.members(item.get("result")).get("content"))
        text = text or reading.text(reading.members(item.get("error")).get("message"))
    elif kind == "collab_tool_call":
        agents = list(reading.members(item.get("agents_states")).values())[: reading.MANY]
        text = reading.texts([reading.members(agent).get("message") for agent in agents])
    else:
        text = ""
    changes = reading.items(item.get("changes")) if kind == "file_change" and not failed else ()
    return [
        ToolResult(id, text, failed),
        *(
            FileChange(
                reading.text(change.get("path"), reading.COMMAND),
                CHANGES.get(reading.name(change.get("kind")), "changed"),
            )
            for change in changes
        ),
    ]


CHANGES = {"add": "added", "delete": "deleted"}


def plain_command(command: str) -> str:
    """What a shell is told, without the shell: ``ls`` for ``/bin/bash -lc ls``."""
    if not command.startswith("/"):
        return command
    shell, _, rest = command.partition(" ")
    option, _, told = rest.partition(" ")
    if option not in {"-c", "-lc"} or not shell.endswith("sh"):
        return command
    try:
        words = shlex.split(told)
    except ValueError:  # cut off, or not what it seems
        return command
    return words[0] if len(words) == 1 else command


def _plan(item: Mapping[str, Any]) -> str:
    steps = reading.items(item.get("items"))
    done = sum(step.get("completed") is True for step in steps)
    following = next((s.get("text") for s in steps if s.get("completed") is not True), "")
    plan = f"plans ({done} of {len(steps)} done)"
    return reading.line(f"{plan}: {reading.line(following)}" if following else plan)


def _used(said: Mapping[str, Any]) -> Tokens:
    usage = reading.members(said.get("usage"))
    read = reading.count(usage.get("cached_input_tokens"))
    written = reading.count(usage.get("cache_write_input_tokens"))
    return Tokens(
        input=max(0, reading.count(usage.get("input_tokens")) - read - written),
        cache_read=read,
        cache_write=written,
        output=reading.count(usage.get("output_tokens")),
    )


OF_MODELS = (
    "unexpected status",
    "stream disconnected",
    "exceeded retry limit",
    "Quota exceeded",
    "Selected model",
    "You've hit your usage limit",
    "We're currently experiencing high demand",
)
"""How messages begin that are about the model's server."""


def _failed(message: object) -> Failed:
    error = _api_error(message)
    told = _message(message) or "no reason was told"
    if error.get("code") == REFUSED:
        return Failed(told, "refused")
    of_model = error or told.replace("\u2019", "'").startswith(OF_MODELS)
    return Failed(told, "model" if of_model else "error")


def _message(message: object) -> str:
    told = _api_error(message).get("message", message)
    return reading.text(told, reading.COMMAND).partition(", url: http://127.0.0.1")[0]


def _api_error(message: object) -> Mapping[str, Any]:
    """What the API said, where that is all that the message is."""
    text = reading.text(message)
    return reading.members(reading.parsed(text).get("error")) if text.startswith("{") else {}
