"""Output as text and as a screen; what real programs printed lies in recordings.json."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.capabilities.cells import width
from box_mcp.capabilities.terminal import (
    MAX_COLUMNS,
    MAX_ROWS,
    as_printed,
    below_full_screen,
    legible,
    screen,
    sends_application_keys,
)

# What programs printed to a terminal of that size, and what xterm.js and tmux showed then.
RECORDINGS: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("recordings.json").read_text(encoding="utf-8")
)

LEGIBLE = {
    "a progress bar is shown in its last state": (b"10%\r20%\r100%\nnext\n", "100%\nnext\n"),
    "a return before a line break changes nothing": (b"one\r\ntwo\r\r\n", "one\ntwo\n"),
    "a shorter state covers its own width only": (b"a long line\rSHORT", "SHORTg line"),
    "what is erased to the line's end is gone": (b"a long line\r\x1b[KSHORT", "SHORT"),
    "a whole line is erased": (b"working\x1b[2K\rdone\n", "done\n"),
    "text before the cursor is erased": (b"abc\x1b[1D\x1b[1Kd", "  d"),
    "a spinner leaves its last state": (b"|\b/\b-\bok\n", "ok\n"),
    "a manual page's bold and underlined": (b"N\bNA\bAM\bME _\bx", "NAME x"),
    "backspaces go no further than the line's start": (b"a\n\b\b\bb", "a\nb"),
    "colours are left out": (b"\x1b[1;31mred\x1b[0m \x1b[38:2::1:2:3mx\x1b[m", "red x"),
    "titles are left out": (b"\x1b]0;a title\x07a\x1b]2;one\x1b\\b", "ab"),
    "hyperlinks leave their text": (b"\x1b]8;;http://a.b\x1b\\here\x1b]8;;\x1b\\.", "here."),
    "strings for the terminal are left out": (
        b"a\x1bPq#1~\n~\x1b\\b\x1b_G\x1b\\c\x1b^p\x1b\\d\x1bXs\x1b\\e",
        "abcde",
    ),
    "questions and modes are left out": (
        b"\x1b[c\x1b[>4;2m\x1b[?4m\x1b[?2004h\x1b[22;0;0t\x1b[2 q\x1b[>1ua\x1b=\x1b>\x1b%G",
        "a",
    ),
    "control characters of eight bits are left out": ("a\x9b1mb\x9d0;t\x9cc\x8e".encode(), "abc"),
    "bells and other control characters are left out": (b"a\x07\0\x01b\x7f\x1ac", "abc"),
    "what is no UTF-8 is replaced": (b"a\xffb\xc3\x1b[m", "a\ufffdb\ufffd"),
    "tabs are kept": (b"a\tb\x1b[m\t\tc", "a\tb\t\tc"),
    "a tab that is printed over becomes blanks": (b"a\tb\r123\n", "123     b\n"),
    "form feeds break lines": (b"a\fb\vc", "a\nb\nc"),
    "frames of DEC's graphic characters": (b"\x1b(0lqk\x1b(B l\x1b)0\x0eq\x0fq", "┌─┐ l─q"),
    "several lines of progress are printed over": (
        b"a: 1%\r\nb: 1%\r\n\x1b[2A\x1b[2K\ra: 50%\r\x1b[2B\x1b[1A\x1b[2K\rb: 9%\r\x1b[1Bc\r\n",
        "a: 50%\nb: 9%\nc\n",
    ),
    "lines are erased upwards": (b"a\nb\nc\n\x1b[1A\x1b[2K\x1b[1A\x1b[2Kend\n", "a\nend\n"),
    "what is cleared is kept": (b"built\n\x1b[H\x1b[2J\x1b[3Jran\n", "built\nran\n"),
    "what is cleared in another way is kept": (b"built\n\x1b[H\x1b[Jran\n", "built\nran\n"),
    "what a reset clears is kept": (b"built\n\x1bcran\n", "built\nran\n"),
    "the first line is erased from its start": (b"busy\r\x1b[Jdone\n", "done\n"),
    "another screen that was left leaves nothing": (
        b"before\n\x1b[?1049h\x1b[H\x1b[2Jinside\x1b[?1049lafter\n",
        "before\nafter\n",
    ),
    "another screen that is still shown comes last": (
        b"before\n\x1b[?1049h\x1b[2J\x1b[2;3Hinside",
        "before\n\n  inside",
    ),
    "a column beyond the text": (b"Started x\r\x1b[20C[ OK ]\n", "Started x           [ OK ]\n"),
    "no column beyond the terminal": (b"\x1b[999Cx", " " * 79 + "x"),
    "wide characters are printed over as a whole": ("漢字\rx\n".encode(), "x 字\n"),
    "accents stay with their letters": ("e\u0301\x1b[m a".encode(), "e\u0301 a"),
    "an unended string hides its line only": (b"a\x1b]0;title\nb\x1b[m", "a\nb"),
    "an unended sequence at the end is left out": (b"ab\x1b[3", "ab"),
    "an unended escape at the end is left out": (b"ab\x1b(", "ab"),
    "a sequence that is broken off ends there": (b"a\x1b[1\xc3\xa9\x1b[2\x1b[mb", "aéb"),
    "a sequence that began before shows its rest": (b"1mred\x1b[0m", "1mred"),
}

# On a screen of 3 rows and 8 columns: its rows, and where the cursor is; xterm.js says the same.
SCREENS = {
    "the cursor is sent to a place": (b"\x1b[2;3Ha\x1b[3;99fb", ("", "  a", "       b"), 3, 8),
    "up and down": (b"\x1b[3;4H\x1b[2Aa\x1b[Bb\x1b[99B\x1b[99A", ("   a", "    b", ""), 1, 6),
    "right and left": (b"\x1b[3Ca\x1b[3Db\x1b[aC\x1b[99C\x1b[2D", (" b C", "", ""), 1, 6),
    "lines up and down": (b"ab\x1b[2Ec\x1b[Fd", ("ab", "d", "c"), 2, 2),
    "columns and rows": (
        b"\x1b[4Ga\x1b[2`b\x1b[3dc\x1b[1dd\x1b[ee",
        (" b d", "    e", "  c"),
        2,
        6,
    ),
    "tab stops": (b"abc\x1b[Zd\x1b[Ie", ("dbc    e", "", ""), 1, 8),
    "scrolling": (b"a\r\nb\r\nc\x1b[Sx\x1b[2Ty", ("", "", "b y"), 3, 4),
    "index and next line": (b"a\x1bDb\x1bEc\x1bEd", (" b", "c", "d"), 3, 2),
    "reverse index": (b"a\x1bMb\x1b[3;1H\x1bMc", (" b", "c", ""), 2, 2),
    "the cursor is saved": (b"ab\x1b7cd\x1b8e\x1b[sfg\x1b[uh", ("abehg", "", ""), 1, 5),
    "the cursor is saved by a mode": (b"ab\x1b[?1048hcd\x1b[?1048le", ("abed", "", ""), 1, 4),
    "a character is repeated": (b"=\x1b[3b|\x1b[b", ("====||", "", ""), 1, 7),
    "erased to the end": (b"abc\r\ndef\r\nghi\x1b[2;2H\x1b[J", ("abc", "d", ""), 2, 2),
    "erased from the start": (b"abc\r\ndef\r\nghi\x1b[2;2H\x1b[1J", ("", "  f", "ghi"), 2, 2),
    "erased as a whole": (b"abc\r\ndef\x1b[2Jx", ("", "   x", ""), 2, 5),
    "erased out of sight": (b"abc\x1b[3J", ("abc", "", ""), 1, 4),
    "a soft reset": (
        b"\x1b[?7l\x1b[4h\x1b[2;3r\x1b[!pabcdefgh\r\n\rij",
        ("abcdefgh", "ij", ""),
        2,
        3,
    ),
    "a reset": (b"\x1b[?47habc\x1b(0\x1bclq", ("lq", "", ""), 1, 3),
}

HOSTILE = {
    "lines that scroll": b"\x1b[999999999B\n",
    "columns far away": b"\x1b[1000000Cx\n",
    "rows far away": b"\x1b[99999;99999Hx\x1b[2J",
    "characters repeated": b"x\x1b[99999b",
    "rows inserted": b"\x1b[99999L",
    "rows removed": b"\x1b[99999M",
    "cells inserted": b"x\r\x1b[99999@",
    "scrolling": b"\x1b[99999S\x1b[99999T",
    "clearing": b"\x1b[J\x1b[2J",
    "resets": b"x\x1bc",
    "other screens": b"\x1b[?1049h\x1b[?1049l",
    "strings without an end": b"\x1b]0;",
    "strings over lines": b"\x1b]0;\n",
    "strings of eight bits": b"\xc2\x9d\n",
    "giant parameters": b"\x1b[" + b"9" * 5000 + b"m",
    "many parameters": b"\x1b[" + b"1;" * 2500 + b"h",
    "sequences without an end": b"\x1b[?1;",
    "accents without a letter": "\u0301\x1b[m".encode(),
    "one letter with many accents": "\u0301".encode(),
    "tabs printed over": b"\t\bx\n",
    "wide characters printed over": "漢\bx".encode(),
    "insertions": b"\x1b[4hab\r",
    "one long line": b"x",
}

numbers = st.sampled_from(["", "0", "1", "2", "5", "24", "80", "999", "99999999999999999999"])
sequences = st.tuples(
    st.sampled_from(["\x1b[", "\x1b[", "\x1b[", "\x1b[?", "\x1b[>", "\x9b"]),
    st.lists(numbers | st.sampled_from(["1049", "47", "7", "4"]), max_size=3).map(";".join),
    st.sampled_from([chr(code) for code in range(0x40, 0x7F)]),
).map(lambda parts: "".join(parts).encode())
pieces = st.one_of(
    st.text(max_size=30).map(lambda text: text.encode(errors="replace")),
    st.sampled_from([b"\n", b"\r", b"\b", b"\t", b"\x1b7", b"\x1b8", b"\x1bM", b"\x1bc"]),
    st.sampled_from([b"\x1b[", b"\x1b]", b"\x1b]2;", b"\x1bP", b"\x1b\\", b"\x1b(0", b"\x1b"]),
    st.sampled_from(["漢".encode(), "e\u0301".encode(), b"\xc2\x9b", b"\xe2\x82", b"\x07"]),
    sequences,
    st.binary(max_size=10),
)
outputs = st.lists(pieces, max_size=40).map(b"".join)
# Text as files have it, without what joins the character before it: a display may drop that.
characters = st.characters(exclude_categories=("Cc", "Cs", "Mn", "Me", "Cf")) | st.sampled_from(
    "\n\t"
)
texts = st.text(characters, max_size=300) | st.lists(st.just("line"), max_size=99).map("\n".join)


def recorded(name: str) -> bytes:
    return "".join(RECORDINGS[name]["output"]).encode()


@pytest.mark.parametrize(("output", "text"), LEGIBLE.values(), ids=LEGIBLE)
def test_output_becomes_legible(output: bytes, text: str):
    assert legible(output) == text


def test_apt_is_legible_without_its_status_line():
    assert legible(recorded("apt")) == (
        "Reading package lists... Done\n"
        "Building dependency tree... Done\n"
        "Reading state information... Done\n"
        "0 upgraded, 0 newly installed, 2 reinstalled, 0 to remove and 136 not upgraded.\n"
        "Need to get 13.2 kB/66.3 kB of archives.\n"
        "After this operation, 0 B of additional disk space will be used.\n"
        "debconf: delaying package configuration, since apt-utils is not installed\n"
        "(Reading database ... 112584 files and directories currently installed.)\n"
        "Preparing to unpack .../hello_2.10-3_amd64.deb ...\n"
        "Unpacking hello (2.10-3) over (2.10-3) ...\n"
        "Preparing to unpack .../sl_5.02-1+b1_amd64.deb ...\n"
        "Unpacking sl (5.02-1+b1) over (5.02-1+b1) ...\n"
        "Setting up sl (5.02-1+b1) ...\n"
        "Setting up hello (2.10-3) ...\n"
        "Processing triggers for man-db (2.11.2-2) ...\n"
    )


def test_git_clone_is_legible_with_the_last_state_of_each_count():
    assert legible(recorded("git_clone")) == (
        "Cloning into 'copy'...\n"
        "remote: Enumerating objects: 36, done.\n"
        "remote: Counting objects: 100% (36/36), done.\n"
        "remote: Compressing objects: 100% (23/23), done.\n"
        "remote: Total 36 (delta 10), reused 0 (delta 0), pack-reused 0\n"
        "Receiving objects: 100% (36/36), done.\n"
        "Resolving deltas: 100% (10/10), done.\n"
    )


def test_npm_is_legible_without_its_spinner():
    assert legible(recorded("npm")) == "\nadded 2 packages in 575ms\n"


@pytest.mark.parametrize("name", ["vim_left", "less_left"])
def test_a_program_on_another_screen_leaves_what_was_there_before(name: str):
    assert legible(recorded(name)) == "before\nafter\n"


def test_the_last_lines_of_a_tall_terminal_can_be_printed_over():
    output = b"x\n" * 40 + b"\x1b[40Afirst\r\x1b[40B"
    assert legible(output, rows=50) == "first\n" + "x\n" * 39
    assert legible(output, rows=24).splitlines().index("first") == 40 - 23


@given(texts)
def test_plain_text_stays_as_it_is(text: str):
    assert legible(text.encode()) == text
    assert legible(f"\x1b[m{text}".encode()) == text


@given(texts, texts)
def test_chunks_of_plain_text_are_legible_apart_as_together(first: str, second: str):
    apart = legible(first.encode()) + legible(second.encode())
    assert apart == legible((first + second).encode())


@given(outputs, st.integers(-1, 300), st.integers(-1, 600))
def test_any_output_becomes_text_without_control_characters(output: bytes, rows: int, cols: int):
    text = legible(output, rows, cols)
    assert re.fullmatch(r"[^\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]*", text)
    assert legible(text.encode()) == text


@given(st.lists(pieces, min_size=1, max_size=3).map(b"".join), st.integers(1, 300))
def test_text_is_not_much_longer_than_the_output(piece: bytes, times: int):
    assert len(legible(piece * times)) <= 6 * len(piece * times) + 4000


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
def test_hostile_output_costs_no_more_than_it_is_long(piece: bytes):
    output = (piece * (100_000 // len(piece) + 1))[:100_000]
    began = time.perf_counter()
    assert len(legible(output)) <= 6 * len(output) + 4000
    seen = screen(output, MAX_ROWS, MAX_COLUMNS)
    sends_application_keys(output)
    assert len(seen.lines) == MAX_ROWS
    assert time.perf_counter() - began < 20, "a second is usual; what is not linear takes minutes"


def test_as_printed_control_sequences_are_kept_and_broken_characters_replaced():
    assert as_printed(b"\x1b[1mbold\x1b[m\r\n\xc3") == "\x1b[1mbold\x1b[m\r\n\ufffd"


@given(st.binary(max_size=200))
def test_anything_as_printed_can_be_sent_on(output: bytes):
    as_printed(output).encode()


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_screen_is_what_other_terminals_show(name: str):
    recording = RECORDINGS[name]
    seen = screen(recorded(name), recording["rows"], recording["cols"])
    assert seen.text.splitlines() == recording["screen"]
    assert (seen.row, seen.col) == (recording["row"], recording["col"])


@pytest.mark.parametrize(("output", "lines", "row", "col"), SCREENS.values(), ids=SCREENS)
def test_a_screen_after(output: bytes, lines: tuple[str, ...], row: int, col: int):
    seen = screen(output, 3, 8)
    assert (seen.lines, seen.row, seen.col) == (lines, row, col)


def test_a_screen_has_all_its_rows_and_the_text_those_in_use():
    seen = screen(b"\x1b[2;3Hx\x1b[H", 4, 10)
    assert seen.lines == ("", "  x", "", "")
    assert seen.text == "\n  x"
    assert (seen.row, seen.col) == (1, 1)


def test_a_screen_wraps_lines_and_scrolls():
    assert screen(b"abcdefgh\r\nij\r\nkl", 3, 4).lines == ("efgh", "ij", "kl")


def test_the_last_column_wraps_with_the_next_character_only():
    seen = screen(b"abcd\r\n", 3, 4)
    assert (seen.lines, seen.row, seen.col) == (("abcd", "", ""), 2, 1)
    seen = screen(b"abcd", 3, 4)
    assert (seen.row, seen.col) == (1, 4)


def test_a_wide_character_that_does_not_fit_goes_to_the_next_row():
    assert screen("abc漢".encode(), 2, 4).lines == ("abc", "漢")


def test_without_wrapping_the_last_column_is_printed_over():
    assert screen(b"\x1b[?7labcdefg", 2, 4).lines == ("abcg", "")


def test_the_rows_outside_of_the_margins_do_not_scroll():
    output = b"top\x1b[4;1Hend\x1b[2;3r\x1b[2;1Ha\r\nb\r\nc"
    assert screen(output, 4, 5).lines == ("top", "b", "c", "end")


def test_rows_and_cells_are_inserted_and_removed():
    rows = b"1\r\n2\r\n3\x1b[2;1H"
    assert screen(rows + b"\x1b[L", 4, 9).lines == ("1", "", "2", "3")
    assert screen(rows + b"\x1b[M", 4, 9).lines == ("1", "3", "", "")
    assert screen(b"abcd\x1b[2G\x1b[2@", 1, 5).lines[0] == "a  bc"
    assert screen(b"abcd\x1b[2G\x1b[2P", 1, 5).lines[0] == "ad"
    assert screen(b"abcd\x1b[2G\x1b[2X", 1, 5).lines[0] == "a  d"
    assert screen(b"abcd\x1b[2G\x1b[4hxy", 1, 5).lines[0] == "axybc"


def test_another_screen_is_left_for_the_cursor_and_text_that_were_there():
    seen = screen(b"before\x1b[?1049h\x1b[H\x1b[2Jinside\x1b[?1049l", 3, 10)
    assert (seen.lines[0], seen.col) == ("before", 7)


def test_a_screen_has_its_title_without_control_characters():
    assert screen(b"\x1b]0;one\x07\x1b]2;t\nw\to\x1b\\\x1b]1;icon\x07", 2, 9).title == "two"


def test_of_output_that_began_before_the_screen_shows_what_came_since():
    whole = recorded("vim")
    later = screen(whole[len(whole) // 2 :], 24, 80)
    assert later.lines[-1] == RECORDINGS["vim"]["screen"][-1]


@given(outputs, st.integers(-1, 300), st.integers(-1, 600))
def test_any_output_makes_a_screen_of_its_size(output: bytes, rows: int, cols: int):
    seen = screen(output, rows, cols)
    rows, cols = max(2, min(rows, MAX_ROWS)), max(2, min(cols, MAX_COLUMNS))
    assert len(seen.lines) == rows
    assert all(sum(map(width, line)) <= cols for line in seen.lines)
    assert 1 <= seen.row <= rows
    assert 1 <= seen.col <= cols
    assert seen.title.isprintable()
    seen.text.encode()


@pytest.mark.parametrize(
    ("output", "asked"),
    [
        (b"", False),
        (b"\x1b[?1h\x1b=", True),
        (b"\x1b[?1h x \x1b[?1l", False),
        (b"\x1b[?25;1;7h", True),
        (b"\x1b[?1049h\x1b[?11h\x1b[?h", False),
    ],
)
def test_a_program_asks_for_application_keys_until_it_no_longer_does(output: bytes, asked: bool):
    assert sends_application_keys(output) is asked


def test_vim_asks_for_application_keys_and_takes_that_back():
    assert sends_application_keys(recorded("vim"))
    assert not sends_application_keys(recorded("vim_left"))


@pytest.mark.parametrize(
    ("output", "left"),
    [
        (b"drawn\x1b[?1049lafter", b"after"),
        (
            b"drawn\x1b[?47lafter\x1b[?1049hmore\x1b[?1049llast",
            b"after\x1b[?1049hmore\x1b[?1049llast",
        ),
        (b"before\x1b[?1049hdrawn\x1b[?1049lafter", b"before\x1b[?1049hdrawn\x1b[?1049lafter"),
        (b"plain", b"plain"),
    ],
)
def test_of_output_that_begins_within_a_full_screen_program_what_came_after_is_left(
    output: bytes, left: bytes
):
    assert below_full_screen(output) == left
