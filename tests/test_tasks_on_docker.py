"""Commands as tasks: the real server over stdio, real boxes, requests spelt out on the wire.

The SDK's client says the same of itself in every request of a connection, so most of these write
their own; one follows a task as the SDK's clients do.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import anyio
import psutil
import pytest
from mcp import Client, MCPError
from mcp.client import ClaimContext, ClientExtension, ResultClaim, advertise
from mcp_types import (
    METHOD_NOT_FOUND,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    CallToolResult,
    Request,
    Result,
)

from box_mcp.surface.tasks import TASKS, TaskId
from tests.support.client import (
    LEGACY,
    MODERN,
    PATIENCE,
    container_state,
    docker,
    text,
    until,
)
from tests.support.wire import SOON, WAIT, Wire, said, server, wired

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence


class Looked(Request[dict[str, Any], Literal["tasks/get"]]):
    """The SDK's client has no words for it."""

    method: Literal["tasks/get"] = "tasks/get"


class Made(Result):
    """A task in place of a tool's result."""

    result_type: Literal["task"]
    task_id: str


class Told(Result):
    """An answer to tasks/get."""

    status: str
    status_message: str = ""
    result: dict[str, Any] | None = None


class Following(ClientExtension):
    """A client that declares tasks and waits for their results; `begun` when one prints."""

    identifier = TASKS

    def __init__(self) -> None:
        self.begun = anyio.Event()

    def claims(self) -> Sequence[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=Made, resolve=self._follow)]

    async def _follow(self, made: Made, context: ClaimContext) -> CallToolResult:
        request = Looked(params={"taskId": made.task_id})

        async def completed() -> dict[str, Any] | None:
            told = await context.session.send_request(request, Told)
            if told.status_message == "started":
                self.begun.set()
            return told.result

        return CallToolResult.model_validate(await until(completed, "a task's result"))


@pytest.fixture(scope="module")
async def wire(shared_env: dict[str, str]) -> AsyncGenerator[Wire, None]:
    """To a server that tests share, as far as they need none that ends."""
    async with wired(shared_env) as wire:
        yield wire


def process_in(answer: str) -> str:
    """The id of the process that goes on behind a call."""
    found = re.search(r"\[.*\b(p\d+)\b", answer)
    assert found is not None, answer
    assert "running" in answer
    return found[1]


async def test_a_command_that_outlives_its_call_is_a_task_until_it_has_ended(
    wire: Wire,
):
    task = await wire.begin()
    working = await wire.get(task)
    assert (working["status"], working["statusMessage"]) == ("working", "started")
    assert (working["ttlMs"], "result" in working) == (None, False)

    await wire.run("touch go")
    completed = await wire.end_of(task)
    assert completed["status"] == "completed"
    assert re.fullmatch(r"\[exit 0 · \d+\.\d\d s.*\]\nstarted\ndone\n", said(completed["result"]))
    assert working["createdAt"] == completed["createdAt"] <= completed["lastUpdatedAt"]
    assert await wire.get(task) == completed


async def test_a_tasks_result_tells_what_the_box_was_refused_meanwhile(wire: Wire):
    await wire.call("box_create", name="walled", network="allowlist", reuse=True)
    task = await wire.begin(f"curl -s http://a.example/ -o refusal; {WAIT}", box="walled")
    await wire.call("file_write", path="go", content="", box="walled")
    result = said((await wire.end_of(task))["result"])
    assert result.startswith("[1 connection refused: a.example:80 · network_policy(allow=")
    assert result.endswith("]\nstarted\ndone\n")


async def test_a_cancelled_task_leaves_it_to_the_next_reply_what_was_refused(
    wire: Wire,
):
    await wire.call("box_create", name="walled", network="allowlist", reuse=True)
    command = "curl -s http://b.example/ -o refusal; echo asked; sleep 300"
    task = await wire.begin(command, "asked", box="walled")
    await wire.ask("tasks/cancel", taskId=task)
    assert (await wire.end_of(task))["status"] == "cancelled"
    assert "1 connection refused: b.example:80 " in await wire.run("true", box="walled")


async def test_a_quick_command_is_answered_at_once(wire: Wire):
    assert (await wire.run("echo quick")).endswith("]\nquick\n")


async def test_a_result_is_told_when_it_is_whole(wire: Wire):
    task = await wire.begin(f"{WAIT}; (sleep .05; echo late) &")
    await wire.run("touch go")
    assert said((await wire.end_of(task))["result"]).endswith("\ndone\nlate\n")


@pytest.mark.parametrize("arguments", [{"background": True}, {"tty": True, "yield_after": SOON}])
async def test_who_asks_for_a_process_gets_its_id_and_no_task(
    wire: Wire, arguments: dict[str, Any]
):
    answer = await wire.call("shell_run", command="sleep 300", **arguments)
    await wire.call("process_signal", id=process_in(said(answer)))


async def test_a_client_that_follows_tasks_gets_a_long_commands_result_from_one_call(
    shared_env: dict[str, str],
):
    following = Following()
    answers: list[CallToolResult] = []
    with server(shared_env) as transport:
        async with Client(transport, mode=MODERN, extensions=[following]) as client:

            async def call() -> None:
                arguments = {"command": WAIT, "yield_after": SOON}
                answers.append(await client.call_tool("shell_run", arguments))

            async with anyio.create_task_group() as group:
                group.start_soon(call)
                with anyio.fail_after(PATIENCE):
                    await following.begun.wait()
                await client.call_tool("shell_run", {"command": "touch go"})
    assert not answers[0].is_error
    assert text(answers[0]).endswith("]\nstarted\ndone\n")


async def test_a_request_that_does_not_declare_tasks_never_sees_one(wire: Wire):
    task = await wire.begin()
    later = {"command": "until [ -e go ]; do sleep .02; done", "yield_after": SOON}
    assert process_in(said(await wire.call("shell_run", declares=False, **later)))
    for method in ("tasks/get", "tasks/update", "tasks/cancel"):
        with pytest.raises(MCPError) as caught:
            await wire.ask(method, declares=False, taskId=task)
        assert caught.value.code == MISSING_REQUIRED_CLIENT_CAPABILITY
    await wire.run("touch go")
    assert (await wire.end_of(task))["status"] == "completed"


async def test_the_legacy_era_never_sees_a_task(shared_env: dict[str, str]):
    with server(shared_env) as transport:
        async with Client(transport, mode=LEGACY, extensions=[advertise(TASKS)]) as client:
            later = {"command": WAIT, "yield_after": SOON}
            process = process_in(text(await client.call_tool("shell_run", later)))
            request = Looked(params={"taskId": "box-aaaaaaaa.p1.1800000000.12000"})
            with pytest.raises(MCPError) as caught:
                await client.session.send_request(request, Told)
            assert caught.value.code == METHOD_NOT_FOUND
            await client.call_tool(
                "process_output", {"id": process, "pattern": "started", "wait": PATIENCE}
            )
            await client.call_tool("shell_run", {"command": "touch go"})


async def test_a_task_outlives_the_server_that_made_it(shared_env: dict[str, str]):
    async with wired(shared_env) as wire:
        others = {child.pid for child in psutil.Process().children()}
        async with wired(shared_env) as doomed:
            (process,) = (c for c in psutil.Process().children() if c.pid not in others)
            task = await doomed.begin()
            process.kill()
            process.wait(PATIENCE)
        assert (await wire.get(task))["statusMessage"] == "started"
    async with wired(shared_env) as wire:
        assert (await wire.get(task))["status"] == "working"
        await wire.run("touch go")
        assert said((await wire.end_of(task))["result"]).endswith("]\nstarted\ndone\n")


async def test_a_cancelled_task_ends_with_its_whole_tree_and_stays_cancelled(
    wire: Wire,
):
    keep = "(setsid sleep 300 & echo $! > child; echo started; wait) & sleep 300"
    task = await wire.begin(keep)
    child = (await wire.run("cat child")).partition("]\n")[2].strip()
    for _ in range(2):
        assert await wire.ask("tasks/cancel", taskId=task) == {"resultType": "complete"}
        told = await wire.end_of(task)
        assert told["status"] == "cancelled"
        assert "result" not in told
    assert "gone" in await wire.run(f"kill -0 {child} || echo gone")


async def test_a_task_that_has_ended_can_not_be_cancelled_any_more(wire: Wire):
    task = await wire.begin(f"sleep 300 & {WAIT}")
    await wire.run("touch go")
    completed = await wire.end_of(task)
    assert await wire.ask("tasks/cancel", taskId=task) == {"resultType": "complete"}
    assert await wire.get(task) == completed


async def test_input_that_no_task_asks_for_is_acknowledged(wire: Wire):
    task = await wire.begin()
    answer = {"name": {"action": "accept", "content": {"input": "Luca"}}}
    done = await wire.ask("tasks/update", taskId=task, inputResponses=answer)
    assert done == {"resultType": "complete"}
    assert (await wire.get(task))["status"] == "working"
    await wire.run("touch go")
    await wire.end_of(task)


async def test_looking_at_a_task_wakes_its_box(wire: Wire):
    task = await wire.begin()
    box = TaskId.parse(task).box
    await wire.call("box_pause")
    assert container_state(box) == "paused"
    assert (await wire.get(task))["status"] == "working"
    assert container_state(box) == "running"
    await wire.run("touch go")
    assert (await wire.end_of(task))["status"] == "completed"


async def test_a_tasks_result_is_cut_as_its_call_asked(wire: Wire):
    task = await wire.begin(f"seq 1000; {WAIT}", max_output=200)
    await wire.run("touch go")
    result = said((await wire.end_of(task))["result"])
    assert "bytes left out" in result
    assert "\n1\n2\n" in result
    assert result.endswith("\nstarted\ndone\n")
    assert len(result) < 500


@pytest.mark.parametrize(("raw", "shown"), [(False, "bold"), (True, "\x1b[1mbold\x1b[0m")])
async def test_a_tasks_result_has_control_sequences_if_its_call_wants_them(
    wire: Wire, raw: bool, shown: str
):
    task = await wire.begin(rf"printf '\033[1mbold\033[0m\n'; {WAIT}", raw=raw)
    await wire.run("touch go")
    assert f"]\n{shown}\nstarted\n" in said((await wire.end_of(task))["result"])


async def test_a_stranger_to_a_task_hears_what_he_hears_of_no_task(server_env: dict[str, str]):
    async with wired(server_env) as wire:
        task = TaskId.parse(await wire.begin())
        for other in (f"box-zzzzzzzz.{str(task).split('.', 1)[1]}", "nonesuch"):
            for method in ("tasks/get", "tasks/update", "tasks/cancel"):
                assert await wire.refusal(other, method) == f"There is no task {other!r}"
        never = replace(task, process="p987654")
        assert "remembers no process p987654" in await wire.refusal(str(never))
        await wire.call("box_delete", box=task.box)
        assert await wire.refusal(str(task)) == f"There is no task {str(task)!r}"


async def test_the_task_of_a_box_that_is_gone_has_failed(server_env: dict[str, str]):
    async with wired(server_env) as wire:
        task = await wire.begin()
        docker("rm", "-f", TaskId.parse(task).box)
        told = await wire.get(task)
        assert told["status"] == "failed"
        assert "is lost" in told["statusMessage"]
        assert "Make a new box" in told["error"]["message"]
        assert await wire.ask("tasks/cancel", taskId=task) == {"resultType": "complete"}


async def test_a_task_is_never_taken_for_a_later_command_in_its_box(server_env: dict[str, str]):
    async with wired(server_env) as wire:
        task = await wire.begin("echo first; sleep 300", "first")
        await wire.call("box_pause", depth="stopped")
        later = [await wire.begin("echo later; sleep 300", "later") for _ in range(3)]
        assert TaskId.parse(task).process not in {TaskId.parse(one).process for one in later}
        for one in later:
            assert (await wire.get(one))["statusMessage"] == "later"
        assert "which was stopped" in (told := said((await wire.get(task))["result"]))
        assert told.endswith("\nfirst\n")
