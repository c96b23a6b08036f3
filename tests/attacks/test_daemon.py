"""From a box whose daemon was replaced, at the server that believes to speak with its own."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import liar
from tests.support.attacks import FOREIGN
from tests.support.client import docker, serving, text
from tests.support.replaced import replace

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.support.client import Server

MIB = 1024 * 1024
GROWTH = 60 * MIB
MAX_TEXT = 15_000
MAX_LINE = 1000
ROUNDS = 5  # each tells all that was left of the one before, where one lie hid another

CALLS: dict[str, dict[str, Any]] = {
    "shell_run": {"command": "echo a"},
    "process_list": {},
    "process_output": {"id": "{process}", "cursor": 0},
    "process_input": {"id": "{process}", "text": "x\n"},
    "process_signal": {"id": "{process}", "signal": "CONT"},
    "file_read": {"path": "/etc/passwd"},
    "file_write": {"path": "written", "content": "x"},
    "file_edit": {"path": "edited", "edits": [{"old": "b", "new": "c"}], "dry_run": True},
    "file_list": {"path": "/etc"},
    "file_search": {"pattern": "root", "path": "/etc/passwd"},
    "file_copy": {"source": "edited", "destination": "copied", "overwrite": True},
    "file_move": {"source": "moving", "destination": "moved", "overwrite": True},
    "file_delete": {"path": "doomed"},
    "file_upload": {"host_path": "mine", "overwrite": True},
    "file_download": {"path": "edited", "overwrite": True},
}
"""A call of each tool that asks the daemon for something."""
BEFORE = {"file_move": "touch moving", "file_delete": "touch doomed"}


def peak_of(pid: int) -> int:
    """The most memory that a process ever had, in bytes."""
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(peak) * 1024


@dataclass
class Deceived:
    """A server, and the box that lies to it."""

    server: Server
    box: str
    process: str

    def told(self) -> dict[str, dict[str, Any]]:
        """What lies there are, and how many were told."""
        return json.loads(docker("exec", self.box, "sh", "-c", f"cat {liar.TOLD} || echo {{}}"))

    async def ask(self, tool: str) -> tuple[bool, str]:
        """Whether a call fails, and its text."""
        if tool in BEFORE:
            await self.server.call("shell_run", box=self.box, command=BEFORE[tool])
        arguments = json.loads(json.dumps(CALLS[tool]).replace("{process}", self.process))
        result = await self.server.call(tool, box=self.box, **arguments)
        return bool(result.is_error), text(result)


@pytest.fixture(scope="module")
async def deceived(
    shared_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Deceived, None]:
    """The server of a box whose daemon lies, the box, and a process in it."""
    project = tmp_path_factory.mktemp("project")
    (project / "mine").write_text("mine")
    async with serving({**shared_env, "CLAUDE_PROJECT_DIR": str(project)}) as server:
        box = str((await server.tell("box_create", name="liar"))["id"])
        await server.say("file_write", box=box, path="edited", content="a b c")
        await replace(server, box, "answers")
        await server.call("shell_run", box=box, command="cat", background=True)
        logs = docker("exec", box, "ls", liar.LOGS)
        newest = max(int(number) for number in re.findall(r"\bp(\d+)\b", logs))
        yield Deceived(server, box, f"p{newest}")


@pytest.mark.parametrize("tool", CALLS)
async def test_nonsense_in_any_field_of_an_answer_harms_nobody(tool: str, deceived: Deceived):
    process = deceived.server.process
    earlier, before = deceived.told(), peak_of(process.pid)
    left = 1
    for _ in range(ROUNDS):
        for _ in range(left):
            _, said = await deceived.ask(tool)
            assert not FOREIGN.search(said), ascii(said)
            assert len(said) < MAX_TEXT
        kinds = {kind: one for kind, one in deceived.told().items() if one != earlier.get(kind)}
        assert kinds, "its daemon was not asked"
        left = sum(one["lies"] - one["told"] for one in kinds.values())
        if not left:
            break
    assert not left, "it has not told all"
    failed, said = await deceived.ask(tool)
    assert not failed, f"once it tells the truth: {said}"
    assert peak_of(process.pid) - before < GROWTH


async def test_progress_that_is_forged_controls_nobody(shared_env: dict[str, str]):
    heard: list[tuple[float, str]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message or ""))

    async with serving(shared_env) as server:
        box = str((await server.tell("box_create", name="forger"))["id"])
        await replace(server, box, "progress")
        arguments = {"box": box, "command": "echo done"}
        result = await server.client.call_tool("shell_run", arguments, progress_callback=hear)
        assert text(result).endswith("]\ndone\n")
    assert heard
    for _, message in heard:
        assert not FOREIGN.search(message)
        assert len(message) <= MAX_LINE
        assert "\n" not in message
    assert [progress for progress, _ in heard] == sorted(progress for progress, _ in heard)
