"""An inventory in words, and as plain values for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from box_mcp.domain.box import State
from box_mcp.domain.names import Principal
from box_mcp.domain.runs import Usage
from box_mcp.inventory import Held, HeldImage, Inventory, Leftover

KIB = 1024.0
UNITS = ("KiB", "MiB", "GiB", "TiB")
BOX_HEAD = ("BOX", "NAME", "PRINCIPAL", "STATE", "SINCE", "IMAGE", "MEMORY", "DISK", "NEXT")
SNAPSHOT_HEAD = ("SNAPSHOT", "PRINCIPAL", "OF BOX", "CREATED", "DISK", "USED BY")
LEFTOVER_HEAD = ("LEFT OVER", "NAME", "MEMORY", "DISK", "WHY")
USAGE_HEAD = ("DAY", "PRINCIPAL", "MODEL", "ANSWERS", "READ", "FROM CACHE", "WRITTEN", "COST")
SPARE = "(spare)"
UNNAMED = "(of a fork)"


def in_words(inventory: Inventory) -> str:
    """Tables for people, with the sums of what they hold."""
    parts: list[str] = []
    if inventory.boxes:
        parts.append(table([BOX_HEAD, *map(_box_row, inventory.boxes)]))
    elif not inventory.troubles:
        parts.append("There are no boxes.")
    if inventory.images:
        parts.append(table([SNAPSHOT_HEAD, *map(_snapshot_row, inventory.images)]))
    if lines := [*_sums(inventory), *inventory.notes, *_hints(inventory)]:
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def leftovers_in_words(leftovers: Sequence[Leftover]) -> str:
    """A table for people."""
    rows = [
        (one.kind.value, one.name, size(one.memory), size(one.disk), one.why) for one in leftovers
    ]
    return table([LEFTOVER_HEAD, *rows])


def usage_in_words(uses: Iterable[tuple[Principal, str, Usage]]) -> str:
    """A table for people, of tokens and US dollars."""
    rows = [
        (
            *(day, principal, use.model, f"{use.answers:,}"),
            f"{use.tokens.input + use.tokens.cache_write:,}",
            *(f"{use.tokens.cache_read:,}", f"{use.tokens.output:,}"),
            "no price" if use.cost is None else f"${use.cost:,.2f}",
        )
        for principal, day, use in uses
    ]
    return table([USAGE_HEAD, *rows]) if rows else "Boxes have asked nothing of models."


def strangers_in_words(inventory: Inventory) -> Iterator[str]:
    """What else is on the engine, and how it is got at."""
    if inventory.strangers:
        owners = sorted(inventory.strangers.items())
        told = ", ".join(f"{count} of {owner or 'nobody'}" for owner, count in owners)
        yield (
            "Boxes of other state directories on this engine, by their label box_mcp.owner: "
            f"{told}. `--state-dir DIR` is about those of DIR."
        )


def freed(leftovers: Sequence[Leftover]) -> str:
    """What their removal gave back."""
    disk, memory = _total(one.disk for one in leftovers), _total(one.memory for one in leftovers)
    told = " and ".join(
        f"{size(n)} of {what}" for n, what in ((disk, "disk"), (memory, "memory")) if n
    )
    return f"Deleted {len(leftovers)}" + (f", which frees {told}." if told else ".")


def as_json(inventory: Inventory) -> dict[str, Any]:
    """Plain values; sizes in bytes, times in UTC, null for what can't be told."""
    return {
        "boxes": [_box_json(held) for held in inventory.boxes],
        "snapshots": [_snapshot_json(held) for held in inventory.images],
        "leftovers": [_leftover_json(leftover) for leftover in inventory.leftovers],
        "servers": inventory.servers,
        "other_owners": dict(inventory.strangers),
        "notes": list(inventory.notes),
        "troubles": [error.explain() for error in inventory.troubles],
    }


def size(count: int | None) -> str:
    """Bytes for people; a dash where nobody knows."""
    if count is None:
        return "-"
    value, unit = count / KIB, UNITS[0]
    for unit in UNITS:  # noqa: B007 - the one that fits is used
        if value < KIB:
            break
        value /= KIB
    return f"{value:.0f} {unit}" if unit == UNITS[0] else f"{value:.1f} {unit}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _box_row(held: Held) -> tuple[str, ...]:
    box = held.box
    coming = held.next if held.next_at is None else f"{held.next} {_local(held.next_at)}"
    return (
        box.id,
        box.name or "-",
        box.principal or SPARE,
        box.state,
        _local(box.since) if box.since else "-",
        _image(box.spec.image),
        size(held.memory),
        size(held.disk),
        coming,
    )


def _snapshot_row(held: HeldImage) -> tuple[str, ...]:
    snapshot = held.snapshot
    return (
        snapshot.name or UNNAMED,
        snapshot.principal,
        snapshot.origin,
        _local(snapshot.created),
        size(held.added),
        f"{held.users} box{'' if held.users == 1 else 'es'}",
    )


def _sums(inventory: Inventory) -> Iterator[str]:
    if not inventory.boxes and not inventory.images:
        return
    if inventory.troubles:
        return
    memory = _total(held.memory for held in inventory.boxes)
    disk = _total(held.disk for held in inventory.boxes)
    disk += _total(held.added for held in inventory.images)
    servers = inventory.servers
    yield (
        f"They hold {size(memory)} of memory and {size(disk)} of disk beside their images; "
        f"{servers or 'no'} server{'' if servers == 1 else 's'} run{'s' if servers == 1 else ''}."
    )


def _hints(inventory: Inventory) -> Iterator[str]:
    if count := len(inventory.leftovers):
        disk = size(_total(one.disk for one in inventory.leftovers))
        yield f"Left over: {count}, {disk} of disk. `box-mcp prune` shows and deletes them."
    yield from strangers_in_words(inventory)


def _box_json(held: Held) -> dict[str, Any]:
    box = held.box
    return {
        "id": box.id,
        "name": box.name,
        "principal": box.principal,
        "spare": box.principal is None,
        "state": box.state.public,
        "depth": box.state.value if box.state in (State.FROZEN, State.STOPPED) else None,
        "since": _utc(box.since),
        "reason": box.reason,
        "image": box.spec.image,
        "size": box.spec.size,
        "created": _utc(box.created),
        "used": _utc(box.used),
        "in_use": held.in_use,
        "labels": dict(box.terms.labels),
        "memory": held.memory,
        "disk": held.disk,
        "next": held.next,
        "next_at": _utc(held.next_at),
    }


def _snapshot_json(held: HeldImage) -> dict[str, Any]:
    snapshot = held.snapshot
    return {
        "name": snapshot.name,
        "principal": snapshot.principal,
        "origin": snapshot.origin,
        "created": _utc(snapshot.created),
        "size": held.size,
        "added": held.added,
        "boxes": held.users,
    }


def _leftover_json(leftover: Leftover) -> Mapping[str, Any]:
    shown = ("kind", "name", "why", "memory", "disk")
    return {name: getattr(leftover, name) for name in shown}


def _total(sizes: Iterable[int | None]) -> int:
    return sum(one or 0 for one in sizes)


def _image(name: str) -> str:
    """An image as a column shows it: those without a name have long ids."""
    short = name.removeprefix("sha256:")[:12] if name.startswith("sha256:") else name
    repository, _, tag = short.rpartition(":")
    return f"{repository}:…{tag[-8:]}" if repository == "box-mcp-snapshot" else short


def _local(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def _utc(moment: float | None) -> str | None:
    """None also for zero: it was never so."""
    if not moment:
        return None
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
