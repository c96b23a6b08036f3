"""Tasks: their ids, what is told of them, and who may ask for them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from mcp import Client, MCPError
from mcp.client import advertise
from mcp_types import (
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    Request,
    Result,
)

from box_mcp.errors import BoxLost
from box_mcp.surface.server import make_server
from box_mcp.surface.tasks import (
    CANCELLED,
    EARLIEST,
    MAX_MESSAGE,
    TASKS,
    TaskId,
    View,
    described,
    failed,
)
from tests.support.client import LEGACY, MODERN, PATIENCE
from tests.support.records import record

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from mcp.server import MCPServer

    from box_mcp.surface.sessions import Backend

Asked = Request[dict[str, Any], str]

TASK = TaskId("box-aaaaaaaa", "p7", 1_800_000_000, View(12_000))
RUNNING: dict[str, object] = {"exit": None, "running": True}
SHOWN = "[exit 0 · 1.50 s]\nhello\n"
BEGUN, AT_END, NOW = "2027-01-15T08:00:00Z", "2027-01-15T08:00:01Z", "2027-01-15T08:01:00Z"


@asynccontextmanager
async def untouched(_: MCPServer[Backend]) -> AsyncGenerator[Any, None]:
    def unheard(_: object) -> None:
        pass

    # Whoever looks for a box there fails with another error than is expected.
    yield SimpleNamespace(hook=unheard)


async def refusal(method: str, params: dict[str, Any], *, declares: bool, era: str) -> MCPError:
    """What a server says whose boxes nobody gets to."""
    extensions = [advertise(TASKS)] if declares else []
    async with Client(make_server(untouched), mode=era, extensions=extensions) as client:
        with anyio.fail_after(PATIENCE), pytest.raises(MCPError) as caught:
            await client.session.send_request(Asked(method=method, params=params), Result)
    return caught.value


def describe(changes: dict[str, object], text: str = SHOWN) -> dict[str, Any]:
    return described(TASK, record(**changes), text, TASK.started + 60)


@pytest.mark.parametrize("view", [View(200), View(100_000, raw=True)])
def test_the_id_of_a_task_says_all_that_there_is_to_know(view: View):
    task = replace(TASK, view=view)
    assert TaskId.parse(str(task)) == task


@pytest.mark.parametrize(
    "text",
    [
        "",
        "p7",
        "box-aaaaaaaa.p7",
        f"{TASK}.",
        f"{TASK}.row",
        f"{TASK}\n",
        f" {TASK}",
        "name.p7.1800000000.12000",
        "box-AAAAAAAA.p7.1800000000.12000",
        "box-aaaaaaaa.p 7.1800000000.12000",
        "box-aaaaaaaa.../p7.1800000000.12000",
        "box-aaaaaaaa..1800000000.12000",
        "box-aaaaaaaa.p7.99999999999999.12000",
        "box-aaaaaaaa.p7.1800000000.-1",
        "box-aaaaaaaa.p7.1800000000.1200000",
        "box-aaaaaaaa.p7.1800000000.\N{ARABIC-INDIC DIGIT ONE}2000",
        "x" * 100_000,
    ],
)
def test_what_is_no_id_of_a_task_is_refused_and_not_repeated_at_length(text: str):
    with pytest.raises(MCPError, match="There is no task") as caught:
        TaskId.parse(text)
    assert caught.value.code == INVALID_PARAMS
    assert len(str(caught.value)) < 200


def test_a_running_command_is_a_working_task_with_its_newest_line_as_message():
    told = describe(RUNNING, "[still running after 2 s]\none\ntwo\n\n")
    assert told == {
        "taskId": str(TASK),
        "status": "working",
        "statusMessage": "two",
        "createdAt": BEGUN,
        "lastUpdatedAt": NOW,
        "ttlMs": None,
        "pollIntervalMs": told["pollIntervalMs"],
    }


def test_a_running_command_that_has_printed_nothing_tells_how_long_it_runs():
    told = describe(RUNNING, "[still running after 2 s]\n")
    assert told["statusMessage"] == "[still running after 2 s]"


def test_a_message_is_one_short_line_without_control_characters():
    told = describe(RUNNING, f"[…]\n{'x' * 1000}\x1b[1mend\x07\udcff")
    assert told["statusMessage"].endswith("x[1mend")
    assert len(told["statusMessage"]) == MAX_MESSAGE


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"exit": 7},
        {"exit": None, "signal": 9},
        {"exit": None, "signal": 15, "cause": "timeout"},
    ],
)
def test_however_a_command_ended_by_itself_its_task_is_completed_and_bears_the_tools_result(
    changes: dict[str, object],
):
    told = describe(changes)
    assert (told["status"], told["statusMessage"]) == ("completed", "[exit 0 · 1.50 s]")
    assert (told["createdAt"], told["lastUpdatedAt"]) == (BEGUN, AT_END)
    assert told["result"]["content"] == [{"type": "text", "text": SHOWN}]
    assert told["result"]["isError"] is False


@pytest.mark.parametrize("cause", CANCELLED)
def test_a_cancelled_task_is_cancelled_once_its_command_has_ended(cause: str):
    assert describe({**RUNNING, "cause": cause})["status"] == "working"
    told = describe({"exit": None, "signal": 15, "cause": cause})
    assert (told["status"], told["lastUpdatedAt"]) == ("cancelled", AT_END)
    assert "result" not in told


@pytest.mark.parametrize("lie", [0.0, 1e300])
def test_a_box_that_lies_about_time_bends_no_more_than_what_is_told_of_its_own_task(lie: float):
    assert describe({"seconds": lie})["lastUpdatedAt"] in (BEGUN, NOW)
    task = TaskId.of(TASK.box, record(started=lie), TASK.view, TASK.started)
    assert TaskId.parse(str(task)).started in (EARLIEST, TASK.started)


def test_the_task_of_a_lost_box_has_failed_and_says_why():
    told = failed(TASK, BoxLost(TASK.box, "its container was removed"), TASK.started + 60)
    assert (told["status"], told["createdAt"]) == ("failed", BEGUN)
    assert "its container was removed" in told["statusMessage"]
    assert told["error"]["message"].startswith(told["statusMessage"])


@pytest.mark.parametrize("method", ["tasks/get", "tasks/update", "tasks/cancel"])
async def test_a_request_about_a_task_is_for_those_who_declare_tasks(method: str):
    error = await refusal(method, {"taskId": str(TASK)}, declares=False, era=MODERN)
    assert error.code == MISSING_REQUIRED_CLIENT_CAPABILITY
    assert error.data == {"requiredCapabilities": {"extensions": {TASKS: {}}}}


@pytest.mark.parametrize("method", ["tasks/get", "tasks/update", "tasks/cancel"])
async def test_a_request_about_what_is_no_task_is_refused(method: str):
    error = await refusal(method, {"taskId": "786512e2"}, declares=True, era=MODERN)
    assert (error.code, str(error)) == (INVALID_PARAMS, "There is no task '786512e2'")


@pytest.mark.parametrize("method", ["tasks/get", "tasks/cancel", "tasks/result", "tasks/list"])
async def test_the_older_protocol_has_no_tasks(method: str):
    error = await refusal(method, {"taskId": str(TASK)}, declares=True, era=LEGACY)
    assert error.code == METHOD_NOT_FOUND


async def test_who_wants_to_hear_of_tasks_without_declaring_them_is_refused():
    wanted = {"notifications": {"taskIds": [str(TASK)]}}
    error = await refusal("subscriptions/listen", wanted, declares=False, era=MODERN)
    assert error.code == MISSING_REQUIRED_CLIENT_CAPABILITY


async def test_a_server_says_that_it_has_tasks():
    async with Client(make_server(untouched), mode="auto") as client:
        assert (client.server_capabilities.extensions or {})[TASKS] == {}
