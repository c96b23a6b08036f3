"""What a scripted model does: acts, the answers that they make up, and how answers go wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from box_mcp.domain.models import Tokens

JsonObject = dict[str, Any]

PATIENCE = 60.0  # s, after which a gate that nobody opened lets through


@dataclass(frozen=True)
class Say:
    """A text."""

    text: str


@dataclass(frozen=True)
class Think:
    """A thought that is shown."""

    text: str


@dataclass(frozen=True)
class Use:
    """One tool called, by the name under which the client offers it.

    The input is a text for Codex's tools that take one, such as ``apply_patch``.
    """

    tool: str
    input: JsonObject | str


@dataclass(frozen=True)
class Gate:
    """A place where an answer waits until the test opens it; what came before has been sent."""

    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        """Says that it is reached, and waits."""
        self.reached.set()
        self.opened.wait(PATIENCE)


FEW = Tokens(input=1, output=1)

Act = Say | Think | Use | Gate


@dataclass(frozen=True)
class Refuse:
    """An error in place of an answer; one that is not `final` is said to be worth another try."""

    status: int
    final: bool = False


@dataclass(frozen=True)
class Overload:
    """An answer that ends in the middle with the word that the server is overloaded."""


@dataclass(frozen=True)
class Cut:
    """An answer whose connection is closed in the middle."""


@dataclass(frozen=True)
class Garbage:
    """An answer that is no stream of events after its first one."""


Fault = Refuse | Overload | Cut | Garbage

ALWAYS = 1000
"""As often as anybody may try again: ``[Cut()] * ALWAYS``."""


@dataclass(frozen=True)
class Answer:
    """A whole turn: acts, and the tokens that they are said to have taken.

    Whoever asks for it gets `faults` first, one each time.
    """

    acts: Sequence[Act]
    tokens: Tokens = FEW
    faults: Sequence[Fault] = ()


Turn = Act | Answer | Callable[[list[JsonObject]], Act | Answer]
"""An answer, or its only act, or a function from the request's messages to one of these."""


@dataclass(frozen=True)
class ToolResult:
    """What a client reported back about one tool call."""

    text: str
    is_error: bool
