"""What happened, as frozen records, and the hook that listeners implement.

The pool emits; `observe` listens; `app` joins the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class BoxAssigned:
    """A box came to be somebody's."""

    box: str
    principal: str


@dataclass(frozen=True)
class BoxMoved:
    """A box came from one state to another."""

    box: str
    before: str
    after: str
    reason: str


@dataclass(frozen=True)
class NetworkChanged:
    """A box may reach more or less than before."""

    box: str


@dataclass(frozen=True)
class ActFailed:
    """The pool could not do `act` to a box; it will try again when there is need."""

    box: str
    act: str
    error: str


@dataclass(frozen=True)
class RouteUsed:
    """A box asked a credential route for something, and `status` (of HTTP) is what it was told.

    Or a tool asked the route's forge for it: `method` is ``read``, ``propose`` or ``report`` then,
    and `path` a repository.

    `path` is what it asked of the upstream, without a query. `refused` is the rule that forbade it,
    or what went wrong; empty when the upstream answered. `asked` tells whether that may have heard
    of it at all. `sent` and `received` are bytes of the bodies, seen from the box.
    """

    box: str
    principal: str
    route: str
    method: str
    path: str
    status: int
    sent: int = 0
    received: int = 0
    seconds: float = 0.0
    refused: str = ""
    asked: bool = True


@dataclass(frozen=True)
class ModelUsed:
    """A box asked for something of models, for the run that had the key; else as `RouteUsed`.

    What it cost is counted in tokens, and in US dollars where the model has a price.
    """

    box: str
    principal: str
    route: str
    method: str
    path: str
    status: int
    model: str = ""
    run: str = ""
    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    cost: float | None = None
    sent: int = 0
    received: int = 0
    seconds: float = 0.0
    refused: str = ""
    asked: bool = True


Event = BoxAssigned | BoxMoved | NetworkChanged | ActFailed | RouteUsed | ModelUsed


class Hook(Protocol):
    """A listener. It must return quickly and raise nothing."""

    def __call__(self, event: Event, /) -> None:
        """Takes notice of `event`."""
        ...
