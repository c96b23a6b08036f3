"""A stand-in for all that lies around this machine, made of network namespaces.

There is a host in the internet, one that answers where clouds have their metadata, and one in the
local network, which takes this machine for the way to boxes. Each is joined to this machine by a
pair of interfaces, and reached from it by routes. Names are of one run, addresses are not: of
several runs on one machine the later ones wait.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.engines import RUN

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

NEEDS = "root on Linux, ip and iptables"
usable = (
    sys.platform == "linux" and os.geteuid() == 0 and all(map(shutil.which, ("ip", "iptables")))
)
PROGRAM = Path(__file__).with_name("services.py")
LOCKS = Path(tempfile.gettempdir())
PATIENCE = 30.0

TCP, UDP, HTTP, TLS, WS, DNS = 7, 7, 80, 443, 8080, 53
"""The ports of every host's services."""

INTERNET = "198.51.100.10"
METADATA = "169.254.169.254"
LAN = "192.168.77.7"
INTERNET_GATEWAY, LAN_GATEWAY = "198.51.100.1", "192.168.77.1"
"""This machine's own addresses on the ways to there."""

SITE, SITE_GATEWAY = "203.0.113.10", "203.0.113.1"
"""The same of one more public host, for benchmarks: runs of the tests keep the others."""

CLOUDS = ("169.254.170.2", "100.100.100.200", "192.0.0.192", "168.63.129.16")
"""Where other clouds have what the others have at `METADATA`."""

NEIGHBOURHOOD = (
    "10.77.0.7",
    "172.31.77.7",
    "100.64.77.7",
    "192.0.0.7",
    "198.18.77.7",
    "240.77.0.7",
)
"""Addresses of the host in the local network, in all ranges that are nobody's or private."""


ZONE = {
    "good.example": [INTERNET],
    "other.example": [INTERNET],
    "metadata.example": [METADATA],
    "lan.example": [LAN],
    "loopback.example": ["127.0.0.1"],
    "zero.example": ["0.0.0.0"],
    "turning.example": [INTERNET, METADATA],
}
"""What the names lead to that the resolver of the host in the internet knows."""


@dataclass
class Host:
    """A host of its own, at `address`, with services that say its name."""

    name: str
    address: str
    log: Path

    @property
    def namespace(self) -> str:
        return f"test-{self.name}-{RUN}"

    def heard(self) -> str:
        """All that its services heard up to now."""
        return self.log.read_text()

    def run(self, *command: str, check: bool = True) -> str:
        """What a command prints that runs there."""
        return run("ip", "netns", "exec", self.namespace, *command, check=check)


@dataclass
class Internet:
    """All hosts."""

    internet: Host
    metadata: Host
    lan: Host
    directory: Path

    @property
    def certificate(self) -> Path:
        """Of the services that speak TLS; they have signed it themselves."""
        return self.directory / "certificate.pem"


def run(*command: str, check: bool = True) -> str:
    """What a command prints."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
    return done.stdout.strip()


def until_it_listens(host: str, port: int) -> None:
    """Waits for a program that somebody has just started."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection((host, port), 1.0).close()
        except OSError:
            assert time.monotonic() < deadline, f"nobody listens on {host}:{port}"
            time.sleep(0.02)
        else:
            return


@contextmanager
def serving(
    name: str, log: Path, offers: Sequence[str], namespace: str | None = None
) -> Generator[None, None, None]:
    """Services (see `services.py`) on this machine, or in a namespace of it."""
    log.touch()
    enter = ["ip", "netns", "exec", namespace] if namespace else []
    command = [*enter, sys.executable, "-I", str(PROGRAM), name, str(log), *offers]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        try:
            assert program.stdout.readline() == "ready\n"
            yield
        finally:
            program.send_signal(signal.SIGTERM)


@contextmanager
def joined(
    host: Host, inside: str, gateway: str, also: Sequence[str]
) -> Generator[None, None, None]:
    """A namespace that is joined to this machine, for as long as the block.

    `inside` and `gateway` are the addresses at both ends of a subnet; `also` further ones of it.
    """
    near, far = f"t{host.name[:3]}{RUN}", f"e{host.name[:3]}{RUN}"
    space = host.namespace
    run("ip", "netns", "add", space)
    try:
        run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", space)
        run("ip", "address", "add", gateway, "dev", near)
        run("ip", "link", "set", near, "up")
        for address in also:
            run("ip", "route", "add", address, "via", str(IPv4Interface(inside).ip))
        host.run("sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")  # as engines set it
        host.run("ip", "link", "set", "lo", "up")
        for address in (inside, *also):
            host.run("ip", "address", "add", address, "dev", far)
        host.run("ip", "link", "set", far, "up")
        host.run("ip", "route", "add", "default", "via", str(IPv4Interface(gateway).ip))
        open_forward = ("FORWARD", "-i", near, "-j", "ACCEPT")
        run("iptables", "-w", "-A", *open_forward)  # as on machines that forward for all
        try:
            yield
        finally:
            run("iptables", "-w", "-D", *open_forward)
    finally:
        run("ip", "link", "delete", near, check=False)
        run("ip", "netns", "delete", space)


@contextmanager
def alone(*names: str) -> Generator[None, None, None]:
    """No other run of the tests on this machine has hosts of these names meanwhile."""
    import fcntl  # there is none on Windows

    with (LOCKS / f"box-mcp-test-{names[0]}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweep(names)
        yield


def sweep(names: Sequence[str]) -> None:
    """Removes what runs left that were killed; whoever holds the lock is alone."""
    for space in re.findall(rf"^test-(?:{'|'.join(names)})-\w+", run("ip", "netns"), re.MULTILINE):
        for pid in run("ip", "netns", "pids", space).split():
            os.kill(int(pid), signal.SIGKILL)
        run("ip", "netns", "delete", space)
    rules = run("iptables", "-w", "-S", "FORWARD")
    links = "|".join(name[:3] for name in names)
    for rule in re.findall(
        rf"^-A (FORWARD -i t(?:{links})\w{{8}} -j ACCEPT)$", rules, re.MULTILINE
    ):
        run("iptables", "-w", "-D", *rule.split())


def sign_for(names: Sequence[str], certificate: Path) -> None:
    """Makes a key and a certificate for some names, in one file."""
    run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-days", "2", "-subj", f"/CN={names[0]}"),
        *("-addext", f"subjectAltName={','.join(f'DNS:{name}' for name in names)}"),
        *("-keyout", str(certificate), "-out", f"{certificate}.public"),
    )
    with certificate.open("a") as file:
        file.write(Path(f"{certificate}.public").read_text())


@contextmanager
def stand_in(directory: Path) -> Generator[Internet, None, None]:
    """The whole of it; nothing of it is left afterwards."""
    internet = Host("internet", INTERNET, directory / "internet.log")
    metadata = Host("metadata", METADATA, directory / "metadata.log")
    lan = Host("lan", LAN, directory / "lan.log")
    made = Internet(internet, metadata, lan, directory)
    sign_for([*ZONE], made.certificate)
    ways: list[tuple[Host, str, str, tuple[str, ...]]] = [
        (internet, f"{INTERNET}/24", f"{INTERNET_GATEWAY}/24", ()),
        (metadata, f"{METADATA}/30", "169.254.169.253/30", CLOUDS),
        (lan, f"{LAN}/24", f"{LAN_GATEWAY}/24", NEIGHBOURHOOD),
    ]
    offers = (
        *(f"tcp:{TCP}", f"udp:{UDP}", f"http:{HTTP}", f"tls:{TLS}:{made.certificate}"),
        *(f"ws:{WS}", f"dns:{DNS}:{json.dumps(ZONE)}"),
    )
    with alone(*(host.name for host, *_ in ways)), ExitStack() as stack:
        for host, inside, gateway, also in ways:
            stack.enter_context(joined(host, inside, gateway, also))
            stack.enter_context(serving(host.name, host.log, offers, host.namespace))
        yield made
