"""What callers may want of agents, and where; and what comes of that, before anything is done."""

from __future__ import annotations

import posixpath
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from box_mcp.capabilities.files import Files
from box_mcp.capabilities.harnesses.base import Access, Harness
from box_mcp.capabilities.shell import Shell
from box_mcp.domain.box import Box
from box_mcp.domain.models import KEY_VARIABLES, Prices
from box_mcp.domain.runs import Run
from box_mcp.errors import InvalidArgument, NoModel, NoPrice
from box_mcp.gateway.models.service import Models

OnAct = Callable[[str, int], Awaitable[None]]
"""Called with what the agent does right now, and with a number that grows; every 15 s at least."""


async def unheard(_act: str, _count: int) -> None:
    """For who does not want to hear of acts."""


@dataclass(frozen=True)
class Place:
    """A claimed box with what can be done in it. Who `only_looks` starts nothing there."""

    box: Box
    shell: Shell
    files: Files
    only_looks: bool = False


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
    """What the settings say where neither call nor box do; seconds, US dollars.

    `versions` are those of harnesses that are installed where they are missing, by name.
    """

    harness: str
    timeout: float
    max_cost: float | None = None
    job_awake_max: float = 3600.0
    versions: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Conversation:
    """What goes on: its name, and the run that it was part of, where that is known."""

    session: str = ""
    run: Run | None = None


@dataclass(frozen=True)
class Choice:
    """Who does it, with which model, and where."""

    harness: Harness
    model: str
    path: str

    @classmethod
    def of(
        cls,
        wish: Wish,
        before: Conversation,
        box: Box,
        harnesses: Mapping[str, Harness],
        usual: Usual,
    ) -> Choice:
        """The call's over the conversation's over the box's over the settings'.

        Raises InvalidArgument for a harness that there is not, or not in this conversation.
        """
        spec, earlier = box.spec, before.run
        at_home = spec.harness or usual.harness
        name = wish.harness or (earlier.harness if earlier else at_home)
        if earlier and name != earlier.harness:
            raise InvalidArgument("harness", f"can't go on where {earlier.harness} began")
        if (harness := harnesses.get(name)) is None:
            raise InvalidArgument("harness", f"is {name!r}: none of {', '.join(harnesses)}")
        model = wish.model or (earlier.model if earlier else "")
        if not model and name == at_home:  # another would not know it
            model = spec.model
        path = wish.path or (earlier.path if earlier else "") or spec.cwd
        return cls(harness, model, path)

    def access(self, models: Models, box: Box, key: str) -> Access | None:
        """How it reaches its model; None where it needs none of ours. Raises NoModel."""
        if not self.harness.dialects:
            return None
        route = models.choose(box, self.harness.dialects, self.model)
        if route is None:
            dialects = self.harness.dialects
            variables = [KEY_VARIABLES[one] for one in dialects if one in KEY_VARIABLES]
            raise NoModel(self.harness.name, dialects, self.model, variables)
        return Access(route.dialect, route.base_url, key)

    def check_budget(self, max_cost: float | None, prices: Prices) -> None:
        """Raises NoPrice for a model that can't be held to it."""
        if max_cost is not None and self.model and prices.of(self.model) is None:
            raise NoPrice(self.model)

    def within(self, path: str) -> str:
        """A path that a caller means from where it works on."""
        return path if path.startswith("~") else posixpath.join(self.path, path)
