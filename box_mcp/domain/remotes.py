"""Remotes: where a repository of a box is kept, by the URL that its git names; pure.

The URL is whatever a box says, so it is taken only where it can mean one thing. User names and
passwords in it are passed over, and never repeated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from box_mcp.domain.routes import PORTS as WEB_PORTS
from box_mcp.domain.routes import Route, Upstream, authority

ROUTES_PORT = 3129
"""Of a box's own loopback: its routes are there, each below its name."""

MAX_URL = 2048  # characters
PORTS = {**WEB_PORTS, "ssh": 22}
SSH = {"ssh": "ssh", "git+ssh": "ssh", "ssh+git": "ssh"}  # git takes all three

_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?|[0-9a-f:.]*:[0-9a-f:.]*")
_SHORT = re.compile(
    r"(?:[^@:/]+@)?(?:\[(?P<bracketed>[^\]]+)\]|(?P<host>[^@:/\[\]]+)):(?P<path>.+)"
)
"""As scp writes it: ``git@host:path``, or ``git@[host:port]:path``."""


@dataclass(frozen=True)
class Remote:
    """A repository on a server: by http, https or ssh; `path` is without ``.git``."""

    scheme: str
    host: str
    port: int
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{authority(self.host, self.port, PORTS[self.scheme])}/{self.path}"


@dataclass(frozen=True)
class Way:
    """A repository, by one of a box's routes."""

    route: Route
    repository: str


def parse_remote(url: str) -> Remote | None:
    """What a URL of git's names; None where that is no server's, such as a path or ``file://``."""
    if len(url) > MAX_URL or not re.fullmatch(r"[!-\[\]-~]+", url) or {"?", "#"} & {*url}:
        return None
    if "://" not in url:
        return _parse_short(url)
    try:
        parts = urlsplit(url)
        scheme = SSH.get(parts.scheme, parts.scheme)
        port = PORTS[scheme] if parts.port is None else parts.port
    except (ValueError, KeyError):
        return None
    return _remote(scheme, parts.hostname or "", port, parts.path)


def ways(remote: Remote, routes: Iterable[Route]) -> tuple[Way, ...]:
    """Those of a box's routes that lead to a remote: the closest first, then in their order.

    A route also leads to what ssh names on its host. Whether it allows anything there is not
    asked.
    """
    if remote.host in {"127.0.0.1", "localhost"} and remote.port == ROUTES_PORT:
        name, _, path = remote.path.partition("/")
        found = [Way(route, path) for route in routes if route.name == name and path]
    else:
        below = [(route, _below(remote, route.upstream)) for route in routes]
        found = [Way(route, repository) for route, repository in below if repository]
    return tuple(sorted(found, key=lambda way: -len(way.route.upstream.path)))


def _parse_short(url: str) -> Remote | None:
    found = _SHORT.fullmatch(url)
    if found is None or found["path"].startswith(":"):  # ``helper::address``
        return None
    host, port = found["host"], "22"
    if bracketed := found["bracketed"]:
        host, _, port = (
            bracketed.rpartition(":") if bracketed.count(":") == 1 else (bracketed, "", port)
        )
    if not re.fullmatch("[0-9]{1,5}", port):
        return None
    return _remote("ssh", host, int(port), found["path"])


def _remote(scheme: str, host: str, port: int, path: str) -> Remote | None:
    host, path = host.lower(), path.strip("/").removesuffix(".git")
    if not _HOST.fullmatch(host) or not 0 < port < 65536:
        return None
    if {"", ".", ".."}.intersection(path.split("/")):
        return None
    return Remote(scheme, host, port, path)


def _below(remote: Remote, upstream: Upstream) -> str:
    """The repository, as an upstream calls it; empty where it is none of that."""
    place = (remote.scheme, remote.host, remote.port)
    by_ssh = remote.scheme == "ssh" and remote.host == upstream.host
    if not by_ssh and place != (upstream.scheme, upstream.host, upstream.port):
        return ""
    if not upstream.path:
        return remote.path
    prefix = f"{upstream.path.removeprefix('/')}/"
    return remote.path.removeprefix(prefix) if remote.path.startswith(prefix) else ""
