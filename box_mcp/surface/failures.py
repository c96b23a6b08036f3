"""Domain errors become what a model reads, here and nowhere else."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from mcp.server.mcpserver.exceptions import ToolError

from box_mcp.errors import BoxError

P = ParamSpec("P")
R = TypeVar("R")


def explained(tool: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """`tool` with every BoxError turned into a ToolError that says what to do next.

    The SDK hides the text of any other exception and logs it as a crash.
    """

    @functools.wraps(tool)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await tool(*args, **kwargs)
        except BoxError as error:
            raise ToolError(error.explain()) from error

    return wrapper
