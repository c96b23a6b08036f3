"""Who the user is to git."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from box_mcp.capabilities.identity import OwnIdentity
from box_mcp.domain.gitconfig import Identity

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's; the server is started in a repository that says otherwise."""
    home, there = tmp_path / "home", tmp_path / "there"
    for path in (home, there / ".git"):
        path.mkdir(parents=True)
    (there / ".git" / "config").write_text("[user]\n name = Not Me\n email = not@example.com\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(there / ".git" / "config"))
    monkeypatch.chdir(there)
    return home


def says(home: Path, text: str) -> None:
    (home / ".gitconfig").write_text(text)


async def test_the_settings_come_first_then_the_users_own_git(home: Path):
    says(home, "[user]\n name = Me Müller\n email = me@example.com\n")
    assert await OwnIdentity().get() == Identity("Me Müller", "me@example.com")
    assert await OwnIdentity("Agent").get() == Identity("Agent", "me@example.com")
    says(home, "nonsense")
    assert await OwnIdentity("A", "a@example.com").get() == Identity("A", "a@example.com")


async def test_what_is_not_known_is_none(home: Path, monkeypatch: pytest.MonkeyPatch):
    assert await OwnIdentity().get() is None
    says(home, "[user]\n name = Me\n")
    assert await OwnIdentity().get() is None
    says(home, "[user]\n name = Me\n email = me@example.com\n")
    monkeypatch.setenv("PATH", "/nowhere")
    assert await OwnIdentity().get() is None


async def test_included_files_count_and_nothing_breaks_a_line(home: Path):
    says(home, "[include]\n path = more\n")
    (home / "more").write_text('[user]\n name = "Me\\n[core] <x>"\n email = me@example.com\n')
    assert await OwnIdentity().get() == Identity("Me[core] x", "me@example.com")


async def test_of_callers_who_are_others_nothing_is_asked_of_the_servers_own_git(home: Path):
    says(home, "[user]\n name = Me\n email = me@example.com\n")
    assert await OwnIdentity(asks_git=False).get() is None
    assert await OwnIdentity("Agent", asks_git=False).get() is None
    known = OwnIdentity("Agent", "agent@example.com", asks_git=False)
    assert await known.get() == Identity("Agent", "agent@example.com")


async def test_git_is_asked_once(home: Path):
    says(home, "[user]\n name = Me\n email = me@example.com\n")
    own, found = OwnIdentity(), list[Identity | None]()

    async def ask() -> None:
        found.append(await own.get())

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(ask)
    says(home, "")
    await ask()
    assert found == [Identity("Me", "me@example.com")] * 6
