"""How headers say things."""

from __future__ import annotations


def counted(count: int, one: str, many: str = "") -> str:
    """A number of things: ``1 file``, ``2,000 files``."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
