"""What git in a box is told by a file: routes in place of servers, and who the user is; pure.

git takes the longest prefix that an ``insteadOf`` names, the first of several equal ones, and only
once. The URLs that it writes down, in remotes and submodules, stay as people gave them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from box_mcp.domain.remotes import ROUTES_PORT
from box_mcp.domain.routes import Route, Upstream, bracketed

USUAL = "/etc/gitconfig"
"""What git would read were it not for our file: it is read there all the same."""
ROUTES = f"http://127.0.0.1:{ROUTES_PORT}/"

FORGES = tuple(
    Upstream("https", host, 443)
    for host in ("github.com", "gitlab.com", "bitbucket.org", "codeberg.org")
)
"""Servers that speak https under the name by which ssh reaches them. No box has a key for ssh."""
SSH_AT_443 = {
    "github.com": "ssh.github.com",
    "gitlab.com": "altssh.gitlab.com",
    "bitbucket.org": "altssh.bitbucket.org",
}
"""Where forges take ssh on the port of https."""

_PLAIN = re.compile(r"[A-Za-z0-9._~+/-]*")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\b": "\\b", "\0": ""}


@dataclass(frozen=True)
class Identity:
    """Whose commits git makes where nothing in the box says otherwise."""

    name: str
    email: str


def gitconfig(routes: Sequence[Route], identity: Identity | None = None) -> str:
    """The text of a file that takes the place of the system's own, and includes it.

    Of routes to one upstream, each has the repositories whose names begin as its patterns do, and
    the first has all others. git knows prefixes only: what is ``me/app`` is ``me/app2``, too.
    """
    lines: list[str] = []
    if identity is not None:
        lines += _section("user", ("name", identity.name), ("email", identity.email))
    lines += _section("include", ("path", USUAL))
    lines += _section(f'http "{ROUTES}"', ("proxy", ""))  # none: it is the box's own loopback
    bases: dict[str, list[str]] = {}
    for prefix, base in _instead(routes).items():
        bases.setdefault(base, []).append(prefix)
    for base, prefixes in bases.items():
        lines += _section(f'url "{base}"', *(("insteadOf", prefix) for prefix in prefixes))
    return "".join(f"{line}\n" for line in lines).encode(errors="replace").decode()


def _instead(routes: Sequence[Route]) -> dict[str, str]:
    """What takes the place of each prefix of URLs."""
    found: dict[str, str] = {}
    for route, begin in _claims(routes):
        for prefix in _prefixes(route.upstream, begin):
            found.setdefault(prefix, f"{ROUTES}{route.name}/{begin}")
    for forge in FORGES:
        for prefix in _ssh(forge):
            found.setdefault(prefix, f"{forge}/")
    return found


def _claims(routes: Sequence[Route]) -> Iterator[tuple[Route, str]]:
    """Routes, and how names of repositories begin that are theirs; who comes first has them.

    First come those that cover all that begins so.
    """
    patterns = [
        (route, pattern, found[0])
        for route in routes
        for pattern in route.repositories
        if (found := _PLAIN.match(pattern)) and _is_shared(route.upstream, routes)
    ]
    yield from ((route, begin) for route, pattern, begin in patterns if pattern == f"{begin}*")
    yield from ((route, begin) for route, _, begin in patterns)
    yield from ((route, "") for route in routes)


def _is_shared(upstream: Upstream, routes: Sequence[Route]) -> bool:
    return sum(route.upstream == upstream for route in routes) > 1


def _prefixes(upstream: Upstream, begin: str) -> list[str]:
    """How URLs of an upstream's repositories begin whose names begin so."""
    return [f"{prefix}{begin}" for prefix in (f"{upstream}/", *_ssh(upstream))]


def _ssh(upstream: Upstream) -> list[str]:
    host = bracketed(upstream.host)
    path = f"{upstream.path}/".removeprefix("/")
    places = [f"{host}/", f"{host}:22/", f"{host}:{upstream.port}/"]
    if upstream.host in SSH_AT_443:
        places.append(f"{SSH_AT_443[upstream.host]}:443/")
    short = [f"git@{host}:{path}", f"git@{host}:/{path}"]
    return [*(f"ssh://git@{place}{path}" for place in places), *short]


def _section(name: str, *pairs: tuple[str, str]) -> list[str]:
    return [f"[{name}]", *(f"\t{key} = {_quoted(value)}" for key, value in pairs)]


def _quoted(value: str) -> str:
    """A value as git-config(1) reads it; NUL, which it can't, is left out."""
    return f'"{"".join(_ESCAPES.get(sign, sign) for sign in value)}"'
