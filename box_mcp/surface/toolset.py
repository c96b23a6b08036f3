"""How tools are declared: a function, its annotations, and a lean schema."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from mcp.server.mcpserver.tools import Tool
from mcp_types import ToolAnnotations

from box_mcp.surface.failures import explained

R = TypeVar("R")

CORE = {"anthropic/alwaysLoad": True}
"""For tools whose schema Claude Code should have at hand from the first request on."""


class Toolset:
    """A group of tools."""

    def __init__(self) -> None:
        self.tools: list[Tool] = []

    def tool(
        self,
        *,
        reads: bool = False,
        destroys: bool = False,
        repeatable: bool = False,
        open_world: bool = False,
        core: bool = False,
        structured: bool = False,
    ) -> Callable[[Callable[..., Awaitable[R]]], Callable[..., Awaitable[R]]]:
        """Declares a tool. Its docstring is what models choose it by."""

        def declare(function: Callable[..., Awaitable[R]]) -> Callable[..., Awaitable[R]]:
            annotations = ToolAnnotations(
                read_only_hint=reads,
                destructive_hint=destroys,
                idempotent_hint=repeatable or reads,
                open_world_hint=open_world,
            )
            tool = Tool.from_function(
                explained(function),
                description=_unwrapped(function.__doc__ or ""),
                annotations=annotations,
                meta=CORE if core else None,
                structured_output=structured,
            )
            tool.parameters = without_titles(tool.parameters)
            if tool.fn_metadata.output_schema is not None:
                tool.fn_metadata.output_schema = without_titles(tool.fn_metadata.output_schema)
            self.tools.append(tool)
            return function

        return declare


def without_titles(schema: Any, *, names: bool = False) -> Any:
    """`schema` without pydantic's titles; `names`: its keys are names of properties."""
    if isinstance(schema, dict):
        items = cast("dict[str, Any]", schema)
        return {
            key: without_titles(value, names=key in ("properties", "$defs") and not names)
            for key, value in items.items()
            if names or key != "title"
        }
    if isinstance(schema, list):
        return [without_titles(value) for value in cast("list[Any]", schema)]
    return schema


def _unwrapped(docstring: str) -> str:
    """The docstring with its lines joined into paragraphs: line breaks cost tokens."""
    paragraphs = docstring.strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
