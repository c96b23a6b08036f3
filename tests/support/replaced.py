"""A box whose root has put another program in the place of its daemon: see `liar.py`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import liar
from tests.support.client import docker

if TYPE_CHECKING:
    from tests.support.client import Server

SOURCE = Path(liar.__file__).read_text()
REPLACE = (
    "cd /opt/box_mcp && mv boxd.pyz real.pyz && cp /workspace/liar.py boxd.pyz && chmod a+r * && "
    "echo {} > {}"
)


async def replace(server: Server, box: str, *lies: str) -> None:
    """From its next start on, which is now, the box's daemon tells these lies."""
    await server.say("file_write", box=box, path="liar.py", content=SOURCE)
    command = REPLACE.format(" ".join(lies), liar.LIES)
    await server.run(f"sudo sh -c '{command}'", box=box)
    docker("restart", "--time", "0", box)
