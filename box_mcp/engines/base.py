"""What box_mcp asks of a container engine; nothing here is Docker's own.

An engine knows boxes by their id alone. It says what it can't do in `Abilities`, and the contract
suite in tests/engines holds each engine to what it declares.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import IO, Protocol

from box_mcp.domain.box import BoxSpec
from box_mcp.domain.names import BoxId


class Condition(StrEnum):
    """How the engine finds a box."""

    ABSENT = "absent"
    CREATED = "created"
    RUNNING = "running"
    FROZEN = "frozen"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Found:
    """A box as the engine sees it. `detail` is the engine's word on why it is so."""

    box: BoxId
    condition: Condition
    detail: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Saved:
    """An image that a box was saved to. `image` is what a BoxSpec takes.

    `size` is in bytes and counts all that it consists of, `added` what would be there no more
    without it, and without the copies of no name that it stands on. `created` is in seconds since
    the epoch.
    """

    image: str
    labels: Mapping[str, str]
    size: int
    added: int
    created: float


class ChangeKind(StrEnum):
    """What became of a path."""

    ADDED = "added"
    CHANGED = "changed"
    DELETED = "deleted"


@dataclass(frozen=True)
class Change:
    """A path in a box that is not as its image had it."""

    path: str
    kind: ChangeKind


@dataclass(frozen=True)
class Usage:
    """What a box holds now, in bytes: memory that can't be given back, and files of its own.

    And how many files these are. None for what the engine can't tell.
    """

    memory: int | None
    disk: int | None
    files: int | None = None


@dataclass(frozen=True)
class Abilities:
    """What an engine declares of itself."""

    runs_commands: bool
    """A channel leads to a real boxd; else to something that answers `status` and files only."""
    isolates_networks: bool
    opens_pipes: bool
    """`open_pipe` works; else it refuses, and much has to go through channels as well."""


class ByteStream(Protocol):
    """A duplex byte stream, such as anyio's."""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Some bytes; raises anyio.EndOfStream at the end and anyio's resource errors after."""
        ...

    async def send(self, item: bytes) -> None:
        """Sends all of `item`."""
        ...

    async def aclose(self) -> None:
        """Closes both directions."""
        ...


class PipeClosed(Exception):
    """A pipe's other end is gone, or this one was given up."""


class Pipe(Protocol):
    """A duplex byte stream for much: its methods block, and are for one thread, but `abort`.

    They raise PipeClosed. Whoever opens one sends first.
    """

    @property
    def waiting_since(self) -> float | None:
        """Since when (on the monotonic clock) the other end lets a method wait, if it does."""
        ...

    def send(self, data: bytes | bytearray | memoryview, /) -> None:
        """Sends all of `data`."""
        ...

    def send_file(self, file: IO[bytes], count: int, /) -> int:
        """Sends `count` bytes of a file from where it stands; how many it had, if fewer."""
        ...

    def receive(self, take: Callable[[memoryview], None], /) -> bool:
        """Calls `take` with what came; False at the end.

        It is good until `take` returns. What `take` raises comes out.
        """
        ...

    def abort(self) -> None:
        """Wakes whoever is in one of the others, with PipeClosed; from any thread."""
        ...

    def close(self) -> None:
        """Lets go of it, when no other method runs any more; twice is fine."""
        ...


OpenPipe = Callable[[str], Awaitable[Pipe]]
"""`Engine.open_pipe` to a box that is known."""


class Engine(Protocol):
    """The door. Every method raises EngineUnreachable, EngineRefused or EngineStalled.

    All are safe to repeat: starting what runs, freezing what is frozen, deleting what is gone
    succeed and change nothing. A cancelled call may or may not have taken effect.
    """

    @property
    def abilities(self) -> Abilities:
        """What this engine can do."""
        ...

    async def prepare(self, box: BoxId) -> None:
        """Makes ahead of `create` what takes long and needs no spec; `delete` undoes it."""
        ...

    async def create(self, box: BoxId, spec: BoxSpec) -> None:
        """Makes the box with its own network, not started; raises ImageMissing."""
        ...

    async def start(self, box: BoxId) -> None:
        """Starts it; raises ImageUnusable when its image can't run boxd."""
        ...

    async def freeze(self, box: BoxId) -> None:
        """Stops its processes where they are."""
        ...

    async def thaw(self, box: BoxId) -> None:
        """Lets them go on."""
        ...

    async def stop(self, box: BoxId) -> None:
        """Ends its processes, frozen or not; its files stay."""
        ...

    async def delete(self, box: BoxId) -> None:
        """Removes it with its files and its network."""
        ...

    async def inspect(self, box: BoxId) -> Found:
        """How it is; `Condition.ABSENT` when there is none."""
        ...

    async def list(self) -> Sequence[Found]:
        """All boxes of the engine's owner; of one that is only half gone, the rest as ABSENT."""
        ...

    async def attach(self, box: BoxId, *, attached: bool) -> None:
        """Joins the box, in whatever state, to its network, or cuts it off, open connections too.

        Raises EngineRefused when there is no such box.
        """
        ...

    async def keep(self) -> None:
        """Puts right what should hold for all boxes; cheap to repeat. What can't be is logged."""
        ...

    async def save(self, box: BoxId, tag: str | None, labels: Mapping[str, str]) -> Saved:
        """Copies the files of the box, in whatever state, to an image; its processes wait for it.

        Boxes made from it have them, and all that the box's own image had. With a `tag`, it takes
        the place of an earlier one of the same; without, it goes with the last box made of it.
        """
        ...

    async def saved(self) -> Sequence[Saved]:
        """All images that `save` made for the engine's owner."""
        ...

    async def labels(self, image: str) -> Mapping[str, str] | None:
        """What `save` wrote on an image, by whatever name it is asked for; None for any other.

        Raises ImageMissing.
        """
        ...

    async def drop(self, image: str) -> None:
        """Removes such an image; boxes made from it go on. Refuses any other."""
        ...

    async def changes(self, box: BoxId) -> Sequence[Change]:
        """What differs from the box's image, by path; not what is boxd's."""
        ...

    async def usage(self, box: BoxId) -> Usage:
        """What the box holds now."""
        ...

    async def free_disk(self) -> int | None:
        """Bytes that are free where boxes are kept; None when that can't be told from here."""
        ...

    async def free_files(self) -> int | None:
        """How many files can still be made there; None as well when nothing bounds that."""
        ...

    async def last_words(self, box: BoxId) -> str:
        """What its boxd wrote last, for a diagnosis; often empty."""
        ...

    async def open_channel(self, box: BoxId) -> ByteStream:
        """A new byte stream to the boxd of a running box."""
        ...

    async def open_pipe(self, box: BoxId, token: str) -> Pipe:
        """A pipe to the request at the boxd of a running box that waits for this token."""
        ...

    async def aclose(self) -> None:
        """Lets go of the engine; boxes stay as they are."""
        ...
