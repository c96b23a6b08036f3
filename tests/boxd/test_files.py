from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from box_mcp.boxd import wire
from tests.support.boxd import Client, Failed, LocalBoxd, eventually

if TYPE_CHECKING:
    from pathlib import Path

LINES = b"".join(b"line %d\n" % number for number in range(1, 50_001))
LIMITS = {"max_lines": 1000, "max_bytes": 100_000}


def read(client: Client, path: str, **request: Any) -> tuple[bytes, dict[str, Any]]:
    call = client.open("read", path=path, **{**LIMITS, **request})
    result = call.result()
    return call.data, result


def entries(client: Client, path: str, limit: int = 100_000) -> list[dict[str, Any]]:
    call = client.open("list", path=path, limit=limit)
    call.result()
    return [json.loads(line) for line in call.data.splitlines()]


def refused(client: Client, op: str, **request: Any) -> str:
    with pytest.raises(Failed) as caught:
        client.call(op, **{**LIMITS, "limit": 10, **request})
    return caught.value.code


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))  # noqa: PTH208 - names, not paths


def test_a_file_written_is_read_back(client: Client):
    assert client.write("/workspace/a", b"x\ny\n") == {"size": 4, "created": True}
    content, result = read(client, "/workspace/a")
    assert content == b"x\ny\n"
    assert (result["kind"], result["size"], result["mode"]) == ("file", 4, 0o644)
    assert (result["lines"], result["more"]) == (2, False)


def test_a_relative_path_is_below_the_workspace(client: Client, boxd: LocalBoxd):
    client.write("a/../b", b"x")
    assert names(boxd.workspace) == ["b"]


def test_a_path_cannot_leave_the_root_by_dots(client: Client, boxd: LocalBoxd):
    client.write("/../../workspace/b", b"x")
    assert names(boxd.workspace) == ["b"]


@pytest.mark.parametrize(("first", "count"), [(1, 1), (2, 3), (9_000, 10), (49_999, 9), (0, 2)])
def test_a_range_of_lines_is_read_exactly(client: Client, first: int, count: int):
    client.write("lines", LINES)
    content, result = read(client, "lines", first_line=first, max_lines=count)
    start = max(first, 1) - 1
    assert content.splitlines() == LINES.splitlines()[start : start + count]
    assert result["lines"] == len(content.splitlines())
    assert result["more"] == (start + count < 50_000)


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


def test_a_line_longer_than_the_limit_is_cut(client: Client):
    client.write("long", b"x" * 1_000_000 + b"\nend\n")
    content, result = read(client, "long", max_bytes=300_000)
    assert content == b"x" * 300_000
    assert (result["lines"], result["more"]) == (1, True)
    assert read(client, "long", first_line=2)[0] == b"end\n"


def test_a_last_line_without_newline_is_a_line(client: Client):
    client.write("open", b"a\nb")
    content, result = read(client, "open")
    assert (content, result["lines"], result["more"]) == (b"a\nb", 2, False)


def test_an_empty_file_has_no_lines(client: Client):
    client.write("empty", b"")
    content, result = read(client, "empty")
    assert (content, result["lines"], result["more"]) == (b"", 0, False)


def test_a_fifo_is_refused_without_waiting_for_its_other_end(client: Client, boxd: LocalBoxd):
    client.run("mkfifo fifo").result()
    assert refused(client, "read", path="fifo") == "not_a_file"
    assert refused(client, "write", path="fifo") == "invalid"
    assert client.call("stat", path="fifo")["kind"] == "other"


def test_a_directory_is_refused(client: Client):
    client.run("mkdir folder").result()
    assert refused(client, "read", path="folder") == "is_directory"
    assert refused(client, "write", path="folder") == "is_directory"


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
    assert refused(client, "read", path=path) == code


@pytest.mark.parametrize("missing", ["path", "max_lines", "max_bytes"])
def test_a_malformed_request_is_refused(client: Client, missing: str):
    request = {"path": "a", **LIMITS}
    del request[missing]
    with pytest.raises(Failed) as caught:
        client.call("read", **request)
    assert caught.value.code == "invalid"


def test_stat_tells_a_symlink_and_its_target(client: Client):
    client.run("ln -s anywhere link").result()
    found = client.call("stat", path="link")
    assert (found["kind"], found["target"]) == ("symlink", "anywhere")


@pytest.mark.parametrize("leave", ["cancel", "disconnect", "boxd stops"])
def test_a_write_given_up_leaves_the_old_file_and_nothing_else(boxd: LocalBoxd, leave: str):
    (boxd.workspace / "file").write_bytes(b"old")
    (boxd.workspace / "file").chmod(0o666)
    with boxd.connect() as client:
        call = client.open("write", path="file").send(b"x" * 3 * wire.WINDOW)
        assert len(names(boxd.workspace)) == 2
        if leave == "cancel":
            with pytest.raises(Failed):
                call.cancel().result()
        elif leave == "boxd stops":
            boxd.stop()
    eventually(lambda: names(boxd.workspace) == ["file"])
    assert (boxd.workspace / "file").read_bytes() == b"old"


def test_a_file_is_replaced_in_one_step_and_keeps_its_mode(client: Client, boxd: LocalBoxd):
    client.run("echo old > script; chmod 751 script").result()
    with (boxd.workspace / "script").open("rb") as reader:
        assert client.write("script", b"new\n") == {"size": 4, "created": False}
        assert reader.read() == b"old\n"
    assert (boxd.workspace / "script").read_bytes() == b"new\n"
    assert stat.S_IMODE((boxd.workspace / "script").stat().st_mode) == 0o751


def test_a_symlink_is_written_through(client: Client, boxd: LocalBoxd):
    client.run("mkdir real; echo old > real/file; ln -s real/file link; ln -s real/new ghost")
    eventually((boxd.workspace / "ghost").is_symlink)
    client.write("link", b"new\n")
    client.write("ghost", b"born\n")
    assert (boxd.workspace / "link").is_symlink()
    assert (boxd.workspace / "real" / "file").read_bytes() == b"new\n"
    assert (boxd.workspace / "real" / "new").read_bytes() == b"born\n"


def test_missing_parents_are_made(client: Client, boxd: LocalBoxd):
    client.write("a/b/c/file", b"x")
    assert (boxd.workspace / "a/b/c/file").read_bytes() == b"x"


def test_names_of_any_bytes_are_listed_and_can_be_read(client: Client, boxd: LocalBoxd):
    odd = [b"new\nline", b"not utf-8 \xff", b"quote\"'", "ü".encode(), b"-n"]
    for name in odd:
        with open(os.fsencode(boxd.workspace) + b"/" + name, "wb") as file:  # noqa: PTH123 - bytes
            file.write(name)
    listed = entries(client, "/workspace")
    assert sorted(os.fsencode(entry["name"]) for entry in listed) == sorted(odd)
    for entry in listed:
        assert read(client, entry["name"])[0] == os.fsencode(entry["name"])


def test_a_large_directory_of_the_longest_names_is_listed(client: Client, boxd: LocalBoxd):
    for number in range(2_000):
        name = b"\xff" * 250 + b"%04d" % number
        os.close(os.open(os.fsencode(boxd.workspace) + b"/" + name, os.O_CREAT))
    assert len(entries(client, "/workspace")) == 2_000
    call = client.open("list", path="/workspace", limit=7)
    assert call.result() == {"total": 2_000}
    assert len(call.data.splitlines()) == 7


def test_what_the_user_may_not_do_is_denied(client: Client, boxd: LocalBoxd):
    client.run("mkdir locked; touch locked/file secret fixed; chmod 0 secret").result()
    client.run("chmod 444 fixed; chmod 555 locked").result()
    assert refused(client, "read", path="secret") == "denied"
    assert refused(client, "write", path="fixed") == "denied"
    assert refused(client, "write", path="locked/new") == "denied"
    assert refused(client, "write", path="locked/below/new") == "denied"
    client.run("chmod 755 locked").result()


def test_file_work_leaves_no_descriptors(client: Client, boxd: LocalBoxd):
    client.write("lines", LINES)
    before = boxd.facts.num_fds()
    for number in range(100):
        client.write(f"file{number}", b"x")
        read(client, "lines", max_lines=3)
        refused(client, "read", path="missing")
        call = client.open("read", path="lines", max_lines=10**9, max_bytes=10**9).cancel()
        client.pump_until(lambda call=call: call.done)
        with pytest.raises(Failed):
            client.open("write", path="given up").send(b"x").cancel().result()
    assert boxd.facts.num_fds() == before
    assert "given up" not in names(boxd.workspace)
