"""The commands as a user types them."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.thin import ThinClient

if TYPE_CHECKING:
    from collections.abc import Mapping

RUN_TIMEOUT = 60.0  # s; the longest, the demo, takes ten
PROGRAM = str(Path(sys.executable).with_name("box-mcp"))


def box_mcp(
    *arguments: str, code: int = 0, env: Mapping[str, str] | None = None, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """What `box-mcp ARGUMENTS` printed, having read `stdin`; it must exit with `code`."""
    done = subprocess.run(
        [PROGRAM, *arguments],
        env={**os.environ, **(env or {})},
        input=stdin or "",
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT,
        check=False,
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def boxes(env: Mapping[str, str], *, code: int = 0) -> dict[str, Any]:
    """What `box-mcp boxes --json` tells."""
    return json.loads(box_mcp("boxes", "--json", code=code, env=env).stdout)


def made_box(env: Mapping[str, str]) -> str:
    """A running box that a server made which has ended since."""
    server = [sys.executable, "-m", "box_mcp", "serve"]
    with ThinClient(server, {**os.environ, **env}, Path(env["BOX_MCP_STATE_DIR"] + ".log")) as it:
        return str(json.loads(it.call("box_create"))["id"])


def forget(box: str, env: Mapping[str, str]) -> None:
    """Takes the row of a box out of the store behind all servers' backs."""
    with closing(sqlite3.connect(Path(env["BOX_MCP_STATE_DIR"], "state.db"))) as database:
        database.execute("DELETE FROM boxes WHERE id = ?", (box,))
        database.commit()
