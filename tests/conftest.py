"""What all tests share."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def anyio_backend() -> str:
    """The one that MCP servers run on."""
    return "asyncio"


@pytest.fixture
def server_command() -> list[str]:
    """How to start the server over stdio."""
    return [sys.executable, "-m", "box_mcp", "serve"]


@pytest.fixture
def server_env(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The server's own state directory; its boxes are deleted afterwards."""
    env = {
        "BOX_MCP_STATE_DIR": str(tmp_path / "state"),
        "BOX_MCP_WARM": "0",
        "PATH": os.environ["PATH"],
    }
    yield env
    database = tmp_path / "state" / "state.db"
    if database.exists():
        with sqlite3.connect(database) as connection:
            boxes = [row[0] for row in connection.execute("SELECT id FROM boxes")]
        connection.close()
        for box in boxes:
            subprocess.run(["docker", "rm", "-fv", box], check=False, capture_output=True)
            subprocess.run(
                ["docker", "network", "rm", f"{box}-net"], check=False, capture_output=True
            )
