"""Real Claude Code and real Codex in real boxes, over MCP; only the model is a script.

The model's server is on this machine's loopback, where only the gateway reaches it: no box can.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest

from box_mcp.domain.models import KEYLESS, Tokens
from box_mcp.domain.runs import KEY_PREFIX
from tests.support.agents import (
    CLAUDE_CODE,
    CODEX,
    HARNESSES,
    KEY,
    agents,
    processes,
    reached,
    variables,
)
from tests.support.client import docker, fresh_state, text
from tests.support.needles import leaks, search, search_box, search_tree
from tests.support.script import Answer, Cut, Garbage, Gate, Overload, Refuse, Say, Think, Use
from tests.support.wire import Wire, said, wired

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.support.agents import Facts, Harness, Scene
    from tests.support.script import Fault

RACE = Path(__file__).parent.parent / "examples" / "race.py"
WAIT = "echo begun; until [ -e {0} ]; do sleep .02; done; rm {0}; echo ended"
AWAY = [
    *((CLAUDE_CODE, status) for status in (500, 529)),
    *((CODEX, status) for status in (429, 503)),  # it takes half a minute to believe a 500
]
NPM_TAKES = 100.0
"""Seconds, on a busy machine; ten otherwise."""

LONG = "echo kept > kept; echo $$ > running; sleep 300"
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}},
    "required": ["answer"],
    "additionalProperties": False,
}
NUMBERS = {"type": "array", "items": {"type": "integer"}}
MENDED = """\
import re
import unicodedata


def slug(title):
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    return "-".join(re.findall("[a-z0-9]+", plain.lower()))
"""
BROKEN = "def slug(title):\n    return title\n"
FIND_KEYS = "(env; cat /proc/[0-9]*/environ; cat -r ~/.claude* ~/.codex) 2>/dev/null"


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Scene, None]:
    async with agents(tmp_path_factory.mktemp("agents"), BOX_MCP_LOG_LEVEL="DEBUG") as made:
        yield made


@pytest.fixture(scope="module")
async def box(scene: Scene) -> str:
    return await scene.box(network="none")


@pytest.fixture(scope="module")
async def hasty(scene: Scene) -> AsyncGenerator[Wire, None]:
    """To another server of the same boxes, whose calls return after a second."""
    async with wired(scene.env | {"BOX_MCP_YIELD_AFTER": "1"}) as wire:
        yield wire


@pytest.fixture(params=HARNESSES, ids=str)
def harness(request: pytest.FixtureRequest) -> Harness:
    return request.param


async def test_an_agent_edits_a_file_and_its_result_is_complete(
    scene: Scene, box: str, harness: Harness
):
    path = f"{harness.name}.txt"
    result = await scene.play(
        harness,
        box,
        Answer([Think("Hm."), Say("I write."), harness.write(path, "hello")], Tokens(9, 5, 3, 7)),
        Answer([harness.run(f"cat {path}")], Tokens(2, 20, 4, 1)),
        Answer([Say("All done.")], Tokens(1, 30, 0, 2)),
    )

    assert (result["state"], result["text"]) == ("finished", "All done.")
    assert await scene.read(box, path) == "hello\n"
    assert result["files"] == [f"added /workspace/{path}"]
    assert result["commands"] == [f"cat {path}"]
    assert result["tokens"] == vars(Tokens(12, 55, 7, 10))
    assert result["cost_usd"] == pytest.approx(0.012 + 0.0055 + 0.00875 + 0.020)
    assert result["turns"] == 3
    assert (result["harness"], result["model"]) == (harness.name, harness.model)
    assert "hello" in scene.model.tool_results()[-1].text


async def test_progress_tells_what_an_agent_does_while_it_does_it(
    scene: Scene, box: str, harness: Harness
):
    told: list[tuple[float, str]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message or ""))
        if "runs echo begun" in told[-1][1]:
            docker("exec", box, "touch", "/workspace/go")

    prompt = scene.script(harness.run(WAIT.format("go")), Say("All done."))
    call = {"harness": harness.name, "model": harness.model, "box": box, "prompt": prompt}
    result = await scene.server.client.call_tool("agent_run", call, progress_callback=hear)

    assert result.structured_content
    assert result.structured_content["text"] == "All done."
    assert any("runs echo begun" in message for _, message in told)
    assert [number for number, _ in told] == sorted({number for number, _ in told})


async def test_a_long_run_is_followed_by_its_events_until_it_ends(
    scene: Scene, box: str, harness: Harness
):
    gate = Gate()
    run = await scene.begin(
        harness,
        box,
        Answer([Say("I begin."), harness.run(WAIT.format("on"))]),
        Answer([Say("Nearly."), gate, Say("All done.")]),
    )
    events: list[Facts] = []
    cursor = 0

    async def until_told(word: str) -> None:
        nonlocal cursor
        while not any(word in json.dumps(event) for event in events):
            page = await scene.status(run, cursor=cursor, wait=20)
            assert page["cursor"] > cursor
            cursor = page["cursor"]
            events.extend(page["events"])

    await until_told("echo begun")
    assert (await scene.status(run))["act"].startswith("runs echo begun")
    docker("exec", box, "touch", "/workspace/on")
    await until_told("Nearly.")
    assert (await scene.status(run))["state"] == "running"
    gate.opened.set()
    await until_told("finished")

    kinds = [event["event"] for event in events]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert Counter(kinds) >= Counter(["tool_call", "tool_result", "text", "text", "text"])
    assert (await scene.end(run))["text"].endswith("All done.")


async def test_a_conversation_goes_on_after_freeze_stop_snapshot_and_fork_as_its_box_says(
    scene: Scene, harness: Harness
):
    chosen = {"harness": harness.name, "model": harness.model}
    first = await scene.box(network="none", **chosen)
    prompt = scene.script(*(Say(f"Answer {number}.") for number in range(5)))

    async def go(box: str, prompt: str = "More.", **arguments: str) -> Facts:
        return await scene.server.tell("agent_run", box=box, prompt=prompt, **arguments)

    begun = await go(first, prompt)
    session = begun["session"]
    await scene.server.tell("box_pause", box=first, depth="frozen")
    frozen = await go(first, resume=begun["run"])
    await scene.server.tell("box_pause", box=first, depth="stopped")
    stopped = await go(first, resume=frozen["run"])
    await scene.server.tell("snapshot_create", name=f"with-{harness.program}", box=first)
    restored = await scene.box(snapshot=f"with-{harness.program}", network="none")
    again = await go(restored, resume=session)
    (fork,) = (await scene.server.tell("box_fork", box=restored))["boxes"]
    forked = await go(fork["id"], resume=session)
    await scene.server.say("snapshot_delete", name=f"with-{harness.program}")
    for one in (first, restored, fork["id"]):
        await scene.server.say("box_delete", box=one)

    runs = (begun, frozen, stopped, again, forked)
    assert [run["text"] for run in runs] == [f"Answer {number}." for number in range(5)]
    assert {run["session"] for run in runs} == {session}
    assert [{name: run[name] for name in chosen} for run in runs] == [chosen] * 5


async def test_cancel_ends_the_whole_tree_and_keeps_the_work(
    scene: Scene, box: str, harness: Harness
):
    script = harness.run(LONG), Say("I go on.")
    run = await scene.begin(harness, box, *script)
    pid = await scene.server.pid_in("running", box=box)

    cancelled = await scene.server.tell("agent_cancel", run=run)

    assert cancelled["state"] == "cancelled"
    assert await scene.read(box, "kept") == "kept\n"
    assert not await scene.server.lives(pid, box=box)
    assert not re.search(rf"sleep 300|{harness.program} ", processes(box))
    await scene.server.run("rm kept running", box=box)

    again = await scene.go(harness, box, "Go on.", resume=run)
    assert (again["state"], again["text"]) == ("finished", "I go on.")


async def test_a_call_that_is_given_up_takes_its_agent_with_it(
    scene: Scene, box: str, harness: Harness
):
    pid = 0
    async with anyio.create_task_group() as group:
        group.start_soon(partial(scene.play, harness, box, harness.run(LONG)))
        pid = await scene.server.pid_in("running", box=box)
        group.cancel_scope.cancel()

    await gone(scene, box, pid)
    assert await scene.read(box, "kept") == "kept\n"
    await scene.server.run("rm kept running", box=box)
    (newest, *_) = (await scene.server.tell("agent_status"))["runs"]
    assert (await scene.end(newest["run"]))["state"] == "cancelled"


async def test_an_agent_whose_budget_is_used_up_asks_for_no_more(
    scene: Scene, box: str, harness: Harness
):
    prompt = scene.script(
        Answer([harness.run("echo one > one")], Tokens(output=3)),
        Answer([harness.run("echo two > two")], Tokens(output=3)),
        Say("More."),
    )

    result = await scene.go(harness, box, prompt, max_cost=0.01)

    assert result["state"] == "over budget"
    assert "its budget of $0.01 is used up" in result["reason"]
    assert result["cost_usd"] == pytest.approx(0.012)
    assert scene.heard(prompt) == 2
    assert await scene.read(box, "two") == "two\n"


async def test_an_agent_whose_turns_are_used_up_says_so(scene: Scene, box: str, harness: Harness):
    words = {
        CLAUDE_CODE: "Reached maximum number of turns (1)",
        CODEX: "has asked models 1 times, and may no more",
    }
    prompt = scene.script(harness.run("echo one > turn"), Say("More."))

    result = await scene.go(harness, box, prompt, max_turns=1)

    assert result["state"] == "failed"
    assert words[harness] in result["reason"]
    assert scene.heard(prompt) == 1
    assert await scene.read(box, "turn") == "one\n"


async def test_mending_an_answer_is_within_the_same_turns(scene: Scene, box: str, harness: Harness):
    turns = Say('["forty"]'), harness.run("true"), Say("[42]")
    mended, out = scene.script(*turns), scene.script(*turns)

    in_time = await scene.go(harness, box, mended, response_schema=NUMBERS, max_turns=3)
    too_late = await scene.go(harness, box, out, response_schema=NUMBERS, max_turns=2)

    assert (in_time["state"], in_time["answer"]) == ("finished", [42])
    assert (too_late["state"], scene.heard(out)) == ("failed", 2)
    assert re.search("maximum number of turns|asked models 2 times", too_late["reason"])


async def test_mending_an_answer_is_within_the_same_budget(scene: Scene, box: str):
    wrong = Answer([Say('["forty"]')], Tokens(output=3))
    prompt = scene.script(wrong, wrong, Say("[42]"))

    result = await scene.go(CODEX, box, prompt, response_schema=NUMBERS, max_cost=0.01)

    assert result["state"] == "over budget"
    assert "its budget of $0.01 is used up" in result["reason"]
    assert result["cost_usd"] == pytest.approx(0.012)
    assert scene.heard(prompt) == 2


async def test_an_agent_survives_a_model_that_fails_once(scene: Scene, box: str, harness: Harness):
    faults = [Refuse(429), Refuse(500), Refuse(529)]
    script = [Answer([harness.run("true")], faults=[fault]) for fault in faults]

    result = await scene.play(harness, box, *script, Say("All done."))

    assert (result["state"], result["text"]) == ("finished", "All done.")
    assert result["commands"] == ["true"] * 3


async def test_an_agent_survives_streams_that_are_cut_or_no_streams(
    scene: Scene, box: str, harness: Harness
):
    faults: list[Fault] = [Garbage(), Cut()]
    if harness is CLAUDE_CODE:  # Codex takes that for the model's last word
        faults.append(Overload())
    again = Answer([Say("All done.")], faults=faults)

    result = await scene.play(harness, box, harness.run("true"), again)

    assert (result["state"], result["text"]) == ("finished", "All done.")


@pytest.mark.parametrize(("harness", "status"), AWAY, indirect=["harness"], ids=str)
async def test_a_model_that_stays_away_is_told_in_words(
    scene: Scene, box: str, harness: Harness, status: int
):
    again = Answer([], faults=[Refuse(status, final=True)] * 99)

    result = await scene.play(harness, box, harness.run("echo kept > work"), again)

    assert result["state"] == "failed"
    assert result["reason"]
    assert await scene.read(box, "work") == "kept\n"


async def test_an_agent_that_is_killed_has_failed(scene: Scene, box: str, harness: Harness):
    gate = Gate()
    run = await scene.begin(harness, box, harness.run("true"), Answer([gate, Say("I go on.")]))
    await reached(gate)

    docker("exec", box, "pkill", "-KILL", "-x", harness.program)
    result = await scene.end(run)
    gate.opened.set()

    assert result["state"] == "failed"
    assert "killed by SIGKILL" in result["reason"]
    again = await scene.go(harness, box, "Go on.", resume=run)
    assert (again["state"], again["text"]) == ("finished", "I go on.")


async def test_a_box_without_the_agent_and_without_network_says_what_to_do(
    scene: Scene, harness: Harness
):
    bare = await scene.box(image="box-mcp:base", network="none")

    words = await scene.server.fail(
        "agent_run", box=bare, prompt="Task.", harness=harness.name, model=harness.model
    )

    assert f"has no {harness.program}" in words
    assert "box-mcp image build" in words


async def test_an_agent_that_is_missing_is_installed_before_its_first_run(
    scene: Scene, hasty: Wire
):
    bare = await scene.box(image="box-mcp:base", network="full")
    told: list[str] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        del progress, total
        told.append(message or "")
        if len(told) == 1:
            group.cancel_scope.cancel()

    prompt = scene.script(CODEX.run("echo done > work"), Say("All done."))
    call: Facts = {"harness": CODEX.name, "model": CODEX.model, "box": bare, "prompt": prompt}
    run = partial(scene.server.client.call_tool, "agent_run", call, progress_callback=hear)
    early = said(await hasty.call("agent_run", **call))
    async with anyio.create_task_group() as group:
        group.start_soon(run)
    with anyio.fail_after(NPM_TAKES):
        while "it is being installed" in text(result := await run()):
            pass

    assert "it is being installed" in early
    assert "Repeat the call" in early
    assert group.cancel_scope.cancel_called
    assert "installs codex" in told[0]
    assert any("installs codex" in message for message in told[1:])
    assert result.structured_content
    assert (result.structured_content["state"], result.structured_content["text"]) == (
        "finished",
        "All done.",
    )
    assert await scene.read(bare, "work") == "done\n"


async def test_a_run_that_outlives_its_call_is_a_task_whose_end_brings_the_record(
    scene: Scene, hasty: Wire, box: str
):
    gate = Gate()
    prompt = scene.script(Answer([Say("I begin."), gate, Say("All done.")]))
    call: Facts = {"harness": CODEX.name, "model": CODEX.model, "box": box, "prompt": prompt}

    made = await hasty.call("agent_run", **call)
    await reached(gate)
    working = await hasty.get(made["taskId"])
    gate.opened.set()
    ended = await hasty.end_of(made["taskId"])

    assert (made["resultType"], made["status"]) == ("task", "working")
    assert (working["status"], "result" in working) == ("working", False)
    assert ended["status"] == "completed"
    record = ended["result"]["structuredContent"]
    assert (record["state"], record["run"]) == ("finished", made["taskId"])
    assert record["text"].endswith("All done.")
    assert record == await scene.status(made["taskId"])


async def test_a_run_that_is_a_task_is_ended_with_its_whole_tree_by_cancelling_that(
    scene: Scene, hasty: Wire, box: str
):
    prompt = scene.script(CLAUDE_CODE.run(LONG))
    call: Facts = {"harness": CLAUDE_CODE.name, "model": CLAUDE_CODE.model, "box": box}

    task = (await hasty.call("agent_run", prompt=prompt, **call))["taskId"]
    pid = await scene.server.pid_in("running", box=box)
    await hasty.ask("tasks/cancel", taskId=task)
    ended = await hasty.end_of(task)

    assert (ended["status"], "result" in ended) == ("cancelled", False)
    assert not await scene.server.lives(pid, box=box)
    assert not re.search(rf"sleep 300|{CLAUDE_CODE.program} ", processes(box))
    assert await scene.read(box, "kept") == "kept\n"
    assert (await scene.status(task))["state"] == "cancelled"
    await scene.server.run("rm kept running", box=box)


async def test_a_box_that_is_frozen_in_the_middle_goes_on_when_it_wakes(
    scene: Scene, box: str, harness: Harness
):
    gate = Gate()
    run = await scene.begin(harness, box, Answer([Say("I begin."), gate, Say("All done.")]))
    await reached(gate)

    await scene.server.tell("box_pause", box=box)
    gate.opened.set()
    result = await scene.end(run)

    assert result["state"] == "finished"
    assert result["text"].endswith("All done.")


async def test_a_run_whose_box_is_stopped_is_lost_and_its_conversation_is_not(
    scene: Scene, box: str, harness: Harness
):
    gate = Gate()
    run = await scene.begin(harness, box, harness.run("true"), Answer([gate, Say("I go on.")]))
    await reached(gate)

    await scene.server.tell("box_pause", box=box, depth="stopped")
    result = await scene.end(run)
    gate.opened.set()

    assert result["state"] == "lost"
    again = await scene.go(harness, box, "Go on.", resume=run)
    assert (again["state"], again["text"]) == ("finished", "I go on.")


async def test_an_answer_that_breaks_its_schema_is_mended(scene: Scene, box: str):
    wrong, right = Say('{"answer": "forty"}'), Say('{"answer": 42}')
    answered = Use("StructuredOutput", {"answer": 42})

    by_codex = await scene.play(CODEX, box, wrong, right, response_schema=SCHEMA)
    by_claude = await scene.play(
        CLAUDE_CODE, box, Say("It is 42."), Say("It is."), answered, response_schema=SCHEMA
    )

    for result in (by_codex, by_claude):
        assert (result["state"], result["answer"]) == ("finished", {"answer": 42})
        assert "violations" not in result


async def test_four_agents_work_at_once_in_two_boxes(scene: Scene, box: str):
    other = await scene.box(network="none")
    gates: dict[str, Gate] = {}
    for place in (box, other):
        for harness in HARNESSES:
            gate, path = Gate(), f"by-{harness.name}"
            script = Answer([Say("I begin."), gate, harness.write(path, place)]), Say("Done.")
            gates[await scene.begin(harness, place, *script)] = gate
    for gate in gates.values():
        await reached(gate)
    for gate in gates.values():
        gate.opened.set()

    assert [(await scene.end(run))["state"] for run in gates] == ["finished"] * 4
    for place in (box, other):
        for harness in HARNESSES:
            assert await scene.read(place, f"by-{harness.name}") == f"{place}\n"


async def test_agents_know_none_but_keys_that_open_nothing(scene: Scene, box: str):
    for harness in HARNESSES:
        await scene.play(harness, box, harness.run(f"{FIND_KEYS} > known"), Say("Done."))
        known = docker("exec", box, "cat", "/workspace/known").replace("\0", "\n")

        assert not leaks(known, [KEY])
        keys = re.findall(r"^\w*(?:API|MODEL)_KEY=(.*)$", known, re.MULTILINE)
        assert any(key.startswith(KEY_PREFIX) for key in keys)
        assert all(key == KEYLESS or key.startswith(KEY_PREFIX) for key in keys)
    assert scene.model.keys == {KEY}


async def test_the_key_is_nowhere_but_on_the_host(scene: Scene, box: str):
    gate = Gate()
    run = await scene.begin(CODEX, box, CODEX.run("true"), Answer([Say("I begin."), gate]))
    await scene.play(CLAUDE_CODE, box, CLAUDE_CODE.run("true"), Say("Done."))
    await reached(gate)  # so that the box is searched while an agent works in it

    found = await anyio.to_thread.run_sync(search_box, box, [KEY])
    known = [docker(*say, box).encode() for say in (("inspect",), ("logs",), ("diff",))]
    gate.opened.set()
    await scene.end(run)

    assert found == []
    assert search(known, [KEY]) == []
    assert search_tree(scene.directory, [KEY]) == []


async def test_of_three_agents_in_three_copies_of_a_box_the_best_ones_work_is_kept(
    scene: Scene, tmp_path: Path
):
    dear, wrong, cheap = runpy.run_path(str(RACE))["WAYS"]
    good, bad = (CODEX.run(f"cat > slugs.py <<'END'\n{code}END") for code in (MENDED, BROKEN))
    scene.scripts[dear] = Answer([good], Tokens(output=99)), Say("Done.")
    scene.scripts[wrong] = bad, Say("Done.")
    scene.scripts[cheap] = good, Say("Done.")

    with fresh_state(tmp_path) as env:
        ran = await anyio.run_process(
            [sys.executable, RACE, "codex"],
            env=env | variables(scene.model) | {"BOX_MCP_MODEL": CODEX.model},
            stderr=None,
        )
        said = ran.stdout.decode()
        runners = re.findall(
            r"^(box-\w+): finished, \$([\d.]+), passed: (\w+)$", said, re.MULTILINE
        )
        (winner,) = re.findall(r"^(box-\w+) wins: (.*)$", said, re.MULTILINE)
        left = docker("ps", "--all", "--format", "{{.Names}}").split()

    assert sorted((cost, passed) for _, cost, passed in runners) == [
        ("0.0060", "False"),
        ("0.0060", "True"),
        ("0.2010", "True"),
    ]
    assert winner[1] == cheap
    assert MENDED in said
    assert [box for box, *_ in runners if box in left] == [winner[0]]


async def gone(scene: Scene, box: str, pid: int) -> None:
    """Waits until a process has ended."""
    with anyio.fail_after(20):
        while await scene.server.lives(pid, box=box):
            pass
