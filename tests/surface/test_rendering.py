"""How results read; pure functions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from box_mcp.capabilities.files import Entry, Lines, Listing, ReadFacts
from box_mcp.capabilities.shell import Outcome, RunRecord
from box_mcp.domain.box import Box, BoxSpec, State
from box_mcp.domain.names import BoxId
from box_mcp.domain.plan import Act
from box_mcp.lifecycle import Report
from box_mcp.surface.files import one_line, render_lines, render_listing
from box_mcp.surface.lifecycle import describe, note
from box_mcp.surface.shell import headline, printable, render

ENDED = RunRecord(
    id="p1",
    running=False,
    left=0,
    exit=0,
    signal=None,
    cause=None,
    seconds=1.5,
    printed=10,
    logged=10,
    log="/var/log/box_mcp/p1.log",
)
SPEC = BoxSpec(image="box-mcp:base", size="small", cpus=1, memory=1024**3)
BOX = Box(BoxId("box-aaaaaaaa"), SPEC, created=0, since=60, state=State.RUNNING)


def ended(**changes: object) -> RunRecord:
    return ENDED.model_copy(update=changes)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (ENDED, "exit 0 · 1.50 s"),
        (ended(exit=7, left=2), "exit 7 · 1.50 s · 2 processes that it started still run"),
        (ended(exit=None, signal=9), "killed by SIGKILL · 1.50 s"),
        (ended(exit=None, signal=63), "killed by signal 63 · 1.50 s"),
        (
            ended(exit=None, signal=15, cause="timeout"),
            "timed out: its whole process tree was ended (killed by SIGTERM) · 1.50 s",
        ),
        (
            ended(exit=None, running=True),
            (
                "still running after 2 s as p1; it goes on in the box until its timeout. "
                "All its output goes to /var/log/box_mcp/p1.log: read that file to follow it"
            ),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_headline_says_how_a_command_ended(record: RunRecord, said: str):
    assert headline(record) == said


def test_output_that_fits_is_shown_whole():
    assert render(Outcome(ENDED, b"one\n", 0, b"two\n")) == "[exit 0 · 1.50 s]\none\ntwo\n"


def test_output_that_does_not_fit_names_the_gap_and_where_all_of_it_is():
    shown = render(Outcome(ended(printed=5000, logged=5000), b"head", 4992, b"tail"))
    gap = "[... 4,992 bytes left out; all of it is in /var/log/box_mcp/p1.log ...]"
    assert shown == f"[exit 0 · 1.50 s]\nhead\n{gap}\ntail"


def test_output_beyond_the_logs_limit_says_how_much_the_log_has():
    shown = render(Outcome(ended(printed=5000, logged=1000), b"head", 4992, b"tail"))
    assert "all of it (its first 1,000 bytes) is in" in shown


def test_bytes_that_are_no_utf8_are_replaced():
    assert (
        render(Outcome(ENDED, b"a\xff", 0, b"")) == "[exit 0 · 1.50 s]\na\N{REPLACEMENT CHARACTER}"
    )


def test_progress_has_no_control_characters():
    assert printable("\x1b[1mbold\x07 ä\n\udcff") == "[1mbold ä"


FACTS = ReadFacts(kind="file", size=10, mode=0o644, modified=0, lines=2, more=False)


@pytest.mark.parametrize(
    ("facts", "content", "shown"),
    [
        ({}, b"a\nb\n", "[f · 10 bytes · lines 5-6]\na\nb\n"),
        ({"more": True}, b"a\nb\n", "[f · 10 bytes · lines 5-6 · more: first_line=7]\na\nb\n"),
        ({"lines": 0}, b"", "[f · 10 bytes · ends before line 5]"),
        ({"lines": 0, "size": 0}, b"", "[f · 0 bytes · empty]"),
    ],
)
def test_a_file_is_shown_with_its_range(facts: dict[str, object], content: bytes, shown: str):
    assert render_lines("f", 5, Lines(FACTS.model_copy(update=facts), content)) == shown


def test_a_line_that_was_cut_is_told_with_a_way_to_the_rest():
    shown = render_lines("f", 5, Lines(FACTS.model_copy(update={"more": True}), b"a\nb"))
    assert "the last one cut · continue with: tail -n +6 f | cut -c" in shown


def test_a_binary_file_is_not_shown():
    assert "binary: use shell_run" in render_lines("f", 1, Lines(FACTS, b"a\0b"))


def test_a_listing_says_how_many_entries_are_left_out():
    entry = Entry(kind="directory", size=4096, mode=0o755, modified=0, name="src")
    assert render_listing(".", Listing([entry], 3)).splitlines() == [
        "[. · 3 entries, the first 1 shown]",
        "rwxr-xr-x       4096 1970-01-01 00:00 src/",
    ]


@pytest.mark.parametrize("modified", [1e300, -1e300, 1e14, -1e12])
def test_a_time_that_no_calendar_has_is_shown_as_unknown(modified: float):
    entry = Entry(kind="file", size=0, mode=0, modified=modified, name="x")
    assert "????-??-?? ??:?? x" in render_listing(".", Listing([entry], 1))


def test_a_name_is_always_one_line():
    assert one_line("a\nb\x1b\\ä") == "a\\nb\\x1b\\ä"


def test_a_box_is_described_by_what_callers_need():
    shown = describe(Report(BOX, busy=False, next_act=None, next_at=None))
    assert (shown.state, shown.depth, shown.memory_mib) == ("running", None, 1024)
    assert shown.created == "1970-01-01T00:00:00Z"
    frozen = describe(Report(replace(BOX, state=State.FROZEN), False, None, None))
    assert (frozen.state, frozen.depth) == ("paused", "frozen")


def test_a_note_says_why_and_what_comes_next():
    since = "running since 1970-01-01T00:01:00Z"
    assert note(Report(BOX, False, None, None)) == since
    busy = note(Report(BOX, True, Act.FREEZE, 120))
    assert busy == f"{since}; awake because commands run in it"
    idle = note(Report(replace(BOX, reason="asked for"), False, Act.FREEZE, 120))
    assert idle == f"{since} (asked for); idle, next: freeze at 1970-01-01T00:02:00Z"
