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


Event = BoxAssigned | BoxMoved | NetworkChanged | ActFailed


class Hook(Protocol):
    """A listener. It must return quickly and raise nothing."""

    def __call__(self, event: Event, /) -> None:
        """Takes notice of `event`."""
        ...
