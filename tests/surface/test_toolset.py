"""What clients are told of the tools, in a server that nobody has called yet."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from jsonschema import validate
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult
from pydantic import BaseModel, ConfigDict, Field

from box_mcp.domain.access import Group
from box_mcp.errors import BoxNotFound
from box_mcp.surface import lifecycle
from box_mcp.surface.failures import MAX_TEXT, explained, legible
from box_mcp.surface.instructions import AT_HOME, ONLY_READS, instructions
from box_mcp.surface.lifecycle import Boxes, BoxInfo
from box_mcp.surface.server import make_server
from box_mcp.surface.toolset import BoxTool, Toolset, compact, lean, without_titles

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from mcp.server import MCPServer
    from mcp_types import Tool

    from box_mcp.surface.sessions import Backend

MAX_TOOLS = 32 * 1024
MAX_INSTRUCTIONS = 4000
CROSSING = ("file_upload", "file_download")


@asynccontextmanager
async def no_backend(_: MCPServer[Backend]) -> AsyncGenerator[Backend, None]:
    raise AssertionError("nobody calls a tool here")
    yield


async def tools() -> list[Tool]:
    return await make_server(no_backend).list_tools()


async def test_the_whole_list_is_small_and_its_order_stable():
    listed = [tool.model_dump(by_alias=True, exclude_none=True) for tool in await tools()]
    assert len(json.dumps({"tools": listed}, separators=(",", ":")).encode()) <= MAX_TOOLS
    assert listed == [tool.model_dump(by_alias=True, exclude_none=True) for tool in await tools()]
    assert len({tool["name"] for tool in listed}) == len(listed)


async def test_no_schema_bears_a_title():
    for tool in await tools():
        assert tool.input_schema == without_titles(tool.input_schema)
        assert tool.output_schema == without_titles(tool.output_schema)


async def test_no_schema_refers_to_another_place():
    assert not [
        tool.name for tool in await tools() if "$" in f"{tool.input_schema}{tool.output_schema}"
    ]


async def test_every_argument_is_described():
    for tool in await tools():
        for name, schema in tool.input_schema.get("properties", {}).items():
            assert schema.get("description"), f"{tool.name}.{name}"


async def test_every_tool_says_whether_it_reads_or_else_destroys_and_what_it_acts_on():
    for tool in await tools():
        hints = tool.annotations
        assert hints is not None
        assert hints.open_world_hint is not None
        assert (hints.read_only_hint is None) == (hints.destructive_hint is not None)


async def test_tools_that_touch_files_or_run_commands_say_that_it_is_not_the_users_machine():
    for tool in await tools():
        description = tool.description or ""
        assert "box" in description
        if tool.name in CROSSING:
            assert "the user's machine" in description
        elif not tool.name.startswith(("box_", "snapshot_", "port_", "network_")):
            assert "in the box" in description
            assert "not the user's machine" in description


async def test_the_core_tools_and_no_others_are_always_loaded():
    core = {tool.name for tool in await tools() if (tool.meta or {}).get("anthropic/alwaysLoad")}
    assert core == {
        "box_create",
        "shell_run",
        "process_output",
        "file_read",
        "file_write",
        "file_edit",
        "file_search",
    }


def test_the_instructions_are_short_enough_for_every_client():
    assert len(instructions()) <= MAX_INSTRUCTIONS


def test_the_instructions_tell_of_what_there_is_only():
    told = instructions([Group.FILES], read_only=True)
    assert "file_edit" in told
    assert not any(word in told for word in ("git_clone", "agent_run", "port_expose", "tty=true"))
    assert told.endswith(ONLY_READS)


def test_the_instructions_offer_nothing_of_the_users_machine_where_that_is_another():
    told = instructions(remote=True)
    assert not any(here in told for here in AT_HOME)
    assert all(here in instructions() for here in AT_HOME)
    assert "host" not in told
    assert "file_upload" not in told


def test_titles_go_but_a_property_of_that_name_stays():
    schema = {
        "title": "T",
        "properties": {"title": {"title": "Title", "type": "string"}},
        "anyOf": [{"title": "A"}, 1],
    }
    assert without_titles(schema) == {
        "properties": {"title": {"type": "string"}},
        "anyOf": [{}, 1],
    }


def test_what_a_schema_refers_to_stands_in_its_place():
    class Inner(BaseModel):
        size: float | None
        text: Annotated[str, Field(max_length=1)] | None

    class Outer(BaseModel):
        one: Annotated[Inner, Field(description="First.")]
        many: list[Inner]

    text = {"anyOf": [{"maxLength": 1, "type": "string"}, {"type": "null"}]}
    inner = {
        "type": "object",
        "properties": {"size": {"anyOf": [{"type": "number"}, {"type": "null"}]}, "text": text},
        "required": ["size", "text"],
    }
    assert compact(Outer.model_json_schema()) == {
        "type": "object",
        "properties": {
            "one": {**inner, "description": "First."},
            "many": {"type": "array", "items": inner},
        },
        "required": ["one", "many"],
    }


def test_an_argument_is_not_said_to_be_nothing_when_left_out_nor_within_which_bounds():
    class Item(BaseModel):
        model_config = ConfigDict(extra="forbid")
        all: bool = False

    class Given(BaseModel):
        flag: bool = False
        on: bool = True
        text: str | None = None
        number: Annotated[int, Field(ge=0, le=9)] = 0
        needed: Annotated[list[int], Field(min_length=1, max_length=9)]
        items: list[Item]
        anything: dict[str, Any] | None = None

    assert lean(Given.model_json_schema())["properties"] == {
        "flag": {"type": "boolean"},
        "on": {"type": "boolean", "default": True},
        "text": {"type": "string"},
        "number": {"type": "integer"},
        "needed": {"type": "array", "items": {"type": "integer"}},
        "items": {
            "type": "array",
            "items": {"type": "object", "properties": {"all": {"type": "boolean"}}},
        },
        "anything": {"type": "object"},
    }


def test_replies_tell_all_of_a_box_also_where_the_schema_is_short():
    known = BoxInfo(
        id="box-a",
        name=None,
        state="running",
        depth=None,
        note="",
        image="debian",
        size="small",
        cpus=1.0,
        memory_mib=1024,
        network="none",
        labels={"a": "b"},
        created="",
        last_used="",
    )
    replies = {
        "box_create": known,
        "box_fork": Boxes(boxes=[known]),
        "box_list": Boxes(boxes=[known]),
    }
    for tool in lifecycle.tools.tools:
        if (reply := replies.pop(tool.name, None)) is not None:
            told = tool.fn_metadata.convert_result(reply)
            assert isinstance(told, CallToolResult)
            assert told.structured_content in (known.model_dump(), {"boxes": [known.model_dump()]})
            assert tool.output_schema is not None
            validate(told.structured_content, tool.output_schema)
    assert not replies


async def test_a_domain_error_becomes_its_whole_story_and_others_are_left_alone():
    @explained
    async def refuse() -> None:
        raise BoxNotFound("x")

    @explained
    async def crash() -> None:
        raise ZeroDivisionError

    with pytest.raises(ToolError, match=r"^You have no box 'x'\. `box_list` shows your boxes"):
        await refuse()
    with pytest.raises(ZeroDivisionError):
        await crash()


def test_what_a_box_says_in_an_error_is_bounded_and_can_be_sent():
    assert legible("a\udcffb") == "a\\udcffb"
    assert legible("\x1b]52;c;x\x07é\u202e\n\tb") == "\\x1b]52;c;x\\x07é\\u202e\n\tb"
    assert len(legible("x" * 1_000_000)) == MAX_TEXT
    assert legible("short") == "short"


def echo() -> BoxTool:
    group = Toolset(Group.FILES)

    @group.tool(reads=True)
    async def echo(
        text: str, maybe: str | None = None, table: dict[str, str] | None = None, number: int = 1
    ) -> str:
        """Says what it was given."""
        return json.dumps([text, maybe, table, number])

    assert echo
    (tool,) = group.tools
    assert isinstance(tool, BoxTool)
    return tool


@pytest.mark.parametrize("text", ['{"a": 1}', "[1]", "null", "true", "1", '"x"', ""])
async def test_json_in_a_text_stays_text(text: str):
    said = await echo().run({"text": text, "maybe": text}, Context[Any, Any]())
    assert json.loads(said) == [text, text, None, 1]


async def test_an_object_that_comes_as_json_in_a_string_is_taken():
    said = await echo().run({"text": "", "table": '{"a": "b"}', "number": "7"}, Context[Any, Any]())
    assert json.loads(said) == ["", None, {"a": "b"}, 7]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "`text` is missing"),
        ({"text": "", "numbr": 1}, r"no argument `numbr` \(did you mean `number`\?\)"),
        ({"text": "", "zzz": 1}, "no argument `zzz`\\."),
        (
            {"text": "", "number": "x" * 999},
            r"`number` should be a valid integer.* but was \"x+ \.\.\.",
        ),
        ({"text": "", **{f"x{n}": 1 for n in range(99)}}, "and 89 faults more"),
    ],
    ids=repr,
)
async def test_a_complaint_names_the_argument_the_fault_and_what_there_is(
    arguments: dict[str, Any], words: str
):
    with pytest.raises(ToolError, match=words) as caught:
        await echo().run(arguments, Context[Any, Any]())
    assert str(caught.value).startswith("echo was not run, since its arguments are wrong: ")
    assert str(caught.value).endswith("It takes: text, maybe, table, number.")
    assert len(str(caught.value)) < 1200
