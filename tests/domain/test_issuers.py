"""What an issuer says of a token, and what that grants; with whatever else it could say."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.domain.access import EVERYTHING, Grant, foreign, known_scopes, parse_scope
from box_mcp.domain.issuers import (
    SKEW,
    Issuer,
    Untrusted,
    granted,
    parse_endpoint,
    parse_object,
)
from box_mcp.errors import InvalidArgument

NOW = 1_800_000_000.0
HERE, THERE = "https://boxes.example.org/mcp", "https://id.example.org"
ISSUER = Issuer(THERE, HERE)
GOOD = {"iss": THERE, "aud": HERE, "sub": "alice", "exp": NOW + 60, "scope": "boxes"}

LITERALS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
ANY = st.recursive(
    LITERALS | st.sampled_from([THERE, HERE, "alice", "boxes", NOW]),
    lambda some: (
        st.lists(some, max_size=4) | st.dictionaries(st.text(max_size=5), some, max_size=3)
    ),
    max_leaves=8,
)
CLAIMS = ("iss", "aud", "sub", "exp", "nbf", "iat", "scope", "scp", "cnf", "email_verified")


def judged(claims: dict[str, Any], *, signed: bool = True) -> Grant:
    return granted(ISSUER, claims, NOW, "a token", signed=signed)


def test_a_good_token_grants_what_it_says():
    assert judged(GOOD) == Grant(foreign("oauth", "alice"), (EVERYTHING,), "a token", NOW + 120)


@given(st.dictionaries(st.sampled_from(CLAIMS), ANY), st.booleans())
def test_whatever_is_claimed_it_is_granted_or_not_trusted(claims: dict[str, Any], signed: bool):
    try:
        grant = judged({**GOOD, **claims}, signed=signed)
    except Untrusted:
        return
    assert grant.principal.startswith("oauth:")
    assert HERE in (claims.get("aud", HERE), *(claims.get("aud") or ()))
    assert claims.get("iss", THERE) == THERE or (not signed and claims["iss"] is None)
    assert claims.get("cnf") is None
    assert grant.expires is None or grant.expires > NOW


@pytest.mark.parametrize("missing", ["iss", "exp"])
def test_an_issuer_that_was_asked_need_not_say_what_is_clear(missing: str):
    claims = {name: value for name, value in GOOD.items() if name != missing}
    assert judged(claims, signed=False).principal == "oauth:alice"
    with pytest.raises(Untrusted):
        judged(claims)


@pytest.mark.parametrize("missing", ["aud", "sub"])
def test_whom_and_what_a_token_is_for_is_always_said(missing: str):
    claims = {name: value for name, value in GOOD.items() if name != missing}
    with pytest.raises(Untrusted):
        judged(claims, signed=False)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(
    "times", [{"exp": NOW - SKEW}, {"nbf": NOW + SKEW + 1}, {"iat": NOW + SKEW + 1}]
)
def test_times_are_kept_to_the_second(times: dict[str, float], signed: bool):
    with pytest.raises(Untrusted):
        judged({**GOOD, **times}, signed=signed)
    nearly = {name: value - 1 if name != "exp" else value + 1 for name, value in times.items()}
    judged({**GOOD, **nearly}, signed=signed)


@pytest.mark.parametrize("said", [False, "false", "False", "", 0, [], {}])
def test_an_address_that_nobody_looked_at_names_nobody(said: object):
    issuer = replace(ISSUER, subject="email")
    claims = {**GOOD, "email": "alice@example.org"}
    for good in ({}, {"email_verified": True}, {"email_verified": "true"}):
        grant = granted(issuer, {**claims, **good}, NOW, "a token", signed=True)
        assert grant.principal == "oauth:alice@example.org"
    with pytest.raises(Untrusted):
        granted(issuer, {**claims, "email_verified": said}, NOW, "a token", signed=True)


@given(st.text(), st.text())
def test_two_subjects_are_never_one_principal(one: str, other: str):
    assert (foreign("oauth", one) == foreign("oauth", other)) == (one == other)


def test_nobody_can_be_called_as_the_hash_of_another():
    odd = foreign("oauth", "Zo\u00eb / Ops")
    assert odd.startswith("oauth:sha256:")
    assert foreign("oauth", odd.removeprefix("oauth:")) != odd


def test_half_a_character_names_somebody_as_well():
    assert foreign("oauth", "\ud800") != foreign("oauth", "\ud801")


def test_scopes_that_nobody_knows_are_for_nothing():
    words = ["openid", "boxes:files", "boxes:", "boxes:all", "boxes:read:files", "boxes:files", "x"]
    assert known_scopes(words) == (parse_scope("boxes:files"),)


@given(st.binary(max_size=60) | ANY.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_object_of_json_is_not_believed(text: bytes):
    with suppress(Untrusted):
        assert parse_object(text) == json.loads(text)


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, b'{"a":NaN}', b"\xff", b""]
)
def test_what_is_hard_to_parse_is_not_trusted(text: bytes):
    with pytest.raises(Untrusted):
        parse_object(text)


@pytest.mark.parametrize(
    ("url", "places"),
    [
        (
            "https://id.example.org",
            [
                "https://id.example.org/.well-known/oauth-authorization-server",
                "https://id.example.org/.well-known/openid-configuration",
            ],
        ),
        (
            "https://id.example.org/realms/a/",
            [
                "https://id.example.org/.well-known/oauth-authorization-server/realms/a",
                "https://id.example.org/.well-known/openid-configuration/realms/a",
                "https://id.example.org/realms/a/.well-known/openid-configuration",
            ],
        ),
    ],
)
def test_an_issuers_metadata_are_looked_for_where_mcp_says(url: str, places: list[str]):
    assert Issuer(url, HERE).metadata == places


@pytest.mark.parametrize(
    "text",
    [
        "http://id.example.org",
        "ftp://id.example.org",
        "id.example.org",
        "https://",
        "https://me:secret@id.example.org",
        "https://id.example.org/#a",
        "https://id.example.org:port",
    ],
)
def test_keys_and_secrets_go_by_safe_urls_only(text: str):
    with pytest.raises(InvalidArgument):
        parse_endpoint(text, "url")


def test_issuers_have_no_query_and_their_endpoints_may():
    with pytest.raises(InvalidArgument):
        parse_endpoint("https://id.example.org?a=b", "issuer", query=False)
    assert parse_endpoint("https://id.example.org/k?a=b", "url") == "https://id.example.org/k?a=b"
    assert parse_endpoint("http://127.0.0.1:80/k", "url")
