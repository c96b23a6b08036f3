"""The door: who is let in, what is laid on the request, what everybody else is told."""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from mcp.server.auth.middleware.auth_context import get_access_token

from box_mcp.domain.access import OWN, Grant, Group, Scope
from box_mcp.domain.names import LOCAL, Principal
from box_mcp.errors import EngineUnreachable, IdentityUnavailable
from box_mcp.events import RequestRefused
from box_mcp.gateway.passing import BrokenOff
from box_mcp.identity.verifying import Identity, ProtectedResource
from box_mcp.surface.access import Need
from box_mcp.surface.http.admission import MAX_OWN, OWN_BYTES, STRANGERS, Admission
from box_mcp.surface.http.answers import Said
from box_mcp.surface.http.bearer import NOT_GOOD
from box_mcp.surface.http.door import Door, Page, Rules
from box_mcp.surface.http.heads import Names, Proxies
from box_mcp.surface.http.health import FRESH, Readiness
from box_mcp.surface.requests import ENDING, GRANT, HOLDING
from tests.support.asgi import PEER, Asking, asking

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import Receive, Send
    from starlette.types import Scope as Asked

    from box_mcp.events import Event

PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
RESOURCE = ProtectedResource("https://boxes.example.org/mcp", "https://issuer.example.org")
ANN, BEN = Grant(Principal("ann")), Grant(Principal("ben"), (Scope(reads=True),), "b2")
TOKENS = {"anns": ANN, "bens": BEN}


@dataclass
class Known:
    """Knows some tokens, which can be taken away; or nothing can be told of any."""

    tokens: dict[str, Grant] = field(default_factory=lambda: dict(TOKENS))
    away: bool = False
    asked: list[str] = field(default_factory=list[str])
    pause: anyio.Event | None = None
    """What there is to wait for before one learns that a token is none."""

    def knows(self, token: str) -> bool:
        return True

    async def verify(self, token: str) -> Grant | None:
        self.asked.append(token)
        if self.away:
            raise IdentityUnavailable("the issuer", "does not answer")
        if self.pause is not None and token not in self.tokens:
            await self.pause.wait()
        return self.tokens.get(token)

    async def stands(self, name: str) -> bool:
        return any(grant.token == name for grant in self.tokens.values())


@dataclass
class Behind:
    """Stands where MCP is: answers at once, or begins to, and goes on until it is let go."""

    streams: bool = False
    seen: list[Asked] = field(default_factory=list[Any])
    bodies: list[bytes] = field(default_factory=list[bytes])
    users: list[str | None] = field(default_factory=list[str | None])
    go: anyio.Event = field(default_factory=anyio.Event)
    error: Exception | None = None

    async def __call__(self, scope: Asked, receive: Receive, send: Send) -> None:
        self.seen.append(scope)
        self.bodies.append((await receive())["body"])
        token = get_access_token()
        self.users.append(token and token.client_id)
        if self.error is not None:
            raise self.error
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if self.streams:
            await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        await send({"type": "http.response.body", "body": b"done"})


@dataclass
class Entrance:
    """A door that is open, with all that is about it."""

    door: Door
    known: Known
    behind: Behind
    told: list[Event]
    now: list[float]

    async def ask(self, *arguments: Any, **named: Any) -> Asking:
        return await asking(*arguments, **named).of(self.door)

    async def ping(self, token: str = "anns", **named: Any) -> Asking:
        return await self.ask(body=PING, token=token, **named)

    @property
    def refused(self) -> list[tuple[str, int, str]]:
        events = [one for one in self.told if isinstance(one, RequestRefused)]
        return [(one.client, one.status, one.why) for one in events]


@asynccontextmanager
async def entrance(
    behind: Behind | None = None,
    *,
    rules: Rules | None = None,
    tokens: bool = True,
    resource: ProtectedResource | None = None,
    requests: int | None = None,
    refusals: int | None = None,
    engine_away: bool = False,
    **more: Any,
) -> AsyncGenerator[Entrance, None]:
    known, now, told = Known(), [0.0], list[Any]()
    behind = behind or Behind()
    rules = rules or Rules()

    async def look() -> None:
        if engine_away:
            raise EngineUnreachable("unix:///nowhere", "no such file")

    identity = Identity([known], resource) if tokens else None
    admission = Admission(identity, requests, refusals, rules.max_body, now=lambda: now[0])
    readiness = Readiness(look, now=lambda: now[0])
    more.setdefault("slowly", 0)
    door = Door(behind, admission, rules, readiness, told.append, **more)
    with anyio.fail_after(10):
        async with door.open():
            yield Entrance(door, known, behind, told, now)


async def test_who_has_a_good_token_is_let_in_with_its_grant():
    async with entrance() as way:
        answer = await way.ping("bens")
        assert (answer.status, answer.body, answer.over) == (200, b"done", True)
        assert way.behind.seen[0][GRANT] == BEN
        assert way.behind.users == ["ben"]
        assert way.behind.bodies == [PING]
        assert get_access_token() is None


async def test_the_grant_of_a_request_is_not_what_its_scope_said_before():
    async with entrance() as way:
        await way.ask(body=PING, token="bens", **{GRANT: ANN, "user": "ann"})
        assert way.behind.seen[0][GRANT] == BEN
        assert way.behind.seen[0]["user"].display_name == "ben"


async def test_without_tokens_whoever_comes_is_who_started_the_server():
    async with entrance(tokens=False) as way:
        assert (await way.ping("")).status == 200
        assert way.behind.seen[0][GRANT] == OWN
        assert way.behind.users == [LOCAL]


@pytest.mark.parametrize(
    "said", ["", "Basic YTpi", "Bearer", "Bearer ", "anns", "Token anns", "Bearer\tanns"]
)
async def test_without_a_bearers_token_one_hears_what_is_wanted(said: str):
    async with entrance() as way:
        answer = await way.ask(body=PING, headers=[("authorization", said)])
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == 'Bearer realm="box_mcp"'
        assert "box-mcp token create" in answer.words
        assert not way.behind.seen
        assert way.refused == [(PEER, 401, "no token")]


async def test_any_token_that_is_not_good_is_answered_alike():
    async with entrance() as way:
        answers = [await way.ping(token) for token in ("x", "anns2", "bxm_a_b", "x" * 9000, "\xff")]
        challenge = f'Bearer realm="box_mcp", error="invalid_token", error_description="{NOT_GOOD}"'
        assert {(one.status, one.body, one.headers["www-authenticate"]) for one in answers} == {
            (401, answers[0].body, challenge)
        }
        assert not way.behind.seen


async def test_an_issuers_clients_are_told_where_tokens_are_had():
    async with entrance(resource=RESOURCE) as way:
        challenge = (await way.ping("")).headers["www-authenticate"]
        at = "https://boxes.example.org/.well-known/oauth-protected-resource/mcp"
        assert f'resource_metadata="{at}"' in challenge
        for path in (at.removeprefix("https://boxes.example.org"), at[25:-4]):
            answer = await way.ask("GET", path)
            about = json.loads(answer.body)
            assert about["resource"] == RESOURCE.url
            assert about["authorization_servers"] == [RESOURCE.issuer]


async def test_without_an_issuer_there_are_no_metadata():
    async with entrance() as way:
        assert (await way.ask("GET", "/.well-known/oauth-protected-resource")).status == 404


async def test_whether_a_token_is_good_can_be_unknown():
    async with entrance(refusals=1) as way:
        way.known.away = True
        answers = [await way.ping() for _ in range(3)]
        assert [one.status for one in answers] == [503] * 3
        assert int(answers[0].headers["retry-after"]) > 0


async def test_a_scheme_is_taken_in_any_case_and_spaces_do_not_count():
    async with entrance() as way:
        answer = await way.ask(body=PING, headers=[("authorization", "bEARER   anns ")])
        assert answer.status == 200


@pytest.mark.parametrize("name", ["host", "authorization", "origin", "mcp-session-id"])
async def test_a_header_that_decides_is_not_taken_twice(name: str):
    async with entrance() as way:
        twice = [(name, "localhost"), (name, "localhost")]
        host = None if name == "host" else "localhost"
        answer = await way.ask(body=PING, host=host, headers=twice)
        assert answer.status == 400
        assert not way.behind.seen


NAMED = Rules(Names(["boxes.example.org"], ["https://ui.example.org"]))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("localhost:8765", 200), ("127.0.0.1:1", 200), ("[::1]", 200), ("LOCALHOST", 200)),
        *(("boxes.example.org", 200), ("evil.example", 421), ("localhost.evil.example", 421)),
        *(("localhost:evil", 400), ("localhost:", 400), ("", 400), (None, 400)),
        *(("127.0.0.1.nip.io", 421), ("0.0.0.0", 421), ("localhost@evil", 400)),
    ],
)
async def test_only_its_own_names_lead_in_whatever_the_path(host: str | None, status: int):
    async with entrance(rules=NAMED) as way:
        assert (await way.ping(host=host)).status == status
        if status != 200:
            for path in ("/healthz", "/readyz", "/", "/mcp/x"):
                assert (await way.ask("GET", path, host=host)).status == status
            assert not way.behind.seen


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        *(("http://localhost:8765", 200), ("https://ui.example.org", 200)),
        *(("http://localhost:3000", 403), ("https://localhost:8765", 403), ("null", 403)),
        *(("http://evil.example", 403), ("", 403), ("https://ui.example.org.evil", 403)),
    ],
)
async def test_pages_of_others_are_kept_out_whatever_the_path(origin: str, status: int):
    async with entrance(rules=NAMED) as way:
        assert (await way.ping(headers=[("origin", origin)])).status == status
        health = await way.ask("GET", "/healthz", headers=[("origin", origin)])
        assert health.status == status


async def test_browsers_are_told_that_a_welcome_page_may_have_the_answer():
    origin = ("origin", "https://ui.example.org")
    async with entrance(rules=NAMED) as way:
        answer = await way.ping(headers=[origin])
        assert answer.headers["access-control-allow-origin"] == "https://ui.example.org"
        refused = await way.ping("", headers=[origin])
        assert refused.status == 401
        assert refused.headers["access-control-allow-origin"] == "https://ui.example.org"
        wants = [("access-control-request-method", "POST")]
        wants += [("access-control-request-headers", "authorization, mcp-method")]
        before = await way.ask("OPTIONS", headers=[origin, *wants])
        assert before.status == 204
        assert before.headers["access-control-allow-headers"] == "authorization, mcp-method"
        assert "POST" in before.headers["access-control-allow-methods"]
        own = ("origin", "http://localhost:8765")
        assert (await way.ask("OPTIONS", headers=[own, *wants])).status == 405
        assert len(way.behind.seen) == 1


@pytest.mark.parametrize("path", ["/", "/mcp/", "/mcp/x", "//mcp", "/MCP", "http://localhost/mcp"])
async def test_mcp_is_spoken_at_one_path(path: str):
    async with entrance() as way:
        answer = await way.ping(path=path)
        assert answer.status == 404
        assert "/mcp" in answer.words


@pytest.mark.parametrize("method", ["PUT", "PATCH", "OPTIONS", "TRACE", "HEAD", "CONNECT", "post"])
async def test_mcp_takes_three_methods(method: str):
    async with entrance() as way:
        answer = await way.ping(path="/mcp", method=method)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, POST, DELETE")


async def test_a_body_comes_in_one_piece_however_it_was_sent():
    async with entrance() as way:
        pieces = [PING[i : i + 7] for i in range(0, len(PING), 7)]
        chunked = [("transfer-encoding", "chunked")]
        assert (await way.ask(body=pieces, token="anns", headers=chunked)).status == 200
        assert way.behind.bodies == [PING]


async def test_a_body_that_is_too_large_is_not_read_to_its_end():
    async with entrance(rules=Rules(max_body=100)) as way:
        said = await way.ping(headers=[("content-length", "101")])
        assert (said.status, said.pieces) == (413, [PING])
        sent = asking(
            body=[b"x" * 60] * 5, token="anns", headers=[("transfer-encoding", "chunked")]
        )
        assert (await sent.of(way.door)).status == 413
        assert len(sent.pieces) == 3
        assert {said.headers["connection"], sent.headers["connection"]} == {"close"}
        assert not way.behind.seen


async def test_who_has_no_good_token_is_not_read_at_all():
    async with entrance() as way:
        answer = await way.ping("x")
        assert (answer.status, answer.pieces) == (401, [PING])


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"NaN", b"\xff", b'"\\ud800"', b"[" * 10_000])
async def test_what_is_no_message_gets_no_further(body: bytes):
    async with entrance() as way:
        answer = await way.ask(body=body, token="anns")
        assert answer.status == 400
        assert not way.behind.seen


async def test_a_client_that_goes_away_while_it_speaks_is_answered_nothing():
    async with entrance() as way:
        leaving = asking(token="anns", headers=[("content-length", "2")])
        leaving.pieces.clear()
        leaving.gone.set()
        await leaving.of(way.door)
        assert (leaving.status, way.behind.seen) == (0, [])


async def test_who_asks_for_too_much_is_told_so_slowly_and_holds_nobody_up():
    async with entrance(requests=1, slowly=60) as way:
        assert (await way.ping()).status == 200
        with anyio.move_on_after(0.1) as late:
            await way.ping()
        assert late.cancelled_caught
        assert (await way.ping("bens")).status == 200


async def test_requests_of_a_minute_are_counted_for_each_principal():
    async with entrance(requests=2) as way:
        assert [(await way.ping()).status for _ in range(3)] == [200, 200, 429]
        assert (await way.ping("bens")).status == 200
        late = await way.ping()
        assert int(late.headers["retry-after"]) == 30
        way.now[0] += 31
        assert (await way.ping()).status == 200


async def test_who_is_refused_too_often_is_only_told_so_unless_the_token_was_good_lately():
    async with entrance(refusals=3) as way:
        assert (await way.ping("anns")).status == 200
        tries = [(await way.ping(f"guess{n}")).status for n in range(5)]
        assert tries == [401, 401, 401, 429, 429]
        assert way.known.asked == ["anns", "guess0", "guess1", "guess2"]
        assert (await way.ping("anns")).status == 200  # comes from the same address
        assert (await way.ping("bens")).status == 429
        assert (await way.ping("bens", client="203.0.113.9")).status == 200
        way.now[0] += 61
        assert (await way.ping("guess9")).status == 401


@pytest.mark.parametrize(
    "head", [("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")]
)
async def test_no_page_in_somebodys_browser_has_them_kept_out(head: tuple[str, str]):
    async with entrance(refusals=3) as way:
        asked = [await way.ask("GET", headers=[head]) for _ in range(5)]
        assert [one.status for one in asked][-2:] == [429, 429]
        assert (await way.ping("bens")).status == 200


async def test_who_guesses_much_at_once_is_refused_as_soon_as_who_guesses_one_by_one():
    tries = [asking(body=PING, token=f"guess{n}") for n in range(100)]
    async with entrance(refusals=3) as way:
        way.known.pause = anyio.Event()
        async with anyio.create_task_group() as group:
            for one in tries:
                group.start_soon(one.of, way.door)
            await anyio.wait_all_tasks_blocked()
            assert (await way.ping(client="203.0.113.9")).status == 200  # nobody else waits
            way.known.pause.set()
        assert len(way.known.asked) <= STRANGERS + 3
        assert sorted({one.status for one in tries}) == [401, 429]


async def test_a_proxy_that_is_trusted_is_not_taken_for_those_whom_it_speaks_for():
    rules = Rules(proxies=Proxies([ip_network("10.0.0.0/8")]))
    async with entrance(rules=rules, refusals=1) as way:
        ill = [("x-forwarded-for", "203.0.113.9")]
        assert (await way.ping("x", client="10.0.0.1", headers=ill)).status == 401
        assert (await way.ping("x", client="10.0.0.1", headers=ill)).status == 429
        well = [("x-forwarded-for", "203.0.113.10")]
        assert (await way.ping("bens", client="10.0.0.1", headers=well)).status == 200
        assert way.refused[0][0] == "203.0.113.9"


@pytest.mark.parametrize(
    ("client", "scheme", "status"),
    [
        ("198.51.100.7", "http", 403),
        ("198.51.100.7", "https", 200),
        ("10.0.0.1", "http", 200),  # the proxy
        ("127.0.0.1", "http", 200),
        (None, "http", 200),  # by a unix socket
    ],
)
async def test_where_others_can_listen_on_the_way_a_token_is_taken_by_tls_or_a_proxy_only(
    client: str | None, scheme: str, status: int
):
    rules = Rules(proxies=Proxies([ip_network("10.0.0.0/8")]), secret=True)
    behind = Behind()

    def under(host: str) -> Behind | None:
        return behind if host == "x.localhost" else None

    async with entrance(rules=rules, elsewhere=under) as way:
        asked = await way.ping(client=client, scheme=scheme)
        other = await way.ask("GET", "/", host="x.localhost", client=client, scheme=scheme)
        assert (asked.status, other.status) == (status, status)
        assert len(way.known.asked) == len(behind.seen) == (status == 200)
        assert (await way.ask("GET", "/healthz", client=client, scheme=scheme)).status == 200


async def test_one_principal_can_have_so_many_requests_open_and_leaves_room_for_others():
    async with entrance(Behind(streams=True)) as way, anyio.create_task_group() as group:
        streams = [asking("GET", token="anns") for _ in range(MAX_OWN)]
        for stream in streams:
            group.start_soon(stream.of, way.door)
        for stream in streams:
            await stream.begun.wait()
        assert (await way.ping()).status == 429
        other = asking("GET", token="bens")
        group.start_soon(other.of, way.door)
        await other.begun.wait()
        streams[0].gone.set()
        await anyio.wait_all_tasks_blocked()
        again = asking("GET", token="anns")
        group.start_soon(again.of, way.door)
        await again.begun.wait()
        assert again.status == 200
        for stream in (*streams, other, again):
            stream.gone.set()


async def test_a_call_counts_until_it_ends_whether_its_client_waits_or_not():
    async with entrance() as way:
        calls = [ExitStack() for _ in range(MAX_OWN)]
        for call in calls:
            assert (await way.ping()).status == 200
            call.enter_context(way.behind.seen[-1][HOLDING]())
        assert (await way.ping()).status == 429
        assert (await way.ping("bens")).status == 200
        calls.pop().close()
        assert (await way.ping()).status == 200
        while calls:
            calls.pop().close()


async def test_one_principal_can_have_so_many_bytes_under_way():
    largest = OWN_BYTES // 2
    async with (
        entrance(Behind(streams=True), rules=Rules(max_body=largest)) as way,
        anyio.create_task_group() as group,
    ):
        long = [("content-length", str(largest))]
        held = [asking(body=PING, token="anns", headers=long) for _ in range(2)]
        for one in held:
            group.start_soon(one.of, way.door)
            await one.begun.wait()
        assert (await way.ping(headers=long)).status == 429
        assert (await way.ping(headers=[("transfer-encoding", "chunked")])).status == 429
        other = asking(body=PING, token="bens", headers=long)
        group.start_soon(other.of, way.door)
        await other.begun.wait()
        assert other.status == 200
        for one in (*held, other):
            one.gone.set()


async def test_a_client_that_can_get_a_token_for_more_is_told_which():
    needs = {"shell_run": Need((Group.SHELL,), reads=False)}
    asked = [("mcp-method", "tools/call"), ("mcp-name", "shell_run")]

    def needed(method: str, name: str) -> Need | None:
        return needs.get(name) if method == "tools/call" else None

    async with entrance(resource=RESOURCE, needs=needed) as way:
        answer = await way.ping("bens", headers=asked)
        assert answer.status == 403
        challenge = answer.headers["www-authenticate"]
        assert 'error="insufficient_scope"' in challenge
        assert 'scope="boxes:shell"' in challenge
        assert (await way.ping("anns", headers=asked)).status == 200
        assert (await way.ping("bens")).status == 200  # the tool itself will say so
    async with entrance(needs=needed) as way:
        assert (await way.ping("bens", headers=asked)).status == 200


async def test_health_takes_no_token_and_says_nothing_else():
    async with entrance() as way:
        for path in ("/healthz", "/readyz"):
            answer = await way.ask("GET", path)
            assert (answer.status, answer.body) == (200, b"ok\n")
            assert (await way.ask("POST", path)).status == 405


async def test_without_an_engine_the_server_is_alive_and_not_ready():
    async with entrance(engine_away=True) as way:
        assert (await way.ask("GET", "/healthz")).status == 200
        answer = await way.ask("GET", "/readyz")
        assert (answer.status, answer.body) == (503, b"no engine\n")


async def test_the_engine_is_looked_at_once_in_a_while_and_nobody_waits_for_it_long():
    looks, now, go = list[int](), [0.0], anyio.Event()

    async def look() -> None:
        looks.append(1)
        await go.wait()

    readiness = Readiness(look, now=lambda: now[0])
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            assert not await readiness.ready(group)
            assert not await readiness.ready(group)
            assert len(looks) == 1
            go.set()
            assert await readiness.ready(group)
            assert await readiness.ready(group)
            assert len(looks) == 1
            now[0] += FRESH
            assert await readiness.ready(group)
            assert len(looks) == 2


async def test_a_page_of_others_takes_a_token_unless_it_is_open():
    async def answer() -> Said:
        return Said(200, b"figures")

    async with entrance(pages={"/a": Page(answer), "/b": Page(answer, open=True)}) as way:
        assert (await way.ask("GET", "/a")).status == 401
        assert (await way.ask("GET", "/a", token="anns")).body == b"figures"
        assert (await way.ask("GET", "/b")).body == b"figures"


async def test_other_names_are_others_to_answer_and_they_refuse_as_the_door_does():
    behind = Behind()

    def under(host: str) -> Behind | None:
        return behind if host == "x.localhost" else None

    async with entrance(elsewhere=under) as way:
        answer = await way.ask("PUT", "/any", host="x.localhost:8765", headers=[("origin", "o")])
        assert answer.status == 200
        assert not way.behind.seen
        behind.error = BrokenOff()
        broken = await way.ask("GET", "/any", host="x.localhost")
        assert not broken.over
        way.door.drain()
        assert (await way.ask("GET", "/any", host="x.localhost")).status == 503


async def test_draining_ends_streams_lets_calls_go_on_and_lets_nothing_new_in():
    async with entrance(Behind(streams=True)) as way, anyio.create_task_group() as group:
        stream, call = asking("GET", token="anns"), asking(body=PING, token="anns")
        listen = asking(body=PING, token="bens", headers=[("mcp-method", "subscriptions/listen")])
        for one in (stream, call, listen):
            group.start_soon(one.of, way.door)
            await one.begun.wait()
        way.door.drain()
        new = await way.ping()
        assert (new.status, new.headers["connection"]) == (503, "close")
        ready = await way.ask("GET", "/readyz")
        assert (ready.status, ready.body) == (503, b"draining\n")
        assert (await way.ask("GET", "/healthz")).status == 200
        await anyio.wait_all_tasks_blocked()
        assert (stream.over, stream.body) == (True, b"begun ")
        assert listen.over
        assert not call.over
        call.gone.set()


async def test_a_stream_that_knows_an_end_of_its_own_comes_to_it():
    over = anyio.Event()
    behind = Behind(streams=True)
    async with entrance(behind) as way, anyio.create_task_group() as group:
        stream = asking("GET", token="anns")
        group.start_soon(stream.of, way.door)
        await stream.begun.wait()
        behind.seen[0][ENDING] = [over.set]
        way.door.drain()
        assert over.is_set()
        await anyio.wait_all_tasks_blocked()
        assert not stream.over
        stream.gone.set()


async def test_a_stream_ends_when_its_token_is_good_no_more():
    async with entrance(Behind(streams=True)) as way, anyio.create_task_group() as group:
        revoked, other = asking("GET", token="anns"), asking("GET", token="bens")
        call = asking(body=PING, token="anns")
        for one in (revoked, other, call):
            group.start_soon(one.of, way.door)
            await one.begun.wait()
        del way.known.tokens["anns"]
        await way.door.look_at_streams()
        await anyio.wait_all_tasks_blocked()
        assert revoked.over
        assert not other.over
        assert not call.over  # a call ends by itself
        way.known.away = True
        await way.door.look_at_streams()
        await anyio.wait_all_tasks_blocked()
        assert not other.over
        other.gone.set()
        call.gone.set()


async def test_a_mistake_of_ours_is_logged_and_not_told(caplog: pytest.LogCaptureFixture):
    async with entrance(Behind(error=RuntimeError("secret"))) as way:
        with caplog.at_level(logging.ERROR):
            answer = await way.ping()
        assert answer.status == 500
        assert b"secret" not in answer.body
        assert "secret" in caplog.text


async def test_what_is_no_http_is_not_spoken():
    async with entrance() as way:
        await way.door({"type": "websocket"}, asking().receive, asking().send)
        assert not way.told
