from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from box_mcp.boxd import wire
from box_mcp.boxd.reading import COUNTED, SAMPLE
from tests.support.boxd import Client, Failed, LocalBoxd, descriptors_given_back, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

LINES = b"".join(b"line %d\n" % number for number in range(1, 50_001))
LIMITS = {"max_lines": 1000, "max_bytes": 100_000, "fold": 2000}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


def read(client: Client, path: str, **request: Any) -> tuple[bytes, dict[str, Any]]:
    call = client.open("read", path=path, **{**LIMITS, **request})
    result = call.result()
    return call.data, result


def refused(client: Client, **request: Any) -> str:
    with pytest.raises(Failed) as caught:
        client.call("read", **{**LIMITS, **request})
    return caught.value.code


def test_a_file_written_is_read_back(client: Client):
    version = client.write("/workspace/a", b"x\ny\n")["version"]
    content, result = read(client, "/workspace/a")
    assert content == b"x\ny\n"
    assert (result["kind"], result["size"], result["mode"]) == ("file", 4, 0o644)
    assert (result["lines"], result["total"], result["more"]) == (2, 2, False)
    assert (result["text"], result["encoding"], result["crlf"]) == (True, "utf-8", False)
    assert result["version"] == version


@pytest.mark.parametrize("how", [{}, {"tail": 9}, {"offset": 0, "length": 2000}], ids=str)
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_small_file_is_read_in_one_message_each_way(
    client: Client, how: dict[str, int], end: bytes
):
    client.write("a", b"x" * 1023 + end)
    call = client.open("read", path="a", **LIMITS, **how)
    client.pump_until(lambda: call.pieces)
    assert call.done
    assert len(call.pieces) == 1


@pytest.mark.parametrize(("first", "count"), [(1, 1), (2, 3), (9_000, 10), (49_999, 9), (0, 2)])
def test_a_range_of_lines_is_read_exactly(client: Client, first: int, count: int):
    client.write("lines", LINES)
    content, result = read(client, "lines", first_line=first, max_lines=count)
    start = max(first, 1) - 1
    assert content.splitlines() == LINES.splitlines()[start : start + count]
    assert result["lines"] == len(content.splitlines())
    assert result["more"] == (start + count < 50_000)
    assert result["total"] == 50_000


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([b"", b"a", b"\xc3\xa4" * 3, b"x" * 70]), max_size=12).map(b"\n".join),
    st.integers(1, 14),
    st.integers(1, 14),
    st.integers(1, 200),
)
def test_any_range_is_what_a_split_of_the_whole_file_gives(
    client: Client, data: bytes, first: int, count: int, room: int
):
    client.write("any", data)
    lines = data.splitlines(keepends=True)
    expected: list[bytes] = []
    for line in lines[first - 1 : first - 1 + count]:
        if expected and len(b"".join(expected)) + len(line) > room:
            break
        expected.append(line)
    content, result = read(client, "any", first_line=first, max_lines=count, max_bytes=room)
    assert content == b"".join(expected)
    assert (result["lines"], result["total"]) == (len(expected), len(lines))
    assert result["more"] == (first - 1 + len(expected) < len(lines))

    content, result = read(client, "any", tail=count, max_bytes=10_000)
    assert content == b"".join(lines[-count:])
    assert (result["lines"], result["total"]) == (len(lines[-count:]), len(lines))
    assert lines[result["first_line"] - 1 :] == lines[-count:]

    content, result = read(client, "any", offset=first, length=count)
    assert content == data[first : first + count]
    assert result["more"] == (first + count < len(data))


def test_a_range_behind_the_end_is_empty(client: Client):
    client.write("lines", LINES)
    content, result = read(client, "lines", first_line=50_001)
    assert (content, result["lines"], result["more"]) == (b"", 0, False)


def test_a_file_larger_than_a_window_is_read_whole(client: Client):
    data = LINES * 5
    client.write("large", data)
    content, result = read(client, "large", max_lines=10**9, max_bytes=10**9)
    assert content == data
    assert (result["lines"], result["more"]) == (250_000, False)


def test_a_giant_line_is_folded_and_hides_nothing_behind_it(client: Client):
    client.write("long", b"first\n" + b"x" * 1_000_000 + b"\nend\n")
    content, result = read(client, "long", max_bytes=10_000)
    folded = b"x" * 2000 + b" [... 998000 bytes left out from offset 2006 ...]"
    assert content == b"first\n" + folded + b"\nend\n"
    assert (result["lines"], result["total"], result["more"]) == (3, 3, False)
    assert read(client, "long", offset=2006, length=3)[0] == b"xxx"
    assert read(client, "long", first_line=3)[0] == b"end\n"
    assert read(client, "long", tail=2)[0] == folded + b"\nend\n"


def test_lines_of_large_files_are_not_counted_but_the_last_ones_are_found(client: Client):
    data = LINES * (COUNTED // len(LINES) + 1)
    assert len(data) > COUNTED
    client.write("huge", data)
    content, result = read(client, "huge", first_line=60_000, max_lines=2)
    assert content == b"line 10000\nline 10001\n"
    assert (result["total"], result["more"]) == (None, True)
    content, result = read(client, "huge", tail=30_000, max_bytes=10**6)
    assert content == b"".join(LINES.splitlines(keepends=True)[-30_000:])
    assert (result["first_line"], result["total"], result["lines"]) == (None, None, 30_000)
    assert read(client, "huge", tail=3, max_bytes=25)[0] == b"line 49999\nline 50000\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "cp1252", "utf-8-sig"])
def test_other_encodings_come_as_utf8(client: Client, encoding: str):
    text = "".join(f"{number} Größe €\r\n" for number in range(9_000))
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    client.write("text", mark + text.encode(encoding))
    content, result = read(client, "text", max_lines=10**6, max_bytes=10**6)
    assert content.decode() == text
    assert result["encoding"] == {"utf-16": "utf-16-le", "utf-8-sig": "utf-8"}.get(
        encoding, encoding
    )
    assert (result["crlf"], result["bom"]) == (True, encoding != "cp1252")
    assert read(client, "text", first_line=8_000, max_lines=1)[0].decode() == "7999 Größe €\r\n"
    assert read(client, "text", tail=1)[0].decode() == "8999 Größe €\r\n"


@pytest.mark.parametrize("how", [{}, {"tail": 5}])
def test_of_a_file_that_is_no_text_the_first_bytes_come(client: Client, how: dict[str, int]):
    data = bytes(range(256)) * 100
    client.write("binary", data)
    content, result = read(client, "binary", **how)
    assert (content, result["text"], result["more"]) == (data[:SAMPLE], False, True)


@pytest.mark.parametrize(("limit", "whole"), [(len(PNG), True), (len(PNG) - 1, False), (0, False)])
def test_a_picture_comes_whole_or_not_at_all(client: Client, limit: int, whole: bool):
    client.write("picture", PNG)
    content, result = read(client, "picture", media_limit=limit)
    assert content == (PNG if whole else PNG[:SAMPLE])
    assert (result["media"], result["more"]) == ("image/png", not whole)


def test_a_whole_file_is_refused_when_it_is_too_large(client: Client):
    client.write("file", b"x" * 100)
    assert read(client, "file", offset=0, length=100, whole=True)[0] == b"x" * 100
    assert refused(client, path="file", offset=0, length=99, whole=True) == "too_large"


def test_a_file_without_a_size_is_read_to_its_end(client: Client, boxd: LocalBoxd):
    client.run("ln -s /proc/self/status status").result()
    (boxd.root / "proc").symlink_to("/proc")
    content, result = read(client, "/proc/version")
    assert content.startswith(b"Linux version")
    assert (result["size"], result["lines"], result["more"]) == (0, 1, False)
    assert refused(client, path="/proc/version", offset=0, length=9, whole=True) == "too_large"


def test_a_large_read_lets_others_through(client: Client):
    client.write("long", b"x" * 30_000_000)
    slow = client.open("read", path="long", **LIMITS)
    client.call("stat", path="long")
    assert not slow.done
    assert slow.result()["lines"] == 1


def test_a_fifo_is_refused_without_waiting_for_its_other_end(client: Client):
    client.run("mkfifo fifo").result()
    assert refused(client, path="fifo") == "not_a_file"
    assert client.call("stat", path="fifo")["kind"] == "other"


def test_stat_tells_a_symlink_and_its_target(client: Client):
    client.run("ln -s anywhere link").result()
    found = client.call("stat", path="link")
    assert (found["kind"], found["target"]) == ("symlink", "anywhere")


def test_a_directory_is_refused(client: Client):
    client.run("mkdir folder").result()
    assert refused(client, path="folder") == "is_directory"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("missing", "not_found"),
        ("file/below", "not_directory"),
        ("loop", "invalid"),
        ("n" * 300, "invalid"),
        ("nul\0byte", "invalid"),
        ("half \ud800 a character", "invalid"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(client: Client, path: str, code: str):
    client.run("touch file; ln -s loop loop").result()
    assert refused(client, path=path) == code


@pytest.mark.parametrize("missing", ["path", "max_lines", "max_bytes"])
def test_a_malformed_request_is_refused(client: Client, missing: str):
    request = {"path": "a", **LIMITS}
    del request[missing]
    with pytest.raises(Failed) as caught:
        client.call("read", **request)
    assert caught.value.code == "invalid"


def test_reading_leaves_no_descriptors(client: Client, boxd: LocalBoxd):
    client.write("lines", LINES)
    client.write("binary", b"\0")
    ask: list[Callable[[], Any]] = [
        lambda: read(client, "lines", max_lines=3),
        lambda: read(client, "lines", tail=3),
        lambda: read(client, "binary"),
        lambda: refused(client, path="missing"),
        lambda: refused(client, path="."),
        lambda: refused(client, path="lines", offset=0, length=1, whole=True),
    ]
    eventually(boxd.at_rest)
    with descriptors_given_back(boxd.facts):
        for _ in range(20):
            for act in ask:
                act()
            call = client.open("read", path="lines", offset=0, length=10 * wire.WINDOW).cancel()
            client.pump_until(lambda call=call: call.done)
