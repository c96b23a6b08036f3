"""How harnesses are started, and what is refused before that."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from box_mcp.capabilities.harnesses import claude_code, codex, strict
from box_mcp.capabilities.harnesses.base import Access, Assignment, Harness
from box_mcp.capabilities.harnesses.codex import toml
from box_mcp.capabilities.harnesses.custom import Custom
from box_mcp.capabilities.harnesses.known import KNOWN
from box_mcp.domain.models import Dialect
from box_mcp.errors import InvalidArgument
from box_mcp.gateway.models import asking
from box_mcp.settings import BUILT_IN

CLAUDE, CODEX = KNOWN["claude_code"], KNOWN["codex"]
CUSTOM = Custom("mine", ("mine",))
ALL: list[Harness] = [CLAUDE, CODEX, CUSTOM]
ID = "01a21752-3cd4-7df2-89b6-ade51aa878fd"
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}
SETTINGS = "/tmp/run/settings.json"
LIST = {"type": "array", "items": {"type": "string"}}


def access(dialect: Dialect) -> Access:
    """The models of a route."""
    return Access(dialect, "http://127.0.0.1:3130/mine", "box-mcp-1")


def assigned(**more: Any) -> Assignment:
    """A task."""
    task = Assignment("Mend it.", "/tmp/run", access=None)
    return replace(task, **more)


def option(command: list[str], name: str) -> str:
    """What follows an option."""
    return command[command.index(name) + 1]


def settings(command: list[str]) -> dict[str, Any]:
    """What Codex is told by its options, read as it reads them."""
    told = [word for before, word in pairwise(command) if before == "--config"]
    return tomllib.loads("\n".join(told))


def test_settings_know_all_harnesses() -> None:
    assert tuple(KNOWN) == BUILT_IN


def test_harnesses_know_a_refusal_of_the_gateway() -> None:
    assert codex.REFUSED == asking.REFUSED
    assert asking.STOPS[Dialect.OPENAI] == 400  # all that Codex does not ask again after
    assert not {Dialect.ANTHROPIC, Dialect.VERTEX, Dialect.BEDROCK} & set(asking.STOPS)
    assert asking.TYPES[claude_code.REFUSED] == "billing_error"


@pytest.mark.parametrize("harness", ALL, ids=lambda harness: harness.name)
def test_the_prompt_is_no_word_of_the_command(harness: Harness) -> None:
    launch = harness.launch(assigned())
    assert launch.stdin == "Mend it."
    assert launch.command[0] == harness.program
    assert "Mend it." not in launch.command


def test_claude_code_asks_for_no_permission_and_talks_to_nobody_else() -> None:
    launch = CLAUDE.launch(assigned(access=access(Dialect.ANTHROPIC)))
    assert launch.command == [
        "claude",
        "--print",
        "--output-format",
        "stream-json",
        "--verbose",
        "--permission-mode",
        "bypassPermissions",
        "--strict-mcp-config",
        "--settings",
        SETTINGS,
    ]
    assert launch.env == {
        "IS_SANDBOX": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_ERROR_REPORTING": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:3130/mine",
        "ANTHROPIC_API_KEY": "box-mcp-1",
    }
    told = json.loads(launch.files[SETTINGS])
    assert told["skipWebFetchPreflight"] is True
    assert told["env"].items() > {
        ("ANTHROPIC_BASE_URL", "http://127.0.0.1:3130/mine"),
        ("ANTHROPIC_API_KEY", "box-mcp-1"),
        ("CLAUDE_CODE_USE_BEDROCK", ""),
    }
    assert json.loads(CLAUDE.launch(assigned()).files[SETTINGS])["env"] == {}


@pytest.mark.parametrize("dialect", [Dialect.VERTEX, Dialect.BEDROCK])
def test_claude_code_reaches_other_clouds_by_their_routes(dialect: Dialect) -> None:
    env = CLAUDE.launch(assigned(access=access(dialect))).env
    cloud = dialect.value.upper()
    assert env[f"CLAUDE_CODE_USE_{cloud}"] == env[f"CLAUDE_CODE_SKIP_{cloud}_AUTH"] == "1"
    assert env[f"ANTHROPIC_{cloud}_BASE_URL"] == "http://127.0.0.1:3130/mine"
    assert env["ANTHROPIC_CUSTOM_HEADERS"] == "Authorization: Bearer box-mcp-1"
    assert "ANTHROPIC_API_KEY" not in env


def test_claude_code_is_told_all_that_is_asked() -> None:
    servers = {"mcpServers": {"t": {"command": "t", "args": ["-a"], "env": {"A": "b"}}}}
    launch = CLAUDE.launch(
        assigned(
            model="claude-sonnet-4-5",
            session=ID,
            max_turns=3,
            schema=SCHEMA,
            system="Be kind.",
            servers=servers,
            skills={"shouting": "Shout."},
        )
    )
    command = [*launch.command]
    assert option(command, "--model") == "claude-sonnet-4-5"
    assert option(command, "--session-id") == ID
    assert option(command, "--max-turns") == "3"
    assert json.loads(option(command, "--json-schema")) == SCHEMA
    assert launch.files[option(command, "--append-system-prompt-file")] == "Be kind."
    assert json.loads(launch.files[option(command, "--mcp-config")]) == servers
    assert launch.files["~/.claude/skills/shouting/SKILL.md"] == "Shout."
    assert "--system-prompt-snapshot" not in command


def test_a_conversation_of_claude_code_goes_on_with_new_instructions() -> None:
    command = [*CLAUDE.launch(assigned(resume=ID, session=ID, system="Be kind.")).command]
    assert option(command, "--resume") == ID
    assert option(command, "--system-prompt-snapshot") == "off"
    assert "--session-id" not in command


@pytest.mark.parametrize(
    ("harness", "schema"),
    [(CLAUDE, LIST), (CODEX, LIST), (CODEX, {"type": "object"})],
    ids=["Claude Code, a list", "Codex, a list", "Codex, any object"],
)
def test_an_answer_that_a_model_is_not_held_to_is_asked_for_in_words(
    harness: Harness, schema: dict[str, Any]
) -> None:
    launch = harness.launch(assigned(schema=schema, system="Be kind."))
    command = [*launch.command]
    if harness is CLAUDE:
        told = launch.files[option(command, "--append-system-prompt-file")]
    else:
        told = settings(command)["developer_instructions"]
    assert told.startswith("Be kind.\n\n")
    assert told.endswith(json.dumps(schema))
    assert not {"--json-schema", "--output-schema"} & set(command)


def test_codex_asks_for_no_permission_and_talks_to_nobody_else() -> None:
    launch = CODEX.launch(assigned(access=access(Dialect.OPENAI)))
    command = [*launch.command]
    assert command[:5] == [
        "codex",
        "exec",
        "--json",
        "--dangerously-bypass-approvals-and-sandbox",
        "--skip-git-repo-check",
    ]
    assert command[-1] == "-"
    assert settings(command) == {
        "check_for_update_on_startup": False,
        "analytics": {"enabled": False},
        "feedback": {"enabled": False},
        "otel": {"metrics_exporter": "none"},
        "features": {"plugins": False, "apps": False},
        "model_provider": "box-mcp",
        "model_providers": {
            "box-mcp": {
                "name": "box-mcp",
                "base_url": "http://127.0.0.1:3130/mine",
                "env_key": "BOX_MCP_MODEL_KEY",
                "wire_api": "responses",
            }
        },
    }
    assert launch.env == {"BOX_MCP_MODEL_KEY": "box-mcp-1"}
    assert launch.files == {}


def test_codex_is_told_all_that_is_asked() -> None:
    servers = {
        "t": {"command": "t", "args": ["-a"], "env": {"A": "b"}},
        "h": {"type": "http", "url": "http://127.0.0.1:1/mcp", "headers": {"X-A": "b"}},
    }
    launch = CODEX.launch(
        assigned(
            model="gpt-5.5",
            schema=SCHEMA,
            system='Be "kind" \\ \x7f\n😀',
            servers=servers,
            skills={"shouting": "Shout."},
        )
    )
    command = [*launch.command]
    told = settings(command)
    assert told["model"] == "gpt-5.5"
    assert told["developer_instructions"] == 'Be "kind" \\ \x7f\n😀'
    assert told["mcp_servers"] == {
        "t": servers["t"],
        "h": {"url": "http://127.0.0.1:1/mcp", "http_headers": {"X-A": "b"}},
    }
    assert json.loads(launch.files[option(command, "--output-schema")]) == SCHEMA
    assert launch.files["~/.codex/skills/shouting/SKILL.md"] == "Shout."


def test_a_conversation_of_codex_goes_on_with_new_instructions() -> None:
    launch = CODEX.launch(assigned(resume=ID, system="Be kind."))
    command = [*launch.command]
    assert command[:3] == ["codex", "exec", "resume"]
    assert command[-2:] == [ID, "-"]
    assert launch.stdin == "Be kind.\n\nMend it."
    assert "developer_instructions" not in settings(command)


def test_a_command_of_the_users_own_is_told_all_that_is_asked() -> None:
    words = ("mine", "--at={scratch}", "{model}/{resume}", "{else}", "{}")
    launch = Custom("mine", words, Dialect.OPENAI).launch(
        assigned(
            access=access(Dialect.OPENAI),
            model="m",
            resume="any words",
            max_turns=3,
            schema=LIST,
            system="Be kind.",
            servers={"t": {"url": "http://127.0.0.1:1", "type": "sse"}},
            skills={"shouting": "Shout."},
        )
    )
    assert launch.command == ["mine", "--at=/tmp/run", "m/any words", "{else}", "{}"]
    assert launch.env == {
        "BOX_MCP_PROMPT_FILE": "/tmp/run/prompt.md",
        "BOX_MCP_MODEL": "m",
        "BOX_MCP_RESUME": "any words",
        "BOX_MCP_SESSION": "",
        "BOX_MCP_SCRATCH": "/tmp/run",
        "BOX_MCP_MAX_TURNS": "3",
        "BOX_MCP_SYSTEM_FILE": "/tmp/run/system.md",
        "BOX_MCP_SCHEMA_FILE": "/tmp/run/schema.json",
        "BOX_MCP_MCP_FILE": "/tmp/run/mcp.json",
        "BOX_MCP_SKILLS_DIRECTORY": "/tmp/run/skills",
        "BOX_MCP_MODEL_API": "openai",
        "BOX_MCP_MODEL_URL": "http://127.0.0.1:3130/mine",
        "BOX_MCP_MODEL_KEY": "box-mcp-1",
        "OPENAI_BASE_URL": "http://127.0.0.1:3130/mine",
        "OPENAI_API_KEY": "box-mcp-1",
    }
    server: dict[str, Any] = {"type": "sse", "url": "http://127.0.0.1:1", "headers": {}}
    assert {path: text for path, text in launch.files.items() if path.endswith(".md")} == {
        "/tmp/run/prompt.md": "Mend it.",
        "/tmp/run/system.md": "Be kind.",
        "/tmp/run/skills/shouting/SKILL.md": "Shout.",
    }
    assert json.loads(launch.files["/tmp/run/schema.json"]) == LIST
    assert json.loads(launch.files["/tmp/run/mcp.json"]) == {"mcpServers": {"t": server}}


def test_a_command_of_the_users_own_needs_no_model() -> None:
    assert CUSTOM.dialects == ()
    assert set(CUSTOM.launch(assigned()).env.values()) == {"", "/tmp/run", "/tmp/run/prompt.md"}


@pytest.mark.parametrize("harness", ALL, ids=lambda harness: harness.name)
@pytest.mark.parametrize(
    ("argument", "wanted"),
    [
        ("model", {"model": "--dangerous"}),
        ("model", {"model": "a b"}),
        ("skills", {"skills": {"../../.bashrc": "x"}}),
        ("skills", {"skills": {"": "x"}}),
        ("mcp_servers", {"servers": {"a.b": {"command": "x"}}}),
        ("mcp_servers", {"servers": {"a": "x"}}),
        ("mcp_servers", {"servers": {"a": {}}}),
        ("mcp_servers", {"servers": {"a": {"type": "ws", "url": "x"}}}),
        ("mcp_servers", {"servers": {"a": {"command": "x", "args": "y"}}}),
        ("mcp_servers", {"servers": {"a": {"command": "x", "args": [1]}}}),
        ("mcp_servers", {"servers": {"a": {"command": "x", "env": {"A": 1}}}}),
        ("mcp_servers", {"servers": {"a": {"command": "x", "env": ["A"]}}}),
    ],
)
def test_what_no_harness_can_do_is_refused_by_its_name(
    harness: Harness, argument: str, wanted: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        harness.launch(assigned(**wanted))
    assert refused.value.name == argument


@pytest.mark.parametrize("harness", [CLAUDE, CODEX], ids=lambda harness: harness.name)
@pytest.mark.parametrize("resume", ["the last", "--last", ID[:-1], f"{ID}\n"])
def test_other_words_than_an_id_are_no_conversation(harness: Harness, resume: str) -> None:
    with pytest.raises(InvalidArgument, match="resume"):
        harness.launch(assigned(resume=resume))


def test_what_is_too_long_for_a_command_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="append_system_prompt"):
        CODEX.launch(assigned(system="é" * 70_000))
    with pytest.raises(InvalidArgument, match="mcp_servers"):
        CODEX.launch(assigned(servers={"t": {"command": "t", "args": ["x" * 130_000]}}))
    with pytest.raises(InvalidArgument, match="response_schema"):
        CLAUDE.launch(assigned(schema={**SCHEMA, "title": "x" * 130_000}))


def test_codex_has_no_servers_of_events() -> None:
    with pytest.raises(InvalidArgument, match="SSE"):
        CODEX.launch(assigned(servers={"a": {"type": "sse", "url": "http://127.0.0.1:1"}}))


@pytest.mark.parametrize(
    ("schema", "taken"),
    [
        (SCHEMA, True),
        ({**SCHEMA, "required": []}, False),
        ({**SCHEMA, "required": None}, False),
        ({**SCHEMA, "additionalProperties": True}, False),
        ({**SCHEMA, "properties": {"n": {"$ref": "#"}}}, False),
        ({**SCHEMA, "properties": {"n": {"type": ["integer", "null"], "minimum": 1}}}, True),
        ({**SCHEMA, "properties": {"n": {"anyOf": [SCHEMA, {"type": "null"}]}}}, True),
        ({**SCHEMA, "properties": {"n": {"anyOf": [{"type": "object"}]}}}, False),
        ({**SCHEMA, "properties": {"n": {"type": "array", "items": SCHEMA}}}, True),
        ({**SCHEMA, "properties": {"n": {"type": "array", "items": {"type": "object"}}}}, False),
        ({**SCHEMA, "properties": {"n": True}}, False),
        ({**SCHEMA, "allOf": []}, False),
        ({**SCHEMA, "anyOf": [SCHEMA]}, False),
        (LIST, False),
        ({}, False),
    ],
)
def test_schemas_are_given_to_the_api_where_it_surely_takes_them(
    schema: dict[str, Any], taken: bool
) -> None:
    assert strict.takes(schema) is taken


def test_schemas_in_schemas_end_somewhere() -> None:
    schema: dict[str, Any] = SCHEMA
    for _ in range(1000):
        schema = {**SCHEMA, "properties": {"n": schema}}
    assert not strict.takes(schema)


@pytest.mark.parametrize("text", ["", "a b", 'q"\\', "\n\t\x00\x1f\x7f", "é😀", "'''", '"""'])
def test_text_is_the_same_in_toml(text: str) -> None:
    value = {"a": text, text: [text]}
    assert tomllib.loads(f"x = {toml(value)}") == {"x": value}
