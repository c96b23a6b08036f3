"""What is beyond the settings' ceiling takes the person's own yes: how they are asked for it.

A tool declares a parameter `Annotated[Consent, asks(resolver)]`. The resolver, which takes the
tool's arguments by name, returns `question(...)`; the SDK asks in the way of the client's protocol
and runs the tool with what came of it. Only a form that says yes is a yes: what the client can't
ask, and what the person declines or leaves alone, is refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from mcp.server.mcpserver import AcceptedElicitation, Elicit, ElicitationResult, Resolve
from mcp_types.version import is_version_at_least
from pydantic import BaseModel, Field

from box_mcp.domain.names import LOCAL
from box_mcp.errors import BeyondCeiling, InvalidArgument
from box_mcp.surface.failures import explained, legible
from box_mcp.surface.requests import grant
from box_mcp.surface.sessions import Ctx

MAX_ASKED = 20  # things of one question: a person should read them all
MAX_ITEM = 300  # characters of one; a rule has less, and no image's name has more
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


def question(ctx: Ctx, purpose: str, what: Sequence[str]) -> Question:
    """Asks whether the agent may do `what`, of which each is beyond the ceiling; raises
    InvalidArgument when it is too much for one question.
    """
    if not what or not may_widen(ctx):
        return None
    if len(what) > MAX_ASKED:
        told = f"has {len(what)} entries that the user must allow; ask for {MAX_ASKED} at a time"
        raise InvalidArgument("allow", told)
    listing = "\n".join(f"- {legible(one)[:MAX_ITEM]}" for one in what)
    text = f"The agent wants to {purpose}. Your settings do not let it have this by itself:"
    return Elicit(f"{text}\n{listing}\nDo you allow it?", Approval)


@contextmanager
def consenting(answer: Consent) -> Generator[bool, None, None]:
    """Whether the person said yes; a BeyondCeiling of the block tells what came of asking."""
    said: Any = answer.data if isinstance(answer, AcceptedElicitation) else answer
    try:
        yield isinstance(said, Approval) and said.allow
    except BeyondCeiling as error:
        error.advice = UNASKED if said is None else REFUSED
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
