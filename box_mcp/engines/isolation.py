"""From a BoxSpec to the hardened options of its container and its network: a pure function.

The reasons stand in docs/architecture.md; tests/engines/test_isolation.py looks from inside.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from box_mcp.domain.box import BoxSpec
from box_mcp.domain.names import BoxId

LABEL = "box_mcp.box"
"""On every container and network that is ours; its value is the box's id."""
SPEC_LABEL = "box_mcp.spec"
OWNER_LABEL = "box_mcp.owner"
BOXD_LABEL = "box_mcp.boxd"
"""Whose they are, where several users or state directories share an engine."""

HOME = "/opt/box_mcp"
"""Where boxd's program lies in a box."""
SOCKET = "/run/box_mcp/boxd.sock"
FILES = "/run/box_mcp-files"
"""Where boxd puts what servers offer to all in the box, by the name of its socket's directory."""
LOGS = "/var/log/box_mcp"

BOX_USER = "box"
CAPABILITIES = (  # what apt, sudo and chown in a box need; everything else is dropped
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "SETUID",
    "SETGID",
    "KILL",
    "AUDIT_WRITE",
)
BRIDGE_PREFIX = "bx"
TAG_LENGTH = 5  # of an owner in a bridge's name, of which the kernel takes fifteen characters
OWN_NAME = "127.0.1.1"  # where a box's own name leads: sudo looks it up, without a network, too
SUBNET_PREFIX = 29  # six addresses: the bridge, the box, and room for a proxy
SHM_SIZE = 64 * 1024 * 1024
CONTAINER_LOG = {"max-size": "1m", "max-file": "1"}  # boxd's own words; commands log elsewhere
CPU_SHARES = 512  # half of what the host's own services have, the engine's and ours among them
OOM_SCORE_ADJ = 250  # when the host's memory runs out, boxes go first; their commands have 500

MASKED_PATHS = (
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys"),
    *("/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list"),
    *("/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware"),
    # What follows, no engine masks yet: serial numbers, which the box's root could read.
    "/sys/devices/virtual/dmi",
)
"""What the newest engines mask; older ones leave some of it open."""
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


DEFAULT_SUBNETS = IPv4Network("10.213.0.0/16")


@dataclass(frozen=True)
class Isolation:
    """The settings of the engine that hold for all boxes."""

    runtime: str | None = None
    """An OCI runtime that the engine knows, such as ``runsc``; None for its default."""
    subnets: IPv4Network = DEFAULT_SUBNETS
    owner: str = ""
    """Marks what is ours; servers of one state directory have the same."""
    allow_cidrs: tuple[IPv4Network, ...] = ()
    """Private addresses that boxes may reach all the same."""
    require_guard: bool = True
    """Whether a box may have a network only where the guard's rules are in place."""
    ca_certificates: Path | None = None
    """A bundle (PEM) of authorities that commands in all boxes trust, too."""
    disk: int | None = None
    """Bytes that a box's own files may take, where the engine can bound that; None for all."""
    helper_image: str = "box-mcp:base"
    """What the guard's helper is a container of: no box may have had a part in it."""


def network_name(box: BoxId) -> str:
    """The name of the network that `box` alone is on."""
    return f"{box}-net"


def owner_tag(owner: str) -> str:
    """What tells the bridges of one owner from those of others."""
    return sha256(owner.encode()).hexdigest()[:TAG_LENGTH]


def bridge_name(box: BoxId, owner: str = "") -> str:
    """The interface, on the engine's machine, that leads to `box`."""
    return f"{BRIDGE_PREFIX}{owner_tag(owner)}{box.removeprefix('box-')}"


def network_options(box: BoxId, owner: str = "") -> dict[str, Any]:
    """Arguments for the engine's network creation, without its addresses."""
    return {
        "name": network_name(box),
        "driver": "bridge",
        "labels": {LABEL: box, OWNER_LABEL: owner},
        "enable_ipv6": False,
        "options": {
            "com.docker.network.bridge.name": bridge_name(box, owner),
            "com.docker.network.bridge.enable_icc": "false",
        },
    }


def container_options(
    box: BoxId, spec: BoxSpec, image_user: str, owner: str = ""
) -> dict[str, Any]:
    """Arguments for the engine's container creation, without the host's part.

    `image_user` is the user that the image itself names; commands run as user ``box`` where the
    image has one, else as that user.
    """
    boxd = {
        "root": "/",
        "socket": SOCKET,
        "log_dir": LOGS,
        "users": [BOX_USER, *([image_user.split(":", maxsplit=1)[0]] if image_user else [])],
        "orphan_after": spec.orphan_after,
    }
    return {
        "name": box,
        "image": spec.image,
        "hostname": box,
        "command": ["-I", "-S", f"{HOME}/boxd.pyz", json.dumps(boxd)],
        "entrypoint": ["python3"],
        "user": "0" if spec.sudo else BOX_USER,
        "working_dir": "/",
        "environment": dict(spec.env),
        "labels": {LABEL: box, OWNER_LABEL: owner, SPEC_LABEL: json.dumps(spec.record())},
        "detach": True,
        "stdin_open": False,
        "tty": False,
        "healthcheck": {"test": ["NONE"]},
    }


def host_options(box: BoxId, spec: BoxSpec, isolation: Isolation) -> dict[str, Any]:
    """Arguments for the host's part of the container: rights, limits, network."""
    return {
        "init": False,
        "cap_drop": ["ALL"],
        "cap_add": list(CAPABILITIES) if spec.sudo else [],
        "security_opt": [] if spec.sudo else ["no-new-privileges"],
        "network_mode": network_name(box),
        "extra_hosts": {box: OWN_NAME},
        "mem_limit": spec.memory,
        "memswap_limit": spec.memory,
        "nano_cpus": int(spec.cpus * 1_000_000_000),
        "pids_limit": spec.pids,
        "shm_size": SHM_SIZE,
        "runtime": isolation.runtime,
        "restart_policy": {"Name": "no"},
        "log_config": {"type": "json-file", "config": CONTAINER_LOG},
        "ipc_mode": "private",
        "cgroupns": "private",
        "cpu_shares": CPU_SHARES,
        "oom_score_adj": OOM_SCORE_ADJ,
    }


PATHS = {"MaskedPaths": list(MASKED_PATHS), "ReadonlyPaths": list(READONLY_PATHS)}
"""What belongs to the host's part, too, by the engine's own names: its client has none for it."""
