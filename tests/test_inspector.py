"""MCP Inspector, an independent client, lists and calls the server's tools in both eras."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import node

pytestmark = pytest.mark.timeout(node.INSTALL_TIMEOUT + 120)  # the first run installs the client

RUN_TIMEOUT = 90.0
"""Seconds for one run of the Inspector; it takes about 2, and a first call creates a box."""

SCHEMA_COMPLAINT = re.compile(r"\d+ errors?, \d+ warnings? across")
"""The last line of `--strict`'s report, printed only when there is something to report."""

Inspect = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture(params=["legacy", "modern"])
def inspect(
    request: pytest.FixtureRequest,
    server_command: list[str],
    server_env: dict[str, str],
    tmp_path: Path,
) -> Inspect:
    """Run the Inspector's command line in one protocol era: its result and its stderr."""
    era: str = request.param
    program, *arguments = server_command
    server = {"command": program, "args": arguments, "env": server_env}
    config = tmp_path / "mcp.json"
    config.write_text(json.dumps({"mcpServers": {"box": server}}))
    base = [*node.inspector(), "--cli", "--config", str(config), "--server", "box"]
    base += ["--protocol-era", era, "--format", "json"]

    def run(*options: str) -> tuple[dict[str, Any], str]:
        done = subprocess.run(
            [*base, *options],
            env={**node.node_environment(), "MCP_INSPECTOR_SECRET_STORE": "memory"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)["result"], done.stderr

    return run


def test_the_inspector_lists_every_tool_and_has_no_complaint_about_a_schema(
    inspect: Inspect,
) -> None:
    result, stderr = inspect("--method", "tools/list", "--strict")

    tools: list[dict[str, Any]] = result["tools"]
    assert {"box_create", "shell_run", "file_read"} <= {tool["name"] for tool in tools}
    assert [tool["name"] for tool in tools if not tool.get("description")] == []
    assert [tool["name"] for tool in tools if tool["inputSchema"].get("type") != "object"] == []
    assert SCHEMA_COMPLAINT.search(stderr) is None, stderr


def test_the_inspector_runs_a_command_in_a_box_and_gets_its_output(inspect: Inspect) -> None:
    call = ["--method", "tools/call", "--tool-name", "shell_run"]
    result, _ = inspect(*call, "--tool-arg", "command=echo hi from $((6 * 7))")

    assert not result.get("isError", False), result
    (content,) = result["content"]
    assert content["type"] == "text"
    assert "hi from 42" in content["text"]
