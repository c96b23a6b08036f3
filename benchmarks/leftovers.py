"""What servers of one state directory left in the engine and on the disk."""

# docker-py carries no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from box_mcp.engines.isolation import OWNER_LABEL
from box_mcp.engines.saving import SAVED_LABEL

if TYPE_CHECKING:
    from docker import APIClient

STORE = "state.db"
LASTING = (STORE, f"{STORE}-wal", f"{STORE}-shm")
"""Files that stay when there are neither boxes nor servers."""
TABLES = ("boxes", "sessions")


def in_engine(owner: str) -> list[str]:
    """Containers, networks and images of the owner."""
    with _engine() as api:
        ours = {"label": f"{OWNER_LABEL}={owner}"}
        saved = {"label": f"{SAVED_LABEL}={owner}"}
        return [
            *(f"container {c['Names'][0]}, {c['Status']}" for c in _containers(api, ours)),
            *(f"network {network['Name']}" for network in api.networks(filters=ours)),
            *(
                f"image {image['Id'][:19]} {image['RepoTags']}"
                for image in api.images(filters=saved)
            ),
        ]


def on_disk(state: Path) -> list[str]:
    """Rows of the store, and files beside it."""
    files = [path.relative_to(state) for path in state.rglob("*") if not path.is_dir()]
    return [
        *(f"file {path}" for path in files if str(path) not in LASTING),
        *_rows(state / STORE),
    ]


def remove(owner: str) -> None:
    """Takes all of the owner's out of the engine."""
    from docker.errors import NotFound

    with _engine() as api:
        for container in _containers(api, {"label": f"{OWNER_LABEL}={owner}"}):
            with suppress(NotFound):
                api.remove_container(container["Id"], force=True, v=True)
        for network in api.networks(filters={"label": f"{OWNER_LABEL}={owner}"}):
            with suppress(NotFound):
                api.remove_network(network["Id"])
        for image in api.images(filters={"label": f"{SAVED_LABEL}={owner}"}):
            with suppress(NotFound):
                api.remove_image(image["Id"], force=True)


def _containers(api: APIClient, filters: dict[str, str]) -> list[dict[str, str]]:
    return api.containers(all=True, filters=filters)


def _rows(store: Path) -> list[str]:
    if not store.exists():
        return []
    with closing(sqlite3.connect(store, timeout=10)) as database:
        return [
            f"row of {table}: {row}"
            for table in TABLES
            for row in database.execute(f"SELECT * FROM {table}")  # noqa: S608 - ours
        ]


@contextmanager
def _engine() -> Generator[APIClient, None, None]:
    import docker
    from docker.utils import kwargs_from_env

    with closing(docker.APIClient(**kwargs_from_env(), version="auto", timeout=60)) as api:
        yield api
