from __future__ import annotations

import json
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.boxd.connection import Refusal
from box_mcp.boxd.editing import MAX_REQUEST
from box_mcp.boxd.edits import MAX_PLACES, MAX_SIZE, Edit, apply, composed, hunks
from tests.support.boxd import Client, Failed, LocalBoxd

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from box_mcp.boxd.edits import Span
    from tests.support.boxd import Call

TEXTS = st.text(st.sampled_from("ab\n"), max_size=20)
PARTS = st.text(st.sampled_from("ab\n"), min_size=1, max_size=3)


def edit(old: str, new: str, *, everywhere: bool = False) -> dict[str, Any]:
    return {"old": old, "new": new, "all": everywhere}


def begin(client: Client, path: str, *edits: dict[str, Any], **options: Any) -> Call:
    call = client.open("edit", path=path, **{"max_bytes": 100_000, **options})
    return call.send(json.dumps(edits).encode()).finish()


def change(client: Client, path: str, *edits: dict[str, Any], **options: Any) -> dict[str, Any]:
    return begin(client, path, *edits, **options).result()


def refused(client: Client, path: str, *edits: dict[str, Any], **options: Any) -> str:
    with pytest.raises(Failed) as caught:
        change(client, path, *edits, **options)
    return caught.value.code


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))  # noqa: PTH208 - names, not paths


def finished(
    work: Generator[bytes, None, tuple[bytes, list[Span], int]],
) -> tuple[bytes, list[Span], int]:
    try:
        while True:
            next(work)
    except StopIteration as stop:
        return stop.value


def test_edits_are_done_in_order_and_what_changed_is_told(client: Client, boxd: LocalBoxd):
    client.write("file", b"".join(b"%d\n" % number for number in range(1, 31)))
    call = begin(client, "file", edit("5\n6\n", "five\n"), edit("five", "FIVE"), edit("29\n", ""))
    result = call.result()
    assert (result["done"], result["places"], result["hunks"]) == (True, 3, 2)
    assert [json.loads(line) for line in call.data.splitlines()] == [
        [2, 2, "2\n3\n4\n5\n6\n7\n8\n9\n", "2\n3\n4\nFIVE\n7\n8\n9\n"],
        [26, 25, "26\n27\n28\n29\n30\n", "26\n27\n28\n30\n"],
    ]
    expected = [*"1234", "FIVE", *map(str, [7, 8, 9, *range(10, 29), 30])]
    assert (boxd.workspace / "file").read_text().split() == expected
    assert client.call("stat", path="file")["version"] == result["version"]


@pytest.mark.parametrize(
    ("edits", "told"),
    [
        ([edit("none", "x")], {"edit": 1, "matches": 0, "lines": []}),
        ([edit("one", "1"), edit("o", "0")], {"edit": 2, "matches": 2, "lines": [2, 4]}),
        ([edit("one", "1"), edit("one", "2")], {"edit": 2, "matches": 0, "lines": []}),
        ([edit("none", "x", everywhere=True)], {"edit": 1, "matches": 0, "lines": []}),
    ],
)
def test_when_one_edit_does_not_match_nothing_is_changed(
    client: Client, boxd: LocalBoxd, edits: list[dict[str, Any]], told: dict[str, Any]
):
    content = b"one\ntwo\nthree\nfour\n"
    client.write("file", content)
    result = change(client, "file", *edits)
    assert result["done"] is False
    assert {name: result[name] for name in told} == told
    assert (boxd.workspace / "file").read_bytes() == content
    assert names(boxd.workspace) == ["file"]


def test_a_dry_run_tells_the_same_and_changes_nothing(client: Client, boxd: LocalBoxd):
    version = client.write("file", b"one\n")["version"]
    dry = begin(client, "file", edit("one", "two"), dry_run=True)
    assert dry.result()["version"] == version
    assert (boxd.workspace / "file").read_bytes() == b"one\n"
    real = begin(client, "file", edit("one", "two"))
    assert real.result()["version"] != version
    assert real.data == dry.data


def test_a_version_that_is_not_the_files_is_refused(client: Client, boxd: LocalBoxd):
    first = client.write("file", b"one\n")["version"]
    change(client, "file", edit("one", "two"), if_version=first)
    assert refused(client, "file", edit("two", "three"), if_version=first) == "changed"
    assert (boxd.workspace / "file").read_bytes() == b"two\n"


@pytest.mark.parametrize(
    ("content", "edits", "expected"),
    [
        (b"a\r\nb\r\nc\r\n", [edit("a\nb", "x\ny\nz")], b"x\r\ny\r\nz\r\nc\r\n"),
        (b"a\r\nb\r\nc\n", [edit("c\n", "d\n")], b"a\r\nb\r\nd\n"),
        (b"a\r\nb\r\n", [edit("a\r\n", "x\r\n")], b"x\r\nb\r\n"),
        (b"a\nb\r\nc\n", [edit("b\r\n", "x\n")], b"a\nx\nc\n"),
        (b"\xef\xbb\xbfa\n", [edit("a", "ä")], b"\xef\xbb\xbf\xc3\xa4\n"),
        ("\ufeffGröße\r\nb\r\n".encode("utf-16-le"), [edit("öße\nb", "ß\n€")],
         "\ufeffGrß\r\n€\r\n".encode("utf-16-le")),
        ("\ufeffa\n".encode("utf-16-be"), [edit("a", "😀")], "\ufeff😀\n".encode("utf-16-be")),
        ("Größe\n".encode("cp1252"), [edit("ö", "€")], "Gr€ße\n".encode("cp1252")),
        (b"\xe4 \x81\n", [edit("ä", "ö")], b"\xf6 \x81\n"),
        (b"odd \xff\xfe here" + b"x" * 70_000 + b"\x80",
         [edit("here", "there")], b"odd \xff\xfe there" + b"x" * 70_000 + b"\x80"),
        (b"x" * 70_000 + b"\x00\xff end", [edit("end", "END")], b"x" * 70_000 + b"\x00\xff END"),
    ],
    ids=lambda value: ascii(value)[:20],
)  # fmt: skip
def test_line_ends_marks_and_encodings_stay_as_they_are(
    client: Client, boxd: LocalBoxd, content: bytes, edits: list[dict[str, Any]], expected: bytes
):
    client.write("file", content)
    assert change(client, "file", *edits)["done"]
    assert (boxd.workspace / "file").read_bytes() == expected


@pytest.mark.parametrize(
    ("content", "edits", "code"),
    [
        (b"a", [edit("", "x")], "invalid"),
        (b"a", [edit("a", "a")], "invalid"),
        (b"a", [{"old": "a"}], "invalid"),
        (b"a\0b", [edit("a", "x")], "binary"),
        (b"\x89PNG\r\n\x1a\n", [edit("P", "x")], "binary"),
        (b"\xff\xfea", [edit("a", "x")], "binary"),
        ("Größe".encode("cp1252"), [edit("G", "😀")], "invalid"),
        (b"a" * 1000, [edit("a", "b" * (MAX_SIZE // 1000 + 1), everywhere=True)], "too_large"),
        (b"a" * (MAX_PLACES + 1), [edit("a", "b", everywhere=True)], "too_large"),
        (b"a", [edit("a", "b" * MAX_REQUEST)], "too_large"),
        (b"a" * (MAX_SIZE + 1), [edit("a", "b")], "too_large"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_what_can_not_be_edited_is_refused_and_stays(
    client: Client, boxd: LocalBoxd, content: bytes, edits: list[dict[str, Any]], code: str
):
    client.write("file", content)
    assert refused(client, "file", *edits) == code
    assert (boxd.workspace / "file").read_bytes() == content


@pytest.mark.parametrize(
    ("path", "code"),
    [("none", "not_found"), ("folder", "is_directory"), ("fifo", "not_a_file"), ("ro", "denied")],
)
def test_what_is_no_file_to_write_is_refused(client: Client, path: str, code: str):
    client.run("mkdir folder; mkfifo fifo; echo a > ro; chmod 444 ro").result()
    assert refused(client, path, edit("a", "b")) == code


def test_a_symlink_is_edited_through_and_the_mode_stays(client: Client, boxd: LocalBoxd):
    client.run("echo old > file; chmod 751 file; ln -s file link").result()
    change(client, "link", edit("old", "new"))
    assert (boxd.workspace / "link").is_symlink()
    assert (boxd.workspace / "file").read_text() == "new\n"
    assert (boxd.workspace / "file").stat().st_mode & 0o7777 == 0o751


def test_changes_beyond_the_room_for_them_are_counted_and_done(client: Client, boxd: LocalBoxd):
    client.write("file", b"\n\n\n\n\n\n\n\na".join([b""] * 3_001))
    call = begin(client, "file", edit("a", "b", everywhere=True), max_bytes=1000)
    assert call.result()["hunks"] == 3_000
    assert 0 < len(call.data) <= 1000
    assert (boxd.workspace / "file").read_bytes().count(b"b") == 3_000
    client.write("line", b"x" * 1_000_000 + b"a")
    call = begin(client, "line", edit("a", "b"))
    assert (call.result()["hunks"], call.data) == (1, b"")


def test_many_places_in_one_giant_line_do_not_hold_others_up():
    text = (b"x" * 1000 + b"a") * MAX_PLACES + b"\nend\n"
    new, spans, _ = finished(apply(text, [Edit("a", "bb", everywhere=True)], "utf-8", crlf=False))
    started = time.process_time()
    (hunk,) = hunks(text, new, spans)
    assert time.process_time() - started < 0.5
    assert hunk == (1, 1, text, new)


def test_a_large_edit_lets_others_through(client: Client):
    client.write("file", b"some line of a file\n" * (MAX_SIZE // 21) + b"end")
    call = begin(client, "file", edit("end", "END"))
    client.call("stat", path="file")
    assert not call.done
    assert call.result()["done"]


def test_a_file_that_is_replaced_meanwhile_is_not_overwritten(client: Client, boxd: LocalBoxd):
    client.write("file", b"some line of a file\n" * (MAX_SIZE // 21) + b"end")
    call = begin(client, "file", edit("end", "END"))
    client.call("stat", path="file")
    (boxd.workspace / "theirs").write_bytes(b"theirs")
    (boxd.workspace / "theirs").rename(boxd.workspace / "file")
    (boxd.workspace / "file").chmod(0o666)
    with pytest.raises(Failed) as caught:
        call.result()
    assert caught.value.code == "changed"
    assert (boxd.workspace / "file").read_bytes() == b"theirs"
    assert names(boxd.workspace) == ["file"]


@pytest.mark.parametrize("leave", ["cancel", "disconnect"])
def test_an_edit_given_up_leaves_the_file_and_nothing_else(
    boxd: LocalBoxd, client: Client, leave: str
):
    content = b"some line of a file\n" * (MAX_SIZE // 21) + b"end"
    client.write("file", content)
    with boxd.connect() as other:
        call = begin(other, "file", edit("end", "END"))
        other.call("stat", path="file")
        if leave == "cancel":
            with pytest.raises(Failed):
                call.cancel().result()
    client.call("stat", path="file")
    assert (boxd.workspace / "file").read_bytes() in (content, content[:-3] + b"END")
    assert names(boxd.workspace) == ["file"]


def test_boxd_killed_in_the_middle_of_edits_leaves_the_file_whole(boxd: LocalBoxd):
    """While another process rewrites it in place of its own accord, and looks at it."""
    path = boxd.workspace / "file"
    body = b"some line of a file\n" * 100_000
    path.write_bytes(body + b"0")
    path.chmod(0o666)
    over = threading.Event()
    torn: list[int] = []

    def rewrite() -> None:
        while not over.is_set():
            data = path.read_bytes()
            if data[:-1] != body or data[-1:] not in (b"0", b"1"):
                torn.append(len(data))
            beside = boxd.workspace / "beside"
            beside.write_bytes(body + b"0")
            beside.chmod(0o666)
            beside.rename(path)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(4):
            with boxd.connect() as client:
                for _ in range(3):
                    begin(client, "file", edit("file\n0", "file\n1"))
                boxd.process.send_signal(signal.SIGKILL)
                client.wait_for_disconnect()
            boxd.process.wait()
            boxd.start()
    finally:
        over.set()
        writer.join()
    assert torn == []
    assert path.read_bytes()[:-1] == body


@given(TEXTS, st.lists(st.tuples(PARTS, TEXTS), max_size=4))
def test_edits_everywhere_are_what_replace_does_one_after_the_other(
    text: str, edits: list[tuple[str, str]]
):
    asked: list[Edit] = []
    expected = text
    for old, new in edits:
        if old in expected and old != new:
            asked.append(Edit(old, new, everywhere=True))
            expected = expected.replace(old, new)
    changed, spans, _ = finished(apply(text.encode(), asked, "utf-8", crlf=False))
    assert changed.decode() == expected
    assert rebuilt(text.encode(), changed, spans) == changed
    assert patched(text.encode(), changed, spans) == changed


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 3)), max_size=3))
def test_spans_of_no_size_and_side_by_side_are_composed(steps: list[tuple[int, int, int]]):
    text = original = b"0123456789"
    spans: list[Span] = []
    for place, length, size in steps:
        start, end = min(place, len(text)), min(place + length, len(text))
        text = text[:start] + b"x" * size + text[end:]
        spans = composed(spans, [(start, end, size)])
    assert rebuilt(original, text, spans) == text


def rebuilt(old: bytes, new: bytes, spans: list[Span]) -> bytes:
    """What `old` becomes by `spans`, whose content is taken from `new`."""
    built = bytearray()
    at = 0
    for start, end, size in spans:
        assert start >= at
        built += old[at:start]
        built += new[len(built) : len(built) + size]
        at = end
    return bytes(built + old[at:])


def patched(old: bytes, new: bytes, spans: list[Span]) -> bytes:
    """What `old` becomes by the hunks, which must fit by their line numbers."""
    lines = old.splitlines(keepends=True)
    built: list[bytes] = []
    at = 0
    for old_line, new_line, before, after in hunks(old, new, spans):
        built += lines[at : old_line - 1]
        assert new_line - 1 == len(built)
        removed = before.splitlines(keepends=True)
        assert lines[old_line - 1 : old_line - 1 + len(removed)] == removed
        built += after.splitlines(keepends=True)
        at = old_line - 1 + len(removed)
    return b"".join(built + lines[at:])


def test_a_refusal_of_an_edit_says_what_to_do():
    with pytest.raises(Refusal, match="file_write makes and appends to files"):
        Edit("", "x", everywhere=False)
