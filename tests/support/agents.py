"""A server whose boxes have real coding agents, with a scripted model behind its gateway."""

from __future__ import annotations

import json
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from tests.support.client import PATIENCE, Server, docker, fresh_state, serving
from tests.support.model_server import ScriptedModel, serve_model
from tests.support.script import Gate, Turn, Use

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

IMAGE = "box-mcp:agent"
KEY = "sk-0nlyTheHostKnows/This+Key="
"""The key of all models, with signs that look different in URLs and in base64."""

PRICES = {"*": {"input": 1000, "output": 2000, "cache_read": 100, "cache_write": 1250}}
"""US dollars per million tokens: high, so that a few tokens are a sum."""

Facts = dict[str, Any]


@dataclass(frozen=True)
class Harness:
    """A coding agent, its model, and how that uses its tools."""

    name: str
    model: str
    program: str

    def __str__(self) -> str:
        return self.name

    def run(self, command: str) -> Use:
        """A command in a shell."""
        if self.name == "codex":
            return Use("exec_command", {"cmd": command})
        return Use("Bash", {"command": command})

    def write(self, path: str, line: str) -> Use:
        """A new file below ``/workspace``."""
        if self.name == "codex":
            patch = f"*** Begin Patch\n*** Add File: {path}\n+{line}\n*** End Patch\n"
            return Use("apply_patch", patch)
        return Use("Write", {"file_path": f"/workspace/{path}", "content": f"{line}\n"})


CLAUDE_CODE = Harness("claude_code", "claude-sonnet-4-5", "claude")
CODEX = Harness("codex", "gpt-5.5", "codex")
HARNESSES = (CLAUDE_CODE, CODEX)


@dataclass
class Scene:
    """The server, and the model that plays what it is told to."""

    server: Server
    model: ScriptedModel
    scripts: dict[str, Any]
    directory: Path
    env: dict[str, str]
    numbers: count[int] = field(default_factory=count)

    def script(self, *turns: Turn) -> str:
        """The beginning of a prompt that has these turns played."""
        name = f"Task {next(self.numbers)}."
        self.scripts[name] = turns
        return name

    async def play(self, harness: Harness, box: str, *turns: Turn, **arguments: Any) -> Facts:
        """What agent_run answers when the agent is told to do these turns."""
        return await self.go(harness, box, self.script(*turns), **arguments)

    async def go(self, harness: Harness, box: str, prompt: str, **arguments: Any) -> Facts:
        """What agent_run answers."""
        told = {"harness": harness.name, "model": harness.model, **arguments}
        return await self.server.tell("agent_run", box=box, prompt=prompt, **told)

    async def begin(self, harness: Harness, box: str, *turns: Turn, **arguments: Any) -> str:
        """The id of a run in the background."""
        return (await self.play(harness, box, *turns, background=True, **arguments))["run"]

    async def end(self, run: str) -> Facts:
        """How a run is when it has ended."""
        with anyio.fail_after(2 * PATIENCE):
            while (told := await self.status(run, wait=20))["state"] == "running":
                pass
        return told

    async def status(self, run: str, **arguments: Any) -> Facts:
        """What agent_status tells."""
        return await self.server.tell("agent_status", run=run, **arguments)

    async def box(self, **arguments: Any) -> str:
        """The id of a new box."""
        return str((await self.server.tell("box_create", **arguments))["id"])

    async def read(self, box: str, path: str) -> str:
        """A file of a box."""
        answer = await self.server.run(f"cat {path}", box=box)
        return answer.partition("]\n")[2]

    def heard(self, prompt: str) -> int:
        """How many requests there were for a script."""
        return sum(prompt in json.dumps(request) for request in self.model.requests)


async def reached(gate: Gate) -> None:
    """Waits until an answer waits at the gate."""
    assert await anyio.to_thread.run_sync(gate.reached.wait, PATIENCE), "nobody came to the gate"


@asynccontextmanager
async def agents(directory: Path, **settings: str) -> AsyncGenerator[Scene, None]:
    """A server, without boxes; `settings` are further variables."""
    with ExitStack() as stack:
        scripts: dict[str, Any] = {}
        model = stack.enter_context(serve_model(scripts, tool_prefix=""))
        env = stack.enter_context(fresh_state(directory))
        env |= variables(model) | settings
        async with serving(env) as server:
            yield Scene(server, model, scripts, directory, env)


def variables(model: ScriptedModel) -> dict[str, str]:
    """What has a server's agents talk to the scripted model."""
    credential = {"variable": "MODEL_KEY"}
    models = {
        "anthropic": {"api": "anthropic", "upstream": model.url, "credential": credential},
        "openai": {"api": "openai", "upstream": f"{model.url}/v1", "credential": credential},
    }
    return {
        "MODEL_KEY": KEY,
        "BOX_MCP_IMAGE": IMAGE,
        "BOX_MCP_MODELS": json.dumps(models),
        "BOX_MCP_PRICES": json.dumps(PRICES),
    }


def processes(box: str) -> str:
    """The commands of all processes of a box."""
    return docker("top", box, "-eo", "pid,args")
