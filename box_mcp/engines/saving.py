"""Boxes saved to Docker images, and what became of a box's files; blocking, in worker threads.

An image that boxes were saved to bears `SAVED_LABEL`. It has the tag that it was saved with; or,
dropped while boxes still need it, one of `DROPPED`; or, as a fork's, none.
"""

# docker-py carries no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from operator import itemgetter
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from box_mcp.domain.names import BoxId
from box_mcp.engines.base import Change, ChangeKind, Saved, Usage
from box_mcp.engines.counting import own_files
from box_mcp.engines.isolation import FILES, HOME, LABEL, LOGS, OWNER_LABEL, SOCKET, SPEC_LABEL
from box_mcp.engines.memory import held
from box_mcp.errors import EngineRefused, ImageMissing

if TYPE_CHECKING:
    from docker import APIClient

SAVED_LABEL = "box_mcp.saved"
"""On every image that a box was saved to; its value is the engine's owner."""
SNAPSHOTS = "box-mcp-snapshot"
DROPPED = "box-mcp-dropped"
SECONDS = len("2026-01-01T00:00:00")
REMOVED_MEANWHILE = "unrecognized image ID"
"""What the engine says when another call removes the same image."""
MAX_LAYERS = 100
"""Overlay takes about 125: from here on, a box is saved as one layer."""

INIT = ("/sbin/docker-init", "/usr/sbin/docker-init")
OWN_PATHS = tuple(map(PurePosixPath, (HOME, str(PurePosixPath(SOCKET).parent), FILES, LOGS, *INIT)))
"""boxd's and the engine's, in every box."""
ON_THE_WAY = {parent for path in OWN_PATHS for parent in path.parents}
KINDS = {0: ChangeKind.CHANGED, 1: ChangeKind.ADDED, 2: ChangeKind.DELETED}


def save(
    api: APIClient, owner: str, box: BoxId, tag: str | None, labels: Mapping[str, str]
) -> Saved:
    """Commits a box; an earlier image of the same tag goes as soon as no box needs it."""
    container = api.inspect_container(box)
    base = _base(api, container)
    # Values that are empty take the place of the container's, which the image would inherit.
    ours = {LABEL: "", SPEC_LABEL: "", SAVED_LABEL: owner, OWNER_LABEL: owner, **labels}
    config = {
        "Labels": ours,
        "User": base["Config"].get("User") or "0",
        "Env": container["Config"]["Env"],
    }
    repository, tag = (SNAPSHOTS, tag_of(owner, tag)) if tag else (None, None)
    before = _id_of(api, f"{repository}:{tag}") if tag else None
    if 0 < len(base["RootFS"]["Layers"]) < MAX_LAYERS:
        image = api.commit(box, repository, tag, conf=config)["Id"]
    else:
        image = _flatten(api, container, base, repository, tag, config)
    about = api.inspect_image(image)
    if (about["Config"]["Labels"] or {}).get(SAVED_LABEL) != owner:
        api.remove_image(image, force=True)  # nobody would find it again
        raise EngineRefused("save a box", "it gives images no labels, as some Podmans do not")
    if before is not None and before != image:
        _remove_unused(api, before)
    inherited = base["Size"] if len(about["RootFS"]["Layers"]) > 1 else 0
    return Saved(
        image=f"{repository}:{tag}" if tag else image,
        labels=about["Config"]["Labels"],
        size=about["Size"],
        added=about["Size"] - inherited,
        created=_moment(about["Created"]),
    )


def saved(api: APIClient, owner: str) -> Sequence[Saved]:
    """All of `owner`'s, oldest first.

    Others may have lost their names, while newer ones stand on them: nobody can delete those, so
    they are counted with the oldest of these.
    """
    ours = {"label": f"{SAVED_LABEL}={owner}"}
    images = sorted(
        (one for one in api.images(filters=ours) if is_saved(one, owner)), key=itemgetter("Created")
    )
    counted: dict[str, int] = {image["Id"]: image["Size"] for image in images}
    nameless: dict[str, tuple[int, str]] = {}

    def inherited(image: str) -> int:
        """Bytes of the next image from here on down that stands for itself, or was counted."""
        while image and image not in counted:
            if image not in nameless:
                size, is_copy = _size(api, image)
                if not is_copy:
                    counted[image] = size
                    break
                for one in api.images(all=True, filters=ours):
                    nameless[one["Id"]] = one["Size"], one["ParentId"]
            counted[image], image = nameless.get(image, (0, ""))
        return counted.get(image, 0)

    return [
        Saved(
            image=_name(image),
            labels=image["Labels"],
            size=image["Size"],
            added=image["Size"] - inherited(image["ParentId"]),
            created=float(image["Created"]),
        )
        for image in images
    ]


def labels(api: APIClient, owner: str, image: str) -> Mapping[str, str] | None:
    """Those of an image of `owner`'s; None for one that no box was saved to."""
    found = api.inspect_image(image)["Config"].get("Labels") or {}
    if SAVED_LABEL in found and found[SAVED_LABEL] != owner:
        raise ImageMissing(image)
    return found if is_saved({"Labels": found}, owner) else None


def drop(api: APIClient, owner: str, image: str) -> None:
    """Takes the name of an image; the rest goes with the last box that needs it."""
    from docker.errors import APIError, ImageNotFound, NotFound

    with suppress(ImageNotFound):
        about = api.inspect_image(image)
        if (about["Config"].get("Labels") or {}).get(SAVED_LABEL) != owner:
            raise EngineRefused("delete a snapshot", f"{image} is not one of ours")
        if image == about["Id"]:
            with suppress(NotFound):  # whoever saved a box by it died over that
                api.remove_container(_carrier(image), force=True)
            return _remove_unused(api, image)
        try:
            api.remove_image(image)
        except APIError as error:
            if REMOVED_MEANWHILE in str(error.explanation):
                return
            if error.status_code != 409:  # in use by a box
                raise
            api.tag(image, DROPPED, about["Id"].removeprefix("sha256:")[:32])
            api.remove_image(image)


def drop_unused(api: APIClient, container: Mapping[str, Any]) -> None:
    """After the end of a box: its image goes, too, when nobody knows it by name."""
    if SAVED_LABEL in (container["Config"]["Labels"] or {}):
        _remove_unused(api, container["Image"])


def is_saved(image: Mapping[str, Any], owner: str) -> bool:
    """Whether it was made here for `owner`: what a person commits of a box bears its labels."""
    labels = image["Labels"] or {}
    return labels.get(SAVED_LABEL) == owner and not labels.get(LABEL)


def droppable(tags: Sequence[str] | None) -> bool:
    """Whether nobody knows an image of these tags by name, be it a snapshot's or a person's own."""
    return all(tag.startswith((f"{DROPPED}:", "<none>")) for tag in tags or ())


def changes(api: APIClient, box: BoxId) -> Sequence[Change]:
    """What differs from the image, by path; without what is boxd's."""
    found = {PurePosixPath(one["Path"]): KINDS[one["Kind"]] for one in api.diff(box) or ()}
    kept = {path: kind for path, kind in found.items() if not _own(path)}
    inhabited = {parent for path in kept.keys() - ON_THE_WAY for parent in path.parents}
    told = [path for path in kept if path not in ON_THE_WAY or path in inhabited]
    return [Change(str(path), kept[path]) for path in sorted(told, key=str)]


def usage(api: APIClient, box: BoxId, seen: Callable[[str], str | None]) -> Usage:
    """One look at its cgroup and at its writable layer.

    `seen` tells where this process sees a file of the engine's machine.
    """
    from docker.errors import NotFound

    try:
        found = api.inspect_container(box)
    except NotFound:
        raise EngineRefused("measure a box", f"it has no container {box}") from None
    memory = held(api, found["Id"]) if found["State"]["Running"] else 0
    layer = ((found.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir", "")
    if (counted := own_files(seen(layer))) is not None:
        return Usage(memory, *counted)
    return Usage(memory, _told(api, box))


def _told(api: APIClient, box: BoxId) -> int | None:
    """What the engine says that its files take, holes in them included."""
    found = api.containers(all=True, size=True, filters={"label": f"{LABEL}={box}"})
    return next((one.get("SizeRw", 0) for one in found if f"/{box}" in one["Names"]), None)


def tag_of(owner: str, tag: str) -> str:
    """The tag of a saved image: several owners share an engine."""
    return f"{owner or 'nobody'}-{tag}"


def _own(path: PurePosixPath) -> bool:
    return any(path == own or own in path.parents for own in OWN_PATHS)


def _name(image: Mapping[str, Any]) -> str:
    tags = image.get("RepoTags") or ()
    return next((tag for tag in tags if tag.startswith(f"{SNAPSHOTS}:")), image["Id"])


def _size(api: APIClient, image: str) -> tuple[int, bool]:
    """An image's, and whether a box was saved to it; nothing of one that is gone."""
    from docker.errors import ImageNotFound

    try:
        about = api.inspect_image(image)
    except ImageNotFound:
        return 0, False
    return about["Size"], SAVED_LABEL in (about["Config"]["Labels"] or {})


def _id_of(api: APIClient, name: str) -> str | None:
    from docker.errors import ImageNotFound

    try:
        return api.inspect_image(name)["Id"]
    except ImageNotFound:
        return None


def _base(api: APIClient, container: Mapping[str, Any]) -> Mapping[str, Any]:
    """The image that a box was made from; without layers when somebody deleted it.

    The engine keeps the files of a box then, but commits nothing that lies on what is no more.
    """
    from docker.errors import ImageNotFound

    try:
        return api.inspect_image(container["Image"])
    except ImageNotFound:
        _, *users = json.loads(container["Config"]["Cmd"][-1])["users"]  # told to its boxd
        return {"Config": {"User": "".join(users)}, "RootFS": {"Layers": []}, "Size": 0}


def _remove_unused(api: APIClient, image: str) -> None:
    """Removes an image, unless a box or another image still needs it, or it has a name."""
    from docker.errors import APIError, NotFound

    try:
        tags = api.inspect_image(image)["RepoTags"]
        if droppable(tags):
            api.remove_image(tags[0] if tags else image)
    except NotFound:
        pass
    except APIError as error:
        meanwhile = REMOVED_MEANWHILE in str(error.explanation)
        if error.status_code != 409 and not meanwhile:
            raise


def _flatten(
    api: APIClient,
    container: Mapping[str, Any],
    base: Mapping[str, Any],
    repository: str | None,
    tag: str | None,
    config: dict[str, Any],
) -> str:
    """All files of a box as one layer. What an import can't be told, an empty commit on it can.

    Should nobody come back to name the one or the other, both bear the owner's label.
    """
    owner = config["Labels"][SAVED_LABEL]
    with _paused(api, container):
        answer = api.import_image_from_stream(
            api.export(container["Id"]), changes=[f"LABEL {SAVED_LABEL}={json.dumps(owner)}"]
        )
    imported = json.loads(answer.splitlines()[-1])
    if "error" in imported:
        raise EngineRefused("save a box", imported["error"])
    layer: str = imported["status"]
    inherited = {key: base["Config"].get(key) for key in ("WorkingDir", "Cmd", "Entrypoint")}
    api.create_container(layer, name=_carrier(layer), command=["true"])
    try:
        conf = {**inherited, **config}
        return api.commit(_carrier(layer), repository, tag, conf=conf)["Id"]
    finally:
        api.remove_container(_carrier(layer), force=True)


def _carrier(layer: str) -> str:
    """The name of the container, never started, that an imported image is committed by."""
    return f"box-mcp-saving-{layer.removeprefix('sha256:')[:32]}"


@contextmanager
def _paused(api: APIClient, container: Mapping[str, Any]) -> Generator[None, None, None]:
    state = container["State"]
    if not state["Running"] or state["Paused"]:
        yield
        return
    api.pause(container["Id"])
    try:
        yield
    finally:
        api.unpause(container["Id"])


def _moment(created: str) -> float:
    """Seconds since the epoch; the engine counts nanoseconds, Python can't."""
    return datetime.fromisoformat(created[:SECONDS] + "Z").timestamp()
