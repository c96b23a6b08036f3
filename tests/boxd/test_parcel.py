from __future__ import annotations

import random
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.boxd.parcel import (
    DIRECTORY,
    END,
    FILE,
    LAST,
    LINK,
    MAX_HELD,
    MAX_PATH,
    Entry,
    ParcelError,
    Sink,
    TooMuch,
    Unpacker,
)

Said = tuple[int, int, int, bytes, bytes]
"""Kind, mode, time, path and content of an entry."""

HEADER = struct.Struct("!BHQqH")
TOP = Entry(DIRECTORY, 0o755, 0, 0, b"").packed()

names = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)


class Heard(Sink):
    """Remembers what came."""

    def __init__(self) -> None:
        self.entries: list[Said] = []
        self._content = b""

    def begin(self, entry: Entry) -> None:
        self._content = b""

    def content(self, data: memoryview) -> None:
        self._content += data

    def finish(self, entry: Entry) -> None:
        self.entries.append((entry.kind, entry.mode, entry.modified, entry.path, self._content))


@st.composite
def trees(draw: st.DrawFn) -> list[Said]:
    """Any tree in an order that a parcel may have."""
    modes, times = st.integers(0, 0o1777), st.integers(-(2**63), 2**63 - 1)
    tree: list[Said] = [(DIRECTORY, draw(modes), draw(times), b"", b"")]
    directories = [b""]
    for name in draw(st.lists(names, max_size=12, unique=True)):
        above = draw(st.sampled_from(directories))
        path = above + b"/" + name if above else name
        kind = draw(st.sampled_from([DIRECTORY, FILE, LINK]))
        content = b""
        if kind == DIRECTORY:
            directories.append(path)
        else:
            content = draw(st.binary(min_size=kind == LINK, max_size=400))
        tree.append((kind, draw(modes), draw(times), path, content))
    return tree


def packed(tree: list[Said]) -> bytes:
    entries = [
        Entry(kind, mode, len(content), modified, path).packed() + content
        for kind, mode, modified, path, content in tree
    ]
    return b"".join([*entries, LAST.packed()])


def unpacked(data: bytes, *limits: int) -> list[Said]:
    heard = Heard()
    unpacker = Unpacker(heard, *limits)
    unpacker.feed(data)
    assert unpacker.ended
    return heard.entries


def header(
    kind: int = FILE, path: bytes = b"f", size: int = 0, mode: int = 0o644, told: int | None = None
) -> bytes:
    return HEADER.pack(kind, mode, size, 0, len(path) if told is None else told) + path


@given(trees(), st.randoms(use_true_random=False))
def test_any_tree_comes_back_however_its_bytes_are_cut(tree: list[Said], cut: random.Random):
    data = packed(tree)
    heard = Heard()
    unpacker = Unpacker(heard)
    while data:
        size = cut.randint(1, 60)
        assert not unpacker.ended
        unpacker.feed(data[:size])
        data = data[size:]
    assert unpacker.ended
    assert heard.entries == tree


@given(trees(), st.binary(max_size=60), st.integers(0, 2000))
def test_garbage_is_taken_for_a_parcel_or_refused(tree: list[Said], garbage: bytes, place: int):
    data = packed(tree)
    with suppress(ParcelError):
        Unpacker(Heard()).feed(data[:place] + garbage + data[place + len(garbage) :])


@pytest.mark.parametrize(
    "path",
    [
        b"/etc/passwd",
        b"..",
        b"../x",
        b"d/../../x",
        b".",
        b"d/./x",
        b"d//x",
        b"d/",
        b"/",
        b"nul\0byte",
        b"n" * 256,
        b"d/" + b"n" * 256,
    ],
)
def test_a_path_that_could_lead_elsewhere_is_refused(path: bytes):
    data = TOP + header(DIRECTORY, b"d") + header(path=path)
    with pytest.raises(ParcelError):
        unpacked(data)


@pytest.mark.parametrize("kind", [4, 5, 6, 255])
def test_there_are_no_devices_nor_hard_links(kind: int):
    with pytest.raises(ParcelError, match="of kind"):
        unpacked(TOP + header(kind))


@pytest.mark.parametrize(
    "data",
    [
        header(DIRECTORY, b"d", size=1),
        header(LINK, b"l", size=0),
        header(LINK, b"l", size=MAX_PATH + 1),
        header(END, b"name"),
        header(END, b"", size=1),
        header(END, b"", mode=1),
        header(path=b"", told=MAX_PATH + 1),
        LAST.packed() + b"x",
        LAST.packed() + LAST.packed(),
        header(path=b""),
        header(DIRECTORY, b""),
        header(DIRECTORY, b"d") * 2,
        header(path=b"d/x"),
        header(path=b"d") + header(path=b"d/x"),
        header(LINK, b"d", size=1) + b"/" + header(path=b"d/x"),
    ],
)
def test_what_breaks_the_format_is_refused(data: bytes):
    with pytest.raises(ParcelError):
        unpacked(TOP + data)


@pytest.mark.parametrize("data", [LAST.packed(), header(path=b"f"), header(DIRECTORY, b"d")])
def test_the_first_entry_is_the_place_itself(data: bytes):
    with pytest.raises(ParcelError):
        unpacked(data)


@pytest.mark.parametrize("kind", [FILE, LINK])
def test_nothing_comes_behind_a_single_file(kind: int):
    one = header(kind, b"", size=1) + b"x"
    assert [entry[0] for entry in unpacked(one + LAST.packed())] == [kind]
    with pytest.raises(ParcelError):
        unpacked(one + header(path=b"x"))


def test_a_mode_bears_no_setuid_nor_setgid():
    (entry,) = unpacked(header(path=b"", mode=0o7755) + LAST.packed())
    assert entry[1] == 0o1755


def test_more_bytes_than_are_taken_are_refused_before_they_come():
    heard = Heard()
    unpacker = Unpacker(heard, max_bytes=100)
    unpacker.feed(TOP + header(path=b"a", size=60) + bytes(60))
    with pytest.raises(TooMuch):
        unpacker.feed(header(path=b"b", size=41))
    assert [entry[3] for entry in heard.entries] == [b"", b"a"]


@pytest.mark.parametrize("kind", [DIRECTORY, LINK])
def test_names_that_would_fill_the_memory_are_refused(kind: int):
    unpacker = Unpacker(Sink())
    unpacker.feed(TOP)
    size = 4000 if kind == LINK else 0
    most = MAX_HELD // (250 + size)
    sent = [header(kind, b"%0250d" % number, size) + bytes(size) for number in range(most + 1)]
    unpacker.feed(b"".join(sent[:most]))
    with pytest.raises(TooMuch):
        unpacker.feed(sent[most])


def test_a_size_that_no_file_has_is_refused():
    with pytest.raises(TooMuch):
        unpacked(TOP + header(size=2**64 - 1))


def test_more_entries_than_are_taken_are_refused():
    data = TOP + b"".join(header(path=b"%d" % number) for number in range(9))
    assert len(unpacked(data + LAST.packed(), 0, 10)) == 10
    with pytest.raises(TooMuch):
        unpacked(data + LAST.packed(), 0, 9)
