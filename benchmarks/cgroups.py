"""What the kernel counts for a process and for its control group, of either version."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
UNIFIED = (ROOT / "cgroup.controllers").exists()
TICK = 1 / os.sysconf("SC_CLK_TCK")  # s
KIB = 1024


@dataclass(frozen=True)
class Cgroup:
    """The control group of one container."""

    cpu: Path
    memory: Path

    def cpu_seconds(self) -> float:
        """CPU time that its processes have used since it was made."""
        if UNIFIED:
            return values(self.cpu / "cpu.stat")["usage_usec"] / 1e6
        return int((self.cpu / "cpuacct.usage").read_text()) / 1e9

    def memory_bytes(self) -> int:
        """Memory that is counted for it, pages of files included."""
        name = "memory.current" if UNIFIED else "memory.usage_in_bytes"
        return int((self.memory / name).read_text())

    def processes(self) -> list[int]:
        return [int(pid) for pid in (self.cpu / "cgroup.procs").read_text().split()]

    def exists(self) -> bool:
        return self.cpu.exists() or self.memory.exists()


def of(pid: int) -> Cgroup:
    """The control group of the process `pid`."""
    paths: dict[str, Path] = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = ROOT / controllers / path.lstrip("/")
    if UNIFIED:
        return Cgroup(paths[""], paths[""])
    return Cgroup(paths["cpuacct"], paths["memory"])


def cpu_seconds(pid: int) -> float:
    """CPU time that the process has used, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    user, system = fields[11:13]  # counted from the state, which is the third of all
    return TICK * (int(user) + int(system))


def pss_bytes(pid: int) -> int:
    """Memory of the process: what it shares counts in part. Raises PermissionError."""
    return KIB * values(Path(f"/proc/{pid}/smaps_rollup"))["Pss:"]


def resident_bytes(pid: int) -> int:
    """Memory of the process that is in use now, what it shares included."""
    return KIB * values(Path(f"/proc/{pid}/status"))["VmRSS:"]


def peak_bytes(pid: int) -> int:
    """The most that `resident_bytes` ever was, or has been since `forget_peak`."""
    return KIB * values(Path(f"/proc/{pid}/status"))["VmHWM:"]


def forget_peak(pid: int) -> None:
    """Raises PermissionError for another user's process."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # see proc_pid_clear_refs(5)


def growth_of(pid: int) -> Callable[[], int]:
    """What the process's memory has grown by at most, from now on."""
    forget_peak(pid)
    before = resident_bytes(pid)
    return lambda: peak_bytes(pid) - before


def children(pid: int) -> list[int]:
    """Child processes of the first thread, which in most is the only one."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def available_bytes() -> int:
    """Memory of the machine that programs could have."""
    return KIB * values(Path("/proc/meminfo"))["MemAvailable:"]


def values(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
