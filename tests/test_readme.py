"""README's commands do what it says, and its links lead somewhere."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from box_mcp import clients
from box_mcp.settings import load
from tests.support import node

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.compile(r"^```(\w+)\n(.+?)^```", re.MULTILINE | re.DOTALL)
LINKS = re.compile(r"\]\(([^)#:]+)\)")
COMMANDS = [
    line.split("  #")[0].strip()
    for language, block in BLOCKS.findall(README)
    if language == "bash"
    for line in block.splitlines()
]
RUN_TIMEOUT = 240.0  # s; the longest sets everything up, which a second time takes ten

pytestmark = pytest.mark.timeout(RUN_TIMEOUT + node.INSTALL_TIMEOUT)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_succeeds(
    command: str, tmp_path: Path, server_env: dict[str, str]
) -> None:
    programs = [Path(sys.executable).parent, node.claude_code().parent]
    path = os.pathsep.join([*map(str, programs), os.environ["PATH"]])
    claude = {"CLAUDE_CONFIG_DIR": str(tmp_path), "DISABLE_AUTOUPDATER": "1", "IS_SANDBOX": "1"}
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, **server_env, **claude, "PATH": path},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.stdout.strip()


def test_the_readme_has_commands_to_run() -> None:
    assert {"bash scripts/quickstart.sh", "box-mcp doctor"} <= set(COMMANDS)


def test_the_configuration_in_the_readme_is_the_one_for_claude_desktop() -> None:
    (block,) = [block for language, block in BLOCKS.findall(README) if language == "json"]
    assert json.loads(block) == json.loads(clients.claude_desktop("box-mcp"))


def test_the_settings_in_the_readme_are_ones(tmp_path: Path) -> None:
    (block,) = [block for language, block in BLOCKS.findall(README) if language == "toml"]
    path = tmp_path / "settings.toml"
    path.write_text(block)
    (route,) = load(path).credential_routes()
    assert str(route) == "github: write me/*, team/app at https://github.com"


def test_the_readmes_links_lead_to_files() -> None:
    assert [link for link in LINKS.findall(README) if not (ROOT / link).exists()] == []
