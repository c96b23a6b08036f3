"""A small file for each box that is somebody's: from these, a store that was lost is made again.

What a box is made from, whose it is and in which conversations: all that the engine can't tell.
How the box is, it can, so that is not recorded. Blocking; the store writes them in its thread.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from box_mcp.domain.box import Box, BoxSpec, State, Terms
from box_mcp.domain.names import BoxId, BoxName, Principal

REBUILT = "rebuilt from its record"


@dataclass(frozen=True)
class Record:
    """A box, and the conversations whose own it is."""

    box: Box
    conversations: tuple[str, ...] = ()


class Records:
    """All records, in one directory. Every method raises OSError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, record: Record) -> None:
        """Keeps a record in place of an earlier one, whole or not at all."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._path(record.box.id)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(_plain(record)))
        draft.replace(path)

    def change(self, box: Box) -> None:
        """Keeps what a box is now; its conversations stay."""
        before = self.read(box.id)
        self.write(Record(box, before.conversations if before is not None else ()))

    def read(self, box: BoxId) -> Record | None:
        """The record of a box; None when there is none that can be read."""
        return _read(self._path(box))

    def read_all(self) -> list[Record]:
        """Every record that can be read; the others stay where they are."""
        found = (_read(path) for path in sorted(self._directory.glob("*.json")))
        return [record for record in found if record is not None]

    def add_conversation(self, box: BoxId, conversation: str) -> None:
        """The box is this conversation's own from now on."""
        record = self.read(box)
        if record is not None and conversation not in record.conversations:
            self.write(replace(record, conversations=(*record.conversations, conversation)))

    def remove(self, box: BoxId) -> None:
        """Forgets a box; none of it is fine."""
        with suppress(FileNotFoundError):
            self._path(box).unlink()

    def _path(self, box: BoxId) -> Path:
        return self._directory / f"{box}.json"


def _plain(record: Record) -> dict[str, Any]:
    box = record.box
    return {
        "id": box.id,
        "principal": box.principal,
        "name": box.name,
        "created": box.created,
        "spec": box.spec.record(),
        "terms": box.terms.record(),
        "conversations": list(record.conversations),
    }


def _read(path: Path) -> Record | None:
    try:
        return _record(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _record(told: Mapping[str, Any]) -> Record:
    """It is said to run and to have come to that long ago: all who know better are believed."""
    box = Box(
        id=BoxId(told["id"]),
        spec=BoxSpec.of(told["spec"]),
        created=float(told["created"]),
        state=State.RUNNING,
        principal=Principal(told["principal"]),
        name=BoxName(told["name"]) if told["name"] is not None else None,
        used=float(told["created"]),
        reason=REBUILT,
        terms=Terms.of(told["terms"]),
    )
    return Record(box, tuple(map(str, told["conversations"])))
