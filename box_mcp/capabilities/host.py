"""Transfers between the user's machine and a box, with what both sides left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from anyio import to_thread

from box_mcp.boxd import parcel
from box_mcp.capabilities.crossing import OnProgress
from box_mcp.capabilities.hostroots import Place
from box_mcp.capabilities.hostsink import landing
from box_mcp.capabilities.hostsource import HostSource
from box_mcp.capabilities.leftout import LeftOut
from box_mcp.capabilities.transfer import Moved, Survey, Transfers
from box_mcp.domain.paths import shown
from box_mcp.errors import HostForbidden

MAX_ENTRIES = 250_000  # of one download
SPARED = 256 * 1024**2  # bytes that a download leaves free on the user's disk


@dataclass(frozen=True)
class Carried:
    """What went over, and what the user's machine did not give or take."""

    moved: Moved
    left_out: LeftOut


async def prepare(place: Place, *, gitignore: bool) -> HostSource:
    """What an upload of `place` will send; raises HostForbidden and HostFailed."""
    look = partial(HostSource, place, gitignore=gitignore)
    return await to_thread.run_sync(look, abandon_on_cancel=True)


async def send(
    source: HostSource,
    transfers: Transfers,
    destination: str,
    *,
    overwrite: bool,
    on_progress: OnProgress,
) -> Carried:
    """Makes `destination` in the box what the source is; raises what both sides raise."""
    moved = await transfers.upload(
        source, destination, overwrite=overwrite, on_progress=on_progress
    )
    return Carried(moved, source.left_out)


async def fetch(
    transfers: Transfers,
    path: str,
    found: Survey,
    place: Place,
    *,
    overwrite: bool,
    gitignore: bool,
    on_progress: OnProgress,
) -> Carried:
    """Brings what a survey found at `path` to `place`: all of it, or nothing is changed there."""
    async with landing(place, overwrite=overwrite) as sink:
        room = max(sink.room - SPARED, 0)
        if found.bytes > room:
            raise too_much(place, room)
        try:
            moved = await transfers.download(
                path,
                sink,
                gitignore=gitignore,
                found=found,
                max_bytes=room,
                max_entries=MAX_ENTRIES,
                on_progress=on_progress,
            )
        except parcel.TooMuch:
            raise too_much(place, room) from None
        await to_thread.run_sync(sink.commit)
        made = moved.links - len(sink.left_out)  # nothing but links is left out there
        return Carried(replace(moved, links=made), sink.left_out)


def too_much(place: Place, room: int) -> HostForbidden:
    """More comes than the user's machine takes."""
    return HostForbidden(
        shown(str(place.path)),
        f"it is more than {MAX_ENTRIES:,} files, or has far too long names, or is more than the "
        f"{room / 1024**2:,.0f} MiB that the user's disk can spare",
        "Download the parts that you need, or one archive",
    )
