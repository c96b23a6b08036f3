"""How results read; pure functions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from box_mcp.capabilities.shell import Listing as Shown
from box_mcp.capabilities.shell import Outcome, Page
from box_mcp.domain.box import Box, BoxSpec, State
from box_mcp.domain.names import BoxId
from box_mcp.domain.plan import Act
from box_mcp.errors import InvalidArgument
from box_mcp.lifecycle import Report
from box_mcp.surface.lifecycle import describe, note
from box_mcp.surface.shell import headline, printable, render, render_page, signal_number
from box_mcp.surface.shell import render_listing as render_processes
from tests.support.records import ENDED as RECORD
from tests.support.records import record

ENDED = record()
SPEC = BoxSpec(image="box-mcp:base", size="small", cpus=1, memory=1024**3)
BOX = Box(BoxId("box-aaaaaaaa"), SPEC, created=0, since=60, state=State.RUNNING)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "exit 0 · 1.50 s"),
        ({"exit": 7, "left": 2}, "exit 7 · 1.50 s · 2 processes that it started still run"),
        ({"exit": None, "signal": 9}, "killed by SIGKILL · 1.50 s"),
        ({"exit": None, "signal": 63}, "killed by signal 63 · 1.50 s"),
        ({"exit": None, "running": True}, "running for 2 s"),
        ({"cpu": 12.34, "peak": 2**30}, "exit 0 · 1.50 s · cpu 12.3 s · peak 1024 MiB"),
        ({"session": "main"}, "exit 0 · 1.50 s"),
        ({"session": "main", "fresh": True}, "exit 0 · 1.50 s · new session main"),
        (
            {"session": "main", "over": True, "exit": 1},
            (
                "exit 1 · 1.50 s · session main ended with it: the next call that names it "
                "starts anew"
            ),
        ),
        (
            {"exit": None, "signal": 15, "cause": "timeout"},
            "timed out: its whole process tree was ended (killed by SIGTERM) · 1.50 s",
        ),
        (
            {"exit": None, "signal": 15, "cause": "ended"},
            "ended as asked for (killed by SIGTERM) · 1.50 s",
        ),
        (
            {"exit": None, "signal": 15, "cause": "cancelled"},
            "ended because its call was given up (killed by SIGTERM) · 1.50 s",
        ),
        (
            {"exit": None, "cause": "box_stopped"},
            "ended with the box, which was stopped: what it printed until then is kept · 1.50 s",
        ),
        ({"exit": None}, "its exit status is not known · 1.50 s"),
        (
            {"printed": 5000, "logged": 1000},
            ("exit 0 · 1.50 s · only the first 1,000 bytes could be kept: the disk is full"),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_headline_says_how_a_command_is_or_ended(changes: dict[str, object], said: str):
    assert headline(record(**changes)) == said


def test_output_that_fits_is_shown_whole():
    assert render(Outcome(ENDED, b"one\n", 0, b"two\n")) == "[exit 0 · 1.50 s]\none\ntwo\n"


def test_a_command_that_goes_on_is_told_with_the_call_that_follows_it():
    going_on = Outcome(record(running=True, exit=None, printed=7), b"so far\n", 0, b"")
    assert render(going_on) == (
        '[running for 2 s as p1, and goes on · follow it by process_output(id="p1", cursor=7, '
        "wait=45), end it by process_signal]\nso far\n"
    )


def test_calls_that_are_proposed_name_the_box_that_was_named():
    going_on = Outcome(record(running=True, exit=None), b"a", 8, b"b")
    shown = render(going_on, box="other")
    assert shown.count('process_output(id="p1", box="other", cursor=') == 2
    assert render(Outcome(ENDED, b"", 0, b""), named=True) == "[p1 exit 0 · 1.50 s]\n"


def test_output_that_does_not_fit_names_the_gap_and_where_all_of_it_is():
    shown = render(Outcome(record(printed=5000, logged=5000), b"head", 4992, b"tail"))
    gap = (
        '[... 4,992 bytes left out: process_output(id="p1", cursor=4) reads on from here; '
        "all of it is in /var/log/box_mcp/p1.log ...]"
    )
    assert shown == f"[exit 0 · 1.50 s]\nhead\n{gap}\ntail"


def test_output_beyond_the_logs_limit_says_how_much_the_log_has_lost():
    shown = render(Outcome(record(printed=5000, logged=5000, dropped=1000), b"h", 4998, b"t"))
    assert "all of it but 1,000 bytes from its middle is in" in shown


def test_control_sequences_are_left_out_or_kept_by_choice():
    outcome = Outcome(ENDED, b"\x1b[31mred\x1b[0m 1%\r100%\n", 0, b"")
    assert render(outcome).endswith("\n100%1%\n") or render(outcome).endswith("\n100%\n")
    assert render(outcome, raw=True).endswith("\n\x1b[31mred\x1b[0m 1%\r100%\n")


PAGE = Page.model_validate({**RECORD, "start": 0, "end": 10, "matched": False})


@pytest.mark.parametrize(
    ("changes", "pattern", "said"),
    [
        ({}, None, "p1 exit 0 · 1.50 s · bytes 0-10 of 10"),
        (
            {"logged": 30, "printed": 30},
            None,
            "p1 exit 0 · 1.50 s · bytes 0-10 of 30 · next cursor=10",
        ),
        (
            {"running": True, "exit": None, "matched": True},
            "ready",
            "p1 running for 2 s · pattern found · bytes 0-10 of 10 · next cursor=10",
        ),
        ({}, "ready", "p1 exit 0 · 1.50 s · pattern not found · bytes 0-10 of 10"),
    ],
)
def test_a_page_says_what_it_shows_and_how_to_go_on(
    changes: dict[str, object], pattern: str | None, said: str
):
    page = PAGE.model_copy(update=changes)
    assert render_page(page, b"text\n", pattern=pattern) == f"[{said}]\ntext\n"


def test_a_list_of_processes_has_a_line_for_each():
    own = {
        "members": [{"pid": 7, "name": "npm"}, {"pid": 8, "name": "node"}],
        "memory": 3 * 2**20,
        "ports": [80, 8080],
    }
    running = {**RECORD, "running": True, "exit": None, "session": "main", "cpu": 2.0}
    listing = Shown.model_validate(
        {
            "runs": [
                {**running, **own, "command": "npm run\ndev\x1b[0m"},
                {**RECORD, "id": "p2", "members": [], "memory": 0, "ports": []},
            ],
            "total": 5,
        }
    )
    assert render_processes(listing).splitlines() == [
        "[1 running, 5 known, 2 of them shown]",
        (
            "p1  running for 2 s · cpu 2.0 s · 7(npm) 8(node) · 3 MiB · listens on 80, 8080"
            " · session main · npm run dev [0m"
        ),
        "p2  exit 0 · 1.50 s · true",
    ]


@pytest.mark.parametrize("name", ["KILL", "SIGKILL", "kill", "9"])
def test_signals_are_known_by_all_their_names(name: str):
    assert signal_number(name) == 9


@pytest.mark.parametrize("name", ["", "0", "99", "SIG", "nonsense", "END"])
def test_what_is_no_signal_is_refused(name: str):
    with pytest.raises(InvalidArgument):
        signal_number(name)


def test_bytes_that_are_no_utf8_are_replaced():
    assert (
        render(Outcome(ENDED, b"a\xff", 0, b"")) == "[exit 0 · 1.50 s]\na\N{REPLACEMENT CHARACTER}"
    )


def test_what_is_shown_on_one_line_has_no_control_characters():
    assert printable("\x1b[1mbold\x07 ä\n\udcff") == " [1mbold  ä  "


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
