"""Routes: what a box may ask of a git server that the host has a credential for; pure.

A box reaches a route as ``http://127.0.0.1:PORT/<name>/<repository>/...`` on its own loopback. Of
all that HTTP can say, only what git and git-lfs say is understood: gitprotocol-http(5), and the API
of https://github.com/git-lfs/git-lfs/tree/main/docs/api.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from ipaddress import ip_address
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

from box_mcp.errors import InvalidArgument

MAX_PATH = 2048  # characters
PORTS = {"http": 80, "https": 443}
ACTIONS = "/.lfs/"
"""Where a route has what upstreams said of LFS objects; no repository can be called so."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_STEP = r"[A-Za-z0-9_~+-][A-Za-z0-9._~+-]*"
_REQUEST = re.compile(
    rf"/({_STEP}(?:/(?:\.(?!git(?:/|$)))?{_STEP}){{0,9}}?)"
    r"(/info/refs|/git-upload-pack|/git-receive-pack"
    r"|/info/lfs/objects/batch|/info/lfs/locks(?:/verify|/[A-Za-z0-9-]{1,64}/unlock)?)"
)
_LOCKS_QUERY = frozenset(("path", "id", "cursor", "limit", "refspec"))


class Access(StrEnum):
    """What a route lets boxes do; each includes the one before."""

    READ = "read"
    WRITE = "write"


class Forge(StrEnum):
    """What a server's REST API is like."""

    GITHUB = "github"
    GITLAB = "gitlab"


def authority(host: str, port: int, usual: int) -> str:
    """Host and port as in URLs, which leave out the usual one."""
    return bracketed(host) if port == usual else f"{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    """A host as in URLs: addresses of IPv6 are in brackets."""
    return f"[{host}]" if ":" in host else host


@dataclass(frozen=True)
class Upstream:
    """A server and the path below which its repositories are; `path` has no slash at its end."""

    scheme: str
    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        return f"{self.origin}{self.path}"

    @property
    def authority(self) -> str:
        """Host and port, as in URLs."""
        return authority(self.host, self.port, PORTS[self.scheme])

    @property
    def origin(self) -> str:
        """Its URL without a path."""
        return f"{self.scheme}://{self.authority}"


def parse_upstream(text: str, name: str = "upstream") -> Upstream:
    """The server that an URL names.

    Raises InvalidArgument, which does not quote it: some have a password in it.
    """
    try:
        parts = urlsplit(text)
        port = parts.port or PORTS[parts.scheme]
        host = parts.hostname or ""
    except (ValueError, KeyError):
        raise InvalidArgument(name, "is no URL that begins with https://") from None
    if not host or parts.username or parts.password or parts.query or parts.fragment:
        what = "a URL with a host, and without user, password, query and fragment"
        raise InvalidArgument(name, f"must be {what}")
    return Upstream(parts.scheme, host, port, parts.path.rstrip("/"))


def demand_privacy(upstream: Upstream, name: str = "upstream") -> None:
    """Raises InvalidArgument where others could read the credential on its way."""
    if upstream.scheme == "http" and not _is_loopback(upstream.host):
        told = "would get the credential in clear, for all on the way to read: use https"
        raise InvalidArgument(name, f"is {str(upstream)!r}, which {told}")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


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

    def covers(self, repository: str) -> bool:
        """Whether its credential is for this repository; `repository` has no ``.git``."""
        return any(fnmatchcase(repository, pattern) for pattern in self.repositories)


def parse_route_name(text: str) -> str:
    """`text`, if a route may be called so; raises InvalidArgument."""
    if not _NAME.fullmatch(text):
        raise InvalidArgument("routes", f"has {text!r}: names are lower-case letters, digits, - _")
    return text


def parse_pattern(text: str) -> str:
    """`text`, if it can match a repository; raises InvalidArgument."""
    if not text or "://" in text or text.startswith("/") or text.endswith(("/", ".git")):
        told = "write OWNER/NAME or OWNER/*, without server and .git"
        raise InvalidArgument("repositories", f"has {text!r}, which matches none: {told}")
    return text


FORGES = {"github.com": Forge.GITHUB, "gitlab.com": Forge.GITLAB}
"""Servers whose API is known by their name."""


def api_of(forge: Forge | None, upstream: Upstream) -> str:
    """Where a forge's REST API is, where the settings do not say.

    GitLab can be below a path of its server; all other paths are owners and groups.
    """
    server = replace(upstream, path="")
    known = upstream.host in FORGES
    match forge:
        case Forge.GITHUB:
            return "https://api.github.com" if known else f"{server}/api/v3"
        case Forge.GITLAB:
            return str(server if known else upstream)
        case None:
            return ""


class Kind(StrEnum):
    """What git asks for."""

    DISCOVER = "discover"
    FETCH = "fetch"
    PUSH = "push"
    LFS_BATCH = "lfs batch"
    LFS_LOCKS = "lfs locks"


@dataclass(frozen=True)
class Asked:
    """A request that git may make: what for, of which repository, and its path and query upstream.

    `access` is what it takes; of an LFS batch only its body tells, so it is what it takes at least.
    `direct` is one that the route does not cover, and that can do without its credential: whoever
    asks is sent to the upstream itself.
    """

    kind: Kind
    repository: str
    target: str
    access: Access
    direct: bool = False


class Forbidden(Exception):
    """A route does not allow a request; `str` says by which rule, for whoever is in the box."""


def judge(route: Route, method: str, target: str) -> Asked:
    """What a request to a route is for; `target` follows the route's name. Raises Forbidden."""
    path, rest, query = _parsed(target)
    repository = path.removesuffix(".git")
    kind, access, asked = _kind(method, rest, query)
    direct = not route.covers(repository)
    if direct and (access is Access.WRITE or kind not in (Kind.DISCOVER, Kind.LFS_BATCH)):
        raise Forbidden(uncovered(route, repository))
    if not direct:
        demand(route, access)
    whole = f"{route.upstream.path}/{path}{rest}{asked and '?'}{asked}"
    return Asked(kind, repository, whole, access, direct)


def demand(route: Route, access: Access) -> None:
    """Raises Forbidden when the route does not give it."""
    if access is Access.WRITE and route.access is Access.READ:
        raise Forbidden(f"the route {route.name!r} is for reading only")


def uncovered(route: Route, repository: str) -> str:
    """By which rule a repository is out of reach."""
    allowed = ", ".join(route.repositories)
    return f"the route {route.name!r} leads to {allowed} only, not to {repository}"


def redirected(route: Route, asked: Asked, location: str) -> str | None:
    """Where on the route to ask again, when an upstream answers that it is elsewhere.

    None where that is not the same question at the same server, of another repository.
    """
    base = f"{route.upstream.path}/"
    try:
        url = urlsplit(urljoin(f"{route.upstream.origin}{asked.target}", location))
        there = parse_upstream(f"{url.scheme}://{url.netloc}").origin
        below = f"/{url.path.removeprefix(base)}{url.query and '?'}{url.query}"
        again = judge(replace(route, repositories=("*",)), "GET", below)
    except (InvalidArgument, Forbidden, ValueError):
        return None
    same = again.kind is asked.kind is Kind.DISCOVER and again.access is asked.access
    near = there == route.upstream.origin and url.path.startswith(base)
    return f"/{route.name}{below}" if same and near and again.target != asked.target else None


def _parsed(target: str) -> tuple[str, str, Sequence[tuple[str, str]]]:
    """Repository as asked for, what is asked of it, and the query; raises Forbidden.

    Nothing of it can mean something else to another program.
    """
    path, _, query = target.partition("?")
    if len(target) > MAX_PATH:
        raise Forbidden(f"a path has no more than {MAX_PATH:,} characters")
    found = _REQUEST.fullmatch(path)
    if found is None:
        raise Forbidden(
            "only git (in the smart protocol) and git-lfs may ask here, for repositories whose "
            "names are letters, digits and ._~+- without escapes"
        )
    return found[1], found[2], parse_qsl(query, keep_blank_values=True)


def _kind(  # noqa: PLR0911 - a table
    method: str, rest: str, query: Sequence[tuple[str, str]]
) -> tuple[Kind, Access, str]:
    """With the query for the upstream."""
    match (method, rest, [*query]):
        case "GET", "/info/refs", [("service", "git-upload-pack")]:
            return Kind.DISCOVER, Access.READ, "service=git-upload-pack"
        case "GET", "/info/refs", [("service", "git-receive-pack")]:
            return Kind.DISCOVER, Access.WRITE, "service=git-receive-pack"
        case "POST", "/git-upload-pack", []:
            return Kind.FETCH, Access.READ, ""
        case "POST", "/git-receive-pack", []:
            return Kind.PUSH, Access.WRITE, ""
        case "POST", "/info/lfs/objects/batch", []:
            return Kind.LFS_BATCH, Access.READ, ""
        case "GET", "/info/lfs/locks", pairs if _LOCKS_QUERY.issuperset(dict(pairs)):
            return Kind.LFS_LOCKS, Access.READ, urlencode(pairs)
        case "POST", _, [] if rest.startswith("/info/lfs/locks"):
            return Kind.LFS_LOCKS, Access.WRITE, ""
        case _:
            raise Forbidden(f"neither git nor git-lfs asks {method} {rest} like this")
