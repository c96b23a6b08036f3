"""What a Docker engine holds for one owner, and how left-overs go; blocking, and for no server.

For `box-mcp boxes` and `box-mcp prune`. Whatever is told or removed here was found by our label.
All raise EngineUnreachable, EngineRefused and EngineStalled.
"""

# docker-py carries no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from box_mcp.domain.names import BoxId
from box_mcp.engines import saving
from box_mcp.engines.base import Condition
from box_mcp.engines.docker import condition, connected
from box_mcp.engines.isolation import LABEL, OWNER_LABEL
from box_mcp.engines.memory import held
from box_mcp.engines.saving import SAVED_LABEL, droppable, is_saved

if TYPE_CHECKING:
    from docker import APIClient

AWAKE = (Condition.RUNNING, Condition.FROZEN)
STATISTICS_AT_ONCE = 64  # an engine of old waits a second before each answer
REFUSALS = (403, 409)  # it is in use; a network has other ends


@dataclass(frozen=True)
class Container:
    """A box's container; `status` is the engine's own word. Sizes are in bytes."""

    key: str
    box: BoxId
    condition: Condition
    status: str
    image: str
    created: float
    memory: int | None
    disk: int | None


@dataclass(frozen=True)
class Network:
    """A box's network."""

    key: str
    box: BoxId


@dataclass(frozen=True)
class Volume:
    """A volume that bears a box's label; box_mcp itself makes none."""

    key: str
    box: BoxId


@dataclass(frozen=True)
class Image:
    """An image that a box was saved to. `size` is all of it, `added` what it adds to its origin.

    `named` tells that it is a snapshot that callers know, `users` how many containers need it.
    """

    key: str
    labels: Mapping[str, str]
    size: int
    added: int
    named: bool
    users: int


@dataclass(frozen=True)
class Holdings:
    """All of one owner. `strangers` counts the boxes of each other owner on this engine."""

    containers: Sequence[Container]
    networks: Sequence[Network]
    volumes: Sequence[Volume]
    images: Sequence[Image]
    strangers: Mapping[str, int]


def holdings(owner: str) -> Holdings:
    """Everything of `owner`, by a handful of questions however many boxes there are."""
    ours = {"label": [LABEL, f"{OWNER_LABEL}={owner}"]}
    with connected("say what it holds") as client:
        api = client.api
        # Networks first: what comes to be meanwhile is then seen with its container.
        networks = api.networks(filters=ours)
        volumes = api.volumes(filters=ours)["Volumes"] or ()
        containers = api.containers(all=True)
        own = [one for one in api.containers(all=True, size=True, filters=ours) if _is_box(one)]
        owners = Counter(str(one["Labels"].get(OWNER_LABEL)) for one in containers if _is_box(one))
        return Holdings(
            containers=_measured(api, own),
            networks=[Network(one["Id"], BoxId(one["Labels"][LABEL])) for one in networks],
            volumes=[Volume(one["Name"], BoxId(one["Labels"][LABEL])) for one in volumes],
            images=_images(api, owner, Counter(one["ImageID"] for one in containers)),
            strangers={other: count for other, count in owners.items() if other != owner},
        )


class Cleaner:
    """Removes what `holdings` told of, one by one; each method says why not, or nothing."""

    def __init__(self, api: APIClient, owner: str) -> None:
        self._api = api
        self._owner = owner

    def container(self, box: BoxId, key: str, *, servers: bool) -> str:
        """Removes a container with its anonymous volumes, and its image when nobody else needs it.

        Not while it runs and something was executed in it: as long as a server is connected to
        it, or a person is. Of frozen ones that says nothing when no server lives.
        """
        from docker.errors import NotFound

        try:
            found = self._api.inspect_container(key)
        except NotFound:
            return ""
        state = found["State"]
        if found["ExecIDs"] and state["Running"] and (servers or not state["Paused"]):
            return "something is connected to it"
        if found["Name"] != f"/{box}":
            return "it has another name now"
        why_not = _refusal(partial(self._api.remove_container, key, force=True, v=True))
        if not why_not:
            saving.drop_unused(self._api, found)
        return why_not

    def network(self, box: BoxId) -> str:
        """Removes the network of a box, unless the box has a container."""
        containers = self._api.containers(all=True, filters={"label": f"{LABEL}={box}"})
        if any(_is_box(one) for one in containers):
            return "its box has a container"
        ours = {"label": [f"{LABEL}={box}", f"{OWNER_LABEL}={self._owner}"]}
        for network in self._api.networks(filters=ours):
            if why_not := _refusal(partial(self._api.remove_network, network["Id"])):
                return why_not
        return ""

    def volume(self, key: str) -> str:
        """Removes a volume that no container uses."""
        return _refusal(partial(self._api.remove_volume, key))

    def image(self, key: str) -> str:
        """Removes an image that a box was saved to, unless something needs it or names it."""
        from docker.errors import ImageNotFound

        try:
            tags = self._api.inspect_image(key)["RepoTags"] or ()
        except ImageNotFound:
            return ""
        if not droppable(tags):
            return "it has a name"
        for name in tags or (key,):
            if why_not := _refusal(partial(self._api.remove_image, name)):
                return why_not
        return ""


@contextmanager
def cleaner(owner: str) -> Generator[Cleaner, None, None]:
    """A cleaner for the length of the block."""
    with connected("clean up") as client:
        yield Cleaner(client.api, owner)


def _is_box(container: Mapping[str, Any]) -> bool:
    """Whether it is no other's: what people make of a box's image bears a box's label, too."""
    return f"/{(container['Labels'] or {}).get(LABEL)}" in container["Names"]


def _measured(api: APIClient, containers: Sequence[Mapping[str, Any]]) -> list[Container]:
    conditions = {one["Id"]: condition(one["State"]) for one in containers}
    awake = [key for key, state in conditions.items() if state in AWAKE]
    with ThreadPoolExecutor(STATISTICS_AT_ONCE) as threads:
        memory = dict(zip(awake, threads.map(partial(held, api), awake), strict=True))
    return [
        Container(
            key=one["Id"],
            box=BoxId(one["Labels"][LABEL]),
            condition=conditions[one["Id"]],
            status=one["Status"],
            image=one["Image"],
            created=float(one["Created"]),
            memory=memory.get(one["Id"], 0),
            disk=one.get("SizeRw", 0),
        )
        for one in containers
    ]


def _images(api: APIClient, owner: str, users: Mapping[str, int]) -> list[Image]:
    """The saved images that are of use by themselves: not those that others lie on."""
    every = {one["Id"]: one for one in api.images(all=True)}
    parents = {one["ParentId"] for one in every.values()}
    own = [one for one in every.values() if is_saved(one, owner)]
    return [
        Image(
            key=one["Id"],
            labels=one["Labels"],
            size=one["Size"],
            added=one["Size"] - _inherited(every, one),
            named=not droppable(one["RepoTags"]),
            users=users.get(one["Id"], 0),
        )
        for one in own
        if one["Id"] not in parents or not droppable(one["RepoTags"])
    ]


def _inherited(every: Mapping[str, Mapping[str, Any]], image: Mapping[str, Any]) -> int:
    """What an image shares with its parent; nothing with an import, a box's files alone."""
    parent = every.get(image["ParentId"])
    if parent is None or (SAVED_LABEL in (parent["Labels"] or {}) and not parent["ParentId"]):
        return 0
    return parent["Size"]


def _refusal(act: partial[None]) -> str:
    """Why the engine would not; empty when it did, or there was nothing to do."""
    from docker.errors import APIError, NotFound

    try:
        act()
    except NotFound:
        return ""
    except APIError as error:
        if error.status_code in REFUSALS:
            return str(error.explanation)
        raise
    return ""
