"""Where the server listens: what is understood, what is refused, and what a socket is like."""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path

import pytest

from box_mcp.errors import CannotServe
from box_mcp.surface.http.listening import (
    Listen,
    bind,
    demand_name,
    demand_privacy,
    parse_listen,
    release,
    renew,
    tls_context,
)
from tests.support.certificates import certificate


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("8765", Listen("127.0.0.1", 8765)),
        ("0", Listen("127.0.0.1", 0)),
        ("0.0.0.0:80", Listen("0.0.0.0", 80)),
        ("[::1]:8765", Listen("::1", 8765)),
        ("boxes.example.org:443", Listen("boxes.example.org", 443)),
        ("unix:/run/box.sock", Listen(path=Path("/run/box.sock"))),
    ],
)
def test_one_may_listen_at_an_address_a_port_alone_or_a_unix_socket(text: str, listen: Listen):
    assert parse_listen(text) == listen


@pytest.mark.parametrize(
    "text",
    ["", ":80", "localhost", "localhost:", "a:b", "::1:80", "1:65536", "unix:", "http://a:1"],
)
def test_what_is_no_address_is_refused_with_examples(text: str):
    with pytest.raises(CannotServe) as refused:
        parse_listen(text)
    assert "127.0.0.1:8765" in refused.value.advice


@pytest.mark.parametrize(
    ("text", "private"),
    [
        *(("127.0.0.1:1", True), ("127.8.8.8:1", True), ("[::1]:1", True), ("localhost:1", True)),
        *(("unix:/a", True), ("0.0.0.0:1", False), ("[::]:1", False), ("10.0.0.1:1", False)),
        *(("localhost.example.org:1", False), ("127.0.0.1.nip.io:1", False)),
    ],
)
def test_whether_others_reach_an_address_is_known(text: str, private: bool):
    assert parse_listen(text).private is private


def test_an_address_that_means_any_is_no_name():
    named = [parse_listen(text).named for text in ("0.0.0.0:1", "[::]:1", "[::1]:1", "a.b:1")]
    assert named == ["", "", "::1", "a.b"]
    assert Listen(path=Path("/a")).named == ""


@pytest.mark.parametrize(
    ("url", "text", "issuer"),
    [
        *(("", "127.0.0.1:1", False), ("", "0.0.0.0:1", False), ("", "127.0.0.1:1", True)),
        *(("https://a.b/mcp", "0.0.0.0:1", True), ("http://a:80", "unix:/a", True)),
    ],
)
def test_a_server_is_known_by_a_url_where_it_takes_one(url: str, text: str, issuer: bool):
    demand_name(url, parse_listen(text), issuer=issuer)


@pytest.mark.parametrize(
    ("url", "text", "issuer"),
    [
        *(("ftp://a.b", "1", False), ("a.b/mcp", "1", False), ("https://u:p@a.b/", "1", False)),
        *(("https://a.b/?x", "1", False), ("", "0.0.0.0:1", True), ("", "unix:/a", True)),
    ],
)
def test_without_a_url_of_use_it_says_which_one_to_set(url: str, text: str, issuer: bool):
    with pytest.raises(CannotServe) as refused:
        demand_name(url, parse_listen(text), issuer=issuer)
    assert "http.url" in refused.value.advice


HERE, ANYWHERE = parse_listen("127.0.0.1:1"), parse_listen("0.0.0.0:1")


@pytest.mark.parametrize(
    ("listen", "tokens", "tls", "proxies"),
    [
        *((HERE, True, False, False), (HERE, False, False, False), (HERE, True, False, True)),
        *((ANYWHERE, True, True, False), (ANYWHERE, True, False, True), (HERE, False, True, False)),
    ],
)
def test_what_nobody_can_overhear_or_misuse_is_served(
    listen: Listen, tokens: bool, tls: bool, proxies: bool
):
    demand_privacy(listen, tokens=tokens, tls=tls, proxies=proxies)


@pytest.mark.parametrize(
    ("listen", "tokens", "tls", "proxies", "word"),
    [
        (ANYWHERE, True, False, False, "tls_certificate"),
        (ANYWHERE, False, True, False, "http.auth"),
        (HERE, False, False, True, "behind a proxy"),
        (ANYWHERE, False, False, True, "http.auth"),
    ],
)
def test_what_strangers_could_use_is_refused_in_words(
    listen: Listen, tokens: bool, tls: bool, proxies: bool, word: str
):
    with pytest.raises(CannotServe) as refused:
        demand_privacy(listen, tokens=tokens, tls=tls, proxies=proxies)
    assert word in refused.value.explain()


def test_a_port_that_somebody_has_is_told_so():
    sockets = bind(parse_listen("127.0.0.1:0"))
    try:
        sockets[0].listen()
        taken = Listen("127.0.0.1", sockets[0].getsockname()[1])
        with pytest.raises(CannotServe, match="in use"):
            bind(taken)
    finally:
        release(Listen(), sockets)


def test_an_address_of_another_machine_is_told_so():
    with pytest.raises(CannotServe, match=r"192\.0\.2\.1"):
        bind(parse_listen("192.0.2.1:0"))


def test_all_addresses_of_a_name_have_the_same_port():
    sockets = bind(parse_listen("localhost:0"))
    try:
        assert len({one.getsockname()[1] for one in sockets}) == 1
        assert all(one.getsockname()[0] in ("127.0.0.1", "::1") for one in sockets)
    finally:
        release(Listen(), sockets)


def test_a_unix_socket_is_for_its_own_user_and_goes_again(tmp_path: Path):
    where = Listen(path=tmp_path / "box.sock")
    assert where.path is not None
    sockets = bind(where)
    assert stat.S_IMODE(where.path.stat().st_mode) == 0o600
    release(where, sockets)
    assert not where.path.exists()


def test_a_unix_socket_that_was_left_behind_is_replaced_and_one_in_use_is_not(tmp_path: Path):
    where = Listen(path=tmp_path / "box.sock")
    left = bind(where)
    left[0].close()
    sockets = bind(where)
    sockets[0].listen()
    with pytest.raises(CannotServe, match="another server"):
        bind(where)
    release(where, sockets)


def test_a_server_that_ends_leaves_the_socket_of_the_next_one(tmp_path: Path):
    where = Listen(path=tmp_path / "box.sock")
    assert where.path is not None
    before = bind(where)
    before[0].close()  # it lets its calls end, and listens no more
    after = bind(where)
    release(where, before)
    assert where.path.exists()
    release(where, after)
    assert not where.path.exists()


def test_what_is_no_socket_is_not_replaced(tmp_path: Path):
    path = tmp_path / "box.sock"
    path.write_text("mine")
    with pytest.raises(CannotServe):
        bind(Listen(path=path))
    assert path.read_text() == "mine"


def test_a_place_for_a_socket_that_there_is_not_is_told_so(tmp_path: Path):
    with pytest.raises(CannotServe, match="No such file"):
        bind(Listen(path=tmp_path / "nowhere" / "box.sock"))
    with pytest.raises(CannotServe, match="too long"):
        bind(Listen(path=tmp_path / ("x" * 120)))


def test_a_umask_is_as_it_was_afterwards(tmp_path: Path):
    before = os.umask(0o022)
    os.umask(before)
    release(Listen(), bind(Listen(path=tmp_path / "box.sock")))
    now = os.umask(before)
    assert now == before


def test_a_certificate_with_its_key_is_taken_in_one_file_or_in_two(tmp_path: Path):
    made = certificate(tmp_path)
    assert isinstance(tls_context(made.certificate, made.key), ssl.SSLContext)
    both = tmp_path / "both.pem"
    both.write_bytes(made.certificate.read_bytes() + made.key.read_bytes())
    assert tls_context(both, None).minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_certificate_that_is_none_takes_no_others_place(tmp_path: Path):
    made = certificate(tmp_path)
    context = tls_context(made.certificate, made.key)
    made.key.write_bytes(certificate(tmp_path, "other").key.read_bytes())
    with pytest.raises(CannotServe):
        renew(context, made.certificate, made.key)


def test_a_certificate_that_is_none_is_told_so(tmp_path: Path):
    made = certificate(tmp_path)
    other = certificate(tmp_path, "other")
    empty = tmp_path / "empty.pem"
    empty.touch()
    tries = [(made.certificate, other.key), (made.certificate, None), (empty, made.key)]
    for one in (*tries, (tmp_path / "nowhere.pem", made.key)):
        with pytest.raises(CannotServe, match="TLS certificate"):
            tls_context(*one)
