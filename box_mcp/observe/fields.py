"""What sinks write of an event: its name and its fields, none of them long."""

from __future__ import annotations

from typing import Any

from box_mcp.events import Event

MAX_TEXT = 500  # characters of one value


def fields(event: Event) -> dict[str, Any]:
    """The event as JSON takes it."""
    return {"event": type(event).__name__, **{k: _bounded(v) for k, v in vars(event).items()}}


def _bounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_bounded(one) for one in value]  # pyright: ignore[reportUnknownVariableType]
    return value[:MAX_TEXT] if isinstance(value, str) else value
