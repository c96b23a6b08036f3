"""From one principal at another's box, whose id it has learnt somewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.client import container_state, text
from tests.support.scene import BoxOnStage, boxes_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

CALLS: dict[str, dict[str, Any]] = {
    "shell_run": {"command": "touch stolen"},
    "process_list": {},
    "process_output": {"id": "p1"},
    "process_input": {"id": "p1", "text": "x"},
    "process_signal": {"id": "p1"},
    "file_read": {"path": "secret"},
    "file_write": {"path": "stolen", "content": "x"},
    "file_edit": {"path": "secret", "edits": [{"old": "secret", "new": "stolen"}]},
    "file_list": {},
    "file_search": {"pattern": "secret"},
    "file_move": {"source": "secret", "destination": "stolen"},
    "file_copy": {"source": "secret", "destination": "stolen"},
    "file_delete": {"path": "secret"},
    "file_upload": {"host_path": "stolen"},
    "file_download": {"path": "secret"},
    "agent_run": {"prompt": "steal"},
    "box_info": {},
    "box_pause": {},
    "box_resume": {},
    "box_changes": {},
    "box_fork": {},
    "box_delete": {},
    "snapshot_create": {"name": "stolen"},
    "port_expose": {"port": 8000},
    "port_close": {"port": 8000},
    "network_policy": {"network": "none"},
    "git_clone": {"url": "https://git.example.org/stolen"},
    "git_status": {},
    "git_diff": {},
    "git_log": {},
    "git_commit": {"message": "stolen"},
    "git_checkout": {"ref": "stolen", "create": True},
    "git_push": {},
    "pull_request_create": {"title": "stolen"},
    "issue_create": {"title": "stolen", "repository": "me/it"},
}


@pytest.fixture(scope="module")
async def boxes(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncGenerator[dict[str, BoxOnStage], None]:
    owners: dict[str, dict[str, dict[str, object]]] = {
        "mine": {"own": {}},
        "theirs": {"stranger": {}},
    }
    directory = tmp_path_factory.mktemp("principals")
    async with boxes_of(directory, owners) as boxes:
        (directory / "mine" / "stolen").write_text("x")
        await boxes["stranger"].run("echo secret > secret")
        yield boxes


@pytest.mark.parametrize("tool", CALLS)
async def test_no_tool_acts_on_a_strangers_box(tool: str, boxes: dict[str, BoxOnStage]):
    own, stranger = boxes["own"], boxes["stranger"]
    for ref in (stranger.id, stranger.name):
        answer = await own.server.call(tool, box=ref, **CALLS[tool])
        assert answer.is_error
        assert f"no box '{ref}'" in text(answer)
        made_up = await own.server.call(tool, box="box-00000000", **CALLS[tool])
        assert text(answer) == text(made_up).replace("box-00000000", ref)
    assert container_state(stranger.id) == "running"
    assert await stranger.run("ls; cat secret") == "secret\nsecret\n"
    assert (await own.server.tell("box_info", box=own.id))["id"] == own.id


async def test_every_tool_that_names_a_box_was_tried(boxes: dict[str, BoxOnStage]):
    tools = (await boxes["own"].server.client.list_tools()).tools
    assert {tool.name for tool in tools if "box" in tool.input_schema["properties"]} == set(CALLS)


async def test_nothing_is_copied_into_a_strangers_box(boxes: dict[str, BoxOnStage]):
    own, stranger = boxes["own"], boxes["stranger"]
    await own.run("echo mine > mine")
    copy = {"box": own.id, "source": "mine", "destination": "stolen"}
    answer = await own.server.fail("file_copy", **copy, to_box=stranger.id)
    assert f"no box '{stranger.id}'" in answer
    assert await stranger.run("ls") == "secret\n"


async def test_no_list_names_a_strangers_box(boxes: dict[str, BoxOnStage]):
    own, stranger = boxes["own"], boxes["stranger"]
    listed = await own.server.tell("box_list")
    assert [box["id"] for box in listed["boxes"]] == [own.id]
    assert stranger.id not in str(listed)
