"""What agents print becomes the same events however it is read; how a run ended is decided once."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.capabilities.agent import answers, lines
from box_mcp.capabilities.agent.account import (
    LEFT_OUT,
    MAX_COMMANDS,
    MAX_FILES,
    Account,
    answer_of,
    is_session,
)
from box_mcp.capabilities.agent.asked import Choice
from box_mcp.capabilities.agent.lines import Lines
from box_mcp.capabilities.agent.plain import plain
from box_mcp.capabilities.agent.story import ROOM, Sink
from box_mcp.capabilities.agent.verdict import Mend, Over, Standing, decide
from box_mcp.capabilities.harnesses.base import Failed, Finished, Started, Text
from box_mcp.capabilities.harnesses.custom import Custom
from box_mcp.capabilities.harnesses.known import KNOWN
from box_mcp.capabilities.shell import RunRecord
from box_mcp.domain.box import Box, BoxSpec
from box_mcp.domain.models import Prices
from box_mcp.domain.names import LOCAL, BoxId
from box_mcp.domain.runs import Ending, Run, RunId
from box_mcp.errors import InvalidArgument, NoModel
from box_mcp.gateway.models.service import Models
from box_mcp.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from box_mcp.capabilities.harnesses.base import Event

SAID = st.sampled_from(
    [
        b'{"type":"started","session":"s1"}',
        b'{"type":"text","text":"caf\xc3\xa9"}',
        b'{"type":"tool_call","command":"ls"}',
        b'{"type":"news"}',
        b'{"type":"finished","text":"\\ud800"}',
        b"[1]",
        b"npm warn",
        b"\xff\x00",
        b"",
        b"  ",
        b'{"type": NaN}',
        b'{"a":' * 200,
    ]
)
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def account() -> Account:
    harness = Custom("any", ["any"])
    return Account(harness.reader)


def read_in(pages: Sequence[bytes]) -> tuple[list[tuple[int, Event]], Account]:
    """All events of a leg that was read in these pages."""
    reading, events = account(), list[tuple[int, "Event"]]()
    for page in pages:
        reading.lines.put(reading.lines.end, page)
        events += reading.read()
    return [*events, *reading.read(last=True)], reading


@given(st.lists(SAID), st.lists(st.integers(min_value=0)), st.booleans())
def test_any_pages_give_the_same_events(said: list[bytes], cuts: list[int], ended: bool):
    printed = b"\n".join(said) + b"\n" * ended
    places = sorted({cut % (len(printed) + 1) for cut in cuts})
    pages = [printed[a:b] for a, b in zip([0, *places], [*places, None], strict=True)]
    events, whole = read_in([printed])
    again, pieced = read_in(pages)
    assert again == events
    assert (pieced.said, pieced.word, pieced.session) == (whole.said, whole.word, whole.session)
    assert whole.cursor == len(printed)
    cursors = [cursor for cursor, _ in events]
    assert cursors == sorted(set(cursors))


@given(st.lists(SAID), st.integers(min_value=1, max_value=4))
def test_looks_that_follow_on_each_other_show_every_event_once(said: list[bytes], limit: int):
    events, _ = read_in([b"\n".join(said)])
    shown: list[Event] = []
    cursor, more = 0, True
    while more:
        sink = Sink(cursor, limit)
        sink.take(events)
        assert len(sink.events) <= limit
        shown += sink.events
        cursor, more = sink.behind, sink.more
    assert shown == [event for _, event in events]


def test_a_look_holds_no_more_than_it_has_room_for_but_one_event_always():
    sink = Sink(0, 100)
    sink.take([(10, Text("a")), (10 + ROOM, Text("b")), (20 + ROOM, Text("c"))])
    assert (len(sink.events), sink.more) == (2, True)


def test_a_line_that_is_not_whole_waits_for_its_rest():
    reading = account()
    reading.lines.put(0, b'{"type":"text","text":"a"}\n{"type":"te')
    assert [event for _, event in reading.read()] == [Text("a")]
    assert (reading.cursor, reading.lines.end) == (27, 38)
    reading.lines.put(38, b'xt","text":"b"}\n')
    assert reading.read() == [(27, Text("b"))]


def test_lines_without_end_are_left_out_and_hold_no_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lines, "MAX_LINE", 100)
    reading = account()
    for _ in range(50):
        reading.lines.put(reading.lines.end, b"x" * 60)
        assert reading.read() == []
        assert reading.lines.end - reading.lines.cursor <= 100
    reading.lines.put(reading.lines.end, b'\n{"type":"text","text":"b"}\n')
    assert [event for _, event in reading.read()] == [LEFT_OUT, Text("b")]


def test_what_is_gone_from_the_middle_takes_the_cut_lines_with_it():
    reading = account()
    reading.lines.put(0, b'{"type":"text","text":"a"}\n{"type')
    reading.lines.put(1000, b'"lost"}\n{"type":"text","text":"b"}\n')
    assert reading.read() == [(1000, LEFT_OUT), (1008, Text("b"))]


def test_a_box_that_tells_what_it_told_before_is_not_believed():
    split = Lines()
    split.put(0, b"one\ntwo")
    split.put(2, b"three\n")
    assert list(split.take()) == [b"one\n"]
    assert split.end == 7


@given(st.binary())
def test_an_account_takes_whatever_a_box_prints(printed: bytes):
    events, _ = read_in([printed])
    json.dumps([repr(event) for _, event in events]).encode()


@pytest.mark.parametrize(
    "text", ["NaN", "-Infinity", "1e999", "[" * 101 + "]" * 101, "{", "9" * 5000]
)
def test_what_could_not_be_told_again_is_no_json(text: str):
    with pytest.raises(ValueError, match=r"."):
        plain(text)


def test_halves_of_characters_are_told_as_what_they_are_not():
    assert plain('{"a\\udc00": ["\\ud83d", "\\ud83d\\ude00"]}') == {"a?": ["?", "\U0001f600"]}


def test_a_new_leg_forgets_the_last_word_and_keeps_the_work():
    reading = account()
    reading.lines.put(0, b'{"type":"tool_call","command":"ls"}\n{"type":"finished","turns":2}\n')
    reading.read()
    reading.next_leg()
    assert (reading.word, reading.commands, reading.turns) == (None, ["ls"], 2)
    reading.lines.put(0, b'{"type":"finished","turns":1}\n')
    ((cursor, _),) = reading.read()
    assert (cursor, reading.turns) == (10**12, 3)


def test_files_and_commands_are_told_as_they_are_in_the_end_and_counted_beyond_a_measure():
    reading = account()

    def say(**facts: Any) -> None:
        reading.lines.put(reading.lines.end, json.dumps(facts).encode() + b"\n")
        reading.read()

    for change in ("added", "changed"):
        say(type="file_change", path="made", change=change)
    for change in ("added", "deleted"):
        say(type="file_change", path="gone", change=change)
    for change in ("deleted", "added"):
        say(type="file_change", path="again", change=change)
    assert reading.files == {"made": "added", "again": "changed"}
    for number in range(MAX_FILES):
        say(type="file_change", path=str(number), change="changed")
    for number in range(MAX_COMMANDS + 3):
        say(type="tool_call", command=str(number))
    assert (len(reading.files), reading.more_files) == (MAX_FILES, 2)
    assert (len(reading.commands), reading.more_commands) == (MAX_COMMANDS, 3)


@pytest.mark.parametrize("name", ["", "-x", "--resume", "a b", "$(id)", "a" * 129])
def test_what_could_be_taken_for_an_option_is_no_session(name: str):
    assert not is_session(name)
    reading = account()
    reading.lines.put(0, json.dumps({"type": "started", "session": name}).encode() + b"\n")
    assert isinstance(reading.read()[0][1], Started)
    assert not reading.session


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        (Finished("so", answer={"n": 1}), {"n": 1}),
        (Finished('{"n": 1}'), {"n": 1}),
        (Finished('```json\n{"n": 1}\n```\n'), {"n": 1}),
        (Finished("n is 1"), None),
    ],
)
def test_an_answer_is_taken_from_where_it_is(word: Finished, answer: object):
    assert answer_of(word) == answer


ENDED = RunRecord(
    id="p1", command="agent", session=None, fresh=False, over=False, terminal=None, started=1.0,
    running=False, left=0, exit=0, signal=None, cause=None, seconds=5.0, cpu=None, peak=None,
    printed=0, logged=0, dropped=0, log="/var/log/p1",
)  # fmt: skip
RUN = Run(RunId("run-00000000"), LOCAL, BoxId("box-00000000"), "k", "any", 1.0, max_cost=1.0)
DONE, GAVE_UP = Finished("done"), Failed("too hard")
WRONG = ("$.n: is missing",)


def ended(**facts: Any) -> RunRecord:
    return ENDED.model_copy(update=facts)


@pytest.mark.parametrize(
    ("standing", "ending"),
    [
        (Standing(ENDED, DONE), Ending.FINISHED),
        (Standing(ENDED, DONE, spent=1.5), Ending.FINISHED),  # the last answer passed the budget
        (Standing(ENDED, GAVE_UP), Ending.FAILED),
        (Standing(ENDED, GAVE_UP, spent=1.0), Ending.OVER_BUDGET),
        (Standing(ENDED, None), Ending.FAILED),
        (Standing(ended(exit=1), DONE), Ending.FAILED),
        (Standing(ended(exit=None, signal=9), DONE), Ending.FAILED),
        (Standing(ended(exit=None), DONE), Ending.FAILED),
        (Standing(ended(exit=143, cause="timeout"), DONE), Ending.TIMED_OUT),
        (Standing(ended(exit=143, cause="ended"), DONE), Ending.CANCELLED),
        (Standing(ended(exit=143, cause="cancelled"), None), Ending.CANCELLED),
        (Standing(ended(exit=143, cause="ended"), None, spent=1.0), Ending.OVER_BUDGET),
        (Standing(ended(exit=None, cause="box_stopped"), DONE), Ending.LOST),
        (Standing(ENDED, DONE, WRONG, may_mend=False), Ending.FAILED),
        (Standing(ENDED, DONE, WRONG, spent=1.0), Ending.OVER_BUDGET),
        (Standing(ENDED, DONE, WRONG, seconds=3599.0), Ending.TIMED_OUT),
        (Standing(ENDED, DONE, WRONG, turns=0), Ending.FAILED),
    ],
)
def test_the_kernels_word_comes_before_the_harnesss(standing: Standing, ending: Ending):
    decided = decide(RUN, standing)
    assert isinstance(decided, Over)
    assert decided.ending is ending
    assert bool(decided.reason) is (ending is not Ending.FINISHED)


def test_what_runs_goes_on_and_what_breaks_its_schema_is_mended():
    assert decide(RUN, Standing(ended(running=True, exit=None), DONE, spent=9.0)) is None
    assert decide(RUN, Standing(ENDED, DONE, WRONG)) == Mend(WRONG)
    assert decide(RUN, Standing(ENDED, DONE, WRONG, turns=1)) == Mend(WRONG)
    free = replace(RUN, max_cost=None)
    assert decide(free, Standing(ENDED, GAVE_UP, spent=9.0)) == Over(Ending.FAILED, "too hard")


async def test_violations_say_where_and_what():
    assert await answers.violations(SCHEMA, {"n": 1}) == []
    (wrong,) = await answers.violations(SCHEMA, {"n": "many"})
    assert wrong == "$.n: 'many' is not of type 'integer'"
    prompt = answers.mending(SCHEMA, [wrong])
    assert f"\n- {wrong}\n" in prompt
    assert json.dumps(SCHEMA) in prompt


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number?"},
        {"$ref": "http://192.0.2.1/schema.json"},
        {"$ref": "#"},
        {"description": "x" * answers.MAX_SCHEMA},
    ],
)
async def test_a_schema_that_nothing_can_be_held_to_is_refused(schema: dict[str, Any]):
    with pytest.raises(InvalidArgument, match="'response_schema'"):
        await answers.check_schema(schema)


async def test_an_answer_that_keeps_a_regular_expression_busy_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(answers, "CHECK_TIMEOUT", 1.0)
    (why,) = await answers.violations({"pattern": "^(a+)+$"}, "a" * 64 + "b")
    assert why.startswith(answers.UNUSABLE)


@pytest.mark.parametrize(
    ("harness", "variable"), [("claude_code", "ANTHROPIC_API_KEY"), ("codex", "OPENAI_API_KEY")]
)
def test_who_has_no_model_is_told_which_key_would_do(
    tmp_path: Path, harness: str, variable: str
) -> None:
    models = Models((), Prices(), Ledger(tmp_path / "runs.db"), lambda _: None)
    box = Box(BoxId("box-aaaaaaaa"), BoxSpec("any", cpus=1, memory=1), created=1.0, principal=LOCAL)
    with pytest.raises(NoModel) as refused:
        Choice(KNOWN[harness], "", "").access(models, box, "key")
    assert f"set {variable} where" in refused.value.advice
