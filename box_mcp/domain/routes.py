"""Routes: what a box may ask of a git server that the host has a credential for; pure.

A box reaches a route as ``http://127.0.0.1:PORT/<name>/<repository>/...`` on its own loopback. Of
all that HTTP can say, only what git and git-lfs say is understood: gitprotocol-http(5), and the API
of https://github.com/git-lfs/git-lfs/tree/main/docs/api.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

from box_mcp.errors import InvalidArgument

MAX_PATH = 2048  # bytes
FETCH, PUSH = "git-upload-pack", "git-receive-pack"

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_STEP = r"[A-Za-z0-9_~+-][A-Za-z0-9._~+-]*"
_REPOSITORY = re.compile(rf"{_STEP}(?:/{_STEP}){{0,9}}")
_LFS = re.compile(r"/info/lfs/(objects/batch|locks(?:/verify|/[A-Za-z0-9-]{1,64}/unlock)?)")


class Access(StrEnum):
    """What a route lets boxes do; each includes the one before."""

    READ = "read"
    WRITE = "write"


class Forge(StrEnum):
    """What a server's REST API is like."""

    GITHUB = "github"
    GITLAB = "gitlab"


@dataclass(frozen=True)
class Upstream:
    """A server and the path below which its repositories are; `path` has no slash at its end."""

    scheme: str
    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        usual = {"http": 80, "https": 443}[self.scheme] == self.port
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{'' if usual else f':{self.port}'}{self.path}"


def parse_upstream(text: str) -> Upstream:
    """The server that an URL names; raises InvalidArgument."""
    try:
        parts = urlsplit(text)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        host = parts.hostname or ""
    except (ValueError, KeyError):
        raise InvalidArgument("upstream", f"is {text!r}, which is no http(s) URL") from None
    if not host or parts.username or parts.password or parts.query or parts.fragment:
        what = "a URL with a host, and without user, password, query and fragment"
        raise InvalidArgument("upstream", f"is {text!r}, but must be {what}")
    return Upstream(parts.scheme, host, port, parts.path.rstrip("/"))


@dataclass(frozen=True)
class Credential:
    """Where the secret of a route comes from, each time it is needed: one of the four.

    `variable` of the server's environment, first line of a `file`, first line that `command`
    prints, or, with `helper`, what git's own credential helpers know for the upstream. `user` goes
    with it where HTTP's Basic wants one.
    """

    variable: str = ""
    file: str = ""
    command: tuple[str, ...] = ()
    helper: bool = False
    user: str = "x-access-token"


@dataclass(frozen=True)
class Route:
    """A way to one server with a credential of the host's, for boxes that have neither.

    `repositories` and `principals` are patterns as a shell's, such as ``me/*``. `forge` is what
    serves `api`, the base of its REST API; empty where there is none.
    """

    name: str
    upstream: Upstream
    credential: Credential = Credential()
    repositories: tuple[str, ...] = ("*",)
    access: Access = Access.READ
    principals: tuple[str, ...] = ("*",)
    forge: Forge | None = None
    api: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.access} {', '.join(self.repositories)} at {self.upstream}"

    def serves(self, principal: str) -> bool:
        """Whether this principal's boxes may use it."""
        return any(fnmatchcase(principal, pattern) for pattern in self.principals)


def parse_route_name(text: str) -> str:
    """`text`, if a route may be called so; raises InvalidArgument."""
    if not _NAME.fullmatch(text):
        raise InvalidArgument("routes", f"has {text!r}: names are lower-case letters, digits, - _")
    return text


FORGES = {"github.com": Forge.GITHUB, "gitlab.com": Forge.GITLAB}
"""Servers whose API is known by their name."""


def api_of(forge: Forge | None, upstream: Upstream) -> str:
    """Where a forge's REST API is, where the settings do not say."""
    if forge is Forge.GITHUB:
        known = upstream.host == "github.com"
        return "https://api.github.com" if known else f"{upstream}/api/v3"
    return str(upstream) if forge is Forge.GITLAB else ""


class Kind(StrEnum):
    """What git asks for."""

    DISCOVER = "discover"
    FETCH = "fetch"
    PUSH = "push"
    LFS_BATCH = "lfs batch"
    LFS_LOCKS = "lfs locks"


@dataclass(frozen=True)
class Asked:
    """A request that is allowed: what for, of which repository, and its path and query upstream.

    `access` is what it takes; of an LFS batch only its body tells, so it is what it takes at least.
    """

    kind: Kind
    repository: str
    target: str
    access: Access


class Forbidden(Exception):
    """A route does not allow a request; `str` says by which rule, for whoever is in the box."""


def judge(route: Route, method: str, target: str) -> Asked:
    """What a request to a route is for; `target` follows the route's name. Raises Forbidden."""
    path, query = _plain(target)
    repository, rest = _split(path)
    if not any(fnmatchcase(repository, pattern) for pattern in route.repositories):
        allowed = ", ".join(route.repositories)
        raise Forbidden(f"the route {route.name!r} leads to {allowed} only, not to {repository}")
    kind, access = _kind(method, rest, query)
    if access is Access.WRITE and route.access is Access.READ:
        raise Forbidden(f"the route {route.name!r} is for reading only")
    asked = f"?service={query[0][1]}" if kind is Kind.DISCOVER else ""
    return Asked(kind, repository, f"{route.upstream.path}{path}{asked}", access)


def _plain(target: str) -> tuple[str, Sequence[tuple[str, str]]]:
    """Path and query, neither of which can mean something else to another program."""
    path, _, query = target.partition("?")
    decoded = unquote_to_bytes(path)
    if len(target) > MAX_PATH or decoded != path.encode(errors="replace") or b"\\" in decoded:
        raise Forbidden("paths have no escapes, and no more than 2,048 characters")
    return path, parse_qsl(query, keep_blank_values=True)


def _split(path: str) -> tuple[str, str]:
    """The repository that a path is about, without ``.git``, and what follows it."""
    for mark in ("/info/refs", "/info/lfs/", f"/{FETCH}", f"/{PUSH}"):
        name, found, rest = path.partition(mark)
        if not found:
            continue
        repository = name.removeprefix("/").removesuffix(".git")
        if not _REPOSITORY.fullmatch(repository):
            raise Forbidden(f"{repository!r} can't be the name of a repository")
        return repository, found + rest
    raise Forbidden("only git and git-lfs may ask here")


def _kind(  # noqa: PLR0911 - a table
    method: str, rest: str, query: Sequence[tuple[str, str]]
) -> tuple[Kind, Access]:
    match (method, rest, [*query]):
        case "GET", "/info/refs", [("service", "git-upload-pack")]:
            return Kind.DISCOVER, Access.READ
        case "GET", "/info/refs", [("service", "git-receive-pack")]:
            return Kind.DISCOVER, Access.WRITE
        case "POST", "/git-upload-pack", []:
            return Kind.FETCH, Access.READ
        case "POST", "/git-receive-pack", []:
            return Kind.PUSH, Access.WRITE
        case "POST", "/info/lfs/objects/batch", []:
            return Kind.LFS_BATCH, Access.READ
        case "GET", "/info/lfs/locks", _:
            return Kind.LFS_LOCKS, Access.READ
        case "POST", _, [] if _LFS.fullmatch(rest):
            return Kind.LFS_LOCKS, Access.WRITE
        case _:
            raise Forbidden("only git and git-lfs may ask here, in the smart protocol")
