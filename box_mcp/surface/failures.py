"""Domain errors, and arguments that are none, become what a model reads: here and nowhere else."""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, ParamSpec, TypeVar

from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, TextContent
from pydantic import ValidationError

from box_mcp.errors import BoxError
from box_mcp.surface.requests import failed

P = ParamSpec("P")
R = TypeVar("R")

MAX_TEXT = 4000  # characters of an error; some quote what came out of a box
MAX_QUOTE = 80  # characters of a wrong argument that are repeated to who gave it
MAX_FAULTS = 10  # of one call's arguments


def explained(tool: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """`tool` with every BoxError turned into a ToolError that says what to do next.

    The SDK hides the text of any other exception and logs it as a crash.
    """

    @functools.wraps(tool)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await tool(*args, **kwargs)
        except BoxError as error:
            failed(error)
            raise ToolError(legible(error.explain())) from error

    return wrapper


def as_result(error: BoxError) -> CallToolResult:
    """What the call of a tool is answered that is refused before it comes to the tool."""
    return CallToolResult(content=[TextContent(text=legible(error.explain()))], is_error=True)


def legible(text: str) -> str:
    """`text` as a client may show it: bounded, without what controls terminals, valid Unicode."""
    text = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 4]} ..."


def complaint(tool: str, known: Sequence[str], error: ValidationError) -> str:
    """Which arguments of a call were wrong, and how; `known` are the tool's own."""
    faults = error.errors(include_url=False, include_context=False)
    lines = [_fault(known, fault["loc"], fault["type"], fault) for fault in faults[:MAX_FAULTS]]
    if len(faults) > MAX_FAULTS:
        lines.append(f"and {len(faults) - MAX_FAULTS} faults more")
    return legible(
        f"{tool} was not run, since its arguments are wrong: {'; '.join(lines)}. "
        f"It takes: {', '.join(known)}."
    )


def _fault(known: Iterable[str], place: tuple[int | str, ...], kind: str, fault: Any) -> str:
    name = ".".join(str(part) for part in place)
    if kind == "missing":
        return f"`{name}` is missing"
    if kind == "extra_forbidden":
        near = get_close_matches(name, known, n=1)
        hint = f" (did you mean `{near[0]}`?)" if near else ""
        return f"there is no argument `{name[:MAX_QUOTE]}`{hint}"
    if kind == "sequence_str":
        message = "should be a list"
    else:
        message = str(fault["msg"]).removeprefix("Input ")
    return f"`{name[:MAX_QUOTE]}` {message}, but was {_quoted(fault['input'])}"


def _quoted(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= MAX_QUOTE else f"{text[:MAX_QUOTE]} ..."
