from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import portalocker
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from box_mcp.cli import main
from box_mcp.observe.verifying import MAX_BREAKS, verify
from tests.observe.test_audit import CALLED, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COUNT = 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An audit of ten lines in one file."""
    path = tmp_path / "audit.jsonl"
    write(path, [CALLED] * COUNT)
    return path


def rewrite(path: Path, change: Callable[[list[bytes]], None]) -> None:
    found = path.read_bytes().splitlines(keepends=True)
    change(found)
    path.write_bytes(b"".join(found))


def test_a_whole_chain_has_no_breaks(path: Path):
    verdict = verify(path)
    assert (verdict.breaks, verdict.notes, verdict.lines, verdict.first) == ([], [], COUNT, 1)


def test_a_changed_line_is_found_by_the_next(path: Path):
    def change(lines: list[bytes]) -> None:
        lines[4] = lines[4].replace(b"alice", b"mallo")

    rewrite(path, change)
    assert verify(path).breaks == ["audit.jsonl, line 6: line 5, which is before it, was changed"]


def test_a_changed_last_line_is_found_by_the_head(path: Path):
    def change(lines: list[bytes]) -> None:
        lines[-1] = lines[-1].replace(b"alice", b"mallo")

    rewrite(path, change)
    assert verify(path).breaks == ["line 10, the last, was changed"]


@pytest.mark.parametrize(
    ("first", "last", "gone"), [(4, 5, "line 4 is"), (4, 7, "lines 4 to 6 are")]
)
def test_removed_lines_are_missed(path: Path, first: int, last: int, gone: str):
    def change(lines: list[bytes]) -> None:
        del lines[first - 1 : last - 1]

    rewrite(path, change)
    said = f"audit.jsonl, line {first}: before it, {gone} missing"
    assert verify(path).breaks == [said]


def test_lines_that_were_put_in_are_found_though_they_bear_the_right_hash(path: Path):
    def change(lines: list[bytes]) -> None:
        lines.insert(5, lines[5].replace(b"alice", b"mallo"))

    rewrite(path, change)
    assert verify(path).breaks == ["audit.jsonl, line 7: before it, lines were put in (1)"]


def test_lines_that_are_none_of_an_audit_are_found(path: Path):
    rewrite(path, lambda lines: lines.insert(5, b"a line\n"))
    said = "audit.jsonl, line 6 is no line of an audit: it was put in, or changed"
    assert verify(path).breaks == [said]


def test_lines_that_changed_places_are_found(path: Path):
    def change(lines: list[bytes]) -> None:
        lines[3], lines[6] = lines[6], lines[3]

    rewrite(path, change)
    assert len(verify(path).breaks) >= 3


def test_a_cut_off_end_is_missed(path: Path):
    rewrite(path, lambda lines: lines.__delitem__(slice(7, None)))
    (said,) = verify(path).breaks
    assert said.startswith("the last line is 7, but lines up to 10 were written")


@pytest.mark.parametrize("torn", [b"", b'{"n": 8, "ti', bytes(100)])
def test_lines_that_a_power_cut_took_are_missed_when_others_follow(path: Path, torn: bytes):
    rewrite(path, lambda lines: lines.__setitem__(slice(7, None), [torn]))
    write(path, [CALLED] * 3)
    found = verify(path)
    assert found.last.n == 13
    assert found.breaks[-1].endswith("before it, lines 8 to 10 are missing")


def test_a_cut_off_end_is_missed_by_a_head_that_was_noted_elsewhere(path: Path):
    head = str(verify(path).last)
    rewrite(path, lambda lines: lines.__delitem__(slice(7, None)))
    path.with_name("audit.jsonl.head").unlink()
    assert verify(path).breaks == []
    said = "line 10, whose hash was given, is missing: the end was cut off"
    assert verify(path, head).breaks == [said]


def test_what_was_written_since_a_head_was_noted_is_whole(path: Path):
    head = verify(path).last
    write(path, [CALLED] * 3)
    assert verify(path, str(head)).breaks == []
    assert verify(path, head.hash).breaks == []


def test_a_chain_that_was_written_anew_is_not_the_one_that_was_noted(path: Path):
    head = verify(path).last
    for file in path.parent.iterdir():
        file.unlink()
    write(path, [CALLED] * COUNT)
    assert verify(path).breaks == []
    (said,) = verify(path, str(head)).breaks
    assert said.startswith("no line has the hash that was given")


def test_a_file_in_the_middle_is_missed(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    write(path, [CALLED] * 40, max_size=2_000)
    (tmp_path / "audit.jsonl.3").unlink()
    (said,) = verify(path).breaks
    assert said.startswith("audit.jsonl.2, line 1: before it, lines ")
    assert said.endswith("are missing")


def test_older_files_that_are_gone_are_told_since_they_may_have_been_full(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    write(path, [CALLED] * 40, max_size=2_000, files=3)
    verdict = verify(path)
    assert verdict.breaks == []
    assert verdict.notes == [
        f"it begins with line {verdict.first}: those before are not there any more"
    ]


def test_a_present_file_that_is_gone_is_missed(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    write(path, [CALLED] * 12, max_size=4_000)
    path.unlink()
    assert len(verify(path).breaks) == 1
    write(path, [CALLED])
    (said,) = verify(path).breaks
    assert said.startswith("audit.jsonl, line 1: before it, line")


def test_who_goes_on_after_a_change_does_not_hide_it(path: Path):
    def change(lines: list[bytes]) -> None:
        lines[-1] = lines[-1].replace(b"alice", b"mallo")

    rewrite(path, change)
    write(path, [CALLED] * 3)
    assert verify(path).breaks == ["audit.jsonl, line 11: line 10, which is before it, was changed"]


def test_breaks_beyond_some_are_counted_only(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    write(path, [CALLED] * 100)
    rewrite(path, lambda lines: lines.reverse())
    verdict = verify(path)
    assert len(verdict.breaks) == MAX_BREAKS
    assert verdict.left_out > 0


def test_it_is_read_while_servers_write(path: Path):
    with ExitStack() as stack:
        verdict = verify(path)
        stack.enter_context(portalocker.Lock(path.with_name("audit.jsonl.lock"), "a"))
    assert verdict.breaks == []


def test_a_copy_is_read_where_nobody_writes(path: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "audit.jsonl").write_bytes(path.read_bytes())
    assert verify(copy / "audit.jsonl").breaks == []
    assert [file.name for file in copy.iterdir()] == ["audit.jsonl"]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_single_change_of_a_byte_goes_unnoticed(data: st.DataObject, whole: bytes, tmp: Path):
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[at]))
    path = tmp / "audit.jsonl"
    path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
    verdict = verify(path)
    assert verdict.breaks or verdict.notes


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the audit of `whole` was written."""
    directory = tmp_path_factory.mktemp("whole")
    write(directory / "audit.jsonl", [CALLED] * 5)
    return directory


@pytest.fixture(scope="module")
def whole(tmp: Path) -> bytes:
    """An audit of five lines."""
    return (tmp / "audit.jsonl").read_bytes()


def test_the_command_says_what_it_found_and_ends_accordingly(path: Path):
    done = CliRunner().invoke(main, ["audit", "verify", "--file", str(path)])
    head = done.output.splitlines()[-1].removeprefix("head ")
    assert (done.exit_code, done.output.splitlines()[0]) == (0, "10 lines in 1 files: whole")
    again = ["audit", "verify", "--file", str(path), "--head", head]
    assert CliRunner().invoke(main, again).exit_code == 0
    rewrite(path, lambda lines: lines.__delitem__(3))
    broken = CliRunner().invoke(main, again)
    assert broken.exit_code == 1
    assert "BROKEN audit.jsonl, line 4: before it, line 4 is missing" in broken.output


def test_where_there_is_no_audit_that_is_said(tmp_path: Path):
    done = CliRunner().invoke(main, ["audit", "verify", "--file", str(tmp_path / "audit.jsonl")])
    assert done.exit_code == 1
    assert "there is none" in done.output
