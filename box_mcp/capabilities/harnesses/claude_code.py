"""Claude Code: how it is started, and what its JSON lines (``stream-json``) mean; pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from box_mcp.capabilities.harnesses import asking, reading
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

QUIET = {
    "IS_SANDBOX": "1",  # lets root bypass permissions
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}
SETTINGS = {"skipWebFetchPreflight": True}  # else it asks its maker about each host that it fetches
OTHER_WAYS = (
    *("CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY"),
    *("ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_CUSTOM_HEADERS"),
)
"""Variables by which it would look for its model, or prove who it is, in another way than told."""

REFUSED = 402
"""The status by which the gateway refuses: any other is tried again, or told in other words."""


class ClaudeCode:
    """Claude Code, without a terminal."""

    name = "claude_code"
    program = "claude"
    package = "@anthropic-ai/claude-code-linux-{arch}@{version}"
    dialects = (Dialect.ANTHROPIC, Dialect.VERTEX, Dialect.BEDROCK)
    limits_turns = True

    def launch(self, assignment: Assignment) -> Launch:
        """See `Harness`."""
        files = asking.skill_files(assignment.skills, "~/.claude/skills")
        words = ["--output-format", "stream-json", "--verbose"]
        words += ["--permission-mode", "bypassPermissions", "--strict-mcp-config"]
        place = f"{assignment.scratch}/settings.json"
        files[place] = json.dumps({**SETTINGS, "env": _settled(assignment.access)})
        words += ["--settings", place]
        if assignment.servers:
            servers = asking.parse_servers(assignment.servers)
            place = f"{assignment.scratch}/mcp.json"
            told = {name: server.as_json() for name, server in servers.items()}
            files[place] = json.dumps({"mcpServers": told})
            words += ["--mcp-config", place]
        if assignment.model:
            words += ["--model", asking.model_name(assignment.model)]
        if assignment.resume:
            words += ["--resume", asking.conversation(assignment.resume)]
        elif assignment.session:
            words += ["--session-id", asking.conversation(assignment.session)]
        if assignment.max_turns is not None:
            words += ["--max-turns", str(assignment.max_turns)]
        system = assignment.system
        if assignment.schema is not None:
            if assignment.schema.get("type") == "object":  # as the input of a tool has to be
                schema = json.dumps(assignment.schema)
                words += ["--json-schema", asking.word("response_schema", schema)]
            else:
                system = asking.instructed(system, assignment.schema)
        if system:
            place = f"{assignment.scratch}/system.md"
            files[place] = system
            words += ["--append-system-prompt-file", place]
            if assignment.resume:  # else the conversation keeps the system prompt that it had
                words += ["--system-prompt-snapshot", "off"]
        return Launch(
            command=[self.program, "--print", *words],
            stdin=assignment.prompt,
            env={**QUIET, **_variables(assignment.access)},
            files=files,
        )

    def reader(self, path: str = "") -> ClaudeCodeReader:
        """See `Harness`."""
        return ClaudeCodeReader(path)


def _variables(access: Access | None) -> dict[str, str]:
    """How it finds its model."""
    if access is None:
        return {}
    bearer = {"ANTHROPIC_CUSTOM_HEADERS": f"Authorization: Bearer {access.key}"}
    if access.dialect == Dialect.VERTEX:
        return {
            "CLAUDE_CODE_USE_VERTEX": "1",
            "CLAUDE_CODE_SKIP_VERTEX_AUTH": "1",
            "ANTHROPIC_VERTEX_BASE_URL": access.base_url,
            **bearer,
        }
    if access.dialect == Dialect.BEDROCK:
        return {
            "CLAUDE_CODE_USE_BEDROCK": "1",
            "CLAUDE_CODE_SKIP_BEDROCK_AUTH": "1",
            "ANTHROPIC_BEDROCK_BASE_URL": access.base_url,
            **bearer,
        }
    return {"ANTHROPIC_BASE_URL": access.base_url, "ANTHROPIC_API_KEY": access.key}


def _settled(access: Access | None) -> dict[str, str]:
    """The same, and nothing else, where settings of the repository that it works in come second."""
    return {**dict.fromkeys(OTHER_WAYS, ""), **_variables(access)} if access is not None else {}


SILENT = frozenset(
    {
        "background_tasks_changed",
        "hook_progress",
        "hook_response",
        "hook_started",
        "status",
        "task_notification",
        "task_progress",
        "task_started",
        "task_updated",
        "thinking_tokens",
    }
)
"""What it says of itself that nobody needs to know: tool calls tell of the same."""


class ClaudeCodeReader:
    """Reads its JSON lines."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._writes: dict[str, str] = {}  # tool calls under way, with the files they write
        self._turns = 0

    def read(self, said: Mapping[str, Any]) -> Sequence[Event]:
        """See `Reader`."""
        kind = said.get("type")
        if kind == "assistant":
            return self._spoken(said)
        if kind == "user":
            return self._results(said)
        if kind == "result":
            return self._result(said)
        if kind == "system":
            return self._system(said)
        return [Unknown(reading.name(kind))]

    def _system(self, said: Mapping[str, Any]) -> list[Event]:
        kind = reading.name(said.get("subtype"))
        if kind == "init":
            self._path = reading.text(said.get("cwd"), reading.NAME) or self._path
            started = Started(reading.name(said.get("session_id")), reading.name(said.get("model")))
            return [started, *_servers_missing(said)]
        if kind == "api_retry":
            attempt, most = reading.count(said.get("attempt")), said.get("max_retries")
            why = reading.line(said.get("error")).replace("_", " ") or "no answer"
            status = reading.count(said.get("error_status"))
            told = f"{why}, status {status}" if status else why
            return [Notice(f"asks the model again ({told}): {attempt} of {reading.count(most)}")]
        if kind == "compact_boundary":
            return [Notice("sums up the conversation so far")]
        return [] if kind in SILENT else [Unknown(f"system/{kind}")]

    def _spoken(self, said: Mapping[str, Any]) -> list[Event]:
        if said.get("is_api_error_message"):
            return []  # the result tells it again
        of_itself = said.get("parent_tool_use_id") is None
        events: list[Event] = []
        for block in reading.items(reading.members(said.get("message")).get("content")):
            kind = block.get("type")
            if kind == "tool_use":
                events.append(self._call(block))
            elif kind == "text":
                if of_itself and (text := reading.text(block.get("text"))):
                    events.append(Text(text))
            elif kind == "thinking":
                if of_itself and (text := reading.text(block.get("thinking"))):
                    events.append(Reasoning(text))
            else:
                events.append(Unknown(f"assistant/{reading.name(kind)}"))
        return events

    def _call(self, block: Mapping[str, Any]) -> ToolCall:
        tool, given = reading.name(block.get("name")), reading.members(block.get("input"))
        call = ToolCall(
            id=reading.name(block.get("id")),
            name=tool,
            act=act_of(tool, given, self._path),
            input=given,
            command=reading.text(given.get("command"), reading.COMMAND) if tool == "Bash" else "",
        )
        if tool in WRITERS and len(self._writes) < reading.MANY:
            self._writes[call.id] = reading.text(given.get(WRITERS[tool]), reading.COMMAND)
        return call

    def _results(self, said: Mapping[str, Any]) -> list[Event]:
        events: list[Event] = []
        more = reading.members(said.get("tool_use_result"))
        for block in reading.items(reading.members(said.get("message")).get("content")):
            if block.get("type") != "tool_result":
                continue  # what is put into the agent's mind, such as a skill
            call = reading.name(block.get("tool_use_id"))
            failed = block.get("is_error") is True
            told = reading.blocks_text(block.get("content"))
            events.append(ToolResult(call, told, failed))
            path = self._writes.pop(call, "")
            if path and not failed:
                made = more.get("type") == "create" or told.startswith("File created")
                events.append(FileChange(path, "added" if made else "changed"))
        return events

    def _result(self, said: Mapping[str, Any]) -> list[Event]:
        used = _used(said)
        events: list[Event] = [Used(used)] if used != Tokens() else []
        self._turns += reading.count(said.get("num_turns"))
        text = reading.text(said.get("result"))
        if not said.get("is_error"):
            answer = said.get("structured_output")
            return [*events, Finished(text, answer=answer, turns=self._turns)]
        kind = reading.name(said.get("subtype"))
        message = reading.texts(said.get("errors")) or text[: reading.COMMAND] or kind
        return [*events, Failed(message or "no reason was told", _cause(kind, said))]


def _cause(kind: str, said: Mapping[str, Any]) -> str:
    if kind == "error_max_turns":
        return "max_turns"
    status = said.get("api_error_status")
    if status == REFUSED:
        return "refused"
    return "model" if status or said.get("terminal_reason") == "api_error" else "error"


def _servers_missing(said: Mapping[str, Any]) -> list[Event]:
    servers = reading.items(said.get("mcp_servers"))
    return [
        Notice(f"the MCP server {reading.name(server.get('name'))} does not work")
        for server in servers
        if server.get("status") == "failed"
    ]


def _used(said: Mapping[str, Any]) -> Tokens:
    models = reading.members(said.get("model_usage_since_last_result"))
    total = Tokens()
    for used in list(models.values())[: reading.MANY]:
        total += reading.tokens(
            reading.members(used),
            input="inputTokens",
            read="cacheReadInputTokens",
            write="cacheCreationInputTokens",
            output="outputTokens",
        )
    if models:
        return total
    return reading.tokens(
        reading.members(said.get("usage")),
        input="input_tokens",
        read="cache_read_input_tokens",
        write="cache_creation_input_tokens",
        output="output_tokens",
    )


WRITERS = {
    "Write": "file_path",
    "Edit": "file_path",
    "MultiEdit": "file_path",
    "NotebookEdit": "notebook_path",
}
"""Tools that write files, and what they call the path."""

ACTS: Mapping[str, tuple[str, str]] = {
    "Bash": ("runs", "command"),
    "Glob": ("looks for files:", "pattern"),
    "Grep": ("searches for", "pattern"),
    "Monitor": ("watches", "description"),
    "Skill": ("uses the skill", "skill"),
    "Task": ("has a sub-agent work:", "description"),
    "Agent": ("has a sub-agent work:", "description"),
    "TaskCreate": ("plans:", "subject"),
    "ToolSearch": ("looks for tools:", "query"),
    "WebFetch": ("fetches", "url"),
    "WebSearch": ("searches the web for", "query"),
}
"""What tools do, and what they call that which they do it to."""

PLACES: Mapping[str, tuple[str, str]] = {
    "Read": ("reads", "file_path"),
    "LS": ("lists", "path"),
    "Write": ("writes", "file_path"),
    "Edit": ("edits", "file_path"),
    "MultiEdit": ("edits", "file_path"),
    "NotebookEdit": ("edits", "notebook_path"),
}
"""The same, where that is a path."""

PLAIN: Mapping[str, str] = {
    "StructuredOutput": "gives its answer",
    "TaskGet": "looks at its plan",
    "TaskList": "looks at its plan",
    "TaskUpdate": "brings its plan up to date",
    "TaskStop": "stops what runs in the background",
}


def act_of(tool: str, given: Mapping[str, Any], path: str) -> str:
    """What a tool call does, in words."""
    if tool in PLAIN:
        return PLAIN[tool]
    if tool in ACTS:
        verb, key = ACTS[tool]
        return reading.act(verb, reading.line(given.get(key)), f"uses {tool}")
    if tool in PLACES:
        verb, key = PLACES[tool]
        return reading.act(verb, reading.place(given.get(key), path), f"uses {tool}")
    if tool == "TodoWrite":
        return reading.act("plans:", _under_way(given), "plans")
    server, mark, inner = tool.removeprefix("mcp__").partition("__")
    if tool.startswith("mcp__") and mark:
        return reading.line(f"uses {inner} of {server}")
    return reading.act("uses", tool, "uses a tool")


def _under_way(given: Mapping[str, Any]) -> str:
    todos = reading.items(given.get("todos"))
    return next(
        (reading.line(t.get("content")) for t in todos if t.get("status") == "in_progress"), ""
    )
