from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from box_mcp.domain.lfs import (
    MAX_OBJECTS,
    NO_LONGER_FOR,
    USUALLY_FOR,
    Action,
    Batch,
    Nonsense,
    parse_batch,
    place,
    rewritten,
)
from box_mcp.domain.routes import Access, Forbidden, parse_upstream

OID = "ab" * 32
NOW = 1_700_000_000.0
UPSTREAM = parse_upstream("https://git.example.org/lab")
DOWNLOAD = Batch(Access.READ, "download", b"")
UPLOAD = Batch(Access.WRITE, "upload", b"")

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
)
likely = st.recursive(
    st.one_of(st.just(OID), st.just("https://a.example/x"), json_values),
    lambda inner: st.dictionaries(
        st.sampled_from(
            ["oid", "size", "actions", "download", "href", "header", "error", "expires_at"]
        ),
        inner,
    ),
)


def asked(**changes: Any) -> bytes:
    """What git-lfs asks."""
    usual: dict[str, Any] = {
        "operation": "download",
        "transfers": ["lfs-standalone-file", "basic", "ssh"],
        "ref": {"name": "refs/heads/main"},
        "objects": [{"oid": OID, "size": 7, "more": "x"}],
        "hash_algo": "sha256",
        "other": 1,
    }
    return json.dumps(usual | changes).encode()


def answered(batch: Batch, *objects: dict[str, Any], **more: Any) -> tuple[Any, list[Action]]:
    """What a box is told of a server's answer, and what was kept."""
    kept: list[Action] = []

    def keep(action: Action) -> str:
        kept.append(action)
        return f"kept/{len(kept)}"

    reply = json.dumps({"objects": objects, **more}).encode()
    return json.loads(rewritten(batch, reply, NOW, keep)), kept


def said(name: str = "download", /, **action: Any) -> dict[str, Any]:
    """What a server says of an object."""
    return {"oid": OID, "size": 7, "actions": {name: {"href": "https://a.example/x", **action}}}


def test_a_batch_is_asked_anew_in_the_one_way_that_is_understood():
    batch = parse_batch(asked())
    assert (batch.access, batch.operation) == (Access.READ, "download")
    assert json.loads(batch.body) == {
        "operation": "download",
        "transfers": ["basic"],
        "ref": {"name": "refs/heads/main"},
        "objects": [{"oid": OID, "size": 7}],
        "hash_algo": "sha256",
    }
    assert parse_batch(asked(operation="upload", ref=None)).access is Access.WRITE


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        asked(operation="verify"),
        asked(operation=["upload"]),
        asked(objects=None),
        asked(objects=[{"oid": OID}]),
        asked(objects=[{"oid": "../x", "size": 1}]),
        asked(objects=[{"oid": OID.upper(), "size": 1}]),
        asked(objects=[{"oid": OID, "size": -1}]),
        asked(objects=[{"oid": OID, "size": True}]),
        asked(objects=[{"oid": OID, "size": 1}] * (MAX_OBJECTS + 1)),
        asked(hash_algo="sha512"),
        asked(ref="main"),
    ],
    ids=lambda body: ascii(body)[:40],
)
def test_any_other_question_is_forbidden(body: bytes):
    with pytest.raises(Forbidden, match="batch"):
        parse_batch(body)


def test_actions_and_their_headers_stay_and_addresses_take_their_place():
    header = {"Authorization": "RemoteAuth secret", "X-More": "also secret"}
    told, kept = answered(DOWNLOAD, said(header=header, expires_in=60))
    assert told == {
        "transfer": "basic",
        "hash_algo": "sha256",
        "objects": [
            {
                "oid": OID,
                "size": 7,
                "authenticated": True,
                "actions": {"download": {"href": "kept/1", "expires_in": 60}},
            }
        ],
    }
    expected = Action("GET", Access.READ, "https://a.example/x", header, True, NOW + 60)
    assert kept == [expected]
    assert "secret" not in repr(kept)
    assert "a.example" not in repr(kept)


def test_an_upload_has_two_actions_and_none_where_the_server_has_the_object():
    verify = {"verify": {"href": "https://a.example/v"}}
    both = said("upload")
    both["actions"] |= verify
    told, kept = answered(UPLOAD, both, {"oid": OID, "size": 7}, said("download"))
    assert [list(one["actions"]) for one in told["objects"]] == [["upload", "verify"], [], []]
    assert [(one.method, one.access) for one in kept] == [
        ("PUT", Access.WRITE),
        ("POST", Access.WRITE),
    ]


def test_what_is_wrong_with_an_object_is_told_in_bounds():
    error = {"code": 404, "message": "x" * 5000, "more": "secret"}
    told, kept = answered(DOWNLOAD, said() | {"error": error})
    assert told["objects"][0]["error"] == {"code": 404, "message": "x" * 1000}
    assert not kept


@pytest.mark.parametrize(
    ("action", "seconds"),
    [
        ({}, USUALLY_FOR),
        ({"expires_in": 90}, 90),
        ({"expires_in": 1e12}, NO_LONGER_FOR),
        ({"expires_in": -5}, 0),
        ({"expires_at": "2023-11-14T22:15:20Z"}, 120),
        ({"expires_at": "2023-11-14T22:15:20.123456789Z"}, 120),
        ({"expires_at": "2023-11-14T23:15:20+01:00"}, 120),
        ({"expires_in": 0, "expires_at": "0001-01-01T00:00:00Z"}, USUALLY_FOR),
        ({"expires_in": 60, "expires_at": "2023-11-14T22:15:20Z"}, 60),
    ],
)
def test_an_action_is_good_for_as_long_as_the_server_says(action: dict[str, Any], seconds: float):
    told, kept = answered(DOWNLOAD, said(**action))
    assert told["objects"][0]["actions"]["download"]["expires_in"] == seconds
    assert int(kept[0].until - NOW) == seconds


def test_headers_that_are_not_the_servers_to_choose_are_left_out():
    header = {"Host": "b.example", "Transfer-Encoding": "chunked", "Cookie": "a=b", "X-Ours": "1"}
    _, kept = answered(DOWNLOAD, said(header=header))
    assert kept[0].headers == {"X-Ours": "1"}


@pytest.mark.parametrize(
    ("one", "signed"),
    [
        (said(), False),
        (said() | {"authenticated": True}, True),
        (said() | {"authenticated": "yes"}, False),
        (said(header={"authorization": "x"}), True),
    ],
)
def test_whether_an_action_needs_another_credential_is_known(one: dict[str, Any], signed: bool):
    assert answered(DOWNLOAD, one)[1][0].signed is signed


@pytest.mark.parametrize(
    "one",
    [
        said(header={"X-A": "b\r\nX-C: d"}),
        said(header={"X A": "b"}),
        said(header={"X-A": "é"}),
        said(header={"X-A": "x" * 20_000}),
        said(expires_in="soon"),
        said(expires_at="tomorrow"),
        said() | {"oid": "x"},
        said() | {"size": None},
        said() | {"actions": {"download": "https://a.example/"}},
        said() | {"error": "no"},
        {},
    ],
    ids=lambda one: ascii(one)[-50:],
)
def test_an_answer_that_is_none_is_not_taken(one: dict[str, Any]):
    with pytest.raises(Nonsense):
        answered(DOWNLOAD, one)


def test_another_way_to_move_objects_than_asked_for_is_not_taken():
    with pytest.raises(Nonsense):
        answered(DOWNLOAD, said(), transfer="tus")


@settings(max_examples=50)
@given(st.one_of(json_values, st.fixed_dictionaries({"objects": st.lists(likely, max_size=3)})))
def test_whatever_a_server_answers_is_an_answer_or_told_as_none(value: Any):
    with suppress(Nonsense):
        told = rewritten(DOWNLOAD, json.dumps(value).encode(), NOW, lambda _: "kept")
        for one in json.loads(told)["objects"]:
            assert {*one} <= {"oid", "size", "authenticated", "error", "actions"}


@settings(max_examples=50)
@given(st.one_of(st.binary(), json_values.map(lambda value: json.dumps(value).encode())))
def test_whatever_a_box_asks_is_a_batch_or_forbidden(body: bytes):
    with suppress(Forbidden):
        parse_batch(body)


@pytest.mark.parametrize(
    ("address", "base", "there"),
    [
        ("https://git.example.org/x?y#z", "", ("https", "git.example.org", 443, True)),
        ("https://git.example.org:443/x", "", ("https", "git.example.org", 443, True)),
        ("https://git.example.org:8443/x", "", ("https", "git.example.org", 8443, False)),
        ("http://git.example.org/x", "", ("http", "git.example.org", 80, False)),
        ("https://store.example.net/x", "", ("https", "store.example.net", 443, False)),
        ("https://[2001:db8::1]:9/x", "", ("https", "2001:db8::1", 9, False)),
        ("/y", "https://store.example.net/x", ("https", "store.example.net", 443, False)),
        ("//git.example.org/y", "https://a.example/x", ("https", "git.example.org", 443, True)),
    ],
)
def test_where_an_address_leads(address: str, base: str, there: tuple[str, str, int, bool]):
    found = place(UPSTREAM, address, base)
    assert (found.scheme, str(found.host), found.port, found.own) == there
    assert "#" not in found.url


@pytest.mark.parametrize(
    "address",
    [
        "",
        "None",
        "/x",
        "file:///etc/passwd",
        "ftp://a.example/x",
        "https:///x",
        "https://user:word@git.example.org/x",
        "https://git.example.org@a.example/x",
        "https://a.example:99999/x",
        "https://0x7f.1/x",
        "https://2130706433/x",
        "https://a.example/ x",
        "https://a.example/\r\nX: y",
        "https://é.example/",
        "https://a.example/" + "x" * 9000,
    ],
    ids=lambda address: ascii(address)[:40],
)
def test_what_is_no_address_of_a_server_leads_nowhere(address: str):
    with pytest.raises(Nonsense):
        place(UPSTREAM, address)
