"""All harnesses that there are without the user's own."""

from __future__ import annotations

from collections.abc import Mapping

from box_mcp.capabilities.harnesses.base import Harness
from box_mcp.capabilities.harnesses.claude_code import ClaudeCode
from box_mcp.capabilities.harnesses.codex import Codex

KNOWN: Mapping[str, Harness] = {harness.name: harness for harness in (ClaudeCode(), Codex())}
