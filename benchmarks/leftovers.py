"""What servers of one state directory left in the engine and on the disk."""

# docker-py carries no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from benchmarks.direct import Engine
from box_mcp.engines.isolation import OWNER_LABEL
from box_mcp.observe.verifying import verify

STORE = "state.db"
AUDIT = "audit.jsonl"
LASTING = (
    *(f"{database}{more}" for database in (STORE, "runs.db") for more in ("", "-wal", "-shm")),
    *(f"{AUDIT}{more}" for more in ("", ".head", ".lock")),
    "mark",
)
"""Files that stay when there are neither boxes nor servers."""
TABLES = ("boxes", "sessions")


def in_engine(owner: str) -> list[str]:
    """Containers, networks and images of the owner."""
    with closing(Engine().api) as api:
        ours = {"label": f"{OWNER_LABEL}={owner}"}
        containers, networks = api.containers(all=True, filters=ours), api.networks(filters=ours)
        return [
            *(f"container {one['Names'][0]}, {one['Status']}" for one in containers),
            *(f"network {one['Name']}" for one in networks),
            *(f"image {one['Id'][:19]} {one['RepoTags']}" for one in api.images(filters=ours)),
        ]


def on_disk(state: Path) -> list[str]:
    """Rows of the store, files beside it, and where the chain of the audit is broken."""
    files = [path.relative_to(state) for path in state.rglob("*") if not path.is_dir()]
    with closing(sqlite3.connect(state / STORE, timeout=10)) as database:
        return [
            *(f"file {path}" for path in files if str(path) not in LASTING),
            *(
                f"row of {table}: {row}"
                for table in TABLES
                for row in database.execute(f"SELECT * FROM {table}")  # noqa: S608 - ours
            ),
            *(f"audit: {one}" for one in verify(state / AUDIT).breaks),
        ]


def remove(owner: str) -> None:
    """Takes all of the owner's out of the engine."""
    engine = Engine()
    with closing(engine.api):
        engine.remove_all_of(owner)
