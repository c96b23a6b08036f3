"""Tokens of our own, as several processes see them."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from contextlib import asynccontextmanager, closing
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.domain.access import EVERYTHING, Grant, Group, Scope
from box_mcp.domain.names import Principal
from box_mcp.errors import IdentityUnavailable
from box_mcp.identity.opening import identity
from box_mcp.identity.tokens import DAY, KEPT, Tokens
from box_mcp.identity.verifying import MAX_TOKEN, Identity

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

pytestmark = pytest.mark.anyio

ALICE, BOB = Principal("alice"), Principal("bob@example.org")


@asynccontextmanager
async def two_processes(path: Path) -> AsyncGenerator[tuple[Tokens, Tokens], None]:
    """The same file, as a server and a command have it."""
    one, two = Tokens(path / "tokens.db"), Tokens(path / "tokens.db")
    try:
        yield one, two
    finally:
        await one.aclose()
        await two.aclose()


def files_in(path: Path) -> list[Path]:
    return sorted(path.iterdir())


async def test_a_token_grants_what_it_was_made_for(tmp_path: Path):
    async with two_processes(tmp_path) as (server, command):
        scopes = (Scope(Group.FILES, reads=True), Scope(Group.GIT))
        end = time.time() + 60
        token, text = await command.create(BOB, scopes, end)
        grant = await server.verify(text)
        assert grant is not None
        assert (grant.principal, grant.scopes, grant.token) == (BOB, scopes, token.id)
        assert grant.expires == end


async def test_a_token_is_known_by_its_form(tmp_path: Path):
    async with two_processes(tmp_path) as (server, _):
        _, text = await server.create(ALICE, [EVERYTHING], None)
        prefix, name, secret = text.split("_", 2)
        assert (prefix, len(name), len(secret)) == ("bxm", 8, 43)
        assert server.knows(text)
        assert server.knows("bxm_")
        assert not server.knows("eyJhbGciOiJFUzI1NiJ9.e30.")


async def test_a_token_that_is_revoked_elsewhere_is_refused_at_once(tmp_path: Path):
    async with two_processes(tmp_path) as (server, command):
        made = [await command.create(ALICE, [EVERYTHING], None) for _ in range(2)]
        (first, text), (_, other) = made
        assert await server.verify(text) is not None
        revoked = await command.revoke(first.id)
        assert revoked is not None
        assert await server.verify(text) is None
        assert await server.verify(other) is not None
        assert await command.revoke(first.id) == revoked
        assert await command.revoke("nobodys1") is None


async def test_what_was_granted_stands_until_its_token_is_revoked_or_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with identity(tmp_path / "tokens.db") as known:
        tokens = Tokens(tmp_path / "tokens.db")
        first, text = await tokens.create(ALICE, [EVERYTHING], None)
        second, other = await tokens.create(ALICE, [EVERYTHING], time.time() + 60)
        grants = [await known.whose(text), await known.whose(other)]
        assert [await known.stands(grant) for grant in grants if grant] == [True, True]
        await tokens.revoke(first.id)
        assert [await known.stands(grant) for grant in grants if grant] == [False, True]
        monkeypatch.setattr(time, "time", lambda: second.expires)
        assert [await known.stands(grant) for grant in grants if grant] == [False, False]
        assert not await known.stands(Grant(ALICE, token="nobodys1"))
        assert await known.stands(Grant(ALICE, token="oauth:0123456789abcdef"))
        await tokens.aclose()


async def test_an_expired_token_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with two_processes(tmp_path) as (server, _):
        token, text = await server.create(ALICE, [EVERYTHING], time.time() + 60)
        assert await server.verify(text) is not None
        monkeypatch.setattr(time, "time", lambda: token.expires)
        assert await server.verify(text) is None


async def test_a_token_with_any_letter_changed_is_nobodys(tmp_path: Path):
    async with identity(tmp_path / "tokens.db") as known:
        tokens = Tokens(tmp_path / "tokens.db")
        (_, text), (_, other) = [await tokens.create(ALICE, [EVERYTHING], None) for _ in range(2)]
        for place, letter in enumerate(text):
            for changed in {"a", "Z", "_", "-", "0", letter.swapcase()} - {letter}:
                assert await known.whose(text[:place] + changed + text[place + 1 :]) is None
        swapped = text[:13] + other[13:]
        for wrong in (swapped, text[:-1], f"{text}A", f" {text}", f"{text}\n", f"{text}=", ""):
            assert await known.whose(wrong) is None
        assert await known.whose(text) is not None
        await tokens.aclose()


@given(text=st.text() | st.from_regex(r"bxm_[a-z0-9]{8}_[A-Za-z0-9_-]{43}", fullmatch=True))
async def test_texts_of_strangers_are_nobodys(tmp_path_factory: pytest.TempPathFactory, text: str):
    path = tmp_path_factory.getbasetemp() / "strangers.db"
    tokens = Tokens(path)
    assert await Identity([tokens]).whose(text) is None
    await tokens.aclose()


async def test_long_tokens_are_not_looked_at(tmp_path: Path):
    async with identity(tmp_path / "tokens.db") as known:
        assert await known.whose("bxm_" + "a" * MAX_TOKEN) is None


async def test_the_file_has_no_secret_and_is_its_owners_alone(tmp_path: Path):
    async with two_processes(tmp_path) as (server, command):
        _, text = await command.create(ALICE, [EVERYTHING], None)
        assert await server.verify(text) is not None
        secret = text.split("_", 2)[2]
        files = files_in(tmp_path)
        assert [file.name for file in files] == ["tokens.db", "tokens.db-shm", "tokens.db-wal"]
        for file in files:
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        held = b"".join(file.read_bytes() for file in files)
        assert secret.encode() not in held
        assert sha256(secret.encode()).digest() in held
        assert secret not in repr(await command.list())
        assert "digest" not in repr(await command.list())


async def test_the_day_of_the_last_use_is_kept_and_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with two_processes(tmp_path) as (server, command):
        _, text = await command.create(ALICE, [EVERYTHING], None)
        assert [token.used for token in await command.list()] == [None]
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now)
        assert await server.verify(text) is not None
        assert [token.used for token in await command.list()] == [now // DAY * DAY]
        with closing(sqlite3.connect(tmp_path / "tokens.db")) as watch:
            (before,) = watch.execute("PRAGMA data_version").fetchone()
            for _ in range(10):
                assert await server.verify(text) is not None
            assert watch.execute("PRAGMA data_version").fetchone() == (before,)
            monkeypatch.setattr(time, "time", lambda: now + DAY)
            assert await server.verify(text) is not None
            assert watch.execute("PRAGMA data_version").fetchone() != (before,)


async def test_a_token_is_good_while_its_use_can_not_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("box_mcp.identity.tokens.WRITE_WITHIN", 0.05)
    async with two_processes(tmp_path) as (server, command):
        _, text = await command.create(ALICE, [EVERYTHING], None)
        await server.ready()
        with closing(sqlite3.connect(tmp_path / "tokens.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            assert await server.verify(text) is not None
            assert await server.verify(text) is not None
        assert caplog.text.count("is not kept") == 1
        assert await command.verify(text) is not None  # and it is written
        with closing(sqlite3.connect(tmp_path / "tokens.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            async with identity(tmp_path / "tokens.db") as known:
                assert await known.whose(text) is not None
        assert caplog.text.count("is not kept") == 1


async def test_tokens_are_listed_for_a_while_after_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with two_processes(tmp_path) as (server, command):
        now = time.time()
        gone, _ = await command.create(ALICE, [EVERYTHING], None)
        short, _ = await command.create(ALICE, [EVERYTHING], now + 60)
        lasting, _ = await command.create(ALICE, [EVERYTHING], None)
        await command.revoke(gone.id)
        monkeypatch.setattr(time, "time", lambda: now + KEPT - DAY)
        later, _ = await command.create(BOB, [EVERYTHING], None)
        ids = [token.id for token in await server.list()]
        assert ids == [later.id, lasting.id, short.id, gone.id]
        monkeypatch.setattr(time, "time", lambda: now + KEPT + DAY)
        last, _ = await command.create(BOB, [EVERYTHING], None)
        assert [token.id for token in await server.list()] == [last.id, later.id, lasting.id]


async def test_without_its_file_a_server_believes_nobody(tmp_path: Path):
    async with two_processes(tmp_path) as (server, command):
        _, text = await command.create(ALICE, [EVERYTHING], None)
        assert await server.verify(text) is not None
        await command.aclose()
        for file in files_in(tmp_path):
            file.unlink()
        assert await server.verify(text) is None


async def test_a_file_that_was_damaged_and_replaced_is_read_anew(tmp_path: Path):
    async with two_processes(tmp_path) as (server, command):
        _, text = await command.create(ALICE, [EVERYTHING], None)
        assert await server.verify(text) is not None
        await server.aclose()
        await command.aclose()
        (tmp_path / "tokens.db").write_bytes(b"nonsense" * 1000)
        assert await server.verify(text) is None
        _, new = await command.create(BOB, [EVERYTHING], None)
        assert await server.verify(new) is not None
        assert stat.S_IMODE((tmp_path / "tokens.db").stat().st_mode) == 0o600


async def test_a_file_that_can_not_be_read_is_told_as_such(tmp_path: Path):
    (tmp_path / "tokens.db").mkdir()
    tokens = Tokens(tmp_path / "tokens.db")
    with pytest.raises(IdentityUnavailable) as told:
        await tokens.verify(f"bxm_{'a' * 8}_{'b' * 43}")
    assert os.fspath(tmp_path) not in told.value.explain()


async def test_a_token_costs_a_fraction_of_a_millisecond(tmp_path: Path):
    async with two_processes(tmp_path) as (server, _):
        _, text = await server.create(ALICE, [EVERYTHING], None)
        await server.verify(text)
        took: list[float] = []
        for _ in range(200):
            begun = time.perf_counter()
            await server.verify(text)
            took.append(time.perf_counter() - begun)
        assert sorted(took)[20] < 0.0003
