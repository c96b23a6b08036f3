"""How headers say things."""

from __future__ import annotations

import re
from dataclasses import replace

from box_mcp.domain.network import Network

SHOWN_RULES = 20
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r(?!\n|\Z)"
)


def counted(count: int, one: str, many: str = "") -> str:
    """A number of things: ``1 file``, ``2,000 files``."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def visible(text: str) -> str:
    """`text` with what would control a terminal, or turn the text around, written out."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def reach(network: Network) -> str:
    """What a box may reach, with as many rules as one likes to read."""
    more = len(network.allow) - SHOWN_RULES
    if more <= 0:
        return str(network)
    return f"{replace(network, allow=network.allow[:SHOWN_RULES])} and {more:,} rules more"
