"""Tokens that a real issuer is asked about."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from box_mcp.domain.access import EVERYTHING, Grant
from box_mcp.domain.issuers import Issuer
from box_mcp.domain.names import Principal
from box_mcp.domain.routes import Credential
from box_mcp.errors import IdentityUnavailable
from box_mcp.identity.asking import Asker
from box_mcp.identity.opening import identity
from box_mcp.identity.tokens import Tokens
from tests.support.issuer import (
    AUDIENCE,
    CLIENT,
    SECRET,
    AuthorizationServer,
    authorization_server,
)
from tests.support.webserver import Trouble

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    from box_mcp.identity.verifying import Identity

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[AuthorizationServer]:
    monkeypatch.setenv("CLIENT_SECRET", SECRET)
    with authorization_server() as made:
        yield made


@asynccontextmanager
async def asking(
    server: AuthorizationServer, path: Path, **settings: Any
) -> AsyncGenerator[Identity, None]:
    """An identity that asks a server about each token."""
    wanted: dict[str, Any] = {
        "introspection": f"{server.url}/introspect",
        "client": CLIENT,
        "secret": Credential(variable="CLIENT_SECRET"),
        **settings,
    }
    async with identity(path / "tokens.db", Issuer(server.url, AUDIENCE, **wanted)) as made:
        yield made


async def test_the_issuer_says_whose_a_token_is(server: AuthorizationServer, tmp_path: Path):
    async with asking(server, tmp_path) as known:
        grant = await known.whose(server.issue("alice", scope="boxes:read"))
        assert grant is not None
        assert grant.principal == "oauth:alice"
        assert grant.only_reads
        assert server.asked("/keys") == server.asked("/.well-known/oauth-authorization-server") == 0


WRONG: dict[str, dict[str, Any]] = {
    "not active": {"active": False},
    "active as a word": {"active": "true"},
    "active as a number": {"active": 1},
    "another server's": {"aud": "https://other.example.org/mcp"},
    "anybody's": {"aud": ...},
    "another issuer's": {"iss": "https://other.example.org"},
    "expired": {"exp": 1},
    "end a text": {"exp": "tomorrow"},
    "not good yet": {"nbf": 9999999999},
    "of nobody": {"sub": ...},
    "bound to a key": {"cnf": {"x5t#S256": "A4DtL2JmUMhAsvJj5tKyn64SqzmuXbMrJa0n761y5v0"}},
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_what_the_issuer_says_of_a_token_is_judged(
    wrong: str, server: AuthorizationServer, tmp_path: Path
):
    async with asking(server, tmp_path) as known:
        assert await known.whose(server.issue(**WRONG[wrong])) is None
        assert await known.whose(server.issue()) is not None


async def test_a_token_that_the_issuer_does_not_know_is_nobodys(
    server: AuthorizationServer, tmp_path: Path
):
    async with asking(server, tmp_path) as known:
        for token in ("nobodys", server.mint(), "a" * 8192, "~._-/+=="):
            assert await known.whose(token) is None
        assert server.asked("/introspect") == 4


@pytest.mark.parametrize("token", ["a" * 8193, "a b", "a\n", "a\r\nX: y", "\u00e9", "", "a=b", "="])
async def test_what_is_no_token_is_not_asked_about(
    token: str, server: AuthorizationServer, tmp_path: Path
):
    async with asking(server, tmp_path) as known:
        assert await known.whose(token) is None
        assert server.asked("/introspect") == 0


async def test_the_issuer_never_hears_of_our_own_tokens(
    server: AuthorizationServer, tmp_path: Path
):
    async with asking(server, tmp_path) as known:
        for token in ("bxm_", f"bxm_{'a' * 8}_{'b' * 43}", f"bxm_{'a' * 8}_{'b' * 42}"):
            assert await known.whose(token) is None
        assert server.asked("/introspect") == 0


async def test_a_token_is_asked_about_once_in_half_a_minute(
    server: AuthorizationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with asking(server, tmp_path) as known:
        token = server.issue()
        grants = [await known.whose(token) for _ in range(3)]
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(known.whose, server.issue("bob"))
                group.start_soon(known.whose, token)
        assert None not in grants
        assert server.asked("/introspect") == 21
        server.revoke(token)
        assert await known.whose(token) is not None
        monkeypatch.setattr("box_mcp.identity.oauth.REMEMBERED", 0.0)
        other = server.issue()
        assert await known.whose(other) is not None
        server.revoke(other)
        assert await known.whose(other) is None


async def test_what_a_token_granted_stands_until_its_issuer_takes_it_back(
    server: AuthorizationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("box_mcp.identity.oauth.REMEMBERED", 0.0)
    async with asking(server, tmp_path) as known:
        first, other = server.issue(), server.issue()
        granted, others = await known.whose(first), await known.whose(other)
        assert granted is not None
        assert others is not None
        assert await known.stands(granted)
        server.revoke(first)
        for _ in range(2):
            assert not await known.stands(granted)
        assert await known.stands(others)
        server.web.fail(Trouble("/introspect", 500))
        with pytest.raises(IdentityUnavailable):
            await known.stands(others)
        assert await known.stands(others)
        assert not await known.stands(Grant(others.principal, token="oauth:0123456789abcdef"))


async def test_who_asks_for_the_same_token_at_once_shares_the_answer(
    server: AuthorizationServer, tmp_path: Path
):
    async with asking(server, tmp_path) as known:
        token = server.issue()
        grants: list[Grant | None] = []

        async def ask() -> None:
            grants.append(await known.whose(token))

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(ask)
        assert len(grants) == 20
        assert None not in grants
        assert server.asked("/introspect") == 1


async def test_who_gives_up_takes_nobody_else_along(server: AuthorizationServer, tmp_path: Path):
    async with asking(server, tmp_path) as known:
        token = server.issue()
        stall = server.web.fail(Trouble("/introspect", stall=True))
        async with anyio.create_task_group() as group:
            group.start_soon(known.whose, token)
            await anyio.to_thread.run_sync(stall.met.wait, 10)
            group.cancel_scope.cancel()
        stall.released.set()
        with anyio.fail_after(30):
            assert await known.whose(token) is not None


async def test_only_so_many_tokens_are_remembered(
    server: AuthorizationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("box_mcp.identity.oauth.MAX_REMEMBERED", 2)
    async with asking(server, tmp_path) as known:
        first, *others = [server.issue() for _ in range(3)]
        for token in (first, *others, others[1]):
            assert await known.whose(token) is not None
        assert server.asked("/introspect") == 3
        assert await known.whose(first) is not None
        assert server.asked("/introspect") == 4


TROUBLES: dict[str, Trouble] = {
    "fails": Trouble("/introspect", 500),
    "does not know us": Trouble("/introspect", 401),
    "leads elsewhere": Trouble("/introspect", 307, {"Location": "http://127.0.0.1:1/"}),
    "says nothing": Trouble("/introspect", 200),
    "says a list": Trouble("/introspect", 200, body=b'[{"active": true}]'),
    "says too much": Trouble("/introspect", 200, body=b" " * (600 * 1024)),
    "nests": Trouble("/introspect", 200, body=b'{"active":' * 9999),
    "packs": Trouble("/introspect", 200, {"Content-Encoding": "gzip"}, body=b"\x1f\x8b\x08"),
    "breaks off": Trouble("/introspect", after=1),
}


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_while_the_issuer_is_not_well_nobody_can_tell(
    trouble: str, server: AuthorizationServer, tmp_path: Path
):
    async with asking(server, tmp_path) as known:
        token = server.issue()
        server.web.fail(TROUBLES[trouble])
        with pytest.raises(IdentityUnavailable) as told:
            await known.whose(token)
        assert token not in told.value.explain()
        assert SECRET not in told.value.explain()
        assert await known.whose(token) is not None


async def test_tokens_of_our_own_are_good_while_the_issuer_is_away(
    server: AuthorizationServer, tmp_path: Path
):
    async with asking(server, tmp_path) as known:
        server.web.fail(Trouble("", 503, times=99))
        tokens = Tokens(tmp_path / "tokens.db")
        _, text = await tokens.create(Principal("alice"), [EVERYTHING], None)
        await tokens.aclose()
        assert await known.whose(text) is not None
        with pytest.raises(IdentityUnavailable):
            await known.whose("opaque")


async def test_a_secret_that_was_changed_is_read_anew(server: AuthorizationServer, tmp_path: Path):
    file = tmp_path / "secret"
    file.write_text("the old one\n")
    async with asking(server, tmp_path, secret=Credential(file=str(file))) as known:
        with pytest.raises(IdentityUnavailable, match="answered 401"):
            await known.whose(server.issue())
        file.write_text(f"{SECRET}\n")
        assert await known.whose(server.issue()) is not None


async def test_without_its_secret_the_issuer_is_not_asked(
    server: AuthorizationServer, tmp_path: Path
):
    async with asking(server, tmp_path, secret=Credential(variable="NO_SUCH_VARIABLE")) as known:
        with pytest.raises(IdentityUnavailable):
            await known.whose(server.issue())
        assert server.asked("/introspect") == 0


async def test_a_silent_issuer_is_given_up(server: AuthorizationServer):
    server.web.fail(Trouble("/keys", stall=True))
    asker = Asker(server.url, timeout=0.1)
    with anyio.fail_after(30), pytest.raises(IdentityUnavailable, match=r"within 0\.1 s"):
        await asker.ask(f"{server.url}/keys")
    await asker.aclose()


async def test_only_so_many_questions_are_asked_at_once(
    server: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("box_mcp.identity.asking.MAX_AT_ONCE", 1)
    stall = server.web.fail(Trouble("/keys", stall=True))
    asker, other = Asker(server.url), Asker(server.url)
    async with anyio.create_task_group() as group:
        group.start_soon(asker.ask, f"{server.url}/keys")
        await anyio.to_thread.run_sync(stall.met.wait, 10)
        group.start_soon(asker.ask, f"{server.url}/keys")
        for _ in range(3):  # as long as a second question would take
            await other.ask(f"{server.url}{server.metadata_at}")
        assert server.asked("/keys") == 1
        stall.released.set()
    assert server.asked("/keys") == 2
    await asker.aclose()
    await other.aclose()
