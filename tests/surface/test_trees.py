"""How listings, searches and moves read; pure functions."""

from __future__ import annotations

from typing import Any

import pytest

from box_mcp.capabilities.trees import (
    Entry,
    File,
    Found,
    Line,
    ListFacts,
    Listing,
    Moved,
    SearchFacts,
)
from box_mcp.errors import InvalidArgument
from box_mcp.surface.trees import Findings, behind, render_found, render_listing, render_moved

LISTED = ListFacts(directory=b"/workspace", more=False, total=2, unreadable=[])
SEARCHED = SearchFacts(
    directory=b"/workspace/src",
    one_file=False,
    engine="ripgrep",
    unreadable=False,
    more=False,
    matches=2,
    files=1,
)


def entry(path: bytes, **facts: Any) -> Entry:
    known: dict[str, Any] = {"kind": "file", "size": 12, "mode": 0o644, "modified": 0}
    return Entry(path=path, **{**known, **facts})


def listing(*entries: Entry, **facts: Any) -> Listing:
    return Listing(LISTED.model_copy(update=facts), list(entries))


def found(*items: Line | File, **facts: Any) -> Findings:
    return Found(SEARCHED.model_copy(update=facts), list(items))


def hit(path: bytes, line: int, text: str = "foo", *, hit: bool = True) -> Line:
    return Line(path=path, line=line, hit=hit, text=text)


def test_an_entry_is_shown_with_its_mode_size_time_and_kind():
    entries = [
        entry(b"a", kind="directory", size=4096, mode=0o755),
        entry(b"a/link", kind="symlink", mode=0o777, target=b"../x\xff"),
    ]
    assert render_listing(".", listing(*entries), 1000).splitlines() == [
        "[. · 2 entries]",
        "rwxr-xr-x       4096 1970-01-01 00:00 a/",
        "rwxrwxrwx         12 1970-01-01 00:00 a/link@ -> ../x\\udcff",
    ]


def test_a_name_that_text_cannot_hold_is_shown_as_the_path_that_tools_take():
    shown = render_listing("x", listing(entry(b"a\nb\xff")), 1000)
    assert shown.endswith(" file:///workspace/a%0Ab%FF")
    assert len(shown.splitlines()) == 2


def test_a_listing_says_how_to_go_on():
    first = listing(entry(b"a"), entry(b"b"), more=True, total=7)
    header = '[. · 7 entries · 2 shown · more: cursor="b"]'
    assert render_listing(".", first, 1000).splitlines()[0] == header
    unknown = listing(entry(b"\xff"), more=True, total=None)
    header = '[. · 1 shown · more: cursor="file:///workspace/%FF"]'
    assert render_listing(".", unknown, 1000).splitlines()[0] == header
    last = listing(entry(b"y"), more=False, total=None)
    assert render_listing(".", last, 1000).startswith("[. · 1 entry]\n")
    assert render_listing(".", last, 1000, goes_on=True).startswith("[.]\n")


def test_a_listing_that_took_long_goes_on_where_it_came_to_though_nothing_was_found():
    header = '[. · this takes long, so not all was looked at · 0 shown · more: cursor="a/b"]'
    facts: dict[str, Any] = {"more": True, "total": None, "reached": b"a/b"}
    assert render_listing(".", listing(**facts), 1000) == header
    some = listing(entry(b"a"), entry(b"aa"), **facts)
    assert '1 shown · more: cursor="a"' in render_listing(".", some, 10)
    assert '2 shown · more: cursor="a/b"' in render_listing(".", some, 1000)


def test_a_listing_that_is_too_long_is_cut_where_its_cursor_says():
    shown = render_listing(".", listing(*(entry(b"%03d" % n) for n in range(100))), 1000)
    assert len(shown) < 1100
    header, *lines = shown.splitlines()
    assert f'{len(lines)} shown · more: cursor="{lines[-1].split()[-1]}"' in header


def test_what_could_not_be_read_is_told():
    assert "not readable: b, c" in render_listing(".", listing(unreadable=[b"b", b"c"]), 1000)


@pytest.mark.parametrize("modified", [1e300, -1e300, 1e14, -1e12])
def test_a_time_that_no_calendar_has_is_shown_as_unknown(modified: float):
    assert "????-??-?? ??:?? x" in render_listing(
        ".", listing(entry(b"x", modified=modified)), 1000
    )


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (".", "a/b.py"),
        ("src", "src/a/b.py"),
        ("/workspace/src", "/workspace/src/a/b.py"),
        ("~/src", "~/src/a/b.py"),
        ("file:///workspace/s%72c", "/workspace/src/a/b.py"),
        ("s\n", "/workspace/src/a/b.py"),
    ],
)
def test_a_match_is_shown_with_a_path_that_tools_take(path: str, shown: str):
    assert render_found(path, found(hit(b"a/b.py", 3, "foo\r"))).splitlines() == [
        "[2 matches in 1 file]",
        f"{shown}:3:foo",
    ]


def test_lines_around_matches_are_marked_and_gaps_shown():
    lines = [
        hit(b"a", 1, hit=False),
        hit(b"a", 2),
        hit(b"a", 5),
        hit(b"b", 6),
    ]
    shown = render_found(".", found(*lines), gaps=True)
    assert shown.splitlines()[1:] == ["a-1-foo", "a:2:foo", "--", "a:5:foo", "--", "b:6:foo"]
    assert "--" not in render_found(".", found(*lines))


def test_a_search_says_how_to_go_on_and_that_goes_on_there():
    shown = render_found("src", found(hit(b"a:b.py", 12), more=True, matches=None, files=None))
    assert shown.startswith('[too many to count · 1 shown · more: cursor="a:b.py:12"]')
    assert behind("a:b.py:12", "matches") == ("a:b.py", 12)
    shown = render_found("src", found(hit(b"\xff", 1), more=True))
    assert 'cursor="file:///workspace/src/%FF:1"' in shown
    assert behind("file:///workspace/src/%FF:1", "matches") == ("file:///workspace/src/%FF", 1)
    shown = render_found("src", found(File(path=b"a:1"), more=True), "files")
    assert shown == '[1 file · 1 shown · more: cursor="a:1"]\nsrc/a:1'
    assert behind("a:1", "files") == ("a:1", 0)
    assert behind("", "matches") is None


@pytest.mark.parametrize("cursor", ["a", ":1", "a:", "a:x", "a:-1", "a:\N{SUPERSCRIPT TWO}"])
def test_a_cursor_of_another_mode_is_refused(cursor: str):
    with pytest.raises(InvalidArgument):
        behind(cursor, "matches")


def test_files_and_counts_are_shown_each_on_a_line():
    items = [File(path=b"a", count=3), File(path=b"b")]
    assert render_found(".", found(*items), "count").splitlines()[1:] == ["a:3", "b"]


def test_who_finds_nothing_hears_what_was_not_searched():
    nothing = found(matches=0, files=0, engine="python", unreadable=True)
    assert render_found(".", nothing, left_out="hidden files") == (
        "[no matches · not searched: hidden files · some files are not readable · "
        "without ripgrep, so slower]"
    )


def test_a_move_tells_where_and_how_much():
    assert render_moved("moved a to", Moved(path=b"/b\xff", kind="file")) == (
        "[moved a to file:///b%FF]"
    )
    tree = Moved(path=b"/b", kind="directory", entries=1200, size=3000, skipped=1)
    assert render_moved("copied a to", tree) == (
        "[copied a to /b · 1,200 entries · 3,000 bytes · 1 sockets, pipes or devices were left out]"
    )
