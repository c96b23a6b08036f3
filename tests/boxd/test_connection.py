from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from box_mcp.boxd import wire
from tests.support.boxd import (
    Client,
    Disconnected,
    Failed,
    LocalBoxd,
    descriptors_given_back,
    eventually,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

HELLO = wire.pack_object(wire.HELLO, 0, {"version": wire.VERSION})


def opening(number: int, **request: Any) -> bytes:
    return wire.pack_object(wire.OPEN, number, request)


def waiting(number: int) -> bytes:
    """Opens a stream that lasts: a file being written."""
    return opening(number, op="write", path=f"file{number}")


@pytest.fixture
def untroubled(boxd: LocalBoxd) -> Iterator[None]:
    """What happens on one connection must not be felt on another, nor stay in boxd."""
    eventually(boxd.at_rest)
    with boxd.connect() as other, descriptors_given_back(boxd.facts):
        call = other.run("sleep 300")
        yield
        call.cancel().result()


@pytest.mark.usefixtures("untroubled")
@pytest.mark.parametrize(
    "hello",
    [
        wire.pack_object(wire.HELLO, 0, {"version": wire.VERSION + 1}),
        wire.pack_object(wire.HELLO, 0, {}),
        wire.pack(wire.HELLO, 0, b"[]"),
        opening(1, op="processes"),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_a_bad_hello_closes_the_connection_unanswered(boxd: LocalBoxd, hello: bytes):
    with boxd.connect(greet=False) as client:
        client.send(hello)
        client.wait_for_disconnect()
        assert not client.hello


@pytest.mark.usefixtures("untroubled")
@pytest.mark.parametrize(
    "bytes_",
    [
        (wire.MAX_PAYLOAD + 1).to_bytes(4, "big") + bytes([wire.DATA, 0, 0, 0, 0, 1]),
        wire.pack(99, 1),
        wire.pack_object(wire.END, 1, {}),
        wire.pack(wire.OPEN, 1, b"no JSON"),
        opening(1, op="run", command="sleep 300", timeout=0.5, stdin=True)
        + wire.pack_data(1, b"x" * (wire.WINDOW + 1)),
        waiting(1) + wire.pack_credit(1, wire.MAX_WINDOW),
        waiting(1) + wire.pack(wire.CREDIT, 1, b"x"),
        waiting(1) + waiting(1),
        waiting(1) + wire.pack(wire.HELLO, 1, b"{}"),
        waiting(0),
        opening(1, op="run", command="sleep 300", timeout=0.5) + wire.pack_credit(1, 2**32 - 1),
        b"".join(waiting(number) for number in range(1, wire.MAX_PAYLOAD)[:1025]),
    ],
    ids=[
        "oversize frame",
        "unknown kind",
        "a kind of boxd's own",
        "malformed object",
        "data beyond the window",
        "credit beyond the window",
        "malformed credit",
        "stream opened twice",
        "a kind that no stream takes",
        "stream zero",
        "endless credit",
        "1025 streams",
    ],
)
def test_a_broken_rule_closes_the_connection(boxd: LocalBoxd, bytes_: bytes):
    with boxd.connect() as client:
        try:
            client.send(bytes_)
        except Disconnected:
            return
        client.wait_for_disconnect()


@pytest.mark.usefixtures("untroubled")
def test_as_many_streams_as_allowed_are_served_at_once(boxd: LocalBoxd):
    with boxd.connect() as client:
        calls = [client.open("write", path=f"file{number}") for number in range(1024)]
        for call in calls:
            call.send(b"x").finish()
        assert all(call.result()["size"] == 1 for call in calls)


@pytest.mark.usefixtures("untroubled")
def test_frames_for_a_stream_that_has_ended_are_no_error(boxd: LocalBoxd):
    with boxd.connect() as client:
        call = client.open("processes")
        call.result()
        call.cancel().finish()
        client.send(wire.pack_credit(call.number, 5) + wire.pack_data(call.number, b"late"))
        assert client.call("processes")["runs"]


@pytest.mark.usefixtures("untroubled")
@pytest.mark.parametrize("request_", [{"op": "nonsense"}, {}, {"op": None}], ids=repr)
def test_an_unknown_request_fails_and_the_connection_lives(
    boxd: LocalBoxd, request_: dict[str, Any]
):
    with boxd.connect() as client:
        with pytest.raises(Failed) as caught:
            client.call(**{"op": "", **request_})
        assert caught.value.code == "invalid"
        client.call("processes")


@pytest.mark.usefixtures("untroubled")
def test_bytes_that_come_one_by_one_are_served(boxd: LocalBoxd):
    with boxd.connect(greet=False) as client:
        for byte in HELLO:
            client.send(bytes([byte]))
        client.pump_until(lambda: client.hello)


@pytest.mark.usefixtures("untroubled")
def test_a_server_that_does_not_read_is_sent_no_more_than_a_window(client: Client, boxd: LocalBoxd):
    client.write("large", b"x\n" * 4_000_000)
    before = boxd.memory("VmRSS")
    for _ in range(20):
        client.open("read", path="large", max_lines=10**9, max_bytes=10**9)
    with boxd.connect() as other:
        for _ in range(50):
            other.call("processes")
    assert boxd.memory("VmHWM") - before < 16 * 1024 * 1024


def test_hello_tells_whom_commands_run_as(client: Client):
    assert client.hello["version"] == wire.VERSION
    assert client.hello["busy"] is False
    call = client.run('echo "$USER"')
    call.result()
    assert call.stdout.decode() == f"{client.hello['user']}\n"
    assert client.hello["workspace"] == "/workspace"
