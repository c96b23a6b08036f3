"""Writes events to Python's logging, which goes to stderr."""

from __future__ import annotations

import logging

from box_mcp.events import (
    ActFailed,
    BoxAssigned,
    BoxMoved,
    Event,
    ModelUsed,
    NetworkChanged,
    RouteUsed,
)

logger = logging.getLogger("box_mcp")


def log_event(event: Event) -> None:
    """One line an event."""
    match event:
        case BoxAssigned(box, principal):
            logger.info("%s: now of %s", box, principal)
        case BoxMoved(box, before, after, reason):
            logger.info("%s: %s -> %s%s", box, before, after, f" ({reason})" if reason else "")
        case NetworkChanged(box):
            logger.info("%s: another network policy", box)
        case RouteUsed() | ModelUsed():
            logger.info(
                "%s: %s %s by route %s: %d%s",
                event.box,
                event.method,
                event.path,
                event.route,
                event.status,
                f" ({event.refused})" if event.refused else "",
            )
        case ActFailed(box, act, error):
            logger.warning("%s: could not %s: %s", box, act, error)
