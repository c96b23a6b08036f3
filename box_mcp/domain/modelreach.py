"""What models' servers would reach for whoever asks: tools that they run, and addresses; pure.

They search the web, fetch pages and talk to MCP servers. For a box without the network that would
be a way out, and in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from box_mcp.domain.routes import Forbidden

OWN_TOOLS = frozenset(
    ("custom", "function", "namespace", "tool_search", "local_shell", "apply_patch")
)
"""Tools that are run by who asks, by their types; those below have versions."""

OWN_TOOLS_WITH_VERSIONS = ("bash_", "text_editor_", "memory_", "computer_", "tool_search_tool_")

_REACHING = ("mcp_servers", "web_search_options", "plugins", "prompt")
_WITH_ADDRESS = ("image_url", "file_url", "url")
_PARTS = frozenset(("url", "image_url", "input_image", "input_file", "computer_screenshot"))


def has_address(part: Mapping[str, Any]) -> bool:
    """Whether this is a part of a prompt that a server has to fetch from somewhere."""
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in _PARTS:
        return False
    values = [part.get(name) for name in _WITH_ADDRESS]
    inner = [cast("dict[str, Any]", one).get("url") for one in values if isinstance(one, dict)]
    return any(isinstance(one, str) and not one.startswith("data:") for one in [*values, *inner])


def confined(said: Mapping[str, Any]) -> dict[str, Any]:
    """A request without the tools that its server runs; raises Forbidden where it needs more."""
    for name in _REACHING:
        if said.get(name):
            raise Forbidden(f"{name!r} would have a server reach what this box's network does not")
    tools = said.get("tools")
    if not isinstance(tools, list):
        return dict(said)
    kept = [tool for tool in cast("list[Any]", tools) if _is_own(tool)]
    return {**said, "tools": kept}


def _is_own(tool: object) -> bool:
    kind = cast("dict[str, Any]", tool).get("type") if isinstance(tool, dict) else None
    if not isinstance(kind, str):
        return kind is None and isinstance(tool, dict)
    return kind in OWN_TOOLS or kind.startswith(OWN_TOOLS_WITH_VERSIONS)
