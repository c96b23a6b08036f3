"""Signed tokens of a real issuer, good and forged, as a server looks at them."""

from __future__ import annotations

import logging
import string
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from box_mcp.domain.access import Group, Scope
from box_mcp.domain.issuers import SKEW, Issuer
from box_mcp.errors import IdentityUnavailable
from box_mcp.identity.opening import identity
from tests.support.forged import ELSEWHERE, FORGED
from tests.support.issuer import AUDIENCE, AuthorizationServer, Signer, authorization_server
from tests.support.webserver import Trouble, redirect

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    from box_mcp.identity.verifying import Identity

pytestmark = pytest.mark.anyio

URL = AUDIENCE


@pytest.fixture
def server() -> Iterator[AuthorizationServer]:
    with authorization_server("/realms/team") as made:
        yield made


@pytest.fixture(scope="module")
def lasting() -> Iterator[AuthorizationServer]:
    """One for tests that change nothing of it."""
    with authorization_server() as made:
        yield made


@asynccontextmanager
async def believing(
    server: AuthorizationServer, path: Path, **settings: Any
) -> AsyncGenerator[Identity, None]:
    """An identity that believes a server's tokens."""
    issuer = Issuer(server.url, AUDIENCE, **settings)
    async with identity(path / "tokens.db", issuer, resource=URL) as made:
        yield made


@pytest.fixture(scope="module")
async def known(
    lasting: AuthorizationServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Identity, None]:
    """One that believes it."""
    async with believing(lasting, tmp_path_factory.mktemp("known")) as made:
        yield made


async def test_a_token_of_the_issuer_is_its_subjects(server: AuthorizationServer, tmp_path: Path):
    async with believing(server, tmp_path) as known:
        token = server.mint("alice@example.org", scope="openid boxes:files boxes:read profile")
        grant = await known.whose(token)
        assert grant is not None
        assert grant.principal == "oauth:alice@example.org"
        assert grant.scopes == (Scope(Group.FILES), Scope(None, reads=True))
        assert grant.expires is not None
        assert abs(grant.expires - time.time() - 3600 - SKEW) < 5
        assert grant.token.startswith("oauth:")
        assert grant.token.removeprefix("oauth:") not in token


@pytest.mark.parametrize(
    "algorithm", ["RS256", "RS384", "RS512", "PS256", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
)
async def test_every_common_signature_is_understood(algorithm: str, tmp_path: Path):
    with authorization_server() as server:
        server.rotate(algorithm)
        async with believing(server, tmp_path) as known:
            assert await known.whose(server.mint()) is not None


@pytest.mark.parametrize("kind", ["JWT", "at+jwt", "application/at+jwt", "AT+JWT", ...])
async def test_access_tokens_may_call_themselves_so_or_nothing(
    kind: object, lasting: AuthorizationServer, known: Identity
):
    assert await known.whose(lasting.signed(lasting.claims(), typ=kind)) is not None


@pytest.mark.parametrize("name", FORGED)
async def test_a_forged_token_is_nobodys(name: str, lasting: AuthorizationServer, known: Identity):
    good = lasting.mint()
    assert await known.whose(good) is not None
    assert await known.whose(FORGED[name](lasting)) is None
    assert await known.whose(good) is not None
    assert lasting.asked(ELSEWHERE) == 0


async def test_no_other_text_passes_for_a_token(lasting: AuthorizationServer, known: Identity):
    """Also none that differs only in bits which decoders may leave out."""
    token = lasting.mint(jti=...)
    alphabet = string.ascii_letters + string.digits + "-_"
    for place in (*range(0, len(token), 7), *range(len(token) - 4, len(token))):
        for letter in alphabet[place % 5 :: 5]:
            changed = f"{token[:place]}{letter}{token[place + 1 :]}"
            assert changed == token or await known.whose(changed) is None
    assert await known.whose(token) is not None


@pytest.mark.parametrize("claims", [{"exp": -50}, {"nbf": 59}, {"iat": 59}])
async def test_clocks_may_differ_by_a_minute(
    claims: dict[str, int], lasting: AuthorizationServer, known: Identity
):
    shifted = {name: int(time.time()) + by for name, by in claims.items()}
    assert await known.whose(lasting.mint(**shifted)) is not None


async def test_a_token_ends_while_it_is_remembered(
    lasting: AuthorizationServer, known: Identity, monkeypatch: pytest.MonkeyPatch
):
    grant = await known.whose(token := lasting.mint())
    assert grant is not None
    assert grant.expires is not None
    monkeypatch.setattr(time, "time", lambda: grant.expires)
    assert await known.whose(token) is None


async def test_an_audience_may_be_one_of_several(lasting: AuthorizationServer, known: Identity):
    assert await known.whose(lasting.mint(aud=["account", AUDIENCE])) is not None


async def test_who_somebody_is_may_stand_in_another_claim(
    lasting: AuthorizationServer, tmp_path: Path
):
    async with believing(lasting, tmp_path, subject="email") as known:
        grant = await known.whose(lasting.mint("7", email="alice@example.org"))
        assert grant is not None
        assert grant.principal == "oauth:alice@example.org"
        unproven = lasting.mint("7", email="alice@example.org", email_verified=False)
        assert await known.whose(unproven) is None


async def test_the_settings_say_what_others_scopes_are_here(
    lasting: AuthorizationServer, tmp_path: Path
):
    reads, shell = Scope(None, reads=True), Scope(Group.SHELL)
    settings = {"scopes": {"dev": (shell,)}, "always": (reads,)}
    async with believing(lasting, tmp_path, **settings) as known:
        dev = await known.whose(lasting.mint(scope=..., scp=["dev", "admin"]))
        other = await known.whose(lasting.mint(scope=["boxes:nothing", "admin", 7]))
        assert dev is not None
        assert other is not None
        assert dev.scopes == (shell, reads)
        assert other.scopes == (reads,)


async def test_who_has_none_of_our_scopes_is_known_and_may_do_nothing(
    lasting: AuthorizationServer, known: Identity
):
    grant = await known.whose(lasting.mint(scope="openid"))
    assert grant is not None
    assert grant.scopes == ()
    assert not any(grant.allows(group, reads=True) for group in Group)


async def test_what_clients_must_know_to_get_a_token(lasting: AuthorizationServer, tmp_path: Path):
    async with believing(lasting, tmp_path) as known:
        assert known.resource is not None
        assert (known.resource.url, known.resource.issuer) == (URL, lasting.url)
        assert known.resource.scopes == ("boxes",)
    async with believing(lasting, tmp_path, scopes={"dev": (Scope(),)}) as known:
        assert known.resource is not None
        assert known.resource.scopes == ("dev",)
    async with believing(lasting, tmp_path, always=(Scope(),)) as known:
        assert known.resource is not None
        assert known.resource.scopes == ()
    async with identity(tmp_path / "tokens.db") as known:
        assert known.resource is None


async def test_a_new_key_is_found_and_one_that_was_withdrawn_is_not_used(
    server: AuthorizationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("box_mcp.identity.keys.PAUSE", 0.0)
    async with believing(server, tmp_path) as known:
        known_already, old = server.mint(), server.mint()
        assert await known.whose(known_already) is not None
        server.rotate(keep=False)
        assert await known.whose(server.mint()) is not None
        assert await known.whose(old) is None
        assert await known.whose(known_already) is not None  # it is remembered for half a minute


async def test_keys_that_serve_are_not_fetched_again(
    server: AuthorizationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("box_mcp.identity.keys.PAUSE", 0.0)
    async with believing(server, tmp_path) as known:
        for _ in range(5):
            assert await known.whose(server.mint()) is not None
        assert server.asked("/keys") == 1


async def test_keys_without_names_are_tried(
    server: AuthorizationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("box_mcp.identity.keys.PAUSE", 0.0)
    async with believing(server, tmp_path) as known:
        server.keys = {"keys": [Signer.new().jwk(kid=None), server.signer.jwk(kid=None)]}
        assert await known.whose(server.signed(server.claims(), kid=...)) is not None
        server.rotate(keep=False)
        server.keys = {"keys": [server.signer.jwk(kid=None)]}
        assert await known.whose(server.signed(server.claims(), kid=...)) is not None


async def test_strangers_can_not_have_the_issuer_asked_often(
    server: AuthorizationServer, tmp_path: Path
):
    async with believing(server, tmp_path) as known:
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(known.whose, FORGED["stranger's key under its own name"](server))
        for name in ("stranger's key without a name", "stranger's key under the issuer's name"):
            assert await known.whose(FORGED[name](server)) is None
        assert server.asked("/keys") == 1


@pytest.mark.parametrize(
    "place",
    [
        "/.well-known/oauth-authorization-server/realms/team",
        "/.well-known/openid-configuration/realms/team",
        "/realms/team/.well-known/openid-configuration",
    ],
)
async def test_metadata_are_found_wherever_issuers_have_them(
    place: str, server: AuthorizationServer, tmp_path: Path
):
    server.metadata_at = place
    async with believing(server, tmp_path) as known:
        assert await known.whose(server.mint()) is not None


async def test_the_settings_may_say_where_the_keys_are(server: AuthorizationServer, tmp_path: Path):
    server.metadata_at = "/nowhere"
    async with believing(server, tmp_path, jwks=f"{server.url}/keys") as known:
        assert await known.whose(server.mint()) is not None


METADATA: dict[str, dict[str, Any]] = {
    "another issuer's": {"issuer": "https://other.example.org"},
    "without keys": {"jwks_uri": None},
    "keys in clear": {"jwks_uri": "http://keys.example.org/"},
    "keys in a file": {"jwks_uri": "file:///etc/passwd"},
}


@pytest.mark.parametrize("wrong", METADATA)
async def test_metadata_that_make_no_sense_are_not_believed(
    wrong: str, server: AuthorizationServer, tmp_path: Path
):
    server.metadata |= METADATA[wrong]
    async with believing(server, tmp_path) as known:
        with pytest.raises(IdentityUnavailable):
            await known.whose(server.mint())


TROUBLES: dict[str, Trouble] = {
    "fails": Trouble("GET", 500, times=99),
    "leads elsewhere": redirect("GET", "http://127.0.0.1:1/", times=99),
    "speaks nonsense": Trouble("GET", 200, body=b"<html>", times=99),
    "nests": Trouble("GET", 200, body=b'{"keys":' + b"[" * 9999, times=99),
    "never ends": Trouble("GET", 200, body=b" " * (600 * 1024), times=99),
    "has no keys": Trouble("/keys", 200, body=b'{"keys": []}', times=99),
    "breaks off": Trouble("GET", after=1, times=99),
}


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_without_any_key_nobody_can_tell_until_the_issuer_is_well(
    trouble: str, server: AuthorizationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("box_mcp.identity.keys.RETRY", 0.0)
    server.web.fail(TROUBLES[trouble])
    async with believing(server, tmp_path) as known:
        with pytest.raises(IdentityUnavailable, match=r"127\.0\.0\.1"):
            await known.whose(server.mint())
        server.web.heal()
        assert await known.whose(server.mint()) is not None


async def test_a_silent_issuer_holds_nobody_up_for_long(
    server: AuthorizationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("box_mcp.identity.keys.PATIENCE", 0.1)
    stall = server.web.fail(Trouble("GET", stall=True))
    async with believing(server, tmp_path) as known:
        with anyio.fail_after(3), pytest.raises(IdentityUnavailable):
            await known.whose(server.mint())
        stall.released.set()
        with anyio.fail_after(30):
            assert await known.whose(server.mint()) is not None


async def test_the_log_says_why_a_token_was_refused_and_nothing_of_it(
    lasting: AuthorizationServer, known: Identity, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG, "box_mcp")
    token = lasting.mint("mallory", aud="https://other.example.org")
    assert await known.whose(token) is None
    assert "its audience is not this server" in caplog.text
    assert "mallory" not in caplog.text
    assert token.rpartition(".")[2] not in caplog.text
