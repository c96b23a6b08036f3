"""What forges can be asked for, and what their answers mean; which of a box's remotes are on one.

What a forge says is cut down, and has the secret taken out, before anybody reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from box_mcp.domain.remotes import Way, parse_remote, ways
from box_mcp.domain.routes import Forbidden, Forge, Route, judge
from box_mcp.errors import ForgeError, ForgeRefused, ForgeUnreachable, NoForge

REQUEST_TIMEOUT = 10  # s until a forge answers one request
PAGE = 100  # things on one page, the most that forges give
LOOKED_AT = 500  # things that are looked through for one that is there already
MAX_DETAIL = 500  # characters of what a forge says
SERVER_ERROR = 500  # HTTP: from here on, it is the server's own failure
NONSENSE = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What clients' libraries stumble with over answers that are none."""

NAMES = {Forge.GITHUB: "GitHub", Forge.GITLAB: "GitLab"}


@dataclass(frozen=True)
class Proposal:
    """A pull request that is wanted: `head` of the repository `source` into `base`.

    One into another base will do, too, where it is there already and `anywhere` is true.
    """

    repository: str
    base: str
    source: str
    head: str
    title: str
    body: str = ""
    draft: bool = False
    anywhere: bool = False
    reviewers: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def forked(self) -> bool:
        """Whether the head is in another repository."""
        return self.source.lower() != self.repository.lower()


@dataclass(frozen=True)
class Report:
    """An issue that is wanted."""

    repository: str
    title: str
    body: str = ""
    labels: tuple[str, ...] = ()
    assignees: tuple[str, ...] = ()

    def says(self, title: str, text: str | None) -> bool:
        """Whether an issue of this title and text says the same: a forge would show both alike."""
        return title == self.title and (text or "").split() == self.body.split()


@dataclass(frozen=True)
class Made:
    """What is there now, and whether it was before; `undone` says what could not be added to it."""

    url: str
    number: int
    existed: bool
    undone: tuple[str, ...] = ()


def made(url: object, number: object, existed: bool, undone: Sequence[str]) -> Made:
    """What a forge says that there is; raises TypeError, if it does not."""
    if not isinstance(url, str) or not isinstance(number, int) or not url.isprintable():
        raise TypeError("it tells no address")
    return Made(url[:MAX_DETAIL], number, existed, tuple(undone))


class Client(Protocol):
    """A forge, with a credential; whatever it is asked blocks, and raises ForgeError."""

    def default_branch(self, repository: str, /) -> str:
        """The one that pull requests go to where nobody says which."""
        ...

    def propose(self, wanted: Proposal, /) -> Made:
        """Opens a pull request, or finds the open one that there is of the same branch."""
        ...

    def report(self, wanted: Report, /) -> Made:
        """Opens an issue, or finds an open one with the same title and text."""
        ...


@dataclass(frozen=True)
class Said:
    """A forge's "no": `status` of HTTP, None for no answer; `secret` is taken out of `detail`."""

    status: int | None
    detail: str

    def error(self, route: Route, secret: str, operation: str) -> ForgeError:
        """As callers see it."""
        forge = f"{NAMES[route.forge or Forge.GITHUB]} ({route.api})"
        detail = self.detail.replace(secret, "...") if secret else self.detail
        detail = " ".join(detail[:MAX_DETAIL].split()) or "it does not say why"
        if self.status is None or self.status >= SERVER_ERROR:
            return ForgeUnreachable(forge, f"{self.status or ''} {detail}".strip())
        return ForgeRefused(forge, route.name, operation, self.status, detail)


def found_way(url: str, routes: Sequence[Route]) -> Way:
    """The way by which a box may make things where its remote is; raises NoForge.

    Of several the closest that may write there.
    """
    remote = parse_remote(url)
    if remote is None:
        raise NoForge("this remote", "it is on no server that box_mcp knows how to ask")
    found = ways(remote, routes)
    if not found:
        raise NoForge(str(remote), "no route of this box leads there")
    return _allowed(str(remote), [partial(checked, way) for way in found])[0]


def named_way(name: str, routes: Sequence[Route]) -> Way:
    """The way to what somebody calls a repository: its URL, or its name at its forge.

    Of several routes to that forge the first that may write there. Raises NoForge.
    """
    if parse_remote(name):
        return found_way(name, routes)
    if not routes:
        raise NoForge(name, "this box has no routes")
    found = _allowed(name, [partial(way_to, route, name) for route in routes])
    forges = dict.fromkeys(way.route.api for way in found)
    if len(forges) > 1:
        raise NoForge(name, f"it may be on {' or on '.join(forges)}", "Pass its URL")
    return found[0]


def _allowed(name: str, choices: Sequence[Callable[[], Way]]) -> list[Way]:
    """Those that are no NoForge; raises what the first of them says where all are."""
    found: list[Way] = []
    reasons: list[NoForge] = []
    for choice in choices:
        try:
            found.append(choice())
        except NoForge as error:
            reasons.append(error)
    if not found:
        raise NoForge(name, reasons[0].reason, reasons[0].advice)
    return found


def address(route: Route) -> str:
    """Where a route's API is, as clients' libraries want it: python-gitlab adds its version."""
    return route.api.rstrip("/").removesuffix("/api/v4")


def called(way: Way) -> str:
    """What the forge's API calls the repository.

    Some of the upstream's path may belong to that name, and some be where the server is.
    """
    path, root = way.route.upstream.path, urlsplit(address(way.route)).path
    below = path.removeprefix(root) if f"{path}/".startswith(f"{root}/") else path
    return f"{below}/{way.repository}".strip("/")


def way_to(route: Route, name: str) -> Way:
    """The way to what the forge's API calls `name`; raises NoForge."""
    above = called(Way(route, ""))
    if above and not name.startswith(f"{above}/"):
        raise NoForge(name, f"the route {route.name!r} leads to {above} only")
    return checked(Way(route, name.removeprefix(f"{above}/") if above else name))


def checked(way: Way) -> Way:
    """`way`, if its route has a forge and may write to the repository; raises NoForge."""
    route = way.route
    try:
        judge(route, "GET", f"/{way.repository}/info/refs?service=git-receive-pack")
    except Forbidden as error:
        raise NoForge(way.repository, str(error)) from None
    if route.forge is None:
        reason = f"the route {route.name!r} does not say which API its server has"
        advice = f"Ask the user to set `routes.{route.name}.forge` in box_mcp's settings"
        raise NoForge(way.repository, reason, advice)
    return way


def attempted(
    what: str, names: Sequence[str], add: Callable[[Sequence[str]], Iterable[str]]
) -> list[str]:
    """Adds `names`, and tells those that could not be added, each with the reason.

    `add` returns those that a forge kept quiet about. Where it refuses all, each is tried alone.
    """
    if not names:
        return []
    try:
        return [f"{what} {name}: not taken" for name in add(names)]
    except ForgeError as error:
        if len(names) == 1:
            return [f"{what} {names[0]}: {error.detail}"]
    return [told for name in names for told in attempted(what, [name], add)]


def plain(data: Any) -> str:
    """What a forge says of an error, in one line."""
    match data:
        case {"message": _}:
            parts = [data["message"], data.get("errors")]
        case dict():
            parts = [*cast("dict[str, Any]", data).values()]
        case list():
            parts = cast("list[Any]", data)
        case bytes():
            return data.decode(errors="replace")
        case _:
            return "" if data is None else str(data)
    return " ".join(filter(None, map(plain, parts)))
