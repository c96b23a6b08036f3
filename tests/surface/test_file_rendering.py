"""How files and their changes read; pure functions."""

from __future__ import annotations

import difflib
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.capabilities.files import Edited, EditFacts, Hunk, Part, ReadFacts
from box_mcp.errors import InvalidArgument
from box_mcp.surface.diffs import MAX_MATCHED, unified
from box_mcp.surface.files import (
    decoded,
    media,
    numbered,
    render_bytes,
    render_edited,
    render_part,
)

FACTS = ReadFacts(
    kind="file",
    size=10,
    mode=0o644,
    modified=0,
    version="ab12",
    encoding="utf-8",
    bom=False,
    crlf=False,
    media=None,
    text=True,
    first_line=5,
    lines=2,
    total=6,
    more=False,
)
HEAD = "f · 10 bytes · version ab12"
BINARY = {"encoding": None, "text": False, "first_line": None, "lines": 0, "total": None}


def part(content: bytes, **changes: object) -> Part:
    return Part(FACTS.model_copy(update=changes), content)


@pytest.mark.parametrize(
    ("facts", "content", "shown"),
    [
        ({}, b"a\nb\n", f"[{HEAD} · lines 5-6 of 6]\na\nb\n"),
        (
            {"more": True, "total": None},
            b"a\nb\n",
            f"[{HEAD} · lines 5-6 · more: first_line=7]\na\nb\n",
        ),
        ({"crlf": True}, b"a\r\nb\r\n", f"[{HEAD} · CRLF · lines 5-6 of 6]\na\nb\n"),
        ({"bom": True}, b"a\nb", f"[{HEAD} · utf-8 with BOM · lines 5-6 of 6]\na\nb"),
        (
            {"encoding": "utf-16-le", "bom": True},
            "ä\nb".encode(),
            f"[{HEAD} · utf-16-le · lines 5-6 of 6]\nä\nb",
        ),
        (
            {"first_line": None, "total": None},
            b"a\nb\n",
            f"[{HEAD} · the last 2 lines, too many come before to be counted]\na\nb\n",
        ),
        ({}, b"a\r\n\xff\n", f"[{HEAD} · lines 5-6 of 6]\na\r\n\N{REPLACEMENT CHARACTER}\n"),
        ({"lines": 0, "total": 4}, b"", f"[{HEAD} · ends before line 5, it has 4 lines]"),
        ({"lines": 0, "size": 0}, b"", "[f · 0 bytes · version ab12 · empty]"),
    ],
)
def test_a_file_is_shown_with_its_range(facts: dict[str, object], content: bytes, shown: str):
    assert render_part("f", 5, part(content, **facts)) == shown


def test_lines_are_numbered_on_demand():
    assert render_part("f", 5, part(b"a\n\n"), line_numbers=True).endswith("]\n5\ta\n6\t\n")
    assert numbered("a\nb", 9) == "9\ta\n10\tb"


def test_a_binary_file_says_how_it_can_be_read():
    shown = render_part("f", 1, part(b"\x7fELF", **BINARY))
    assert "binary, begins with 7f 45 4c 46: read its bytes with base64=true" in shown


def test_a_picture_that_is_too_large_says_so():
    shown = render_part("f", 1, part(b"\x89PNG", **BINARY, media="image/png", more=True))
    assert "image/png · over 3,932,160 bytes, too large to be shown" in shown


@pytest.mark.parametrize(
    ("content", "facts", "base64", "shown"),
    [
        (b"\0\xff", BINARY, True, f"[{HEAD} · bytes 3-5 as base64]\nAP8="),
        (b"\0\xff", BINARY, False, f"[{HEAD} · bytes 3-5 · binary: read it with base64=true]"),
        (b"abc", {"more": True}, False, f"[{HEAD} · bytes 3-6 · more: offset=6]\nabc"),
        (b"\xe4", {"encoding": "cp1252"}, False, f"[{HEAD} · cp1252 · bytes 3-4]\nä"),
    ],
)
def test_bytes_are_shown_as_what_was_asked_for(
    content: bytes, facts: dict[str, object], base64: bool, shown: str
):
    assert render_bytes("f", 3, part(content, **facts), base64=base64) == shown


def test_a_picture_and_a_document_are_what_clients_know():
    picture = media("box-1", "a.png", part(b"x", media="image/png"))
    assert (picture.type, getattr(picture, "mime_type", "")) == ("image", "image/png")
    document = media("box-1", "a b.pdf", part(b"x", media="application/pdf"))
    assert document.model_dump(by_alias=True)["resource"]["uri"] == (
        "box://box-1/files/workspace/a%20b.pdf"
    )


def test_base64_may_have_line_breaks_and_nothing_else_that_is_odd():
    data = bytes(range(256))
    text = b64encode(data).decode()
    assert decoded(f" {text[:76]}\r\n{text[76:]}\n") == data
    for bad in ("a", "ä", "AA=A", "A?=="):
        with pytest.raises(InvalidArgument, match="is no base64"):
            decoded(bad)


def edited(*hunks: Hunk, count: int = 1) -> Edited:
    return Edited(EditFacts(size=9, version="ab12", places=2, hunks=count), list(hunks))


HUNK = Hunk(old_line=3, new_line=4, old="a\nb\n", new="a\r\nc\r\n")


def test_an_edit_is_shown_as_a_diff():
    shown = render_edited("f", edited(HUNK), 1000, dry_run=False)
    assert shown == (
        "[edited f · 2 replacements · 9 bytes · version ab12]\n@@ -3,2 +4,2 @@\n a\n-b\n+c\n"
    )
    dry = render_edited("f", edited(HUNK), 1000, dry_run=True)
    assert dry.startswith("[dry run, f is unchanged · 2 replacements possible · version ab12]\n@@")


def test_a_diff_that_is_too_long_is_cut_at_a_line_and_says_so():
    assert "too much changed to be shown whole" in render_edited(
        "f", edited(HUNK, count=2), 1000, dry_run=False
    )
    shown = render_edited("f", edited(HUNK), 20, dry_run=False)
    assert shown.endswith("too much changed to be shown whole]\n@@ -3,2 +4,2 @@\n a\n")


TEXTS = st.lists(st.sampled_from(["a\n", "b\n", "c\n"]), max_size=12).map("".join)


@given(TEXTS, TEXTS, st.sampled_from(["", "end"]))
def test_a_hunk_reads_as_the_standard_librarys_diff_does(old: str, new: str, end: str):
    old += end
    hunk = Hunk(old_line=1, new_line=1, old=old, new=new)
    expected = list(
        difflib.unified_diff(old.splitlines(keepends=True), new.splitlines(keepends=True))
    )[2:]
    note = "\n\\ No newline at end of file\n"
    assert unified(hunk) == "".join(
        line if line.endswith("\n") else line + note for line in expected
    )


def test_a_huge_hunk_is_shown_as_replaced():
    old = "a\n" * (MAX_MATCHED + 1)
    shown = unified(Hunk(old_line=1, new_line=1, old=old, new="b\n"))
    assert shown.splitlines()[0] == f"@@ -1,{MAX_MATCHED + 1} +1 @@"
    assert shown.splitlines()[-2:] == ["-a", "+b"]
