"""What takes the person's own yes, and how they are asked for it.

That is what is beyond the settings' ceiling, and what would lose work that is nowhere else. A tool
declares a parameter `Annotated[Consent, asks(resolver)]`. The resolver, which takes the tool's
arguments by name, returns `question(...)` or `warning(...)`; the SDK asks in the way of the
client's protocol and runs the tool with what came of it. Only a form that says yes is a yes: what
the client can't ask, and what the person declines or leaves alone, is refused.

From MCP 2026-07-28 on, what was asked comes back with the answer, sealed by the SDK for one tool,
its arguments and one principal; here it is seen to that it counts once.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

from mcp.server.mcpserver import AcceptedElicitation, Elicit, ElicitationResult, Resolve
from mcp.server.request_state import (
    AESGCMRequestStateCodec,
    InvalidRequestState,
    RequestStateSecurity,
)
from mcp_types.version import is_version_at_least
from pydantic import BaseModel, Field

from box_mcp.domain.names import LOCAL
from box_mcp.errors import InvalidArgument, NeedsConsent
from box_mcp.surface.failures import explained, legible
from box_mcp.surface.requests import grant
from box_mcp.surface.sessions import Ctx

MAX_ASKED = 20  # things of one question: a person should read them all
MAX_ITEM = 300  # characters of one; a rule has less, and no image's name has more
STATE_LIFE = 600.0  # s in which a question can be answered
MAX_OPENED = 10_000  # answers that are remembered, of all callers
IN_ONE_REQUEST = "2026-07-28"  # from this protocol on, asking takes no request of the server's own

REFUSED = "The user was asked and did not allow it: go on without it"
UNASKED = (
    "The user can't be asked for it here: tell them what you need and why; `ceiling` in the "
    "settings of box_mcp's server allows it"
)


class Approval(BaseModel):
    """What the person fills in."""

    allow: bool = Field(title="Allow", description="Whether the agent may do this.")


Consent = ElicitationResult[Approval]
Question = Elicit[Approval] | None
"""None where there is nothing to ask, or nobody."""


def asks(resolver: Callable[..., Awaitable[Question]]) -> Resolve:
    """The mark of a parameter that `resolver` fills; its BoxErrors are told as a tool's."""
    return Resolve(explained(resolver))


def looks(looking: Callable[..., Awaitable[Any]]) -> Resolve:
    """The mark of a parameter that is what `looking` finds.

    A tool, and what asks for it, share one: so what a person was asked about is what is done.
    """
    return Resolve(explained(looking))


def question(ctx: Ctx, purpose: str, what: Sequence[str]) -> Question:
    """Asks whether the agent may do `what`, of which each is beyond the ceiling; raises
    InvalidArgument when it is too much for one question.
    """
    if not what or not may_widen(ctx):
        return None
    if len(what) > MAX_ASKED:
        told = f"has {len(what)} entries that the user must allow; ask for {MAX_ASKED} at a time"
        raise InvalidArgument("allow", told)
    why = "Your settings do not let it have this by itself:"
    return _question(purpose, why, what)


def warning(ctx: Ctx, purpose: str, what: Sequence[str]) -> Question:
    """Asks whether the agent may do what would lose all of `what`, which is its user's."""
    if not what or not can_ask(ctx):
        return None
    return _question(purpose, "This would be lost for good:", what)


def _question(purpose: str, why: str, what: Sequence[str]) -> Question:
    lines = [f"- {_on_one_line(one)}" for one in what[:MAX_ASKED]]
    if (more := len(what) - MAX_ASKED) > 0:
        lines.append(f"- and {more} more")
    listing = "\n".join(lines)
    wish = f"The agent wants to {_on_one_line(purpose)}. {why}"
    return Elicit(f"{wish}\n{listing}\nDo you allow it?", Approval)


def _on_one_line(text: str) -> str:
    """`text`, which may come out of a box, as no more than an item of a list."""
    return " ".join(legible(text).split())[:MAX_ITEM]


@contextmanager
def consenting(answer: Consent, unasked: str = UNASKED) -> Generator[bool, None, None]:
    """Whether the person said yes; a NeedsConsent of the block tells what came of asking.

    `unasked` is the advice where nobody could be asked.
    """
    said: Any = answer.data if isinstance(answer, AcceptedElicitation) else answer
    try:
        yield isinstance(said, Approval) and said.allow
    except NeedsConsent as error:
        error.advice = unasked if said is None else REFUSED
        raise


def may_widen(ctx: Ctx) -> bool:
    """Whether the person there can be asked for more than the settings allow.

    Their yes is one for what is theirs: in a server of many, the settings are not.
    """
    return can_ask(ctx) and grant(ctx.request_context).principal == LOCAL


def can_ask(ctx: Ctx) -> bool:
    """Whether the client can put a form before the person."""
    declared = ctx.client_capabilities
    asking = declared.elicitation if declared is not None else None
    if asking is None or (asking.form is None and asking.url is not None):
        return False
    version = ctx.request_context.protocol_version
    return is_version_at_least(version, IN_ONE_REQUEST) or ctx.session.can_send_request


class _Once(AESGCMRequestStateCodec):
    """Seals with a key of this server's own; what it has opened once, it opens no more."""

    def __init__(self) -> None:
        super().__init__([os.urandom(32)])
        self._opened: dict[bytes, float] = {}

    def unseal(self, token: str) -> bytes:
        """As the SDK has it; a second time raises InvalidRequestState."""
        payload, now = super().unseal(token), time.monotonic()
        digest = sha256(token.encode()).digest()
        if digest in self._opened:
            raise InvalidRequestState("answered before")
        for old, when in list(itertools.islice(self._opened.items(), 2)):
            if when < now - STATE_LIFE or len(self._opened) >= MAX_OPENED:
                del self._opened[old]
        self._opened[digest] = now
        return payload


def sealing() -> RequestStateSecurity:
    """How questions are sealed, so that an answer counts once, for whom and what was asked."""
    return RequestStateSecurity(codec=_Once(), ttl=STATE_LIFE)
