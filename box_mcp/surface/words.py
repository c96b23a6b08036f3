"""How headers say things."""

from __future__ import annotations

from dataclasses import replace

from box_mcp.domain.network import Network

SHOWN_RULES = 20


def counted(count: int, one: str, many: str = "") -> str:
    """A number of things: ``1 file``, ``2,000 files``."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def reach(network: Network) -> str:
    """What a box may reach, with as many rules as one likes to read."""
    more = len(network.allow) - SHOWN_RULES
    if more <= 0:
        return str(network)
    return f"{replace(network, allow=network.allow[:SHOWN_RULES])} and {more:,} rules more"
