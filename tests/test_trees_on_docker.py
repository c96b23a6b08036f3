"""Directories in a real box: listed, searched, moved, copied and deleted by the tools."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.client import ERAS, serving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager

    from tests.support.client import Server

LONGEST = "n" * 255
PLANT = (
    "rm -rf t; mkdir -p t/src/deep t/.hidden t/build; cd t; "
    "printf 'one\\nfoo()\\ntwo\\n\\nthree\\nfoo\\n' > src/a.py; echo 'Foo bar' > src/deep/b.txt; "
    "echo foo > .hidden/c; echo foo > build/d; echo build/ > .gitignore; "
    "ln -s src link; ln -s .. src/up; "
    r"echo foo > $'caf\xe9'; echo foo > $'two\nlines'; "
    f"echo foo > {LONGEST}"
)
ODD = ["file:///workspace/t/caf%E9", "file:///workspace/t/two%0Alines", f"t/{LONGEST}"]
SEARCHES: list[dict[str, object]] = [
    {"pattern": "foo"},
    {"pattern": "foo", "context": 1, "path": "t/src"},
    {"pattern": "foo(", "literal": True},
    {"pattern": "foo", "case": "ignore", "mode": "count"},
    {"pattern": "f.o", "hidden": True, "mode": "files"},
    {"pattern": "foo", "gitignore": False, "glob": "!*.py"},
    {"pattern": "foo", "type": "py"},
    {"pattern": "foo", "limit": 2},
    {"pattern": "nothing"},
    {"pattern": "foo", "path": "t/src/a.py"},
]


def shared(env: dict[str, str], era: str = ERAS[-1]) -> AbstractAsyncContextManager[Server]:
    """A server of the session that tests share a box in."""
    return serving(env, "--session", "shared", mode=era)


@pytest.fixture(scope="module")
async def server(shared_env: dict[str, str]) -> AsyncGenerator[Server, None]:
    """Of all tests but those of the protocol's eras."""
    async with shared(shared_env) as server:
        yield server


def names(answer: str) -> list[str]:
    """What a listing lists."""
    return [line.split(None, 4)[4] for line in answer.splitlines()[1:]]


def cursor(answer: str) -> str | None:
    found = re.search(r'more: cursor="([^"]*)"', answer.splitlines()[0])
    return found[1] if found else None


@pytest.mark.parametrize("era", ERAS)
async def test_a_tree_is_listed_in_pages(shared_env: dict[str, str], era: str):
    async with shared(shared_env, era) as server:
        await server.run(PLANT)
        answer = await server.say("file_list", path="t")
        assert answer.startswith("[t · 8 entries]\n")
        odd = [f"{ODD[0]}", "link@ -> src", LONGEST, "src/", ODD[1]]
        assert names(answer) == [".gitignore", ".hidden/", "build/", *odd]
        deep = ["src/a.py", "src/deep/", "src/deep/b.txt", "src/up@ -> .."]
        whole = await server.say("file_list", path="t", depth=9, gitignore=True, hidden=False)
        assert names(whole) == [*odd[:4], *deep, odd[4]]
        page = await server.say("file_list", path="t", depth=9, limit=2)
        found = names(page)
        while after := cursor(page):
            page = await server.say("file_list", path="t", depth=9, limit=2, cursor=after)
            found += names(page)
        assert found == names(await server.say("file_list", path="t", depth=9))
        assert names(await server.say("file_list", path="t", depth=9, glob="*.{py,txt}")) == [
            "src/a.py",
            "src/deep/b.txt",
        ]
        assert "No such file" in await server.fail("file_list", path="none")
        assert "not readable: root" in await server.say("file_list", path="/", depth=2, glob="x")


async def test_names_that_are_told_are_taken_by_all_tools(server: Server):
    await server.run(PLANT)
    for name in ODD:
        copied = await server.say("file_copy", source=name, destination="t/copy")
        assert copied == f"[copied {name} to /workspace/t/copy · 4 bytes]"
        assert "foo" in await server.say("file_search", pattern="foo", path=name)
        await server.say("file_move", source=name, destination="t/moved")
        await server.say("file_move", source="t/moved", destination=name)
        deleted = await server.say("file_delete", path=name)
        assert deleted == f"[deleted {name.replace('t/n', '/workspace/t/n')}]"
        await server.say("file_delete", path="t/copy")
    left = await server.say("file_list", path="t")
    assert names(left) == [".gitignore", ".hidden/", "build/", "link@ -> src", "src/"]


async def test_a_box_with_and_one_without_ripgrep_find_the_same(server: Server):
    await server.run(PLANT)
    with_it = [await server.say("file_search", **{"path": "t", **one}) for one in SEARCHES]
    await server.run("sudo mv /usr/bin/rg /usr/bin/rg.away")
    without = [await server.say("file_search", **{"path": "t", **one}) for one in SEARCHES]
    await server.run("sudo mv /usr/bin/rg.away /usr/bin/rg")
    note = " · without ripgrep, so slower"
    assert [answer.replace(note, "") for answer in without] == with_it
    assert all(note in answer for answer in without)
    assert with_it[0].splitlines() == [
        "[5 matches in 4 files]",
        f"{ODD[0]}:1:foo",
        f"{ODD[2]}:1:foo",
        "t/src/a.py:2:foo()",
        "t/src/a.py:6:foo",
        f"{ODD[1]}:1:foo",
    ]
    assert with_it[1].splitlines() == [
        "[2 matches in 1 file]",
        *("t/src/a.py-1-one", "t/src/a.py:2:foo()", "t/src/a.py-3-two"),
        *("--", "t/src/a.py-5-three", "t/src/a.py:6:foo"),
    ]
    assert with_it[8].startswith("[no matches · not searched: hidden files, what .gitignore")


async def test_a_search_goes_on_where_its_cursor_says(server: Server):
    await server.run(PLANT)
    whole = (await server.say("file_search", pattern="foo")).splitlines()[1:]
    page = await server.say("file_search", pattern="foo", limit=1)
    found = page.splitlines()[1:]
    while after := cursor(page):
        page = await server.say("file_search", pattern="foo", limit=1, cursor=after)
        found += page.splitlines()[1:]
    assert found == whole
    assert "none of a search" in await server.fail("file_search", pattern="foo", cursor="x")
    assert "regex parse error" in await server.fail("file_search", pattern="fo(o")
    assert "'pattern' is empty" in await server.fail("file_search", pattern="")


async def test_the_users_own_settings_of_ripgrep_are_not_read(server: Server):
    await server.run(f"{PLANT}; echo '*' > .ignore; git init -q; echo '*' > .git/info/exclude")
    answer = await server.say("file_search", pattern="foo", path="t/src", mode="count")
    await server.run("rm -rf t/.git t/.ignore")
    assert answer == "[2 matches in 1 file]\nt/src/a.py:2"


async def test_nothing_is_overwritten_or_deleted_by_mistake(server: Server):
    await server.run(PLANT)
    taken = await server.fail("file_move", source="t/src/a.py", destination="t/build/d")
    assert "/workspace/t/build/d exists. overwrite=true" in taken
    await server.say("file_move", source="t/src/a.py", destination="t/build/d", overwrite=True)
    assert "recursive=true" in await server.fail("file_delete", path="t")
    for path in ("/", "/workspace", "~", "/home", "t/../."):
        kept = await server.fail("file_delete", path=path, recursive=True)
        assert "is kept" in kept, path
    await server.say("file_delete", path="t/link", recursive=True)
    assert "b.txt" in await server.run("ls t/src/deep")
    denied = await server.fail("file_delete", path="/usr/bin/rg")
    assert "Permission denied: /usr/bin/rg" in denied
    assert await server.say("file_delete", path="t", recursive=True) == (
        "[deleted /workspace/t · 13 entries]"
    )


async def test_directories_of_the_image_and_of_other_file_systems_are_moved(
    server: Server,
):
    await server.run(
        f"{PLANT}; rm -rf /dev/shm/t; sudo chown -R box /usr/share/doc/adduser /usr/share/doc"
    )
    moved = await server.say("file_move", source="t", destination="/dev/shm")
    assert moved.startswith("[moved t to /dev/shm/t · 15 entries · ")
    assert "gone" in await server.run("ls t || echo gone; ls /dev/shm/t/src")
    doc = await server.run("find /usr/share/doc/adduser | wc -l")
    moved = await server.say("file_move", source="/usr/share/doc/adduser", destination=".")
    assert f"/workspace/adduser · {doc.split()[-1]} entries" in moved
    await server.run("rm -rf adduser /dev/shm/t")


async def test_files_and_trees_are_copied_to_another_box(server: Server):
    await server.run(f"{PLANT}; chmod 751 src/a.py")
    await server.tell("box_create", name="other")
    copied = await server.say("file_copy", source="t", destination="new/t", to_box="other")
    assert re.match(r"\[copied t to new/t in box-\w+ · 8 files, 5 directories, 2 links", copied)
    listed = "cd {}; find . -printf '%p %m %s %l\n' | LC_ALL=C sort"
    there = await server.run(listed.format("new/t"), box="other")
    assert there.splitlines()[1:] == (await server.run(listed.format("t"))).splitlines()[1:]
    await server.say("file_copy", source="t/src/a.py", destination="new", to_box="other")
    assert "foo()" in await server.say("file_read", path="new/a.py", box="other")
    taken = await server.fail(
        "file_copy", source="t/src/a.py", destination="new/a.py", to_box="other"
    )
    assert "exist" in taken
    own = await server.hostname()
    await server.say("file_copy", source="t/src/a.py", destination="t/same", to_box=own)
    assert "foo()" in await server.say("file_read", path="t/same")
    assert "no box" in await server.fail("file_copy", source="t", destination="t", to_box="nobody")
