from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from box_mcp.boxd import wire

HEADER = 10  # bytes

frames = st.lists(
    st.tuples(
        st.sampled_from(sorted(wire.FROM_SERVER)),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=300),
        st.integers(0, 255),
    ),
    max_size=8,
)


def held(decoder: wire.Decoder) -> int:
    return len(decoder._buffer)  # pyright: ignore[reportPrivateUsage]


@given(frames, st.data())
def test_frames_decode_to_the_same_however_their_bytes_are_split(
    sent: list[tuple[int, int, bytes, int]], data: st.DataObject
):
    stream = b"".join(wire.pack(*frame) for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    decoder = wire.Decoder(wire.FROM_SERVER)
    received: list[wire.Frame] = []
    for start, end in itertools.pairwise([0, *cuts, len(stream)]):
        received += decoder.feed(stream[start:end])
    assert [(f.kind, f.stream, f.payload, f.label) for f in received] == sent
    assert held(decoder) == 0


@given(st.lists(st.binary(max_size=500), max_size=10))
def test_any_bytes_decode_or_raise_wire_error_and_hold_bounded_memory(pieces: list[bytes]):
    decoder = wire.Decoder(wire.FROM_BOXD)
    for piece in pieces:
        try:
            received = decoder.feed(piece)
        except wire.WireError:
            return
        assert all(frame.kind in wire.FROM_BOXD for frame in received)
        assert held(decoder) < HEADER + wire.MAX_PAYLOAD


def test_an_endless_frame_is_refused_by_its_header_alone():
    oversize = (wire.MAX_PAYLOAD + 1).to_bytes(4, "big") + bytes([wire.DATA, 0, 0, 0, 0, 1])
    with pytest.raises(wire.WireError):
        wire.Decoder(wire.FROM_SERVER).feed(oversize)


def test_the_largest_frame_passes_and_a_larger_one_is_not_packed():
    packed = wire.pack(wire.DATA, 1, b"x" * wire.MAX_PAYLOAD)
    assert len(wire.Decoder(wire.FROM_SERVER).feed(packed)) == 1
    with pytest.raises(ValueError, match="over"):
        wire.pack(wire.DATA, 1, b"x" * (wire.MAX_PAYLOAD + 1))


@pytest.mark.parametrize("allowed", [wire.FROM_SERVER, wire.FROM_BOXD])
def test_a_kind_that_the_other_end_may_not_send_is_refused(allowed: frozenset[int]):
    for kind in set(range(256)) - allowed:
        with pytest.raises(wire.WireError):
            wire.Decoder(allowed).feed(wire.pack(kind, 1))


@given(st.binary(max_size=200) | st.text(max_size=50).map(str.encode))
def test_any_payload_is_an_object_or_raises_wire_error(payload: bytes):
    try:
        value = wire.Frame(wire.NOTE, 0, 1, payload).object()
    except wire.WireError:
        return
    assert type(value) is dict


@pytest.mark.parametrize("payload", [b"[" * 100_000, b"[]", b"1" * 10_000, b"\xff", b""])
def test_json_made_to_hurt_raises_wire_error(payload: bytes):
    with pytest.raises(wire.WireError):
        wire.Frame(wire.NOTE, 0, 1, payload).object()


@given(st.binary(max_size=8))
def test_credit_is_four_bytes_or_raises_wire_error(payload: bytes):
    frame = wire.Frame(wire.CREDIT, 0, 1, payload)
    if len(payload) == 4:
        assert frame.credit() == int.from_bytes(payload, "big")
    else:
        with pytest.raises(wire.WireError):
            frame.credit()


@given(st.binary(max_size=3 * wire.CHUNK), st.integers(0, 2))
@settings(max_examples=20)
def test_data_of_any_size_is_packed_into_chunks(data: bytes, label: int):
    received = wire.Decoder(wire.FROM_SERVER).feed(wire.pack_data(7, data, label))
    assert b"".join(frame.payload for frame in received) == data
    assert all(frame.label == label and len(frame.payload) <= wire.CHUNK for frame in received)


class Windows(RuleBasedStateMachine):
    """Both ends of one direction of a stream, with bytes and credit under way between them."""

    def __init__(self) -> None:
        super().__init__()
        self.sender, self.receiver = wire.Window(), wire.Window()
        self.data: list[int] = []
        self.unconsumed = 0
        self.credit: list[int] = []
        self.size = wire.WINDOW

    @rule(size=st.integers(0, 2 * wire.MAX_WINDOW))
    def expect(self, size: int) -> None:
        if credit := self.receiver.widened(size):
            self.credit.append(credit)
            self.size = min(size, wire.MAX_WINDOW)

    @rule(size=st.integers(0, wire.WINDOW))
    def send(self, size: int) -> None:
        size = min(size, self.sender.left)
        self.sender.spend(size)
        self.data.append(size)

    @precondition(lambda self: self.data)
    @rule()
    def receive(self) -> None:
        size = self.data.pop(0)
        self.receiver.spend(size)
        self.unconsumed += size

    @rule(size=st.integers(0, wire.WINDOW))
    def consume(self, size: int) -> None:
        size = min(size, self.unconsumed)
        self.unconsumed -= size
        if credit := self.receiver.consumed(size):
            self.credit.append(credit)

    @precondition(lambda self: self.credit)
    @rule()
    def grant(self) -> None:
        self.sender.grant(self.credit.pop(0))

    @rule(beyond=st.integers(1, 2**32 - 1))
    def break_the_rules(self, beyond: int) -> None:
        for window in (self.sender, self.receiver):
            with pytest.raises(wire.WireError):
                window.spend(window.left + beyond)
            with pytest.raises(wire.WireError):
                window.grant(wire.MAX_WINDOW - window.left + beyond)

    @invariant()
    def never_negative_and_never_over(self) -> None:
        assert 0 <= self.sender.left <= self.receiver.left <= self.size

    @invariant()
    def a_sender_is_never_stuck(self) -> None:
        under_way = sum(self.data) + self.unconsumed + sum(self.credit)
        assert self.sender.left + under_way > self.size // 2


TestWindows = Windows.TestCase
TestWindows.settings = settings(max_examples=50, stateful_step_count=30)
