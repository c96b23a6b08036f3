"""The guard's rules in a machine's firewall, by iptables: boxes reach what is public, and no more.

A program of its own, too, for a container on the engine's machine: `python3 -I -c SOURCE ORDER`.
Python 3.9 and its standard library suffice. ORDER is an `Order` as JSON; it prints a `Report`.

What the rules are, for IPv4, where `bx+` are the bridges of boxes:

    raw PREROUTING     from bx+ with a source that is elsewhere: dropped
    filter INPUT       from bx+: refused, but for a resolver on this machine
    filter DOCKER-USER or, without it or where some pass before it, FORWARD: a jump to
        BOX-MCP-1-FORWARD   between boxes: refused; to a box: answers pass, all else is dropped;
                            from a box: resolvers pass, what nobody may reach is refused, and on to
        BOX-MCP-1-OPEN      what owners opened, each for the bridges that bear its tag; and on to
        BOX-MCP-1-PRIVATE   what is not public is refused; who comes to its end, passes
    filter OUTPUT      to bx+: all but answers is dropped, as what is called out to all neighbours
    security           all of `filter` once more, dropping: engines take rules out of that and put
                       them back while packets pass, and put others before them

IPv6 is dropped from and to bx+. `raw` and `security` are left out where the kernel lacks them.

Chains bear a version: a newer program removes those of older ones, an older one leaves those of
newer ones alone. Several programs may work at the same time: each table is replaced in one step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv4Network
from itertools import takewhile
from pathlib import Path

VERSION = 1
BRIDGES = "bx+"
DOCKER_USER = "DOCKER-USER"  # the chain that Docker leaves to others, and passes first
ATTEMPTS = 4  # one fails when another program changes the same in between
PATIENCE = 20.0  # s for one run of iptables
LOCK_PATIENCE = "5"  # s for other users of iptables' lock
SYSTEM_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin")
MOST_RESOLVERS = 16

NEVER = (
    *("0.0.0.0/8", "127.0.0.0/8"),
    *("169.254.0.0/16", "168.63.129.16/32", "100.100.100.200/32", "192.0.0.0/24"),  # metadata
    *("224.0.0.0/4", "240.0.0.0/4"),
)
"""What is refused whatever an owner opens."""

PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15")

REJECTING = (
    "-p tcp -j REJECT --reject-with tcp-reset",
    "-j REJECT --reject-with icmp-admin-prohibited",
)
DROPPING = ("-j DROP",)

RAW = {"PREROUTING": [f"-i {BRIDGES} -m rpfilter --invert -j DROP"]}
IPV6 = {
    "INPUT": [f"-i {BRIDGES} -j DROP"],
    "FORWARD": [f"-i {BRIDGES} -j DROP", f"-o {BRIDGES} -j DROP"],
    "OUTPUT": [f"-o {BRIDGES} -j DROP"],
}

Chains = dict[str, list[str]]
"""The rules of each chain, as iptables-save writes them, without `-A CHAIN`."""

_OURS = re.compile(r"BOX-MCP-(\d+)-")
_TARGET = re.compile(r"-[jg] (\S+)")
_OPENED = re.compile(r"(?:-d (\S+) )?-i bx([0-9a-f]{5})\+ -j RETURN")
_BLOCKS = re.compile(r"-j (DROP|REJECT)\b")


class FirewallError(Exception):
    """The rules can't be read or put in place; `str()` says why."""


@dataclass(frozen=True)
class Order:
    """What is asked for. `tag` begins the names of the owner's bridges, behind ``bx``.

    Resolvers are looked for here, unless they are given. Without `mend`, nothing is changed.
    """

    tag: str = ""
    allow: Sequence[str] = ()
    resolvers: Sequence[str] | None = None
    mend: bool = True


@dataclass(frozen=True)
class Report:
    """How the rules are. `missing` tells what was not in place when they were looked at.

    `lacking` tells for each table that can't be had why so; boxes are guarded without.
    """

    backend: str
    hook: str
    version: int
    missing: Sequence[str]
    lacking: Mapping[str, str]
    resolvers: Sequence[str]
    routes: Sequence[str]


@dataclass(frozen=True)
class Wanted:
    """One table: `chains` are ours; in others, `first` come before all that lets packets pass."""

    first: Chains
    chains: Chains = field(default_factory=dict)


def parse(saved: str) -> dict[str, Chains]:
    """The tables that iptables-save wrote."""
    tables: dict[str, Chains] = {}
    chains: Chains = {}
    for line in saved.splitlines():
        if line.startswith("*"):
            chains = tables.setdefault(line[1:].strip(), {})
        elif line.startswith(":"):
            chains[line[1:].split()[0]] = []
        elif line.startswith("-A "):
            _, chain, rule = line.split(" ", 2)
            chains.setdefault(chain, []).append(rule)
    return tables


def hook_of(chains: Mapping[str, Sequence[str]]) -> str:
    """The chain of table `filter` to jump from: the engine's, if nothing passes before it."""
    others = [rule for rule in chains.get("FORWARD", ()) if not _version(_target(rule))]
    before = list(takewhile(f"-j {DOCKER_USER}".__ne__, others))  # engines may jump there twice
    good = has_engine(chains) and before != others and all(map(_BLOCKS.search, before))
    return DOCKER_USER if good else "FORWARD"


def has_engine(chains: Mapping[str, Sequence[str]]) -> bool:
    """Whether an engine has its own chains in table `filter`."""
    leads_there = any(_target(rule) == DOCKER_USER for rule in chains.get("FORWARD", ()))
    return leads_there and DOCKER_USER in chains


def opened(order: Order, present: Sequence[str], living: Iterable[str]) -> list[str]:
    """The rules that open ranges: the owner's own, and the present ones of others with bridges."""
    others: set[str] = set()
    for rule in present:
        found = _OPENED.fullmatch(rule)
        if found and found[2] in living and found[2] != order.tag and _is_network(found[1]):
            others.add(rule)
    own = {_opening(order.tag, allowed) for allowed in order.allow}
    return sorted(others | own)


def wanted(
    hook: str,
    refusal: Sequence[str],
    resolvers: Sequence[str],
    openings: Sequence[str],
    version: int = VERSION,
) -> Wanted:
    """What `filter` should hold, or `security`, which drops what it refuses."""
    forward, opening, private, inward, refuse = (
        f"BOX-MCP-{version}-{name}" for name in ("FORWARD", "OPEN", "PRIVATE", "INPUT", "REFUSE")
    )
    resolving = [
        f"-d {resolver}/32 -p {protocol} -m {protocol} --dport 53 -j RETURN"
        for resolver in resolvers
        for protocol in ("udp", "tcp")
    ]
    chains = {
        refuse: list(refusal),
        inward: [*resolving, f"-j {refuse}"],
        private: [f"-d {net} -j {refuse}" for net in PRIVATE],
        opening: [*openings, f"-g {private}"],
        forward: [
            f"-i {BRIDGES} -o {BRIDGES} -j {refuse}",
            f"-o {BRIDGES} -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
            f"-o {BRIDGES} -j DROP",
            f"! -i {BRIDGES} -j RETURN",
            *resolving,
            *(f"-d {net} -j {refuse}" for net in NEVER),
            f"-g {opening}",
        ],
    }
    first = {
        hook: [f"-j {forward}"],
        "INPUT": [f"-i {BRIDGES} -j {inward}"],
        "OUTPUT": [f"-o {BRIDGES} -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP"],
    }
    return Wanted(first, chains)


def newest(chains: Mapping[str, Sequence[str]]) -> int:
    """The highest version whose chains are in use; 0 for none."""
    used = (
        _version(_target(rule))
        for chain, rules in chains.items()
        if not _version(chain)
        for rule in rules
    )
    return max(used, default=0)


def lacks(present: Chains, wanted: Wanted) -> list[str]:
    """The chains that are not as they should be."""
    chains = [
        chain
        for chain, rules in wanted.chains.items()
        if chain not in present or list(map(_plain, present[chain])) != list(map(_plain, rules))
    ]
    hooks = [
        chain for chain, rules in wanted.first.items() if not _leads(present.get(chain, []), rules)
    ]
    return [*chains, *hooks, *_stale(present, wanted)]


def mended(present: Chains, wanted: Wanted) -> list[str]:
    """The lines for `iptables-restore --noflush` that make `present` what it should be."""
    obsolete = [chain for chain in present if _version(chain) and chain not in wanted.chains]
    lines = [f":{chain} - [0:0]" for chain in (*wanted.chains, *obsolete)]
    for chain, rules in present.items():
        if not _version(chain):
            first = set(map(_plain, wanted.first.get(chain, ())))
            ours = (rule for rule in rules if _version(_target(rule)) or _plain(rule) in first)
            lines += [f"-D {chain} {rule}" for rule in ours]
    for chain, rules in wanted.chains.items():
        lines += [f"-A {chain} {rule}" for rule in rules]
    for chain, rules in wanted.first.items():
        lines += [f"-I {chain} {place} {rule}" for place, rule in enumerate(rules, 1)]
    return [*lines, *(f"-X {chain}" for chain in obsolete)]


def _stale(present: Chains, wanted: Wanted) -> list[str]:
    """What an older version left, and jumps to ours that are not where they should be."""
    old = [chain for chain in present if _version(chain) and chain not in wanted.chains]
    astray = [
        chain
        for chain, rules in present.items()
        if not _version(chain) and chain not in wanted.first
        if any(_version(_target(rule)) for rule in rules)
    ]
    return [*old, *astray]


def _leads(present: Sequence[str], first: Sequence[str]) -> bool:
    """Whether each of `first` is there once, in order, and before all that lets packets pass."""
    ours = [_plain(rule) for rule in first]
    places = [place for place, rule in enumerate(present) if _plain(rule) in ours]
    if [_plain(present[place]) for place in places] != ours:
        return False
    return all(_BLOCKS.search(rule) for rule in present[: places[-1]] if _plain(rule) not in ours)


def _plain(rule: str) -> tuple[str, ...]:
    """A rule in a form that does not differ from one version of iptables to the next."""
    return tuple(sorted(re.sub(r"-m (udp|tcp) ", "", rule).split()))


def _target(rule: str) -> str:
    found = _TARGET.search(rule)
    return found[1] if found else ""


def _version(chain: str) -> int:
    """Of a chain that is ours; 0 of others."""
    found = _OURS.match(chain)
    return int(found[1]) if found else 0


def _opening(tag: str, allowed: str) -> str:
    everything = IPv4Network(allowed).prefixlen == 0
    return f"{'' if everything else f'-d {allowed} '}-i bx{tag}+ -j RETURN"


def _is_network(text: str | None) -> bool:
    try:
        return text is None or bool(IPv4Network(text))
    except ValueError:
        return False


# What this machine has


def resolvers() -> tuple[str, ...]:
    """The IPv4 addresses that boxes' queries go to: the engine takes them from these files."""
    texts = map(_read, ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"))
    named = [name for text in texts for name in re.findall(r"(?m)^\s*nameserver\s+(\S+)", text)]
    with suppress(ValueError, KeyError, TypeError):  # it names none
        named += json.loads(_read("/etc/docker/daemon.json"))["dns"]
    return usable(named)


def usable(names: Iterable[object]) -> tuple[str, ...]:
    """Those that are IPv4 addresses which a box can send to."""
    found: set[IPv4Address] = set()
    for name in names:
        try:
            address = IPv4Address(str(name))
        except ValueError:
            continue
        if not address.is_loopback and not address.is_unspecified and not address.is_multicast:
            found.add(address)
    return tuple(map(str, sorted(found)[:MOST_RESOLVERS]))


def routes(table: str | None = None) -> tuple[str, ...]:
    """The networks that this machine has routes to, without the default."""
    lines = (_read("/proc/net/route") if table is None else table).splitlines()[1:]
    columns = (line.split() for line in lines)
    found = {(_address(column[1]), _address(column[7])) for column in columns if len(column) > 7}
    nets = (IPv4Network(f"{address}/{mask}") for address, mask in found)
    return tuple(map(str, sorted(net for net in nets if net.prefixlen)))


def bridges() -> list[str]:
    """The names of all bridges of boxes that there are here."""
    prefix = BRIDGES.rstrip("+")
    return [name for _, name in socket.if_nameindex() if name.startswith(prefix)]


def _address(hexadecimal: str) -> str:
    return str(IPv4Address(int.from_bytes(bytes.fromhex(hexadecimal), "little")))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# Acts


@dataclass(frozen=True)
class Backend:
    """One of the kernel's two firewalls: `program` is its iptables, without ``-save``."""

    program: str

    def saved(self, *, ipv6: bool = False) -> dict[str, Chains]:
        """All its tables."""
        return parse(_run([self._named("save", ipv6)]))

    def restore(self, table: str, lines: Sequence[str], *, ipv6: bool = False) -> None:
        """Changes one table in one step."""
        text = "\n".join([f"*{table}", *lines, "COMMIT", ""])
        _run([self._named("restore", ipv6), "--noflush", "-w", LOCK_PATIENCE], text)

    @property
    def name(self) -> str:
        """``nft`` or ``legacy``."""
        return "nft" if "nft" in Path(self.program).resolve().name else "legacy"

    def _named(self, what: str, ipv6: bool) -> str:
        path = Path(self.program)
        name = path.name.replace("iptables", "ip6tables") if ipv6 else path.name
        return str(path.with_name(f"{name}-{what}"))


def backends() -> list[Backend]:
    """Those that are installed, the machine's usual one first."""
    path = os.pathsep.join((os.environ.get("PATH", ""), *SYSTEM_PATH))
    names = ("iptables", "iptables-nft", "iptables-legacy")
    found = (shutil.which(f"{name}-restore", path=path) for name in names)
    every = [Backend(program[: -len("-restore")]) for program in found if program]
    return list({one.name: one for one in reversed(every)}.values())[::-1]


class Work:
    """One look after all tables; what it found is gathered here."""

    def __init__(self, order: Order, backend: Backend) -> None:
        self._mend = order.mend
        self._backend = backend
        self.missing: list[str] = []
        self.lacking: dict[str, str] = {}

    def settle(self, table: str, present: Chains, want: Wanted, *, ipv6: bool = False) -> None:
        """Makes the table `present` what it should be; raises FirewallError for `filter`."""
        lack = lacks(present, want)
        shown = "ipv6" if ipv6 else table
        self.missing += [f"{shown} {chain}" for chain in lack]
        if not lack or not self._mend:
            return
        try:
            self._change(table, present, want, ipv6)
        except FirewallError as error:
            if shown == "filter":
                raise
            self.lacking[shown] = str(error)

    def settle_ipv6(self) -> None:
        """Closes it; boxes have no IPv6 anyway, as far as their engine sees to it."""
        try:
            present = self._backend.saved(ipv6=True).get("filter", {})
        except FirewallError as error:
            self.lacking["ipv6"] = str(error)
        else:
            self.settle("filter", present, Wanted(IPV6), ipv6=True)

    def _change(
        self, table: str, present: Chains, want: Wanted, ipv6: bool, attempts: int = ATTEMPTS
    ) -> None:
        try:
            self._backend.restore(table, mended(present, want), ipv6=ipv6)
        except FirewallError:
            if attempts == 1:
                raise
            present = self._backend.saved(ipv6=ipv6).get(table, {})
            self._change(table, present, want, ipv6, attempts - 1)


def ensure(order: Order) -> Report:
    """Looks after the rules; raises FirewallError."""
    backend, present = _engines_backend()
    work = Work(order, backend)
    names = usable(resolvers() if order.resolvers is None else order.resolvers)
    filtering = present.get("filter", {})
    hook, version = hook_of(filtering), max(VERSION, newest(filtering))
    if version == VERSION:
        for table, want in _tables(order, present, hook, names).items():
            work.settle(table, present.get(table, {}), want)
    if Path("/proc/net/if_inet6").exists():
        work.settle_ipv6()
    return Report(backend.name, hook, version, work.missing, work.lacking, names, routes())


def _engines_backend() -> tuple[Backend, dict[str, Chains]]:
    """The one that the engine's own chains are in; without such, the machine's usual one."""
    installed = backends()
    if not installed:
        raise FirewallError("there is no iptables here")
    looks = [
        (one, one.saved()) for one in installed if one.name == "nft" or _legacy_in_use(installed)
    ]
    for one, tables in looks:
        if has_engine(tables.get("filter", {})):
            return one, tables
    return looks[0]


def _legacy_in_use(installed: Sequence[Backend]) -> bool:
    """A look at the legacy firewall's tables would make them, where nobody uses it."""
    return len(installed) == 1 or "filter" in _read("/proc/net/ip_tables_names").split()


def _tables(
    order: Order, present: Mapping[str, Chains], hook: str, names: Sequence[str]
) -> dict[str, Wanted]:
    prefix = len(BRIDGES) - 1
    living = {name[prefix : prefix + 5] for name in bridges()}
    chains = present.get("filter", {}).get(f"BOX-MCP-{VERSION}-OPEN", [])
    openings = opened(order, chains, living)
    return {
        "filter": wanted(hook, REJECTING, names, openings),
        "security": wanted("FORWARD", DROPPING, names, openings),
        "raw": Wanted(RAW),
    }


def _run(command: Sequence[str], text: str = "") -> str:
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FirewallError(f"{name}: {error}") from error
    if done.returncode:
        raise FirewallError(f"{name}: {done.stderr.strip()[-500:] or done.returncode}")
    return done.stdout


def main(arguments: Sequence[str]) -> int:
    """What the program does; its exit status."""
    try:
        report = asdict(ensure(Order(**json.loads(arguments[0]))))
    except FirewallError as error:
        report = {"error": str(error)}
    sys.stdout.write(json.dumps(report))
    return "error" in report


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
