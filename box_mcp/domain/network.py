"""What a box may reach: a mode, and for the mode `allowlist` the rules; pure.

A rule names a host and ports: ``example.org`` (ports 80 and 443), ``*.example.org`` (every name
below it, not itself), ``10.1.0.0/16``, ``192.0.2.7:5432``, ``[2001:db8::/32]:443``,
``example.org:8000-8010``, ``example.org:*``. A name is looked up on the host, and what it leads to
must be public: private addresses are reached by rules that name them as addresses.

Names are compared in one form: lower case, ASCII (IDNA), no dot at the end. An IPv4 address is four
decimal numbers, and an IPv6 address that stands for one is that one. Other ways to write
addresses, which resolvers take for names (``0x7f.1``, ``127.1``, ``2130706433``), are no hosts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Self

from box_mcp.errors import InvalidArgument

Address = IPv4Address | IPv6Address
Range = IPv4Network | IPv6Network
Host = str | Address
"""A name in the form that rules have, or an address."""

WEB_PORTS = ((80, 80), (443, 443))  # of a rule that names none
ALL_PORTS = ((1, 65535),)
MAX_RULES = 200  # of one box
MAX_NAME = 253  # characters of a name, as in DNS

NOT_PUBLIC = tuple(
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3"),
        *("168.63.129.16/32",),  # Azure's metadata
        *("::/3", "4000::/2", "8000::/1"),  # all but 2000::/3
        *("2001::/23", "2002::/16"),  # IPv4 in disguise among others, as in ::/3
    )
)
"""What `full` does not reach, nor a name in a rule: this machine, its network, its cloud."""

NEVER = tuple(
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"),
        *("168.63.129.16/32", "100.100.100.200/32", "192.0.0.192/32"),  # clouds' metadata
        *("::/128", "fe80::/10", "ff00::/8", "fd00:ec2::/32", "fd20:ce::/32"),
        *("64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16"),
    )
)
"""What no rule opens: what is no machine's, what clouds tell their machines, IPv4 in disguise."""

_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # as the last label, it makes an IPv4 address of all
_RULE = re.compile(r"(?:\[(?P<six>[^\]]+)\]|(?P<host>[^\[\]:]+))(?::(?P<ports>.+))?")
_DISPUTED = re.compile("[\u00df\u1e9e\u03c2\u200c\u200d]")
"""What one version of IDNA replaces and the next does not: they make two names of one."""
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")

NO_RULE = "no rule allows it"
"""Why most connections are refused."""


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

    def apart(self) -> tuple[Rule, ...]:
        """As many rules as it has ranges of ports."""
        return tuple(replace(self, ports=(one,)) for one in self.ports)

    def covers(self, other: Rule) -> bool:
        """Whether all that `other` allows is allowed by this one alone."""
        ports = all(any(low <= a and b <= high for low, high in self.ports) for a, b in other.ports)
        return ports and self._covers_host(other.host)

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
    return not any(_overlap(addresses, one) for one in NOT_PUBLIC)


def _overlap(one: Range, other: Range) -> bool:
    if isinstance(one, IPv4Network):
        return isinstance(other, IPv4Network) and one.overlaps(other)
    return isinstance(other, IPv6Network) and one.overlaps(other)


def parse_host(text: str) -> Host | None:
    """The host that `text` writes, without brackets or port; None for what is none."""
    if len(text) > MAX_NAME + 1:
        return None
    name = _ascii(text)
    try:
        return plain(ip_address(name)) if "%" not in name else None
    except ValueError:
        name = name.removesuffix(".")
        return name if _is_name(name) else None


def plain(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, if it does; else itself."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped


def _ascii(text: str) -> str:
    """In the form in which names are looked up and compared."""
    if _DISPUTED.search(text):
        return ""
    try:
        return (text if text.isascii() else text.encode("idna").decode()).lower()
    except UnicodeError:
        return ""


def _is_name(text: str) -> bool:
    fits = len(text) <= MAX_NAME and _NAME.fullmatch(text) is not None
    return fits and _NUMBER.fullmatch(text.rpartition(".")[2]) is None


def parse_rule(text: str) -> Rule:
    """The rule that `text` writes; raises InvalidArgument. ``*`` alone is every name."""
    found = _RULE.fullmatch(text.strip())
    host = None
    if found is not None:
        host = _range(found["six"], 6) if found["six"] else _host(found["host"])
    if found is None or host is None:
        raise InvalidArgument("allow", f"has {text[:MAX_NAME]!r}: {GRAMMAR}")
    return Rule(host, _ports(text, found["ports"]))


GRAMMAR = (
    "a rule is a host and perhaps ports, such as example.org, *.example.org, example.org:8443, "
    "10.1.0.0/16:5432, [2001:db8::/32] or example.org:*"
)


def _host(text: str) -> str | Range | None:
    if text == "*":
        return text
    below = text.startswith("*.")
    named = parse_host(text.removeprefix("*."))
    if below or isinstance(named, str):
        return ("*." if below else "") + named if isinstance(named, str) else None
    return _range(text, 4)


def _range(text: str, version: int) -> Range | None:
    try:
        found = ip_network(text, strict=False)
    except ValueError:
        return None
    return found if found.version == version and "%" not in text else None


def _ports(text: str, ports: str | None) -> tuple[tuple[int, int], ...]:
    if ports is None:
        return WEB_PORTS
    if ports == "*":
        return ALL_PORTS
    found = _PORTS.fullmatch(ports)
    if found is None:
        raise InvalidArgument("allow", f"has {text[:MAX_NAME]!r}: {GRAMMAR}")
    low = int(found[1])
    high = int(found[2] or low)
    if not 1 <= low <= high <= 65535:
        detail = "ports are 1 to 65535, the lower one first"
        raise InvalidArgument("allow", f"has {text[:MAX_NAME]!r}: {detail}")
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
        """What is wider here than in `ceiling`, in words; nothing if nothing is.

        The mode and each rule count by themselves: what is wider than two networks is what both
        answers have.
        """
        mode = (f"network {self.mode.value!r}",) if self._is_wider(ceiling) else ()
        rules = self.allow if self.mode is Mode.ALLOWLIST else ()
        return (*mode, *(str(rule) for rule in rules if not ceiling._includes(rule)))

    def within(self, ceiling: Network) -> Network:
        """The same, less what is beyond `ceiling`; rules that another mode may need, too."""
        if self._is_wider(ceiling):
            return ceiling
        return replace(self, allow=tuple(rule for rule in self.allow if ceiling._includes(rule)))

    def _is_wider(self, ceiling: Network) -> bool:
        return WIDTH[self.mode] > WIDTH[ceiling.mode]

    def _includes(self, rule: Rule) -> bool:
        """Whether a box with this network reaches what one with the rule does."""
        if self.mode is Mode.NONE:
            return False
        # `full` reaches what is public only, and a proxy on the host everything that the host does.
        return self.covers(rule) or (self.mode is Mode.FULL and not rule.private)

    def covers(self, rule: Rule) -> bool:
        """Whether its rules allow all that `rule` does."""
        return all(any(one.covers(part) for one in self.allow) for part in rule.apart())

    def names(self, host: Host, port: int) -> bool:
        """Whether a host may be asked for; where a name then leads is another question.

        A name is looked up only if so: to look up any name would be a way to send data out.
        """
        if self.mode is Mode.ALLOWLIST:
            return self.covers(_exactly(host, port))
        return self.mode is Mode.FULL

    def permits(
        self, host: Host, port: int, addresses: Iterable[Address], surroundings: Surroundings
    ) -> Verdict:
        """Which of the addresses that `host` leads to a proxy on the host may connect to."""
        if self.mode is Mode.NONE:
            return Verdict("the box has no network")
        if not self.names(host, port):
            return Verdict(NO_RULE)
        reasons = {one: self._against(one, port, surroundings) for one in addresses}
        good = tuple(one for one, reason in reasons.items() if not reason)
        address, reason = next(iter(reasons.items()), (host, "it leads nowhere"))
        told = reason if host == address else f"it leads to {address}, and {reason}"
        return Verdict("" if good else told, good)

    def _against(self, address: Address, port: int, surroundings: Surroundings) -> str:
        """Why a host that may be asked for may not lead to this address; nothing if it may."""
        if any(address in one for one in (*NEVER, *surroundings.closed)):
            return "that is never reached from boxes"
        public = is_public(ip_network(address))
        opened = any(address in one for one in surroundings.opened)
        named = self.mode is Mode.ALLOWLIST and self.names(address, port)
        if address in surroundings.own:
            # Tools need nobody's approval for a rule that names what is opened.
            good = named and not public and not opened
            return "" if good else "that is the user's own machine, or in its own network"
        if public or opened or named:
            return ""
        return "that is not public: only a rule that names the address itself allows it"


@dataclass(frozen=True)
class Surroundings:
    """What is peculiar to a machine: `own` are its addresses, and public ones beside them.

    `opened` are private ranges that any box may reach, but for `own`, and `closed` such that none
    may.
    """

    opened: tuple[Range, ...] = ()
    closed: tuple[Range, ...] = ()
    own: frozenset[Address] = frozenset()


@dataclass(frozen=True)
class Verdict:
    """The addresses that may be connected to; if there are none, the reason in words."""

    reason: str
    addresses: tuple[Address, ...] = ()


def _exactly(host: Host, port: int) -> Rule:
    return Rule(host if isinstance(host, str) else ip_network(host), ((port, port),))


def parse_rules(texts: Sequence[str]) -> tuple[Rule, ...]:
    """The rules that are written so, each once; raises InvalidArgument."""
    if len(texts) > MAX_RULES:
        raise InvalidArgument("allow", f"has more than {MAX_RULES} rules")
    return tuple(dict.fromkeys(parse_rule(text) for text in texts))
