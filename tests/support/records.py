"""What boxd tells of a command, as tests need it."""

from __future__ import annotations

from typing import Any

from box_mcp.capabilities.shell import RunRecord

ENDED: dict[str, Any] = {
    "id": "p1",
    "command": "true",
    "session": None,
    "fresh": False,
    "over": False,
    "terminal": None,
    "started": 1.5e9,
    "running": False,
    "left": 0,
    "exit": 0,
    "signal": None,
    "cause": None,
    "seconds": 1.5,
    "cpu": 0.1,
    "peak": 1024,
    "printed": 10,
    "logged": 10,
    "dropped": 0,
    "log": "/var/log/box_mcp/p1.log",
}
"""A command that ended well."""


def record(**changes: object) -> RunRecord:
    """The same with `changes`."""
    return RunRecord.model_validate({**ENDED, **changes})
