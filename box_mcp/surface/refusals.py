"""What boxes were refused by their network policy, and what can be done about it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from box_mcp.domain.network import NO_RULE, Mode, Network, parse_rule
from box_mcp.errors import InvalidArgument
from box_mcp.gateway.tally import Refusal, told
from box_mcp.surface.consent import may_widen
from box_mcp.surface.sessions import Ctx, OpenBox, backend

PROPOSED = 3  # rules in one proposal
LISTED = 20  # refusals that a list shows, the latest

ONLY_THE_USER = "only the user can allow it, by `ceiling` in box_mcp's settings"


def with_refusals(ctx: Ctx, opened: OpenBox, box: str | None, text: str) -> str:
    """A reply, below what the box was refused since the last one that told of it.

    `box` is what the call named it.
    """
    tally = backend(ctx).proxies.egress(opened.id).refused
    refusals = tally.since(opened.heard)
    if not refusals:
        return text
    tally.told = tally.mark()
    network, where = opened.claim.box.network, f', box="{box}"' if box else ""
    beyond = partial(backend(ctx).lifecycle.beyond, now=network)
    said = remedy(network, refusals, beyond, where, may_ask=may_widen(ctx))
    return f"[{told(refusals)} · {said}]\n{text}"


def listed(refusals: Sequence[Refusal], network: Network) -> list[str]:
    """A line for each, the latest last; `network` is what the box may reach now."""
    return [f"{one.target} ({one.count}): {_reason(one, network)}" for one in refusals[-LISTED:]]


def remedy(
    network: Network,
    refusals: Sequence[Refusal],
    beyond: Callable[[Network], Sequence[str]],
    where: str = "",
    *,
    may_ask: bool,
) -> str:
    """The call that allows what was refused, or asks for it; or why there is none.

    `beyond` tells what takes the person's yes.
    """
    if network.mode is not Mode.ALLOWLIST:
        return f"the box has network {network.mode.value!r} now"
    missing = _missing(network, (one.target for one in refusals))[-PROPOSED:]
    if not missing:
        return refusals[-1].reason
    wide = [one for one in missing if beyond(Network(Mode.ALLOWLIST, (parse_rule(one),)))]
    free = [one for one in missing if one not in wide]
    said = [f"network_policy(allow={json.dumps(free)}{where}) allows it"] if free else []
    if wide and may_ask:
        said.append(f"network_policy(allow={json.dumps(wide)}{where}) asks the user for it")
    elif wide:
        said.append(f"{', '.join(wide)}: {ONLY_THE_USER}")
    return "; ".join(said)


def _reason(refusal: Refusal, network: Network) -> str:
    """Why it was refused; it may be allowed by now."""
    lacks = network.mode is not Mode.FULL and _missing(network, [refusal.target])
    return refusal.reason if lacks or refusal.reason != NO_RULE else "no rule allowed it then"


def _missing(network: Network, targets: Iterable[str]) -> list[str]:
    """Those that no rule names; others were refused for what they lead to."""
    found: list[str] = []
    for target in targets:
        try:
            if not network.covers(parse_rule(target)):
                found.append(target)
        except InvalidArgument:
            continue
    return found
