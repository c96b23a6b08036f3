"""What git and git-lfs ask of a box's routes, and what is made of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from urllib.parse import urlsplit

from box_mcp.domain.box import Box
from box_mcp.domain.lfs import MAX_BATCH, MAX_REPLY, parse_batch
from box_mcp.domain.remotes import ROUTES_PORT
from box_mcp.domain.routes import (
    ACTIONS,
    Access,
    Asked,
    Kind,
    Route,
    demand,
    judge,
    redirected,
)
from box_mcp.events import Hook, RouteUsed
from box_mcp.gateway.conversing import REPEATED, Exchange
from box_mcp.gateway.credentials import Secret, Secrets
from box_mcp.gateway.heads import MAX_TOLD, Malformed
from box_mcp.gateway.incoming import Incoming
from box_mcp.gateway.lfs import Actions, Mover
from box_mcp.gateway.turns import Limits, Refused, Turns
from box_mcp.gateway.upstream import Answer, Line, Lines, Outgoing, Unanswered
from box_mcp.gateway.withheld import repeats

PASSED_ON = (
    *("Accept", "Accept-Encoding", "Accept-Language", "Content-Type", "Content-Encoding"),
    *("Content-Length", "Git-Protocol", "User-Agent"),
)
"""What an upstream hears of a box's headers."""

WRITTEN = ("Accept", "Accept-Language", "Content-Type", "User-Agent")
"""The same, of a request whose body is written anew, and whose answer is read."""

OBJECTS = ("Accept", "Content-Type", "Content-Length", "Range", "User-Agent")
"""The same, for a server of objects, but for what it said itself that it wants to hear."""

PASSED_BACK = (
    *("Content-Type", "Content-Encoding", "Content-Length", "Content-Range", "Accept-Ranges"),
    *("Cache-Control", "Retry-After"),
)
"""What a box hears of an upstream's headers."""

LFS = ("/info/lfs/", ACTIONS)
LFS_TYPE = "application/vnd.git-lfs+json"
TYPES = {
    (Kind.DISCOVER, Access.READ): ("application/x-git-upload-pack-advertisement",),
    (Kind.DISCOVER, Access.WRITE): ("application/x-git-receive-pack-advertisement",),
    (Kind.FETCH, Access.READ): ("application/x-git-upload-pack-result",),
    (Kind.PUSH, Access.WRITE): ("application/x-git-receive-pack-result",),
}
"""What a git server's answers are; of LFS they are JSON."""


@dataclass(frozen=True)
class Means:
    """What a box's connections are served with. `routes` are those that it may use by now."""

    box: Callable[[], Box]
    routes: Callable[[], Sequence[Route]]
    secrets: Secrets
    actions: Actions
    lines: Lines
    hook: Hook
    limits: Limits
    turns: Turns

    def begin(self, line: Line, incoming: Incoming) -> Exchange:
        """As `Host`."""
        return Asking(self, line, incoming)

    def misheard(self, error: Malformed) -> None:
        """As `Host`."""
        box = self.box()
        told = RouteUsed(box.id, box.principal or "", "", "", "", error.status, asked=False)
        self.hook(replace(told, refused=str(error)))


class Asking(Exchange):
    """One request of git or git-lfs."""

    passed_back = PASSED_BACK

    def __init__(self, means: Means, line: Line, incoming: Incoming) -> None:
        super().__init__(line, incoming)
        self._means = means

    def worded(self, refused: Refused) -> tuple[str, Mapping[str, str] | None]:
        """git-lfs wants JSON."""
        text, headers = super().worded(refused)
        if headers or not any(mark in self.path for mark in LFS):
            return text, headers
        return json.dumps({"message": f"box_mcp: {text}"}), {"Content-Type": LFS_TYPE}

    def tell(self) -> None:
        """Reports how it went."""
        box = self._means.box()
        self._means.hook(
            RouteUsed(
                box=box.id,
                principal=box.principal or "",
                route=self.route,
                method=self.incoming.method,
                path=self.path[:MAX_TOLD],
                status=self.status,
                sent=self.incoming.sent,
                received=self.incoming.received,
                seconds=self.seconds,
                refused=self.refused,
                asked=self.asked,
            )
        )

    async def answer(self) -> None:
        """As `Exchange`."""
        async with self._means.turns.one():
            route, target = self.found(self._means.routes(), ROUTES_PORT)
            if target.startswith(ACTIONS):
                return await self._move(route, target)
            asked = judge(route, self.incoming.method, target)
            if asked.direct:
                raise Refused(_again(asked), "", f"{route.upstream.origin}{asked.target}")
            if asked.kind is Kind.LFS_BATCH:
                return await self._batch(route, asked)
            answer = await self._ask(route, asked)
            async with aclosing(answer):
                _demand_type(route, asked, answer)
                await self.pass_back(answer)

    async def _batch(self, route: Route, asked: Asked) -> None:
        """Where objects are to be had, or put, without what that takes."""
        batch = parse_batch(await self.incoming.read(MAX_BATCH))
        demand(route, batch.access)
        answer = await self._ask(route, asked, batch.body)
        async with aclosing(answer):
            if not answer.succeeded:
                return await self.pass_back(answer)
            reply = await answer.read(MAX_REPLY)
        if reply is None:
            raise Unanswered(f"its answer has more than {MAX_REPLY:,} bytes")
        told = self._means.actions.rewritten(self._means.box().id, route, batch, reply)
        if repeats(answer.secrets, told):
            raise Unanswered(REPEATED)
        await self.say(HTTPStatus.OK, [("Content-Type", LFS_TYPE)], told)

    async def _move(self, route: Route, target: str) -> None:
        """One object, or the question whether it has come."""
        means = self._means
        action = means.actions.find(means.box().id, route, self.incoming.method, target)
        secret = partial(means.secrets.of, route)
        mover = Mover(route, action, secret, self.line, means.actions.look_up)
        body = await self._body()
        self.asked = True
        async with mover.answer(self.headers(OBJECTS), body) as answer:
            await self.pass_back(answer)

    async def _body(self) -> Incoming | None:
        if self.incoming.method != "GET":
            return self.incoming
        if await self.incoming.read(0):
            raise Malformed("its method takes no body")
        return None

    async def _ask(self, route: Route, asked: Asked, written: bytes | None = None) -> Answer:
        """What the upstream answers to a request with the credential; raises what `run` catches.

        `written` is what was made of its body.
        """
        headers = self.headers(PASSED_ON if written is None else WRITTEN)
        body = await self._body() if written is None else written
        url = f"{route.upstream.origin}{asked.target}"

        def request(secret: Secret) -> Outgoing:
            proven = headers | {"Authorization": secret.basic}
            return Outgoing(self.incoming.method, url, proven, body, secret.spellings)

        answer = await self.ask(route, self._means.secrets, request)
        if answer.moved:
            await answer.aclose()
            raise _moved(route, asked, answer)
        return answer


def _demand_type(route: Route, asked: Asked, answer: Answer) -> None:
    """Raises Refused for what is no git server's answer, such as a page to log in."""
    said = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    right = TYPES.get((asked.kind, asked.access), (LFS_TYPE, "application/json"))
    if answer.succeeded and said not in right:
        text = f"{route.upstream} answered with {said[:MAX_TOLD]!r}, which is not git's"
        raise Refused(HTTPStatus.BAD_GATEWAY, text)


def _again(asked: Asked) -> int:
    """How a redirect is said: a method with a body is kept by this one only."""
    return HTTPStatus.FOUND if asked.kind is Kind.DISCOVER else HTTPStatus.TEMPORARY_REDIRECT


def _moved(route: Route, asked: Asked, answer: Answer) -> Refused:
    """What becomes of an upstream's redirect."""
    location = answer.headers.get("Location", "")
    if again := redirected(route, asked, location):
        return Refused(answer.status, "", again)
    text = (
        f"{route.upstream} says that this is to be found {_where(location)}. The credential of the "
        f"route {route.name!r} is not sent there"
    )
    return Refused(HTTPStatus.BAD_GATEWAY, text)


def _where(location: str) -> str:
    """Without what may be secret in an address."""
    try:
        host = urlsplit(location).hostname
    except ValueError:
        host = None
    return f"at {host[:MAX_TOLD]!r}" if host else "elsewhere"
