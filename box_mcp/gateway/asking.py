"""One connection from a box to its routes: a request after the other, each judged by itself.

A request is written anew for the upstream, and its answer for the box: of both only what is listed
here passes. The credential is added on the way, and nothing of it comes back.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from urllib.parse import urlsplit

import anyio

from box_mcp.domain.box import Box
from box_mcp.domain.lfs import MAX_BATCH, MAX_REPLY, parse_batch
from box_mcp.domain.remotes import ROUTES_PORT
from box_mcp.domain.routes import (
    ACTIONS,
    Access,
    Asked,
    Forbidden,
    Kind,
    Route,
    demand,
    judge,
    redirected,
)
from box_mcp.errors import NoCredential
from box_mcp.events import Hook, RouteUsed
from box_mcp.gateway.credentials import Secret, Secrets
from box_mcp.gateway.gathering import pass_on
from box_mcp.gateway.heads import MAX_TOLD, Malformed, answer, part
from box_mcp.gateway.incoming import Headers, HungUp, Incoming
from box_mcp.gateway.inlet import Inlet
from box_mcp.gateway.lfs import Actions, Mover
from box_mcp.gateway.relay import DEAD, Duplex
from box_mcp.gateway.turns import Limits, Refused, Turns
from box_mcp.gateway.upstream import Answer, Line, Lines, Outgoing, Unanswered
from box_mcp.gateway.withheld import Repeated, Withheld, repeats

HOSTS = frozenset(f"{name}:{ROUTES_PORT}" for name in ("127.0.0.1", "localhost"))

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

MAX_FAILURE = 64 * 1024  # bytes of what an upstream says of something that is wrong
REPEATED = "it repeats the secret that it was asked with"
LFS = ("/info/lfs/", ACTIONS)
SILENCES = 2  # idle times after which a connection is cut: an upstream's silence is told in words
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


async def converse(means: Means, stream: Duplex) -> None:
    """Serves one connection, and leaves closing it to the caller.

    Raises anyio.BrokenResourceError when it ended before all was said.
    """
    scope = anyio.CancelScope()

    def touched() -> None:
        scope.deadline = anyio.current_time() + SILENCES * means.limits.idle

    touched()
    async with means.lines.one() as line:
        with scope:
            await _serve(means, Inlet(stream, touched), line)
        if scope.cancelled_caught:
            raise anyio.BrokenResourceError


async def _serve(means: Means, client: Inlet, line: Line) -> None:
    """Raises anyio.BrokenResourceError where not all was said that was to be said."""
    while (incoming := await _next(means, client)) is not None:
        exchange = _Exchange(means, line, incoming)
        try:
            refused = await exchange.run()
        finally:
            exchange.tell()
        if refused is not None:
            await _part(client, refused, lfs=exchange.of_lfs)
        if not exchange.sound:
            raise anyio.BrokenResourceError
        if not exchange.kept:
            return


async def _next(means: Means, client: Inlet) -> Incoming | None:
    """The next request; None when there is none, or none that could be understood."""
    try:
        with anyio.move_on_after(means.limits.head):
            return await Incoming.next(client)
    except Malformed as error:
        box = means.box()
        told = RouteUsed(box.id, box.principal or "", "", "", "", error.status, asked=False)
        means.hook(replace(told, refused=str(error)))
        await _part(client, Refused(error.status, str(error)))
    return None


async def _part(client: Inlet, refused: Refused, *, lfs: bool = False) -> None:
    """The last words of a connection."""
    headers = {"Location": refused.location} if refused.location else None
    text = str(refused)
    if lfs and not headers:
        headers = {"Content-Type": LFS_TYPE}
        text = json.dumps({"message": f"box_mcp: {text}"})
    with suppress(*DEAD):
        await answer(client, refused.status, text, headers=headers)
        await part(client)


class _Exchange:
    """One request from a box, and what is made of it.

    `sound` is one that was answered wholly; after one that is `kept`, another may follow.
    """

    def __init__(self, means: Means, line: Line, incoming: Incoming) -> None:
        self.sound = False
        self.kept = False
        self._means = means
        self._line = line
        self._incoming = incoming
        self._begun = time.monotonic()
        self._path, _, _ = incoming.target.partition("?")
        self._route = ""
        self._status = 0
        self._asked = False
        self._refused = "the box left before the end"

    @property
    def of_lfs(self) -> bool:
        """Whether git-lfs asks."""
        return any(mark in self._path for mark in LFS)

    async def run(self) -> Refused | None:
        """Answers; returns what is still to be said, where there is no answer."""
        refused: Refused | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._end_when_gone, group.cancel_scope)
            refused = await self._tried()
            group.cancel_scope.cancel()
        return refused

    async def _tried(self) -> Refused | None:
        try:
            await self._answer()
            self.sound, self._refused = True, ""
        except HungUp:
            return None
        except (Refused, Forbidden, Malformed, NoCredential, Unanswered) as error:
            refused = _refusal(error, self._route)
            self._refused = str(refused)
            if not self._incoming.answered:
                self._status = int(refused.status)
                self.sound = True
                return refused
        return None

    async def _end_when_gone(self, exchange: anyio.CancelScope) -> None:
        await self._incoming.gone()
        exchange.cancel()

    def tell(self) -> None:
        """Reports how it went."""
        box = self._means.box()
        self._means.hook(
            RouteUsed(
                box=box.id,
                principal=box.principal or "",
                route=self._route,
                method=self._incoming.method,
                path=self._path[:MAX_TOLD],
                status=self._status,
                sent=self._incoming.sent,
                received=self._incoming.received,
                seconds=round(time.monotonic() - self._begun, 3),
                refused=self._refused,
                asked=self._asked,
            )
        )

    async def _answer(self) -> None:
        turns = self._means.turns
        await turns.take()
        try:
            route, target = self._found()
            if target.startswith(ACTIONS):
                return await self._move(route, target)
            asked = judge(route, self._incoming.method, target)
            if asked.direct:
                raise Refused(_again(asked), "", f"{route.upstream.origin}{asked.target}")
            if asked.kind is Kind.LFS_BATCH:
                return await self._batch(route, asked)
            answer = await self._ask(route, asked)
            async with aclosing(answer):
                _demand_type(route, asked, answer)
                await self._pass_back(answer)
        finally:
            turns.give_back()

    def _found(self) -> tuple[Route, str]:
        """The route that is asked, and what of it; raises Refused and Malformed."""
        if self._incoming.header("Host") not in HOSTS:
            raise Malformed(f"it is meant for another host than 127.0.0.1:{ROUTES_PORT}", 421)
        name, _, target = self._incoming.target.removeprefix("/").partition("/")
        routes = {route.name: route for route in self._means.routes()}
        if not self._incoming.target.startswith("/") or name not in routes:
            known = f"it has {', '.join(routes)}" if routes else "it has none"
            raise Refused(404, f"this box has no route {name[:MAX_TOLD]!r}: {known}")
        self._route = name
        self._path = f"/{target}".partition("?")[0]
        return routes[name], f"/{target}"

    async def _batch(self, route: Route, asked: Asked) -> None:
        """Where objects are to be had, or put, without what that takes."""
        batch = parse_batch(await self._incoming.read(MAX_BATCH))
        demand(route, batch.access)
        answer = await self._ask(route, asked, batch.body)
        async with aclosing(answer):
            if not answer.succeeded:
                return await self._pass_back(answer)
            reply = await answer.read(MAX_REPLY)
        if reply is None:
            raise Unanswered(f"its answer has more than {MAX_REPLY:,} bytes")
        told = self._means.actions.rewritten(self._means.box().id, route, batch, reply)
        if repeats(answer.secrets, told):
            raise Unanswered(REPEATED)
        await self._say(HTTPStatus.OK, [("Content-Type", LFS_TYPE)], told)

    async def _move(self, route: Route, target: str) -> None:
        """One object, or the question whether it has come."""
        means = self._means
        action = means.actions.find(means.box().id, route, self._incoming.method, target)
        secret = partial(means.secrets.of, route)
        mover = Mover(route, action, secret, self._line, means.actions.look_up)
        body = await self._body()
        self._asked = True
        async with mover.answer(self._headers(OBJECTS), body) as answer:
            await self._pass_back(answer)

    async def _body(self) -> Incoming | None:
        if self._incoming.method != "GET":
            return self._incoming
        if await self._incoming.read(0):
            raise Malformed("its method takes no body")
        return None

    async def _ask(self, route: Route, asked: Asked, written: bytes | None = None) -> Answer:
        """What the upstream answers to a request with the credential; raises what `run` catches.

        `written` is what was made of its body.
        """
        headers = self._headers(PASSED_ON if written is None else WRITTEN)
        body = await self._body() if written is None else written
        url = f"{route.upstream.origin}{asked.target}"

        async def ask(secret: Secret) -> Answer:
            headers["Authorization"] = secret.basic
            secrets = secret.spellings
            sent = Outgoing(self._incoming.method, url, headers, body, secrets)
            answer = await self._sent(sent)
            heard = [answer.headers.get(name, "") for name in ("Location", *PASSED_BACK)]
            if repeats(secrets, "\n".join(heard).encode()):
                await answer.aclose()
                raise Unanswered(REPEATED)
            return answer

        secret = await self._means.secrets.of(route)
        answer = await ask(secret)
        if answer.unaccepted:
            await answer.aclose()
            fresh = await self._means.secrets.of(route, but=secret)
            if fresh != secret and not isinstance(body, Incoming):
                answer = await ask(fresh)
        if answer.unaccepted:
            await answer.aclose()
            text = (
                f"the credential of the route {route.name!r} was not accepted by {route.upstream}: "
                "ask the user to renew it where box_mcp's settings say that it comes from"
            )
            raise Refused(HTTPStatus.FORBIDDEN, text)
        if answer.moved:
            await answer.aclose()
            raise _moved(route, asked, answer)
        return answer

    async def _sent(self, outgoing: Outgoing) -> Answer:
        """The answer; asked for once more where nothing can have happened yet."""
        self._asked = True
        try:
            return await self._line.ask(outgoing)
        except Unanswered as error:
            read = isinstance(outgoing.body, Incoming) and (error.sent or self._incoming.begun)
            if error.late or read:
                raise
        return await self._line.ask(outgoing)

    def _headers(self, names: Sequence[str]) -> dict[str, str]:
        """What the upstream hears; raises Malformed."""
        found = {name: self._incoming.header(name) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    async def _pass_back(self, answer: Answer) -> None:
        """Raises HungUp, Refused and Unanswered."""
        headers = answer.headers
        passed = [(name, headers[name]) for name in PASSED_BACK if name in headers]
        withheld = Withheld(answer.secrets)
        try:
            withheld.check("\n".join(value for _, value in passed).encode())
            if not answer.succeeded:
                return await self._pass_failure(answer, withheld)
            self._status = answer.status
            self._incoming.begin(answer.status, passed)
            async with aclosing(answer.pieces()) as pieces:
                await pass_on(pieces, lambda piece: self._incoming.say(withheld.let_pass(piece)))
            await self._incoming.say(withheld.rest())
            self.kept = await self._incoming.end()
        except Repeated:
            raise Unanswered(REPEATED) from None
        except ValueError:
            raise Unanswered("its answer makes no sense") from None

    async def _pass_failure(self, answer: Answer, withheld: Withheld) -> None:
        """What the upstream says of it, if that can be read; raises as `_pass_back`."""
        said = None if "Content-Encoding" in answer.headers else await answer.read(MAX_FAILURE)
        if said is None:
            raise Refused(answer.status, f"the server of the route {self._route!r} says so")
        withheld.check(said)
        kept = [name for name in ("Content-Type", "Retry-After") if name in answer.headers]
        await self._say(answer.status, [(name, answer.headers[name]) for name in kept], said)

    async def _say(self, status: int, headers: Headers, body: bytes) -> None:
        """The whole answer, and whether another request may follow; raises as `Incoming.say`."""
        self._status = status
        self._incoming.begin(status, [*headers, ("Content-Length", str(len(body)))])
        await self._incoming.say(body)
        self.kept = await self._incoming.end()


def _refusal(
    error: Refused | Forbidden | Malformed | NoCredential | Unanswered, route: str
) -> Refused:
    match error:
        case Refused():
            return error
        case Malformed():
            return Refused(error.status, str(error))
        case Forbidden():
            return Refused(HTTPStatus.FORBIDDEN, str(error))
        case NoCredential():
            return Refused(HTTPStatus.BAD_GATEWAY, error.explain())
        case Unanswered():
            status = HTTPStatus.GATEWAY_TIMEOUT if error.late else HTTPStatus.BAD_GATEWAY
            return Refused(status, f"the server of the route {route!r} gave no answer: {error}")


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
