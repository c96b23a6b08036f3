"""What harnesses print becomes events: recordings of the real ones, and whatever else comes.

The recordings are what Claude Code 2.1.330 and Codex 0.169.0 printed with a scripted model, in full
but for the directory's name and long lists in Claude Code's first line.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.capabilities.harnesses.base import (
    CAUSES,
    Assignment,
    Failed,
    FileChange,
    Finished,
    Harness,
    Notice,
    Reasoning,
    Started,
    Text,
    ToolCall,
    ToolResult,
    Unknown,
    Used,
)
from box_mcp.capabilities.harnesses.custom import KINDS, Custom
from box_mcp.capabilities.harnesses.known import KNOWN
from box_mcp.domain.models import Tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from box_mcp.capabilities.harnesses.base import Event

DOCS = Path(__file__).parents[2] / "docs" / "agents.md"
RECORDINGS = Path(__file__).with_name("harness_recordings")
CUSTOM = Custom("mine", ("mine",))
ALL: list[Harness] = [*KNOWN.values(), CUSTOM]
LINES = [
    json.loads(line)
    for path in sorted(RECORDINGS.iterdir())
    for line in path.read_text("utf-8").splitlines()
]


def read(lines: Sequence[dict[str, Any]], harness: Harness = CUSTOM) -> list[Event]:
    """The events that these lines tell of."""
    reader = harness.reader("/workspace")
    return [event for line in lines for event in reader.read(line)]


def recorded(name: str) -> list[Event]:
    """The events of a recording."""
    text = (RECORDINGS / f"{name}.jsonl").read_text("utf-8")
    harness = KNOWN[name.partition("-")[0]]
    return read([json.loads(line) for line in text.splitlines()], harness)


def calls(events: Sequence[Event]) -> list[tuple[str, str]]:
    """Tools that are used, and what for."""
    return [(event.name, event.act) for event in events if isinstance(event, ToolCall)]


def failed(events: Sequence[Event]) -> list[bool]:
    """Which of the tool calls failed."""
    return [event.failed for event in events if isinstance(event, ToolResult)]


def test_claude_code_thinks_speaks_and_runs_a_command_that_fails() -> None:
    session = "31493d82-f889-43ec-bc28-c3a0ccfa4fd6"
    command = "ls -la; echo hi >&2; false"
    assert recorded("claude_code-tools")[:5] == [
        Started(session, "claude-sonnet-4-5"),
        Reasoning("Let me look."),
        Text("I look first."),
        ToolCall(
            "toolu_1_2",
            "Bash",
            f"runs {command}",
            {"command": command, "description": "List files"},
            command,
        ),
        ToolResult(
            "toolu_1_2",
            "Exit code 1\ntotal 8\ndrwxr-xr-x 2 box box 4096 Nov 26 10:02 .\n"
            "drwxr-xr-x 4 box box 4096 Nov 26 10:02 ..\nhi",
            failed=True,
        ),
    ]


def test_claude_code_writes_and_edits_a_file() -> None:
    events = recorded("claude_code-tools")
    acts = [("Write", "writes app.py"), ("Read", "reads app.py"), ("Edit", "edits app.py")]
    assert calls(events)[1:4] == acts
    changes = [event for event in events if isinstance(event, FileChange)]
    path = "/workspace/app.py"
    assert changes == [FileChange(path, "added"), FileChange(path, "changed")]


def test_tools_that_claude_code_does_not_have_fail() -> None:
    events = recorded("claude_code-tools")
    assert calls(events)[4:7] == [
        ("Grep", "searches for bye"),
        ("Glob", "looks for files: **/*.py"),
        ("TodoWrite", "plans: Fix it"),
    ]
    assert failed(events) == [True, False, False, False, True, True, True, False]


def test_claude_code_goes_on_when_a_sub_agent_in_the_background_is_done() -> None:
    events = recorded("claude_code-tools")
    assert calls(events)[-1] == ("Task", "has a sub-agent work: Count files")
    last = [event for event in events if isinstance(event, (Started, Text, Used, Finished))][-6:]
    assert last == [
        Used(Tokens(input=99, cache_read=45, cache_write=27, output=63)),
        Finished("All done.", turns=9),
        Started("31493d82-f889-43ec-bc28-c3a0ccfa4fd6", "claude-sonnet-4-5"),
        Text("All done."),
        Used(Tokens(input=11, cache_read=5, cache_write=3, output=7)),
        Finished("All done.", turns=10),
    ]
    assert not [event for event in events if isinstance(event, Unknown)]


def test_claude_code_plans_has_sub_agents_and_edits_notebooks() -> None:
    events = recorded("claude_code-more")
    assert calls(events) == [
        ("TaskCreate", "plans: Fix the test"),
        ("TaskUpdate", "brings its plan up to date"),
        ("Task", "has a sub-agent work: Count files"),
        ("Bash", "runs ls | wc -l"),
        ("Bash", "runs sleep 0.2; echo done"),
        ("Write", "writes a.ipynb"),
        ("Read", "reads a.ipynb"),
        ("NotebookEdit", "edits a.ipynb"),
        ("Skill", "uses the skill simplify"),
        ("Bash", "runs cat a.ipynb; sleep 1"),
        ("Write", "writes a.ipynb"),
        ("WebFetch", "fetches http://example.invalid/x"),
    ]
    changes = [event.change for event in events if isinstance(event, FileChange)]
    assert changes == ["added", "changed", "changed"]
    assert [event for event in events if isinstance(event, Text)] == [Text("All done.")]
    assert not [event for event in events if isinstance(event, Unknown)]


def test_claude_codes_answer_to_a_schema_is_told_with_its_end() -> None:
    events = recorded("claude_code-structured")
    assert calls(events) == [
        ("mcp__t__shout", "uses shout of t"),
        ("mcp__t__fail", "uses fail of t"),
        ("StructuredOutput", "gives its answer"),
        ("StructuredOutput", "gives its answer"),
    ]
    assert failed(events) == [False, True, True, False]
    assert ToolResult("toolu_1_0", "HI") in events
    assert events[-1] == Finished('{"n":3}', answer={"n": 3}, turns=6)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        (
            "claude_code-turns",
            Failed("Reached maximum number of turns (2)", "max_turns"),
        ),
        (
            "claude_code-refused",
            Failed("API Error: 402 box_mcp: run run-x has spent its budget of 1 USD", "refused"),
        ),
        (
            "claude_code-no_conversation",
            Failed(
                "No conversation found with session ID: 6c913062-d890-4b2d-ac61-ba08af0a7406",
                "error",
            ),
        ),
        (
            "claude_code-unstructured",
            Failed(
                "Failed to provide valid structured output after 5 attempts — last "
                "StructuredOutput error: Output does not match required schema: "
                "/n: must be integer",
                "error",
            ),
        ),
        (
            "codex-refused",
            Failed("box_mcp: the run has spent its budget of 1 USD", "refused"),
        ),
        (
            "codex-busy",
            Failed(
                "We\u2019re currently experiencing high demand, which may cause temporary errors.",
                "model",
            ),
        ),
        (
            "codex-broken",
            Failed(
                "stream disconnected before completion: stream closed before response.completed",
                "model",
            ),
        ),
    ],
)
def test_a_harness_says_why_it_gave_up(name: str, end: Failed) -> None:
    assert recorded(name)[-1] == end


def test_claude_code_tells_when_its_model_answers_nonsense() -> None:
    started, end = recorded("claude_code-no_model")
    assert isinstance(started, Started)
    assert isinstance(end, Failed)
    assert end.cause == "model"
    assert "malformed response" in end.message


def test_claude_code_tells_that_it_asks_again() -> None:
    assert recorded("claude_code-overloaded")[1:] == [
        Notice("asks the model again (overloaded, status 529): 1 of 10"),
        Notice("asks the model again (overloaded, status 529): 2 of 10"),
        Text("Fine."),
        Used(Tokens(input=11, cache_read=5, cache_write=3, output=7)),
        Finished("Fine.", turns=1),
    ]


def test_an_mcp_server_that_does_not_start_is_told() -> None:
    assert Notice("the MCP server t does not work") in recorded("claude_code-no_server")


def test_codex_thinks_speaks_runs_commands_and_patches_files() -> None:
    events = recorded("codex-tools")
    command = "cat README.md | head -3; rg foo src"
    assert events[:8] == [
        Started("01a21751-c962-7e73-89f1-c184bb585d0c"),
        Reasoning("**Looking around**\n\nLet me see."),
        Text("I look first."),
        ToolCall("item_2", "shell", f"runs {command}", {"command": command}, command),
        ToolResult(
            "item_2",
            "cat: README.md: No such file or directory\n"
            "src: No such file or directory (os error 2)\n",
            failed=True,
        ),
        ToolCall("item_3", "apply_patch", "writes src/app.py", {"paths": ["src/app.py"]}),
        ToolResult("item_3", ""),
        FileChange("/workspace/src/app.py", "added"),
    ]
    changes = [(event.path, event.change) for event in events if isinstance(event, FileChange)]
    assert changes[1:] == [
        ("/workspace/b.txt", "added"),
        ("/workspace/src/app.py", "changed"),
        ("/workspace/b.txt", "deleted"),
        ("/workspace/src/app.py", "changed"),
        ("/workspace/c.txt", "added"),
    ]


def test_codex_uses_mcp_servers_and_searches_the_web() -> None:
    events = recorded("codex-tools")
    assert calls(events)[2:] == [
        ("apply_patch", "edits b.txt, src/app.py"),
        ("apply_patch", "edits b.txt, src/app.py"),
        ("apply_patch", "writes c.txt"),
        ("t.shout", "uses shout of t"),
        ("t.fail", "uses fail of t"),
        ("shell", "runs sleep 30"),
        ("web_search", "searches the web for how to foo"),
    ]
    assert [event for event in events if isinstance(event, ToolResult)][-3:] == [
        ToolResult("item_7", "HI"),
        ToolResult("item_8", "HI", failed=True),
        ToolResult("ws_1", ""),
    ]
    assert events[-2:] == [
        Used(Tokens(input=165, cache_read=55, output=77), whole=True),
        Finished("All done."),
    ]


def test_codex_has_sub_agents_and_tells_what_it_is_not_sure_of() -> None:
    events = recorded("codex-agents")
    assert isinstance(events[1], Notice)
    assert events[1].text.startswith("Model metadata for `gpt-5.1-codex` not found.")
    assert calls(events) == [
        ("spawn_agent", "has a sub-agent work: count the files now"),
        ("wait", "waits for its sub-agents"),
        ("close_agent", "uses close_agent"),
    ]
    assert ToolResult("item_2", "I counted 3.") in events
    assert not [event for event in events if isinstance(event, Unknown)]


def test_codex_counts_the_tokens_of_a_whole_conversation() -> None:
    assert recorded("codex-resumed") == [
        Started("01a21752-3cd4-7df2-89b6-ade51aa878fd"),
        Text("I go on."),
        Used(Tokens(input=45, cache_read=15, output=21), whole=True),
        Finished("I go on."),
    ]


def test_codexs_plans_are_told() -> None:
    item = {"id": "item_1", "type": "todo_list"}
    steps = [{"text": "Look", "completed": True}, {"text": "Mend", "completed": False}]
    lines = [
        {"type": "item.updated", "item": {**item, "items": steps}},
        {"type": "item.completed", "item": {**item, "items": steps}},
    ]
    assert read(lines, KNOWN["codex"]) == [Notice("plans (1 of 2 done): Mend")]


def test_a_command_of_the_users_own_tells_all_events() -> None:
    lines = [
        {"type": "started", "session": "s1", "model": "m"},
        {"type": "text", "text": "I look.\nThen I see."},
        {"type": "reasoning", "text": "Hm."},
        {"type": "tool_call", "id": "1", "name": "sh", "command": "pytest -q"},
        {"type": "tool_result", "id": "1", "text": "1 failed", "failed": True},
        {"type": "tool_call", "id": "2", "name": "edit", "act": "edits a.py", "input": {"a": 1}},
        {"type": "file_change", "path": "a.py", "change": "deleted"},
        {"type": "file_change", "path": "b.py"},
        {"type": "usage", "input": 1, "cache_read": 2, "cache_write": 3, "output": 4},
        {"type": "notice", "text": "waits"},
        {"type": "finished", "answer": [1], "turns": 2},
        {"type": "failed", "message": "No more.", "cause": "max_turns"},
        {"type": "song", "text": "la"},
    ]
    assert read(lines) == [
        Started("s1", "m"),
        Text("I look.\nThen I see."),
        Reasoning("Hm."),
        ToolCall("1", "sh", "runs pytest -q", {}, "pytest -q"),
        ToolResult("1", "1 failed", failed=True),
        ToolCall("2", "edit", "edits a.py", {"a": 1}),
        FileChange("a.py", "deleted"),
        FileChange("b.py", "changed"),
        Used(Tokens(1, 2, 3, 4)),
        Notice("waits"),
        Finished("I look.\nThen I see.", answer=[1], turns=2),
        Failed("No more.", "max_turns"),
        Unknown("song"),
    ]


def test_the_agent_of_the_documentation_works(tmp_path: Path) -> None:
    written = DOCS.read_text("utf-8").partition("```python\n")[2].partition("```")[0]
    program = [sys.executable, "-c", written]
    done = subprocess.run(
        program, input="mend it", cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert read([json.loads(line) for line in done.stdout.splitlines()]) == [
        Started("only-one"),
        ToolCall("1", "write", "writes answer.txt"),
        FileChange("answer.txt", "added"),
        Finished("It is in answer.txt.", turns=1),
    ]
    assert (tmp_path / "answer.txt").read_text() == "MEND IT"


def test_the_documentation_tells_of_all_events_and_variables() -> None:
    told = set(re.findall(r"^\| `([a-z_]+)` \|", DOCS.read_text("utf-8"), re.MULTILINE))
    assert {*KINDS, "text", "finished"} <= told
    launch = CUSTOM.launch(Assignment("", "/tmp/run", None))
    assert set(launch.env) <= set(re.findall(r"BOX_MCP_[A-Z_]+", DOCS.read_text("utf-8")))


@pytest.mark.parametrize("harness", ALL, ids=lambda harness: harness.name)
def test_what_a_newer_version_prints_is_unknown(harness: Harness) -> None:
    assert read([{"type": "dance"}], harness) == [Unknown("dance")]
    assert read([{}], harness) == [Unknown("")]


def test_parts_that_a_newer_version_prints_are_unknown() -> None:
    block = {"type": "assistant", "message": {"content": [{"type": "dance"}]}}
    system = {"type": "system", "subtype": "dance"}
    item = {"type": "item.completed", "item": {"type": "dance"}}
    kinds = [Unknown("assistant/dance"), Unknown("system/dance")]
    assert read([block, system], KNOWN["claude_code"]) == kinds
    assert read([item], KNOWN["codex"]) == [Unknown("item/dance")]


def test_what_is_long_or_unprintable_is_told_in_a_line() -> None:
    given = {"command": "echo \x1b[31m" + "x" * 10**6 + "\n\ud800"}
    content = [{"type": "tool_use", "id": "i" * 10**6, "name": "Bash", "input": given}]
    line = {"type": "assistant", "message": {"content": content}}
    (call,) = read([line], KNOWN["claude_code"])
    assert isinstance(call, ToolCall)
    assert call.act == "runs echo [31m" + "x" * 105 + "…"
    assert (len(call.id), len(call.command)) == (200, 10_000)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/workspace/src/app.py", "src/app.py"),
        ("/workspace", "."),
        ("/workspaces/app.py", "/workspaces/app.py"),
        ("/etc/passwd", "/etc/passwd"),
        ("src/app.py", "src/app.py"),
        ("/workspace/a\nb", "a b"),
    ],
)
def test_paths_are_told_from_where_the_agent_works(path: str, shown: str) -> None:
    content = [{"type": "tool_use", "id": "1", "name": "Read", "input": {"file_path": path}}]
    line = {"type": "assistant", "message": {"content": content}}
    assert calls(read([line], KNOWN["claude_code"])) == [("Read", f"reads {shown}")]


@pytest.mark.parametrize(
    ("said", "command"),
    [
        ("/bin/bash -lc 'ls -la; false'", "ls -la; false"),
        ("/bin/bash -lc ls", "ls"),
        ("/usr/bin/zsh -c \"echo 'a b'\"", "echo 'a b'"),
        ("/bin/bash -lc 'cut off", "/bin/bash -lc 'cut off"),
        ("/bin/bash script.sh", "/bin/bash script.sh"),
        ("/bin/bash -lc a b", "/bin/bash -lc a b"),
        ("ls -la", "ls -la"),
    ],
)
def test_codexs_commands_are_told_without_their_shell(said: str, command: str) -> None:
    item = {"id": "1", "type": "command_execution", "command": said}
    (call,) = read([{"type": "item.started", "item": item}], KNOWN["codex"])
    assert isinstance(call, ToolCall)
    assert call.command == command


def words_in(said: Any) -> set[str]:
    """The keys and the short texts in a line."""
    if isinstance(said, dict):
        members = cast("dict[str, Any]", said)
        return set(members).union(*map(words_in, members.values()))
    if isinstance(said, list):
        return set[str]().union(*map(words_in, cast("list[Any]", said)))
    return {said} if isinstance(said, str) and len(said) < 40 else set()


OWN = ["text", "tool_call", "tool_result", "usage", "finished", "failed", "file_change", "started"]
WORDS = st.sampled_from(sorted(words_in(LINES).union(OWN)))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | WORDS
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(WORDS, SCALARS, max_size=2)
PARTS = st.dictionaries(WORDS, VALUES, max_size=4) | st.lists(VALUES, max_size=2)


def hold(event: Event) -> None:
    """Nothing in it has other than its type, is too long, or could not be told."""
    match event:
        case Started(session, model):
            assert len(session) <= 200
            assert len(model) <= 200
        case ToolCall(id, name, act, _, command):
            assert len(id) <= 200
            assert len(name) <= 500
            assert 0 < len(act) <= 120
            assert act.isprintable()
            assert len(command) <= 10_000
        case Failed(message, cause):
            assert message
            assert cause in CAUSES
        case Notice(text) | Unknown(text):
            assert len(text) <= 400
            assert text.isprintable()
        case Used(tokens):
            assert min(tokens.input, tokens.output, tokens.cache_read, tokens.cache_write) >= 0
        case FileChange(_, change):
            assert change in {"added", "changed", "deleted"}
        case Finished(text) | Text(text) | Reasoning(text) | ToolResult(_, text):
            text.encode()


def places_in(said: Any) -> Iterator[tuple[Any, Any]]:
    """All that a line has in it: what it is in, and its key or index there."""
    if not isinstance(said, (dict, list)):
        return
    at = cast("Any", said)
    for place in list(at) if isinstance(said, dict) else range(len(at)):
        yield at, place
        yield from places_in(at[place])


OTHERS: list[Any] = [None, True, -1, 1.5, 10**99, "", "\ud800\n", [], {}, [[]], {"a": []}]


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_nothing_that_stands_where_something_else_belongs_makes_a_reader_raise(name: str) -> None:
    for path in sorted(RECORDINGS.glob(f"{name}-*")):
        for text in path.read_text("utf-8").splitlines():
            line = json.loads(text)
            for at, place in places_in(line):
                kept = at[place]
                for other in OTHERS:
                    at[place] = other
                    for event in read([line], KNOWN[name]):
                        hold(event)
                at[place] = kept


@given(lines=st.lists(st.dictionaries(WORDS, VALUES | PARTS), max_size=2))
def test_no_line_whatever_makes_a_reader_raise(lines: list[dict[str, Any]]) -> None:
    for harness in ALL:
        for event in read(lines, harness):
            hold(event)


@pytest.mark.parametrize("harness", ALL, ids=lambda harness: harness.name)
def test_a_reader_bears_huge_and_deep_lines(harness: Harness) -> None:
    deep: Any = []
    for _ in range(10_000):
        deep = [deep]
    many = [{"type": "tool_use", "id": str(number), "name": "Write"} for number in range(10_000)]
    for content in (deep, many, "x" * 10**6, [deep] * 10):
        message = {"content": content, "message": content}
        for kind in ("assistant", "user", "result", "turn.failed", "text", "tool_call"):
            line = {"type": kind, "message": message, "error": message, "text": content}
            for event in read([{**line, "input": content, "errors": content}], harness):
                hold(event)
