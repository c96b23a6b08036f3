"""From anybody who can connect to the server over HTTP, and from who has a token, byte by byte.

Ten thousand malformed requests; ``BOX_MCP_FUZZ=2 pytest tests/attacks/test_http.py`` makes twice as
many, from other seeds, and so on.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import pytest
from anyio import to_thread
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from box_mcp.observe.bounding import BURST
from tests.support.http import serving_http
from tests.support.httpheads import noisy_heads, spoilt_heads
from tests.support.httpmessages import (
    BODIES,
    NO_BOX,
    VALUES,
    harmless,
    harmless_messages,
    places,
    spoilt,
    written,
)
from tests.support.rawhttp import (
    LEGACY,
    MODERN,
    PATIENCE,
    Answer,
    Caller,
    CutOff,
    RawLine,
    raw_line,
    request,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    import psutil

    from tests.support.client import Server
    from tests.support.http import HttpServer

TIMES = int(os.environ.get("BOX_MCP_FUZZ", "1"))
HEADS, NOISY, MESSAGES = (TIMES * count for count in (2500, 6500, 1000))
SEED = TIMES
AT_ONCE = 6
BATCH = 50
GLIMPSE = 0.02
"""Seconds after which a request that got no answer is ended, as if no more of it came."""

LEAK = re.compile(
    rb'Traceback|File \\?"|line \d+, in |site-packages|/usr/|/root/|\.sqlite|tokens\.db|'
    rb"pydantic|starlette|uvicorn|anyio|asyncio|box_mcp\.[a-z]|mcp\.server|object at 0x|"
    rb"<class |[A-Z][a-z]+(Error|Exception)\b|failed unexpectedly|-32603|Internal"
)
"""What is in no answer: the inside of a program, a place on the server's machine."""

CANNOT = (501, 505)
"""Statuses from 500 on which say that the request asks for what no server need do."""

LOOK = (
    "pgrep -fa sleep; cat kept; "
    "find / -xdev -path /var/log/box_mcp -prune -o -newer kept ! -type d -print 2>/dev/null | sort"
)
ALARMS = ("Traceback", "ERROR", "CRITICAL", "failed unexpectedly")
OWN_FILES = 8
"""How many descriptors the server may have come to have for itself."""

GREW = 96 * 1024**2
"""Bytes that the server may have grown by in the end."""


@dataclass
class Stage:
    """A server, somebody who uses it well, and somebody who does not."""

    server: HttpServer
    good: Server
    caller: Caller
    tools: dict[str, Any]
    before: dict[str, str]
    memory: int
    descriptors: int

    @property
    def port(self) -> int:
        return self.caller.port

    @property
    def process(self) -> psutil.Popen:
        return self.server.process

    def judge(self, sent: bytes, answer: Answer) -> None:
        """An answer is well if it says nothing of the server's inside, nor fails in it."""
        told = f"{answer.raw[:2000]!r}\nfor {sent[:2000]!r}"
        assert answer.status < 500 or answer.status in CANNOT, told
        assert self.caller.token.encode() not in answer.raw, told
        assert LEAK.search(answer.raw) is None, f"{LEAK.search(answer.raw)} in {told}"

    def ask(self, sent: bytes) -> int:
        """The status of what comes back on a connection of its own; 0 when it is only closed."""
        with raw_line(self.port) as line:
            line.send(sent)
            try:
                answer = line.answer(GLIMPSE)
            except TimeoutError:
                line.end()
                try:
                    answer = line.answer()
                except CutOff:  # it is no server's to go on for who has left
                    answer = None
            if answer is None:
                return 0
            self.judge(sent, answer)
            return answer.status

    def ask_all(self, many: Iterable[bytes]) -> Counter[int]:
        """How often each status came."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return Counter(pool.map(self.ask, many))

    def open_session(self, token: str = "") -> Caller:
        """Who sends in a new session of the older era."""
        caller = Caller(self.port, token or self.caller.token)
        client = {"name": "fuzz", "version": "1"}
        about = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": client}
        message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": about}
        with raw_line(self.port) as line:
            line.send(caller.post(json.dumps(message).encode(), message, LEGACY))
            answer = line.answer()
        assert answer is not None
        assert answer.status == 200, answer
        return replace(caller, session=answer.headers["mcp-session-id"])

    def is_answered(self) -> None:
        """A call that is well is answered, whatever went on before."""
        body = json.dumps(harmless()).encode()
        with raw_line(self.port) as line:
            line.send(self.caller.post(body, harmless()))
            answer = line.answer()
        assert answer is not None
        assert answer.status == 200
        assert f"no box '{NO_BOX}'".encode() in answer.body

    async def is_well(self) -> None:
        """Nothing was done, and nothing is left of it all."""
        await to_thread.run_sync(self.is_answered)
        assert await facts(self.good) == self.before
        deadline = monotonic() + PATIENCE
        while self.process.num_fds() > self.descriptors + OWN_FILES and monotonic() < deadline:
            sleep(GLIMPSE)  # noqa: ASYNC251 - there is nothing else to do
        assert self.process.num_fds() <= self.descriptors + OWN_FILES
        assert self.process.memory_info().rss < self.memory + GREW
        logged = self.server.log.read_text(errors="replace")
        assert [line for line in logged.splitlines() if any(one in line for one in ALARMS)] == []


async def facts(good: Server) -> dict[str, str]:
    """All that there is of somebody's: boxes, what is in them, what runs in them."""
    return {
        "boxes": str([box["id"] for box in (await good.tell("box_list"))["boxes"]]),
        "inside": (await good.run(LOOK)).partition("\n")[2],
        "snapshots": str(await good.tell("snapshot_list")),
    }


@pytest.fixture(scope="module")
async def stage(shared_env: dict[str, str]) -> AsyncGenerator[Stage, None]:
    off = {"http__requests_per_minute": "off", "http__refusals_per_minute": "off"}
    async with serving_http(shared_env, **off) as server, server.caller("good") as good:
        await good.run("echo kept > kept")
        await good.run("sleep 3600", background=True)
        before = await facts(good)
        listed = (await good.client.list_tools()).tools
        tools = {tool.name: tool.input_schema for tool in listed}
        port = int(server.base.rpartition(":")[2])
        caller = Caller(port, await server.token("bad"))
        memory, descriptors = server.process.memory_info().rss, server.process.num_fds()
        yield Stage(server, good, caller, tools, before, memory, descriptors)
        async with server.caller("bad") as bad:
            assert (await bad.tell("box_list"))["boxes"] == []
            assert (await bad.tell("snapshot_list"))["snapshots"] == []


async def test_heads_and_framings_of_any_kind_are_answered_or_refused(stage: Stage):
    many = itertools.islice(spoilt_heads(stage.caller, SEED), HEADS)
    came = await to_thread.run_sync(stage.ask_all, many)
    assert came.total() == HEADS
    assert came.keys() >= {0, 200, 400, 401, 404, 405, 421}
    await stage.is_well()


async def test_heads_with_wrong_bytes_are_answered_or_refused(stage: Stage):
    many = itertools.islice(noisy_heads(stage.caller, SEED), NOISY)
    came = await to_thread.run_sync(stage.ask_all, many)
    assert came.total() == NOISY
    await stage.is_well()


class Lines:
    """A connection and a session of its own for each of some threads."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._free = [(RawLine(stage.port), stage.open_session()) for _ in range(AT_ONCE)]

    def post(self, message: Any, body: bytes, era: str) -> int:
        """The status of the answer to a message, which must come."""
        line, caller = self._free.pop()
        sent = caller.post(body, message, era)
        endless = era == MODERN and b"subscriptions/listen" in body
        try:
            line.send(sent)
            answer = line.answer(whole=not endless)
            assert answer is not None, sent
            self._stage.judge(sent, answer)
        except BaseException:
            line.close()
            line = RawLine(self._stage.port)
            raise
        else:
            if endless or answer.closes:
                line.close()
                line = RawLine(self._stage.port)
            return answer.status
        finally:
            self._free.append((line, caller))

    def close(self) -> None:
        for line, _ in self._free:
            line.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


async def test_messages_with_anything_in_any_place_are_answered_or_refused(stage: Stage):
    every = [(one, at) for one in harmless_messages(stage.tools) for at in places(one)]
    odd = st.sampled_from(VALUES) | JSON
    cases = st.tuples(st.sampled_from(every), odd, st.sampled_from((MODERN, LEGACY)))
    lines, came = Lines(stage), Counter[int]()

    def post(case: tuple[tuple[Any, Any], Any, str]) -> int:
        (message, at), value, era = case
        bad = spoilt(message, at, value)
        return lines.post(bad, written(bad), era)

    @seed(SEED)
    @settings(
        max_examples=MESSAGES // BATCH,
        phases=[Phase.generate],
        database=None,
        suppress_health_check=[HealthCheck.data_too_large, HealthCheck.large_base_example],
    )
    @given(st.lists(cases, min_size=BATCH, max_size=BATCH))
    def try_them(batch: list[Any]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            came.update(pool.map(post, batch))
        stage.is_answered()

    await to_thread.run_sync(try_them)
    lines.close()
    assert came.total() >= MESSAGES
    assert came.keys() >= {200, 202, 400, 404}
    await stage.is_well()


@pytest.mark.parametrize("era", [MODERN, LEGACY])
async def test_bodies_that_are_no_message_are_refused(stage: Stage, era: str):
    caller = await to_thread.run_sync(stage.open_session)
    came = stage.ask_all(caller.post(body, harmless(), era) for body in BODIES)
    assert came.keys() <= {202, 400, 413}  # responses to nothing are taken, as the protocol has it
    await stage.is_well()


async def test_notifications_that_are_none_do_not_fill_the_log(stage: Stage):
    bad = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"reason": 1}}
    before, lines = stage.server.log.stat().st_size, Lines(stage)
    for _ in range(int(BURST) * 2):
        assert lines.post(bad, written(bad), LEGACY) == 202
    lines.close()
    await stage.is_well()
    logged = stage.server.log.read_bytes()[before:]
    assert 0 < logged.count(b"notifications/cancelled") <= BURST + 10


HIDDEN = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""A request that a proxy took for a part of the one before it."""

LENGTH = b"%d" % len(HIDDEN)
CHUNKED = b"0\r\n\r\n" + HIDDEN


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        ([(b"Content-Length", b"%d" % len(CHUNKED)), (b"Transfer-Encoding", b"chunked")], CHUNKED),
        ([(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"%d" % len(CHUNKED))], CHUNKED),
        ([(b"Content-Length", LENGTH), (b"Transfer-Encoding", b"xchunked")], HIDDEN),
        ([(b"Content-Length", LENGTH), (b"Transfer-Encoding", b"chunked, identity")], CHUNKED),
        ([(b"Content-Length", LENGTH), (b"Transfer-Encoding ", b"chunked")], CHUNKED),
        ([(b"Content-Length", LENGTH), (b"X", b"x\nTransfer-Encoding: chunked")], CHUNKED),
        ([(b"Content-Length", b"0"), (b"Content-Length", LENGTH)], HIDDEN),
        ([(b"Content-Length", LENGTH), (b"Content-Length", b"0")], HIDDEN),
        ([(b"Content-Length", b"0, " + LENGTH)], HIDDEN),
        ([(b"Content-Length", b"+0")], HIDDEN),
        ([(b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"identity")], CHUNKED),
        ([(b"Transfer-Encoding", b"identity")], CHUNKED),
        ([(b"Transfer-Encoding", b"\x0bchunked")], CHUNKED),
    ],
)
@pytest.mark.parametrize("path", [b"/mcp", b"/healthz", b"/nowhere"])
def test_no_request_hides_in_another(
    stage: Stage, path: bytes, framing: list[tuple[bytes, bytes]], body: bytes
):
    head = [*stage.caller.head(harmless()), *framing]
    with raw_line(stage.port) as line:
        line.send(request(head, body, target=path))
        first = line.answer()
        assert first is not None
        stage.judge(body, first)
        assert first.status in (400, 405, 404, 501)
        assert line.answer() is None


def test_requests_sent_in_one_go_are_answered_in_their_order(stage: Stage):
    numbers = range(20)
    sent = b"".join(
        stage.caller.post(json.dumps(harmless(number)).encode(), harmless(number))
        for number in numbers
    )
    with raw_line(stage.port) as line:
        line.send(sent)
        answers = [line.answer() for _ in numbers]
    assert [json.loads(one.body)["id"] for one in answers if one] == list(numbers)


async def test_connections_that_are_cut_anywhere_leave_nothing(stage: Stage):
    caller = await to_thread.run_sync(stage.open_session)
    dice = random.Random(SEED)
    for number in range(100 * TIMES):
        era = (MODERN, LEGACY)[number % 2]
        whole = caller.post(json.dumps(harmless()).encode(), harmless(), era)
        line = RawLine(stage.port)
        line.send(whole[: dice.randint(0, len(whole))])
        (line.cut if dice.random() < 0.5 else line.close)()
    await stage.is_well()


async def test_many_connections_that_say_nothing_or_never_end_hold_nobody_up(stage: Stage):
    whole = stage.caller.post(json.dumps(harmless()).encode(), harmless())
    with ExitStack() as stack:
        for number in range(400):
            line = stack.enter_context(raw_line(stage.port))
            line.send((b"", whole[:1], whole[:300], whole[:-1])[number % 4])
        began = monotonic()
        for _ in range(20):
            stage.is_answered()
        assert (await stage.good.run("cat kept")).endswith("kept\n")
        assert monotonic() - began < PATIENCE
    await stage.is_well()


def own_session(stage: Stage, token: str, session: str, method: bytes) -> Answer:
    caller = Caller(stage.port, token, session)
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    body = json.dumps(ping).encode() if method == b"POST" else b""
    head = [*caller.head(ping, LEGACY), (b"Content-Length", b"%d" % len(body))]
    with raw_line(stage.port) as line:
        line.send(request(head, body, method=method))
        answer = line.answer(whole=method != b"GET")
    assert answer is not None
    return answer


@pytest.mark.parametrize("method", [b"POST", b"GET", b"DELETE"])
async def test_sessions_of_others_are_as_sessions_that_there_are_not(stage: Stage, method: bytes):
    session = (await to_thread.run_sync(stage.open_session)).session
    other = await stage.server.token("other")
    answer = own_session(stage, other, session, method)
    unknown = own_session(stage, other, "0" * 32, method)
    assert (answer.status, answer.body) == (unknown.status, unknown.body)
    assert answer.status == 404
    assert {**answer.headers, "date": ""} == {**unknown.headers, "date": ""}
    assert own_session(stage, stage.caller.token, session, b"POST").status == 200


async def test_sessions_that_end_under_their_requests_answer_them_well(stage: Stage):
    def ask(caller: Caller, number: int) -> Iterable[bytes]:
        body = json.dumps(harmless(number)).encode()
        yield from [caller.post(body, harmless(number), LEGACY)] * AT_ONCE
        yield request(caller.head(None, LEGACY), method=b"DELETE")
        yield from [caller.post(body, harmless(number), LEGACY)] * AT_ONCE

    for number in range(5 * TIMES):
        caller = await to_thread.run_sync(stage.open_session)
        came = await to_thread.run_sync(stage.ask_all, ask(caller, number))
        assert came.keys() <= {0, 200, 404}
    await stage.is_well()


async def test_sessions_opened_without_end_take_no_room_from_others(stage: Stage):
    other = await stage.server.token("other")
    session = (await to_thread.run_sync(stage.open_session, other)).session
    for _ in range(110):
        await to_thread.run_sync(stage.open_session)
    assert own_session(stage, other, session, b"POST").status == 200
    await stage.is_well()
