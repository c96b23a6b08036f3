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
    "file_read": {"path": "secret"},
    "file_write": {"path": "stolen", "content": "x"},
    "file_copy": {"source": "secret", "destination": "stolen"},
    "file_delete": {"path": "secret"},
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
}


@pytest.fixture(scope="module")
async def boxes(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncGenerator[dict[str, BoxOnStage], None]:
    owners: dict[str, dict[str, dict[str, object]]] = {
        "mine": {"own": {}},
        "theirs": {"stranger": {}},
    }
    async with boxes_of(tmp_path_factory.mktemp("principals"), owners) as boxes:
        await boxes["stranger"].run("echo secret > secret")
        yield boxes


@pytest.mark.parametrize("tool", CALLS)
async def test_no_tool_acts_on_a_strangers_box(tool: str, boxes: dict[str, BoxOnStage]):
    own, stranger = boxes["own"], boxes["stranger"]
    for ref in (stranger.id, stranger.name):
        answer = await own.server.call(tool, box=ref, **CALLS[tool])
        assert answer.is_error
        made_up = await own.server.call(tool, box="box-00000000", **CALLS[tool])
        assert text(answer) == text(made_up).replace("box-00000000", ref)
    assert container_state(stranger.id) == "running"
    assert await stranger.run("ls; cat secret") == "secret\nsecret\n"
    assert (await own.server.tell("box_info", box=own.id))["id"] == own.id


async def test_no_list_names_a_strangers_box(boxes: dict[str, BoxOnStage]):
    own, stranger = boxes["own"], boxes["stranger"]
    listed = await own.server.tell("box_list")
    assert [box["id"] for box in listed["boxes"]] == [own.id]
    assert stranger.id not in str(listed)
