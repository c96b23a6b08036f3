from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.gateway.hello import MAX_HELLO, Broken, More, Name, NoTls, read_hello


def real_hello(name: str | None) -> bytes:
    """What OpenSSL sends first."""
    context = ssl.create_default_context()
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


HELLO = real_hello("a.example")
BODY = HELLO[9:]  # behind the heads of the record and of the message


def record(data: bytes, kind: int = 22) -> bytes:
    return bytes([kind, 3, 1]) + len(data).to_bytes(2, "big") + data


def message(body: bytes) -> bytes:
    return b"\x01" + len(body).to_bytes(3, "big") + body


def vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size, "big") + data


def hello(*extensions: tuple[int, bytes], behind: bytes = b"") -> bytes:
    """One with these extensions."""
    packed = b"".join(kind.to_bytes(2, "big") + vector(2, data) for kind, data in extensions)
    start = b"\x03\x03" + bytes(32) + vector(1, b"") + vector(2, b"\x13\x01") + vector(1, b"\0")
    return record(message(start + (vector(2, packed) if extensions else b"") + behind))


def server_name(*names: bytes, kind: int = 0) -> tuple[int, bytes]:
    return 0, vector(2, b"".join(bytes([kind]) + vector(2, name) for name in names))


def read_slowly(data: bytes) -> tuple[Name | More | NoTls, int]:
    """What is read when each time as much is there as was wanted, and how often it was looked."""
    found, looks = read_hello(b""), 1
    while isinstance(found, More) and found.size <= len(data):
        found, looks = read_hello(data[: found.size]), looks + 1
    return found, looks


def test_a_real_greeting_names_its_host():
    assert read_hello(HELLO) == Name("a.example")
    assert read_hello(HELLO + b"more") == Name("a.example")
    assert read_hello(real_hello(None)) == Name("")


def test_a_greeting_without_extensions_names_nobody():
    assert read_hello(hello()) == Name("")


def test_part_of_a_greeting_asks_for_more():
    for size in range(len(HELLO)):
        found = read_hello(HELLO[:size])
        assert isinstance(found, More)
        assert size < found.size <= len(HELLO)


@pytest.mark.parametrize("size", [64, 100, 300])
def test_a_greeting_may_be_split_into_records(size: int):
    pieces = [HELLO[5:][start : start + size] for start in range(0, len(HELLO) - 5, size)]
    split = b"".join(map(record, pieces))
    found, looks = read_slowly(split)
    assert found == Name("a.example")
    assert looks <= 2 * len(pieces) + 1


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n", b"SSH-2.0-x", b"\x16\x04", b"\x15\x03\x01", b"\0" * 9, b"\x80\x2e"],
)
def test_what_does_not_begin_as_tls_is_something_else(data: bytes):
    assert isinstance(read_hello(data), NoTls)


@pytest.mark.parametrize(
    "data",
    [
        record(b""),
        record(b"\x02" + bytes(50)),
        record(message(b"")),
        record(message(bytes(39))),
        record(message(BODY[:-1])),
        record(message(BODY + b"x")),
        b"\x16\x03\x01\xff\xff" + HELLO[5:],
        record(b"\x01\xff\xff\xff"),
        record(b"\x01" + (MAX_HELLO + 1).to_bytes(3, "big")),
        record(HELLO[5:100]) + record(HELLO[100:], kind=23),
        record(HELLO[5:100]) + b"\x16\x02" + record(HELLO[100:])[2:],
        b"".join(record(HELLO[5 + at : 6 + at]) for at in range(100)),
        hello(server_name(b"a.example"), server_name(b"b.example")),
        hello(server_name(b"a.example", b"b.example")),
        hello(server_name(b"a.example", kind=1)),
        hello(server_name(b"\xff.example")),
        hello(server_name()),
        hello((0, b"")),
        hello((0, server_name(b"a.example")[1] + b"x")),
        hello((0, b"\x00\xff\x00\x00\x01a")),
        hello(server_name(b"a.example"), behind=b"x"),
    ],
)
def test_a_greeting_that_is_broken_is_told_from_one_without_a_name(data: bytes):
    with pytest.raises(Broken):
        read_slowly(data)


@given(st.binary(max_size=600))
def test_any_bytes_are_read_or_refused(data: bytes):
    for start in (b"", b"\x16\x03\x01", HELLO[:9], record(message(bytes(60)))):
        try:
            found = read_hello(start + data)
        except Broken:
            continue
        assert isinstance(found, Name | More | NoTls)


@given(st.data())
def test_a_changed_greeting_is_read_or_refused(data: st.DataObject):
    changed = bytearray(HELLO)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(HELLO) - 1))] = data.draw(st.integers(0, 255))
    try:
        found, _ = read_slowly(bytes(changed))
    except Broken:
        return
    if isinstance(found, Name):
        assert found.text.isascii()
    if isinstance(found, More):
        assert found.size > len(HELLO)


@given(st.lists(st.integers(1, 400), max_size=20))
def test_however_it_is_split_it_is_the_same_greeting_or_refused(sizes: list[int]):
    rest, split = HELLO[5:], b""
    for size in sizes:
        split += record(rest[:size]) if rest else b""
        rest = rest[size:]
    split += record(rest) if rest else b""
    try:
        found, looks = read_slowly(split)
    except Broken:
        return  # into too many
    assert found == Name("a.example")
    assert looks <= 40
