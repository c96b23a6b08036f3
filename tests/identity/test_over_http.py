"""The real server over HTTP with a real issuer: whose each request is. It needs no engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from pydantic import AnyUrl

from tests.support.client import ERAS, MODERN, text
from tests.support.commands import box_mcp
from tests.support.engines import IMAGE
from tests.support.forged import FORGED
from tests.support.http import HttpServer, serving_http
from tests.support.issuer import AuthorizationServer, authorization_server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

pytestmark = pytest.mark.anyio

LIST: dict[str, Any] = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/list",
    "params": {
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": {},
        }
    },
}
HEADERS = {
    "Accept": "application/json, text/event-stream",
    "MCP-Protocol-Version": MODERN,
    "Mcp-Method": "tools/list",
}


@pytest.fixture(scope="module")
def issuer() -> Iterator[AuthorizationServer]:
    with authorization_server("/team") as made:
        yield made


@pytest.fixture(scope="module")
async def here(
    shared_env: dict[str, str], issuer: AuthorizationServer
) -> AsyncGenerator[HttpServer, None]:
    env = {**shared_env, "DOCKER_HOST": "unix:///nowhere.sock"}
    async with serving_http(env, oauth__issuer=issuer.url) as server:
        yield server


class Kept:
    """What a client remembers of an issuer."""

    tokens: OAuthToken | None = None
    client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


class Browser:
    """Where a person agrees, and is sent back to the client."""

    def __init__(self) -> None:
        self._came_back: dict[str, str] = {}

    async def go(self, url: str) -> None:
        async with httpx2.AsyncClient(trust_env=False) as http:
            answer = await http.get(url)
        self._came_back = dict(parse_qsl(urlsplit(answer.headers["location"]).query))

    async def come_back(self) -> AuthorizationCodeResult:
        return AuthorizationCodeResult(**self._came_back)


@pytest.mark.parametrize("mode", ERAS)
async def test_the_sdks_client_gets_a_token_by_itself(
    mode: str, here: HttpServer, issuer: AuthorizationServer
):
    kept, browser = Kept(), Browser()
    provider = OAuthClientProvider(
        here.url,
        OAuthClientMetadata(redirect_uris=[AnyUrl("http://127.0.0.1:1/callback")]),
        kept,
        browser.go,
        browser.come_back,
    )
    async with (
        httpx2.AsyncClient(auth=provider, trust_env=False) as http,
        Client(streamable_http_client(here.url, http_client=http), mode=mode) as client,
    ):
        assert len((await client.list_tools()).tools) > 30
    assert kept.tokens is not None
    assert kept.tokens.scope == "boxes"


async def test_who_has_no_token_is_told_where_one_gets_it(
    here: HttpServer, issuer: AuthorizationServer
):
    async with here.raw() as http:
        refused = await http.post("/mcp", json=LIST, headers=HEADERS)
        assert refused.status_code == 401
        told = refused.headers["www-authenticate"]
        assert 'scope="boxes"' in told
        place = told.partition('resource_metadata="')[2].partition('"')[0]
        metadata = (await http.get(urlsplit(place).path)).json()
    assert metadata["resource"] == here.url
    assert metadata["authorization_servers"] == [issuer.url]


async def listed(here: HttpServer, token: str) -> httpx2.Response:
    async with here.raw(token) as http:
        return await http.post("/mcp", json=LIST, headers=HEADERS)


async def test_a_token_must_be_for_this_very_server(here: HttpServer, issuer: AuthorizationServer):
    assert (await listed(here, issuer.mint(aud=here.url))).status_code == 200
    for audience in (here.base, f"{here.url}/", "https://boxes.example.org/mcp"):
        assert (await listed(here, issuer.mint(aud=audience))).status_code == 401


async def test_all_bad_tokens_get_the_same_answer(here: HttpServer, issuer: AuthorizationServer):
    """Also one that was good a moment ago."""
    env = {"BOX_MCP_STATE_DIR": str(here.state)}
    revoked = box_mcp("token", "create", "alice", env=env).stdout.strip()
    assert (await listed(here, revoked)).status_code == 200
    box_mcp("token", "revoke", revoked, env=env)
    good = await here.token("alice")
    bad = [
        revoked,
        good.swapcase(),
        f"{good[:-1]}{'a' if good[-1] != 'a' else 'b'}",
        "nonsense",
        issuer.mint(aud=here.url, exp=1),
        issuer.mint(),
        *(FORGED[name](issuer) for name in ("no signature, alg none", "claims deeply nested")),
    ]
    answers = [await listed(here, token) for token in bad]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1
    assert len({answer.headers["www-authenticate"] for answer in answers}) == 1


async def test_what_a_token_is_for_comes_with_it(here: HttpServer, issuer: AuthorizationServer):
    token = issuer.mint("alice", aud=here.url, scope="boxes:read")
    async with here.client("", token=token) as client:
        with pytest.raises(MCPError, match="boxes:shell"):
            await client.call_tool("shell_run", {"command": "id"})


async def test_the_log_has_no_token(here: HttpServer, issuer: AuthorizationServer):
    token = issuer.mint(aud=here.url)
    await listed(here, token)
    await listed(here, issuer.mint("mallory"))
    log = here.log.read_text()
    assert token.rpartition(".")[2] not in log
    assert "mallory" not in log


@pytest.mark.parametrize("mode", ERAS)
async def test_callers_with_tokens_run_no_image_that_the_settings_do_not_name(
    mode: str, here: HttpServer
):
    async with here.client("alice", mode) as client:
        for image in ("box-mcp:server", "sha256:0123456789ab", "private/billing:latest"):
            refused = await client.call_tool("box_create", {"image": image})
            assert refused.is_error
            assert f"image {image!r} (allowed: {IMAGE})" in text(refused)
        made = await client.call_tool("box_create", {"image": IMAGE})
        assert "allowed" not in text(made), "there is no engine, but for that it is let through"
