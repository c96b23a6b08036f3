"""Coding agents in boxes: started, followed, told of, ended.

Nothing of a run is held here: its row is in the ledger, its events are in the box's log of its
process. So it outlives calls, connections and servers, and whoever looks at it takes it on: a
process that ended is told as an ending, an answer that breaks its schema is mended by another leg.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from box_mcp.capabilities.files import Files
from box_mcp.capabilities.harnesses.base import Event, FileChange, Harness
from box_mcp.capabilities.shell import Shell
from box_mcp.domain.box import Box
from box_mcp.domain.models import Prices, Tokens
from box_mcp.domain.names import Principal
from box_mcp.domain.runs import Run, Usage
from box_mcp.gateway.models.service import Models
from box_mcp.ledger import Ledger

OnAct = Callable[[str, int], Awaitable[None]]
"""Called with what the agent does right now, and with a number that grows; every 15 s at least."""


async def unheard(_act: str, _count: int) -> None:
    """For who does not want to hear of acts."""


@dataclass(frozen=True)
class Place:
    """A claimed box with what can be done in it."""

    box: Box
    shell: Shell
    files: Files


@dataclass(frozen=True)
class Wish:
    """What a caller wants done; None for what the box, or else the settings, say.

    `resume` is a run's id or what a harness calls a conversation: that one goes on. `files` are
    texts by path (from `path` on) that are written first. The rest is as in `Assignment`.
    """

    prompt: str
    harness: str | None = None
    model: str | None = None
    path: str | None = None
    resume: str | None = None
    max_turns: int | None = None
    max_cost: float | None = None
    timeout: float | None = None
    schema: Mapping[str, Any] | None = None
    system: str = ""
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    servers: Mapping[str, Any] = field(default_factory=dict[str, Any])
    skills: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Usual:
    """What the settings say where neither call nor box do; seconds, US dollars."""

    harness: str
    timeout: float
    max_cost: float | None = None
    job_awake_max: float = 3600.0


@dataclass(frozen=True)
class Report:
    """A run so far, or all of it: `run.ending` is None while it goes on.

    `text` is its last word, or what it said last; `act` is what it does, or did last. `answer` is
    what it made for the schema, `violations` tell what is wrong with that. Of many files and
    commands the first ones are told, `more_files` and `more_commands` count the others. `cost`
    (US dollars) is None where a model has no price; usage is what the gateway counted. `cursor` is
    behind the newest event.
    """

    run: Run
    act: str = ""
    text: str = ""
    answer: Any = None
    violations: Sequence[str] = ()
    files: Sequence[FileChange] = ()
    more_files: int = 0
    commands: Sequence[str] = ()
    more_commands: int = 0
    turns: int | None = None
    usage: Sequence[Usage] = ()
    tokens: Tokens = field(default_factory=Tokens)
    cost: float | None = 0.0
    seconds: float = 0.0
    cursor: int = 0


@dataclass(frozen=True)
class Look:
    """Some events of a run and how it is. `cursor` is behind these; `more` are there already."""

    report: Report
    events: Sequence[Event]
    cursor: int
    more: bool


class Agents:
    """Coding agents, by name, and the models that they have.

    All methods that take a `Place` raise what Shell and Files do, and StoreUnusable.
    """

    def __init__(
        self,
        ledger: Ledger,
        models: Models,
        harnesses: Mapping[str, Harness],
        usual: Usual,
        prices: Prices,
    ) -> None:
        self._ledger = ledger
        self._models = models
        self._harnesses = harnesses
        self._usual = usual
        self._prices = prices

    async def find(self, principal: Principal, ref: str) -> Run:
        """The principal's run of this id; raises RunNotFound."""
        raise NotImplementedError

    async def start(self, place: Place, wish: Wish, on_act: OnAct = unheard) -> Run:
        """Starts an agent; returns when its process runs. Who is cancelled ends it again.

        Raises InvalidArgument, RunNotFound, NoModel, NoPrice and HarnessMissing.
        """
        raise NotImplementedError

    async def follow(
        self,
        place: Place,
        run: Run,
        *,
        seconds: float,
        on_act: OnAct = unheard,
        attended: bool = False,
    ) -> Report:
        """How the run is when it has ended, or after `seconds`.

        Who is cancelled ends it, if `attended`; what it did stays.
        """
        raise NotImplementedError

    async def look(
        self, place: Place, run: Run, cursor: int = 0, *, wait: float = 0.0, limit: int = 100
    ) -> Look:
        """At most `limit` events from `cursor` (of another look, else 0) on.

        Waits up to `wait` s for one, or for the end. Raises InvalidArgument for no cursor of ours.
        """
        raise NotImplementedError

    async def report(self, place: Place, run: Run) -> Report:
        """How the run is now."""
        raise NotImplementedError

    async def cancel(self, place: Place, run: Run) -> Report:
        """Ends a run with its whole process tree; one that has ended is left as it is."""
        raise NotImplementedError

    async def lost(self, run: Run, why: str) -> Report:
        """How a run is whose box is gone, for `why`; it has ended by that."""
        raise NotImplementedError
