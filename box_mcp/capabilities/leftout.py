"""What a transfer left out, and why: all counted, some named."""

from __future__ import annotations

from box_mcp.domain.paths import shown

NAMED = 20  # paths that are told


class LeftOut:
    """Paths that were left out, by reason."""

    def __init__(self) -> None:
        self._named: dict[str, list[str]] = {}
        self._counted: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(self._counted.values())

    def add(self, path: str, why: str) -> None:
        """`path` was left out."""
        self._counted[why] = self._counted.get(why, 0) + 1
        if sum(map(len, self._named.values())) < NAMED:
            self._named.setdefault(why, []).append(shown(path) or ".")

    def lines(self) -> list[str]:
        """A line for each reason."""
        lines: list[str] = []
        for why, count in self._counted.items():
            named = self._named.get(why, [])
            more = f" and {count - len(named)} more" if count > len(named) else ""
            lines.append(f"left out, {why}: {', '.join(named)}{more}")
        return lines
