"""The real Claude Code drives the real server; only the model behind it is a script.

Everything the command line tool talks to is on loopback: the model server is its API, and also its
web proxy, so that any request it would make elsewhere is refused and seen.
"""

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import node
from tests.support.model_server import Say, ScriptedModel, Use, serve_model

pytestmark = pytest.mark.timeout(node.INSTALL_TIMEOUT + 120)  # the first run installs the client

MODEL = "claude-sonnet-4-5"

RUN_TIMEOUT = 90.0
"""Seconds for a whole conversation; it takes about 2 besides the boxes' own time."""

CREATE = Use("mcp__box__box_create", {"name": "claude"})
HELLO = "echo hello from $(hostname) | tee /workspace/hello.txt"
RUN = Use("mcp__box__shell_run", {"command": HELLO, "box": "claude"})
READ = Use("mcp__box__file_read", {"path": "/workspace/hello.txt", "box": "claude"})

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


def converse(model: ScriptedModel, config: Path) -> list[dict[str, Any]]:
    """Let Claude Code answer one prompt with the scripted model; what it printed."""
    home = config.parent / "home"
    home.mkdir()
    command = [str(node.claude_code()), "-p", "Say hello from a box.", "--model", MODEL]
    command += ["--output-format", "stream-json", "--verbose"]
    command += ["--permission-mode", "bypassPermissions"]
    command += ["--strict-mcp-config", "--mcp-config", str(config)]
    done = subprocess.run(
        command,
        env=environment(model, home),
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines()]


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
