from __future__ import annotations

from ipaddress import IPv6Address

import pytest

from box_mcp.gateway.socks import Reply
from box_mcp.gateway.ways import Limits
from tests.support.egress import LOOPBACK, Place, echo, everything, listening, proxy

pytestmark = pytest.mark.anyio

HERE = f"{LOOPBACK}:*"
HELLO = b"\x05\x01\x00"
AGREED = b"\x05\x00"


def name(text: bytes) -> bytes:
    return b"\x03" + bytes([len(text)]) + text


def four(*numbers: int) -> bytes:
    return b"\x01" + bytes(numbers)


def six(text: str) -> bytes:
    return b"\x04" + IPv6Address(text).packed


def asked(host: bytes, port: int, command: int = 1) -> bytes:
    return bytes([5, command, 0]) + host + port.to_bytes(2, "big")


async def reply(box: Place, request: bytes) -> int:
    """The code that a request is answered with, which is all that is said."""
    answer = await box.ask(HELLO + request)
    assert answer[:3] == AGREED + b"\x05"
    assert answer[4:] == b"\x00\x01" + bytes(6)
    return answer[3]


@pytest.mark.parametrize(
    "host", [name(b"a.example"), name(b"A.Example."), name(LOOPBACK.encode()), four(127, 0, 0, 1)]
)
async def test_a_host_is_reached_by_name_and_by_address(host: bytes):
    async with listening(echo) as port, proxy("a.example:*", HERE) as box:
        async with await box.dial() as client:
            await client.send(HELLO + asked(host, port) + b"early")
            await client.send_eof()
            assert (await everything(client))[2:] == b"\x05\x00\x00\x01" + bytes(6) + b"early"
        assert box.refused == {}


async def test_a_request_may_come_byte_by_byte():
    async with (
        listening(echo) as port,
        proxy("a.example:*", HERE) as box,
        await box.dial() as client,
    ):
        for byte in HELLO + asked(name(b"a.example"), port) + b"more":
            await client.send(bytes([byte]))
        await client.send_eof()
        assert (await everything(client)).endswith(b"more")


@pytest.mark.parametrize(
    ("host", "told"),
    [
        (name(b"b.example"), "b.example:443"),
        (four(10, 0, 0, 1), "10.0.0.1:443"),
        (six("::ffff:10.0.0.1"), "10.0.0.1:443"),
        (six("::1"), "[::1]:443"),
        (name(b"a.example"), "a.example:443"),  # which leads to this machine
    ],
)
async def test_what_no_rule_allows_is_refused(host: bytes, told: str):
    async with proxy("a.example") as box:
        assert await reply(box, asked(host, 443)) == Reply.NOT_ALLOWED
        assert box.refused == {told: 1}


async def test_what_is_not_there_is_no_refusal():
    async with listening(echo) as port:
        pass
    limits = Limits(look_up=0.05)
    async with proxy("*:*", HERE, names={"slow.example": []}, limits=limits) as box:
        assert await reply(box, asked(name(b"a.example"), port)) == Reply.UNREACHABLE
        assert await reply(box, asked(name(b"nowhere.example"), 80)) == Reply.UNREACHABLE
        assert await reply(box, asked(name(b"slow.example"), 80)) == Reply.LATE
        assert box.refused == {}


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (asked(name(b"a.example"), 80, command=2), Reply.NO_SUCH_COMMAND),
        (asked(name(b"a.example"), 80, command=3), Reply.NO_SUCH_COMMAND),
        (asked(name(b"a.example"), 0), Reply.NO_SUCH_ADDRESS),
        (asked(name(b""), 80), Reply.NO_SUCH_ADDRESS),
        (asked(name(b"127.1"), 80), Reply.NO_SUCH_ADDRESS),
        (asked(name(b"0x7f000001"), 80), Reply.NO_SUCH_ADDRESS),
        (asked(name(b"\xff\xfe"), 80), Reply.NO_SUCH_ADDRESS),
        (asked(name(b"a" * 255), 80), Reply.NO_SUCH_ADDRESS),
        (asked(b"\x02a", 80), Reply.NO_SUCH_ADDRESS),
        (b"\x04" + asked(name(b"a.example"), 80)[1:], Reply.FAILED),
    ],
)
async def test_what_is_not_understood_is_answered(request_: bytes, told: Reply):
    async with proxy("*:*", "0.0.0.0/0:*") as box:
        assert await reply(box, request_) == told
        assert box.asked == []


async def test_a_client_that_insists_on_a_password_is_told_that_there_is_none():
    async with proxy() as box:
        assert await box.ask(b"\x05\x01\x02") == b"\x05\xff"
        assert await box.ask(b"\x05\x00") == b"\x05\xff"


@pytest.mark.parametrize("size", range(1, len(HELLO + asked(name(b"a.example"), 80))))
async def test_a_client_that_goes_away_within_its_request_leaves_nothing(size: int):
    async with proxy("*:*") as box, await box.dial() as client:
        await client.send((HELLO + asked(name(b"a.example"), 80))[:size])
