"""How much room files take: a box's own, and all that there are. Blocking, in worker threads.

A box's files can be counted from here only where the engine is on this machine, and by root. Then
it is blocks that are counted, so holes in files are nothing; and files, which disks bound as well.
"""

from __future__ import annotations

import os
import shutil
import subprocess

TIMEOUT = 60.0  # s; a million files take three
BLOCK = 512


def own_files(layer: str | None) -> tuple[int, int] | None:
    """Bytes and number of the files below a container's own layer; None where that is hidden."""
    program = shutil.which("du")
    if program is None or not layer or not os.access(layer, os.R_OK | os.X_OK):
        return None
    try:
        size = _du(program, f"--block-size={BLOCK}", layer)
        return size * BLOCK, _du(program, "--inodes", layer)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def free_bytes(directory: str | None) -> int | None:
    """Bytes free where `directory` is; None when it is on another machine."""
    try:
        return shutil.disk_usage(directory).free if directory else None
    except OSError:
        return None


def free_files(directory: str | None) -> int | None:
    """Files that can still be made there; None as well where a file system knows no such bound."""
    if not directory or not hasattr(os, "statvfs"):
        return None
    try:
        found = os.statvfs(directory)
    except OSError:
        return None
    return found.f_favail if found.f_files else None


def _du(program: str, unit: str, layer: str) -> int:
    """As `du` counts, which no tree is too deep for, and which follows no links.

    What a box removes meanwhile makes it complain, and counts for nothing.
    """
    command = [program, "--summarize", "--one-file-system", unit, "--", layer]
    lowest = ["nice", "-n", "19"] if shutil.which("nice") else []
    done = subprocess.run(
        [*lowest, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=TIMEOUT,
        check=False,
    )
    return int(done.stdout.partition(b"\t")[0])
