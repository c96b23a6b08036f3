"""From inside a box at the kernel that it shares with its host, as its root and without sudo.

Each attack is a Python script of its own, and so is its twin, which does the like as far as a box
may. `tests/support/walls.py` has more of them, which are tried on other runtimes, too.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from box_mcp.engines.docker import DockerEngine
from tests.support.engines import channel_to, run, workshop

PROGRAM = """
import ctypes, errno, fcntl, glob, json, os, platform, signal, socket, struct
libc = ctypes.CDLL(None, use_errno=True)

def call(numbers, *arguments):
    number = numbers[platform.machine() == "aarch64"]
    longs = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    if libc.syscall(number, *longs) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def any_of(act, things):
    refusal = OSError(errno.ENOENT, "there is none")
    for thing in things:
        try:
            act(thing)
        except OSError as error:
            refusal = error
        else:
            return
    raise refusal

def write(path, what="1"):
    os.write(os.open(path, os.O_WRONLY), what.encode())

def read(path):
    with open(path, "rb") as file:
        if not file.read(1):
            raise OSError(errno.ENODATA, "there is nothing in it")

def cgroups(*names):
    return [path for name in names for way in ("", "*/") for path in glob.glob(TOP + way + name)]

def ioctl(request, format, *values):
    fcntl.ioctl(socket.socket(), request, struct.pack(format, *values).ljust(40, b"\\0"))

TOP = "/sys/fs/cgroup/"

def daemon():
    return 1

OWN = f"/tmp/own-{os.geteuid()}"

def outcome(script):
    try:
        exec(script)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

def apart(script):
    ours, theirs = os.pipe()
    if os.fork() == 0:
        signal.alarm(10)
        os.write(theirs, outcome(script).encode())
        os._exit(0)
    os.close(theirs)
    os.wait()
    return os.read(ours, 99).decode()

print(json.dumps([apart(script) for script in json.loads(SCRIPTS)]))
"""
REFUSALS = {"EPERM", "EACCES", "EROFS", "ENOSYS"}
"""What the kernel says to who may not; `Attack.also` has more."""

MOUNT = "call((165, 40), b'none', b'/mnt', {kind}, {flags}, None)"
UNSHARE = "call((272, 97), {flag})"
NAMESPACES = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "UTS": 0x04000000,
    "IPC": 0x08000000,
    "user": 0x10000000,
    "process": 0x20000000,
    "network": 0x40000000,
}
WRITES = {
    "core dumps": ["/proc/sys/kernel/core_pattern"],
    "modules that are wanted": ["/proc/sys/kernel/modprobe"],
    "devices that come": ["/proc/sys/kernel/hotplug", "/sys/kernel/uevent_helper"],
    "programs of another kind": ["/proc/sys/fs/binfmt_misc/register"],
    "a cgroup that becomes empty": [
        "/sys/fs/cgroup/release_agent",
        "/sys/fs/cgroup/*/release_agent",
    ],
    "the magic request key": ["/proc/sysrq-trigger"],
    "a sleep of the whole machine": ["/sys/power/state"],
}
"""Files in which one tells the kernel, or a program of the host, what to do about something."""


DEVICES = (
    *("/dev/mem", "/dev/kmem", "/dev/port", "/dev/kvm", "/dev/fuse", "/dev/net/tun", "/dev/vsock"),
    *("/dev/loop*", "/dev/sd*", "/dev/vd*", "/dev/nvme*", "/dev/input/*", "/dev/dri/*"),
)


class Attack(NamedTuple):
    """`script` must raise an OSError in a box, as the user or as root, and `twin` must not."""

    name: str
    script: str
    twin: str = "open(OWN, 'w').close()"
    also: frozenset[str] = frozenset()


def missing(name: str, script: str, twin: str = "os.stat('/dev/null')") -> Attack:
    """An attack on what is not there at all."""
    return Attack(name, script, twin, frozenset({"ENOENT", "ENODATA"}))


ATTACKS = [
    # Namespaces and mounts
    *(
        Attack(f"make a {what} namespace of its own", UNSHARE.format(flag=flag), "os.getpid()")
        for what, flag in NAMESPACES.items()
    ),
    Attack(
        "clone itself into a user namespace",
        "call((56, 220), 0x10000011, 0, 0, 0, 0)",
        "os.fork() or os._exit(0)",
    ),
    Attack(
        "clone itself in the newer way",
        "call((435, 435), bytes(64), 64)",
        "os.fork() or os._exit(0)",
    ),
    Attack(
        "enter another namespace", "call((308, 268), os.open('/proc/1/ns/net', os.O_RDONLY), 0)"
    ),
    *(
        Attack(
            f"mount {kind}",
            MOUNT.format(kind=f"b'{kind}'", flags=0),
            "os.mkdir(f'/tmp/{os.getpid()}')",
        )
        for kind in ("proc", "sysfs", "cgroup", "cgroup2", "overlay", "debugfs", "devtmpfs", "bpf")
    ),
    Attack(
        "make /proc/sys writable", "call((165, 40), b'none', b'/proc/sys', None, 32 | 4096, None)"
    ),
    Attack("open a file system by the newer calls", "call((430, 430), b'tmpfs', 0)"),
    Attack("take a copy of a mount", "call((428, 428), -100, b'/', 1)"),
    Attack("move a mount", "call((429, 429), -100, b'/proc', -100, b'/mnt', 0)"),
    Attack("unmount what masks the kernel's memory", "call((166, 39), b'/proc/kcore', 2)"),
    # What the host's kernel and programs read
    *(
        missing(
            f"tell the host what to do about {what}",
            f"any_of(write, [path for name in {paths} for path in glob.glob(name)])",
            "write('/proc/self/oom_score_adj', '500')",
        )
        for what, paths in WRITES.items()
    ),
    Attack(
        "write any sysctl",
        "any_of(write, glob.glob('/proc/sys/**', recursive=True))",
        also=frozenset({"EISDIR"}),
    ),
    missing("read the kernel's memory", "read('/proc/kcore')"),
    Attack("read the kernel's log", "call((103, 116), 3, ctypes.create_string_buffer(99), 99)"),
    missing("read the kernel's log as a device", "open('/dev/kmsg', 'rb').read(1)"),
    missing(
        "look into the kernel by debugfs or tracefs",
        "any_of(os.stat, glob.glob('/sys/kernel/debug/*') + glob.glob('/sys/kernel/tracing/*'))",
    ),
    missing("read the host's firmware", "any_of(os.stat, glob.glob('/sys/firmware/*'))"),
    # Control groups
    missing(
        "make a control group",
        "any_of(lambda path: os.mkdir(os.path.dirname(path) + '/made'), cgroups('cgroup.procs'))",
    ),
    missing(
        "lift its own limit of memory",
        "any_of(write, cgroups('memory.max', 'memory.limit_in_bytes'))",
    ),
    missing("lift its own limit of processes", "any_of(write, cgroups('pids.max'))"),
    missing("allow itself all devices", "any_of(write, cgroups('devices.allow'))"),
    missing("thaw itself", "any_of(write, cgroups('freezer.state', 'cgroup.freeze'))"),
    missing("leave its control groups", "any_of(write, cgroups('cgroup.procs', 'tasks'))"),
    # Devices
    *(
        Attack(
            f"make a device node of {what}",
            f"os.mknod(f'/tmp/node{{os.getpid()}}', 0o600 | {kind}, os.makedev({major}, {minor}))",
            "os.mkfifo(f'/tmp/pipe{os.getpid()}')",
        )
        for what, kind, major, minor in (
            ("a disk", "0o060000", 8, 0),
            ("a virtual disk", "0o060000", 254, 0),
            ("the memory", "0o020000", 1, 1),
            ("the kernel's log", "0o020000", 1, 11),
            ("a tunnel", "0o020000", 10, 200),
            ("the hypervisor", "0o020000", 10, 232),
            ("a file system in user space", "0o020000", 10, 229),
        )
    ),
    *(
        missing(f"open {path}", f"any_of(lambda path: os.open(path, 0), glob.glob('{path}'))")
        for path in DEVICES
    ),
    Attack(
        "reach the machine's ports",
        "call((172, 0), 3) if platform.machine() == 'x86_64' else os.stat('/dev/port')",
        also=frozenset({"ENOENT"}),
    ),
    # System calls that are for the host alone
    Attack("load a module", "call((175, 105), b'x', 1, b'')"),
    Attack(
        "load a module from a file", "call((313, 273), os.open('/bin/true', os.O_RDONLY), b'', 0)"
    ),
    Attack("unload a module", "call((176, 106), b'x', 0)"),
    Attack("load another kernel", "call((246, 104), 0, 0, None, 0)"),
    Attack("load a BPF program", "call((321, 280), 5, bytes(128), 128)"),
    Attack(
        "make a BPF map",
        "call((321, 280), 0, struct.pack('5I', 2, 4, 4, 1, 0).ljust(128, b'\\0'), 128)",
    ),
    Attack(
        "watch the whole machine by perf",
        "call((298, 241), struct.pack('II', 1, 112).ljust(112, b'\\0'), -1, 0, -1, 0)",
    ),
    Attack("add a key to a keyring", "call((248, 217), b'user', b'x', b'y', 1, -3)"),
    Attack("read keys of its session", "call((250, 219), 0, -3, 0)"),
    Attack("ask for a key", "call((249, 218), b'user', b'x', None, -3)"),
    Attack(
        "open a file by its number, past all paths",
        "call((304, 265), os.open('/', os.O_RDONLY), struct.pack('IIQ', 8, 1, 2), 0)",
    ),
    Attack("handle page faults of others", "call((323, 282), 0)"),
    Attack(
        "set the clock",
        "call((164, 170), struct.pack('qq', 1, 0), None)",
        "call((96, 169), ctypes.create_string_buffer(16), None)",
    ),
    Attack("turn the clock's speed", "call((159, 171), struct.pack('I', 1).ljust(208, b'\\0'))"),
    Attack("restart the machine", "call((169, 142), 0xfee1dead, 672274793, 0x1234567, None)"),
    Attack("swap to a file of its own", "call((167, 224), OWN.encode(), 0)"),
    Attack("keep accounts of all processes", "call((163, 89), OWN.encode())"),
    Attack("set quotas", "call((179, 60), 0x800002 << 8, b'/dev/x', 0, None)"),
    Attack("name the host's domain", "call((171, 162), b'x', 1)", "socket.gethostname()"),
    Attack("watch the whole file system", "call((300, 262), 4, 0)", "call((294, 26), 0)"),
    Attack("compare itself with others", "call((312, 272), 1, 1, 0, 0, 0)"),
    # Sockets
    *(
        Attack(
            f"open a raw socket for {what}",
            f"socket.socket({family}, socket.SOCK_RAW, {protocol})",
            f"socket.socket({family}, socket.SOCK_DGRAM)",
        )
        for what, family, protocol in (
            ("ICMP", "socket.AF_INET", "1"),
            ("TCP", "socket.AF_INET", "6"),
            ("whole packets", "socket.AF_INET", "255"),
            ("IPv6", "socket.AF_INET6", "58"),
        )
    ),
    Attack(
        "see and forge all frames of its link",
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300)",
        "socket.socket()",
    ),
    Attack(
        "give itself an address",
        "ioctl(0x8916, '16sHH4s', b'lo', 2, 0, bytes([10, 0, 0, 1]))",
        "ioctl(0x8915, '16s', b'lo')",
    ),
    Attack(
        "change its link's address",
        "ioctl(0x8924, '16sH6s', b'lo', 1, bytes(6))",
        "ioctl(0x8927, '16s', b'lo')",
    ),
    Attack(
        "send in the name of any address",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).setsockopt(0, 19, 1)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).setsockopt(0, 2, 9)",
    ),
]
"""The box's root makes them by sudo, and in a box without sudo its user."""

USERS = [
    Attack(
        "trace its daemon",
        "call((101, 117), 16, daemon(), 0, 0)",
        "os.fork() or os._exit(call((101, 117), 0, 0, 0, 0) or 0)",
    ),
    Attack("trace the first process", "call((101, 117), 16, 1, 0, 0)"),
    Attack(
        "read its daemon's memory",
        "open(f'/proc/{daemon()}/mem', 'rb')",
        "open('/proc/self/mem', 'rb')",
    ),
    Attack(
        "read its daemon's memory by a call",
        "call((310, 270), daemon(), bytes(16), 1, struct.pack('QQ', 4096, 8), 1, 0)",
    ),
    Attack(
        "read its daemon's variables",
        "open(f'/proc/{daemon()}/environ')",
        "open('/proc/self/environ')",
    ),
    Attack(
        "take its daemon's descriptors",
        "os.listdir(f'/proc/{daemon()}/fd')",
        "os.listdir('/proc/self/fd')",
    ),
    Attack(
        "go through its daemon's root",
        "os.listdir(f'/proc/{daemon()}/root')",
        "os.listdir('/proc/self/root')",
    ),
    Attack("kill its daemon", "os.kill(daemon(), 9)", "os.kill(os.getpid(), 0)"),
    Attack(
        "stop its daemon by its number",
        "call((424, 424), os.pidfd_open(daemon()), 19, None, 0)",
        "os.pidfd_open(os.getpid())",
    ),
    Attack(
        "take a descriptor out of its daemon", "call((438, 438), os.pidfd_open(daemon()), 0, 0)"
    ),
    Attack(
        "limit its daemon",
        "__import__('resource').prlimit(daemon(), 7, (0, 0))",
        "__import__('resource').prlimit(0, 7)",
    ),
    Attack("have its daemon killed first", "write(f'/proc/{daemon()}/oom_score_adj', '1000')"),
    Attack(
        "connect to its daemon's socket",
        "socket.socket(socket.AF_UNIX).connect('/run/box_mcp/boxd.sock')",
    ),
    Attack("replace its daemon's program", "open('/opt/box_mcp/boxd.pyz', 'ab')"),
    Attack("become root by itself", "os.setuid(0)", "os.setuid(os.getuid())"),
]
"""Its user makes them."""


def ids(attacks: list[Attack]) -> list[str]:
    return [attack.name for attack in attacks]


@pytest.fixture(scope="module")
async def outcomes() -> dict[str, tuple[str, str]]:
    """What came of all attacks and their twins, by who made them and their names."""
    found: dict[str, tuple[str, str]] = {}
    async with workshop(DockerEngine()) as shop:
        usual, strict = await shop.running(), await shop.running(sudo=False)
        for who, box, program, attacks in (
            ("root", usual, "sudo -n python3 -", ATTACKS),
            ("user", usual, "python3 -", USERS),
            ("nobody", strict, "python3 -", ATTACKS),
        ):
            scripts = json.dumps([script for one in attacks for script in (one.script, one.twin)])
            async with channel_to(shop.engine, box) as channel:
                ran = await run(channel, program, stdin=f"SCRIPTS = {scripts!r}\n{PROGRAM}")
            answers = iter(json.loads(ran.output))
            for one in attacks:
                found[f"{who}: {one.name}"] = next(answers), next(answers)
    return found


def hold(attack: Attack, outcome: tuple[str, str]) -> None:
    """Asserts that an attack was refused, and its twin was not."""
    attacked, twin = outcome
    assert attacked in REFUSALS | attack.also
    assert twin == "done"


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_the_root_of_a_box_can_not(attack: Attack, outcomes: dict[str, tuple[str, str]]):
    hold(attack, outcomes[f"root: {attack.name}"])


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_without_sudo_nobody_can(attack: Attack, outcomes: dict[str, tuple[str, str]]):
    hold(attack, outcomes[f"nobody: {attack.name}"])


@pytest.mark.parametrize("attack", USERS, ids=ids(USERS))
async def test_the_user_of_a_box_can_not(attack: Attack, outcomes: dict[str, tuple[str, str]]):
    hold(attack, outcomes[f"user: {attack.name}"])
