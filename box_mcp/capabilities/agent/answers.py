"""Answers that were to fit a schema: checked, and asked for once more."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import anyio

from box_mcp.capabilities.agent import checking
from box_mcp.errors import InvalidArgument

CHECK_TIMEOUT = 10.0  # s
MAX_SCHEMA = 64 * 1024  # characters as JSON
UNUSABLE = "the schema can't be checked: "


async def check_schema(schema: Mapping[str, Any]) -> None:
    """Raises InvalidArgument for what is no schema, or none that an answer can be held to."""
    if len(json.dumps(schema)) > MAX_SCHEMA:
        raise InvalidArgument("response_schema", f"is over {MAX_SCHEMA:,} characters")
    said = await _checked({"schema": schema})
    if (why := said.get("unusable")) is not None:
        raise InvalidArgument("response_schema", f"is no JSON schema that can be used: {why}")


async def violations(schema: Mapping[str, Any], answer: Any) -> list[str]:
    """What is wrong with an answer, where and why; a few words each."""
    said = await _checked({"schema": schema, "answer": answer})
    if (why := said.get("unusable")) is not None:
        return [f"{UNUSABLE}{why}"]
    return said["violations"]


def mending(schema: Mapping[str, Any], wrong: Sequence[str]) -> str:
    """The prompt that asks for the answer once more."""
    listed = "\n".join(f"- {one}" for one in wrong)
    return (
        "Your answer does not fit the JSON schema that it has to fit. This is wrong ($ is the "
        f"answer):\n{listed}\n\nChange nothing else and do no further work: give the whole answer "
        f"once more, so that it fits this schema:\n{json.dumps(schema, ensure_ascii=False)}"
    )


async def _checked(question: Mapping[str, Any]) -> dict[str, Any]:
    """What the checking program tells; a check without end is one that can't be used."""
    command = [sys.executable, "-I", checking.__file__]
    try:
        with anyio.fail_after(CHECK_TIMEOUT):
            done = await anyio.run_process(
                command,
                input=json.dumps(question).encode(),
                stderr=subprocess.DEVNULL,
                check=False,
            )
        return json.loads(done.stdout)
    except (TimeoutError, ValueError, OSError):
        return {"unusable": "checking it took too long, or failed"}
