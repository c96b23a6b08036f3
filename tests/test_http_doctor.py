"""What the doctor says of a server over HTTP: no server is started, nobody is asked."""

from __future__ import annotations

import time
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any

import pytest

from box_mcp.domain.access import EVERYTHING, parse_principal
from box_mcp.findings import Finding, Verdict
from box_mcp.http_doctor import DAY, certificate, examine_http, listening, own_tokens
from box_mcp.identity.tokens import Tokens
from box_mcp.settings import HttpSettings, Settings
from tests.support.remote import certify

if TYPE_CHECKING:
    from pathlib import Path


def verdicts(found: list[Finding]) -> list[Verdict]:
    assert all(finding.remedy for finding in found if finding.verdict is not Verdict.OK)
    return [finding.verdict for finding in found]


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for a day, with its key."""
    folder = tmp_path_factory.mktemp("signed") / "own"
    certify(folder, "boxes.example.org")
    (folder / "key.pem").chmod(0o600)
    return folder


async def test_nothing_is_said_of_http_where_the_settings_say_nothing(tmp_path: Path):
    assert not [one async for one in examine_http(Settings(state_dir=tmp_path))]


@pytest.mark.parametrize(
    ("settings", "verdict"),
    [
        ({"listen": "127.0.0.1:8765"}, Verdict.OK),
        ({"listen": "unix:/run/box_mcp.sock", "auth": "none"}, Verdict.OK),
        ({"listen": "0.0.0.0:8765"}, Verdict.FAILURE),
        ({"listen": "0.0.0.0:8765", "trusted_proxies": ["10.0.0.0/8"]}, Verdict.OK),
        ({"listen": "0.0.0.0:8765", "auth": "none"}, Verdict.FAILURE),
        ({"listen": "nowhere"}, Verdict.FAILURE),
        ({"url": "boxes.example.org"}, Verdict.FAILURE),
        ({"metrics": "8.8.8.8:9464"}, Verdict.FAILURE),
        ({"metrics": "127.0.0.1:9464"}, Verdict.OK),
        ({"metrics": "token"}, Verdict.OK),
    ],
)
def test_where_the_server_would_not_start_the_doctor_says_so(
    settings: dict[str, Any], verdict: Verdict
):
    assert verdicts(list(listening(HttpSettings(**settings)))) == [verdict]


def test_an_address_without_tls_that_clients_are_given_is_told():
    http = HttpSettings(
        listen="0.0.0.0:80",
        url="http://boxes.example.org/mcp",
        trusted_proxies=[IPv4Network("10.0.0.0/8")],
    )
    assert verdicts(list(listening(http))) == [Verdict.OK, Verdict.WARNING]


@pytest.mark.parametrize(
    ("days", "verdict"),
    [(-30, Verdict.OK), (0, Verdict.WARNING), (2, Verdict.FAILURE)],
)
def test_it_is_told_how_long_a_certificate_is_good(signed: Path, days: int, verdict: Verdict):
    found = certificate(signed / "cert.pem", signed / "key.pem", time.time() + days * DAY)
    assert verdicts(list(found)) == [verdict]


def test_a_key_that_others_can_read_is_told(signed: Path):
    key = signed / "key.pem"
    key.chmod(0o640)
    try:
        found = list(certificate(signed / "cert.pem", key, time.time() - 30 * DAY))
    finally:
        key.chmod(0o600)
    assert verdicts(found) == [Verdict.OK, Verdict.WARNING]
    assert f"chmod 600 {key}" in found[1].remedy


def test_a_certificate_without_its_key_can_not_be_used(signed: Path, tmp_path: Path):
    found = certificate(signed / "cert.pem", tmp_path / "none", time.time())
    assert verdicts(list(found)) == [Verdict.FAILURE]


async def test_a_server_that_nobody_has_a_token_for_is_told_and_how_to_make_one(tmp_path: Path):
    path = tmp_path / "tokens.db"
    assert verdicts([await own_tokens(path, others=False)]) == [Verdict.WARNING]
    assert not path.exists()
    assert verdicts([await own_tokens(path, others=True)]) == [Verdict.OK]
    tokens = Tokens(path)
    made, _ = await tokens.create(parse_principal("alice"), [EVERYTHING], None)
    assert verdicts([await own_tokens(path, others=False)]) == [Verdict.OK]
    await tokens.revoke(made.id)
    assert verdicts([await own_tokens(path, others=False)]) == [Verdict.WARNING]
    await tokens.aclose()


async def test_a_file_of_tokens_that_can_not_be_read_is_a_failure(tmp_path: Path):
    (tmp_path / "tokens.db").mkdir()
    found = await own_tokens(tmp_path / "tokens.db", others=False)
    assert verdicts([found]) == [Verdict.FAILURE]


async def test_an_issuer_that_does_not_answer_is_told(tmp_path: Path):
    settings = Settings.model_validate(
        {"state_dir": tmp_path, "oauth": {"issuer": "http://127.0.0.1:9"}}
    )
    found = [one async for one in examine_http(settings)]
    assert verdicts(found) == [Verdict.OK, Verdict.OK, Verdict.FAILURE]
