"""Tools and tasks of coding agents: what they ask for, and how runs are told.

Boxes are on an engine in memory, and agents are played: what a run is made of test those of
`capabilities/agent`.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest
from mcp import Client, MCPError
from mcp.client import advertise
from mcp_types import INVALID_PARAMS, CallToolResult, Request, Result, TextContent

from box_mcp.app import backend
from box_mcp.capabilities.agent.agents import Look, Place, Report, Wish
from box_mcp.capabilities.harnesses.base import (
    Event,
    Failed,
    FileChange,
    Finished,
    Notice,
    Reasoning,
    Started,
    Text,
    ToolCall,
    ToolResult,
    Unknown,
    Used,
)
from box_mcp.domain.models import Tokens
from box_mcp.domain.names import LOCAL, BoxId, Principal
from box_mcp.domain.runs import Ending, Run, RunId, Usage
from box_mcp.engines.fake import FakeEngine
from box_mcp.errors import CallInterrupted, NoModel, RunNotFound
from box_mcp.settings import Settings
from box_mcp.surface.runs import (
    EVENTS,
    LEAST_TEXT,
    LISTED_LENGTH,
    MAX_ANSWER,
    MAX_DEPTH,
    SAID,
    fitting,
    size,
    told_event,
    whole,
)
from box_mcp.surface.server import make_server
from box_mcp.surface.tasks import MAX_MESSAGE, TASKS, described_run
from tests.support.client import ERAS, MODERN, PATIENCE, text

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

    from mcp.server import MCPServer

    from box_mcp.capabilities.agent.agents import Agents
    from box_mcp.surface.sessions import Backend

Asked = Request[dict[str, Any], str]

MOST = 12_000
BEGAN = 1_800_000_000.0
BEGUN, AT_END = "2027-01-15T08:00:00Z", "2027-01-15T08:01:00Z"

GOES_ON = Run(
    id=RunId("run-aaaaaaaa"),
    principal=LOCAL,
    box=BoxId("box-aaaaaaaa"),
    key="key-of-the-run",
    harness="claude_code",
    began=BEGAN,
    model="claude-x",
    title="Fix it",
    scratch="/tmp/scratch-of-the-run",
    legs=("p7", "p9"),
    session="conversation-1",
)
DONE = GOES_ON.end(Ending.FINISHED, BEGAN + 60)
WORKING = Report(GOES_ON, act="runs pytest", text="Let me see.", seconds=12.34, cursor=99)
REPORT = Report(
    DONE,
    text="All is well.",
    files=[FileChange("src/app.py", "changed"), FileChange("new.py", "added")],
    commands=["pytest -q"],
    turns=3,
    tokens=Tokens(1000, 200, 30, 400),
    cost=0.0123456789,
    seconds=60.0,
    cursor=500,
)


@dataclass
class Player:
    """Plays agents: every run is as `report` says, of the box that it is started in.

    Who attends a run that goes on for very long has `reached` it, and then waits until he has
    `given_up`.
    """

    report_: Report = REPORT
    events: list[Event] = field(default_factory=list[Event])
    refusal: Exception | None = None
    fault: Exception | None = None
    acts: list[str] = field(default_factory=list[str])
    wishes: list[Wish] = field(default_factory=list[Wish])
    done: list[str] = field(default_factory=list[str])
    known: dict[str, Run] = field(default_factory=dict[str, Run])
    reached: anyio.Event = field(default_factory=anyio.Event)
    given_up: anyio.Event = field(default_factory=anyio.Event)

    async def find(self, principal: Principal, ref: str) -> Run:
        run = self.known.get(ref)
        if run is None or run.principal != principal:
            raise RunNotFound(ref)
        return run

    async def runs(self, principal: Principal, box: BoxId | None = None) -> list[Run]:
        own = [run for run in self.known.values() if run.principal == principal]
        return [run for run in own if box in (None, run.box)]

    async def start(
        self, place: Place, wish: Wish, on_act: Callable[..., Awaitable[None]], until: float
    ) -> Run:
        del until
        self.wishes.append(wish)
        if self.refusal is not None:
            raise self.refusal
        await on_act("installs claude", 50)
        run = replace(self.report_.run, box=place.box.id)
        self.known[run.id] = run
        return run

    async def follow(
        self,
        place: Place,
        run: Run,
        *,
        seconds: float,
        on_act: Callable[..., Awaitable[None]],
        attended: bool = False,
    ) -> Report:
        assert run.box == place.box.id
        self.done.append("waits" if seconds > 0 else "looks")
        if self.fault is not None:
            raise self.fault
        for count, act in enumerate(self.acts):
            await on_act(act, count)
        if attended and run.ending is None and seconds > 100:
            self.reached.set()
            try:
                await anyio.sleep_forever()
            finally:
                self.given_up.set()
        return replace(self.report_, run=run)

    async def look(
        self, place: Place, run: Run, cursor: int = 0, *, wait: float = 0.0, limit: int = 100
    ) -> Look:
        assert run.box == place.box.id
        self.done.append(f"looks at {limit} from {cursor}, within {wait:g} s")
        shown = self.events[cursor : cursor + limit]
        end = cursor + len(shown)
        return Look(replace(self.report_, run=run), shown, end, end < len(self.events))

    async def report(self, place: Place, run: Run) -> Report:
        assert run.box == place.box.id
        self.done.append("reports")
        return replace(self.report_, run=run)

    async def cancel(self, place: Place, run: Run) -> Report:
        assert run.box == place.box.id
        self.done.append("cancels")
        run = self.known[run.id] = run.end(Ending.CANCELLED, BEGAN + 60, "as asked for")
        self.report_ = replace(self.report_, run=run)
        return self.report_

    async def lost(self, run: Run, why: str) -> Report:
        return Report(run.end(Ending.LOST, BEGAN + 60, why))


class Looked(Result):
    """An answer of a task, whatever it is."""

    task_id: str = ""
    status: str = ""
    status_message: str = ""
    result: dict[str, Any] | None = None


@dataclass
class Desk:
    """A client of a server with played agents."""

    client: Client
    player: Player
    engine: FakeEngine
    progress: list[tuple[float, str | None]] = field(default_factory=list[Any])

    async def tell(self, tool: str, **arguments: Any) -> dict[str, Any]:
        result = await self.client.call_tool(tool, arguments, progress_callback=self._hear)
        assert not result.is_error, text(result)
        assert json.loads(text(result)) == result.structured_content
        return result.structured_content or {}

    async def fail(self, tool: str, **arguments: Any) -> str:
        result = await self.client.call_tool(tool, arguments)
        assert result.is_error, text(result)
        return text(result)

    async def task(self, method: str, task: str) -> Looked:
        request = Asked(method=method, params={"taskId": task})
        return await self.client.session.send_request(request, Looked)

    async def _hear(self, progress: float, total: float | None, message: str | None) -> None:
        assert total is None
        self.progress.append((progress, message))


@asynccontextmanager
async def desk(
    directory: Path, player: Player, *, era: str = MODERN, tasks: bool = False, **settings: Any
) -> AsyncGenerator[Desk, None]:
    known, engine = Settings(state_dir=directory / "state", warm_max=0, **settings), FakeEngine()

    @asynccontextmanager
    async def lifespan(_: MCPServer[Backend]) -> AsyncGenerator[Backend, None]:
        async with backend(known, engine=engine) as running:
            yield replace(running, agents=cast("Agents", player))

    extensions = [advertise(TASKS)] if tasks else []
    async with Client(make_server(lifespan), mode=era, extensions=extensions) as client:
        with anyio.fail_after(PATIENCE):
            yield Desk(client, player, engine)


def told(report: Report = REPORT, most: int = MOST, **changes: Any) -> dict[str, Any]:
    return whole(replace(report, **changes), most)


def ended(ending: Ending, reason: str = "") -> Run:
    return GOES_ON.end(ending, BEGAN + 60, reason)


def test_a_record_of_a_run_is_complete_in_itself():
    assert told() == {
        "run": "run-aaaaaaaa",
        "state": "finished",
        "text": "All is well.",
        "files": ["changed src/app.py", "added new.py"],
        "commands": ["pytest -q"],
        "turns": 3,
        "tokens": {"input": 1000, "cache_read": 200, "cache_write": 30, "output": 400},
        "cost_usd": 0.012346,
        "seconds": 60.0,
        "box": "box-aaaaaaaa",
        "harness": "claude_code",
        "model": "claude-x",
        "session": "conversation-1",
        "next": 'agent_run(resume="run-aaaaaaaa", prompt=...) goes on in this conversation',
    }


def test_a_record_of_a_run_that_goes_on_tells_what_it_does_and_how_to_follow_it():
    record = told(WORKING)
    assert (record["state"], record["act"], record["text"]) == (
        "running",
        "runs pytest",
        "Let me see.",
    )
    assert record["next"].startswith('agent_status(run="run-aaaaaaaa", wait=45) waits for its end')
    assert "cursor=99" in record["next"]


def test_who_names_no_model_is_told_which_ones_answered():
    usage = [Usage(model, 1, Tokens(), 0.0) for model in ("claude-x", "claude-small")]
    unnamed = replace(REPORT.run, model="")
    assert told(run=unnamed, usage=usage)["model"] == "claude-x, claude-small"
    assert told(usage=usage)["model"] == "claude-x"
    assert "model" not in told(run=unnamed)


def test_turns_that_no_agent_counts_are_the_answers_of_models():
    usage = [Usage(model, 2, Tokens(), 0.0) for model in ("gpt-x", "gpt-small")]
    assert told(turns=None, usage=usage)["turns"] == 4
    assert told(turns=3, usage=usage)["turns"] == 3
    assert "turns" not in told(turns=None)


@pytest.mark.parametrize("ending", Ending)
def test_a_record_says_how_a_run_ended_and_why(ending: Ending):
    record = told(run=ended(ending, "because"))
    assert (record["state"], record["reason"]) == (ending.value, "because")
    assert "act" not in record


def test_what_a_run_cost_is_told_as_unknown_not_as_nothing():
    assert told(cost=None)["cost_usd"] is None
    assert told(cost=0.0)["cost_usd"] == 0.0


def test_neither_the_key_of_a_run_nor_its_scratch_directory_is_told():
    everything = json.dumps([told(), told(WORKING), described_run(REPORT, MOST, BEGAN)])
    assert "key-of-the-run" not in everything
    assert "scratch" not in everything


@pytest.mark.parametrize("answer", [{"ok": True}, [], 0, False, ""])
def test_an_answer_is_told_as_such_and_not_once_more_as_text(answer: Any):
    record = told(answer=answer, text=f" {json.dumps(answer)}\n")
    assert record["answer"] == answer
    assert "text" not in record
    assert told(answer=answer, text="It is so.")["text"] == "It is so."


def test_a_wrong_answer_is_told_with_what_is_wrong():
    record = told(answer={"ok": 1}, violations=["$.ok: 1 is not of type 'boolean'"])
    assert record["violations"] == ["$.ok: 1 is not of type 'boolean'"]


def nested(levels: int) -> Any:
    answer: Any = 1
    for level in range(levels - 1):
        answer = {"in": answer} if level % 2 else [answer]
    return answer


def test_an_answer_that_clients_might_choke_on_is_left_out_and_the_record_says_where_it_is():
    assert told(answer=nested(MAX_DEPTH))["answer"] == nested(MAX_DEPTH)
    for answer in (nested(MAX_DEPTH + 1), nested(900), "x" * MAX_ANSWER):
        record = told(answer=answer)
        assert "answer" not in record
        assert 'process_output(id="p9", box="box-aaaaaaaa")' in record["answer_left_out"]


@pytest.mark.parametrize("character", ["x", "\n", "é", "\x1b"])
def test_a_long_text_is_cut_in_its_middle_and_the_record_says_where_all_of_it_is(character: str):
    record = told(text=f"begin{character * 100_000}end")
    assert record["text"].startswith("begin")
    assert record["text"].endswith("end")
    assert 'process_output(id="p9", box="box-aaaaaaaa")' in record["text_left_out"]
    assert MOST * 0.9 < size(record) < MOST + 300


def test_a_record_is_bounded_however_much_a_run_did():
    record = told(
        text="t" * 10**6,
        files=[FileChange("f" * 5000, "added")] * 200,
        more_files=10,
        commands=["c" * 500] * 100,
        violations=["v" * 5000] * 100,
        run=replace(ended(Ending.FAILED, "r" * 10**5), model="m" * 5000),
    )
    assert len(record["files"]) + record["more_files"] == 210
    assert len(record["commands"]) + record["more_commands"] == 100
    assert sum(map(len, record["files"])) <= LISTED_LENGTH
    assert len(record["text"]) >= LEAST_TEXT
    assert size(record) < 1.5 * MOST


def test_what_came_out_of_a_box_controls_no_terminal_and_can_be_sent():
    odd = "a\x1b[2J\u202e\udcff"
    record = told(
        text=odd,
        files=[FileChange(odd, "added")],
        commands=[odd],
        violations=[odd],
        run=replace(ended(Ending.FAILED, odd), model=odd),
    )
    for said in (record, *map(told_event, [Text(odd), ToolCall("1", odd, odd, {}, odd)])):
        shown = json.dumps(said, ensure_ascii=False).encode().decode()
        assert "\x1b" not in shown
        assert "\u202e" not in shown


@pytest.mark.parametrize(
    ("event", "facts"),
    [
        (Started("s", "m"), {"session": "s", "model": "m"}),
        (Text("hello"), {"text": "hello"}),
        (Reasoning("hm"), {"text": "hm"}),
        (
            ToolCall("1", "Bash", "runs ls", {"command": "ls"}, "ls"),
            {"name": "Bash", "act": "runs ls", "command": "ls"},
        ),
        (ToolResult("1", "a b"), {"text": "a b"}),
        (ToolResult("1", "no", failed=True), {"text": "no", "failed": True}),
        (FileChange("a.py", "deleted"), {"path": "a.py", "change": "deleted"}),
        (Used(Tokens(1, 2, 3, 4)), {"input": 1, "cache_read": 2, "cache_write": 3, "output": 4}),
        (Notice("tries again"), {"text": "tries again"}),
        (Finished("bye", {"a": 1}, 2), {"text": "bye", "turns": 2}),
        (Failed("no", "model"), {"message": "no", "cause": "model"}),
        (Unknown("new"), {"kind": "new"}),
    ],
)
def test_an_event_is_told_by_its_name_and_what_it_says(event: Event, facts: dict[str, Any]):
    assert told_event(event) == {"event": EVENTS[type(event)], **facts}
    assert len(set(EVENTS.values())) == len(EVENTS)


def test_what_an_event_says_is_cut():
    assert len(told_event(Text("x" * 10**6))["text"]) == SAID


def test_as_many_events_are_told_as_there_is_room_for_and_one_of_any():
    events = [told_event(Text("x" * 90))] * 5
    assert fitting(events, 3 * size(events[0]) + 10) == 3
    assert fitting(events, 10**6) == 5
    assert fitting(events, 0) == 1
    assert fitting([], 0) == 0


def test_the_task_of_a_run_tells_what_the_agent_does_until_it_has_ended():
    assert described_run(WORKING, MOST, BEGAN + 60) == {
        "taskId": "run-aaaaaaaa",
        "status": "working",
        "statusMessage": "runs pytest",
        "createdAt": BEGUN,
        "lastUpdatedAt": AT_END,
        "ttlMs": None,
        "pollIntervalMs": 2000,
    }


@pytest.mark.parametrize("ending", [one for one in Ending if one is not Ending.CANCELLED])
def test_however_a_run_ended_by_itself_its_task_is_completed_and_bears_its_record(ending: Ending):
    report = replace(REPORT, run=ended(ending, "because " * 100))
    task = described_run(report, MOST, BEGAN + 999)
    assert (task["status"], task["lastUpdatedAt"]) == ("completed", AT_END)
    assert len(task["statusMessage"]) == MAX_MESSAGE
    result = CallToolResult.model_validate(task["result"])
    assert result.structured_content == whole(report, MOST)
    (content,) = result.content
    assert isinstance(content, TextContent)
    assert json.loads(content.text) == whole(report, MOST)


def test_the_task_of_a_run_that_was_cancelled_is_cancelled():
    task = described_run(replace(REPORT, run=ended(Ending.CANCELLED)), MOST, BEGAN + 999)
    assert (task["status"], "result" in task) == ("cancelled", False)


@pytest.mark.parametrize("era", ERAS)
async def test_an_agent_gets_all_that_a_call_says_and_its_record_comes_back(
    tmp_path: Path, era: str
):
    async with desk(tmp_path, Player(), era=era) as here:
        record = await here.tell(
            "agent_run",
            prompt="Fix it",
            harness="codex",
            model="m",
            path="app",
            resume="conversation-0",
            max_turns=9,
            max_cost=1.5,
            timeout=60,
            response_schema={"type": "object"},
            files={"a.txt": "A"},
            append_system_prompt="Be brief.",
            mcp_servers={"s": {"command": "x"}},
            skills={"k": "K"},
        )
        assert (record["state"], record["text"]) == ("finished", "All is well.")
        assert here.player.wishes == [
            Wish(
                "Fix it",
                harness="codex",
                model="m",
                path="app",
                resume="conversation-0",
                max_turns=9,
                max_cost=1.5,
                timeout=60,
                schema={"type": "object"},
                system="Be brief.",
                files={"a.txt": "A"},
                servers={"s": {"command": "x"}},
                skills={"k": "K"},
            )
        ]


async def test_objects_that_come_as_json_in_strings_are_taken(tmp_path: Path):
    async with desk(tmp_path, Player()) as here:
        await here.tell(
            "agent_run", prompt='{"not": "parsed"}', response_schema='{"a": 1}', files='{"b": "c"}'
        )
        assert here.player.wishes == [Wish('{"not": "parsed"}', schema={"a": 1}, files={"b": "c"})]


async def test_progress_tells_the_present_act_and_always_grows(tmp_path: Path):
    async with desk(tmp_path, Player(acts=["edits src/app.py", "runs\x1b pytest", ""])) as here:
        await here.tell("agent_run", prompt="Fix it")
        numbers, messages = zip(*here.progress, strict=True)
        assert messages == (
            "installs claude",
            "edits src/app.py",
            "runs\\x1b pytest",
            "running",
        )
        assert sorted(set(numbers)) == [*numbers]


async def test_the_first_reply_of_a_new_box_names_it_in_the_record(tmp_path: Path):
    async with desk(tmp_path, Player()) as here:
        record = await here.tell("agent_run", prompt="Fix it")
        assert record["box"] in record["news"]
        assert "news" not in await here.tell("agent_run", prompt="Fix more")


async def test_a_call_in_the_background_waits_for_nothing(tmp_path: Path):
    async with desk(tmp_path, Player(WORKING)) as here:
        record = await here.tell("agent_run", prompt="Fix it", background=True)
        assert record["state"] == "running"
        assert here.player.done == ["reports"]


async def test_who_has_an_agent_at_work_is_not_told_to_start_another(tmp_path: Path):
    player = Player(fault=CallInterrupted("box-aaaaaaaa", "it was cut off"))
    async with desk(tmp_path, player) as here:
        told = await here.fail("agent_run", prompt="x")
        (run,) = player.known
        assert f'agent_status(run="{run}")' in told
        assert "Repeat the call" not in told


async def test_why_no_agent_was_started_is_told(tmp_path: Path):
    player = Player(refusal=NoModel("codex", ["openai"], variables=["OPENAI_API_KEY"]))
    async with desk(tmp_path, player) as here:
        assert "set OPENAI_API_KEY where" in await here.fail("agent_run", prompt="x")
        assert "`prompt`" in await here.fail("agent_run", prompt="")


async def test_who_gives_up_a_call_gives_up_its_agent(tmp_path: Path):
    player = Player(WORKING)
    async with desk(tmp_path, player, yield_after=999, timeout=9999) as here:
        async with anyio.create_task_group() as group:
            group.start_soon(here.client.call_tool, "agent_run", {"prompt": "Fix it"})
            await player.reached.wait()
            group.cancel_scope.cancel()
        await player.given_up.wait()


async def test_a_run_goes_on_in_its_own_box_unless_another_is_named(tmp_path: Path):
    async with desk(tmp_path, Player()) as here:
        await here.tell("box_create", name="there")
        box = (await here.tell("agent_run", prompt="Fix it", box="there"))["box"]
        own = (await here.tell("box_list"))["boxes"][-1]["id"]
        assert own == box
        again = await here.tell("agent_run", prompt="More", resume="run-aaaaaaaa")
        assert again["box"] == box
        await here.client.call_tool("box_delete", {"box": "there", "discard": True})
        gone = await here.fail("agent_run", prompt="More", resume="run-aaaaaaaa")
        assert f"'resume' is a run whose box {box} was deleted, with the conversation in it" in gone
        assert (await here.tell("agent_run", prompt="Else", resume="conversation-1"))["box"] != box
        assert "no run 'run-zzzzzzzz'" in await here.fail(
            "agent_run", prompt="x", resume="run-zzzzzzzz"
        )


async def test_a_look_at_a_run_waits_for_its_end_but_no_longer_than_clients_do(tmp_path: Path):
    async with desk(tmp_path, Player(WORKING, acts=["runs pytest"])) as here:
        run = (await here.tell("agent_run", prompt="Fix it", background=True))["run"]
        here.progress.clear()
        record = await here.tell("agent_status", run=run, wait=3600)
        assert (record["state"], record["act"]) == ("running", "runs pytest")
        assert here.progress == [(1, "runs pytest")]
        await here.tell("agent_status", run=run)
        assert here.player.done == ["reports", "waits", "looks"]


async def test_events_come_page_by_page_and_cursors_miss_none(tmp_path: Path):
    events: list[Event] = [Text(f"{number} {'x' * 800}") for number in range(150)]
    async with desk(tmp_path, Player(WORKING, events)) as here:
        run = (await here.tell("agent_run", prompt="Fix it", background=True))["run"]
        seen: list[str] = []
        cursor, more = 0, True
        while more:
            page = await here.tell("agent_status", run=run, cursor=cursor, wait=1)
            assert len(json.dumps(page)) < MOST
            assert page["state"] == "running"
            seen += [event["text"].split()[0] for event in page["events"]]
            assert (page["cursor"], page["more"]) == (len(seen), len(seen) < len(events))
            cursor, more = page["cursor"], page["more"]
        assert seen == [str(number) for number in range(150)]
        page = await here.tell("agent_status", run=run, cursor=cursor, wait=3600)
        assert (page["events"], page["cursor"]) == ([], cursor)
        assert here.player.done[-1] == "looks at 100 from 150, within 45 s"


async def test_runs_are_listed_for_who_has_lost_their_ids(tmp_path: Path):
    async with desk(tmp_path, Player()) as here:
        assert await here.tell("agent_status") == {"runs": []}
        here.player.known = {"a": GOES_ON, "b": DONE, "c": replace(DONE, principal=Principal("x"))}
        first, second = (await here.tell("agent_status"))["runs"]
        assert first == {
            "run": "run-aaaaaaaa",
            "state": "running",
            "title": "Fix it",
            "box": "box-aaaaaaaa",
            "harness": "claude_code",
            "model": "claude-x",
            "began": BEGUN,
        }
        assert second["state"] == "finished"


async def test_a_run_can_be_cancelled(tmp_path: Path):
    async with desk(tmp_path, Player(WORKING)) as here:
        run = (await here.tell("agent_run", prompt="Fix it", background=True))["run"]
        record = await here.tell("agent_cancel", run=run)
        assert (record["state"], record["reason"]) == ("cancelled", "as asked for")
        assert here.player.done[-1] == "cancels"


@pytest.mark.parametrize("tool", ["agent_status", "agent_cancel"])
async def test_the_run_of_a_box_that_is_gone_is_lost_and_says_so(tmp_path: Path, tool: str):
    async with desk(tmp_path, Player(WORKING)) as here:
        made = await here.tell("agent_run", prompt="Fix it", background=True)
        assert f"{made['run']}, whose end nobody has seen" in await here.fail(
            "box_delete", box=made["box"]
        )
        await here.client.call_tool("box_delete", {"box": made["box"], "discard": True})
        record = await here.tell(tool, run=made["run"])
        assert (record["state"], record["reason"]) == (
            "lost",
            f"its box {made['box']} was deleted",
        )
        assert "next" not in record


@pytest.mark.parametrize("tool", ["agent_status", "agent_cancel"])
async def test_somebody_elses_run_is_none(tmp_path: Path, tool: str):
    player = Player(known={"run-bbbbbbbb": replace(DONE, principal=Principal("somebody"))})
    async with desk(tmp_path, player) as here:
        for run in ("run-bbbbbbbb", "run-cccccccc"):
            assert f"You have no run {run!r}" in await here.fail(tool, run=run)


async def test_a_box_can_have_an_agent_and_a_model_of_its_own(tmp_path: Path):
    async with desk(tmp_path, Player()) as here:
        made = await here.tell("box_create", name="a", harness="codex", model="gpt-x")
        spec = here.engine.boxes[made["id"]].spec
        assert (spec.harness, spec.model) == ("codex", "gpt-x")
        info = await here.tell("box_info", box="a")
        assert (info["harness"], info["model"]) == ("codex", "gpt-x")
        assert "claude_code, codex" in await here.fail("box_create", name="b", harness="vim")


async def begun(here: Desk, **arguments: Any) -> Looked:
    """What a call of a client that declares tasks is answered with."""
    request = Asked(
        method="tools/call",
        params={"name": "agent_run", "arguments": {"prompt": "Fix it", **arguments}},
    )
    return await here.client.session.send_request(request, Looked)


async def test_a_run_that_outlives_its_call_is_a_task_until_it_has_ended(tmp_path: Path):
    player = Player(WORKING)
    async with desk(tmp_path, player, tasks=True) as here:
        made = await begun(here)
        assert (made.task_id, made.status) == ("run-aaaaaaaa", "working")
        assert (await here.task("tasks/get", made.task_id)).status_message == "runs pytest"
        await here.task("tasks/update", made.task_id)
        box = player.known[made.task_id].box
        player.known[made.task_id] = replace(DONE, box=box)
        player.report_ = REPORT
        completed = await here.task("tasks/get", made.task_id)
        assert completed.status == "completed"
        assert completed.result is not None
        assert completed.result["structuredContent"]["text"] == "All is well."


async def test_a_run_whose_task_is_cancelled_is_ended(tmp_path: Path):
    async with desk(tmp_path, Player(WORKING), tasks=True) as here:
        made = await begun(here)
        await here.task("tasks/cancel", made.task_id)
        assert here.player.done[-1] == "cancels"
        assert (await here.task("tasks/get", made.task_id)).status == "cancelled"


@pytest.mark.parametrize(("report", "background"), [(REPORT, False), (WORKING, True)])
async def test_no_task_is_made_of_a_run_that_has_ended_or_was_sent_to_the_background(
    tmp_path: Path, report: Report, background: bool
):
    async with desk(tmp_path, Player(report), tasks=True) as here:
        assert (await begun(here, background=background)).task_id == ""


@pytest.mark.parametrize("method", ["tasks/get", "tasks/update", "tasks/cancel"])
async def test_the_task_of_a_strangers_run_is_none(tmp_path: Path, method: str):
    player = Player(known={"run-bbbbbbbb": replace(DONE, principal=Principal("somebody"))})
    async with desk(tmp_path, player, tasks=True) as here:
        for run in ("run-bbbbbbbb", "run-cccccccc"):
            with pytest.raises(MCPError, match=f"There is no task '{run}'") as caught:
                await here.task(method, run)
            assert caught.value.code == INVALID_PARAMS


async def test_the_task_of_a_run_whose_box_is_gone_is_completed_and_tells_it_lost(tmp_path: Path):
    async with desk(tmp_path, Player(WORKING), tasks=True) as here:
        made = await begun(here)
        box = here.player.known[made.task_id].box
        await here.client.call_tool("box_delete", {"box": box, "discard": True})
        task = await here.task("tasks/get", made.task_id)
        assert task.status == "completed"
        assert task.result is not None
        assert task.result["structuredContent"]["state"] == "lost"
