"""From code in a box, through the gateway to models, at their key, budgets and servers."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
import anyio.to_thread
import pytest

from box_mcp.domain.models import Dialect, ModelRoute
from box_mcp.domain.names import BoxId
from box_mcp.domain.network import Mode, Network
from box_mcp.domain.runs import Ending
from box_mcp.gateway.models.asking import MAX_BODIES, MAX_BODY, READ_AT_ONCE
from box_mcp.gateway.turns import Limits
from tests.support.egress import everything
from tests.support.models import (
    ASKED,
    COST,
    HOST,
    JSON,
    KEY,
    claude,
    events,
    get,
    messages,
    models,
    post,
    reply,
    route,
)
from tests.support.webserver import Trouble, Web, echoed, web

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

CLOSE = "Connection: close"
SENT = {
    *("accept", "accept-encoding", "anthropic-beta", "anthropic-version", "connection"),
    *("content-length", "content-type", "host", "user-agent", "x-api-key", "x-app"),
}
"""What a server of models may hear of a request."""


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", KEY)


@pytest.fixture
def server() -> Iterator[Web]:
    with web() as made:
        made.handlers.append(lambda exchange: reply(exchange, events(claude())))
        yield made


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    "target",
    [
        "/a/v1/organizations/api_keys",
        "/a/v1/messages/batches",
        "/a/v1/messages/../organizations",
        "/a/../v1/messages",
        "/a//v1/messages",
        "/a/v1/messages/",
        "/a/v1/messages%2f..%2ffiles",
        "/a/v1/messages;x=y",
        "/a/v1/messages?beta=true&api_key=x",
        "/a@elsewhere.example/v1/messages",
        "/b/v1/messages",
        "//a/v1/messages",
        "/",
        "*",
        "http://elsewhere.example/a/v1/messages",
        "http://127.0.0.1:3130/a/v1/messages",
    ],
)
async def test_a_box_reaches_nothing_but_what_models_are_asked_by(
    server: Web, tmp_path: Path, target: str
):
    async with models(tmp_path, route("a", server.url)) as place:
        answer = await place.ask(post(target, ASKED))
        assert 400 <= status(answer) < 500
        assert KEY.encode() not in answer
        assert server.asked == []


@pytest.mark.parametrize(
    "host", ["elsewhere.example", "127.0.0.1", "127.0.0.1:3129", "api.anthropic.com"]
)
async def test_a_page_that_a_browser_in_the_box_shows_can_t_ask_by_another_name(
    server: Web, tmp_path: Path, host: str
):
    async with models(tmp_path, route("a", server.url)) as place:
        request = messages().replace(HOST.encode(), f"Host: {host}".encode())
        assert status(await place.ask(request)) == 421
        assert server.asked == []


async def test_a_server_hears_of_a_box_s_headers_by_a_list_only(server: Web, tmp_path: Path):
    async with models(tmp_path, route("a", server.url)) as place:
        more = (
            *("Cookie: a=b", "X-Forwarded-For: 1.2.3.4", "Proxy-Authorization: Basic eDp5"),
            *("anthropic-organization-id: other", "anthropic-workspace-id: other", "TE: trailers"),
            *("X-HTTP-Method-Override: DELETE", "Authorization: Bearer stolen", "Upgrade: h2c"),
            *("X-Stainless-Helper: x", "User-Agent: claude-cli/2", "anthropic-version: 2023-06-01"),
            *("anthropic-beta: some-2026-01-01", "x-app: cli", "Accept: application/json"),
        )
        assert status(await place.ask(messages(None, *more))) == 200
        (asked,) = server.asked
        names = [name.lower() for name, _ in asked.headers]
        assert set(names) <= SENT
        assert len(names) == len(set(names))
        assert asked.header("x-api-key") == KEY
        assert asked.header("anthropic-beta") == "some-2026-01-01"


@pytest.mark.parametrize(
    "more",
    [
        ("Content-Length: 3",),
        ("Transfer-Encoding: chunked",),
        ("x-api-key: another",),
        ("anthropic-beta: one", "anthropic-beta: two"),
        ("X: y\r\n folded",),
        ("X: y\nx-app: z",),
        ("Content-Encoding: gzip",),
    ],
)
async def test_a_request_that_has_two_meanings_is_asked_by_neither(
    server: Web, tmp_path: Path, more: tuple[str, ...]
):
    async with models(tmp_path, route("a", server.url)) as place:
        answers = await place.ask(messages(None, *more))
        assert 400 <= status(answers) < 500
        assert server.asked == []


async def test_a_request_hidden_behind_another_is_judged_by_itself(server: Web, tmp_path: Path):
    async with models(tmp_path, route("a", server.url, models=("m1",))) as place:
        run = await place.run(max_cost=COST)
        hidden = messages(ASKED | {"model": "m2"}, key="box-mcp")
        answers = await place.ask(messages(key=run.key).replace(CLOSE.encode(), b"A: b") + hidden)
        assert answers.count(b"HTTP/1.1 ") == 2
        assert b"HTTP/1.1 402" in answers
        assert len(server.asked) == 1


def repeating(kind: str, status: int = 200) -> Trouble:
    return Trouble("/v1/messages", status, {"Content-Type": kind}, echoed)


@pytest.mark.parametrize(
    "trouble",
    [
        repeating("application/json"),
        repeating("text/event-stream"),
        repeating("application/vnd.amazon.eventstream"),
        repeating("application/json", 400),
        repeating("text/plain", 529),
        Trouble("/v1/messages", 200, {"request-id": KEY, **JSON}, b"{}"),
        Trouble("/v1/messages", 302, {"Location": f"https://elsewhere.example/?{KEY}"}),
        Trouble("/v1/messages", 401, {"WWW-Authenticate": KEY}, KEY.encode()),
    ],
)
async def test_no_server_that_talks_too_much_tells_a_box_the_key(
    server: Web, tmp_path: Path, trouble: Trouble
):
    async with models(tmp_path, route("a", server.url)) as place, await place.dial() as client:
        server.fail(replace(trouble))
        await client.send(messages())
        answer = b""
        with suppress(anyio.BrokenResourceError):
            answer = await everything(client)
        assert server.asked[0].header("x-api-key") == KEY
        assert KEY.encode() not in answer
        assert KEY not in repr(place.events)


async def test_a_key_that_comes_back_letter_by_letter_comes_to_nothing(tmp_path: Path):
    pieces = [letter.encode() for letter in f"data: {KEY}\n\n"]
    with web() as server:
        server.handlers.append(lambda exchange: reply(exchange, pieces))
        async with models(tmp_path, route("a", server.url)) as place, await place.dial() as client:
            await client.send(messages())
            got = bytearray()
            with suppress(anyio.BrokenResourceError):
                async for data in client:
                    got += data
            assert KEY[:2].encode() not in got.partition(b"data: ")[2]
            (told,) = await place.told(1)
            assert "repeats the secret" in told.refused


async def test_an_agent_can_t_spend_past_its_budget_by_another_key_than_its_own(
    server: Web, tmp_path: Path
):
    known = (route("a", server.url), route("b", server.url))
    async with models(tmp_path, *known) as place:
        elsewhere = await place.run(box=BoxId("box-bbbbbbbb"), max_cost=100.0)
        mine = await place.run(max_cost=COST)
        assert status(await place.ask(messages(key=mine.key))) == 200
        for key in (mine.key, "box-mcp", elsewhere.key, "sk-ant-found-somewhere", "", "box-mcp-"):
            assert status(await place.ask(messages(key=key))) == 402
        bare = messages().replace(b"x-api-key: box-mcp", b"X: y")
        assert status(await place.ask(bare)) == 402
        assert status(await place.ask(messages().replace(b"/a/v1", b"/b/v1"))) == 402
        assert await place.spent(elsewhere) == 0
        assert len(server.asked) == 1


async def test_what_a_run_leaves_behind_spends_nothing_in_its_name(server: Web, tmp_path: Path):
    async with models(tmp_path, route("a", server.url)) as place:
        run = await place.run(max_cost=1.0)
        assert status(await place.ask(messages(key=run.key))) == 200
        ended = await place.ledger.save(run.end(Ending.OVER_BUDGET, 2.0))
        assert ended is not None
        answer = await place.ask(messages(key=run.key))
        assert status(answer) == 402
        assert f"{run.id} is over".encode() in answer
        assert len(server.asked) == 1


@pytest.mark.parametrize("mode", [Mode.NONE, Mode.ALLOWLIST])
async def test_a_box_without_the_network_has_none_by_a_model_s_server_either(
    server: Web, tmp_path: Path, mode: Mode
):
    said = ASKED | {"tools": [{"type": "web_search"}, {"name": "Bash"}], "stream": True}
    far = {"mcp_servers": [{"type": "url", "url": "https://elsewhere.example/"}]}
    async with models(tmp_path, route("a", server.url)) as place:
        assert status(await place.ask(messages(said | far))) == 200
        place.box = replace(place.box, spec=replace(place.box.spec, network=Network(mode)))
        for path in ("/a/v1/messages", "/a/v1/messages/count_tokens"):
            answer = await place.ask(post(path, said | far))
            assert status(answer) == 402
            assert b"network" in answer
            assert status(await place.ask(post(path, said))) == 200
        heard = [json.loads(asked.said) for asked in server.asked]
        assert heard == [said | far, *[said | {"tools": [{"name": "Bash"}]}] * 2]


async def test_of_many_requests_at_once_only_those_pass_a_budget_that_were_under_way(
    server: Web, tmp_path: Path
):
    async with models(tmp_path, route("a", server.url), limits=Limits(of_box=4)) as place:
        run = await place.run(max_cost=COST)
        answers: list[int] = []

        async def ask() -> None:
            answers.append(status(await place.ask(messages(key=run.key))))

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(ask)
        passed = answers.count(200)
        assert answers.count(402) == 20 - passed
        assert 1 <= passed == len(server.asked) <= 4
        assert await place.spent(run) == pytest.approx(passed * COST)


async def test_what_is_not_counted_by_who_leaves_early_is_not_free(server: Web, tmp_path: Path):
    async with models(tmp_path, route("a", server.url)) as place:
        run = await place.run(max_cost=0.01)
        for count in range(1, 4):
            trouble = server.fail(Trouble("/v1/messages", stall=True))
            async with await place.dial() as client:
                await client.send(messages(ASKED | {"max_tokens": 400}, key=run.key))
                assert await anyio.to_thread.run_sync(trouble.met.wait, 10)
            await place.told(count)
        server.heal()
        assert status(await place.ask(messages(key=run.key))) == 402


async def test_a_body_of_a_gigabyte_is_refused_before_it_is_read(server: Web, tmp_path: Path):
    async with models(tmp_path, route("a", server.url)) as place:
        head = get("/a/v1/messages", f"Content-Length: {1 << 30}", method="POST")
        assert status(await place.ask(head)) == 413
        assert place.events[0].sent == 0
        chunk = b"%x\r\n%b\r\n" % (1 << 20, b"x" * (1 << 20))
        async with await place.dial() as client:
            await client.send(get("/a/v1/messages", "Transfer-Encoding: chunked", method="POST"))
            with anyio.fail_after(20):
                with suppress(anyio.BrokenResourceError):
                    for _ in range(1 << 10):
                        await client.send(chunk)
        await place.told(2)
        assert MAX_BODY < place.events[1].sent < MAX_BODY + (1 << 22)
        assert server.asked == []


async def test_large_bodies_that_come_by_drops_hold_no_more_than_a_box_s_share(
    server: Web, tmp_path: Path
):
    async with models(tmp_path, route("a", server.url), limits=Limits(head=0.5)) as place:
        head = get("/a/v1/messages", f"Content-Length: {MAX_BODY}", CLOSE, method="POST")
        clients = [await place.dial() for _ in range(MAX_BODIES // MAX_BODY)]
        for client in clients:
            await client.send(head + b"{")
        refused = b""
        while not refused.startswith(b"HTTP/1.1 503"):
            refused = await place.ask(messages())
        for client in clients:
            assert status(await everything(client)) == 408
            await client.aclose()
        assert status(await place.ask(messages())) == 200


class Watched(ModelRoute):
    """Tells whether it is looked at in a thread of its own."""

    apart: ClassVar[list[bool]] = []

    def offers(self, model: str) -> bool:
        self.apart.append(threading.current_thread() is not threading.main_thread())
        return super().offers(model)


async def test_who_has_a_million_parts_read_holds_up_nobody_else(server: Web, tmp_path: Path):
    usual = route("a", server.url)
    async with models(tmp_path, Watched(**vars(usual))) as place:
        parts: list[Any] = [{} for _ in range(READ_AT_ONCE // 3)]
        for said in (ASKED, ASKED | {"metadata": parts}):
            assert status(await place.ask(messages(said))) == 200
        assert Watched.apart == [False, True]


async def test_nobody_s_box_is_served(server: Web, tmp_path: Path):
    async with models(tmp_path, route("a", server.url)) as place:
        place.box = replace(place.box, principal=None)
        assert status(await place.ask(messages())) == 404
        assert server.asked == []


async def test_a_route_of_another_s_is_not_there(server: Web, tmp_path: Path):
    known = (route("a", server.url, principals=("other",)), route("o", server.url, Dialect.OPENAI))
    async with models(tmp_path, *known) as place:
        answer = await place.ask(messages())
        assert status(answer) == 404
        told = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
        assert told == "box_mcp: this box has no route 'a': it has o"
