from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anyio
import pytest

from box_mcp.gateway.relay import relay
from tests.support.egress import everything, listening, until
from tests.support.http2 import http2
from tests.support.routes import get, route, routes
from tests.support.webserver import Exchange, Web, web

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anyio.abc import SocketStream

pytestmark = pytest.mark.anyio

REFS = "application/x-git-upload-pack-advertisement"
RESULT = [("content-type", "application/x-git-upload-pack-result"), ("set-cookie", "a=b")]
FETCH = "/g/me/app.git/info/refs?service=git-upload-pack"
UPLOAD = "/g/me/app.git/git-upload-pack"
CLOSE = "Connection: close"
TOKEN = "open-sesame-1234"
MIB = 1 << 20


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", TOKEN)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def post(path: str, data: bytes, *headers: str) -> bytes:
    return get(path, f"Content-Length: {len(data)}", *headers, method="POST") + data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """A server with a certificate that only its own authority speaks for."""

    def answer(exchange: Exchange) -> bool:
        exchange.answer(200, {"Content-Type": REFS}, b"refs")
        return True

    with web(tls=tmp_path_factory.mktemp("tls"), names=["localhost"]) as made:
        made.handlers.append(answer)
        yield made


async def test_an_authority_of_the_settings_is_believed(site: Web):
    async with routes(route("g", site.url), authorities=site.certificate) as place:
        answer = await place.ask(get(FETCH, CLOSE))
        assert (status(answer), answer.endswith(b"refs")) == (200, True)


async def test_an_unknown_one_is_not_and_never_hears_the_secret(site: Web):
    site.forget()
    async with routes(route("g", site.url)) as place:
        answer = await place.ask(get(FETCH))
        assert status(answer) == 502
        assert b"its certificate is not believed" in answer
    assert site.asked == []


async def test_a_certificate_of_somebody_else_is_not_believed(site: Web):
    site.forget()

    async def lead_on(stream: SocketStream) -> None:
        async with await anyio.connect_tcp("127.0.0.1", site.port) as there:
            await relay(stream, there, 5)

    async with listening(lead_on, "127.0.0.2") as port:
        url = f"https://127.0.0.2:{port}"
        async with routes(route("g", url), authorities=site.certificate) as place:
            answer = await place.ask(get(FETCH))
            assert status(answer) == 502
            assert b"its certificate is not believed" in answer
    assert site.asked == []


async def test_authorities_that_can_not_be_read_are_told_of(site: Web, tmp_path: Path):
    for text in (None, "no certificate"):
        file = tmp_path / "ca.pem"
        if text is not None:
            file.write_text(text)
        async with routes(route("g", site.url), authorities=file) as place:
            answer = await place.ask(get(FETCH))
            assert status(answer) == 502
            assert b"the authorities that box_mcp's settings name can't be read" in answer


async def test_a_server_that_speaks_no_tls_is_told_of():
    async def plain(stream: SocketStream) -> None:
        await stream.receive()
        await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with listening(plain) as port, routes(route("g", f"https://127.0.0.1:{port}")) as place:
        answer = await place.ask(get(FETCH))
        assert status(answer) == 502
        assert b"TLS failed" in answer


@pytest.mark.parametrize(
    "nonsense",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: gzip\r\n\r\nok",
        b"HTTP/1.1 999999 OK\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 18) + b"\r\n\r\n",
        bytes(1 << 18),
        b"",
    ],
)
async def test_a_server_that_speaks_nonsense_is_told_of(nonsense: bytes):
    async def talk(stream: SocketStream) -> None:
        await until(stream, b"\r\n\r\n")
        await stream.send(nonsense or b"\0")

    async with listening(talk) as port, routes(route("g", f"http://127.0.0.1:{port}")) as place:
        answer = await place.ask(get(FETCH))
        assert status(answer) == 502
        assert TOKEN.encode() not in answer


def said(head: str, body: bytes = b"") -> bytes:
    return f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize("code", [499, 522, 999])
async def test_a_failure_that_no_standard_knows_is_told(code: int):
    async def odd(stream: SocketStream) -> None:
        await until(stream, b"\r\n\r\n")
        await stream.send(said(f"{code} Odd\r\nContent-Encoding: gzip", b"odd"))

    async with listening(odd) as port, routes(route("g", f"http://127.0.0.1:{port}")) as place:
        assert status(await place.ask(get(FETCH))) == code


BATCH = json.dumps({"operation": "download", "objects": [{"oid": "0" * 64, "size": 1}]}).encode()
ECHO = {"code": 404, "message": f"whoever says {TOKEN}"}
FOUND = json.dumps({"objects": [{"oid": "0" * 64, "size": 1, "error": ECHO}]}).encode()
LFS = "Content-Type: application/vnd.git-lfs+json"
ECHOES = {
    "kind": (get(FETCH), said(f"200 OK\r\nContent-Type: text/{TOKEN}")),
    "redirect": (
        get(FETCH),
        said(f"302 Found\r\nLocation: /{TOKEN}/info/refs?service=git-upload-pack"),
    ),
    "host of a redirect": (get(FETCH), said(f"302 Found\r\nLocation: http://{TOKEN}.example/")),
    "object": (
        post("/g/me/app.git/info/lfs/objects/batch", BATCH, LFS, CLOSE),
        said(f"200 OK\r\n{LFS}", FOUND),
    ),
    "objects": (
        post("/g/me/app.git/info/lfs/objects/batch", BATCH, LFS, CLOSE),
        said(f"422 No\r\n{LFS}", json.dumps(ECHO).encode()),
    ),
}


@pytest.mark.parametrize("echo", ECHOES)
async def test_no_part_of_an_answer_repeats_the_secret(echo: str):
    asked, answered = ECHOES[echo]

    async def repeat(stream: SocketStream) -> None:
        await until(stream, b'sha256"}' if b"POST" in asked else b"\r\n\r\n")
        await stream.send(answered)

    async with listening(repeat) as port, routes(route("g", f"http://127.0.0.1:{port}")) as place:
        answer = await place.ask(asked)
        assert TOKEN.encode() not in answer
        assert b"it repeats the secret that it was asked with" in answer
        (used,) = await place.told(1)
        assert TOKEN not in repr(used)


async def test_http_2_serves_as_http_1_does(tmp_path: Path):
    async with http2(tmp_path) as site:
        site.answer = RESULT
        async with (
            routes(route("g", site.url), authorities=site.authority) as place,
            await place.dial() as client,
        ):
            for _ in range(3):
                await client.send(post(UPLOAD, b"0032want"))
                answer = await until(client, b"0\r\n\r\n")
                assert status(answer) == 200
                assert b"0032want" in answer
                assert b"set-cookie" not in answer.lower()
            chunked = get(UPLOAD, CLOSE, "Transfer-Encoding: chunked", method="POST")
            await client.send(chunked + b"4\r\n0000\r\n0\r\n\r\n")
            assert b"0000" in await everything(client)
        assert site.connections == 1
        asked = site.asked[0]
        assert (asked[":method"], asked[":path"]) == ("POST", "/me/app.git/git-upload-pack")
        assert asked["authorization"].startswith("Basic ")
        assert not {"host", "connection", "transfer-encoding"} & {*asked}


@pytest.mark.parametrize(("sent", "got"), [(0, 48 * MIB), (48 * MIB, 0)])
async def test_much_over_http_2_is_neither_held_nor_lost(tmp_path: Path, sent: int, got: int):
    async with http2(tmp_path) as site:
        site.answer, site.size = RESULT, got
        async with (
            routes(route("g", site.url), authorities=site.authority) as place,
            await place.dial() as client,
        ):
            await client.send(get(UPLOAD, CLOSE, f"Content-Length: {sent}", method="POST"))
            async with anyio.create_task_group() as group:
                group.start_soon(send, client, sent)
                async for _ in client:
                    pass
            (used,) = await place.told(1)
            assert (used.status, used.sent, used.received) == (200, sent, got)


async def test_a_box_that_leaves_ends_an_answer_over_http_2(tmp_path: Path):
    async with http2(tmp_path) as site:
        site.answer, site.size = RESULT, 1000 * MIB
        async with routes(route("g", site.url), authorities=site.authority) as place:
            async with await place.dial() as client:
                await client.send(post(UPLOAD, b"0000"))
                await client.receive()
            with anyio.fail_after(10):
                await site.ended.wait()
            (used,) = await place.told(1)
            assert used.refused == "the box left before the end"


@pytest.mark.parametrize(
    "header",
    [("content-type", "a\r\nSet-Cookie: b"), ("content-length", "x"), ("retry-after", "\0")],
)
async def test_headers_that_http_1_can_not_say_are_no_answer(
    tmp_path: Path, header: tuple[str, str]
):
    async with http2(tmp_path) as site:
        site.answer = [*RESULT, header] if header[0] != "content-type" else [header]
        async with routes(route("g", site.url), authorities=site.authority) as place:
            answer = await place.ask(post(UPLOAD, b"0000"))
            assert status(answer) == 502
            assert b"set-cookie" not in answer.partition(b"\r\n\r\n")[0].lower()


async def test_a_proxy_that_the_environment_names_is_used(monkeypatch: pytest.MonkeyPatch):
    heads: list[bytes] = []

    async def proxy(stream: SocketStream) -> None:
        heads.append(await until(stream, b"\r\n\r\n"))
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: 4\r\n\r\nrefs"
        await stream.send(
            answer % REFS.encode() if b"http://" in heads[-1] else b"HTTP/1.1 403 No\r\n\r\n"
        )

    async with listening(proxy) as port:
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        monkeypatch.setenv("NO_PROXY", "")
        async with routes(
            route("g", "http://git.example"), route("h", "https://git.example")
        ) as place:
            assert status(await place.ask(get(FETCH, CLOSE))) == 200
            answer = await place.ask(get(FETCH.replace("/g/", "/h/")))
            assert status(answer) == 502
            assert b"the proxy on the way to it refused" in answer
    first, second = heads[:2]
    assert first.startswith(b"GET http://git.example/me/app.git/info/refs?service=git-upload-pack ")
    assert second.startswith(b"CONNECT git.example:443 ")
    assert b"Authorization" not in second


async def send(client: SocketStream, size: int) -> None:
    while size:
        piece = bytes(min(size, 1 << 16))
        await client.send(piece)
        size -= len(piece)
