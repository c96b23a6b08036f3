"""Heads of requests: whose name it is, who asks, and what is said once only."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from box_mcp.surface.http.answers import Refused
from box_mcp.surface.http.heads import (
    ONCE,
    UNIX,
    Names,
    Proxies,
    host_of,
    neighbourhood,
    only,
    same_origin,
)

ODD_HOSTS = [
    *("", "localhost:evil", "localhost:", "localhost:80:80", "localhost:123456", "a b", "a\tb"),
    *("user@localhost", "localhost/path", "localhost?x", "[::1", "[]", "[::1]x", "::1", "lo\u00f6"),
    *("localhost#", "localhost,evil", "localhost\\evil", "%6cocalhost", "localhost\0", "*"),
]


@pytest.mark.parametrize("name", sorted(ONCE))
def test_what_decides_something_may_be_said_once_only(name: bytes):
    with pytest.raises(Refused) as refused:
        only([(name, b"a"), (b"accept", b"x"), (name, b"a")])
    assert refused.value.status == 400


def test_of_others_the_first_counts_and_those_of_proxies_are_joined():
    found = only([(b"accept", b"a"), (b"x-forwarded-for", b"1.1.1.1"), (b"accept", b"b")])
    assert found == {b"accept": b"a", b"x-forwarded-for": b"1.1.1.1"}
    twice = only([(b"x-forwarded-for", b"1.1.1.1"), (b"x-forwarded-for", b"2.2.2.2")])
    assert twice[b"x-forwarded-for"] == b"1.1.1.1,2.2.2.2"


def test_a_body_of_two_lengths_is_refused_and_its_connection_ends():
    with pytest.raises(Refused) as refused:
        only([(b"content-length", b"3"), (b"transfer-encoding", b"chunked")])
    assert (b"connection", b"close") in refused.value.headers
    with pytest.raises(Refused):
        only([(b"transfer-encoding", b"chunked")], "1.0")
    assert only([(b"transfer-encoding", b"chunked")], "1.1")


@pytest.mark.parametrize("odd", ODD_HOSTS)
def test_a_host_header_that_is_no_name_with_a_port_is_refused(odd: str):
    with pytest.raises(Refused) as refused:
        host_of(odd.encode("latin-1"))
    assert refused.value.status == 400


def test_a_name_is_taken_without_its_port_in_small_letters():
    assert host_of(b"LocalHost:8765") == "localhost"
    assert host_of(b"[::1]:8765") == "[::1]"
    assert host_of(b"boxes.example.org") == "boxes.example.org"


def test_the_server_goes_by_the_loopbacks_names_by_those_of_the_settings_and_by_its_address():
    names = Names(["Boxes.example.org"])
    for name in ("localhost", "127.0.0.1", "[::1]", "boxes.example.org"):
        assert names.has(name, "192.0.2.1")
    for name in ("evil.example", "example.org", "x.boxes.example.org", "localhost.", "192.0.2.2"):
        assert not names.has(name, "192.0.2.1")
    assert names.has("192.0.2.1", "192.0.2.1")
    assert names.has("[2001:db8::1]", "2001:db8::1")
    assert not names.has("", "")


def test_pages_are_welcome_from_origins_that_the_settings_name_as_they_are():
    names = Names(origins=["https://ui.example.org/"])
    assert names.welcome(b"https://ui.example.org")
    for origin in (b"http://ui.example.org", b"https://ui.example.org:444", b"null", b""):
        assert not names.welcome(origin)


def test_an_origin_is_the_servers_own_by_scheme_name_and_port():
    assert same_origin(b"http://localhost:8765", "http", b"LOCALHOST:8765")
    assert not same_origin(b"http://localhost:8765", "https", b"localhost:8765")
    assert not same_origin(b"http://localhost:3000", "http", b"localhost:8765")


PROXIES = Proxies([ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")])


@pytest.mark.parametrize(
    ("peer", "said", "client"),
    [
        ("198.51.100.7", "1.2.3.4", "198.51.100.7"),  # no proxy of ours: not believed
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "6.6.6.6, 1.2.3.4", "1.2.3.4"),  # what the client said itself is not
        ("10.0.0.1", "6.6.6.6, 1.2.3.4, 10.0.0.2", "1.2.3.4"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "1.2.3.4, nonsense", "10.0.0.1"),
        ("10.0.0.1", " , 1.2.3.4 ,", "1.2.3.4"),
        ("::ffff:10.0.0.1", "::ffff:1.2.3.4", "1.2.3.4"),
        ("2001:db8::1", "2a00::1", "2a00::1"),
        (UNIX, "1.2.3.4", "1.2.3.4"),
    ],
)
def test_a_client_is_the_last_of_the_chain_that_is_no_proxy_of_ours(
    peer: str, said: str, client: str
):
    assert PROXIES.client(peer, {b"x-forwarded-for": said.encode()}) == client


def test_how_a_client_came_is_believed_of_proxies_only():
    said = {b"x-forwarded-proto": b"http, HTTPS"}
    assert PROXIES.scheme("10.0.0.1", "http", said) == "https"
    assert PROXIES.scheme("198.51.100.7", "http", said) == "http"
    assert PROXIES.scheme("10.0.0.1", "http", {b"x-forwarded-proto": b"gopher"}) == "http"


def test_without_proxies_nobody_is_believed():
    assert Proxies().client(UNIX, {b"x-forwarded-for": b"1.2.3.4"}) == UNIX
    assert Proxies().client("127.0.0.1", {b"x-forwarded-for": b"1.2.3.4"}) == "127.0.0.1"


def test_a_customer_has_a_network_of_ipv6_addresses_and_is_counted_as_one():
    assert neighbourhood("2001:db8::1") == neighbourhood("2001:db8::2") == "2001:db8::/64"
    assert neighbourhood("2001:db8:0:1::1") != neighbourhood("2001:db8::1")
    assert neighbourhood("198.51.100.7") == "198.51.100.7"
    assert neighbourhood(UNIX) == UNIX
