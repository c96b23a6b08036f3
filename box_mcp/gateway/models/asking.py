"""What programs in boxes ask of models, and what is made of it.

Answers are passed on as they come, but for their last piece, which waits until it is written down
what they cost: so whoever asks next is judged by it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus

import anyio
import anyio.to_thread

from box_mcp.domain.box import Box
from box_mcp.domain.metering import STREAMS, Whole
from box_mcp.domain.modelrequests import MAX_BODY, PASSED_ON, Asked, Wanted, judge, parse
from box_mcp.domain.models import MODELS_PORT, Dialect, ModelRoute
from box_mcp.domain.network import Mode
from box_mcp.domain.routes import Forbidden
from box_mcp.domain.runs import KEY_PREFIX
from box_mcp.errors import NoCredential
from box_mcp.events import Hook, ModelUsed
from box_mcp.gateway.conversing import Exchange, Wrong
from box_mcp.gateway.credentials import Secret, Secrets
from box_mcp.gateway.heads import MAX_TOLD, Malformed
from box_mcp.gateway.incoming import Incoming
from box_mcp.gateway.models.paying import Purse, Tab
from box_mcp.gateway.turns import Limits, Refused, Turns
from box_mcp.gateway.upstream import Answer, Line, Lines, Outgoing, Unanswered

MAX_BODIES = 2 * MAX_BODY  # bytes of requests of one box that are held at once
READ_AT_ONCE = 64 * 1024  # bytes; millions of parts take a second or two
MAX_REPLY = 64 * 1024 * 1024  # bytes of an answer that does not stream
JSON = "application/json"
REFUSED = "box_mcp_refused"
"""The code of errors that no other try will help against."""

STOPS: Mapping[Dialect, int] = {Dialect.OPENAI: HTTPStatus.BAD_REQUEST}
"""What clients take for a last word, and tell; others' is `HTTPStatus.PAYMENT_REQUIRED`."""

TYPES: Mapping[int, str] = {
    HTTPStatus.PAYMENT_REQUIRED: "billing_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
}
"""What Anthropic calls errors."""

_TOLD = (
    *("Retry-After", "retry-after-ms", "x-should-retry", "request-id", "x-request-id"),
    *("anthropic-ratelimit-unified-status", "anthropic-ratelimit-unified-reset"),
    *("x-ratelimit-reset-requests", "x-ratelimit-reset-tokens", "x-amzn-errortype"),
)


class Bodies:
    """How much of one box's requests is held at once."""

    def __init__(self) -> None:
        self._held = 0

    @contextmanager
    def hold(self, size: int) -> Generator[Callable[[int], None], None, None]:
        """Raises Refused where it would be too much. What it gives takes how much it really is."""
        if self._held + size > MAX_BODIES:
            text = "too much is being asked at once: try again later"
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, text)
        held = size
        self._held += held

        def only(now: int) -> None:
            nonlocal held
            self._held -= held - now
            held = now

        try:
            yield only
        finally:
            self._held -= held


@dataclass(frozen=True)
class Means:
    """What a box's connections are served with. `routes` are those that it may use by now."""

    box: Callable[[], Box]
    routes: Callable[[], Sequence[ModelRoute]]
    secrets: Secrets
    purse: Purse
    lines: Lines
    hook: Hook
    limits: Limits
    turns: Turns
    bodies: Bodies = field(default_factory=Bodies)
    readers: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(1))

    def begin(self, line: Line, incoming: Incoming) -> Exchange:
        """As `Host`."""
        return Asking(self, line, incoming)

    def misheard(self, error: Malformed) -> None:
        """As `Host`."""
        box = self.box()
        who = box.principal or ""
        told = ModelUsed(box.id, who, "", "", "", error.status, refused=str(error), asked=False)
        self.hook(told)


class Asking(Exchange):
    """One request of a program that uses models."""

    passed_back = ("Content-Type", "Content-Length", "Cache-Control", *_TOLD)
    passed_on_failure = ("Content-Type", *_TOLD)

    def __init__(self, means: Means, line: Line, incoming: Incoming) -> None:
        super().__init__(line, incoming)
        self._means = means
        self._dialect: Dialect | None = None
        self._asked: Asked | None = None
        self._model = ""
        self._tab: Tab | None = None

    def refusal(self, error: Wrong) -> Refused:
        """What no other try helps against is said so that clients stop."""
        refused = super().refusal(error)
        last = isinstance(error, NoCredential) or refused.status == HTTPStatus.FORBIDDEN
        if self._asked is None or self._dialect is None or not last:
            return refused
        status = STOPS.get(self._dialect, HTTPStatus.PAYMENT_REQUIRED)
        return Refused(status, str(refused))

    def worded(self, refused: Refused) -> tuple[str, Mapping[str, str] | None]:
        """As clients of either kind read it."""
        stop = refused.status in (HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.BAD_REQUEST)
        client, server = "invalid_request_error", "api_error"
        usual = client if refused.status < HTTPStatus.INTERNAL_SERVER_ERROR else server
        ours = self._dialect is not Dialect.OPENAI
        error = {
            "type": TYPES.get(refused.status, usual) if ours else usual,
            "message": f"box_mcp: {refused}",
            "param": None,
            "code": REFUSED if stop else None,
        }
        return json.dumps({"type": "error", "error": error}), {"Content-Type": JSON}

    def tell(self) -> None:
        """Reports how it went."""
        box, tab = self._means.box(), self._tab
        tokens = tab and tab.metered.tokens
        self._means.hook(
            ModelUsed(
                box=box.id,
                principal=box.principal or "",
                route=self.route,
                method=self.incoming.method,
                path=self.path[:MAX_TOLD],
                status=self.status,
                model=self._model,
                run=(tab and tab.payers.run) or "",
                input=tokens.input if tokens else 0,
                cache_read=tokens.cache_read if tokens else 0,
                cache_write=tokens.cache_write if tokens else 0,
                output=tokens.output if tokens else 0,
                cost=tab and tab.cost,
                sent=self.incoming.sent,
                received=self.incoming.received,
                seconds=self.seconds,
                refused=self.refused,
                asked=self.asked,
            )
        )

    def may_have_happened(self, outgoing: Outgoing, error: Unanswered) -> bool:
        """Models are paid for each time."""
        del outgoing
        return error.sent

    async def answer(self) -> None:
        """As `Exchange`."""
        route, target = self.found(self._means.routes(), MODELS_PORT)
        self._dialect = route.dialect
        self._asked = judge(route, self.incoming.method, target)
        with self._means.bodies.hold(self._size()) as only:
            body = await self._body()
            only(len(body or b""))
            wanted = await self._read(route, self._asked, body) if body is not None else None
            async with self._means.turns.one():
                if wanted is None or self._asked.free:
                    await self._look_up(route, self._asked, wanted and wanted.body)
                else:
                    await self._generate(route, self._asked, wanted)

    def _size(self) -> int:
        """How much its body may take; raises Malformed and Forbidden."""
        if self.incoming.method == "GET":
            return 0
        if (self.incoming.header("Content-Encoding") or "identity") != "identity":
            raise Forbidden("requests are read here: they can't be packed")
        said = self.incoming.header("Content-Length")
        if said is not None and int(said) > MAX_BODY:
            raise Malformed(f"its body is longer than {MAX_BODY:,} bytes", 413)
        return MAX_BODY if said is None else int(said)

    async def _body(self) -> bytes | None:
        """None where there is none to be; raises Malformed and HungUp."""
        try:
            with anyio.fail_after(self._means.limits.head):
                if self.incoming.method != "GET":
                    return await self.incoming.read(MAX_BODY)
                await self.incoming.read(0)
        except TimeoutError:
            raise Malformed("its body did not come in time", 408) from None
        return None

    async def _read(self, route: ModelRoute, asked: Asked, body: bytes) -> Wanted:
        """What a body says; raises Forbidden. Whoever wants it read for long waits for himself."""
        alone = self._means.box().network.mode is not Mode.FULL
        read = partial(parse, route, asked, body, alone=alone)
        if len(body) <= READ_AT_ONCE:
            return read()
        return await anyio.to_thread.run_sync(read, limiter=self._means.readers)

    async def _look_up(self, route: ModelRoute, asked: Asked, body: bytes | None) -> None:
        """Something that costs nothing."""
        answer = await self._ask(route, asked, body)
        async with aclosing(answer):
            await self.pass_back(answer)

    async def _generate(self, route: ModelRoute, asked: Asked, wanted: Wanted) -> None:
        """An answer of a model."""
        self._model = wanted.priced[0]
        means = self._means
        tab = await means.purse.open(means.box(), self._key(), wanted, route.dialect)
        self._tab = tab
        try:
            answer = await self._ask(route, asked, wanted.body, tab)
            async with aclosing(answer):
                await self.pass_back(answer, _counted(answer, tab))
        finally:
            await tab.pay()

    def _key(self) -> str:
        """What names the run that asks; "" when it names none. Raises Malformed."""
        bearer = (self.incoming.header("Authorization") or "").removeprefix("Bearer ").strip()
        keys = (self.incoming.header("x-api-key") or "", bearer)
        return next((key for key in keys if key.startswith(KEY_PREFIX)), "")

    async def _ask(
        self, route: ModelRoute, asked: Asked, body: bytes | None, tab: Tab | None = None
    ) -> Answer:
        """What the upstream answers; raises what is `Wrong`."""
        headers = self.headers(PASSED_ON[route.dialect]) | {"Accept-Encoding": "identity"}
        by_key = route.dialect is Dialect.ANTHROPIC and not route.bearer

        def request(secret: Secret) -> Outgoing:
            proof = {"x-api-key": secret.value} if by_key else {"Authorization": secret.bearer}
            url = f"{route.upstream.origin}{asked.target}"
            if tab is not None:
                tab.begin()
            return Outgoing(self.incoming.method, url, headers | proof, body, (secret.value,))

        try:
            answer = await self.ask(route, self._means.secrets, request)
        except (Unanswered, Refused, NoCredential) as error:
            if tab is not None:
                # What is silent may still work; what broke off, or refused, does not.
                tab.owed = isinstance(error, Unanswered) and error.late and error.sent
            raise
        if tab is not None:
            tab.owed = answer.succeeded
        if answer.moved:
            await answer.aclose()
            text = f"{route.upstream} says that this is elsewhere: its key is not sent there"
            raise Refused(HTTPStatus.FORBIDDEN, text)
        return answer


async def _counted(answer: Answer, tab: Tab) -> AsyncGenerator[bytes, None]:
    """The pieces of an answer; whose end comes when it is paid for. Raises Unanswered."""
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise Unanswered("its answer is packed, so it can't be metered")
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if (made := STREAMS.get(kind)) is None:
        if kind != JSON:
            raise Unanswered(f"it says something of the type {kind[:MAX_TOLD]!r}, as no model does")
        whole = Whole()
        tab.total = whole.total
        said = await answer.read(MAX_REPLY)
        if said is None:
            raise Unanswered(f"its answer has more than {MAX_REPLY:,} bytes")
        whole.feed(said)
        await tab.pay()
        yield said
        return
    counter = made()
    tab.total = counter.total
    async with aclosing(answer.pieces()) as pieces:
        async for piece in pieces:
            counter.feed(piece)
            if counter.total.over:
                await tab.pay()
            yield piece
    await tab.pay()
