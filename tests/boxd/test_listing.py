from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from box_mcp.boxd import listing as listing_
from box_mcp.boxd import walking
from box_mcp.boxd.listing import list_tree
from box_mcp.boxd.walking import Glob, View, Walk
from tests.support.boxd import Client, Failed, LocalBoxd, descriptors_given_back, eventually

if TYPE_CHECKING:
    from pathlib import Path

    from box_mcp.boxd.slices import Slices

ODD = [b"new\nline", b"not utf-8 \xff", b"quote\"'", "ü".encode(), b"-n", b"\xff" * 255]
TREE = ["a", "a/b", "a/b/deep.c", "a/x.c", "a/x.h", "a.c", "b", "b/.hidden", "b/z.c", "c.txt"]


def listing(
    client: Client, path: str = ".", **request: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    call = client.open("list", path=path, **{"depth": 1, "limit": 1000, "hidden": True, **request})
    end = call.result()
    return [json.loads(line) for line in call.data.splitlines()], end


def paths(client: Client, path: str = ".", **request: Any) -> list[str]:
    return [entry["path"] for entry in listing(client, path, **request)[0]]


def plant(workspace: Path, tree: list[str] = TREE) -> None:
    """Names with a dot are files, unless there is something in them."""
    for path in tree:
        if "." in path and not any(other.startswith(f"{path}/") for other in tree):
            (workspace / path).write_text(path)
        else:
            (workspace / path).mkdir()
            (workspace / path).chmod(0o777)


def in_order(tree: list[str]) -> list[str]:
    return sorted(tree, key=lambda path: path.split("/"))


def test_a_directory_is_listed_by_name_with_facts(client: Client, boxd: LocalBoxd):
    plant(boxd.workspace)
    entries, end = listing(client)
    assert [entry["path"] for entry in entries] == ["a", "a.c", "b", "c.txt"]
    assert [entry["kind"] for entry in entries] == ["directory", "file", "directory", "file"]
    assert entries[1]["size"] == 3
    assert end == {
        "directory": str(boxd.workspace),
        "more": False,
        "reached": None,
        "total": 4,
        "unreadable": [],
    }


def test_a_tree_is_listed_depth_first_as_deep_as_asked_for(client: Client, boxd: LocalBoxd):
    plant(boxd.workspace)
    assert paths(client, depth=99) == in_order(TREE)
    assert paths(client, depth=2) == in_order([path for path in TREE if path.count("/") < 2])


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pages_hold_each_entry_once(client: Client, boxd: LocalBoxd, size: int):
    plant(boxd.workspace)
    found: list[str] = []
    more = True
    while more:
        after = found[-1] if found else None
        entries, end = listing(client, depth=9, limit=size, after=after)
        found += [entry["path"] for entry in entries]
        more = end["more"]
        assert len(entries) == size or not more
    assert found == in_order(TREE)


@pytest.mark.parametrize("after", ["a/b/deep.c", "a/b", "a", "b", "b/z.c", "c.txt"])
def test_a_cursor_outlives_what_it_names(client: Client, boxd: LocalBoxd, after: str):
    plant(boxd.workspace)
    following = [path for path in in_order(TREE) if path.split("/") > after.split("/")]
    assert paths(client, depth=9, after=after) == following
    client.call("delete", path=after, recursive=True)
    left = [path for path in following if not path.startswith(f"{after}/")]
    assert paths(client, depth=9, after=after) == left
    assert paths(client, depth=9, after=str(boxd.workspace / after)) == left


def test_names_of_any_bytes_are_listed(client: Client, boxd: LocalBoxd):
    top = os.fsencode(boxd.workspace)
    for name in ODD:
        os.mkdir(top + b"/" + name)  # noqa: PTH102 - bytes
        os.close(os.open(top + b"/" + name + b"/" + name, os.O_CREAT))
    found = [os.fsencode(path) for path in paths(client, depth=2)]
    assert found == [path for name in sorted(ODD) for path in (name, name + b"/" + name)]
    for number, path in enumerate(found):
        rest = [os.fsencode(p) for p in paths(client, depth=2, after=os.fsdecode(path))]
        assert rest == found[number + 1 :]


def test_symlinks_are_shown_and_not_followed(client: Client, boxd: LocalBoxd):
    plant(boxd.workspace)
    (boxd.workspace / "link").symlink_to("a")
    (boxd.workspace / "loop").symlink_to(".")
    entries = {entry["path"]: entry for entry in listing(client, depth=9)[0]}
    assert (entries["link"]["kind"], entries["link"]["target"]) == ("symlink", "a")
    assert not [path for path in entries if path.startswith(("link/", "loop/"))]
    assert paths(client, "link") == ["b", "x.c", "x.h"]
    assert listing(client, "link")[1]["directory"] == str(boxd.workspace / "a")


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("*.c", ["a/b/deep.c", "a/x.c", "a.c", "b/z.c"]),
        ("/*.c", ["a.c"]),
        ("a/*", ["a/b", "a/x.c", "a/x.h"]),
        ("a/**", ["a/b", "a/b/deep.c", "a/x.c", "a/x.h"]),
        ("**/b", ["a/b", "b"]),
        ("x.{c,h}", ["a/x.c", "a/x.h"]),
        ("{a,b}/{x,z}.{c,h}", ["a/x.c", "a/x.h", "b/z.c"]),
        ("b/", ["a/b", "b"]),
        ("!*.c", ["a", "a/b", "a/x.h", "b", "b/.hidden", "c.txt"]),
        ("[xz].c", ["a/x.c", "b/z.c"]),
        ("nothing", []),
    ],
)
def test_a_glob_selects_what_is_told(client: Client, boxd: LocalBoxd, glob: str, found: list[str]):
    plant(boxd.workspace)
    assert paths(client, depth=9, glob=glob) == found


def test_hidden_names_can_be_left_out(client: Client, boxd: LocalBoxd):
    plant(boxd.workspace, [*TREE, ".git", ".git/config.x"])
    assert ".git/config.x" in paths(client, depth=9)
    assert paths(client, depth=9, hidden=False) == in_order([p for p in TREE if "/." not in p])
    assert listing(client, hidden=False)[1]["total"] == 4


def test_what_gitignore_files_hide_can_be_left_out(client: Client, boxd: LocalBoxd):
    plant(boxd.workspace, [*TREE, ".git", ".git/config.x"])
    (boxd.workspace / ".gitignore").write_text("*.c\n!z.c\n/a/b\n")
    (boxd.workspace / "a/.gitignore").write_text("x.h\n!x.c\n")
    found = paths(client, depth=9, gitignore=True)
    assert found == [".gitignore", "a", "a/.gitignore", "a/x.c", "b", "b/.hidden", "b/z.c", "c.txt"]
    assert paths(client, "b", gitignore=True) == [".hidden", "z.c"]
    assert paths(client, "a", gitignore=True) == [".gitignore", "x.c"]


def test_rules_above_a_repository_do_not_hold_in_it(client: Client, boxd: LocalBoxd):
    plant(boxd.workspace, ["outer", "outer/repo", "outer/repo/.git", "outer/repo/x.c"])
    (boxd.workspace / "outer/.gitignore").write_text("x.c\n")
    assert paths(client, "outer/repo", gitignore=True) == ["x.c"]
    (boxd.workspace / "outer/repo/.git").unlink()
    assert paths(client, "outer/repo", gitignore=True) == []


@pytest.mark.parametrize("kind", ["mkfifo", "mkdir", "ln -s loop"])
def test_a_gitignore_that_is_no_file_hides_nothing(client: Client, kind: str):
    client.run(f"touch a; {kind} .gitignore").result()
    assert paths(client, gitignore=True) == [".gitignore", "a"]


def test_a_directory_that_cannot_be_read_is_told_and_the_others_listed(
    client: Client, boxd: LocalBoxd
):
    client.run("mkdir -p a/locked b; touch a/locked/x b/y; chmod 0 a/locked").result()
    entries, end = listing(client, depth=9)
    assert [entry["path"] for entry in entries] == ["a", "a/locked", "b", "b/y"]
    assert end["unreadable"] == ["a/locked"]
    with pytest.raises(Failed) as caught:
        listing(client, "a/locked")
    assert caught.value.code == "denied"
    client.run("chmod 755 a/locked").result()


@pytest.mark.parametrize(("path", "code"), [("none", "not_found"), ("file", "not_directory")])
@pytest.mark.parametrize("glob", ["", "*"])
def test_what_is_no_directory_is_refused(client: Client, path: str, code: str, glob: str):
    client.run("touch file").result()
    with pytest.raises(Failed) as caught:
        listing(client, path, glob=glob)
    assert caught.value.code == code


def test_a_large_directory_of_the_longest_names_comes_in_pages(client: Client, boxd: LocalBoxd):
    names = sorted(b"\xff" * 250 + b"%04d" % number for number in range(2_000))
    for name in names:
        os.close(os.open(os.fsencode(boxd.workspace) + b"/" + name, os.O_CREAT))
    found: list[str] = []
    more = True
    while more:
        entries, end = listing(client, limit=10**6, after=found[-1] if found else "")
        found += [entry["path"] for entry in entries]
        more = end["more"]
        assert end["total"] == 2_000
    assert [os.fsencode(path) for path in found] == names


def test_a_listing_given_up_leaves_no_descriptor(client: Client, boxd: LocalBoxd):
    plant(boxd.workspace, [f"f.{number}" for number in range(3_000)])
    listing(client)
    eventually(boxd.at_rest)
    with descriptors_given_back(boxd.facts):
        for _ in range(20):
            with pytest.raises(Failed):
                client.open("list", path=".", depth=1, limit=3000, hidden=True).cancel().result()


def test_a_directory_larger_than_what_is_held_is_walked_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(walking, "WINDOW", 3)
    tree = [f"f.{number:02}" for number in range(23)] + ["d", *(f"d/{n}.x" for n in range(7))]
    plant(tmp_path, tree)
    view = View(str(tmp_path), hidden=True, gitignore=False)
    walk = Walk(view, 9)
    assert [visit.path for visit in walk if visit] == in_order(tree)
    assert walk.beside == 24
    assert [v.path for v in Walk(view, 9, "d/4.x") if v] == in_order(tree)[6:]


@pytest.mark.parametrize("glob", ["", "*.c", "*.none"])
def test_a_listing_that_takes_long_tells_what_it_has_and_goes_on_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, glob: str
):
    monkeypatch.setattr(listing_, "TELL_AFTER", 0)
    plant(tmp_path)
    request = {"depth": 9, "limit": 100, "hidden": True, "glob": glob}
    told: list[str] = []
    turns, after, more = 0, "", True
    while more:
        lines, end = drained(list_tree(str(tmp_path), {**request, "after": after}))
        told += [json.loads(line)["path"] for line in lines]
        turns, after, more = turns + 1, end["reached"], end["more"]
    assert told == [path for path in in_order(TREE) if path.endswith(glob[1:])]
    assert turns == len(TREE) + 1


def drained(slices: Slices) -> tuple[list[bytes], dict[str, Any]]:
    lines: list[bytes] = []
    while True:
        try:
            lines += next(slices).splitlines()
        except StopIteration as stop:
            return lines, stop.value


def test_braces_without_end_do_not_grow_for_ever():
    with pytest.raises(Exception, match="no glob pattern"):
        Glob("{a,b}" * 9)
