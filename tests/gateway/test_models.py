from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked

from box_mcp.domain.box import Box, BoxSpec
from box_mcp.domain.models import Dialect, Prices
from box_mcp.domain.names import LOCAL, BoxId, Principal
from box_mcp.domain.routes import Credential
from box_mcp.domain.runs import Ending
from box_mcp.errors import StoreUnusable
from box_mcp.gateway.models.service import Models, environment
from box_mcp.ledger import Ledger
from tests.support.egress import everything
from tests.support.models import (
    ASKED,
    COST,
    JSON,
    KEY,
    PRICES,
    Said,
    claude,
    events,
    frames,
    get,
    messages,
    models,
    post,
    reply,
    route,
    whole_claude,
)
from tests.support.webserver import Asked, Exchange, Trouble, Web, redirect, web

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anyio.abc import SocketStream

    from box_mcp.domain.runs import Run, Use

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", KEY)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def head(answer: bytes) -> str:
    return answer.partition(b"\r\n\r\n")[0].decode().lower()


def body(answer: bytes) -> bytes:
    """Without its coding."""
    heads, _, rest = answer.partition(b"\r\n\r\n")
    if b"chunked" not in heads:
        return rest
    whole = b""
    while size := int(rest.partition(b"\r\n")[0], 16):
        rest = rest.partition(b"\r\n")[2]
        whole, rest = whole + rest[:size], rest[size + 2 :]
    return whole


async def come(client: SocketStream, part: bytes) -> bytes:
    """All that comes up to the piece that has `part`."""
    got = b""
    with anyio.fail_after(10):
        while part not in got:
            got += await client.receive()
    return got


def error(answer: bytes) -> dict[str, Any]:
    said = json.loads(body(answer))
    assert said["type"] == "error"
    return said["error"]


@pytest.fixture
def server() -> Iterator[Web]:
    """Models of all kinds: what they answer follows from what is asked."""

    def answer(exchange: Exchange) -> bool:
        path = exchange.asked.path
        if exchange.asked.method == "GET" or "count" in path:
            return reply(exchange, {"data": [], "input_tokens": 7})
        if path.endswith("response-stream"):
            return reply(exchange, frames(claude()))

        def said(body: bytes) -> Said:
            streams = "stream" in path.lower() or json.loads(body).get("stream")
            return events(claude()) if streams else whole_claude()

        return reply(exchange, said)

    with web() as made:
        made.handlers.append(answer)
        yield made


async def test_an_answer_streams_as_it_comes_and_is_counted_when_it_ends(
    server: Web, tmp_path: Path
):
    async with models(tmp_path, route("a", server.url)) as place:
        run = await place.run(max_cost=1.0)
        answer = await place.ask(messages(key=run.key))
        assert status(answer) == 200
        assert "content-type: text/event-stream" in head(answer)
        assert body(answer) == b"".join(events(claude()))
        (usage,) = await place.ledger.usage(run.id)
        assert (usage.model, usage.answers) == ("m1", 1)
        counts = (usage.tokens.input, usage.tokens.cache_read, usage.tokens.output)
        assert counts == (1000, 500, 200)
        assert usage.cost == pytest.approx(COST)
        assert await place.spent(run) == pytest.approx(COST)
        (told,) = place.events
        assert (told.run, told.model, told.path) == (run.id, "m1", "/v1/messages")
        assert (told.input, told.output, told.status, told.refused) == (1000, 200, 200, "")
        assert told.cost == pytest.approx(COST)


async def test_an_event_is_passed_on_while_the_next_one_is_not_there_yet(tmp_path: Path):
    gate = threading.Event()

    def slowly(exchange: Exchange) -> bool:
        exchange.asked.said = b"".join(exchange.body())

        def pieces() -> Iterator[bytes]:
            for number, piece in enumerate(events(claude())):
                if number == 2:
                    gate.wait(30)
                yield piece

        exchange.answer(200, {"Content-Type": "text/event-stream"}, pieces())
        return True

    with web() as server:
        server.handlers.append(slowly)
        known = route("a", server.url)
        async with models(tmp_path, known) as place, await place.dial() as client:
            await client.send(messages())
            assert b"message_stop" not in await come(client, b"text_delta")
            gate.set()
            assert b"message_stop" in await everything(client)


async def test_an_answer_s_end_waits_until_what_it_cost_is_written_down(
    server: Web, tmp_path: Path
):
    async with models(tmp_path, route("a", server.url)) as place:
        held, writing = anyio.Event(), anyio.Event()
        keep = place.ledger.use

        async def late(use: Use) -> None:
            writing.set()
            await held.wait()
            await keep(use)

        place.ledger.use = late
        got = bytearray()

        async def listen() -> None:
            async for data in client:
                got.extend(data)

        async with await place.dial() as client, anyio.create_task_group() as group:
            group.start_soon(listen)
            await client.send(messages())
            with anyio.fail_after(10):
                await writing.wait()
            await wait_all_tasks_blocked()
            assert b"message_stop" not in got
            held.set()
        assert got.endswith(b"0\r\n\r\n")
        run = await place.run(max_cost=COST / 2)
        place.ledger.use = keep
        assert status(await place.ask(messages(key=run.key))) == 200
        assert status(await place.ask(messages(key=run.key))) == 402


@pytest.mark.parametrize(
    ("dialect", "path", "proof"),
    [
        (Dialect.ANTHROPIC, "/v1/messages", "x-api-key"),
        (Dialect.OPENAI, "/responses", "authorization"),
        (Dialect.OPENAI, "/chat/completions", "authorization"),
        (Dialect.VERTEX, "/publishers/anthropic/models/m1:rawPredict", "authorization"),
        (Dialect.BEDROCK, "/model/m1/invoke", "authorization"),
    ],
)
async def test_each_dialect_has_its_own_way_to_bear_the_key_of_the_host(
    server: Web, tmp_path: Path, dialect: Dialect, path: str, proof: str
):
    async with models(tmp_path, route("a", f"{server.url}/base", dialect)) as place:
        assert status(await place.ask(post(f"/a{path}", ASKED))) == 200
        (asked,) = server.asked
        assert asked.target == f"/base{path}"
        assert asked.header(proof) in (KEY, f"Bearer {KEY}")
        assert "box-mcp" not in str(asked.headers)
        assert json.loads(asked.said) == ASKED
        assert place.events[0].output == 200


async def test_a_route_may_say_that_its_key_goes_as_a_bearer(server: Web, tmp_path: Path):
    async with models(tmp_path, route("a", server.url, bearer=True)) as place:
        assert status(await place.ask(messages())) == 200
        assert server.asked[0].header("Authorization") == f"Bearer {KEY}"
        assert server.asked[0].header("x-api-key") == ""


@pytest.mark.parametrize(
    ("dialect", "path"),
    [
        (Dialect.VERTEX, "/projects/p/locations/r/publishers/anthropic/models/m1:streamRawPredict"),
        (Dialect.BEDROCK, "/model/eu.anthropic.m1-v1%3A0/invoke-with-response-stream"),
    ],
)
async def test_claude_is_metered_in_clouds_too_for_what_their_regions_cost(
    server: Web, tmp_path: Path, dialect: Dialect, path: str
):
    said: dict[str, Any] = {"anthropic_version": "any", "max_tokens": 9, "messages": []}
    async with models(tmp_path, route("a", server.url, dialect)) as place:
        run = await place.run(max_cost=1.0)
        answer = await place.ask(post(f"/a{path}", said, key=run.key))
        assert status(answer) == 200
        made = events if dialect is Dialect.VERTEX else frames
        assert body(answer) == b"".join(made(claude()))
        assert await place.spent(run) == pytest.approx(1.1 * COST)


async def test_openai_s_input_includes_what_was_cached(tmp_path: Path):
    usage = {
        "input_tokens": 1500,
        "input_tokens_details": {"cached_tokens": 500},
        "output_tokens": 200,
    }
    end: dict[str, Any] = {"type": "response.completed", "response": {"usage": usage}}
    said = [{"type": "response.created", "response": {"usage": None}}, end]
    with web() as server:
        server.handlers.append(lambda exchange: reply(exchange, events(said)))
        async with models(tmp_path, route("o", server.url, Dialect.OPENAI)) as place:
            run = await place.run(max_cost=1.0)
            bearer = f"Authorization: Bearer {run.key}"
            request = post("/o/responses", {"model": "m1", "input": "x", "stream": True}, bearer)
            assert status(await place.ask(request)) == 200
            assert await place.spent(run) == pytest.approx(COST)


async def test_a_streamed_chat_completion_is_made_to_tell_its_tokens(tmp_path: Path):
    usage = {
        "prompt_tokens": 1500,
        "prompt_tokens_details": {"cached_tokens": 500},
        "completion_tokens": 200,
    }
    pieces = [
        b'data: {"choices": [{"delta": {"content": "hi"}}]}\n\n',
        b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n",
        b"data: [DONE]\n\n",
    ]
    with web() as server:
        server.handlers.append(lambda exchange: reply(exchange, pieces))
        async with models(tmp_path, route("o", server.url, Dialect.OPENAI)) as place:
            run = await place.run(max_cost=1.0)
            said: dict[str, Any] = {
                "model": "m1",
                "stream": True,
                "stream_options": {"x": 1},
                "messages": [],
            }
            answer = await place.ask(post("/o/chat/completions", said, key=run.key))
            assert body(answer) == b"".join(pieces)
            sent = json.loads(server.asked[0].said)
            assert sent == said | {"stream_options": {"x": 1, "include_usage": True}}
            assert await place.spent(run) == pytest.approx(COST)


async def test_what_costs_nothing_is_passed_on_without_being_counted(server: Web, tmp_path: Path):
    async with models(tmp_path, route("a", server.url)) as place:
        run = await place.run(max_cost=0.0)
        counting = post("/a/v1/messages/count_tokens?beta=true", ASKED, key=run.key)
        assert json.loads(body(await place.ask(counting)))["input_tokens"] == 7
        listing = get("/a/v1/models?limit=5", f"x-api-key: {run.key}", "Connection: close")
        assert status(await place.ask(listing)) == 200
        assert server.asked[1].target == "/v1/models?limit=5"
        assert await place.ledger.usage(run.id) == []


async def test_a_budget_that_is_used_up_is_told_so_that_clients_stop(server: Web, tmp_path: Path):
    known = (route("a", server.url), route("o", server.url, Dialect.OPENAI))
    async with models(tmp_path, *known) as place:
        run = await place.run(max_cost=COST / 2)
        assert status(await place.ask(messages(key=run.key))) == 200
        refused = await place.ask(messages(key=run.key))
        assert status(refused) == 402
        assert error(refused)["type"] == "billing_error"
        told = (
            f"box_mcp: the budget of {run.id}, $0.001525, is used up: $0.00305 were spent on models"
        )
        assert error(refused)["message"] == told
        refused = await place.ask(post("/o/responses", {"model": "m1"}, key=run.key))
        assert status(refused) == 400
        assert error(refused)["type"] == "invalid_request_error"
        assert error(refused)["code"] == "box_mcp_refused"
        assert len(server.asked) == 1
        assert [one.asked for one in place.events] == [True, False, False]
        assert [one.model for one in place.events] == ["m1", "m1", "m1"]
        assert place.events[1].refused in told


async def test_requests_without_a_run_s_key_count_for_all_budgets_in_the_box(
    server: Web, tmp_path: Path
):
    async with models(tmp_path, route("a", server.url)) as place:
        one, other = await place.run(max_cost=1.0), await place.run(max_cost=COST)
        free = await place.run()
        over = await place.run(max_cost=5.0)
        await place.ledger.save(over.end(Ending.FINISHED, 2.0))
        elsewhere = await place.run(box=BoxId("box-bbbbbbbb"), max_cost=COST)
        assert status(await place.ask(messages(key=free.key))) == 200
        assert [usage.answers for usage in await place.ledger.usage(free.id)] == [1]
        charged = [await place.spent(run) for run in (one, other, over, elsewhere)]
        assert charged == pytest.approx([COST, COST, 0, 0])
        # What one budget is used up for, no other key opens: none, another's, one that is over.
        for key in ("box-mcp", over.key, elsewhere.key, "sk-ant-made-up"):
            assert status(await place.ask(messages(key=key))) == 402
        assert status(await place.ask(messages(key=one.key))) == 200


async def test_a_model_without_a_price_is_refused_where_a_budget_holds_only(
    server: Web, tmp_path: Path
):
    async with models(tmp_path, route("a", server.url), prices=Prices()) as place:
        assert status(await place.ask(messages())) == 200
        assert place.events[0].cost is None
        run = await place.run(max_cost=1.0)
        refused = await place.ask(messages(key=run.key))
        assert status(refused) == 402
        assert "what 'm1' costs is not known, and a budget holds here" in error(refused)["message"]
    async with models(tmp_path, route("a", server.url), prices=Prices(), per_day=1.0) as place:
        await place.ledger.save(run.end(Ending.FINISHED, 2.0))
        assert status(await place.ask(messages())) == 402


async def test_what_may_be_spent_in_a_day_holds_for_all_that_a_principal_does(
    server: Web, tmp_path: Path
):
    async with models(tmp_path, route("a", server.url), per_day=COST) as place:
        run = await place.run(max_cost=100.0)
        assert status(await place.ask(messages())) == 200
        refused = await place.ask(messages(key=run.key))
        assert status(refused) == 402
        assert "what may be spent on models in a day" in error(refused)["message"]
        place.box = replace(place.box, principal=Principal("someone else"))
        assert status(await place.ask(messages())) == 200


async def test_turns_are_counted_where_a_run_says_how_many_it_has(server: Web, tmp_path: Path):
    async with models(tmp_path, route("a", server.url)) as place:
        run = await place.run(max_turns=2)
        answers = [status(await place.ask(messages(key=run.key))) for _ in range(3)]
        assert answers == [200, 200, 402]
        assert place.events[-1].refused == f"{run.id} has asked models 2 times, and may no more"
        counts_itself = await place.run(max_turns=1, limits_turns=True)
        answers = [status(await place.ask(messages(key=counts_itself.key))) for _ in range(2)]
        assert answers == [200, 200]


async def test_who_leaves_in_the_middle_pays_for_what_was_said_and_thought(tmp_path: Path):
    gate = threading.Event()

    def slowly(exchange: Exchange) -> bool:
        exchange.asked.said = b"".join(exchange.body())

        def pieces() -> Iterator[bytes]:
            yield from events(claude("x" * 4000)[:2])
            gate.wait(30)

        exchange.answer(200, {"Content-Type": "text/event-stream"}, pieces())
        return True

    with web() as server:
        server.handlers.append(slowly)
        async with models(tmp_path, route("a", server.url)) as place:
            run = await place.run(max_cost=1.0)
            async with await place.dial() as client:
                await client.send(messages(key=run.key))
                await come(client, b"x" * 4000)
            (told,) = await place.told(1)
            gate.set()
            assert told.refused == "the box left before the end"
            assert (told.input, told.output) == (1000, 2000)
            assert await place.spent(run) == pytest.approx(told.cost)


async def test_an_answer_that_breaks_off_is_paid_for_and_is_no_whole_one(
    server: Web, tmp_path: Path
):
    async with models(tmp_path, route("a", server.url)) as place:
        run = await place.run(max_cost=1.0)
        size = len(b"".join(events(claude())[:2]))
        server.fail(Trouble("/v1/messages", after=size))
        async with await place.dial() as client:
            await client.send(messages(key=run.key))
            with pytest.raises(anyio.BrokenResourceError):
                await everything(client)
        (told,) = await place.told(1)
        assert (told.input, told.status) == (1000, 200)
        assert "gave no answer" in told.refused
        assert told.cost is not None
        assert await place.spent(run) == pytest.approx(told.cost)


async def test_who_leaves_before_a_whole_answer_comes_pays_for_what_it_may_have_been(
    server: Web, tmp_path: Path
):
    async with models(tmp_path, route("a", server.url)) as place:
        run = await place.run(max_cost=1.0)
        trouble = server.fail(Trouble("/v1/messages", stall=True))
        async with await place.dial() as client:
            await client.send(messages(ASKED | {"max_tokens": 5000}, key=run.key))
            assert await anyio.to_thread.run_sync(trouble.met.wait, 10)
        (told,) = await place.told(1)
        server.heal()
        assert told.output == 5000
        assert told.input >= len(json.dumps(ASKED)) // 4
        assert await place.spent(run) == pytest.approx(told.cost)


@pytest.mark.parametrize("code", [429, 500, 503, 529])
async def test_an_overloaded_server_is_told_as_it_says_it_and_costs_nothing(
    server: Web, tmp_path: Path, code: int
):
    async with models(tmp_path, route("a", server.url)) as place:
        run = await place.run(max_cost=1.0)
        heads = {"Retry-After": "7", "x-should-retry": "true", **JSON}
        server.fail(Trouble("/v1/messages", code, heads, b'{"in": "my words"}'))
        answer = await place.ask(messages(key=run.key))
        assert (status(answer), body(answer)) == (code, b'{"in": "my words"}')
        assert "retry-after: 7" in head(answer)
        assert "x-should-retry: true" in head(answer)
        assert await place.spent(run) == 0
        assert place.events[0].refused == ""


async def test_a_server_that_gives_up_at_once_in_a_stream_costs_nothing(tmp_path: Path):
    said = events([{"type": "error", "error": {"type": "overloaded_error"}}])
    with web() as server:
        server.handlers.append(lambda exchange: reply(exchange, said))
        async with models(tmp_path, route("a", server.url)) as place:
            run = await place.run(max_cost=1.0)
            assert body(await place.ask(messages(key=run.key))) == said[0]
            assert await place.spent(run) == 0


async def test_an_answer_that_tells_no_tokens_is_estimated(tmp_path: Path):
    with web() as server:
        server.handlers.append(lambda exchange: reply(exchange, {"text": "y" * 2000}))
        async with models(tmp_path, route("a", server.url)) as place:
            said = ASKED | {"system": "x" * 4000}
            assert status(await place.ask(messages(said))) == 200
            (told,) = place.events
            assert told.input >= 1300
            assert told.output >= 1000


async def test_a_key_that_is_not_accepted_is_fetched_anew_once_and_then_told_in_words(
    server: Web, tmp_path: Path
):
    file = tmp_path / "key"
    file.write_text("an-old-key\n")

    def renew(_asked: Asked) -> bytes:
        file.write_text("a-new-key\n")
        return b""

    known = route("a", server.url, credential=Credential(file=str(file)))
    async with models(tmp_path, known) as place:
        server.fail(Trouble("/v1/messages", 401, body=renew))
        assert status(await place.ask(messages())) == 200
        keys = [asked.header("x-api-key") for asked in server.asked]
        assert keys == ["an-old-key", "a-new-key"]
        assert server.asked[0].target == server.asked[1].target
        server.fail(Trouble("/v1/messages", 401, times=2))
        refused = await place.ask(messages())
        assert status(refused) == 402
        assert "the credential of the route 'a' was not accepted" in error(refused)["message"]


async def test_a_key_that_is_not_there_is_told_so_that_clients_stop(
    server: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("SECRET")
    async with models(tmp_path, route("a", server.url)) as place:
        refused = await place.ask(messages())
        assert status(refused) == 402
        assert "the variable SECRET is not set" in error(refused)["message"]
        run = await place.run(max_cost=1.0)
        assert await place.spent(run) == 0


async def test_a_model_that_the_route_does_not_offer_is_refused_wherever_it_is_named(
    server: Web, tmp_path: Path
):
    async with models(tmp_path, route("a", server.url, models=("m1", "m2*"))) as place:
        assert status(await place.ask(messages())) == 200
        for said in (
            ASKED | {"model": "m3"},
            ASKED | {"tools": [{"type": "advisor", "model": "m3"}]},
            ASKED | {"fallbacks": [{"model": "m2"}, {"model": "m3"}]},
        ):
            refused = await place.ask(messages(said))
            assert status(refused) == 402
            assert "the route 'a' offers m1, m2* only, not 'm3'" in error(refused)["message"]
        assert len(server.asked) == 1


async def test_a_redirect_is_not_followed(server: Web, tmp_path: Path):
    with web() as other:
        async with models(tmp_path, route("a", server.url)) as place:
            server.fail(redirect("/v1/messages", f"{other.url}/v1/messages", 307))
            refused = await place.ask(messages())
            assert status(refused) == 402
            assert "its key is not sent there" in error(refused)["message"]
        assert other.asked == []


async def test_a_server_that_is_not_there_is_told_so_that_clients_try_again(tmp_path: Path):
    async with models(tmp_path, route("a", "http://127.0.0.1:1")) as place:
        run = await place.run(max_cost=1.0)
        refused = await place.ask(messages(key=run.key))
        assert status(refused) == 502
        assert error(refused)["code"] is None
        assert "the server of the route 'a' gave no answer" in error(refused)["message"]
        assert await place.spent(run) == 0


async def test_an_answer_that_is_packed_against_our_wish_is_not_passed_on_uncounted(
    server: Web, tmp_path: Path
):
    async with models(tmp_path, route("a", server.url)) as place:
        run = await place.run(max_cost=1.0)
        server.fail(Trouble("/v1/messages", 200, {"Content-Encoding": "gzip", **JSON}, b"xx"))
        assert status(await place.ask(messages(ASKED, key=run.key))) == 502
        assert await place.spent(run) > 0
        assert server.asked[0].header("Accept-Encoding") == "identity"


async def test_a_page_is_no_answer_of_a_model(server: Web, tmp_path: Path):
    async with models(tmp_path, route("a", server.url)) as place:
        server.fail(Trouble("/v1/messages", 200, {"Content-Type": "text/html"}, b"log in"))
        refused = await place.ask(messages())
        assert status(refused) == 502
        assert "of the type 'text/html', as no model does" in error(refused)["message"]


async def test_requests_in_chunks_are_read_as_those_of_a_known_length(server: Web, tmp_path: Path):
    async with models(tmp_path, route("a", server.url)) as place:
        data = json.dumps(ASKED).encode()
        head = get(
            "/a/v1/messages", "Transfer-Encoding: chunked", "Connection: close", method="POST"
        )
        chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
        async with anyio.create_task_group() as group:
            for _ in range(3):
                trouble = server.fail(Trouble("/v1/messages", stall=True))
                group.start_soon(place.ask, head + chunks)
                assert await anyio.to_thread.run_sync(trouble.met.wait, 10)
            server.heal()
        assert [json.loads(asked.said) for asked in server.asked] == [ASKED] * 3


async def test_nothing_is_asked_while_what_it_costs_can_t_be_written_down(
    server: Web, tmp_path: Path
):
    async with models(tmp_path, route("a", server.url)) as place:

        async def unusable(box: BoxId, key: str) -> tuple[Run | None, list[Run]]:
            del box, key
            raise StoreUnusable(tmp_path, "the disk is full")

        place.ledger.concerned = unusable
        refused = await place.ask(messages())
        assert status(refused) == 503
        assert server.asked == []


async def test_a_box_has_the_models_of_its_principal_and_its_programs_are_told_so(tmp_path: Path):
    known = (
        route("a", "https://a.example", principals=("local",)),
        route("b", "https://b.example", models=("m1",)),
        route("o", "https://o.example/v1", Dialect.OPENAI, principals=("other",)),
    )
    box = Box(BoxId("box-aaaaaaaa"), BoxSpec("image", 1, 1 << 30), created=1.0, principal=LOCAL)
    made = Models(known, PRICES, Ledger(tmp_path / "runs.db"), lambda _: None)
    assert made.way(box) == ("a", "b")
    assert made.way(replace(box, principal=Principal("third"))) == ("b",)
    claude_or_gpt = (Dialect.OPENAI, Dialect.ANTHROPIC)
    assert made.choose(box, claude_or_gpt, "m1") == known[0]
    assert made.choose(replace(box, principal=Principal("other")), claude_or_gpt, "m1") == known[2]
    assert made.choose(replace(box, principal=Principal("third")), claude_or_gpt, "m2") is None
    assert Models((), PRICES, Ledger(tmp_path / "runs.db"), lambda _: None).way(box) is None
    assert environment(known[:2]) == {
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:3130/a",
        "ANTHROPIC_API_KEY": "box-mcp",
    }
    assert environment(known)["OPENAI_BASE_URL"] == "http://127.0.0.1:3130/o"
