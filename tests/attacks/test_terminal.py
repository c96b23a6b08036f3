"""From a box at whoever reads what it says: what controls terminals, in all that is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.support.attacks import FOREIGN
from tests.support.client import serving, text

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.support.client import Server

EVIL = "\x1b]0;owned\x07\x1b[31;1m\x1b[2J\x9b5n\x1bP\x1b\\\r\x08\u202e\u2066evil"
GOOD = "grün → 日本"
"""What must arrive as it is."""

BASH_EVIL = "$'" + "".join(f"\\U{ord(c):08x}" for c in EVIL) + "'"


class Attack(NamedTuple):
    """What a tool is asked for after a command has prepared it; both texts are in the answer."""

    name: str
    tool: str
    arguments: dict[str, Any]
    before: str = "true"
    fails: bool = False


ATTACKS = [
    Attack("output", "shell_run", {"command": f"printf '%s %s' {BASH_EVIL} '{GOOD}'"}),
    Attack("errors", "shell_run", {"command": f"printf '%s %s' {BASH_EVIL} '{GOOD}' >&2; false"}),
    Attack(
        "a terminal",
        "shell_run",
        {"command": f"printf '%s\\n%s' {BASH_EVIL} '{GOOD}'", "tty": True},
    ),
    Attack("a command's text", "process_list", {}, f": {GOOD[:4]} '{EVIL}'"),
    Attack(
        "a file's name in a list",
        "file_list",
        {"path": "names"},
        f"mkdir -p names; touch names/{BASH_EVIL} 'names/{GOOD}'",
    ),
    Attack(
        "a link's target in a list",
        "file_list",
        {"path": "links"},
        f"mkdir -p links; ln -sf {BASH_EVIL} 'links/{GOOD}'",
    ),
    Attack(
        "a file's name in a search",
        "file_search",
        {"pattern": "here", "path": "found"},
        f"mkdir -p found; echo here > found/{BASH_EVIL}; echo here > 'found/{GOOD}'",
    ),
    Attack(
        "a line in a search",
        "file_search",
        {"pattern": "needle", "path": "line"},
        f"echo needle {BASH_EVIL} '{GOOD}' > line",
    ),
    Attack("a name in what changed", "box_changes", {"under": "/workspace/names"}),
    Attack("a path in a refusal", "file_read", {"path": f"/nowhere/{GOOD}{EVIL}"}, fails=True),
    Attack(
        "a directory in a refusal",
        "shell_run",
        {"command": "true", "cwd": f"/nowhere/{GOOD}{EVIL}"},
        fails=True,
    ),
    Attack(
        "a link in a refusal",
        "file_read",
        {"path": f"loop/{GOOD}"},
        f"mkdir -p loop; ln -sf {BASH_EVIL} 'loop/{GOOD}'",
        fails=True,
    ),
    Attack(
        "a name in what was not downloaded",
        "file_download",
        {"path": "odd", "overwrite": True},
        f"mkdir -p odd; mkfifo odd/{BASH_EVIL} 'odd/{GOOD}'; true",
    ),
    Attack("a file's lines", "file_read", {"path": "lines"}, f"echo {BASH_EVIL} '{GOOD}' > lines"),
    Attack(
        "a file's bytes",
        "file_read",
        {"path": "lines", "offset": 1},
        f"echo {BASH_EVIL} '{GOOD}' > lines",
    ),
    Attack(
        "lines that an edit changes",
        "file_edit",
        {"path": "edited", "edits": [{"old": "needle", "new": "thread"}]},
        f"echo needle {BASH_EVIL} '{GOOD}' > edited",
    ),
]


@pytest.fixture(scope="module")
async def server(
    shared_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Server, None]:
    project = tmp_path_factory.mktemp("project")
    async with serving(
        {**shared_env, "CLAUDE_PROJECT_DIR": str(project)}, "--session", "terminal"
    ) as server:
        yield server


@pytest.mark.parametrize("attack", ATTACKS, ids=[one.name for one in ATTACKS])
async def test_no_terminal_is_controlled_by(attack: Attack, server: Server):
    await server.run(attack.before, yield_after=1)
    heard: list[str] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message or "")

    result = await server.client.call_tool(attack.tool, attack.arguments, progress_callback=hear)
    said = text(result) + str(result.structured_content or "") + "".join(heard)
    assert bool(result.is_error) == attack.fails, said
    assert GOOD[:4] in said, ascii(said)
    assert not FOREIGN.search(said), ascii(said)
    assert not FOREIGN.search(server.log.read_text())
