"""The ready-made client configurations start the server, read as each client reads its own."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from box_mcp import clients
from tests.support import node

CLIENTS = Path(__file__).parent.parent / "configs" / "clients"
PROGRAM_DIRECTORY = str(Path(sys.executable).parent)
CLI_TIMEOUT = 60.0  # s; a client's own start takes one or two


def servers_of(key: str) -> Callable[[str], dict[str, Any]]:
    return lambda text: json.loads(text)[key]


READERS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "claude-desktop.json": servers_of("mcpServers"),
    "claude-code.json": servers_of("mcpServers"),
    "codex.toml": lambda text: tomllib.loads(text)["mcp_servers"],
    "cursor.json": servers_of("mcpServers"),
    "vscode.json": servers_of("servers"),
}


def test_the_committed_files_are_what_box_mcp_itself_gives_out() -> None:
    assert {path.name: path.read_text() for path in CLIENTS.iterdir()} == {
        name: text("box-mcp") for name, text in clients.FILES.items()
    }


@pytest.mark.parametrize("name", READERS)
async def test_a_client_that_reads_the_file_gets_the_tools(
    name: str, server_env: dict[str, str]
) -> None:
    (server,) = READERS[name]((CLIENTS / name).read_text()).values()
    program = Path(PROGRAM_DIRECTORY) / str(server["command"])
    parameters = StdioServerParameters(command=str(program), args=server["args"], env=server_env)
    async with Client(parameters) as client:
        tools = {tool.name for tool in (await client.list_tools()).tools}
    assert {"shell_run", "file_read", "box_create"} <= tools


@pytest.mark.timeout(node.INSTALL_TIMEOUT + 120)
def test_claude_code_itself_connects_by_its_file(
    tmp_path: Path, server_env: dict[str, str]
) -> None:
    (tmp_path / ".mcp.json").write_text((CLIENTS / "claude-code.json").read_text())
    settings = tmp_path / ".claude" / "settings.local.json"
    settings.parent.mkdir()
    settings.write_text(json.dumps({"enableAllProjectMcpServers": True}))
    said = run([str(node.claude_code()), "mcp", "list"], tmp_path, server_env)
    assert "box: box-mcp serve" in said
    assert "Connected" in said


@pytest.mark.timeout(node.INSTALL_TIMEOUT + 120)
def test_codex_itself_understands_its_file(tmp_path: Path, server_env: dict[str, str]) -> None:
    (tmp_path / "config.toml").write_text((CLIENTS / "codex.toml").read_text())
    said = run([str(node.codex()), "mcp", "list", "--json"], tmp_path, server_env)
    (server,) = json.loads(said)
    assert (server["name"], server["enabled"]) == ("box", True)
    assert (server["transport"]["command"], server["transport"]["args"]) == ("box-mcp", ["serve"])
    assert server["tool_timeout_sec"] == clients.TOOL_TIMEOUT


def run(command: list[str], home: Path, server_env: Mapping[str, str]) -> str:
    """What a client prints, with nothing of this machine's own settings."""
    env = {
        **server_env,
        "HOME": str(home),
        "CODEX_HOME": str(home),
        "CLAUDE_CONFIG_DIR": str(home / ".claude-config"),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "IS_SANDBOX": "1",
        "PATH": os.pathsep.join([PROGRAM_DIRECTORY, os.environ["PATH"]]),
    }
    done = subprocess.run(
        command,
        env=env,
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CLI_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
