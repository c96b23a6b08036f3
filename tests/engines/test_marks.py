"""Whose boxes are whose where several state directories share an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from box_mcp.engines.address import Address
from box_mcp.engines.marks import FILE, mark_of, path_suffices, settle_mark
from box_mcp.errors import StoreUnusable

if TYPE_CHECKING:
    from pathlib import Path


def test_the_path_is_the_mark_so_that_a_directory_which_is_gone_has_its_own(tmp_path: Path):
    one, other = mark_of(tmp_path / "one"), mark_of(tmp_path / "other")
    assert one == mark_of(tmp_path / "one")
    assert one != other
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["ssh://far", "tcp://far:2376"])
def test_at_an_engine_elsewhere_others_may_have_a_directory_of_the_same_path(url: str):
    assert not path_suffices(Address(url))


def test_so_they_do_in_containers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("container", "oci")
    assert not path_suffices(Address())


def test_there_directories_of_one_path_are_told_apart(tmp_path: Path):
    path = tmp_path / "state"
    found = {mark_of(path)}
    for number in range(3):
        settle_mark(path)
        mark = mark_of(path)
        settle_mark(path)
        assert mark_of(path) == mark
        assert [file.name for file in path.iterdir()] == [FILE]
        found.add(mark)
        path.rename(tmp_path / str(number))
    assert len(found) == 4


@pytest.mark.parametrize("present", [FILE, "state.db"])
def test_a_directory_that_has_boxes_keeps_its_mark(tmp_path: Path, present: str):
    (tmp_path / present).write_text("0123456789abcdef\n")
    before = mark_of(tmp_path)
    settle_mark(tmp_path)
    assert mark_of(tmp_path) == before


@pytest.mark.parametrize("said", ["", "0123", "../../../etc/passwd", "0123456789abcdef0"])
def test_a_mark_that_is_none_is_told_and_no_other_taken(tmp_path: Path, said: str):
    (tmp_path / FILE).write_text(said)
    with pytest.raises(StoreUnusable, match="16 hexadecimal digits"):
        mark_of(tmp_path)


def test_a_directory_that_can_not_be_made_is_told(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnusable, match="Not a directory"):
        settle_mark(tmp_path / "file" / "state")
