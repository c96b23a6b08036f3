"""Runs: what a coding agent in a box was told to do, and how that went; pure.

A run has one leg or more: a process in its box, and another one where the first's answer was not
what was asked for. Its events are what these print; only what can't be found there is kept.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NewType

from box_mcp.domain.models import Tokens
from box_mcp.domain.names import BoxId, Principal

RunId = NewType("RunId", str)

KEY_PREFIX = "box-mcp-"
"""How the keys of runs begin. They open nothing: they tell the gateway whose a request is."""

_ALPHABET = string.ascii_lowercase + string.digits
_ID = re.compile(r"run-[a-z0-9]{8}")


def mint_run_id() -> RunId:
    """A new id: ``run-`` and eight random characters."""
    return RunId("run-" + "".join(secrets.choice(_ALPHABET) for _ in range(8)))


def mint_key() -> str:
    """What the requests of one run bear instead of a key."""
    return KEY_PREFIX + secrets.token_hex(16)


def is_run_id(text: str) -> bool:
    """Whether `text` has the form of a run's id."""
    return _ID.fullmatch(text) is not None


class Ending(StrEnum):
    """How a run ended."""

    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed out"
    OVER_BUDGET = "over budget"
    LOST = "lost"
    """Its box or its processes went away under it."""


@dataclass(frozen=True)
class Run:
    """One run; times in seconds since the epoch, costs in US dollars.

    `legs` are the processes in its box so far, the present one last; none before it has started.
    `session` is what its harness calls the conversation. `schema` is what the answer must fit.
    `title` is the beginning of what was asked. `limits_turns` tells that its harness heeds
    `max_turns` by itself. `version` grows with each change.
    """

    id: RunId
    principal: Principal
    box: BoxId
    key: str
    harness: str
    began: float
    model: str = ""
    path: str = ""
    title: str = ""
    schema: Mapping[str, Any] | None = None
    max_cost: float | None = None
    max_turns: int | None = None
    limits_turns: bool = False
    timeout: float = 3600.0
    scratch: str = ""
    """A directory in the box for what its harness needs and leaves."""
    legs: tuple[str, ...] = ()
    starting: float | None = None
    """Since when another leg is being started."""
    session: str = ""
    ended: float | None = None
    ending: Ending | None = None
    reason: str = ""
    version: int = 0

    def end(self, ending: Ending, now: float, reason: str = "") -> Run:
        """The run, over."""
        return replace(self, ended=now, ending=ending, reason=reason)


@dataclass(frozen=True)
class Use:
    """One answer of a model: `run` had the key, `charged` are those whose budgets it counts for.

    `cost` is None where the model has no price. `day` is a date in UTC, such as ``2026-01-31``.
    """

    principal: Principal
    day: str
    model: str
    tokens: Tokens
    cost: float | None
    run: RunId | None = None
    charged: tuple[RunId, ...] = ()


@dataclass(frozen=True)
class Usage:
    """What answers of one model cost together; `cost` is None where the model has no price."""

    model: str
    answers: int
    tokens: Tokens
    cost: float | None
