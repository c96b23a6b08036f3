"""Processes of the box as the kernel tells of them: who descends from whom, what each holds.

Everything here is read from /proc, see proc(5). What is not there any more is left out.
"""

from __future__ import annotations

import contextlib
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from .identity import User

TICKS = os.sysconf("SC_CLK_TCK")  # of the kernel's process times, per second
PAGE = os.sysconf("SC_PAGE_SIZE")
LISTENING = "0A"  # the state of a listening socket in /proc/net/tcp; <net/tcp_states.h>
MAX_FDS = 4096  # of one process, looked at for its sockets


class Stat:
    """One living process. `started` is in ticks since boot, cpu in s, `memory` in bytes."""

    __slots__ = ("cpu_with_children", "memory", "name", "parent", "pid", "started")

    def __init__(self, pid: int, name: bytes, fields: list[bytes]) -> None:
        self.pid = pid
        self.name = name.decode(errors="replace")
        self.parent = int(fields[1])
        self.cpu_with_children = sum(map(int, fields[11:15])) / TICKS
        self.started = int(fields[19])
        self.memory = int(fields[21]) * PAGE


def stat(pid: int) -> Stat | None:
    """A living process; None for zombies and the gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            head, _, tail = file.read().rpartition(b")")
        fields = tail.split()
        return None if fields[0] in (b"Z", b"X") else Stat(pid, head.partition(b"(")[2], fields)
    except (OSError, ValueError, IndexError):
        return None


class Family:
    """All living processes of the box, as they were when this was made."""

    def __init__(self) -> None:
        self._children: dict[int, list[Stat]] = {}
        for name in os.listdir("/proc"):
            if name.isdigit() and (found := stat(int(name))) is not None:
                self._children.setdefault(found.parent, []).append(found)

    def below(self, pid: int, without: Collection[int] = ()) -> list[Stat]:
        """All below `pid`, parents first, without those in `without` and what is below them."""
        tree: list[Stat] = []
        todo = [pid]
        while todo:
            level = [child for parent in todo for child in self._children.get(parent, ())]
            level = [child for child in level if child.pid not in without]
            tree += level
            todo = [child.pid for child in level]
        return tree


def children(pid: int) -> list[int]:
    """The ids of a process's living children."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return [child for child in map(int, file.read().split()) if stat(child)]
    except OSError:  # gone, or a kernel that does not tell
        return [found.pid for found in Family().below(pid) if found.parent == pid]


def below(pid: int, without: Collection[int] = ()) -> list[int]:
    """As `Family().below`, but far sooner: there is hardly time to fork. Some may be left out.

    That is who stands in the kernel's list behind one that ends while it is read; proc(5).
    """
    tree: list[int] = []
    todo = [pid]
    while todo:
        level = [child for parent in todo for child in children(parent)]
        todo = [child for child in level if child not in without]
        tree += todo
    return tree


def now() -> int:
    """This moment as `Stat.started` has it."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * TICKS)


def send_signal(pid: int, number: int) -> bool:
    """Signals a process that may have gone meanwhile; False if it had."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
        return True
    return False


def listening_sockets() -> dict[str, int]:
    """The TCP ports on which somebody in the box listens, by their socket's inode."""
    ports: dict[str, int] = {}
    for table in ("tcp", "tcp6"):
        with (
            contextlib.suppress(OSError, ValueError, IndexError),
            open(f"/proc/net/{table}") as file,
        ):
            for line in list(file)[1:]:
                fields = line.split()
                if fields[3] == LISTENING:
                    ports[fields[9]] = int(fields[1].rpartition(":")[2], 16)
    return ports


def ports_of(pids: Iterable[int], listening: dict[str, int], user: User) -> list[int]:
    """The ports on which any of these processes listens, in order."""
    if not listening:
        return []
    found = {listening[inode] for pid in pids for inode in _sockets(pid, user) & listening.keys()}
    return sorted(found)


def _sockets(pid: int, user: User) -> set[str]:
    """The inodes of a process's sockets: root may look at root's, else only the user at theirs."""
    found = _links(pid)
    if found is None:
        with user.rights():
            found = _links(pid)
    return {link[8:-1] for link in found or () if link.startswith("socket:[")}


def _links(pid: int) -> list[str] | None:
    try:
        names = os.listdir(f"/proc/{pid}/fd")[:MAX_FDS]
        return [_link(f"/proc/{pid}/fd/{name}") for name in names]
    except PermissionError:
        return None
    except OSError:
        return []


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:  # closed meanwhile
        return ""
