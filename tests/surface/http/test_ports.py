"""Exposed ports over HTTP: the real door and connections, before a real boxd on this machine."""

from __future__ import annotations

import socket
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import anyio
import h11
import httpx2
import pytest
from anyio.abc import SocketAttribute

from box_mcp.domain.access import EVERYTHING, Grant, Scope, parse_scope
from box_mcp.domain.issuers import Issuer
from box_mcp.domain.names import BoxId, Principal
from box_mcp.domain.routes import Credential
from box_mcp.domain.sites import Domain
from box_mcp.errors import BoxError, BoxNotFound, LimitReached
from box_mcp.events import BoxMoved, Event, PortUsed, RequestRefused
from box_mcp.gateway import sites as gateway_sites
from box_mcp.gateway.sites import TOLD_EVERY, Sites
from box_mcp.identity.opening import identity
from box_mcp.identity.tokens import Tokens
from box_mcp.identity.verifying import Identity
from box_mcp.surface.http import ports as module
from box_mcp.surface.http.admission import Admission
from box_mcp.surface.http.connections import Bounds, Connections, Web
from box_mcp.surface.http.door import Door, Rules
from box_mcp.surface.http.health import Readiness
from box_mcp.surface.http.ports import PortsApp
from tests.capabilities.test_watching import BOX, claimed
from tests.support.boxd import LocalBoxd, local_boxd
from tests.support.issuer import AUDIENCE, CLIENT, SECRET, authorization_server
from tests.support.webserver import Trouble

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    from anyio.abc import SocketStream

    from box_mcp.gateway.sites import Site
    from box_mcp.slots import Claim

ID = BOX.id
ANN, BEN = Principal("ann"), Principal("ben")
PATIENCE = 60
DONE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone"


@pytest.fixture(scope="module")
def boxd() -> Iterator[LocalBoxd]:
    yield from local_boxd()


@dataclass
class Asked:
    """A request as the box got it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


@dataclass
class Service:
    """A server in the box. It says `answer` to a request that is whole, then ends the connection.

    A request that switches protocols is answered at once, and what follows sent back.
    """

    port: int
    answer: bytes = DONE
    asked: list[Asked] = field(default_factory=list[Asked])
    connections: int = 0
    ended: anyio.Event = field(default_factory=anyio.Event)
    pieces: list[bytes] | None = None
    """What is said piece by piece instead, each once `go` was set again."""
    go: anyio.Event = field(default_factory=anyio.Event)

    async def serve(self, stream: SocketStream) -> None:
        self.connections += 1
        async with stream:
            with suppress(anyio.BrokenResourceError, anyio.EndOfStream):
                await self._serve(stream)
        self.ended.set()

    async def _serve(self, stream: SocketStream) -> None:
        parser = h11.Connection(h11.SERVER)
        while not isinstance(event := parser.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                parser.receive_data(await stream.receive())
            elif isinstance(event, h11.Request):
                headers = [(name.decode(), value.decode()) for name, value in event.headers]
                self.asked.append(Asked(event.method.decode(), event.target.decode(), headers))
                if self.pieces is not None:
                    await self._say_pieces(stream)
            elif isinstance(event, h11.Data):
                self.asked[-1].body += event.data
        if self.pieces is None:
            await stream.send(self.answer)
        if self.answer.startswith(b"HTTP/1.1 101"):
            async for data in stream:
                await stream.send(data)

    async def _say_pieces(self, stream: SocketStream) -> None:
        for piece in self.pieces or ():
            await self.go.wait()
            self.go = anyio.Event()
            await stream.send(piece)


@pytest.fixture
async def service() -> AsyncGenerator[Service, None]:
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as group,
    ):
        made = Service(listener.extra(SocketAttribute.local_port))
        group.start_soon(listener.serve, made.serve)
        yield made
        group.cancel_scope.cancel()


class House:
    """A server with a box of Ann's; `error` is what getting hold of the box fails with."""

    def __init__(
        self, claim: Claim, sites: Sites, tokens: Tokens, port: int, told: list[Event]
    ) -> None:
        self.sites = sites
        self.tokens = tokens
        self.port = port
        self.told = told
        self.error: BoxError | None = None
        self.claims = 0
        self._claim = claim

    @asynccontextmanager
    async def claim(self) -> AsyncGenerator[Claim, None]:
        if self.error is not None:
            raise self.error
        self.claims += 1
        try:
            yield self._claim
        finally:
            self.claims -= 1

    def expose(self, port: int, box: BoxId = ID, principal: Principal = ANN) -> Site:
        return self.sites.expose(self.claim, box, port, principal)

    async def token(self, principal: Principal = ANN, *scopes: str) -> str:
        parsed = [parse_scope(scope) for scope in scopes] or [EVERYTHING]
        return (await self.tokens.create(principal, parsed, None))[1]

    async def granted(self, principal: Principal = ANN) -> Grant:
        grant = await self.tokens.verify(await self.token(principal))
        assert grant is not None
        return grant

    @asynccontextmanager
    async def browser(self, site: Site, **headers: str) -> AsyncGenerator[httpx2.AsyncClient, None]:
        """Asks for `site` by its URL, and keeps cookies."""
        transport = _Here(self.port)
        async with httpx2.AsyncClient(
            transport=transport, base_url=site.url, headers=headers, timeout=PATIENCE
        ) as client:
            yield client

    async def bearing(
        self, site: Site, token: str, path: str = "/", **more: Any
    ) -> httpx2.Response:
        async with self.browser(site, Authorization=f"Bearer {token}") as client:
            return await client.request(more.pop("method", "GET"), path, **more)

    async def let_in(self, client: httpx2.AsyncClient, site: Site, grant: Grant) -> httpx2.Response:
        """As if somebody followed a link."""
        return await client.get(site.link(grant))

    async def raw(self, *pieces: bytes) -> SocketStream:
        stream = await anyio.connect_tcp("127.0.0.1", self.port)
        for piece in pieces:
            await stream.send(piece)
        return stream


class _Here(httpx2.AsyncHTTPTransport):
    """Leads all names to the server under test."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        led = httpx2.Request(
            request.method,
            request.url.copy_with(host="127.0.0.1", port=self._port),
            headers=request.headers,
            stream=request.stream,
            extensions=request.extensions,
        )
        return await super().handle_async_request(led)


async def nothing(*_: object) -> None:
    pytest.fail("a request for a box came to MCP")


NOBODY: Any = nothing


@asynccontextmanager
async def serving(
    boxd: LocalBoxd,
    directory: Path,
    *,
    tokens: bool = True,
    refusals: int | None = None,
    known: Identity | None = None,
) -> AsyncGenerator[House, None]:
    bound = socket.create_server(("127.0.0.1", 0))
    port = bound.getsockname()[1]
    kept = Tokens(directory / "tokens.db")
    told: list[Event] = []
    sites = Sites(Domain("http", "localhost", port), told.append)
    who = known or (Identity([kept]) if tokens else None)
    async with claimed(boxd) as box:
        house = House(box, sites, kept, port, told)
        rules = Rules(max_body=1000)
        admission = Admission(who, None, refusals, rules.max_body)
        elsewhere = PortsApp(sites, admission).under
        door = Door(
            nothing, admission, rules, Readiness(nothing), house.told.append, elsewhere=elsewhere
        )
        web = Web(door, [bound], Connections(Bounds(max_body=rules.max_body)))
        with anyio.fail_after(PATIENCE):
            async with sites.open(), door.open(), web.open():
                yield house
            await gone(house)
    await kept.aclose()


async def gone(house: House) -> None:
    """Waits until nobody holds the box."""
    while house.claims:  # noqa: ASYNC110 - other tasks end
        await anyio.sleep(0.002)


@pytest.fixture
async def house(boxd: LocalBoxd, tmp_path: Path) -> AsyncGenerator[House, None]:
    async with serving(boxd, tmp_path) as made:
        yield made


async def rest(stream: SocketStream) -> bytes:
    """All that still comes."""
    with suppress(anyio.BrokenResourceError):
        return b"".join([data async for data in stream])
    return b""


async def exactly(stream: SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await stream.receive(size - len(data))
    return data


async def test_the_owner_comes_in_by_a_token_which_the_box_does_not_see(
    house: House, service: Service
):
    site = house.expose(service.port)
    token = await house.token()
    answer = await house.bearing(
        site,
        token,
        "/a%20b/../c?x=%2F&y",
        method="POST",
        content=b"body",
        headers={"X-Forwarded-For": "1.2.3.4", "X-Own": "kept", "Cookie": "a=1"},
    )
    assert (answer.status_code, answer.text) == (200, "done")
    (asked,) = service.asked
    assert (asked.method, asked.body) == ("POST", b"body")
    assert asked.target.endswith("c?x=%2F&y")
    assert token not in repr(asked)
    assert asked.values("authorization") == asked.values("x-forwarded-for") == []
    host = f"{ID}-{service.port}.localhost:{house.port}"
    assert asked.values("host") == asked.values("x-forwarded-host") == [host]
    assert asked.values("x-forwarded-proto") == ["http"]
    assert asked.values("connection") == ["close"]
    assert asked.values("x-own") == ["kept"]
    assert asked.values("cookie") == ["a=1"]


async def test_a_link_lets_a_browser_in_once_and_the_box_never_sees_the_cookie(
    house: House, service: Service
):
    site, grant = house.expose(service.port), await house.granted()
    link = site.link(grant)
    async with house.browser(site) as client, house.browser(site) as other:
        led = await client.get(link)
        assert (led.status_code, led.headers["location"]) == (303, "/")
        cookie = led.headers["set-cookie"]
        assert cookie.startswith("box_mcp=")
        assert cookie.endswith("; HttpOnly; SameSite=Lax")
        assert "Path=/; Max-Age=" in cookie
        assert "domain" not in cookie.lower()
        assert (await client.get("/")).text == "done"
        assert (await other.get(link)).status_code == 401
        assert (await other.get("/")).status_code == 401
        again = await client.get("/", headers={"Authorization": "Bearer of-the-page"})
        assert again.text == "done"
    assert [one.values("cookie") for one in service.asked] == [[], []]
    assert service.asked[1].values("authorization") == ["Bearer of-the-page"]


async def test_with_a_cookie_too_the_box_sees_no_token_of_ours(house: House, service: Service):
    site, grant = house.expose(service.port), await house.granted()
    async with house.browser(site) as client:
        await house.let_in(client, site, grant)
        token = await house.token(BEN)
        assert (await client.get("/", headers={"Authorization": f"Bearer {token}"})).text == "done"
    assert service.asked[0].values("authorization") == []


async def test_a_cookie_of_https_is_for_one_host_only_and_goes_by_https_only(tmp_path: Path):
    sites = Sites(Domain("https", "ports.example.org", 443))
    site = sites.expose(NOBODY, ID, 3000, ANN)
    link = site.link(Grant(ANN))
    assert link.startswith(f"https://{ID}-3000.ports.example.org/.box-mcp/")
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    host = f"{ID}-3000.ports.example.org".encode()
    scope = {
        "type": "http",
        "method": "GET",
        "raw_path": link.partition(".org")[2].encode(),
        "query_string": b"",
        "headers": [(b"host", host)],
    }
    app = PortsApp(sites, Admission(Identity([Tokens(tmp_path / "tokens.db")])))
    await app(scope, NOBODY, send)
    cookie = dict(sent[0]["headers"])[b"set-cookie"]
    assert cookie.startswith(b"__Host-box_mcp=")
    assert cookie.endswith(b"; HttpOnly; SameSite=Lax; Secure")


async def test_a_program_that_looks_what_a_link_leads_to_does_not_use_it_up(
    house: House, service: Service
):
    site, grant = house.expose(service.port), await house.granted()
    link = site.link(grant)
    async with house.browser(site) as client:
        assert (await client.head(link)).status_code == 403
        ahead = await client.get(link, headers={"Sec-Purpose": "prefetch;prerender"})
        assert ahead.status_code == 403
        assert (await client.get(link)).status_code == 303


async def test_what_is_unknown_and_what_is_somebody_elses_are_answered_alike(
    house: House, service: Service
):
    mine, unknown = house.expose(service.port), house.expose(1)
    bens = house.expose(service.port, BoxId("box-bbbbbbbb"), BEN)
    await house.sites.close(ID, 1)
    key = bens.link(await house.granted(BEN)).partition("/.box-mcp/")[2]

    async def told(site: Site, token: str = "", path: str = "/", cookie: str = "") -> Any:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with house.browser(
            site, **headers, **({"Cookie": cookie} if cookie else {})
        ) as client:
            answer = await client.get(path)
            headers = {name: value for name, value in answer.headers.items() if name != "date"}
            return answer.status_code, headers, answer.text

    token = await house.token()
    for case in (
        {},
        {"token": "bxm_aaaaaaaa_wrong"},
        {"token": "other"},
        {"path": "/.box-mcp/x"},
        {"cookie": "box_mcp=x"},
        {"path": f"/.box-mcp/{key}x"},
    ):
        found = [await told(site, **case) for site in (mine, unknown, bens)]
        assert found[0] == found[1] == found[2]
        assert found[0][0] == 401
    assert await told(unknown, token) == await told(bens, token)
    assert (await told(unknown, token))[0] == 404
    assert (await told(mine, token))[0] == 200
    for scope in ("boxes:read", "boxes:files", "boxes:network:read"):
        assert await told(mine, await house.token(ANN, scope)) == await told(bens, token)
    whys = {one.why for one in house.told if isinstance(one, RequestRefused)}
    assert whys == {"no pass to a port", "no port of theirs"}
    assert len(service.asked) == 1


async def test_a_key_is_for_one_site_and_a_cookie_too(house: House, service: Service):
    one, other = house.expose(service.port), house.expose(1)
    grant = await house.granted()
    key = one.link(grant).partition("/.box-mcp/")[2]
    async with house.browser(other) as client:
        assert (await client.get(f"/.box-mcp/{key}")).status_code == 401
    async with house.browser(one) as client:
        cookie = (await client.get(f"/.box-mcp/{key}")).headers["set-cookie"].partition(";")[0]
    async with house.browser(other, Cookie=cookie) as client:
        assert (await client.get("/")).status_code == 401


async def test_a_cookie_ends_with_the_token_with_the_port_and_with_the_box(
    house: House, service: Service
):
    grant = await house.granted()
    async with house.browser(house.expose(service.port)) as client:
        for end in ("token", "port", "box"):
            site, grant = house.expose(service.port), await house.granted()
            await house.let_in(client, site, grant)
            assert (await client.get("/")).status_code == 200
            if end == "token":
                await house.tokens.revoke(grant.token)
            elif end == "port":
                await house.sites.close(ID, service.port)
                house.expose(service.port)
            else:
                house.sites.notice(BoxMoved(ID, "running", "deleted", "asked for", ANN))
                house.expose(service.port)
            assert (await client.get("/")).status_code == 401, end


async def test_a_link_is_no_good_later_nor_once_its_token_was_revoked(
    house: House, service: Service, monkeypatch: pytest.MonkeyPatch
):
    site, grant = house.expose(service.port), await house.granted()
    async with house.browser(site) as client:
        link = site.link(grant)
        await house.tokens.revoke(grant.token)
        assert (await client.get(link)).status_code == 401
        monkeypatch.setattr(gateway_sites, "KEY_LIFE", -1)
        assert (await client.get(site.link(await house.granted()))).status_code == 401
        expired = Grant(ANN, expires=1.0)
        monkeypatch.undo()
        assert (await client.get(site.link(expired))).status_code == 401


async def test_pages_of_other_sites_can_not_use_the_cookie(house: House, service: Service):
    site, grant = house.expose(service.port), await house.granted()
    other = house.expose(1).url.removesuffix("/")
    stranger = other.replace(ID, "box-bbbbbbbb")
    async with house.browser(site) as client:
        await house.let_in(client, site, grant)
        for headers in ({"Origin": stranger}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "null"}):
            refused = await client.post("/", headers=headers)
            assert refused.status_code == 403
            assert "page of another site" in refused.text
        assert service.asked == []
        assert (await client.post("/", headers={"Origin": other})).text == "done"


async def test_a_box_sets_cookies_for_its_own_site_only(house: House, service: Service):
    site = house.expose(service.port)
    service.answer = (
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Domain=localhost; Path=/\r\n"
        b"Set-Cookie: box_mcp=mine\r\nClear-Site-Data: *\r\nConnection: x-hop\r\nX-Hop: 1\r\n"
        b"X-Own: kept\r\nContent-Length: 0\r\n\r\n"
    )
    answer = await house.bearing(site, await house.token())
    assert answer.headers.get_list("set-cookie") == ["a=1; Path=/"]
    assert not {"clear-site-data", "x-hop"} & set(answer.headers)
    assert answer.headers["x-own"] == "kept"


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n"),
        ("DELETE", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.0 404 Nope\r\n\r\n"),
    ],
)
async def test_an_answer_without_a_body_is_whole(
    house: House, service: Service, method: str, head: bytes
):
    service.answer = head
    answer = await house.bearing(house.expose(service.port), await house.token(), method=method)
    assert answer.status_code == int(head.split(b"\r\n\r\n")[-2].split()[1])
    assert answer.content == b""


async def test_an_upload_larger_than_messages_of_mcp_passes(house: House, service: Service):
    site = house.expose(service.port)
    answer = await house.bearing(site, await house.token(), method="PUT", content=b"x" * 3_000_000)
    assert answer.text == "done"
    assert len(service.asked[0].body) == 3_000_000


async def test_request_and_answer_stream_at_the_same_time(house: House, service: Service):
    site = house.expose(service.port)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    service.pieces = [head + b"5\r\nfirst\r\n", b"6\r\nsecond\r\n", b"0\r\n\r\n"]
    host = site.url.split("/")[2]
    request = (
        f"POST / HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {await house.token()}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    async with await house.raw(request.encode(), b"3\r\nabc\r\n") as stream:
        service.go.set()
        said = b""
        while b"first" not in said:
            said += await stream.receive()
        service.go.set()
        while b"second" not in said:
            said += await stream.receive()
        await stream.send(b"3\r\ndef\r\n0\r\n\r\n")
        service.go.set()
        while not said.endswith(b"0\r\n\r\n"):
            said += await stream.receive()
    await service.ended.wait()
    assert service.asked[0].body == b"abcdef"
    assert service.asked[0].values("transfer-encoding") == ["chunked"]


async def test_who_leaves_is_not_waited_for(house: House, service: Service):
    site = house.expose(service.port)
    service.pieces = [b"HTTP/1.1 200 OK\r\n\r\nbegun", b"never"]
    async with house.browser(site, Authorization=f"Bearer {await house.token()}") as client:
        service.go.set()
        async with client.stream("GET", "/") as answer:
            assert await anext(answer.aiter_bytes()) == b"begun"
    await gone(house)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nnonsense",
    ],
)
async def test_half_an_answer_does_not_pass_for_a_whole_one(
    house: House, service: Service, answer: bytes
):
    service.answer = answer
    with pytest.raises(httpx2.RemoteProtocolError):
        await house.bearing(house.expose(service.port), await house.token())


@pytest.mark.parametrize(
    "answer",
    [
        b"220 mail.example.org ESMTP\r\n",
        b"",
        b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 300_000 + b"\r\n\r\n",
    ],
    ids=["mail", "nothing", "status", "switch", "lengths", "large"],
)
async def test_what_is_no_answer_is_told_as_such(house: House, service: Service, answer: bytes):
    service.answer = answer
    told = await house.bearing(house.expose(service.port), await house.token())
    assert told.status_code == 502
    assert "no answer in HTTP" in told.text


async def test_where_the_box_can_not_be_reached_words_say_why(house: House, service: Service):
    token = await house.token()
    silent = house.expose(1)
    told = await house.bearing(silent, token)
    assert told.status_code == 502
    assert f"nobody listens on port 1 in {ID}" in told.text
    site = house.expose(service.port)
    house.error = LimitReached("awake", 3)
    told = await house.bearing(site, token)
    assert (told.status_code, told.text) == (503, f"box_mcp: {house.error.explain()}\n")
    house.error = BoxNotFound(ID)
    assert (await house.bearing(site, token)).status_code == 503
    assert (await house.bearing(site, token)).status_code == 404
    assert house.sites.of(ID) == [silent]


async def test_who_was_refused_too_often_can_not_guess_on_by_the_name_of_a_port(
    boxd: LocalBoxd, tmp_path: Path, service: Service
):
    async with serving(boxd, tmp_path, refusals=2) as house:
        site, token, grant = house.expose(service.port), await house.token(), await house.granted()
        async with house.browser(site) as client:
            await house.let_in(client, site, grant)
            guesses = [await house.bearing(site, f"bxm_guess{n}") for n in range(4)]
            assert [answer.status_code for answer in guesses] == [401, 401, 429, 429]
            assert int(guesses[-1].headers["retry-after"]) > 0
            assert (await house.bearing(site, token)).status_code == 429
            assert (await client.get("/")).text == "done"  # whose browser was let in before


async def test_what_a_stranger_uploads_is_not_even_thrown_away(house: House):
    head = f"POST / HTTP/1.1\r\nHost: {ID}-3000.localhost\r\nContent-Length: 999999999\r\n\r\n"
    stream = await house.raw(head.encode())
    async with stream:
        assert (await stream.receive()).startswith(b"HTTP/1.1 401 ")
        with suppress(anyio.BrokenResourceError):
            for _ in range(200):  # 13 MB, where a message of MCP may have 1,000 bytes
                await stream.send(b"x" * 65536)
            pytest.fail("all of it was heard")


async def test_a_server_that_never_answers_is_not_waited_for_without_end(
    house: House, service: Service, monkeypatch: pytest.MonkeyPatch
):
    site = house.expose(service.port)
    service.pieces = [b"never"]
    monkeypatch.setattr(module, "IDLE", 0.05)
    told = await house.bearing(site, await house.token())
    assert told.status_code == 504
    assert "no answer in HTTP in time" in told.text


async def test_limits_hold(house: House, service: Service, monkeypatch: pytest.MonkeyPatch):
    site, token = house.expose(service.port), await house.token()
    service.pieces = [b"never"]
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 1)
    async with anyio.create_task_group() as group:
        group.start_soon(house.bearing, site, token)
        while not service.asked:  # noqa: ASYNC110 - it comes by another task
            await anyio.sleep(0.002)
        crowded = await house.bearing(site, token)
        assert (crowded.status_code, service.connections) == (503, 1)
        monkeypatch.setattr(module, "MAX_OWN_CONNECTIONS", 1)
        other = await house.bearing(house.expose(2), token)
        assert (other.status_code, "1 connections to your ports" in other.text) == (503, True)
        cleo = Principal("cleo")
        foreign = await house.bearing(house.expose(3, principal=cleo), await house.token(cleo))
        assert foreign.status_code == 502  # it was tried: nobody listens there
        group.cancel_scope.cancel()
    monkeypatch.setattr(gateway_sites, "MAX_PORTS", 1)
    with pytest.raises(LimitReached):
        house.expose(1)
    house.expose(1, principal=BEN)
    grant = Grant(ANN)
    keys = [site.link(grant).rpartition("/")[2] for _ in range(gateway_sites.MAX_KEYS + 1)]
    assert site.redeem(keys[0]) is None
    assert site.redeem(keys[1]) is not None


@pytest.mark.parametrize(
    "head",
    [
        "GET http://evil.example/ HTTP/1.1\r\nHost: {host}",
        "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked",
        "POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked, identity",
        "GET / HTTP/1.1\r\nHost: {host}\r\nHost: {host}",
        "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade{upgrade}",
        "CONNECT {host} HTTP/1.1\r\nHost: {host}",
    ],
)
async def test_a_request_of_two_meanings_is_refused(house: House, service: Service, head: str):
    site = house.expose(service.port)
    upgrade = "\r\nUpgrade: websocket\r\nContent-Length: 4"
    line = head.format(host=site.url.split("/")[2], upgrade=upgrade)
    request = f"{line}\r\nAuthorization: Bearer {await house.token()}\r\n\r\n0\r\n\r\n"
    async with await house.raw(request.encode()) as stream:
        status = int((await stream.receive()).split()[1])
    assert status in (400, 501)
    assert service.connections == 0


async def test_requests_of_one_connection_come_to_the_box_by_several(
    house: House, service: Service
):
    host, token = house.expose(service.port).url.split("/")[2], await house.token()
    one = f"GET /1 HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n"
    two = f"GET /2 HTTP/1.1\r\nHost: {host}\r\n\r\n"
    async with await house.raw((one + two).encode()) as stream:
        said = b""
        while b" 401 " not in said:
            said += await stream.receive()
    assert said.startswith(b"HTTP/1.1 200 ")
    assert [asked.target for asked in service.asked] == ["/1"]


def switching(site: Site, *headers: str) -> bytes:
    """A request for a WebSocket."""
    lines = ["GET /chat HTTP/1.1", f"Host: {site.url.split('/')[2]}", "Upgrade: websocket"]
    more = ["Connection: Upgrade", "Sec-WebSocket-Key: x", *headers]
    return "\r\n".join([*lines, *more, "", ""]).encode()


SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: y\r\nSet-Cookie: a=1; Domain=localhost\r\n\r\nhello"
)


async def test_websockets_pass_as_bytes_for_who_may_come_in(house: House, service: Service):
    site, token = house.expose(service.port), await house.token()
    service.answer = SWITCHED
    for wrong in ("X: y", "Authorization: Bearer bxm_wrong"):
        async with await house.raw(switching(site, wrong)) as stream:
            assert (await rest(stream)).startswith(b"HTTP/1.1 401 ")
    assert service.connections == 0
    async with await house.raw(switching(site, f"Authorization: Bearer {token}")) as stream:
        said = b""
        while not said.endswith(b"hello"):
            said += await stream.receive()
        assert said.startswith(b"HTTP/1.1 101 ")
        assert b"Sec-WebSocket-Accept: y" in said
        assert b"Domain" not in said
        large = bytes(range(256)) * 4000
        async with anyio.create_task_group() as group:
            group.start_soon(stream.send, large)
            assert await exactly(stream, len(large)) == large
    await gone(house)
    (asked,) = service.asked
    assert asked.values("upgrade") == ["websocket"]
    assert asked.values("sec-websocket-key") == ["x"]
    assert token not in repr(asked)


async def test_a_page_opens_websockets_of_its_own_box_only(house: House, service: Service):
    site, grant = house.expose(service.port), await house.granted()
    service.answer = SWITCHED
    async with house.browser(site) as client:
        led = await house.let_in(client, site, grant)
    cookie = f"Cookie: {led.headers['set-cookie'].partition(';')[0]}"
    own = site.url.removesuffix("/")
    for origin, status in ((own, 101), (own.replace(ID, "box-bbbbbbbb"), 403)):
        async with await house.raw(switching(site, cookie, f"Origin: {origin}")) as stream:
            assert int((await stream.receive()).split()[1]) == status


async def test_a_refusal_to_switch_is_an_answer_like_any(house: House, service: Service):
    site, token = house.expose(service.port), await house.token()
    service.answer = b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno"
    async with await house.raw(switching(site, f"Authorization: Bearer {token}")) as stream:
        said = await rest(stream)
    assert said.startswith(b"HTTP/1.1 426 ")
    assert said.endswith(b"\r\n\r\nno")


@pytest.mark.parametrize("end", ["token", "port", "pause"])
async def test_an_open_connection_ends_with_what_let_it_in(
    house: House, service: Service, monkeypatch: pytest.MonkeyPatch, end: str
):
    site, token = house.expose(service.port), await house.token()
    service.answer = SWITCHED
    async with await house.raw(switching(site, f"Authorization: Bearer {token}")) as stream:
        while not (await stream.receive()).endswith(b"hello"):
            pass
        await house.sites.look()
        await stream.send(b"on")
        assert await exactly(stream, 2) == b"on"
        if end == "token":
            await house.tokens.revoke(token.split("_")[1])
            await house.sites.look()
        elif end == "port":
            await house.sites.close(ID, service.port)
        else:
            await house.sites.hang_up(ID)
        assert await rest(stream) == b""
    assert (house.sites.of(ID) == []) is (end == "port")


async def test_who_came_by_a_token_goes_when_its_issuer_takes_it_back(
    boxd: LocalBoxd, tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CLIENT_SECRET", SECRET)
    monkeypatch.setattr("box_mcp.identity.oauth.REMEMBERED", 0.0)
    with authorization_server() as issuer:
        settings = Issuer(
            issuer.url,
            AUDIENCE,
            introspection=f"{issuer.url}/introspect",
            client=CLIENT,
            secret=Credential(variable="CLIENT_SECRET"),
        )
        async with (
            identity(tmp_path / "theirs.db", settings) as theirs,
            serving(boxd, tmp_path, known=theirs) as house,
        ):
            token = issuer.issue()
            grant = await theirs.whose(token)
            assert grant is not None
            site = house.expose(service.port, principal=grant.principal)
            service.answer = SWITCHED
            async with house.browser(site) as client:
                led = await house.let_in(client, site, grant)
                cookie = f"Cookie: {led.headers['set-cookie'].partition(';')[0]}"
                async with await house.raw(switching(site, cookie)) as stream:
                    while not (await stream.receive()).endswith(b"hello"):
                        pass
                    issuer.web.fail(Trouble("/introspect", 500, times=2))
                    assert (await client.get("/")).status_code == 503
                    await house.sites.look()
                    await stream.send(b"on")
                    assert await exactly(stream, 2) == b"on", "nobody can tell"
                    issuer.revoke(token)
                    await house.sites.look()
                    assert await rest(stream) == b""
                assert (await client.get("/")).status_code == 401
                assert (await client.get(site.link(grant))).status_code == 401


async def test_without_tokens_whoever_is_at_this_machine_comes_in_but_no_page_does(
    boxd: LocalBoxd, tmp_path: Path, service: Service
):
    async with serving(boxd, tmp_path, tokens=False) as house:
        site = house.expose(service.port, principal=Principal("local"))
        async with house.browser(site) as client:
            assert (await client.get("/")).text == "done"
            foreign = await client.get("/", headers={"Sec-Fetch-Site": "cross-site"})
            assert foreign.status_code == 403


async def test_who_asks_a_port_is_told_at_once_and_then_now_and_then_with_how_often(
    house: House, service: Service
):
    site, token = house.expose(service.port), await house.token()
    name = token.split("_")[1]
    for _ in range(5):
        assert (await house.bearing(site, token)).status_code == 200
    first = PortUsed(ID, ANN, service.port, name, 1)
    assert house.told == [first]
    house.sites.tell(site, time.monotonic() + TOLD_EVERY - 1)
    assert house.told == [first]
    house.sites.tell(site, time.monotonic() + TOLD_EVERY)
    assert house.told == [first, replace(first, requests=4)]
    assert (await house.bearing(site, await house.token(BEN))).status_code == 404
    assert (await house.bearing(site, token)).status_code == 200
    await house.sites.close(ID, service.port)
    used = [event for event in house.told if isinstance(event, PortUsed)]
    assert used[2:] == [first], "the rest is told when it ends"


async def test_a_grant_that_only_reads_opens_no_port():
    sites = Sites(Domain("http", "localhost", 80))
    sites.expose(NOBODY, ID, 80, ANN)
    assert sites.owned(f"{ID}-80", Grant(ANN)) is not None
    for grant in (Grant(BEN), Grant(ANN, (Scope(reads=True),)), Grant(ANN, ())):
        assert sites.owned(f"{ID}-80", grant) is None
