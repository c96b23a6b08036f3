"""Objects of LFS over routes, from real servers; and where these may send us for them."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest

from box_mcp.domain.lfs import Action, Batch
from box_mcp.domain.routes import Access, Forbidden, parse_upstream
from box_mcp.gateway import lfs as subject
from box_mcp.gateway.credentials import Secret
from box_mcp.gateway.lfs import Actions, Mover
from box_mcp.gateway.turns import Refused
from box_mcp.gateway.upstream import Authorities, Line, Lines, Unanswered
from tests.support.egress import LOOPBACK, proxy
from tests.support.gitserver import TOKEN, Content, Server, serving_git
from tests.support.internet import INTERNET
from tests.support.lfsserver import Lfs, serve_lfs
from tests.support.routes import HOST, Place, route, routes
from tests.support.webserver import Trouble, Web, echoed, redirect, web

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
    from pathlib import Path

    from box_mcp.domain.network import Address
    from box_mcp.domain.routes import Route
    from tests.support.internet import Internet

pytestmark = pytest.mark.anyio

DATA = b"large " * 50_000
OID = hashlib.sha256(DATA).hexdigest()
REPOSITORY = "me/app.git"
NAME = "store.example"
PROOF = {"Authorization": "RemoteAuth x"}


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """What routes are given from."""
    monkeypatch.setenv("SECRET", TOKEN)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving_git(tmp_path_factory.mktemp("git")) as server:
        server.add(REPOSITORY, Content(commits=2))
        yield server


@pytest.fixture(scope="module")
def all_lfs(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Lfs:
    return serve_lfs(server, tmp_path_factory.mktemp("lfs"))


@pytest.fixture
def lfs(all_lfs: Lfs) -> Iterator[Lfs]:
    """Which has one object, and forgets what it was asked."""
    all_lfs.put(DATA)
    all_lfs.batches.clear()
    yield all_lfs
    all_lfs.git.web.heal()
    all_lfs.git.web.forget()


@dataclass
class Client:
    """git-lfs, as far as it is needed here."""

    place: Place
    name: str = "forge"

    async def ask(
        self, method: str, path: str, body: bytes = b"", *headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer."""
        lines = [f"{method} {path} HTTP/1.1", HOST, f"Content-Length: {len(body)}", *headers]
        request = "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body
        head, _, got = (await self.place.ask(request)).partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in rest), got

    async def batch(self, operation: str, data: bytes = DATA) -> dict[str, Any]:
        """The paths of the actions of one object."""
        oid = hashlib.sha256(data).hexdigest()
        wanted = {"operation": operation, "objects": [{"oid": oid, "size": len(data)}]}
        path = f"/{self.name}/{REPOSITORY}/info/lfs/objects/batch"
        status, _, body = await self.ask("POST", path, json.dumps(wanted).encode())
        assert status == 200, body
        (told,) = json.loads(body)["objects"]
        links = {name: one["href"] for name, one in told.get("actions", {}).items()}
        return {name: link.removeprefix("http://127.0.0.1:3129") for name, link in links.items()}


@asynccontextmanager
async def client(server: Server, **more: Any) -> AsyncGenerator[Client, None]:
    """Of a box that has the route ``forge``, and the same again as ``other``."""
    known = [route(name, server.url, **more) for name in ("forge", "other")]
    async with routes(*known) as place:
        yield Client(place)


async def test_an_object_is_fetched_whole_or_in_part(server: Server, lfs: Lfs):
    async with client(server) as box:
        link = (await box.batch("download"))["download"]
        status, headers, body = await box.ask("GET", link)
        assert (status, body, headers["content-length"]) == (200, DATA, str(len(DATA)))
        status, headers, body = await box.ask("GET", link, b"", "Range: bytes=299990-")
        assert (status, body) == (206, DATA[299_990:])
        assert headers["content-range"] == "bytes 299990-299999/300000"
        asked = server.web.asked[-1]
        assert asked.header("Authorization").startswith("RemoteAuth ")


async def test_an_object_is_put_and_checked(server: Server, lfs: Lfs):
    data = b"new"
    oid = hashlib.sha256(data).hexdigest()
    async with client(server) as box:
        links = await box.batch("upload", data)
        assert (await box.ask("PUT", links["upload"], data))[0] == 200
        check = json.dumps({"oid": oid, "size": len(data)}).encode()
        assert (await box.ask("POST", links["verify"], check))[0] == 200
        assert lfs.has(oid)
        assert await box.batch("upload", data) == {}


async def test_an_address_is_for_one_box_one_route_and_one_thing_to_do(server: Server, lfs: Lfs):
    async with client(server) as box:
        link = (await box.batch("download"))["download"]
        for method, path in (
            ("GET", link.replace("/forge/", "/other/")),
            ("GET", f"{link}x"),
            ("GET", f"{link}/"),
            ("GET", "/forge/.lfs/"),
            ("PUT", link),
            ("POST", link),
        ):
            status, _, body = await box.ask(method, path)
            assert status in (403, 404), path
            assert "message" in json.loads(body)
        box.place.box = replace(box.place.box, id=type(box.place.box.id)("box-bbbbbbbb"))
        assert (await box.ask("GET", link))[0] == 404
        assert not [one for one in server.web.asked if "lfs-objects" in one.target]


async def test_what_a_route_does_not_give_its_objects_do_not_take(server: Server, lfs: Lfs):
    async with client(server, access=Access.READ) as box:
        with pytest.raises(AssertionError, match="is for reading only"):
            await box.batch("upload", b"more")
    assert lfs.batches == []


KNOWN = route("forge", "https://git.example.org")
DOWNLOAD = Batch(Access.READ, "download", b"")


def kept(actions: Actions, box: str = "box", **more: Any) -> str:
    """The target of a new address."""
    action = {"href": f"{KNOWN.upstream}/x", **more}
    one = {"oid": OID, "size": 1, "actions": {"download": action}}
    reply = json.dumps({"objects": [one]}).encode()
    (told,) = json.loads(actions.rewritten(box, KNOWN, DOWNLOAD, reply))["objects"]
    return told["actions"]["download"]["href"].removeprefix("http://127.0.0.1:3129/forge")


def test_an_address_is_over_when_the_servers_is():
    now = 1000.0
    actions = Actions(clock=lambda: now)
    target = kept(actions, expires_in=60)
    now = 1059.0
    assert actions.find("box", KNOWN, "GET", target).url == f"{KNOWN.upstream}/x"
    now = 1061.0
    with pytest.raises(Refused, match="is over"):
        actions.find("box", KNOWN, "GET", target)
    kept(actions)
    assert repr(actions) == "<Actions 1>"


def test_of_one_box_no_more_than_so_many_addresses_are_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subject, "MAX_ACTIONS", 3)
    actions = Actions()
    other = kept(actions, "other")
    ours = [kept(actions) for _ in range(6)]
    assert repr(actions) == "<Actions 5>"
    actions.find("other", KNOWN, "GET", other)
    actions.find("box", KNOWN, "GET", ours[-1])
    with pytest.raises(Refused):
        actions.find("box", KNOWN, "GET", ours[0])


async def test_a_server_that_speaks_otherwise_of_lfs_is_told_as_such(server: Server, lfs: Lfs):
    async with client(server) as box:
        for body in (b"", b"[]", b'{"objects": [{"oid": "x"}]}'):
            server.web.fail(Trouble("objects/batch", 200, body=body))
            with pytest.raises(AssertionError, match="LFS as nobody else does"):
                await box.batch("download")


async def test_what_a_server_says_of_a_failure_is_not_repeated(server: Server, lfs: Lfs):
    async with client(server) as box:
        link = (await box.batch("download"))["download"]
        for status, told in ((401, 403), (403, 403), (404, 404), (416, 416), (500, 500)):
            server.web.fail(Trouble("GET /lfs-objects", status, body=echoed))
            got, _, body = await box.ask("GET", link)
            assert (got, b"RemoteAuth" in body) == (told, False)
            assert f"127.0.0.1 answered {status}" in json.loads(body)["message"]


@dataclass
class Moving:
    """One object, moved from where an upstream says; `names` are all that can be looked up."""

    line: Line
    upstream: str
    names: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    asked: list[str] = field(default_factory=list[str])

    async def look_up(self, name: str) -> Sequence[Address]:
        self.asked.append(name)
        if name not in self.names:
            raise OSError
        return [ip_address(text) for text in self.names[name]]

    async def secret(self) -> Secret:
        return Secret("user", "proof")

    async def move(
        self, url: str, headers: Mapping[str, str] = {}, *, signed: bool = True
    ) -> tuple[int, bytes]:
        known: Route = replace(
            route("forge", self.upstream), upstream=parse_upstream(self.upstream)
        )
        action = Action("GET", Access.READ, url, headers, signed, time.time() + 99)
        mover = Mover(known, action, self.secret, self.line, self.look_up)
        async with mover.answer({"Range": "bytes=0-"}, None) as answer:
            return answer.status, await answer.read(99) or b""


@asynccontextmanager
async def moving(upstream: str, bundle: Path | None = None) -> AsyncGenerator[Moving, None]:
    lines = Lines(Authorities(bundle), connect=2, idle=5)
    async with lines.open(), lines.one() as line:
        yield Moving(line, upstream)


def saying(word: bytes, where: Web) -> Web:
    """A server that always says so."""
    where.handlers.append(lambda exchange: [exchange.answer(200, body=word)] != [])
    return where


@pytest.fixture(scope="module")
def own() -> Iterator[Web]:
    """The upstream's own server."""
    with web() as made:
        yield saying(b"own", made)


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """Another one on this machine, which nobody should be led to."""
    with web(tls=tmp_path_factory.mktemp("near"), names=[NAME]) as made:
        yield saying(b"near", made)


@pytest.fixture(scope="module")
def store(internet: Internet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """One that is public."""
    there = [(INTERNET, internet.internet.namespace)]
    with web(tls=tmp_path_factory.mktemp("store"), names=[NAME], also=there) as made:
        yield saying(b"public", made)


async def test_the_upstream_itself_is_asked_wherever_it_is(own: Web):
    async with moving(own.url) as here:
        assert await here.move(f"{own.url}/x", PROOF) == (200, b"own")
        assert own.asked[-1].header("Authorization") == "RemoteAuth x"
        assert await here.move(f"{own.url}/x", signed=False) == (200, b"own")
        assert own.asked[-1].header("Authorization") == Secret("user", "proof").basic
        assert await here.move(f"{own.url}/x") == (200, b"own")
        assert own.asked[-1].header("Authorization") == ""
        assert here.asked == []


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://127.0.0.1:PORT/x", "is not public"),
        ("https://[::1]:PORT/x", "is not public"),
        ("https://[::ffff:127.0.0.1]:PORT/x", "is not public"),
        ("https://10.0.0.1/x", "is not public"),
        ("https://169.254.169.254/latest", "is not public"),
        ("https://private.example:PORT/x", "is not public"),
        ("https://store.example:PORT/x", "is not public"),
        ("http://store.example/x", "not by https"),
        ("http://127.0.0.1:PORT/x", "not by https"),
    ],
)
async def test_others_are_asked_by_https_only_and_where_they_are_public(
    own: Web, near: Web, url: str, why: str
):
    before = near.connections
    async with moving(own.url, near.certificate) as here:
        here.names = {"private.example": ["192.168.1.1", "fd00::1"], NAME: [LOOPBACK]}
        placed = url.replace("PORT", str(near.port))
        with pytest.raises(Forbidden, match=why):
            await here.move(placed)
        own.fail(redirect("GET /moved", placed))
        with pytest.raises(Forbidden, match=why):
            await here.move(f"{own.url}/moved")
    assert near.connections == before


async def test_a_public_server_is_asked_at_the_address_that_was_judged(own: Web, store: Web):
    async with moving(own.url, store.certificate) as here:
        here.names = {NAME: ["192.168.1.1", INTERNET], "other.example": [INTERNET]}
        url = f"https://{NAME}:{store.port}/x?sign=y"
        assert await here.move(url, PROOF) == (200, b"public")
        asked = store.asked[-1]
        assert (asked.target, asked.header("Host")) == ("/x?sign=y", f"{NAME}:{store.port}")
        assert asked.header("Authorization") == "RemoteAuth x"
        with pytest.raises(Unanswered, match="certificate is not believed"):
            await here.move(f"https://other.example:{store.port}/x")
        with pytest.raises(Unanswered, match="has no address"):
            await here.move(f"https://unknown.example:{store.port}/x")
        assert await here.move(f"https://{INTERNET}:{store.port}/x") == (200, b"public")


async def test_what_goes_with_a_request_does_not_go_along_with_a_redirect(own: Web, store: Web):
    async with moving(own.url, store.certificate) as here:
        here.names = {NAME: [INTERNET]}
        own.fail(redirect("GET /moved", f"https://{NAME}:{store.port}/there"))
        headers = {**PROOF, "X-Token": "y"}
        assert await here.move(f"{own.url}/moved", headers) == (200, b"public")
        asked = store.asked[-1]
        assert (asked.target, asked.header("Range")) == ("/there", "bytes=0-")
        assert asked.header("Authorization") == asked.header("X-Token") == ""
        own.fail(redirect("GET /moved", "/here"))
        assert await here.move(f"{own.url}/moved", headers) == (200, b"own")
        assert own.asked[-1].header("X-Token") == "y"
        own.fail(redirect("GET /moved", f"https://{NAME}:{store.port}/there"))
        assert await here.move(f"{own.url}/moved", signed=False) == (200, b"public")
        assert store.asked[-1].header("Authorization") == ""


async def test_redirects_in_circles_come_to_an_end(own: Web):
    own.fail(redirect("GET /round", "/round", times=9))
    async with moving(own.url) as here:
        with pytest.raises(Refused, match="in circles"):
            await here.move(f"{own.url}/round")
    own.heal()


async def test_where_a_proxy_leads_out_it_is_asked_by_name(
    own: Web, store: Web, monkeypatch: pytest.MonkeyPatch
):
    async with proxy("*:*", names={NAME: [INTERNET]}) as way:
        monkeypatch.setenv("HTTPS_PROXY", way.url)
        async with moving(own.url, store.certificate) as here:
            assert await here.move(f"https://{NAME}:{store.port}/x") == (200, b"public")
            assert way.asked == [NAME]
            here.names = {NAME: ["10.0.0.1"]}
            with pytest.raises(Forbidden, match="is not public"):
                await here.move(f"https://{NAME}:{store.port}/x")
            with pytest.raises(Forbidden, match="is not public"):
                await here.move("https://10.0.0.1/x")
            here.names = {NAME: [INTERNET]}
            monkeypatch.setenv("NO_PROXY", NAME)
            assert await here.move(f"https://{NAME}:{store.port}/x") == (200, b"public")
            assert way.asked == [NAME]


async def test_the_next_address_is_tried_where_one_does_not_answer(own: Web, store: Web):
    with socket.create_server((LOOPBACK, 0)) as taken:
        closed = taken.getsockname()[1]
    async with moving(own.url, store.certificate) as here:
        here.names = {NAME: [INTERNET, "2001:db8::1"]}
        with pytest.raises(Unanswered, match="no connection to it"):
            await here.move(f"https://{NAME}:{closed}/x")
        here.names = {NAME: ["2606:4700::1", INTERNET]}
        assert await here.move(f"https://{NAME}:{store.port}/x") == (200, b"public")
