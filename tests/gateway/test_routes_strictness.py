"""Requests that could mean one thing to us and another to an upstream reach no upstream."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from box_mcp.gateway.heads import HEAD_LIMIT
from tests.support.egress import everything, listening, until
from tests.support.routes import HOST, get, route, routes

if TYPE_CHECKING:
    from anyio.abc import SocketStream

pytestmark = pytest.mark.anyio

REFS = "info/refs?service=git-upload-pack"
FETCH = f"/g/me/app.git/{REFS}"
UPLOAD = "/g/me/app.git/git-upload-pack"
OK = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-result\r\n"
    b"Content-Length: 2\r\n\r\nok"
)


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "sesame-sesame")


def post(*headers: str, body: bytes = b"") -> bytes:
    return get(UPLOAD, *headers, method="POST") + body


SMUGGLED = f"GET /g/me/app.git/{REFS} HTTP/1.1\r\n{HOST}\r\n\r\n".encode()
REQUESTS = {
    "length and coding": post(
        "Content-Length: 4", "Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED
    ),
    "coding and length": post(
        "Transfer-Encoding: chunked", "Content-Length: 4", body=b"0\r\n\r\n" + SMUGGLED
    ),
    "two lengths": post("Content-Length: 0", "Content-Length: 50", body=SMUGGLED),
    "lengths in one": post("Content-Length: 0, 50", body=SMUGGLED),
    "signed length": post("Content-Length: +0", body=SMUGGLED),
    "negative length": post("Content-Length: -1", body=SMUGGLED),
    "hexadecimal length": post("Content-Length: 0x1", body=SMUGGLED),
    "two codings": post("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
    "coding behind another": post("Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "coding before another": post("Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n"),
    "misspelled coding": post("Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "coding with a tab": post("Transfer-Encoding:\x0bchunked", body=b"0\r\n\r\n"),
    "space before the colon": post("Content-Length : 4", body=b"0000"),
    "coding in HTTP/1.0": post("Transfer-Encoding: chunked").replace(b"/1.1\r", b"/1.0\r"),
    "folded line": post("Accept: a", " b"),
    "folded coding": post("Transfer-Encoding:", " chunked", body=b"0\r\n\r\n"),
    "lone LF": get(FETCH).replace(b"\r\n", b"\n"),
    "lone CR": get(FETCH, "Accept: a\rCookie: b"),
    "LF in a value": get(FETCH, "Accept: a\nCookie: b"),
    "NUL in a value": get(FETCH, "Accept: a\0b"),
    "NUL in the path": get("/g/me/app\0.git/" + REFS),
    "line before the request": b"\r\n" + get(FETCH),
    "space in the path": get(f"/g/me/app.git/{REFS} HTTP/1.1 x"),
    "no version": f"GET {FETCH}\r\n\r\n".encode(),
    "HTTP/0.9": get(FETCH).replace(b"HTTP/1.1", b"HTTP/0.9"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2 by upgrade": get("/", "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "no host": get(FETCH).replace(HOST.encode() + b"\r\n", b""),
    "no host in HTTP/1.0": get(FETCH)
    .replace(HOST.encode() + b"\r\n", b"")
    .replace(b"/1.1", b"/1.0"),
    "two hosts": get(FETCH, HOST),
    "another host": get(FETCH).replace(HOST.encode(), b"Host: github.com"),
    "another port": get(FETCH).replace(b":3129", b":3128"),
    "no port": get(FETCH).replace(b":3129", b""),
    "a name that leads here": get(FETCH).replace(b"127.0.0.1", b"evil.example"),
    "host with a user": get(FETCH).replace(b"127.0.0.1", b"x@127.0.0.1"),
    "absolute target": get(f"http://127.0.0.1:3129{FETCH}"),
    "absolute target elsewhere": get(f"http://evil.example{FETCH}"),
    "target without a slash": get(FETCH[1:]),
    "two slashes": get(f"/{FETCH}"),
    "two slashes inside": get(FETCH.replace("/me", "//me")),
    "asterisk": get("*", method="OPTIONS"),
    "CONNECT": get("git.example:443", method="CONNECT"),
    "up": get(f"/g/me/../../x/app.git/{REFS}"),
    "up behind escapes": get(f"/g/me/%2e%2e/x/app.git/{REFS}"),
    "up behind two escapes": get(f"/g/me/%252e%252e/x/app.git/{REFS}"),
    "up to another route": get(f"/g/../h/me/app.git/{REFS}"),
    "dot": get(f"/g/./me/app.git/{REFS}"),
    "backslash": get(f"/g/me\\..\\x/app.git/{REFS}"),
    "semicolon": get(f"/g/me/app.git;/{REFS}"),
    "escaped slash": get(f"/g/me%2fapp.git/{REFS}"),
    "escaped NUL": get(f"/g/me/app.git%00/{REFS}"),
    "escaped line": get(f"/g/me/app.git%0d%0aX:1/{REFS}"),
    "fragment": get(f"/g/me/app.git/{REFS}#"),
    "escaped question mark": get("/g/me/app.git/info/refs%3fservice=git-upload-pack"),
    "second question mark": get(f"/g/me/app.git/git-receive-pack?x?{REFS}"),
    "another service beside": get(f"/g/me/app.git/{REFS}&service=git-receive-pack"),
    "semicolon in the query": get(f"/g/me/app.git/{REFS};service=git-receive-pack"),
    "escaped name of a route": get(f"/%67/me/app.git/{REFS}"),
    "route in capitals": get(f"/G/me/app.git/{REFS}"),
    "repository of another": get(f"/g/you/app.git/{REFS.replace('upload', 'receive')}"),
    "GET with a body": get(FETCH, "Content-Length: 4") + b"0000",
    "GET with chunks": get(FETCH, "Transfer-Encoding: chunked") + b"4\r\n0000\r\n0\r\n\r\n",
    "HEAD": get(FETCH, method="HEAD"),
    "DELETE": get(FETCH, method="DELETE"),
    "get": get(FETCH, method="get"),
    "method by header": get(UPLOAD, "X-HTTP-Method-Override: POST"),
    "API": get("/g/api/v3/user"),
    "web page": get("/g/me/app/settings"),
    "archive": post().replace(b"upload-pack", b"upload-archive"),
    "dumb protocol": get("/g/me/app.git/HEAD"),
    "action that nobody knows": get("/g/.lfs/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
    "two types": post("Content-Type: a/b", "Content-Type: c/d", "Content-Length: 0"),
    "two protocols": get(FETCH, "Git-Protocol: version=2", "Git-Protocol: version=1"),
    "much": get(FETCH, "Accept: " + "x" * HEAD_LIMIT),
    "many": get(FETCH, *[f"X-{number}: x" for number in range(HEAD_LIMIT // 8)]),
    "long path": get(f"/g/me/{'a' * 3000}/{REFS}"),
}


class Upstream:
    """Counts what reaches it."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []

    async def __call__(self, stream: SocketStream) -> None:
        self.heads.append(await until(stream, b"\r\n\r\n"))
        await stream.send(OK)


@pytest.mark.parametrize("name", REQUESTS)
async def test_it_is_refused_with_words_that_hide_the_secret_and_the_connection_ends(name: str):
    upstream = Upstream()
    async with (
        listening(upstream) as port,
        routes(route("g", f"http://127.0.0.1:{port}", repositories=("me/*",))) as place,
    ):
        answer = await place.ask(REQUESTS[name])
        code = int(answer.split(b" ", 2)[1])
        assert 400 <= code < 500 or code in (501, 505), answer
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"\r\nConnection: close\r\n" in head
        assert b"box_mcp: " in body
        assert answer.count(b"HTTP/1.1 ") == 1 + body.count(b"HTTP/1.1 ")
        assert b"sesame" not in answer
        (used,) = await place.told(1)
        assert used.status == code
        assert used.refused
        assert not used.asked
    assert upstream.heads == []


async def test_what_follows_a_request_is_the_next_one_and_judged_as_such():
    upstream = Upstream()
    async with (
        listening(upstream) as port,
        routes(route("g", f"http://127.0.0.1:{port}", repositories=("me/*",))) as place,
    ):
        hidden = get("/g/you/app.git/git-upload-pack", "Content-Length: 0", method="POST")
        answer = await place.ask(post("Content-Length: 0") + hidden)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"HTTP/1.1 403" in answer
        told = [(one.status, one.asked) for one in await place.told(2)]
        assert told == [(200, True), (403, False)]
    assert len(upstream.heads) == 1


@pytest.mark.parametrize(
    "body",
    [b"x\r\n", b"-1\r\n", b"4;\r\n0000", b"4\r\n00000\r\n0\r\n\r\n", b"FFFFFFFFFFFFFFFFFFFFF"],
)
async def test_a_body_that_is_no_body_ends_the_connection(body: bytes):
    ends: list[bytes] = []

    async def upstream(stream: SocketStream) -> None:
        ends.append(await everything(stream))

    async with (
        listening(upstream) as port,
        routes(route("g", f"http://127.0.0.1:{port}")) as place,
        await place.dial() as client,
    ):
        await client.send(post("Transfer-Encoding: chunked", body=body))
        await client.send_eof()
        (used,) = await place.told(1)
        assert used.refused == "the box left before the end"
    assert not any(end.endswith(b"0\r\n\r\n") for end in ends)
