"""Exposed ports under names of their own: names, pages of other sites, what passes."""

from __future__ import annotations

import pytest

from box_mcp.domain.names import BoxId
from box_mcp.domain.sites import (
    PLAIN_COOKIE,
    SECURE_COOKIE,
    Domain,
    cookies,
    from_box,
    label_of,
    parse_label,
    to_box,
)

BOX = BoxId("box-a1b2c3d4")
LABEL = label_of(BOX, 3000)
PUBLIC = Domain("https", "ports.example.org", 443)
LOCAL = Domain("http", "localhost", 8765)


@pytest.mark.parametrize(
    ("url", "suffix", "domain"),
    [
        ("https://boxes.example.org/mcp", "Ports.example.org.", PUBLIC),
        ("https://boxes.example.org:8443/mcp", "ports.example.org", "8443"),
        ("https://boxes.example.org/mcp", "", None),
        ("http://127.0.0.1:8765/mcp", "", LOCAL),
        ("http://[::1]:8765/mcp", "", LOCAL),
        ("http://localhost:8765/mcp", "", LOCAL),
        ("https://0.0.0.0:8765/mcp", "", None),
        ("https://10.0.0.1/mcp", "", None),
    ],
)
def test_the_domain_is_the_settings_or_on_a_loopback_localhost(
    url: str, suffix: str, domain: Domain | str | None
):
    found = Domain.beside(url, suffix)
    if isinstance(domain, str):
        assert found is not None
        assert found.origin(LABEL) == f"https://{LABEL}.ports.example.org:{domain}"
    else:
        assert found == domain


def test_a_site_is_called_by_box_and_port():
    assert LABEL == "box-a1b2c3d4-3000"
    assert parse_label(LABEL) == (BOX, 3000)
    assert PUBLIC.origin(LABEL) == "https://box-a1b2c3d4-3000.ports.example.org"
    assert LOCAL.origin(LABEL) == "http://box-a1b2c3d4-3000.localhost:8765"
    assert (PUBLIC.cookie, LOCAL.cookie) == (SECURE_COOKIE, PLAIN_COOKIE)


@pytest.mark.parametrize(
    "label",
    ["", "box-a1b2c3d4", "web-3000", f"{BOX}-0", f"{BOX}-03000", f"{BOX}-65536", f"{BOX}--1", "-1"],
)
def test_other_labels_are_of_no_box(label: str):
    assert parse_label(label) is None


@pytest.mark.parametrize(
    ("host", "label"),
    [
        (f"{LABEL}.ports.example.org", LABEL),
        (f"{LABEL}.PORTS.example.org:443", LABEL),
        ("x.ports.example.org", "x"),
        ("ports.example.org", None),
        ("a.b.ports.example.org", None),
        ("x.ports.example.org.", None),
        ("x.example.org", None),
        ("xports.example.org", None),
        (".ports.example.org:", None),
        ("x.ports.example.org@evil.example", None),
        ("", None),
    ],
)
def test_only_names_right_below_the_domain_are_sites(host: str, label: str | None):
    assert PUBLIC.label(host) == label


NAVIGATES = {b"sec-fetch-mode": b"navigate", b"sec-fetch-dest": b"document"}
CROSS, SAME, OWN = (
    {b"sec-fetch-site": one} for one in (b"cross-site", b"same-site", b"same-origin")
)


@pytest.mark.parametrize(
    ("method", "headers", "foreign"),
    [
        ("GET", {}, False),
        ("GET", {**CROSS, **NAVIGATES}, False),
        ("HEAD", {**SAME, **NAVIGATES}, False),
        ("POST", {**CROSS, **NAVIGATES}, True),
        ("GET", {**CROSS, b"sec-fetch-mode": b"navigate", b"sec-fetch-dest": b"iframe"}, True),
        ("GET", CROSS, True),
        ("GET", SAME, True),
        ("GET", OWN, False),
        ("POST", {b"origin": PUBLIC.origin(LABEL).encode()}, False),
        ("POST", {b"origin": PUBLIC.origin(label_of(BOX, 8000)).encode()}, False),
        ("POST", {b"origin": PUBLIC.origin("box-bbbbbbbb-3000").encode()}, True),
        ("POST", {b"origin": PUBLIC.origin(LABEL).replace("https", "http").encode()}, True),
        ("POST", {b"origin": PUBLIC.origin(LABEL).encode() + b":8443"}, True),
        ("POST", {b"origin": b"https://ports.example.org"}, True),
        ("POST", {b"origin": b"null"}, True),
        ("POST", {b"origin": b"\xff"}, True),
        ("POST", {b"origin": b"https://evil.example"}, True),
        ("GET", {b"origin": b"https://evil.example", **OWN}, True),
    ],
)
def test_pages_of_other_boxes_and_other_servers_are_told_from_those_of_the_box(
    method: str, headers: dict[bytes, bytes], foreign: bool
):
    assert PUBLIC.foreign(LABEL, method, headers) is foreign


def test_the_box_gets_its_own_cookies_and_headers_and_none_of_ours():
    headers = [
        (b"cookie", b"a=1; __Host-box_mcp=secret;b=2"),
        (b"cookie", b"__Host-box_mcp=other"),
        (b"Authorization", b"Bearer bxm_secret"),
        (b"X-Forwarded-For", b"forged"),
        (b"forwarded", b"for=forged"),
        (b"x-real-ip", b"forged"),
        (b"expect", b"100-continue"),
        (b"x-other", b"kept"),
    ]
    assert cookies(headers, SECURE_COOKIE) == ["secret", "other"]
    kept = [(b"cookie", b"a=1; b=2"), (b"x-other", b"kept")]
    assert to_box(headers, SECURE_COOKIE, authorization=False) == kept
    assert to_box(headers, SECURE_COOKIE, authorization=True) == [
        kept[0],
        (b"Authorization", b"Bearer bxm_secret"),
        kept[1],
    ]


def test_what_a_box_sets_is_for_its_own_site_only():
    headers = [
        (b"Set-Cookie", b"a=1; Path=/; DOMAIN=ports.example.org ; HttpOnly"),
        (b"set-cookie", b"b=domain=x; domain"),
        (b"set-cookie", b" __host-box_mcp =stolen; Path=/"),
        (b"Clear-Site-Data", b'"*"'),
        (b"alt-svc", b'h2="evil.example:443"'),
        (b"X-Accel-Redirect", b"/internal/secret"),
        (b"x-accel-buffering", b"yes"),
        (b"X-Sendfile", b"/etc/passwd"),
        (b"x-other", b"kept"),
    ]
    assert from_box(headers, SECURE_COOKIE) == [
        (b"Set-Cookie", b"a=1; Path=/; HttpOnly"),
        (b"set-cookie", b"b=domain=x"),
        (b"x-other", b"kept"),
    ]
