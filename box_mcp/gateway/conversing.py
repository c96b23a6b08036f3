"""One connection from a box to what serves it: a request after the other, each judged by itself.

A request is written anew for the upstream, and its answer for the box: of both only what is listed
passes. A credential is added on the way, and nothing of it comes back.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from http import HTTPStatus
from typing import ClassVar, Protocol, TypeVar

import anyio

from box_mcp.domain.routes import Forbidden
from box_mcp.errors import NoCredential
from box_mcp.gateway.credentials import Keyed, Secret, Secrets
from box_mcp.gateway.gathering import pass_on
from box_mcp.gateway.heads import MAX_TOLD, Malformed, answer, part
from box_mcp.gateway.incoming import Headers, HungUp, Incoming
from box_mcp.gateway.inlet import Inlet
from box_mcp.gateway.relay import DEAD, Duplex
from box_mcp.gateway.turns import Limits, Refused
from box_mcp.gateway.upstream import Answer, Line, Lines, Outgoing, Unanswered
from box_mcp.gateway.withheld import Repeated, Withheld, repeats

MAX_FAILURE = 64 * 1024  # bytes of what an upstream says of something that is wrong
REPEATED = "it repeats the secret that it was asked with"

Wrong = Refused | Forbidden | Malformed | NoCredential | Unanswered
"""What is told to a box in words."""


R = TypeVar("R", bound=Keyed)


class Exchange(ABC):
    """One request from a box, and what is made of it.

    `sound` is one that was answered wholly; after one that is `kept`, another may follow. `status`
    is what the box is told, `refused` why it is no answer of the upstream's; `asked` tells whether
    that may have heard of it at all.
    """

    passed_back: ClassVar[Sequence[str]]
    """What a box hears of an upstream's headers."""

    passed_on_failure: ClassVar[Sequence[str]] = ("Content-Type", "Retry-After")
    """The same, where the upstream does not do what it is asked for."""

    def __init__(self, line: Line, incoming: Incoming) -> None:
        self.incoming = incoming
        self.line = line
        self.sound = False
        self.kept = False
        self.status = 0
        self.asked = False
        self.refused = "the box left before the end"
        self.route = ""
        self.path, _, _ = incoming.target.partition("?")
        self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return round(time.monotonic() - self._begun, 3)

    @abstractmethod
    async def answer(self) -> None:
        """Answers; raises HungUp, and what is `Wrong`."""

    @abstractmethod
    def tell(self) -> None:
        """Reports how it went."""

    def worded(self, refused: Refused) -> tuple[str, Mapping[str, str] | None]:
        """What stands in an answer of our own: text, and the headers that say so."""
        headers = {"Location": refused.location} if refused.location else None
        return str(refused), headers

    def refusal(self, error: Wrong) -> Refused:
        """What is told of it."""
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
                told = f"the server of the route {self.route!r} gave no answer: {error}"
                return Refused(status, told)

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
            await self.answer()
            self.sound, self.refused = True, ""
        except HungUp:
            return None
        except (Refused, Forbidden, Malformed, NoCredential, Unanswered) as error:
            refused = self.refusal(error)
            self.refused = str(refused)
            if not self.incoming.answered:
                self.status = int(refused.status)
                self.sound = True
                return refused
        return None

    async def _end_when_gone(self, exchange: anyio.CancelScope) -> None:
        await self.incoming.gone()
        exchange.cancel()

    def found(self, routes: Sequence[R], port: int) -> tuple[R, str]:
        """The route that is asked, and what of it; raises Refused and Malformed."""
        if self.incoming.header("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            raise Malformed(f"it is meant for another host than 127.0.0.1:{port}", 421)
        name, _, target = self.incoming.target.removeprefix("/").partition("/")
        known = {route.name: route for route in routes}
        if not self.incoming.target.startswith("/") or name not in known:
            told = f"it has {', '.join(known)}" if known else "it has none"
            raise Refused(404, f"this box has no route {name[:MAX_TOLD]!r}: {told}")
        self.route = name
        self.path = f"/{target}".partition("?")[0]
        return known[name], f"/{target}"

    def headers(self, names: Sequence[str]) -> dict[str, str]:
        """Those of the box's that the upstream hears; raises Malformed."""
        found = {name: self.incoming.header(name) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    async def ask(
        self, route: Keyed, secrets: Secrets, request: Callable[[Secret], Outgoing]
    ) -> Answer:
        """What the upstream answers to a request with the credential; raises what is `Wrong`."""
        secret = await secrets.of(route)
        outgoing = request(secret)
        answer = await self._answered(outgoing)
        if answer.unaccepted:
            await answer.aclose()
            fresh = await secrets.of(route, but=secret)
            if fresh != secret and not isinstance(outgoing.body, Incoming):
                answer = await self._answered(request(fresh))
        if answer.unaccepted:
            await answer.aclose()
            text = (
                f"the credential of the route {route.name!r} was not accepted by {route.upstream}: "
                "ask the user to renew it where box_mcp's settings say that it comes from"
            )
            raise Refused(HTTPStatus.FORBIDDEN, text)
        return answer

    async def _answered(self, outgoing: Outgoing) -> Answer:
        answer = await self._sent(outgoing)
        heard = [answer.headers.get(name, "") for name in ("Location", *self.passed_back)]
        if repeats(outgoing.secrets, "\n".join(heard).encode()):
            await answer.aclose()
            raise Unanswered(REPEATED)
        return answer

    async def _sent(self, outgoing: Outgoing) -> Answer:
        """The answer; asked for once more where nothing can have happened yet."""
        self.asked = True
        try:
            return await self.line.ask(outgoing)
        except Unanswered as error:
            if error.late or self.may_have_happened(outgoing, error):
                raise
        return await self.line.ask(outgoing)

    def may_have_happened(self, outgoing: Outgoing, error: Unanswered) -> bool:
        """Whether a request can't be sent again."""
        return isinstance(outgoing.body, Incoming) and (error.sent or self.incoming.begun)

    async def pass_back(
        self, answer: Answer, pieces: AsyncGenerator[bytes, None] | None = None
    ) -> None:
        """`pieces` are those of the answer, if others have a look at them first.

        Raises HungUp, Refused and Unanswered.
        """
        headers = answer.headers
        passed = [(name, headers[name]) for name in self.passed_back if name in headers]
        withheld = Withheld(answer.secrets)
        try:
            withheld.check("\n".join(value for _, value in passed).encode())
            if not answer.succeeded:
                return await self._pass_failure(answer, withheld)
            self.status = answer.status
            self.incoming.begin(answer.status, passed)
            async with aclosing(pieces or answer.pieces()) as body:
                await pass_on(body, lambda piece: self.incoming.say(withheld.let_pass(piece)))
            await self.incoming.say(withheld.rest())
            self.kept = await self.incoming.end()
        except Repeated:
            raise Unanswered(REPEATED) from None
        except ValueError:
            raise Unanswered("its answer makes no sense") from None

    async def _pass_failure(self, answer: Answer, withheld: Withheld) -> None:
        """What the upstream says of it, if that can be read; raises as `pass_back`."""
        said = None if "Content-Encoding" in answer.headers else await answer.read(MAX_FAILURE)
        if said is None:
            raise Refused(answer.status, f"the server of the route {self.route!r} says so")
        withheld.check(said)
        kept = [name for name in self.passed_on_failure if name in answer.headers]
        await self.say(answer.status, [(name, answer.headers[name]) for name in kept], said)

    async def say(self, status: int, headers: Headers, body: bytes) -> None:
        """The whole answer, and whether another request may follow; raises as `Incoming.say`."""
        self.status = status
        self.incoming.begin(status, [*headers, ("Content-Length", str(len(body)))])
        await self.incoming.say(body)
        self.kept = await self.incoming.end()


class Host(Protocol):
    """What a box's connections are served with."""

    @property
    def lines(self) -> Lines:
        """To upstreams."""
        ...

    @property
    def limits(self) -> Limits:
        """How long may be waited for what."""
        ...

    def begin(self, line: Line, incoming: Incoming) -> Exchange:
        """What is made of one request."""
        ...

    def misheard(self, error: Malformed) -> None:
        """Reports a request that could not be understood."""
        ...


async def converse(host: Host, stream: Duplex) -> None:
    """Serves one connection, and leaves closing it to the caller.

    Raises anyio.BrokenResourceError when it ended before all was said.
    """
    scope = anyio.CancelScope()

    def touched() -> None:
        scope.deadline = anyio.current_time() + host.limits.cut

    touched()
    async with host.lines.one() as line:
        with scope:
            await _serve(host, Inlet(stream, touched), line)
        if scope.cancelled_caught:
            raise anyio.BrokenResourceError


async def _serve(host: Host, client: Inlet, line: Line) -> None:
    """Raises anyio.BrokenResourceError where not all was said that was to be said."""
    while (incoming := await _next(host, client)) is not None:
        exchange = host.begin(line, incoming)
        try:
            refused = await exchange.run()
        finally:
            exchange.tell()
        if refused is not None:
            await _part(client, refused.status, *exchange.worded(refused))
        if not exchange.sound:
            raise anyio.BrokenResourceError
        if not exchange.kept:
            return


async def _next(host: Host, client: Inlet) -> Incoming | None:
    """The next request; None when there is none, or none that could be understood."""
    try:
        with anyio.move_on_after(host.limits.head):
            return await Incoming.next(client)
    except Malformed as error:
        host.misheard(error)
        await _part(client, error.status, str(error))
    return None


async def _part(
    client: Inlet, status: int, text: str, headers: Mapping[str, str] | None = None
) -> None:
    """The last words of a connection."""
    with suppress(*DEAD):
        await answer(client, status, text, headers=headers)
        await part(client)
