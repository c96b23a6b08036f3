"""How a box may change: one table, and nothing else moves state.

        START              FREEZE              STOP
created ─────▶ running ───────────▶ frozen ───────────▶ stopped
                │  ▲ ◀──────────────  │                  │  │
                │  │       THAW                          │  │
                │  └─────────────── START ───────────────┘  │
                └────────────────── STOP ──────────────────▶┘
any of these ── LOSE ──▶ lost          any, lost too ── DELETE ──▶ deleted

`frozen` and `stopped` are the two depths of what callers know as ``paused``: frozen keeps
processes and memory and uses no CPU, stopped keeps the files only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Self

from box_mcp.domain.names import BoxId, BoxName, Principal
from box_mcp.domain.network import Mode, Network
from box_mcp.errors import IllegalMove


class State(StrEnum):
    """Where a box is on its way; see the module's picture."""

    CREATED = "created"
    RUNNING = "running"
    FROZEN = "frozen"
    STOPPED = "stopped"
    LOST = "lost"
    DELETED = "deleted"

    @property
    def public(self) -> str:
        """The word that callers know."""
        return "paused" if self in (State.FROZEN, State.STOPPED) else self.value


class Move(StrEnum):
    """What can be done to a box."""

    START = "start"
    FREEZE = "freeze"
    THAW = "thaw"
    STOP = "stop"
    LOSE = "lose"
    DELETE = "delete"


_ALIVE = (State.CREATED, State.RUNNING, State.FROZEN, State.STOPPED)

TABLE: Mapping[tuple[State, Move], State] = {
    (State.CREATED, Move.START): State.RUNNING,
    (State.STOPPED, Move.START): State.RUNNING,
    (State.RUNNING, Move.FREEZE): State.FROZEN,
    (State.FROZEN, Move.THAW): State.RUNNING,
    (State.RUNNING, Move.STOP): State.STOPPED,
    (State.FROZEN, Move.STOP): State.STOPPED,
    **{(state, Move.LOSE): State.LOST for state in _ALIVE},
    **{(state, Move.DELETE): State.DELETED for state in (*_ALIVE, State.LOST)},
}


@dataclass(frozen=True)
class BoxSpec:
    """What a box is made from; fixed at its creation.

    `memory` is in bytes; `cpus` in cores; `pids` limits the number of processes.
    """

    image: str
    cpus: float
    memory: int
    size: str = "custom"
    pids: int = 1024
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    sudo: bool = True
    orphan_after: float = 600.0  # s without any server, after which the box stops itself
    cwd: str = ""
    """Where commands start when they do not say; the workspace by default."""
    setup: str = ""
    """A shell command that is run once, when the box was made."""
    network: Network = field(default_factory=Network)
    """What it may reach when it was made; `Box.network` tells what it may by now."""
    routes: tuple[str, ...] | None = None
    """The credential routes that it may use, by name; None for all that its owner may."""
    harness: str = ""
    """The coding agent that works in it unless a call names another; empty for the settings'."""
    model: str = ""
    """The model that this agent has; empty for the settings'."""

    def record(self) -> dict[str, Any]:
        """Plain values, for labels and files; `of` reads them."""
        return {**vars(self), "env": dict(self.env), "network": self.network.record()}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """What `record` wrote, perhaps by another version: fields not known here are left out."""
        known = {one.name for one in fields(cls)}
        values = {name: value for name, value in record.items() if name in known}
        values["network"] = Network.of(record.get("network", Mode.FULL))
        if (routes := record.get("routes")) is not None:
            values["routes"] = tuple(routes)
        return cls(**values)


@dataclass(frozen=True)
class Terms:
    """What is wanted for a box, beyond what it is made from."""

    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    ttl: float | None = None
    """s unused after which it is deleted, instead of the policy's ladder; None for that."""
    keep_awake: bool = False
    """Whether idleness never pauses it."""
    network: Network | None = None
    """What it may reach, where that was changed since it was made."""

    def record(self) -> dict[str, Any]:
        """Plain values; `of` reads them."""
        network = self.network and self.network.record()
        return {**vars(self), "labels": dict(self.labels), "network": network}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """What `record` wrote, perhaps by an earlier version."""
        values = dict(record)
        if (network := record.get("network")) is not None:
            values["network"] = Network.of(network)
        return cls(**values)


@dataclass(frozen=True)
class Box:
    """All that is remembered of a box. `principal` is None for a spare that nobody has yet.

    Times are seconds since the epoch. `since` is when it came to its state, `reason` why.
    """

    id: BoxId
    spec: BoxSpec
    created: float
    state: State = State.CREATED
    principal: Principal | None = None
    name: BoxName | None = None
    used: float = 0.0
    since: float = 0.0
    reason: str = ""
    terms: Terms = field(default_factory=Terms)

    @property
    def network(self) -> Network:
        """What it may reach."""
        return self.terms.network or self.spec.network

    def moved(self, move: Move, now: float, reason: str = "") -> Box:
        """The box after `move`; raises IllegalMove when the table has no such way.

        `since` always grows, though clocks may stand or go back: of two records of a box the one
        with the later `since` is right.
        """
        state = TABLE.get((self.state, move))
        if state is None:
            raise IllegalMove(self.id, move.value, self.state.value)
        return replace(self.noted(reason, now), state=state)

    def noted(self, reason: str, now: float) -> Box:
        """The box with another word on how it is, which makes this the newer record."""
        return replace(self, since=max(now, math.nextafter(self.since, math.inf)), reason=reason)

    def caught_up(self, other: Box) -> Box:
        """This record after reading `other`, what another server wrote of the same box.

        Nothing moves here: the newer of the two states has already come to be.
        """
        newer = other if other.since > self.since else self
        owned = other if self.principal is None else self  # a spare may have become somebody's
        changed = other.principal is not None and other.since >= self.since
        return replace(
            owned,
            terms=other.terms if changed else owned.terms,
            state=newer.state,
            since=newer.since,
            reason=newer.reason,
            used=max(self.used, other.used),
        )

    def touched(self, now: float) -> Box:
        """The box after a use; the time of use never goes back."""
        return replace(self, used=max(self.used, now))

    def assigned(self, principal: Principal, name: BoxName | None, now: float, terms: Terms) -> Box:
        """The box, now somebody's."""
        return replace(self, principal=principal, name=name, used=now, terms=terms)


def way(start: State, goal: State) -> tuple[Move, ...]:
    """The fewest moves from `start` to `goal`; raises ValueError when there is no way."""
    ways: dict[State, tuple[Move, ...]] = {start: ()}
    todo = [start]
    for state in todo:
        for (before, move), after in TABLE.items():
            if before is state and after not in ways:
                ways[after] = (*ways[state], move)
                todo.append(after)
    if goal not in ways:
        raise ValueError(f"no way leads from {start} to {goal}")
    return ways[goal]
