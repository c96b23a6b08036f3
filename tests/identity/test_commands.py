"""`box-mcp token`, as whoever runs a server types it."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from typing import TYPE_CHECKING

import anyio
import pytest
from click.testing import CliRunner

from box_mcp.cli import main
from box_mcp.identity.tokens import FILE, Tokens
from tests.support.commands import box_mcp

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

    from box_mcp.domain.access import Grant


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BOX_MCP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("BOX_MCP_CONFIG", raising=False)
    return tmp_path / "state"


def typed(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, ["token", *arguments])
    assert done.exit_code == code, done.output
    return done


def listed() -> list[dict[str, object]]:
    return json.loads(typed("list", "--json").stdout)


def test_a_token_is_printed_alone_so_that_it_can_be_piped():
    made = box_mcp("token", "create", "alice")
    assert re.fullmatch(r"bxm_[a-z0-9]{8}_[A-Za-z0-9_-]{43}\n", made.stdout)
    assert "alice" in made.stderr
    assert made.stdout.strip() not in made.stderr


def test_it_is_good_for_what_it_was_made_for(state: Path):
    text = typed("create", "alice", "--scope", "boxes:read", "--scope", "boxes:files").stdout

    async def look() -> Grant | None:
        tokens = Tokens(state / FILE)
        try:
            return await tokens.verify(text.strip())
        finally:
            await tokens.aclose()

    grant = anyio.run(look)
    assert grant is not None
    assert (grant.principal, *map(str, grant.scopes)) == ("alice", "boxes:read", "boxes:files")


@pytest.mark.parametrize(
    ("options", "days"), [([], 90), (["--days", "7"], 7), (["--forever"], None)]
)
def test_it_ends_after_ninety_days_unless_one_says(options: list[str], days: int | None):
    typed("create", "alice", *options)
    (token,) = listed()
    assert token["scopes"] == ["boxes"]
    if days is None:
        assert token["expires"] is None
    else:
        expires = datetime.fromisoformat(str(token["expires"])).timestamp()
        assert abs(expires - time.time() - days * 86400) < 60


def test_a_token_is_revoked_by_its_id_or_its_text():
    first, second = (typed("create", who).stdout.strip() for who in ("alice", "bob"))
    assert "of alice is revoked" in typed("revoke", first[4:12]).stdout
    assert "of bob is revoked" in typed("revoke", second).stdout
    assert [token["good"] for token in listed()] == [False, False]
    assert "There is no such token" in typed("revoke", "nobodys1", code=1).stderr


def test_the_list_shows_everything_but_secrets():
    text = typed("create", "alice", "--scope", "boxes:read").stdout.strip()
    typed("create", "bob", "--forever")
    typed("revoke", text[4:12])
    shown = typed("list").stdout
    rows = [line.split() for line in shown.splitlines()]
    assert rows[0] == [
        *("TOKEN", "PRINCIPAL", "SCOPES", "CREATED"),
        *("LAST", "USED", "GOOD", "UNTIL"),
    ]
    assert rows[1][1:3] == ["bob", "boxes"]
    assert rows[1][-3:] == ["never", "for", "ever"]
    assert rows[2][0:3] == [text[4:12], "alice", "boxes:read"]
    assert rows[2][-2] == "revoked"
    assert text[13:] not in shown + json.dumps(listed())


def test_without_tokens_the_list_says_how_to_make_one():
    assert "box-mcp token create" in typed("list").stdout
    assert listed() == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a b"], "principal"),
        ([""], "principal"),
        (["a" * 101], "principal"),
        (["alice", "--scope", "everything"], "boxes:GROUP"),
        (["alice", "--scope", "boxes:all"], "boxes:GROUP"),
    ],
)
def test_what_can_not_be_meant_is_refused(arguments: list[str], said: str):
    assert said in typed("create", *arguments, code=1).stderr
    assert listed() == []


@pytest.mark.parametrize("options", [["--days", "0"], ["--days", "7", "--forever"]])
def test_an_end_that_can_not_be_meant_is_refused(options: list[str]):
    typed("create", "alice", *options, code=2)
    assert listed() == []
