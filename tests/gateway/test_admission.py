from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.gateway.admission import HEAD_LIMIT, Address, Doorkeeper, hosts_of, judged

BOX = "box-aaaaaaaa"
HOME = Address(hosts_of(BOX, "web"), 3000)
OWN = f"{BOX}.localhost:3000"

LINK = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document", "sec-fetch-site": "cross-site"}
FRAME = {**LINK, "sec-fetch-dest": "iframe"}
IMAGE = {"sec-fetch-mode": "no-cors", "sec-fetch-dest": "image", "sec-fetch-site": "cross-site"}
EVIL = {"origin": "http://evil.example"}


def status(method: str = "GET", /, **headers: str) -> int:
    """What a request gets; 0 for the box's own answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = judged(HOME, method, {"host": OWN, **named})
    return answer.status if answer else 0


@pytest.mark.parametrize("host", [OWN, "web.localhost:3000", "WEB.LocalHost:3000"])
def test_a_box_is_found_under_its_id_and_its_name(host: str):
    assert status(host=host) == 0


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:3000",
        "evil.example",
        "box-bbbbbbbb.localhost:3000",
        "localhost:3000",
        "127.0.0.1:3000",
        "[::1]:3000",
        f"{BOX}.localhost",
        f"{BOX}.localhost:3001",
        f"x@{OWN}",
        f"{OWN}, evil.example",
        f"{BOX}.localhost.evil.example:3000",
        f"a.{OWN}",
        f"{OWN} ",
        "",
    ],
)
def test_no_other_host_is(host: str):
    assert status(host=host) == 421


def test_the_default_port_needs_no_number():
    home = Address(hosts_of(BOX, None), 80)
    assert judged(home, "GET", {"host": f"{BOX}.localhost"}) is None
    assert judged(home, "GET", {"host": f"{BOX}.localhost:80"}) is None


@pytest.mark.parametrize("host", ["localhost:3000", "127.0.0.1:3000", "[::1]:3000"])
def test_who_comes_by_the_machines_own_name_is_told_the_right_address(host: str):
    answer = judged(HOME, "GET", {"host": host})
    assert answer is not None
    assert HOME.url in answer.text


def test_who_rebinds_a_name_does_not_learn_the_boxs():
    answer = judged(HOME, "GET", {"host": "evil.example:3000"})
    assert answer is not None
    assert BOX not in answer.text


@pytest.mark.parametrize("name", ["a.b", "a_b", "a-", None])
def test_a_name_that_is_no_label_of_a_host_is_none(name: str | None):
    assert hosts_of(BOX, name) == (f"{BOX}.localhost",)


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", {}),
        ("POST", {"origin": f"http://{OWN}", "sec-fetch-site": "same-origin"}),
        ("GET", {"origin": f"http://{BOX}.localhost:8000", "sec-fetch-site": "same-site"}),
        ("GET", {"origin": "http://localhost:5173", "sec-fetch-site": "cross-site"}),
        ("POST", {"origin": "http://127.0.0.1:5173", "sec-fetch-site": "cross-site"}),
        ("GET", LINK),
        ("HEAD", LINK),
        ("GET", {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"}),
    ],
)
def test_the_user_the_boxs_own_pages_and_links_come_in(method: str, headers: dict[str, str]):
    assert judged(HOME, method, {"host": OWN, **headers}) is None


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", IMAGE),
        ("GET", FRAME),
        ("POST", {**LINK, **EVIL}),
        ("POST", EVIL),
        ("GET", {**EVIL, "upgrade": "websocket", "connection": "Upgrade"}),
        ("POST", {"origin": "null"}),
        ("POST", {"origin": "http://box-bbbbbbbb.localhost:3000"}),
        ("POST", {"origin": f"ftp://{OWN}"}),
        ("POST", {"origin": "http://localhost.evil.example"}),
    ],
)
def test_pages_of_other_sites_send_nothing_in_the_background(method: str, headers: dict[str, str]):
    answer = judged(HOME, method, {"host": OWN, **headers})
    assert answer is not None
    assert answer.status == 403


def keeper_after(*pieces: bytes) -> Doorkeeper:
    keeper = Doorkeeper(HOME)
    for piece in pieces:
        if not keeper.decided:
            keeper.take(piece)
    return keeper


@given(st.integers(1, 60), st.booleans())
def test_a_head_may_come_in_pieces(size: int, good: bool):
    host = OWN if good else "evil.example"
    head = f"GET /a?b HTTP/1.1\r\nHost: {host}\r\nX: 1\r\n\r\n".encode()
    pieces = [head[start : start + size] for start in range(0, len(head), size)]
    assert not keeper_after(*pieces[:-1]).decided
    assert keeper_after(*pieces).passed is good
    assert keeper_after(*pieces).decided


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: {OWN}\r\nHost: evil.example\r\n\r\n".encode(),
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: " + b"x" * HEAD_LIMIT,
    ],
)
def test_what_is_no_request_to_the_box_is_answered_and_does_not_pass(data: bytes):
    keeper = keeper_after(data)
    assert keeper.answer is not None
    assert not keeper.passed
    assert keeper.answer.page().startswith(b"HTTP/1.1 4")


@given(st.binary(min_size=1, max_size=300))
def test_nothing_that_comes_breaks_the_doorkeeper(data: bytes):
    assert not keeper_after(data, b"\r\n\r\n").passed
