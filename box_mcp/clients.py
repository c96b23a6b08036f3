"""Ready-made configurations: how each MCP client is told to start box_mcp.

`configs/clients/` holds the same texts for a `box-mcp` on the PATH; a test holds them together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

NAME = "box"
TOOL_TIMEOUT = 120  # s; our calls return after 45, Codex gives up after 60 by default


def claude_desktop(program: str) -> str:
    """For ``claude_desktop_config.json``. One process serves all its chats: hence the session."""
    server = {"command": program, "args": ["serve", "--session", "claude-desktop"]}
    return _json({"mcpServers": {NAME: server}})


def claude_code(program: str) -> str:
    """For ``.mcp.json`` in a project, or ``claude --mcp-config``."""
    return _json({"mcpServers": {NAME: {"type": "stdio", "command": program, "args": ["serve"]}}})


def claude_code_command(program: str) -> str:
    """The same by Claude Code's command line."""
    return f"claude mcp add --scope user {NAME} -- {program} serve"


def codex(program: str) -> str:
    """For ``~/.codex/config.toml``."""
    return (
        f"[mcp_servers.{NAME}]\n"
        f"command = {json.dumps(program)}\n"
        'args = ["serve"]\n'
        f"tool_timeout_sec = {TOOL_TIMEOUT}\n"
    )


def cursor(program: str) -> str:
    """For ``.cursor/mcp.json`` in a project, or ``~/.cursor/mcp.json``."""
    return _json({"mcpServers": {NAME: {"command": program, "args": ["serve"]}}})


def vscode(program: str) -> str:
    """For ``.vscode/mcp.json`` in a workspace."""
    return _json({"servers": {NAME: {"type": "stdio", "command": program, "args": ["serve"]}}})


FILES: Mapping[str, Callable[[str], str]] = {
    "claude-desktop.json": claude_desktop,
    "claude-code.json": claude_code,
    "codex.toml": codex,
    "cursor.json": cursor,
    "vscode.json": vscode,
}
"""The files in `configs/clients/`."""


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"
