"""Exposed ports under names of their own, below one domain: who may come in, what passes; pure.

Each port of each box is a site: ``box-a1b2c3d4-3000.ports.example.com``. So browsers keep what one
stores apart from what all others do. But they call the sites of one domain the *same* site, and
send cookies along when a page of one calls another: so what a page of another site sends is
refused, but for links that somebody follows, and for pages of the same box.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from box_mcp.domain.names import BoxId, is_id

DOOR = "/.box-mcp/"
"""What paths begin with that are ours, not the box's."""

SECURE_COOKIE = "__Host-box_mcp"
"""Browsers take it from this very host only, by https: no other site can set it or read it."""
PLAIN_COOKIE = "box_mcp"
"""The same by plain http, on the machine itself."""

FORWARDED = (b"forwarded", b"x-forwarded-", b"x-real-ip")
"""What the names of headers begin with by which a proxy tells of whom it speaks for."""

MEANT_FOR_ALL = frozenset((b"clear-site-data", b"alt-svc"))
"""Headers of answers that mean more than the site that they come from."""

MEANT_FOR_PROXIES = (b"x-accel-", b"x-sendfile", b"x-lighttpd-", b"x-litespeed-", b"x-reproxy-")
"""What the names of headers begin with by which an answer has a proxy send something else, such as
a file that only the proxy can read.
"""

USUAL_PORTS = {"http": 80, "https": 443}

_LABEL = re.compile(r"(.+)-([1-9][0-9]{0,4})")
_AUTHORITY = re.compile(r"([A-Za-z0-9.-]{1,253})(?::[0-9]{1,5})?")

Headers = Sequence[tuple[bytes, bytes]]


def label_of(box: BoxId, port: int) -> str:
    """What a port of a box is called below the domain."""
    return f"{box}-{port}"


def parse_label(label: str) -> tuple[BoxId, int] | None:
    """The box and port that `label` is of; None where it can be of none."""
    found = _LABEL.fullmatch(label)
    if found is None or not is_id(found[1]) or int(found[2]) > 65535:
        return None
    return BoxId(found[1]), int(found[2])


@dataclass(frozen=True)
class Domain:
    """Where sites are: below `suffix`, by `scheme`; `port` is the one that browsers ask."""

    scheme: str
    suffix: str
    port: int

    @classmethod
    def beside(cls, url: str, suffix: str) -> Domain | None:
        """That of a server which clients know by `url`: below `suffix`, or localhost on a loopback.

        None where there is no such name.
        """
        parts = urlsplit(url)
        suffix = suffix or ("localhost" if _is_loopback(parts.hostname or "") else "")
        port = parts.port or USUAL_PORTS[parts.scheme]
        return cls(parts.scheme, suffix.lower().strip("."), port) if suffix else None

    @property
    def secure(self) -> bool:
        """Whether browsers come by https."""
        return self.scheme == "https"

    @property
    def cookie(self) -> str:
        """The name of the cookie that lets a browser in."""
        return SECURE_COOKIE if self.secure else PLAIN_COOKIE

    def origin(self, label: str) -> str:
        """Of a site, as browsers write it."""
        port = "" if USUAL_PORTS.get(self.scheme) == self.port else f":{self.port}"
        return f"{self.scheme}://{label}.{self.suffix}{port}"

    def label(self, host: str) -> str | None:
        """What a Host header says before the domain; None where it is not below it."""
        found = _AUTHORITY.fullmatch(host)
        label, dot, suffix = found[1].lower().partition(".") if found else ("", "", "")
        return label if dot and suffix == self.suffix else None

    def foreign(self, label: str, method: str, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a page of another box or of another server sent it, and it is no link.

        Programs that are no browsers say nothing of that.
        """
        target = headers.get(b"sec-fetch-mode"), headers.get(b"sec-fetch-dest")
        if target == (b"navigate", b"document") and method in ("GET", "HEAD"):
            return False
        if (origin := headers.get(b"origin")) is not None:
            return not self._akin(label, origin.decode("latin-1"))
        return headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site")

    def _akin(self, label: str, origin: str) -> bool:
        """Whether `origin` is a site of the same box."""
        there = self.label(origin.partition("://")[2])
        if there is None or origin != self.origin(there):
            return False
        one, other = parse_label(label), parse_label(there)
        return one is not None and other is not None and one[0] == other[0]


def cookies(headers: Headers, name: str) -> list[str]:
    """The values of all cookies of this name: pages can set more of them, with another path."""
    prefix = f"{name}=".encode()
    return [
        pair[len(prefix) :].decode("latin-1")
        for pair in _pairs(value for key, value in headers if key == b"cookie")
        if pair.startswith(prefix)
    ]


def to_box(headers: Headers, cookie: str, *, authorization: bool) -> list[tuple[bytes, bytes]]:
    """What a box gets to see of a request's headers.

    `authorization` tells whether the header of this name is the box's own business.
    """
    passed: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        lower = name.lower()
        if lower == b"cookie":
            prefix = f"{cookie}=".encode()
            kept = [pair for pair in _pairs([value]) if not pair.startswith(prefix)]
            if kept:
                passed.append((name, b"; ".join(kept)))
        elif lower == b"expect" or lower.startswith(FORWARDED):
            continue
        elif lower != b"authorization" or authorization:
            passed.append((name, value))
    return passed


def from_box(headers: Headers, cookie: str) -> list[tuple[bytes, bytes]]:
    """What a browser gets to see of an answer's headers: cookies are for their own site only."""
    passed: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        lower = name.lower()
        if lower == b"set-cookie":
            first, *attributes = value.split(b";")
            if first.partition(b"=")[0].strip().lower() == cookie.lower().encode():
                continue
            kept = [
                one for one in attributes if one.partition(b"=")[0].strip().lower() != b"domain"
            ]
            passed.append((name, b";".join([first, *kept])))
        elif lower not in MEANT_FOR_ALL and not lower.startswith(MEANT_FOR_PROXIES):
            passed.append((name, value))
    return passed


def _pairs(values: Iterable[bytes]) -> list[bytes]:
    """The cookies of Cookie headers."""
    return [pair for value in values for one in value.split(b";") if (pair := one.strip())]


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
