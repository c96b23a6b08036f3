"""Attacks on the kernel that a box's own root can try, whatever runs the box."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from tests.support.engines import run

if TYPE_CHECKING:
    from box_mcp.channel import Channel

NO = (
    "operation not permitted",
    "permission denied",
    "read-only file system",
    "must be superuser",
    "must be root",
)

ATTACKS = {
    "mount a file system": "mount -t tmpfs none /mnt",
    "mount the cgroups": "sh -c 'mkdir -p /tmp/cg; mount -t cgroup -o memory none /tmp/cg'",
    "mount over a mask": "mount --bind /etc /proc/sys",
    "unmount a mask": "umount /proc/kcore",
    "make a mount namespace": "unshare --mount true",
    "make a user namespace": "unshare --user --map-root-user true",
    "enter init's namespaces": "nsenter --target 1 --net true",
    "make a disk": "mknod /tmp/disk b 8 0",
    "make kernel memory": "mknod /tmp/mem c 1 1",
    "set the clock": "date --set 2001-01-01",
    "name itself otherwise": "hostname other",
    "change root": "chroot / true",
    "raise its priority": "renice --priority -5 1",
    "lower its OOM score": (
        'python3 -c \'import os; os.write(os.open("/proc/self/oom_score_adj", 1), b"-9")\''
    ),
    "set a sysctl": "sh -c 'echo 1 > /proc/sys/vm/drop_caches'",
    "set a core pattern": "sh -c 'echo core > /proc/sys/kernel/core_pattern'",
    "leave its cgroup": "sh -c 'echo 1 > $(find /sys/fs/cgroup -name cgroup.procs | head -n 1)'",
    "talk raw": "python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)'",
    "listen to the wire": "python3 -c 'import socket; socket.socket(socket.AF_PACKET, 3, 8)'",
    "add an address": (
        "python3 -c 'import fcntl, socket; fcntl.ioctl(socket.socket(), 0x8916, bytes(40))'"
    ),
    "set an immutable flag": "chattr +i /etc/passwd",
}
"""Each is tried with sudo, and must be refused."""

SYSTEM_CALLS = {  # numbers on x86_64 and aarch64
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "add_key": (248, 217),
    "keyctl": (250, 219),
    "userfaultfd": (323, 282),
    "open_by_handle_at": (304, 265),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "pivot_root": (155, 41),
    "setns": (308, 268),
}
CALL = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for number in {numbers}:
    result = libc.syscall(number, 0, 0, 0, 0, 0)
    print(errno.errorcode[ctypes.get_errno()] if result == -1 else "done")
"""

WRITABLE = """
import os
def writable(path):
    try:
        os.close(os.open(path, os.O_WRONLY))
    except OSError:
        return False
    return True
for top in ("/proc/sys", "/proc/irq", "/proc/bus", "/sys"):
    for folder, _, files in os.walk(top):
        for name in files:
            if writable(os.path.join(folder, name)):
                print(os.path.join(folder, name))
if writable("/proc/sysrq-trigger"):
    print("/proc/sysrq-trigger")
"""
"""Prints what root could write to of the kernel's own."""

SHOWN = """
import os
for path in {paths}:
    if os.path.isdir(path) and os.listdir(path):
        print(path)
    elif os.path.isfile(path) and open(path, "rb").read(1):
        print(path)
"""
"""Prints those of `paths` that tell anything."""


async def refused(channel: Channel, command: str) -> bool:
    """Whether the kernel said no to a command."""
    ran = await run(channel, command)
    return ran.failed and any(no in ran.output.lower() for no in NO)


async def as_root(channel: Channel, script: str) -> str:
    """What a Python script prints that the box's own root runs."""
    ran = await run(channel, "sudo -n python3 -", stdin=script)
    assert not ran.failed, ran
    return ran.output


async def allowed_calls(channel: Channel) -> list[str]:
    """Those of `SYSTEM_CALLS` that the box's root may make."""
    column = {"x86_64": 0, "aarch64": 1}[platform.machine()]
    numbers = [numbers[column] for numbers in SYSTEM_CALLS.values()]
    answers = (await as_root(channel, CALL.format(numbers=numbers))).split()
    return [name for name, answer in zip(SYSTEM_CALLS, answers, strict=True) if answer != "EPERM"]
