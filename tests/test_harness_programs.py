"""The real Claude Code and Codex take what they are told, and talk to nobody but their model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from box_mcp.capabilities.harnesses.base import Access, Assignment, Finished, Harness, Started
from box_mcp.capabilities.harnesses.known import KNOWN
from box_mcp.domain.models import Dialect
from tests.support import node
from tests.support.model_server import ScriptedModel, serve_model
from tests.support.script import Say, Turn, Use

if TYPE_CHECKING:
    from box_mcp.capabilities.harnesses.base import Event

KEY = "box-mcp-of-a-run"
SESSION = "01a21752-3cd4-7df2-89b6-ade51aa878fd"
ANSWER = {"n": 3}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}
SKILL = "---\nname: shouting\ndescription: How one shouts here\n---\nShout.\n"
SERVER = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked["method"] == "initialize":
        version = asked["params"]["protocolVersion"]
        about = {"name": "t", "version": "1"}
        answer = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": about}
    elif asked["method"] == "tools/list":
        schema = {"type": "object", "properties": {}}
        answer = {"tools": [{"name": "whisper", "description": "w", "inputSchema": schema}]}
    else:
        continue
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": answer}), flush=True)
"""
SERVERS = {"whispers": {"command": sys.executable, "args": ["-c", SERVER]}}


def run(harness: Harness, home: Path, url: str, **more: Any) -> list[Event]:
    """What comes of a task, with nothing but the model in reach."""
    anthropic = harness.dialects[0] == Dialect.ANTHROPIC
    access = Access(harness.dialects[0], url if anthropic else f"{url}/v1", KEY)
    launch = harness.launch(Assignment("Count.", str(home / "scratch"), access, **more))
    for name, text in launch.files.items():
        path = Path(name.replace("~", str(home), 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), url)
    own = {"HOME": str(home), "PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1", **proxies}
    program = node.claude_code() if anthropic else node.codex()
    done = subprocess.run(
        [program, *launch.command[1:]],
        input=launch.stdin,
        env={**own, **launch.env},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    reader = harness.reader(str(home))
    return [event for line in done.stdout.splitlines() for event in reader.read(json.loads(line))]


def play(
    harness: Harness, home: Path, name: str, answer: Say | Use
) -> tuple[ScriptedModel, list[Event], list[Event]]:
    """Two runs of one conversation, with all that one may want of the first."""
    script: list[Turn] = [answer, Say("Once more.")]
    with serve_model(script, tool_prefix="") as model:
        first = run(
            harness,
            home,
            model.url,
            model=name,
            session=SESSION,
            max_turns=5,
            schema=SCHEMA,
            system="Be kind to é.",
            servers=SERVERS,
            skills={"shouting": SKILL},
        )
        started = next(event for event in first if isinstance(event, Started))
        wish = {"resume": started.session, "system": "Be harsh to ü."}
        second = run(harness, home, model.url, model=name, **wish)
    assert (model.keys, model.refused) == ({KEY}, [])
    assert {request["model"] for request in model.requests} == {name}
    told, told_then = (json.dumps(model.requests[at], ensure_ascii=False) for at in (0, -1))
    for part in ("Be kind to é.", "How one shouts here", "Count."):
        assert part in told
    assert "Be harsh to ü." in told_then
    return model, first, second


def test_claude_code_heeds_all_that_it_is_told_and_goes_on_with_a_conversation(
    tmp_path: Path,
) -> None:
    name, answer = "claude-sonnet-4-5", Use("StructuredOutput", ANSWER)
    model, first, second = play(KNOWN["claude_code"], tmp_path, name, answer)
    assert first[0] == second[0] == Started(SESSION, name)
    assert first[-1] == Finished(json.dumps(ANSWER, separators=(",", ":")), ANSWER, turns=2)
    assert second[-1] == Finished("Once more.", turns=1)
    assert "mcp__whispers__whisper" in json.dumps(model.requests[0])


def test_claude_code_asks_its_own_model_whatever_the_repository_s_settings_say(
    tmp_path: Path,
) -> None:
    elsewhere = {
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
        "ANTHROPIC_API_KEY": "another",
        "ANTHROPIC_AUTH_TOKEN": "another",
        "ANTHROPIC_CUSTOM_HEADERS": "Authorization: Bearer another",
        "CLAUDE_CODE_USE_BEDROCK": "1",
    }
    (tmp_path / ".claude").mkdir()
    said = {"env": elsewhere, "apiKeyHelper": "echo another"}
    (tmp_path / ".claude" / "settings.json").write_text(json.dumps(said))
    with serve_model([Say("Done.")], tool_prefix="") as model:
        events = run(KNOWN["claude_code"], tmp_path, model.url, model="claude-sonnet-4-5")
    assert events[-1] == Finished("Done.", turns=1)
    assert (model.keys, model.refused) == ({KEY}, [])


def test_codex_heeds_all_that_it_is_told_and_goes_on_with_a_conversation(tmp_path: Path) -> None:
    answer = Say(json.dumps(ANSWER))
    model, first, second = play(KNOWN["codex"], tmp_path, "gpt-5.5", answer)
    assert isinstance(first[0], Started)
    assert first[0] == second[0]
    assert (first[-1], second[-1]) == (Finished(answer.text), Finished("Once more."))
    assert model.requests[0]["text"]["format"]["schema"] == SCHEMA
    assert "mcp__whispers" in json.dumps(model.requests[0])
