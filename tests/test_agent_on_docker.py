"""Runs of a coding agent in real boxes: one that does what its prompt says, without a model."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from box_mcp.app import backend
from box_mcp.capabilities.agent import driving, story
from box_mcp.capabilities.agent.agents import Agents
from box_mcp.capabilities.agent.asked import Place, Usual, Wish
from box_mcp.capabilities.files import Files
from box_mcp.capabilities.harnesses.base import Finished, Started, Text
from box_mcp.capabilities.harnesses.custom import Custom
from box_mcp.capabilities.shell import Shell
from box_mcp.domain.catalogue import Order
from box_mcp.domain.models import Prices, Tokens
from box_mcp.domain.names import LOCAL
from box_mcp.domain.plan import Act
from box_mcp.domain.runs import Ending, Run, RunId, Use
from box_mcp.errors import CallRefused, HarnessMissing, InvalidArgument, StoreUnusable
from box_mcp.gateway.models.service import Models
from box_mcp.ledger import Ledger
from box_mcp.lifecycle import Caller
from box_mcp.settings import HarnessSettings, Settings
from tests.support.client import PATIENCE, fresh_state

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from box_mcp.capabilities.harnesses.base import Event
    from box_mcp.domain.names import Principal
    from box_mcp.surface.sessions import Backend

CALLER = Caller(LOCAL, "tests of agents")
AGENT = """
import json, os, pathlib, sys, time

def say(kind, **facts):
    print(json.dumps({"type": kind, **facts}), flush=True)

def wait_for(name):
    while not pathlib.Path(name).exists():
        time.sleep(0.01)

session = os.environ["BOX_MCP_RESUME"] or "talk-" + os.environ["BOX_MCP_SCRATCH"][-8:]
say("started", session=session)
memory = pathlib.Path.home() / f".{session}"
prompt = sys.stdin.read()
said = memory.read_text() if memory.exists() else ""
memory.write_text(said + prompt + "\\n")
exec(pathlib.Path("mend.py").read_text() if prompt.startswith("Your answer does") else prompt)
"""
"""It does what its prompt says in Python; what mends an answer is in mend.py."""

SLOW = "say('text', text='begun'); wait_for('go'); say('finished', text='done')"


@dataclass
class Desk:
    """What one server has of agents, and one box in which they work."""

    server: Backend
    agents: Agents
    ledger: Ledger
    path: Path
    box: str = "mine"

    @asynccontextmanager
    async def place(self, box: str | None = None) -> AsyncGenerator[Place, None]:
        async with self.server.lifecycle.open(CALLER, box or self.box) as claim:
            yield Place(claim.box, Shell(claim.channel), Files(claim.channel))

    async def run(self, prompt: str, seconds: float = PATIENCE, **more: Any):
        """How a run is that was started and followed."""
        async with self.place() as place:
            run = await self.agents.start(place, Wish(prompt, **more))
            return await self.agents.follow(place, run, seconds=seconds)


def agents_of(ledger: Ledger) -> Agents:
    harnesses = {
        "scripted": Custom("scripted", ["python3", "-u", "/workspace/agent.py"]),
        "nobody": Custom("nobody", ["no-such-agent"]),
    }
    models = Models((), Prices(), ledger, lambda _: None)
    return Agents(ledger, models, harnesses, Usual("scripted", 600.0), Prices())


@asynccontextmanager
async def desk(env: dict[str, str]) -> AsyncGenerator[Desk, None]:
    settings = Settings(
        state_dir=Path(env["BOX_MCP_STATE_DIR"]),
        image="box-mcp:base",
        warm_max=0,
        harness="scripted",
        harnesses={"scripted": HarnessSettings(command=["python3"])},
    )
    async with backend(settings) as server:
        ledger = Ledger(path := settings.state_dir / "runs.db")
        try:
            yield Desk(server, agents_of(ledger), ledger, path)
        finally:
            await ledger.aclose()


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with fresh_state(tmp_path_factory.mktemp("agents")) as env:
        yield env


@pytest.fixture(scope="module")
async def shared(env: dict[str, str]) -> AsyncGenerator[Desk, None]:
    async with desk(env) as made:
        await made.server.lifecycle.create(CALLER, Order(name="mine"))
        async with made.place() as place:
            await place.files.write("agent.py", AGENT.encode())
        yield made


async def test_a_run_tells_what_the_agent_does_and_did(shared: Desk):
    heard: list[str] = []

    async def hear(act: str, _count: int) -> None:
        heard.append(act)
        if act == "runs pytest -q":
            await place.files.write("seen", b"")

    prompt = """
say("tool_call", id="1", name="shell", command="pytest -q")
wait_for("seen")
say("tool_call", id="2", name="edit", act="edits app.py")
say("file_change", path="app.py", change="changed")
say("text", text="nearly")
say("finished", text="all done", turns=2)
"""
    async with shared.place() as place:
        run = await shared.agents.start(place, Wish(prompt))
        report = await shared.agents.follow(place, run, seconds=PATIENCE, on_act=hear)
    assert report.run.ending is Ending.FINISHED, report
    assert (report.text, report.turns, report.commands) == ("all done", 2, ["pytest -q"])
    assert [(one.path, one.change) for one in report.files] == [("app.py", "changed")]
    assert heard[-1] == "writes"
    assert report.run.session == f"talk-{run.id[4:]}"


async def test_events_are_paged_by_cursors_and_waited_for(shared: Desk):
    prompt = "say('text', text='one'); say('text', text='two'); wait_for('paged')\n"
    prompt += "say('finished', text='end')"
    async with shared.place() as place:
        run = await shared.agents.start(place, Wish(prompt))
        events: list[Event] = []
        cursor = 0
        while len(events) < 3:
            look = await shared.agents.look(place, run, cursor, wait=PATIENCE, limit=1)
            events += look.events
            cursor = look.cursor
        assert events == [Started("talk-" + run.id[4:]), Text("one"), Text("two")]
        waiting = await shared.agents.look(place, run, cursor, wait=0.05)
        assert (waiting.events, waiting.report.run.ending) == ([], None)
        await place.files.write("paged", b"")
        last = await shared.agents.look(place, run, waiting.cursor, wait=PATIENCE)
        assert last.events == [Finished("end")]
        again = await shared.agents.look(place, run, 0)
        assert again.events == [*events, *last.events]


async def test_an_end_is_seen_at_once_though_the_agent_leaves_a_server_running(shared: Desk):
    prompt = "import subprocess; subprocess.Popen(['sleep', '300']); say('finished', text='up')"
    with anyio.fail_after(driving.BEAT):
        report = await shared.run(prompt)
    assert report.run.ending is Ending.FINISHED


async def test_cancel_ends_the_tree_and_keeps_the_work(shared: Desk):
    prompt = "open('kept', 'w').write('x'); import subprocess\n"
    prompt += "subprocess.Popen(['sleep', '300']); say('text', text='begun'); wait_for('never')"
    async with shared.place() as place:
        run = await shared.agents.start(place, Wish(prompt))
        await begun(shared, place, run)
        report = await shared.agents.cancel(place, run)
        assert report.run.ending is Ending.CANCELLED
        assert await living(place, run) == []
        assert (await place.files.fetch("kept", 100))[1] == b"x"
        once_more = await shared.agents.cancel(place, run)
        assert once_more.run == report.run


async def test_who_is_cancelled_while_it_attends_a_run_ends_it(shared: Desk):
    async with shared.place() as place:
        run = await shared.agents.start(place, Wish("say('text', text='begun'); wait_for('never')"))
        for attended in (False, True):
            async with anyio.create_task_group() as group:
                follow = partial(shared.agents.follow, seconds=PATIENCE, attended=attended)
                group.start_soon(follow, place, run)
                await begun(shared, place, run)
                group.cancel_scope.cancel()
            now = await shared.ledger.run(run.id, LOCAL)
            assert now is not None
            assert now.ending is (Ending.CANCELLED if attended else None)
        assert await living(place, run) == []


async def test_an_agent_that_is_killed_has_failed_and_its_last_words_say_why(shared: Desk):
    prompt = "print('no memory left', file=sys.stderr, flush=True)\n"
    prompt += "say('finished', text='all is well'); os.kill(os.getpid(), 9)"
    report = await shared.run(prompt)
    assert report.run.ending is Ending.FAILED
    assert report.run.reason == "its program was killed by SIGKILL: no memory left"


@pytest.mark.parametrize(
    ("prompt", "ending", "reason"),
    [
        ("say('failed', message='too hard')", Ending.FAILED, "too hard"),
        ("sys.exit(3)", Ending.FAILED, "its program failed with exit status 3"),
        ("pass", Ending.FAILED, "its program ended without a last word"),
    ],
)
async def test_a_run_that_went_wrong_says_how(
    shared: Desk, prompt: str, ending: Ending, reason: str
):
    report = await shared.run(prompt)
    assert (report.run.ending, report.run.reason) == (ending, reason)


async def test_a_run_is_ended_when_its_time_is_over(shared: Desk):
    report = await shared.run("wait_for('never')", timeout=0.5)
    assert report.run.ending is Ending.TIMED_OUT
    assert report.run.reason == "its 0.5 s were over"


async def test_a_run_that_gets_nothing_more_is_ended_though_it_dawdles(
    shared: Desk, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(driving, "OVER_BUDGET_GRACE", 0.0)
    async with shared.place() as place:
        run = await shared.agents.start(place, Wish("wait_for('never')", max_cost=0.5))
        spent = Use(LOCAL, "2026-01-31", "m", Tokens(output=9), 0.6, run.id, (run.id,))
        await shared.ledger.use(spent)
        report = await shared.agents.follow(place, run, seconds=PATIENCE)
    assert report.run.ending is Ending.OVER_BUDGET
    assert report.run.reason == "its budget of $0.5 is used up ($0.6000)"
    assert (report.cost, report.tokens) == (0.6, Tokens(output=9))


async def test_looks_at_a_budget_count_though_each_begins_with_the_first_event(
    shared: Desk, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(driving, "OVER_BUDGET_GRACE", 0.2)
    async with shared.place() as place:
        run = await shared.agents.start(
            place, Wish("say('text', text='begun'); wait_for('never')", max_cost=0.5)
        )
        await shared.ledger.use(
            Use(LOCAL, "2026-01-31", "m", Tokens(output=9), 0.6, run.id, (run.id,))
        )
        ending = None
        with anyio.fail_after(PATIENCE):
            while ending is None:
                ending = (await shared.agents.look(place, run)).report.run.ending
    assert ending is Ending.OVER_BUDGET


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
WRONG = "say('finished', text='', answer={'n': 'many'})"


async def test_the_budget_of_a_run_that_nobody_saw_end_does_not_hold_for_the_next(shared: Desk):
    async with shared.place() as place:
        run = await shared.agents.start(place, Wish("say('finished', text='done')", max_cost=0.5))
        page, _ = await place.shell.output(run.legs[-1], limit=1000, wait=PATIENCE, until="exit")
        assert not page.running
        _, budgeted = await shared.ledger.concerned(place.box.id, "")
        assert run.id in [one.id for one in budgeted]
    await shared.run("say('finished', text='done')")
    async with shared.place() as place:
        _, budgeted = await shared.ledger.concerned(place.box.id, "")
        assert budgeted == []


async def test_an_answer_that_breaks_its_schema_is_mended_once_whoever_looks(shared: Desk):
    async with shared.place() as place:
        mend = "say('finished', text='', answer={'n': said.count('do it')})"
        await place.files.write("mend.py", mend.encode())
        run = await shared.agents.start(place, Wish(f"{WRONG} # do it", schema=SCHEMA))
        others = [shared.agents, agents_of(shared.ledger), agents_of(shared.ledger)]
        reports: list[Any] = []

        async def follow(agents: Agents) -> None:
            reports.append(await agents.follow(place, run, seconds=PATIENCE))

        async with anyio.create_task_group() as group:
            for agents in others:
                group.start_soon(follow, agents)
        assert [one.run.ending for one in reports] == [Ending.FINISHED] * 3
        assert [one.answer for one in reports] == [{"n": 1}] * 3
        assert len(reports[0].run.legs) == 2
        titles = [one.command for one in (await place.shell.processes()).runs]
        assert sum(title.startswith(f"agent {run.id}/2: ") for title in titles) == 1


async def test_who_only_looks_leaves_an_answer_to_be_mended_by_others(shared: Desk):
    async with shared.place() as place:
        mend = "say('finished', text='', answer={'n': said.count('do it')})"
        await place.files.write("mend.py", mend.encode())
        run = await shared.agents.start(place, Wish(f"{WRONG} # do it", schema=SCHEMA))
        await place.shell.output(run.legs[-1], limit=1000, wait=PATIENCE, until="exit")
        looks = replace(place, only_looks=True)
        seen = await shared.agents.follow(looks, run, seconds=PATIENCE)
        assert (seen.run.ending, seen.run.legs) == (None, run.legs)
        assert seen.violations == ["$.n: 'many' is not of type 'integer'"]
        report = await shared.agents.follow(place, run, seconds=PATIENCE)
        assert (report.run.ending, report.answer) == (Ending.FINISHED, {"n": 1})


async def test_an_answer_that_can_not_be_mended_is_told_with_what_is_wrong(shared: Desk):
    async with shared.place() as place:
        await place.files.write("mend.py", WRONG.encode())
    report = await shared.run(WRONG, schema=SCHEMA)
    assert (report.run.ending, len(report.run.legs)) == (Ending.FAILED, 3)
    assert report.violations == ["$.n: 'many' is not of type 'integer'"]
    assert report.answer == {"n": "many"}


async def test_a_run_goes_on_where_its_box_is_frozen_and_is_lost_where_it_is_stopped(shared: Desk):
    lifecycle = shared.server.lifecycle
    async with shared.place() as place:
        run = await shared.agents.start(place, Wish(SLOW))
        await begun(shared, place, run)
    await lifecycle.pause(CALLER, shared.box, Act.FREEZE)
    async with shared.place() as place:
        await place.files.write("go", b"")
        report = await shared.agents.follow(place, run, seconds=PATIENCE)
        assert report.run.ending is Ending.FINISHED
        run = await shared.agents.start(place, Wish("say('text', text='begun'); wait_for('never')"))
        await begun(shared, place, run)
    await lifecycle.pause(CALLER, shared.box, Act.STOP)
    async with shared.place() as place:
        report = await shared.agents.follow(place, run, seconds=PATIENCE)
        assert (report.run.ending, report.text) == (Ending.LOST, "begun"), report.run.reason
    report = await shared.run("say('finished', text=said)", resume=run.id)
    assert report.text == "say('text', text='begun'); wait_for('never')\n"


async def test_a_conversation_goes_on_in_a_box_made_from_a_snapshot(shared: Desk):
    unseen = "say('finished', text='') # nobody looked"
    async with shared.place() as place:
        other = await shared.agents.start(place, Wish(unseen))
        await place.shell.output(other.legs[0], limit=1, wait=PATIENCE, until="exit")
    report = await shared.run("say('finished', text='') # remember")
    lifecycle = shared.server.lifecycle
    await lifecycle.snapshot(CALLER, "talks", shared.box)
    try:
        await lifecycle.create(CALLER, Order(name="copy", snapshot="talks"))
        there = replace(shared, box="copy")
        again = await there.run("say('finished', text=said)", resume=report.run.id)
        assert again.text == "say('finished', text='') # remember\n"
        assert again.run.session == report.run.session
        unread = await there.run("say('finished', text=said)", resume=other.id)
        assert unread.text == f"{unseen}\n"
    finally:
        await lifecycle.delete(CALLER, "copy")
        await lifecycle.delete_snapshot(CALLER, "talks")


async def test_a_run_outlives_the_server_that_started_it(env: dict[str, str], shared: Desk):
    starter = textwrap.dedent(
        """
        import anyio, os, signal, sys
        from box_mcp.capabilities.agent.asked import Wish
        from tests.test_agent_on_docker import desk

        async def main():
            async with desk(dict(os.environ)) as one, one.place() as place:
                run = await one.agents.start(place, Wish(sys.argv[1]))
                print(run.id, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

        anyio.run(main)
        """
    )
    prompt = "say('text', text='begun'); wait_for('later'); say('finished', text='done')"
    command = [sys.executable, "-c", starter, prompt]
    killed = await anyio.run_process(command, env={**os.environ, **env}, check=False, stderr=None)
    assert killed.returncode == -signal.SIGKILL
    run = await shared.agents.find(LOCAL, killed.stdout.decode().strip())
    async with shared.place() as place:
        await begun(shared, place, run)
        await place.files.write("later", b"")
        report = await shared.agents.follow(place, run, seconds=PATIENCE)
    assert (report.run.ending, report.text) == (Ending.FINISHED, "done")


async def test_a_process_that_no_row_tells_of_is_found_by_its_title(shared: Desk):
    async with shared.place() as place:
        run = await shared.agents.start(place, Wish("say('finished', text='found')"))
        forgetful = await shared.ledger.save(replace(run, legs=(), starting=run.began))
        assert forgetful is not None
        report = await shared.agents.follow(place, forgetful, seconds=PATIENCE)
        assert (report.run.ending, report.run.legs) == (Ending.FINISHED, run.legs)
        never = replace(forgetful, id=RunId("run-00000000"), starting=run.began)
        await shared.ledger.add(never)
        report = await shared.agents.report(place, never)
        assert report.run.ending is None  # whoever is about to start it may live
        await shared.ledger.add(replace(never, id=RunId("run-00000001"), starting=0.0))
        lost = await shared.agents.find(LOCAL, "run-00000001")
        assert (await shared.agents.report(place, lost)).run.ending is Ending.LOST
        ended = await shared.agents.cancel(place, never)
        assert ended.run.ending is Ending.CANCELLED


async def test_a_run_that_is_ended_while_it_starts_leaves_no_process(shared: Desk):
    async with shared.place() as place:
        ends = EndsFirst(shared.path, shared.ledger)
        run = await agents_of(ends).start(place, Wish("wait_for('never')"))
        assert (run.ending, run.legs) == (Ending.CANCELLED, ())
        assert await living(place, run) == []


async def test_who_is_cancelled_while_it_starts_a_run_leaves_no_process(shared: Desk):
    class Hangs(Ledger):
        """Writes down no process."""

        async def save(self, run: Run) -> Run | None:
            if not run.legs or run.ending is not None:
                return await shared.ledger.save(run)
            scope.cancel()
            await anyio.sleep_forever()

    ledger = Hangs(shared.path)
    with anyio.CancelScope() as scope:
        async with shared.place() as place:
            await agents_of(ledger).start(place, Wish("wait_for('never')"))
    await ledger.aclose()
    (run, *_) = await shared.agents.runs(LOCAL)
    assert run.ending is Ending.CANCELLED
    async with shared.place() as place:
        assert await living(place, run) == []


async def test_an_agent_whose_process_can_not_be_written_down_is_ended(shared: Desk):
    class Full(Ledger):
        """Has no room for processes."""

        async def save(self, run: Run) -> Run | None:
            if run.legs:
                raise StoreUnusable(shared.path, "the disk is full")
            return await super().save(run)

    ledger = Full(shared.path)
    async with shared.place() as place:
        with pytest.raises(StoreUnusable):
            await agents_of(ledger).start(place, Wish("wait_for('never')"))
        (run, *_) = await shared.agents.runs(LOCAL)
        assert await living(place, run) == []
    await ledger.aclose()


async def test_a_run_is_told_of_though_its_box_has_forgotten_what_it_printed(shared: Desk):
    report = await shared.run("say('finished', text='done')")
    async with shared.place() as place:
        forgotten = replace(report.run, legs=("p999999",))
        assert await shared.ledger.save(forgotten) is not None
        later = agents_of(shared.ledger)  # another server's, which has read nothing
        for told in (await later.report(place, forgotten), await later.cancel(place, forgotten)):
            assert (told.run.ending, told.forgotten) == (Ending.FINISHED, True)
            assert told.run.session == report.run.session
        look = await later.look(place, forgotten)
        assert (look.events, look.report.forgotten) == ([], True)
        going = replace(forgotten, id=RunId("run-00000002"), ended=None, ending=None)
        await shared.ledger.add(going)
        for _ in range(2):
            told = await later.report(place, going)
            assert (told.run.ending, told.forgotten) == (Ending.LOST, True)


async def test_what_takes_too_long_to_read_is_read_by_the_next_looks(
    shared: Desk, monkeypatch: pytest.MonkeyPatch
):
    async with shared.place() as place:
        prompt = "print('{}\\n' * 100_000); say('finished', text='done')"
        run = await shared.agents.start(place, Wish(prompt))
        await place.shell.output(run.legs[0], limit=1, wait=PATIENCE, until="exit")
        monkeypatch.setattr(story, "PATIENCE", 0.0)
        later, reports = agents_of(shared.ledger), 0
        while (report := await later.report(place, run)).run.ending is None:
            reports += 1
        assert (report.run.ending, report.text) == (Ending.FINISHED, "done")
        assert reports > 0


async def test_what_can_not_be_started_is_refused_with_words(shared: Desk):
    with pytest.raises(HarnessMissing, match="no-such-agent"):
        await shared.run("x", harness="nobody")
    with pytest.raises(InvalidArgument, match="'response_schema' is no JSON schema"):
        await shared.run("x", schema={"type": "number?"})
    with pytest.raises(InvalidArgument, match="'harness' is 'other': none of scripted"):
        await shared.run("x", harness="other")
    with pytest.raises(InvalidArgument, match="'resume'"):
        await shared.run("x", resume="--dangerous")
    with pytest.raises(CallRefused):
        await shared.run("x", path="/nowhere")
    with pytest.raises(CallRefused):
        await shared.run("x", files={"/etc/shadow": "x"})


async def test_files_are_there_before_the_agent_begins(shared: Desk):
    prompt = "say('finished', text=os.getcwd() + ' ' + open('src/a.py').read())"
    files = {"src/a.py": "é"}
    report = await shared.run(prompt, path="/tmp/project", files=files)
    assert report.text == "/tmp/project é"


class EndsFirst(Ledger):
    """Somebody ends a run in the moment in which its process has begun."""

    def __init__(self, path: Path, other: Ledger) -> None:
        super().__init__(path)
        self._other = other

    async def save(self, run: Run) -> Run | None:
        before = await self._other.run(run.id, LOCAL)
        assert before is not None
        await self._other.save(before.end(Ending.CANCELLED, run.began))
        await self.aclose()
        return None

    async def run(self, run: RunId, principal: Principal) -> Run | None:
        return await self._other.run(run, principal)

    async def add(self, run: Run) -> None:
        await self._other.add(run)


async def begun(desk: Desk, place: Place, run: Run) -> None:
    """Returns when a run has said that it has begun."""
    cursor, said = 0, ""
    with anyio.fail_after(PATIENCE):
        while said != "begun":
            look = await desk.agents.look(place, run, cursor, wait=1.0)
            cursor, said = look.cursor, look.report.text


async def living(place: Place, run: Run) -> list[str]:
    """The run's processes that live."""
    listed = (await place.shell.processes()).runs
    return [one.id for one in listed if one.command.startswith(f"agent {run.id}") and one.members]
