"""What a box may reach: a mode, and for the mode `allowlist` the rules; pure.

A rule names a host and ports: ``example.org`` (ports 80 and 443), ``*.example.org`` (every name
below it, not itself), ``10.1.0.0/16``, ``192.0.2.7:5432``, ``[2001:db8::/32]:443``,
``example.org:8000-8010``, ``example.org:*``. A name is looked up on the host, and what it leads to
must be public: private addresses are reached by rules that name them as addresses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any, Self

from box_mcp.errors import InvalidArgument

Address = IPv4Address | IPv6Address
Range = IPv4Network | IPv6Network

WEB_PORTS = ((80, 80), (443, 443))  # of a rule that names none
ALL_PORTS = ((1, 65535),)
MAX_RULES = 200  # of one box

NOT_PUBLIC = tuple(
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3"),
        *("168.63.129.16/32",),  # Azure's metadata
        *("::/8", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16"),  # IPv4 in disguise
        *("100::/64", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
    )
)
"""What `full` does not reach, nor a name in a rule: this machine, its network, its cloud."""

_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*\.?")
_RULE = re.compile(r"(?:\[(?P<six>[^\]]+)\]|(?P<host>[^\[\]:]+))(?::(?P<ports>.+))?")
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


class Mode(StrEnum):
    """How much of the network a box has; each is narrower than the one before."""

    FULL = "full"
    """Everything outside that is public, and what `allow_cidrs` opens; nothing comes in."""
    ALLOWLIST = "allowlist"
    """No interface; connections to what the rules name go through the server's proxy."""
    NONE = "none"
    """No interface but the box's own loopback."""


WIDTH = {Mode.NONE: 0, Mode.ALLOWLIST: 1, Mode.FULL: 2}


@dataclass(frozen=True)
class Rule:
    """A host, as a name in lower case or a range of addresses, and ranges of ports."""

    host: str | Range
    ports: tuple[tuple[int, int], ...] = WEB_PORTS

    def __str__(self) -> str:
        host = f"[{self.host}]" if isinstance(self.host, IPv6Network) else str(self.host)
        if isinstance(self.host, IPv4Network | IPv6Network) and self.host.num_addresses == 1:
            host = host.replace(f"/{self.host.max_prefixlen}", "")
        if self.ports == WEB_PORTS:
            return host
        if self.ports == ALL_PORTS:
            return f"{host}:*"
        low, high = self.ports[0]
        return f"{host}:{low}" if low == high else f"{host}:{low}-{high}"

    @property
    def private(self) -> bool:
        """Whether it names addresses that are not all public."""
        return not isinstance(self.host, str) and not is_public(self.host)

    def covers(self, other: Rule) -> bool:
        """Whether all that `other` allows is allowed by this one alone."""
        ports = all(any(low <= a and b <= high for low, high in self.ports) for a, b in other.ports)
        return ports and self._covers_host(other.host)

    def names(self, name: str, port: int) -> bool:
        """Whether it allows connections to a host by this name, in lower case."""
        return self.covers(Rule(name, ((port, port),)))

    def holds(self, address: Address, port: int) -> bool:
        """Whether it allows connections to an address as such."""
        host = self.host
        inside = not isinstance(host, str) and address in host
        return inside and any(low <= port <= high for low, high in self.ports)

    def _covers_host(self, other: str | Range) -> bool:
        mine = self.host
        if isinstance(mine, IPv4Network):
            return isinstance(other, IPv4Network) and other.subnet_of(mine)
        if isinstance(mine, IPv6Network):
            return isinstance(other, IPv6Network) and other.subnet_of(mine)
        if not isinstance(other, str):
            return False
        return mine in ("*", other) or (mine.startswith("*.") and other.endswith(mine[1:]))


def is_public(addresses: Range) -> bool:
    """Whether all of them are."""
    if isinstance(addresses, IPv4Network):
        return not any(addresses.overlaps(one) for one in NOT_PUBLIC if one.version == 4)
    return not any(addresses.overlaps(one) for one in NOT_PUBLIC if one.version == 6)


def parse_rule(text: str) -> Rule:
    """The rule that `text` writes; raises InvalidArgument. ``*`` alone is every name."""
    found = _RULE.fullmatch(text.strip().lower())
    if found is None:
        raise InvalidArgument("allow", f"has {text!r}: {GRAMMAR}")
    return Rule(_host(text, found["six"] or found["host"]), _ports(text, found["ports"]))


GRAMMAR = (
    "a rule is a host and perhaps ports, such as example.org, *.example.org, example.org:8443, "
    "10.1.0.0/16:5432, [2001:db8::/32] or example.org:*"
)


def _host(text: str, host: str) -> str | Range:
    if host == "*":
        return host
    try:
        return ip_network(host, strict=False)
    except ValueError:
        pass
    named = host.encode("idna").decode() if not host.isascii() else host
    if len(named) > 253 or not _NAME.fullmatch(named) or named[-1:].isdigit():
        raise InvalidArgument("allow", f"has {text!r}: {GRAMMAR}")
    return named.rstrip(".")


def _ports(text: str, ports: str | None) -> tuple[tuple[int, int], ...]:
    if ports is None:
        return WEB_PORTS
    if ports == "*":
        return ALL_PORTS
    found = _PORTS.fullmatch(ports)
    if found is None:
        raise InvalidArgument("allow", f"has {text!r}: {GRAMMAR}")
    low = int(found[1])
    high = int(found[2] or low)
    if not 1 <= low <= high <= 65535:
        raise InvalidArgument("allow", f"has {text!r}: ports are 1 to 65535, the lower one first")
    return ((low, high),)


@dataclass(frozen=True)
class Network:
    """What a box may reach. `allow` is of use in the mode `allowlist` only."""

    mode: Mode = Mode.FULL
    allow: tuple[Rule, ...] = ()

    def __str__(self) -> str:
        rules = f" ({', '.join(map(str, self.allow)) or 'nothing'})"
        return self.mode + (rules if self.mode is Mode.ALLOWLIST else "")

    def record(self) -> dict[str, Any]:
        """Plain values; `of` reads them."""
        return {"mode": self.mode.value, "allow": [str(rule) for rule in self.allow]}

    @classmethod
    def of(cls, record: Mapping[str, Any] | str) -> Self:
        """What `record` wrote, or an earlier version, which knew modes only."""
        if isinstance(record, str):
            return cls(Mode(record))
        return cls(Mode(record["mode"]), tuple(parse_rule(rule) for rule in record["allow"]))

    def beyond(self, ceiling: Network) -> tuple[str, ...]:
        """What is wider here than in `ceiling`, in words; nothing if nothing is."""
        if WIDTH[self.mode] > WIDTH[ceiling.mode]:
            return (f"network {self.mode.value!r}",)
        if self.mode is not Mode.ALLOWLIST:
            return ()
        known = ceiling.allow
        wide = [rule for rule in self.allow if not any(one.covers(rule) for one in known)]
        # `full` reaches what is public only, and a proxy on the host everything that the host does.
        return tuple(str(rule) for rule in wide if ceiling.mode is not Mode.FULL or rule.private)

    def within(self, ceiling: Network) -> Network:
        """The same, less what is beyond `ceiling`."""
        if WIDTH[self.mode] > WIDTH[ceiling.mode]:
            return ceiling
        beyond = self.beyond(ceiling)
        return replace(self, allow=tuple(rule for rule in self.allow if str(rule) not in beyond))


def parse_rules(texts: Sequence[str]) -> tuple[Rule, ...]:
    """The rules that are written so, each once; raises InvalidArgument."""
    if len(texts) > MAX_RULES:
        raise InvalidArgument("allow", f"has more than {MAX_RULES} rules")
    return tuple(dict.fromkeys(parse_rule(text) for text in texts))
