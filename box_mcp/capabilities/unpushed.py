"""What would be lost with a box, as far as git knows: commits that no remote has, and changes.

Repositories are looked for where work is kept: in the box's directory and its user's home, not far
down. Whoever wrote them can run programs of the box by this, as any git command there does, and can
lie; all of it is bounded, and what is not told in time counts as unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from box_mcp.capabilities.shell import Shell
from box_mcp.domain.paths import ERRORS, shown

LOOK_TIMEOUT = 15.0  # s
MOST = 50  # repositories
MOST_SAID = 64 * 1024  # bytes

END = b"."
"""The last thing that is said, where all was said."""

LOOK = r"""
export LANGUAGE=C GIT_TERMINAL_PROMPT=0 GIT_OPTIONAL_LOCKS=0
command -v find >/dev/null || exit 1
look='g() { git --no-pager -c core.fsmonitor=false -c protocol.ext.allow=never \
    -c "safe.directory=*" "$@" 2>/dev/null </dev/null; }
[ $# -le MOST ] || { printf "!\0"; exit; }
for found; do (
    CDPATH= cd -P -- "${found%/.git}" || exit
    head=$(g rev-parse --quiet --verify "HEAD^{commit}")
    commits=$(g rev-list --count --branches $head --not --remotes)
    changes=$(g status --porcelain -z --untracked-files=normal --ignored=no | tr -cd "\0" | wc -c)
    stashes=$(g stash list | wc -l)
    printf "%s\0%s\0%s\0%s\0" "$PWD" "${commits:-0}" "$((changes))" "$((stashes))"
); done'
if command -v git >/dev/null; then
    for place in "./ 3" "$HOME/ 2"; do
        find -P "${place% *}" -xdev -maxdepth "${place##* }" -name .git -prune \
            -exec sh -c "$look" sh {} + 2>/dev/null
    done
fi
printf '.\0'
""".replace("MOST", str(MOST))
"""Prints four fields for each repository: where it is, and how much of each kind it has.

For any shell; where there are more than so many, what it prints is none of that.
"""

_NUMBER = re.compile(rb"[0-9]{1,9}")


@dataclass(frozen=True)
class Unpushed:
    """What a repository has that is nowhere else."""

    path: str
    commits: int
    changes: int
    stashes: int

    def __str__(self) -> str:
        counts = (
            (self.commits, "commit", "commits", "that no remote has"),
            (self.changes, "change", "changes", "not committed"),
            (self.stashes, "stash", "stashes", "put aside"),
        )
        said = [
            f"{count:,} {one if count == 1 else many} {how}"
            for count, one, many, how in counts
            if count
        ]
        return f"{self.path}: {', '.join(said)}"


async def unpushed(shell: Shell) -> list[Unpushed]:
    """Of each repository that has any; raises ValueError when that can't be told, and BoxError."""
    outcome = await shell.run(
        LOOK,
        title="look for work that is not pushed",
        visits=True,
        timeout=LOOK_TIMEOUT,
        yield_after=2 * LOOK_TIMEOUT,
        max_output=MOST_SAID,
        tail=0,
    )
    return list(parse_unpushed(outcome.stdout))


def parse_unpushed(said: bytes) -> Iterator[Unpushed]:
    """What `LOOK` printed; raises ValueError where that is not all, or not what it prints."""
    *fields, end, rest = said.split(b"\0") if b"\0" in said else (b"", said)
    seen: set[bytes] = set()
    if end != END or rest or len(fields) % 4:
        raise ValueError("not all was told")
    for at in range(0, len(fields), 4):
        path, *counts = fields[at : at + 4]
        if not all(map(_NUMBER.fullmatch, counts)):
            raise ValueError("a number is none")
        if path not in seen and any(map(int, counts)):
            seen.add(path)
            yield Unpushed(shown(path.decode(errors=ERRORS)), *map(int, counts))
