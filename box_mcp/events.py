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
    """A box came from one state to another; `principal` is empty for a spare."""

    box: str
    before: str
    after: str
    reason: str
    principal: str = ""


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


@dataclass(frozen=True)
class PortUsed:
    """An exposed port was asked over HTTP: for the first time, or `requests` times since told last.

    `token` names the token that the last of them came by, or that its cookie was given for.
    """

    box: str
    principal: str
    port: int
    token: str
    requests: int


@dataclass(frozen=True)
class BoxClaimed:
    """A call got hold of a box, which had to be made or woken for it unless `was` is running.

    `seconds` is how long it waited.
    """

    box: str
    principal: str
    was: str
    seconds: float


@dataclass(frozen=True)
class BoxAsked:
    """A box's daemon answered a request; `seconds` is from asking to the end of the answer.

    `outcome` is ``ok``, the code of its refusal, ``lost`` when the box went away, or ``left`` when
    nobody waited for the end.
    """

    box: str
    request: str
    outcome: str
    seconds: float


@dataclass(frozen=True)
class CallEnded:
    """A request of MCP was answered.

    `tool` is the tool's name where `method` calls one, else the URI or the id that it was about.
    `boxes` are those that it got hold of. `arguments` is a digest of what it was given, never the
    text itself. `outcome` is ``ok``, ``asked`` (the person first, and nothing was done), ``error``
    (a tool's), ``refused`` (not permitted, or too often), ``invalid`` (no request that there is),
    ``failed`` (a mistake of ours) or ``cancelled``.
    `error` names the error's class, without its words. `token` names the token.
    """

    principal: str
    token: str
    method: str
    tool: str
    boxes: tuple[str, ...]
    arguments: str
    outcome: str
    error: str
    seconds: float


@dataclass(frozen=True)
class RequestRefused:
    """A request over HTTP was not let in: `status` and `why`, from the address `client`."""

    client: str
    status: int
    why: str


Event = (
    BoxAssigned
    | BoxMoved
    | NetworkChanged
    | ActFailed
    | RouteUsed
    | ModelUsed
    | PortUsed
    | BoxClaimed
    | BoxAsked
    | CallEnded
    | RequestRefused
)


class Hook(Protocol):
    """A listener. It must return quickly and raise nothing."""

    def __call__(self, event: Event, /) -> None:
        """Takes notice of `event`."""
        ...
