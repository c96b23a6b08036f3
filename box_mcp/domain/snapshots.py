"""Saved copies of boxes: what is known of one, and how that is written on its image.

The engine's images are the only record of snapshots: their labels hold what a `Snapshot` is, so
nothing can be lost with the store, and nothing can disagree with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from box_mcp.domain.box import BoxSpec
from box_mcp.domain.names import BoxId, BoxName, Principal

SNAPSHOT_LABEL = "box_mcp.snapshot"
"""On every image that a box was saved to; its value describes the snapshot as JSON."""


@dataclass(frozen=True)
class Snapshot:
    """A box's files and settings at one moment. `created` is in seconds since the epoch.

    A `name` of None is a fork's: nobody's to see, gone with the last box made of it.
    """

    principal: Principal
    name: BoxName | None
    origin: BoxId
    spec: BoxSpec
    created: float

    @property
    def tag(self) -> str | None:
        """The image's tag: the same for the same principal and name; None for a fork's."""
        return None if self.name is None else tag(self.principal, self.name)

    def labels(self) -> dict[str, str]:
        """What is written on the image."""
        about = {**vars(self), "spec": self.spec.record()}
        return {SNAPSHOT_LABEL: json.dumps(about)}


def tag(principal: Principal, name: BoxName) -> str:
    """The tag of the snapshot that `principal` calls `name`."""
    return sha256(f"{principal}\0{name}".encode()).hexdigest()[:32]


def read_labels(labels: Mapping[str, str]) -> Snapshot:
    """The snapshot that `labels` describe; raises ValueError when they describe none."""
    try:
        about = json.loads(labels[SNAPSHOT_LABEL])
        return Snapshot(
            principal=Principal(about["principal"]),
            name=None if about["name"] is None else BoxName(about["name"]),
            origin=BoxId(about["origin"]),
            spec=BoxSpec.of(about["spec"]),
            created=float(about["created"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no snapshot is described by {dict(labels)}") from error
