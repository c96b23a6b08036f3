"""The real Claude Code drives the real server; only the model behind it is a script.

Everything the command line tool talks to is on loopback: the model server is its API, and also its
web proxy, so that any request it would make elsewhere is refused and seen.
"""

import json
import os
import re
import socket
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import node
from tests.support.client import docker
from tests.support.commands import made_box
from tests.support.messages_api import text_of, tool_results
from tests.support.model_server import ScriptedModel, serve_model
from tests.support.script import Act, JsonObject, Say, Turn, Use
from tests.support.terminal import Terminal, in_terminal

pytestmark = pytest.mark.timeout(node.INSTALL_TIMEOUT + 120)  # the first run installs the client

MODEL = "claude-sonnet-4-5"

PROMPT = "Say hello from a box."

RUN_TIMEOUT = 90.0
"""Seconds for a whole conversation; it takes about 2 besides the boxes' own time."""

CREATE = Use("mcp__box__box_create", {"name": "claude"})
HELLO = "echo hello from $(hostname) | tee /workspace/hello.txt"
RUN = Use("mcp__box__shell_run", {"command": HELLO, "box": "claude"})
READ = Use("mcp__box__file_read", {"path": "/workspace/hello.txt", "box": "claude"})

SHELL_RUN, PROCESS_LIST = RUN.tool, "mcp__box__process_list"
PROCESS_OUTPUT, PROCESS_SIGNAL = "mcp__box__process_output", "mcp__box__process_signal"
WHEN_READY = {"pattern": "Serving HTTP on", "cursor": 0, "wait": 30}
WHEN_ENDED = {"until": "exit", "cursor": 0, "wait": 30}

TWO_LINES = """
    echo line one; until [ -e seen-one ]; do sleep .05; done
    echo line two; until [ -e seen-two ]; do sleep .05; done
"""
LONG = "echo begun; until [ -e go ]; do sleep .05; done; echo ended; exit 3"
SITE = "echo forty-two > answer; python3 -u -m http.server 8000"
JOB = "sleep 1; curl -sf localhost:8000/answer; echo built; exit 3"

PROGRESS = "notifications/progress"
TEE = 'tee "$0.client" | "$@" | tee "$0.server"'

FOREIGN_PREFIXES = ("ANTHROPIC_", "CLAUDE", "MCP_", "OTEL_", "BOX_MCP_")
"""Settings of whoever runs the tests, which the tool under test must not see."""


@pytest.fixture
def config(server_command: list[str], server_env: dict[str, str], tmp_path: Path) -> Path:
    """Claude Code's MCP configuration, with our server as its only entry."""
    program, *arguments = server_command
    server = {"type": "stdio", "command": program, "args": arguments, "env": server_env}
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({"mcpServers": {"box": server}}))
    return path


def set_server(config: Path, **settings: str) -> None:
    """Give the server these settings, too."""
    written = json.loads(config.read_text())
    written["mcpServers"]["box"]["env"].update(settings)
    config.write_text(json.dumps(written))


def record(config: Path) -> None:
    """Keep what client and server say to each other, beside the configuration."""
    written = json.loads(config.read_text())
    server = written["mcpServers"]["box"]
    server["args"] = ["-c", TEE, str(config), server["command"], *server["args"]]
    server["command"] = "bash"
    config.write_text(json.dumps(written))


def said(config: Path, side: str) -> list[dict[str, Any]]:
    """The messages of ``client`` or ``server``, as recorded."""
    return [json.loads(line) for line in Path(f"{config}.{side}").read_text().splitlines()]


def converse(model: ScriptedModel, config: Path, **variables: str) -> list[dict[str, Any]]:
    """Let Claude Code answer one prompt with the scripted model; what it printed."""
    home = config.parent / "home"
    home.mkdir()
    options = ["-p", PROMPT, "--output-format", "stream-json", "--verbose"]
    done = subprocess.run(
        claude(config, *options, "--permission-mode", "bypassPermissions"),
        env={**environment(model, home), **variables},
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def conversation(model: ScriptedModel, config: Path) -> Generator[Terminal]:
    """Have Claude Code talk to a person, who has asked it for something when the block begins."""
    home, project = config.parent / "home", config.parent / "project"
    home.mkdir()
    project.mkdir()
    env = environment(model, home)
    settings = Path(env["CLAUDE_CONFIG_DIR"], ".claude.json")
    settings.parent.mkdir()
    settings.write_text(json.dumps(familiar(project, env["ANTHROPIC_API_KEY"])))
    command = claude(config, "--allowedTools", "mcp__box")
    with in_terminal(command, {**env, "TERM": "xterm-256color"}, project) as terminal:
        terminal.see("? for shortcuts")
        enter(terminal, "/mcp")
        terminal.see("✔ box")  # what is asked before that goes to the model without our tools
        terminal.type("\x1b")
        terminal.see("? for shortcuts")
        enter(terminal, PROMPT)
        yield terminal


def enter(terminal: Terminal, words: str) -> None:
    """Type a line; Enter comes when it is there, or the two would count as one paste."""
    terminal.type(words)
    terminal.see(words)
    terminal.type("\r")


def familiar(project: Path, key: str) -> dict[str, Any]:
    """The settings of somebody who has answered all that Claude Code asks at first."""
    return {
        "hasCompletedOnboarding": True,
        "customApiKeyResponses": {"approved": [key], "rejected": []},
        "projects": {str(project): {"hasTrustDialogAccepted": True}},
    }


def claude(config: Path, *options: str) -> list[str]:
    """The command that starts Claude Code with our server as its only one."""
    settled = ["--model", MODEL, "--strict-mcp-config", "--mcp-config", str(config)]
    return [str(node.claude_code()), *options, *settled]


def environment(model: ScriptedModel, home: Path) -> dict[str, str]:
    """A home of its own, the scripted model as the API, and no way out of this machine."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN_PREFIXES)}
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), model.url)
    direct = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
    return {
        **kept,
        **proxies,
        **direct,
        "HOME": str(home),
        "CLAUDE_CONFIG_DIR": str(home / ".claude"),
        "CLAUDE_CODE_TMPDIR": str(home),
        "ANTHROPIC_BASE_URL": model.url,
        "ANTHROPIC_API_KEY": "a-dummy-key",
        "IS_SANDBOX": "1",  # lets root bypass permissions
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_ERROR_REPORTING": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }


def test_claude_code_makes_a_box_runs_a_command_in_it_and_reads_the_file_back(
    config: Path,
) -> None:
    with serve_model([CREATE, RUN, READ, Say("All done.")]) as model:
        events = converse(model, config)

    (started,) = [event for event in events if event.get("subtype") == "init"]
    assert [(s["name"], s["status"]) for s in started["mcp_servers"]] == [("box", "connected")]

    results = model.tool_results()
    assert [result for result in results if result.is_error] == []
    created, ran, read = (result.text for result in results)
    assert "claude" in created
    assert "hello from " in ran
    assert f"hello from {socket.gethostname()}" not in ran
    assert "hello from " in read

    assert (events[-1]["type"], events[-1]["subtype"]) == ("result", "success")
    assert (events[-1]["is_error"], events[-1]["result"]) == (False, "All done.")


def test_claude_code_offers_the_core_tools_at_once_and_talks_to_loopback_only(
    config: Path,
) -> None:
    with serve_model([Say("Nothing to do.")]) as model:
        converse(model, config)

    (request,) = model.requests
    core = {CREATE.tool, RUN.tool, READ.tool}
    assert core <= {tool["name"] for tool in request["tools"]}
    assert model.refused == []


def test_claude_code_shows_the_newest_line_of_a_command_while_it_runs(
    config: Path, server_env: dict[str, str]
) -> None:
    record(config)
    box = made_box(server_env)
    script = [Use(SHELL_RUN, {"command": TWO_LINES, "box": box}), Say("All done.")]
    with serve_model(script) as model, conversation(model, config) as terminal:
        terminal.see("⎿  line one")
        let_go_on(box, "seen-one")
        terminal.see("⎿  line two")
        let_go_on(box, "seen-two")
        terminal.see("● All done.")

    (result,) = model.tool_results()
    assert "exit 0" in result.text
    (call,) = [asked for asked in said(config, "client") if asked.get("method") == "tools/call"]
    answers = said(config, "server")
    end = next(place for place, answer in enumerate(answers) if answer.get("id") == call["id"])
    told = [answer["params"] for answer in answers[:end] if answer.get("method") == PROGRESS]
    token = call["params"]["_meta"]["progressToken"]
    assert {params["progressToken"] for params in told} == {token}
    assert list(dict.fromkeys(params["message"] for params in told)) == ["line one", "line two"]
    progress = [params["progress"] for params in told]
    assert progress == sorted(set(progress))


def test_claude_code_follows_a_command_that_outlives_its_call_as_a_task(
    config: Path, server_env: dict[str, str]
) -> None:
    record(config)
    set_server(config, BOX_MCP_YIELD_AFTER="1")
    box = made_box(server_env)
    script = [Use(SHELL_RUN, {"command": LONG, "box": box}), Say("I wait."), Say("All done.")]
    with serve_model(script) as model, conversation(model, config) as terminal:
        terminal.see("● I wait.")
        let_go_on(box, "go")
        terminal.see("● All done.")

    (result,) = model.tool_results()
    assert f"server-side task {box}" in result.text
    notice = text_of(model.requests[-1]["messages"][-1]["content"])
    assert "<status>completed</status>" in notice
    assert re.search(r"\[exit 3 · .*\]\nbegun\nended\n", notice)
    assert "tasks/get" in [asked.get("method") for asked in said(config, "client")]


def test_claude_code_works_with_processes_in_the_background(config: Path) -> None:
    script: list[Turn] = [
        Use(SHELL_RUN, {"command": SITE, "background": True}),
        partial(read_newest, WHEN_READY),
        Use(SHELL_RUN, {"command": JOB, "background": True}),
        partial(read_newest, WHEN_ENDED),
        Use(PROCESS_LIST, {}),
        Use(PROCESS_SIGNAL, {"id": "p1"}),
        Say("All done."),
    ]
    with serve_model(script) as model:
        converse(model, config)

    results = model.tool_results()
    assert [result for result in results if result.is_error] == []
    started, ready, _, ended, listed, signalled = (result.text for result in results)
    assert "as p1" in started
    assert "pattern found" in ready
    assert re.search(r"p2 exit 3 · .*\]\nforty-two\nbuilt\n", ended)
    assert re.search(r"^p1 .*listens on 8000", listed, re.MULTILINE)
    assert re.search(r"^p2 .*exit 3", listed, re.MULTILINE)
    assert "p1 ended as asked for (killed by SIGTERM)" in signalled


def test_a_command_outlives_claude_codes_timeout_and_its_output_is_still_there(
    config: Path, server_env: dict[str, str]
) -> None:
    set_server(config, BOX_MCP_YIELD_AFTER="1")
    box = made_box(server_env)
    lines = {"command": "for i in {1..8}; do echo line $i; sleep .5; done", "box": box}

    def until_it_ends(messages: list[JsonObject]) -> Act:
        if "running for" in tool_results(messages)[-1].text:
            return read_newest({**WHEN_ENDED, "box": box}, messages)
        return Say("All done.")

    unheeding = Use(SHELL_RUN, {**lines, "yield_after": 60})
    script = [unheeding, Use(SHELL_RUN, lines), *[until_it_ends] * 20]
    with serve_model(script) as model:
        converse(model, config, MCP_TOOL_TIMEOUT="3000")

    unheeded, yielded, *_, last = model.tool_results()
    assert (unheeded.is_error, "timed out after 3s" in unheeded.text) == (True, True)
    assert re.match(r"\[running for \d s as p2", yielded.text)
    ended = re.search(r"p2 exit 0 · ([\d.]+) s .*\]\n((?:line \d+\n)+)", last.text)
    assert ended
    assert float(ended[1]) > 3
    assert ended[2].splitlines() == [f"line {number}" for number in range(1, 9)]


def let_go_on(box: str, file: str) -> None:
    """Make the file that a command in the box waits for."""
    docker("exec", box, "touch", f"/workspace/{file}")


def read_newest(how: JsonObject, messages: list[JsonObject]) -> Act:
    """Read what the process has printed that the newest tool result is about."""
    named = re.search(r"(?:\bas |\[)(p\d+)\b", tool_results(messages)[-1].text)
    assert named
    return Use(PROCESS_OUTPUT, {**how, "id": named[1]})
