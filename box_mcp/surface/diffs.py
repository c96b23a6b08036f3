"""Changes as a unified diff, which models and people read alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

from box_mcp.capabilities.files import Hunk

CONTEXT = 3  # lines around a change
MAX_MATCHED = 1000  # lines of a hunk in which those are looked for that stayed the same

Opcode = tuple[str, int, int, int, int]


def unified(hunk: Hunk) -> str:
    """One hunk, or more where unchanged lines lie between; a file's last line may lack its end."""
    old, new = _lines(hunk.old), _lines(hunk.new)
    return "".join(
        _group(old, new, group, hunk.old_line, hunk.new_line) for group in _groups(old, new)
    )


def _groups(old: list[str], new: list[str]) -> Iterable[Sequence[Opcode]]:
    if max(len(old), len(new)) > MAX_MATCHED:
        return [[("replace", 0, len(old), 0, len(new))]]
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    return matcher.get_grouped_opcodes(CONTEXT)


def _group(
    old: list[str], new: list[str], group: Sequence[Opcode], old_line: int, new_line: int
) -> str:
    first, last = group[0], group[-1]
    ranges = (
        f"-{_range(old_line + first[1], last[2] - first[1])} "
        f"+{_range(new_line + first[3], last[4] - first[3])}"
    )
    lines = [f"@@ {ranges} @@\n"]
    for kind, old_start, old_end, new_start, new_end in group:
        if kind == "equal":
            lines += [_line(" ", line) for line in old[old_start:old_end]]
        else:
            lines += [_line("-", line) for line in old[old_start:old_end]]
            lines += [_line("+", line) for line in new[new_start:new_end]]
    return "".join(lines)


def _range(first: int, count: int) -> str:
    """As diff has it: a range without lines is named by the line before."""
    if count == 1:
        return str(first)
    return f"{first if count else first - 1},{count}"


def _line(mark: str, line: str) -> str:
    if line.endswith("\n"):
        return mark + line
    return f"{mark}{line}\n\\ No newline at end of file\n"


def _lines(text: str) -> list[str]:
    """The lines of `text` with a line feed at the end of each, but perhaps of the last."""
    lines = text.replace("\r\n", "\n").split("\n")
    return [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
