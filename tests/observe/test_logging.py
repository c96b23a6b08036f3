from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from box_mcp.events import (
    ActFailed,
    BoxAsked,
    BoxAssigned,
    BoxClaimed,
    BoxMoved,
    CallEnded,
    Event,
    ModelUsed,
    NetworkChanged,
    PortUsed,
    RequestRefused,
    RouteUsed,
)
from box_mcp.observe.bounding import AGAIN, BURST
from box_mcp.observe.logging import Sparing

if TYPE_CHECKING:
    from collections.abc import Sequence

BOX = "box-aaaaaaaa"
CALLED = CallEnded("alice", "Ab12", "tools/call", "shell_run", (BOX,), "01ab", "ok", "", 0.0042)
EVENTS: list[tuple[Event, str]] = [
    (BoxAssigned(BOX, "alice"), f"INFO box_mcp: {BOX}: now of alice"),
    (BoxMoved(BOX, "running", "frozen", "idle"), f"INFO box_mcp: {BOX}: running -> frozen (idle)"),
    (NetworkChanged(BOX), f"INFO box_mcp: {BOX}: another network policy"),
    (
        RouteUsed(BOX, "alice", "github", "GET", "/me/app", 403, refused="no"),
        f"INFO box_mcp: {BOX}: GET /me/app by route github: 403 (no)",
    ),
    (
        ModelUsed(BOX, "alice", "anthropic", "POST", "/v1/messages", 200),
        f"INFO box_mcp: {BOX}: POST /v1/messages by route anthropic: 200",
    ),
    (PortUsed(BOX, "alice", 80, "Ab12", 3), f"INFO box_mcp: {BOX}: port 80 asked by alice, x3"),
    (ActFailed(BOX, "start", "it fell"), f"WARNING box_mcp: {BOX}: could not start: it fell"),
    (
        BoxClaimed(BOX, "alice", "frozen", 0.0213),
        f"DEBUG box_mcp: {BOX}: claimed for alice in 0.021 s (frozen)",
    ),
    (BoxAsked(BOX, "read", "ok", 0.0009), f"DEBUG box_mcp: {BOX}: read in 0.001 s: ok"),
    (CALLED, "DEBUG box_mcp: alice: tools/call shell_run: ok in 0.004 s"),
    (RequestRefused("10.0.0.9", 401, "bad token"), "DEBUG box_mcp: 10.0.0.9: 401 (bad token)"),
]


def logged(program: str, level: str = "DEBUG", form: str = "text", *, calls: int = 10) -> list[str]:
    """What a program has in its log, which a process of its own writes."""
    begin = f"""
        import logging, warnings
        from box_mcp.events import *
        from box_mcp.observe.logging import Log, configure
        configure({level!r}, {form!r})
        log = Log({calls})
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(begin) + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def told(events: Sequence[Event], *arguments: str, calls: int = 10) -> list[str]:
    return logged("\n".join(f"log({event!r})" for event in events), *arguments, calls=calls)


def parsed(lines: Sequence[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def test_each_event_is_a_line_in_words():
    assert told([event for event, _ in EVENTS]) == [words for _, words in EVENTS]


def test_who_starts_a_server_for_himself_is_not_told_of_each_call():
    lines = told([event for event, _ in EVENTS], "INFO")
    assert len(lines) == 7
    assert not [line for line in lines if "shell_run" in line or "claimed" in line]


def test_where_programs_read_the_log_each_event_is_an_object_with_its_fields():
    lines = parsed(told([event for event, _ in EVENTS], "INFO", "json", calls=20))
    assert [line["event"] for line in lines] == [
        *("BoxAssigned", "BoxMoved", "NetworkChanged", "RouteUsed", "ModelUsed", "PortUsed"),
        *("ActFailed", "CallEnded", "RequestRefused"),
    ]
    called = lines[-2]
    assert called.pop("time").endswith("+00:00")
    assert called == {
        "level": "INFO",
        "logger": "box_mcp",
        "message": "alice: tools/call shell_run: ok in 0.004 s",
        "event": "CallEnded",
        "principal": "alice",
        "token": "Ab12",
        "method": "tools/call",
        "tool": "shell_run",
        "boxes": [BOX],
        "arguments": "01ab",
        "outcome": "ok",
        "error": "",
        "seconds": 0.0042,
    }


def test_a_mistake_of_ours_is_told_at_every_level():
    failed = CallEnded("alice", "", "tools/call", "shell_run", (), "", "failed", "KeyError", 0.1)
    (line,) = told([failed], "ERROR")
    assert line == "ERROR box_mcp: alice: tools/call shell_run: failed in 0.100 s (KeyError)"


def test_a_flood_of_refusals_does_not_flood_the_log():
    program = "for _ in range(1_000): log(RequestRefused('10.0.0.9', 401, 'bad token'))"
    assert 200 <= len(logged(program)) <= 210


def test_what_a_place_says_too_often_is_left_out_and_counted_and_nothing_else_is():
    now = [0.0]
    sparing = Sparing(lambda: now[0])

    def said(line: int, text: str) -> str | None:
        record = logging.LogRecord("mcp.server", 30, "runner.py", line, "%s", (text,), None)
        return record.getMessage() if sparing.filter(record) else None

    most = int(BURST)
    flood = [said(1, f"dropped {number}") for number in range(most + 500)]
    assert flood[:most] == [f"dropped {number}" for number in range(most)]
    assert set(flood[most:]) == {None}
    assert said(2, "something else") == "something else"
    now[0] = 1 / AGAIN
    assert said(1, "dropped") == "dropped (500 more left out)"
    assert said(1, "dropped") is None


def test_a_flood_that_a_library_tells_of_does_not_flood_the_log():
    program = """
        for number in range(1_000):
            logging.getLogger("mcp.server.runner").warning(f"dropped {number}")
        for _ in range(300):
            log(ActFailed("box-aaaaaaaa", "start", "it fell"))
        logging.getLogger("mcp.server").warning("odd")
    """
    lines = logged(program)
    assert BURST <= sum("dropped" in line for line in lines) <= BURST + 5
    assert sum("it fell" in line for line in lines) == 300
    assert lines[-1] == "WARNING mcp.server: odd"


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_stays_a_line_whatever_is_in_it(form: str):
    (line,) = told(
        [RequestRefused("x\n\x1b[2J\u2028", 400, "\r\nINFO box_mcp: all well")], "DEBUG", form
    )
    assert "\x1b" not in line
    assert line.count("all well") == 1 + (form == "json")


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_an_exception_says_is_in_no_log(form: str):
    program = """
        def reads():
            try:
                raise KeyError("needle")
            except KeyError as error:
                raise ExceptionGroup("needle", [ValueError("needle"), OSError("needle")]) from error
        try:
            reads()
        except ExceptionGroup:
            logging.getLogger("mcp.server").exception("modern request handler raised")
    """
    found = "\n".join(logged(program, form=form))
    assert "needle" not in found
    assert "modern request handler raised" in found
    assert "in reads" in found
    for kind in ("KeyError", "ExceptionGroup", "ValueError", "OSError"):
        assert f"builtins.{kind}" in found


def test_others_are_logged_in_the_same_form_and_what_they_tell_of_requests_is_not():
    program = """
        logging.getLogger("uvicorn.error").error("fell")
        logging.getLogger("mcp.server").warning("odd")
        for name in ("mcp.server", "httpx2", "hpack", "uvicorn.error", "urllib3"):
            logging.getLogger(name).info("needle")
            logging.getLogger(name).debug("needle")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    """
    lines = parsed(logged(program, "DEBUG", "json"))
    assert [(line["logger"], line["message"]) for line in lines[:2]] == [
        ("uvicorn.error", "fell"),
        ("mcp.server", "odd"),
    ]
    assert [line["logger"] for line in lines[2:]] == ["py.warnings"]
