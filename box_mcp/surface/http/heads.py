"""What the head of a request says, as far as it decides anything; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from box_mcp.surface.http.answers import CLOSE, Headers, Refused

Network = IPv4Network | IPv6Network

ONCE = frozenset(
    {b"host", b"origin", b"authorization", b"content-length", b"content-type", b"mcp-session-id"}
)
"""Of which nobody could tell which one counts, if there were two."""

FORWARDED_FOR, FORWARDED_PROTO = b"x-forwarded-for", b"x-forwarded-proto"
FORWARDED = frozenset({FORWARDED_FOR, FORWARDED_PROTO})
MCP_METHOD = b"mcp-method"
MCP_NAME = b"mcp-name"
PREFLIGHT = b"access-control-request-method"

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
UNIX = "unix"
"""The address of whoever comes by a unix socket."""

_AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")
_CLIENT_NET = 64  # bits of an IPv6 address that tell one customer from another


def only(headers: Headers, version: str = "1.1") -> dict[bytes, bytes]:
    """Each header's value; raises Refused where they contradict each other.

    Whoever stands before this server may take such a request for another one; so it may one with
    chunks in a `version` of HTTP that has none. Those by which proxies tell whom they speak for
    are joined.
    """
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name not in found:
            found[name] = value
        elif name in ONCE:
            raise Refused(400, f"two headers {name.decode()}", "A header was sent twice")
        elif name in FORWARDED:
            found[name] += b"," + value
    if b"transfer-encoding" in found and (b"content-length" in found or version == "1.0"):
        raise Refused(400, "two lengths", "The body has two lengths", [CLOSE])
    return found


def host_of(authority: bytes) -> str:
    """The name in a Host header, in small letters, without its port; raises Refused."""
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        raise Refused(400, "no host", "The Host header is missing, or none")
    return found[1].decode().lower()


class Names:
    """By which names the server is spoken to, and pages of which origins may do so.

    A page of some other name that leads here, too, is kept out by its name; one that has no name,
    only the very address of the connection, is none that leads astray.
    """

    def __init__(self, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> None:
        self._hosts = frozenset(host.lower() for host in (*LOOPBACK_NAMES, *hosts))
        self._origins = frozenset(origin.lower().rstrip("/") for origin in origins)

    def __str__(self) -> str:
        return ", ".join(sorted(self._hosts))

    def has(self, host: str, local: str) -> bool:
        """Whether `host` is one; `local` is the address that the connection came to."""
        return host in self._hosts or (bool(local) and host == bracketed(local))

    def welcome(self, origin: bytes) -> bool:
        """Whether pages of this origin may ask, and be given answers."""
        return origin.decode("latin-1").lower() in self._origins


def same_origin(origin: bytes, scheme: str, authority: bytes) -> bool:
    """Whether a page comes from where it asks."""
    return origin.lower() == scheme.encode() + b"://" + authority.lower()


def bracketed(address: str) -> str:
    """An address as it stands in a URL."""
    return f"[{address}]" if ":" in address else address


class Proxies:
    """Whom to believe that they speak for somebody else."""

    def __init__(self, trusted: Iterable[Network] = ()) -> None:
        self._trusted = tuple(trusted)

    def trusts(self, address: str) -> bool:
        """Whether it is one of them; whoever may use the unix socket is, if there are any."""
        if not self._trusted or address == UNIX:
            return bool(self._trusted)
        parsed = _address(address)
        return parsed is not None and any(parsed in network for network in self._trusted)

    def client(self, peer: str, headers: dict[bytes, bytes]) -> str:
        """Who asks: the last one of the chain that is no proxy of ours."""
        if not self.trusts(peer):
            return peer
        chain = headers.get(FORWARDED_FOR, b"").decode("latin-1").split(",")
        for hop in reversed([hop.strip() for hop in chain if hop.strip()]):
            parsed = _address(hop)
            if parsed is None:
                return peer
            peer = str(parsed)
            if not self.trusts(peer):
                break
        return peer

    def scheme(self, peer: str, scheme: str, headers: dict[bytes, bytes]) -> str:
        """How the client came: ``http`` or ``https``."""
        said = headers.get(FORWARDED_PROTO, b"").rsplit(b",")[-1].strip().lower()
        return said.decode() if said in (b"http", b"https") and self.trusts(peer) else scheme


def is_here(peer: str) -> bool:
    """Whether the other end of a connection is on this machine."""
    parsed = _address(peer)
    return peer == UNIX if parsed is None else parsed.is_loopback


def neighbourhood(client: str) -> str:
    """Of whom one may think that it is one client: its address, or its customer's network."""
    parsed = _address(client)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((parsed, _CLIENT_NET), strict=False))
    return client


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        parsed = ip_address(text)
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return mapped or parsed
