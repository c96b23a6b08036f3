"""How much memory a container holds that the kernel can't take back; blocking, in worker threads.

Docker 20.10 waits up to a second before it answers with statistics; the kernel does not.
"""

# docker-py carries no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from docker import APIClient

CGROUPS = (
    "memory/docker/{}",
    "memory/system.slice/docker-{}.scope",
    "docker/{}",
    "system.slice/docker-{}.scope",
)
"""Where a container's memory is counted: cgroup v1 and v2, without and with systemd."""
COUNTERS = (
    ("memory.current", "inactive_file"),
    ("memory.usage_in_bytes", "total_inactive_file"),
)
"""What is used, and the pages of files among it that are given back on demand: v2 and v1."""


def held(api: APIClient, key: str) -> int | None:
    """Bytes that an awake container holds, by the kernel or else by the engine."""
    size = counted(key)
    return asked(api, key) if size is None else size


def counted(key: str, root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The same by the kernel's own count; None where that can't be seen from here."""
    for group in (root / pattern.format(key) for pattern in CGROUPS):
        for name, idle in COUNTERS:
            try:
                usage = int((group / name).read_text())
                lines = (group / "memory.stat").read_text().splitlines()
            except OSError:
                continue
            detail = dict(line.split() for line in lines)
            return max(0, usage - int(detail.get(idle, 0)))
    return None


def asked(api: APIClient, key: str) -> int | None:
    """The same by the engine's word; None when the container has ended meanwhile."""
    from docker.errors import NotFound

    try:
        told = api.stats(key, stream=False, one_shot=True).get("memory_stats") or {}
    except (NotFound, ValueError):  # of one that is just ending, what is said is no JSON
        return None
    detail = told.get("stats") or {}
    idle = detail.get("inactive_file", detail.get("total_inactive_file", 0))
    return max(0, told.get("usage", 0) - idle)
