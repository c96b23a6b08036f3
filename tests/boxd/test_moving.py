from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from box_mcp.boxd import moving
from box_mcp.boxd.connection import Refusal
from tests.support.boxd import Client, Failed, LocalBoxd, descriptors_given_back, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

TREE = (
    "mkdir -p t/d/e t/empty; echo one > t/one; echo two > t/d/two; ln -s ../one t/d/link; "
    "ln -s nowhere t/broken; chmod 751 t/one; chmod 500 t/d/e; touch -d @1000 t/one t/d; "
    r"echo odd > t/$'\xff\n'"
)
ELSEWHERE = Path("/dev/shm")


@pytest.fixture
def elsewhere(boxd: LocalBoxd) -> Iterator[str]:
    """A path in the box on another file system."""
    link = boxd.workspace / "elsewhere"
    folder = ELSEWHERE / f"box-test-{os.getpid()}-{boxd.process.pid}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    link.symlink_to(folder)
    assert folder.stat().st_dev != boxd.workspace.stat().st_dev
    yield "elsewhere"
    moving.remove_tree(str(folder))


def make(client: Client, script: str = TREE) -> None:
    assert client.run(script).result()["exit"] == 0


def state(top: Path) -> dict[str, tuple[Any, ...]]:
    """All that a copy keeps, by path."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in [top, *top.rglob("*")]:
        facts = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(facts.st_mode) else b""
        target = path.readlink() if path.is_symlink() else None
        found[str(path.relative_to(top))] = facts.st_mode, facts.st_mtime_ns, content, target
    return found


def refused(client: Client, op: str, **request: Any) -> str:
    with pytest.raises(Failed) as caught:
        client.call(op, **request)
    return caught.value.code


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))  # noqa: PTH208 - names, not paths


# Moving


def test_a_file_is_renamed_and_missing_directories_are_made(client: Client, boxd: LocalBoxd):
    make(client)
    moved = client.call("move", path="t/one", destination="new/place/1")
    assert moved == {"path": str(boxd.workspace / "new/place/1"), "kind": "file"}
    assert (boxd.workspace / "new/place/1").read_text() == "one\n"
    assert "one" not in names(boxd.workspace / "t")


def test_what_is_moved_to_a_directory_goes_into_it(client: Client, boxd: LocalBoxd):
    make(client)
    make(client, "mkdir into; ln -s into link")
    client.call("move", path="t/one", destination="into")
    client.call("move", path="t/d", destination="link")
    assert names(boxd.workspace / "into") == ["d", "one"]


def test_nothing_is_overwritten_unless_asked_for(client: Client, boxd: LocalBoxd):
    make(client, "echo a > a; echo b > b; mkdir -p into/a full/into; touch into/a/x; ln -s no link")
    before = state(boxd.workspace)
    for op in ("move", "copy"):
        for place in ("b", "a", "link"):
            assert refused(client, op, path="a", destination=place) == "exists"
        for overwrite in (True, False):
            request = {"path": "into", "destination": "full", "overwrite": overwrite}
            make(client, "touch full/into/keep; touch -r full full/into")
            assert refused(client, op, **request) == "exists"
        assert refused(client, op, path="a", destination="a", overwrite=True) == "exists"
    assert (boxd.workspace / "a").read_text() == "a\n"
    assert set(state(boxd.workspace)) - set(before) == {"full/into/keep"}
    client.call("copy", path="a", destination="link", overwrite=True)
    assert not (boxd.workspace / "link").is_symlink()
    client.call("move", path="a", destination="b", overwrite=True)
    assert (boxd.workspace / "b").read_text() == "a\n"
    assert names(boxd.workspace) == ["b", "full", "into", "link"]


@pytest.mark.parametrize("op", ["move", "copy"])
def test_a_tree_does_not_go_into_itself(client: Client, boxd: LocalBoxd, op: str):
    make(client)
    make(client, "ln -s t/d again")
    before = state(boxd.workspace)
    for place in ("t", "t/d", "t/new/below", "again"):
        assert refused(client, op, path="t", destination=place) == "invalid"
    assert state(boxd.workspace) == before


@pytest.mark.parametrize("op", ["move", "copy"])
def test_what_is_not_there_or_can_have_no_place_is_refused(client: Client, op: str):
    make(client, "touch file; mkdir locked; chmod 555 locked")
    assert refused(client, op, path="none", destination="x") == "not_found"
    assert refused(client, op, path="file", destination="file/x") in {"exists", "not_directory"}
    assert refused(client, op, path="file", destination="locked/x") == "denied"
    assert refused(client, op, path="file", destination="n" * 300) == "invalid"
    assert refused(client, op, path="file", destination="a\0b") == "invalid"
    assert refused(client, op, path="file") == "invalid"


def test_a_symlink_is_moved_itself(client: Client, boxd: LocalBoxd):
    make(client)
    client.call("move", path="t/d/link", destination="link")
    assert (boxd.workspace / "link").readlink() == Path("../one")


def test_a_tree_is_moved_to_another_file_system_whole(
    client: Client, boxd: LocalBoxd, elsewhere: str
):
    make(client)
    before = state(boxd.workspace / "t")
    moved = client.call("move", path="t", destination=elsewhere)
    assert (moved["kind"], moved["entries"], moved["size"]) == ("directory", 9, 12)
    assert state(boxd.workspace / elsewhere / "t") == before
    assert names(boxd.workspace) == ["elsewhere"]
    client.call("move", path="elsewhere/t/one", destination="one")
    assert refused(client, "move", path="elsewhere/t/d/two", destination="one") == "exists"
    client.call("move", path="elsewhere/t/d/two", destination="one", overwrite=True)
    assert (boxd.workspace / "one").read_text() == "two\n"


def test_a_place_that_is_taken_at_the_last_moment_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a").write_text("a")
    transfer = moving.Transfer(str(tmp_path / "a"), str(tmp_path / "b"), overwrite=False)
    (tmp_path / "b").write_text("b")
    with pytest.raises(Refusal):
        moving.rename(transfer)
    monkeypatch.setattr(moving, "_libc", object())  # a C library without renameat2
    with pytest.raises(Refusal):
        moving.rename(transfer)
    assert (tmp_path / "b").read_text() == "b"
    (tmp_path / "b").unlink()
    assert moving.rename(transfer)
    assert names(tmp_path) == ["b"]


# Copying


def test_a_tree_is_copied_with_modes_times_and_links(client: Client, boxd: LocalBoxd):
    make(client)
    make(client, "mkfifo t/pipe")
    copied = client.call("copy", path="t", destination="new/t2")
    assert copied == {
        "path": str(boxd.workspace / "new/t2"),
        "kind": "directory",
        "entries": 9,
        "size": 12,
        "skipped": 1,
    }
    make(client, "rm t/pipe; touch -r new/t2 t")
    assert state(boxd.workspace / "new/t2") == state(boxd.workspace / "t")


def test_a_large_file_is_copied(client: Client, boxd: LocalBoxd):
    content = os.urandom(1024) * 5000 + b"end"
    (boxd.workspace / "large").write_bytes(content)
    client.call("copy", path="large", destination="copy")
    assert (boxd.workspace / "copy").read_bytes() == content


def test_a_copy_that_fails_or_is_given_up_leaves_nothing(client: Client, boxd: LocalBoxd):
    make(client)
    make(client, "echo secret > t/d/secret; chmod 0 t/d/secret")
    assert refused(client, "copy", path="t", destination="c/t2") == "denied"
    make(client, "chmod 600 t/d/secret; truncate -s 20G t/huge")
    call = client.open("copy", path="t", destination="c/t2")
    eventually(lambda: names(boxd.workspace / "c"), "the copy has begun")
    with pytest.raises(Failed):
        call.cancel().result()
    eventually(lambda: not names(boxd.workspace / "c"), "nothing is left of it")
    with boxd.connect() as other:
        other.open("copy", path="t", destination="c/t2")
        eventually(lambda: names(boxd.workspace / "c"), "the copy has begun")
    eventually(lambda: not names(boxd.workspace / "c"), "nothing is left of it")
    eventually(boxd.at_rest)


def test_a_destination_that_ends_with_a_slash_is_a_directory(client: Client, boxd: LocalBoxd):
    make(client)
    assert client.call("copy", path="t/one", destination="new/")["path"].endswith("/new/one")
    assert client.call("move", path="t", destination="new/")["path"].endswith("/new/t")
    assert (boxd.workspace / "new/t/one").read_text() == "one\n"
    assert refused(client, "move", path="new/t", destination="new/") == "exists"


def test_nothing_is_copied_into_itself_though_that_be_everything(client: Client, boxd: LocalBoxd):
    make(client)
    for path, destination in (("/", "copy"), (".", "copy"), ("t", "t/d")):
        assert refused(client, "copy", path=path, destination=destination) == "invalid"
    assert names(boxd.workspace) == ["t"]


def test_a_move_that_is_denied_names_both_places(client: Client):
    make(client, "mkdir locked; chmod 555 locked; touch file")
    with pytest.raises(Failed, match=r"denied: .*/file -> .*/locked/file") as caught:
        client.call("move", path="file", destination="locked")
    assert caught.value.code == "denied"


# Deleting


def test_files_links_and_empty_directories_are_deleted(client: Client, boxd: LocalBoxd):
    make(client)
    for path in ("t/one", "t/d/link", "t/broken", "t/empty", "t/\udcff\n"):
        assert client.call("delete", path=path)["entries"] == 1
    assert names(boxd.workspace / "t") == ["d"]


def test_what_a_directory_holds_is_deleted_on_demand_only(client: Client, boxd: LocalBoxd):
    make(client)
    make(client, "mkdir other; touch other/kept; ln -s ../other t/other; ln -s t link")
    assert refused(client, "delete", path="t") == "not_empty"
    client.call("delete", path="link", recursive=True)
    assert "t" in names(boxd.workspace)
    assert client.call("delete", path="t", recursive=True)["entries"] == 10
    assert names(boxd.workspace) == ["other"]
    assert names(boxd.workspace / "other") == ["kept"]


def test_the_workspace_and_what_it_is_in_are_never_deleted_or_moved(
    client: Client, boxd: LocalBoxd
):
    make(client, "ln -s .. up")
    for path in ("/", "/workspace", ".", "..", "up/workspace", "up/workspace/."):
        assert refused(client, "delete", path=path, recursive=True) == "kept", path
        assert refused(client, "move", path=path, destination="/x") == "kept", path
    client.call("delete", path="up", recursive=True)
    assert names(boxd.root) == ["workspace"]


def test_a_deletion_that_cannot_go_on_tells_how_far_it_came(client: Client, boxd: LocalBoxd):
    make(client, "mkdir -p t/a t/locked; touch t/a/x t/locked/y; chmod 555 t/locked")
    with pytest.raises(Failed, match=r"t/locked/y; \d entries were deleted before") as caught:
        client.call("delete", path="t", recursive=True)
    assert caught.value.code == "denied"
    assert (boxd.workspace / "t/locked/y").exists()
    make(client, "chmod 755 t/locked")


def test_a_tree_deeper_than_any_path_is_deleted(client: Client, boxd: LocalBoxd):
    make(client, "mkdir t; cd t; for n in $(seq 60); do mkdir $(printf %0200d 0); cd 0*; done")
    assert client.call("delete", path="t", recursive=True)["entries"] == 61
    assert names(boxd.workspace) == []


def test_much_is_deleted_while_other_calls_are_answered(client: Client, boxd: LocalBoxd):
    make(client, "mkdir t; cd t; seq 3000 | xargs touch")
    call = client.open("delete", path="t", recursive=True)
    assert client.call("stat", path=".")["kind"] == "directory"
    assert call.result()["entries"] == 3001


def test_work_leaves_no_descriptors(client: Client, boxd: LocalBoxd):
    make(client)
    client.call("copy", path="t", destination="first")
    eventually(boxd.at_rest)
    with descriptors_given_back(boxd.facts):
        for number in range(20):
            client.call("copy", path="t", destination=f"t{number}")
            client.call("move", path=f"t{number}", destination="moved")
            client.call("delete", path="moved", recursive=True)
            refused(client, "move", path="none", destination="x")
