from __future__ import annotations

import base64
import gzip
import logging
import subprocess
import threading
import time
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest

from box_mcp.domain.names import Principal
from box_mcp.domain.routes import Access, Credential
from box_mcp.gateway.turns import Limits
from tests.support.egress import everything, listening, until
from tests.support.gitserver import ENVIRONMENT, TOKEN, USER, Content, serving_git
from tests.support.routes import AS_IN_A_BOX, get, route, routes
from tests.support.webserver import Asked, Exchange, Handler, Trouble, Web, redirect, web

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anyio.abc import SocketStream

    from tests.support.gitserver import Server

pytestmark = pytest.mark.anyio

FETCH = "/g/me/app.git/info/refs?service=git-upload-pack"
UPLOAD = "/g/me/app.git/git-upload-pack"
PUSH = "/g/me/app.git/git-receive-pack"
CLOSE = "Connection: close"
MIB = 1 << 20
OK = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-advertisement\r\n"
    b"Content-Length: 2\r\n\r\nok"
)


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", TOKEN)


def kind(target: str) -> str:
    """What type a git server's answer is of."""
    if "lfs" in target:
        return "application/vnd.git-lfs+json"
    if "service=" in target:
        return f"application/x-{target.partition('service=')[2]}-advertisement"
    return f"application/x-{target.rpartition('/')[2]}-result"


@pytest.fixture
def site() -> Iterator[Web]:
    """A server that says what was sent to it."""

    def answer(exchange: Exchange) -> bool:
        body = b"".join(exchange.body())
        exchange.answer(200, {"Content-Type": kind(exchange.asked.target)}, body)
        return True

    with web() as made:
        made.handlers.append(answer)
        yield made


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving_git(tmp_path_factory.mktemp("forge")) as server:
        server.add("me/app.git", Content(commits=20, big=3 * MIB))
        server.add("you/public.git", Content(commits=3), public=True)
        yield server


async def git(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["git", *AS_IN_A_BOX, *map(str, arguments)]
    return await anyio.to_thread.run_sync(
        lambda: subprocess.run(
            command, env=ENVIRONMENT, capture_output=True, text=True, timeout=30, check=False
        )
    )


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def head(answer: bytes) -> str:
    return answer.partition(b"\r\n\r\n")[0].decode().lower()


def body(answer: bytes) -> str:
    return answer.partition(b"\r\n\r\n")[2].decode()


def post(path: str, data: bytes, *headers: str) -> bytes:
    return get(path, f"Content-Length: {len(data)}", *headers, method="POST") + data


async def test_git_clones_and_pushes_with_a_credential_that_it_never_sees(
    forge: Server, tmp_path: Path
):
    async with routes(route("g", forge.url)) as place:
        clone = tmp_path / "clone"
        assert (await git("clone", f"{place.url}/g/me/app.git", clone)).returncode == 0
        assert len((clone / "big" / "0.bin").read_bytes()) == MIB
        pushed = await git("-C", clone, "push", "origin", "HEAD:refs/heads/new")
        assert pushed.returncode == 0, pushed.stderr
        assert forge.git("me/app.git", "rev-parse", "new")
        assert {asked.who for asked in forge.web.asked} == {USER}
        assert TOKEN not in repr(place.events)
        assert [(one.method, one.path, one.status) for one in place.events][:2] == [
            ("GET", "/me/app.git/info/refs", 200),
            ("POST", "/me/app.git/git-upload-pack", 200),
        ]
        assert sum(one.received for one in place.events) > 3 * MIB
    for file in (clone / ".git").rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes()


async def test_git_fetches_what_no_route_covers_from_the_server_itself(
    forge: Server, tmp_path: Path
):
    forge.web.forget()
    async with routes(route("g", forge.url, repositories=("me/*",))) as place:
        done = await git("clone", f"{place.url}/g/you/public.git", tmp_path / "clone")
        assert done.returncode == 0
        assert {asked.who for asked in forge.web.asked} == {""}
        assert [one.status for one in place.events] == [302]
        done = await git(
            "-C", tmp_path / "clone", "push", f"{place.url}/g/you/public.git", "HEAD:x"
        )
        assert "remote: box_mcp: the route 'g' leads to me/* only, not to you/public" in done.stderr
        assert place.events[-1].status == 403


async def test_git_shows_by_which_rule_a_push_is_refused(forge: Server, tmp_path: Path):
    async with routes(route("g", forge.url, access=Access.READ)) as place:
        done = await git("clone", f"{place.url}/g/me/app.git", tmp_path / "clone")
        assert done.returncode == 0
        done = await git("-C", tmp_path / "clone", "push", "origin", "HEAD:refs/heads/denied")
        assert "remote: box_mcp: the route 'g' is for reading only" in done.stderr
        assert place.events[-1].refused == "the route 'g' is for reading only"


async def test_git_follows_a_repository_that_was_renamed_and_is_judged_again(
    forge: Server, tmp_path: Path
):
    refs = "info/refs?service=git-upload-pack"
    async with routes(route("g", forge.url, repositories=("me/*",))) as place:
        forge.web.fail(redirect("/me/old.git/", f"{forge.url}/me/app.git/{refs}", 301))
        done = await git("clone", f"{place.url}/g/me/old.git", tmp_path / "one")
        assert done.returncode == 0, done.stderr
        assert f"redirecting to {place.url}/g/me/app.git" in done.stderr
        forge.web.forget()
        forge.web.fail(redirect("/me/old.git/", f"/you/public.git/{refs}", 301))
        done = await git("clone", f"{place.url}/g/me/old.git", tmp_path / "two")
        assert done.returncode == 0, done.stderr
        assert [asked.who for asked in forge.web.asked if "public" in asked.target] == ["", "", ""]


async def test_a_redirect_elsewhere_is_refused_and_nobody_there_is_asked(site: Web):
    with web() as other:
        async with routes(route("g", site.url)) as place:
            for where in (
                f"{other.url}/me/app.git/info/refs?service=git-upload-pack",
                f"{site.url}/users/sign_in?token=abc",
                FETCH.removeprefix("/g"),
                "https://[",
            ):
                site.fail(redirect("/info/refs", where))
                answer = await place.ask(get(FETCH))
                assert status(answer) == 502
                assert "location" not in head(answer)
                assert "credential of the route 'g' is not sent there" in body(answer)
                assert "abc" not in body(answer)
            site.fail(redirect("upload-pack", f"{site.url}/me/b.git/git-upload-pack", 307))
            assert status(await place.ask(post(UPLOAD, b"0000"))) == 502
        assert other.asked == []


async def test_an_upstream_hears_a_box_s_headers_by_a_list_only(site: Web):
    async with routes(route("g", site.url)) as place:
        headers = (
            *("Accept: a/b", "Accept-Encoding: gzip", "Accept-Language: de", "User-Agent: git/2"),
            *("Git-Protocol: version=2", "Content-Type: x/y", "Content-Encoding: gzip"),
            *("Cookie: a=b", "Authorization: Basic eDp5", "X-Forwarded-For: 1.2.3.4"),
            *("Proxy-Authorization: Basic eDp5", "Referer: http://x", "Forwarded: for=x"),
            *("X-HTTP-Method-Override: DELETE", "Connection: close, Authorization", "TE: trailers"),
            *("Upgrade: h2c", "Private-Token: x", "Sudo: root", "Via: x"),
        )
        assert status(await place.ask(post(UPLOAD, b"0000", *headers))) == 200
        (asked,) = site.asked
        assert (asked.method, asked.target) == ("POST", "/me/app.git/git-upload-pack")
        told = {name.lower(): value for name, value in asked.headers}
        assert len(told) == len(asked.headers)
        proof = base64.b64encode(f"{USER}:{TOKEN}".encode()).decode()
        assert told == {
            "accept": "a/b",
            "accept-encoding": "gzip",
            "accept-language": "de",
            "authorization": f"Basic {proof}",
            "content-encoding": "gzip",
            "content-length": "4",
            "content-type": "x/y",
            "git-protocol": "version=2",
            "host": f"127.0.0.1:{site.port}",
            "user-agent": "git/2",
        }


async def test_a_box_hears_an_upstream_s_headers_by_a_list_only(site: Web):
    async with routes(route("g", site.url)) as place:
        talk = {
            "Set-Cookie": "session=1",
            "WWW-Authenticate": "Basic",
            "Location": "http://elsewhere/",
            "LFS-Authenticate": "Basic",
            "Link": "</x>",
            "Alt-Svc": "h3",
            "Content-Type": kind(FETCH),
            "Cache-Control": "no-cache",
        }
        for code in (200, 403):
            site.fail(Trouble("/info/refs", code, talk, b"in my words\n"))
            answer = await place.ask(get(FETCH, CLOSE))
            assert (status(answer), body(answer)) == (code, "in my words\n")
            names = {line.partition(":")[0] for line in head(answer).splitlines()[1:]}
            allowed = {"cache-control", "content-length", "content-type", "connection"}
            assert {"content-type"} < names <= allowed
            assert place.events[-1].refused == ""


@pytest.mark.parametrize("code", [403, 404, 410, 429, 500, 503])
async def test_what_an_upstream_says_of_failures_reaches_the_box(site: Web, code: int):
    async with routes(route("g", site.url)) as place:
        site.fail(Trouble("/info/refs", code, {"Retry-After": "7"}, b"in my own words"))
        answer = await place.ask(get(FETCH, CLOSE))
        assert (status(answer), body(answer)) == (code, "in my own words")
        assert "retry-after: 7" in head(answer)


async def test_a_credential_that_is_not_accepted_is_told_in_words_and_no_password_asked_for(
    site: Web,
):
    async with routes(route("g", site.url)) as place:
        for code, request in ((401, get(FETCH)), (407, get(FETCH)), (401, post(UPLOAD, b"0000"))):
            site.fail(Trouble("/me/app.git/", code, {"WWW-Authenticate": "Basic"}, b"who?"))
            answer = await place.ask(request)
            assert status(answer) == 403
            assert "www-authenticate" not in head(answer)
            assert "the credential of the route 'g' was not accepted" in body(answer)
            assert TOKEN not in body(answer)


async def test_a_new_credential_is_fetched_when_the_old_one_is_not_accepted_any_more(
    site: Web, tmp_path: Path
):
    file = tmp_path / "token"
    file.write_text("old\n")
    credential = Credential(file=str(file))

    def renew(_asked: Asked) -> bytes:
        file.write_text("new\n")
        return b""

    async with routes(route("g", site.url, credential=credential)) as place:
        site.fail(Trouble("/info/refs", 401, body=renew))
        assert status(await place.ask(get(FETCH, CLOSE))) == 200
        sent = [base64.b64decode(asked.header("Authorization")[6:]) for asked in site.asked]
        assert [proof.partition(b":")[2] for proof in sent] == [b"old", b"new"]


async def test_a_missing_credential_is_told_with_what_to_do(
    site: Web, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("SECRET")
    async with routes(route("g", site.url)) as place:
        answer = await place.ask(get(FETCH))
        assert status(answer) == 502
        assert "the variable SECRET is not set where box_mcp runs" in body(answer)
        assert "Ask the user to mend it" in body(answer)
        assert site.asked == []


async def test_requests_of_one_connection_share_one_to_the_upstream(site: Web):
    async with routes(route("g", site.url)) as place, await place.dial() as client:
        for number in range(3):
            await client.send(post(UPLOAD, b"%04d" % number))
            await until(client, b"%04d" % number)
        await client.send(get(FETCH) + post(UPLOAD, b"last", CLOSE))
        answers = await everything(client)
        assert answers.count(b"HTTP/1.1 200") == 2
        assert answers.endswith(b"last")
        assert site.connections == 1
        assert [one.sent for one in await place.told(5)] == [4, 4, 4, 0, 4]


async def test_the_next_connection_goes_on_with_the_same_one_to_the_upstream(site: Web):
    async with routes(route("g", site.url)) as place:
        for _ in range(3):
            assert status(await place.ask(get(FETCH, CLOSE))) == 200
        assert site.connections == 1


async def test_one_that_nobody_goes_on_with_is_ended_some_time_later(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("box_mcp.gateway.upstream.KEPT", 0.3)
    ended = anyio.Event()

    async def patient(stream: SocketStream) -> None:
        await until(stream, b"\r\n\r\n")
        await stream.send(OK)
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        ended.set()

    async with listening(patient) as port, routes(route("g", f"http://127.0.0.1:{port}")) as place:
        assert status(await place.ask(get(FETCH, CLOSE))) == 200
        assert not ended.is_set()
        with anyio.fail_after(5):
            await ended.wait()


async def test_one_that_ended_in_the_middle_of_an_answer_is_not_gone_on_with(site: Web):
    site.handlers.insert(0, large(1000 * MIB, {}))
    async with routes(route("g", site.url)) as place:
        async with await place.dial() as client:
            await client.send(post(UPLOAD, b"0000"))
            await client.receive()
        await place.told(1)
        site.handlers.pop(0)
        assert status(await place.ask(get(FETCH, CLOSE))) == 200
        assert site.connections == 2


async def test_bodies_pass_as_they_are_whatever_their_coding(site: Web):
    packed = gzip.compress(b"0032want")
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(data), data) for data in (packed[:9], packed[9:]))
    async with routes(route("g", site.url)) as place:
        for request in (
            get(UPLOAD, CLOSE, "Transfer-Encoding: chunked", method="POST")
            + chunked
            + b"0\r\n\r\n",
            post(UPLOAD, packed, CLOSE, "Content-Encoding: gzip"),
            post(UPLOAD, packed).replace(b"HTTP/1.1", b"HTTP/1.0"),
        ):
            answer = await place.ask(request)
            assert status(answer) == 200
            assert answer.endswith(packed)


async def test_a_body_is_asked_for_once_the_request_is_allowed(site: Web):
    expect = ("Expect: 100-continue", "Content-Length: 4", CLOSE)
    async with routes(route("g", site.url, access=Access.READ)) as place:
        async with await place.dial() as client:
            await client.send(get(UPLOAD, *expect, method="POST"))
            assert await until(client, b"\r\n\r\n") == b"HTTP/1.1 100 \r\n\r\n"
            await client.send(b"0000")
            assert (await everything(client)).endswith(b"0000")
        answer = await place.ask(get(PUSH, *expect, method="POST"))
        assert status(answer) == 403


async def test_an_unknown_route_and_one_of_somebody_else_are_the_same(site: Web):
    private = route("private", site.url, principals=("other",))
    async with routes(route("g", site.url), private) as place:
        for name in ("private", "unknown"):
            answer = await place.ask(get(FETCH.replace("/g/", f"/{name}/")))
            assert status(answer) == 404
            assert body(answer) == f"box_mcp: this box has no route '{name}': it has g\n"
        place.box = replace(place.box, principal=Principal("other"))
        assert status(await place.ask(get(FETCH.replace("/g/", "/private/"), CLOSE))) == 200


async def test_a_box_that_is_nobody_s_has_no_routes(site: Web):
    async with routes(route("g", site.url)) as place:
        place.box = replace(place.box, principal=None)
        answer = await place.ask(get(FETCH))
        assert (status(answer), site.asked) == (404, [])
        assert "it has none" in body(answer)
        assert place.events[-1].principal == ""


async def test_a_box_whose_routes_become_fewer_is_judged_anew_on_an_open_connection(site: Web):
    async with routes(route("g", site.url)) as place, await place.dial() as client:
        await client.send(post(UPLOAD, b"0000"))
        await until(client, b"0000")
        place.box = replace(place.box, spec=replace(place.box.spec, routes=("other",)))
        await client.send(post(UPLOAD, b"0000"))
        assert status(await everything(client)) == 404
        assert len(site.asked) == 1


async def test_an_upstream_that_is_not_there_is_told_of(site: Web):
    async with routes(route("g", "http://127.0.0.1:9")) as place:
        answer = await place.ask(get(FETCH))
        assert status(answer) == 502
        assert "no connection to it came about" in body(answer)


async def test_only_the_first_question_is_repeated_when_the_upstream_breaks_off():
    heads: list[bytes] = []

    async def moody(stream: SocketStream) -> None:
        heads.append(await until(stream, b"\r\n\r\n"))
        if len(heads) > 1:
            await stream.send(OK)

    async with listening(moody) as port, routes(route("g", f"http://127.0.0.1:{port}")) as place:
        assert status(await place.ask(get(FETCH, CLOSE))) == 200
        assert len(heads) == 2
        heads.clear()
        answer = await place.ask(post(UPLOAD, b"", CLOSE))
        assert status(answer) == 502
        assert "it broke off" in body(answer)
        assert len(heads) == 1


@pytest.mark.parametrize("length", [{"Content-Length": str(MIB)}, {}])
async def test_half_an_answer_ends_as_one(site: Web, length: dict[str, str]):
    site.handlers.insert(0, large(MIB, length))
    site.fail(Trouble("upload-pack", after=500_000))
    async with routes(route("g", site.url)) as place, await place.dial() as client:
        await client.send(post(UPLOAD, b"0000"))
        with pytest.raises(anyio.BrokenResourceError):
            await everything(client)
        (used,) = await place.told(1)
        assert used.refused.startswith("the server of the route 'g' gave no answer")


async def test_a_box_that_leaves_ends_what_the_upstream_does_for_it(site: Web):
    ended = threading.Event()
    site.handlers.insert(0, large(1000 * MIB, {}, ended))
    async with routes(route("g", site.url)) as place:
        async with await place.dial() as client:
            await client.send(post(UPLOAD, b"0000"))
            await client.receive()
        (used,) = await place.told(1)
        assert used.refused == "the box left before the end"
        assert await anyio.to_thread.run_sync(ended.wait, 10)
        assert site.asked[0].sent < 100 * MIB


async def test_so_does_one_that_leaves_before_there_is_an_answer():
    begun, ended = anyio.Event(), anyio.Event()

    async def silent(stream: SocketStream) -> None:
        await until(stream, b"\r\n\r\n")
        begun.set()
        await everything(stream)
        ended.set()

    async with listening(silent) as port, routes(route("g", f"http://127.0.0.1:{port}")) as place:
        async with await place.dial() as client:
            await client.send(get(FETCH))
            await begun.wait()
        with anyio.fail_after(10):
            await ended.wait()
        assert (await place.told(1))[0].status == 0


@pytest.mark.parametrize("sent", ["Content-Length: 8", "Transfer-Encoding: chunked"])
async def test_so_does_one_that_leaves_in_the_middle_of_what_it_sends(sent: str):
    heard = b""
    begun, ended = anyio.Event(), anyio.Event()

    async def listen(stream: SocketStream) -> None:
        nonlocal heard
        async for data in stream:
            heard += data
            if b"half" in heard:
                begun.set()
        ended.set()

    async with listening(listen) as port, routes(route("g", f"http://127.0.0.1:{port}")) as place:
        async with await place.dial() as client:
            half = b"half" if "Length" in sent else b"8\r\nhalf"
            await client.send(get(PUSH, sent, method="POST") + half)
            await begun.wait()
        with anyio.fail_after(10):
            await ended.wait()
    assert heard.rpartition(b"half")[2] in (b"", b"\r\n")


@pytest.mark.parametrize(("path", "sent", "got"), [(UPLOAD, 4, 64 * MIB), (PUSH, 64 * MIB, 0)])
async def test_however_much_passes_little_is_held(site: Web, path: str, sent: int, got: int):
    site.handlers.insert(0, large(got, {}))
    async with routes(route("g", site.url)) as place, await place.dial() as client:
        await client.send(post("/g/me/app.git/info/lfs/locks/verify", b"{}"))  # imports
        await until(client, b"{}")
        tracemalloc.start()
        try:
            await client.send(get(path, CLOSE, f"Content-Length: {sent}", method="POST"))
            async with anyio.create_task_group() as group:
                group.start_soon(send, client, sent)
                async for _ in client:
                    pass
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert (place.events[-1].sent, place.events[-1].received) == (sent, got)
        assert peak < 4 * MIB


async def test_an_upstream_waits_for_a_box_that_does_not_read(site: Web):
    site.handlers.insert(0, large(1000 * MIB, {}))
    async with routes(route("g", site.url)) as place, await place.dial() as client:
        await client.send(post(UPLOAD, b"0000"))
        await client.receive(1)
        # It has waited for a while: nothing else tells that no more comes.
        before, now = -1, 0
        while not before == now > 0:
            before, now = now, await anyio.to_thread.run_sync(later, site.asked[0])
        assert now < 50 * MIB


async def test_a_box_that_is_slow_to_ask_is_not_waited_for(site: Web):
    async with routes(route("g", site.url), limits=Limits(head=0.1)) as place:
        async with await place.dial() as client:
            assert await everything(client) == b""
        async with await place.dial() as client:
            await client.send(b"GET /g/")
            assert await everything(client) == b""
    assert place.events == []


async def test_a_box_that_is_silent_within_a_body_is_not_waited_for(site: Web):
    limits = Limits(cut=0.1)
    async with routes(route("g", site.url), limits=limits) as place, await place.dial() as client:
        await client.send(get(PUSH, "Content-Length: 8", method="POST") + b"0000")
        with anyio.fail_after(10), pytest.raises(anyio.BrokenResourceError):
            await everything(client)


async def test_an_upstream_that_is_silent_is_told_of(site: Web):
    site.handlers.insert(0, large(MIB, {}))
    limits = Limits(idle=0.2)

    async def listen(stream: SocketStream) -> None:
        await everything(stream)

    async with listening(listen) as port:
        mute = route("mute", f"http://127.0.0.1:{port}")
        async with routes(route("g", site.url), mute, limits=limits) as place:
            # Nothing was passed on yet, so there is room for words.
            head = site.fail(Trouble("upload-pack", after=0, stall=True))
            for request in (get(FETCH.replace("/g/", "/mute/")), post(UPLOAD, b"0000")):
                answer = await place.ask(request)
                assert status(answer) == 504
                assert "it was silent for too long" in body(answer)
            head.released.set()
            site.fail(Trouble("upload-pack", after=MIB // 2, stall=True))
            async with await place.dial() as client:
                await client.send(post(UPLOAD, b"0000"))
                with pytest.raises(anyio.BrokenResourceError):
                    await everything(client)
    site.heal()


@pytest.mark.parametrize("limits", [Limits(of_box=1, turn=0.3), Limits(in_all=1, turn=0.3)])
async def test_of_many_requests_some_wait_and_none_for_ever(site: Web, limits: Limits):
    stalled = site.fail(Trouble("upload-pack", after=0, stall=True))
    async with routes(route("g", site.url), limits=limits) as place:
        async with await place.dial() as first:
            await first.send(post(UPLOAD, b"0000"))
            await anyio.to_thread.run_sync(stalled.met.wait, 10)
            answer = await place.ask(get(FETCH))
            assert status(answer) == 503
            assert "too many requests are under way" in body(answer)
        assert status(await place.ask(get(FETCH, CLOSE))) == 200
    site.heal()


async def test_neither_logs_nor_events_have_the_secret(site: Web, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    async with routes(route("g", site.url)) as place:
        assert status(await place.ask(get(FETCH, CLOSE))) == 200
        site.fail(Trouble("info/refs", 401))
        assert status(await place.ask(get(FETCH, CLOSE))) == 403
        assert TOKEN not in repr(place.events)
    for record in caplog.records:
        assert TOKEN not in record.getMessage()
        assert "Basic" not in record.getMessage()


def later(asked: Asked) -> int:
    """How much is sent a moment later."""
    time.sleep(0.2)
    return asked.sent


async def send(client: SocketStream, size: int) -> None:
    while size:
        piece = bytes(min(size, 1 << 16))
        await client.send(piece)
        size -= len(piece)


def large(size: int, headers: dict[str, str], ended: threading.Event | None = None) -> Handler:
    """Answers with so many bytes."""

    def pieces() -> Iterator[bytes]:
        for _ in range(size >> 16):
            yield bytes(1 << 16)

    def answer(exchange: Exchange) -> bool:
        if "lfs" in exchange.asked.target:
            return False
        for _ in exchange.body():
            pass
        try:
            how = {"Content-Type": kind(exchange.asked.target), **headers}
            exchange.answer(200, how, pieces())
        finally:
            if ended is not None:
                ended.set()
        return True

    return answer
