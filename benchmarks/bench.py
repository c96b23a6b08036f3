"""Servers to measure, in a directory of their own, and nothing left of them afterwards."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep

from benchmarks.direct import Engine
from benchmarks.thin import ThinClient
from box_mcp.engines.marks import settle_mark
from box_mcp.janitor import STOCK
from box_mcp.settings import Settings

OURS = (sys.executable, "-m", "box_mcp", "serve")
BOX_ID = re.compile(r"\bbox-[0-9a-z]{8}\b")
SETTLE_TIMEOUT = 120.0  # s
LOOK_AGAIN = 0.05  # s
REST = 0.2  # s for what the last of the background's work leaves to do
READY_SPARES = "SELECT count(*) FROM boxes WHERE principal IS NULL AND state = 'running'"


class Bench:
    """Servers that share one state directory and keep so many `spares`; and their engine."""

    def __init__(self, directory: Path, spares: int) -> None:
        self._spares = spares
        self.directory = directory
        self.state = directory / "state"
        self.log = directory / "servers.log"
        self.log.touch()
        config = directory / "config.toml"
        config.touch()
        self.env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("BOX_MCP_", "CLAUDE_"))
        }
        self.env |= {"BOX_MCP_CONFIG": str(config), "BOX_MCP_STATE_DIR": str(self.state)}
        self.env |= {"BOX_MCP_WARM_MIN": str(spares), "BOX_MCP_WARM_MAX": str(spares)}
        settle_mark(self.state)  # else the first server might, and it be another than is looked for
        settings = Settings(state_dir=self.state)
        self.image = settings.image
        self.owner = settings.isolation().owner
        self.engine = Engine()

    def thin(self, command: Sequence[str] = OURS, /, **settings: object) -> ThinClient:
        """A server; `settings` go over those that all servers here have."""
        given = {f"BOX_MCP_{name.upper()}": str(value) for name, value in settings.items()}
        return ThinClient(command, {**self.env, **given}, self.log)

    def settle(self) -> None:
        """Waits until the servers have all at hand that they are to have: spares, networks."""
        deadline = monotonic() + SETTLE_TIMEOUT
        stock = STOCK if self._spares else 0
        while self._ready_spares() < self._spares or self._networks_ahead() < stock:
            if monotonic() > deadline:
                raise TimeoutError(f"not at rest after {SETTLE_TIMEOUT:g} s, see {self.log}")
            sleep(LOOK_AGAIN)
        sleep(REST)

    def _ready_spares(self) -> int:
        if not (self.state / "state.db").exists():
            return 0
        with closing(sqlite3.connect(self.state / "state.db", timeout=10)) as store:
            return store.execute(READY_SPARES).fetchone()[0]

    def _networks_ahead(self) -> int:
        return self.engine.networks(self.owner) - self.engine.containers(self.owner)

    def clear(self, client: ThinClient) -> None:
        """Deletes all boxes; removing their networks takes the engine longer than making them."""
        for box in boxes_in(client.call("box_list")):
            client.call("box_delete", box=box, discard=True)

    def facts(self) -> dict[str, object]:
        """What figures depend on."""
        return {
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "python": platform.python_version(),
            "engine": self.engine.version(),
            "cores": os.cpu_count(),
        }


@contextmanager
def bench(spares: int = 0) -> Generator[Bench, None, None]:
    """Leaves nothing behind: no file, container, network or image."""
    with TemporaryDirectory(prefix="box-mcp-bench-") as directory:
        made = Bench(Path(directory), spares)
        try:
            yield made
        finally:
            made.engine.remove_all_of(made.owner)


def boxes_in(text: str) -> list[str]:
    """All boxes that `text` names, each once."""
    return list(dict.fromkeys(BOX_ID.findall(text)))


def box_in(text: str) -> str:
    """The first of them."""
    if not (found := boxes_in(text)):
        raise RuntimeError(f"no box is named in {text!r}")
    return found[0]
