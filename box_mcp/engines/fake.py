"""An engine in memory, for tests of everything above the door; its boxes speak the real wire.

It passes the contract suite as far as it declares in `abilities`: a box keeps files, freezes,
stops and starts again, but runs no command and has no network.
"""

from __future__ import annotations

import hashlib
import posixpath
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

import anyio

from box_mcp.boxd import wire
from box_mcp.domain.box import BoxSpec
from box_mcp.domain.names import BoxId
from box_mcp.domain.network import Mode
from box_mcp.domain.paths import WORKSPACE
from box_mcp.engines.base import (
    Abilities,
    Change,
    ChangeKind,
    Condition,
    Found,
    Pipe,
    Saved,
    Usage,
)
from box_mcp.engines.isolation import LABEL
from box_mcp.errors import EngineRefused, ImageMissing, ImageUnusable

FAKE_MEMORY = 15 * 2**20  # bytes; as boxd has
DEFAULT_IMAGES = {"box-mcp:base": True, "box-mcp:agent": True}


@dataclass
class FakeBox:
    """One box; tests may look at it and change it behind everybody's back."""

    id: BoxId
    spec: BoxSpec
    condition: Condition = Condition.CREATED
    detail: str = ""
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    boot: str = ""
    busy: bool = False
    attached: bool = True
    lines: list[FakeLine] = field(default_factory=list["FakeLine"])

    def end(self, detail: str) -> None:
        """All processes end, boxd with them; files stay."""
        self.condition, self.detail, self.busy = Condition.STOPPED, detail, False
        for line in self.lines:
            line.hang_up()
        self.lines.clear()

    def set_busy(self, busy: bool) -> None:
        """A command starts or ends in the box, and boxd says so to every server."""
        self.busy = busy
        for line in self.lines:
            line.tell(wire.pack_object(wire.NOTE, 0, {"busy": busy}))

    def flush(self) -> None:
        """After a thaw: what was said to the frozen box is heard now."""
        for line in self.lines:
            line.serve()


@dataclass(frozen=True)
class FakeImage:
    """What a box was saved to."""

    saved: Saved
    base: str
    files: Mapping[str, bytes]


class FakeEngine:
    """An Engine. `images` maps each image that it has to whether that can run boxd."""

    abilities = Abilities(runs_commands=False, isolates_networks=False, opens_pipes=False)

    def __init__(self, images: Mapping[str, bool] | None = None) -> None:
        self.images = dict(DEFAULT_IMAGES if images is None else images)
        self.boxes: dict[BoxId, FakeBox] = {}
        self.saves: dict[str, FakeImage] = {}
        self.prepared: set[BoxId] = set()
        self.free = 10**12
        self.line_type: type[FakeLine] = FakeLine

    def __repr__(self) -> str:
        return f"<FakeEngine {[(box.id, box.condition.value) for box in self.boxes.values()]}>"

    async def at_door(self, _operation: str, _box: BoxId) -> None:
        """Every call that concerns a box passes here first; engines with a fault override it."""
        await anyio.lowlevel.checkpoint()

    async def prepare(self, box: BoxId) -> None:
        """Remembers that it was asked for."""
        await self.at_door("prepare", box)
        self.prepared.add(box)

    async def create(self, box: BoxId, spec: BoxSpec) -> None:
        """Remembers the box."""
        await self.at_door("create", box)
        if spec.image not in self.images and spec.image not in self.saves:
            raise ImageMissing(spec.image)
        if box in self.boxes:
            raise EngineRefused("create a box", f"{box} exists")
        self.prepared.discard(box)
        made = FakeBox(box, spec, files=dict(self._files_of(spec.image)))
        made.attached = spec.network.mode is Mode.FULL
        self.boxes[box] = made

    async def start(self, box: BoxId) -> None:
        """Gives it a new boxd, unless one runs."""
        found = await self._known(box, "start")
        if not self.images.get(self._base(found.spec.image), True):
            raise ImageUnusable(found.spec.image, "it has no python3 on its PATH")
        if found.condition is Condition.FROZEN:
            raise EngineRefused("start a box", f"{box} is frozen")
        if found.condition is not Condition.RUNNING:
            found.condition, found.detail, found.boot = Condition.RUNNING, "", token_hex(8)

    async def freeze(self, box: BoxId) -> None:
        """From now on its boxd answers nobody."""
        found = await self._known(box, "freeze")
        if found.condition not in (Condition.RUNNING, Condition.FROZEN):
            raise EngineRefused("freeze a box", f"{box} is not running")
        found.condition = Condition.FROZEN

    async def thaw(self, box: BoxId) -> None:
        """Its boxd answers what came meanwhile."""
        found = await self._known(box, "thaw")
        if found.condition not in (Condition.RUNNING, Condition.FROZEN):
            raise EngineRefused("thaw a box", f"{box} is not running")
        found.condition = Condition.RUNNING
        found.flush()

    async def stop(self, box: BoxId) -> None:
        """Ends boxd and every connection to it."""
        found = await self._known(box, "stop")
        if found.condition in (Condition.RUNNING, Condition.FROZEN):
            found.end("stopped")

    async def delete(self, box: BoxId) -> None:
        """Forgets the box."""
        await self.at_door("delete", box)
        self.prepared.discard(box)
        if (found := self.boxes.pop(box, None)) is not None:
            found.end("deleted")
            if found.spec.image.startswith("sha256:"):
                self._drop_unused(found.spec.image)

    async def inspect(self, box: BoxId) -> Found:
        """How it is."""
        await self.at_door("look at", box)
        found = self.boxes.get(box)
        if found is None:
            return Found(box, Condition.ABSENT, "the engine has no such box")
        return Found(box, found.condition, found.detail, {LABEL: box})

    async def list(self) -> Sequence[Found]:
        """All of them, and what was made ahead for boxes to come."""
        boxes = [await self.inspect(box) for box in list(self.boxes)]
        return [*boxes, *(Found(box, Condition.ABSENT) for box in self.prepared)]

    async def attach(self, box: BoxId, *, attached: bool) -> None:
        """Remembers it."""
        (await self._known(box, "change the network of")).attached = attached

    async def keep(self) -> None:
        """There is nothing that could go wrong."""
        await anyio.lowlevel.checkpoint()

    async def save(self, box: BoxId, tag: str | None, labels: Mapping[str, str]) -> Saved:
        """Copies its files."""
        found = await self._known(box, "save")
        image = f"box-mcp-snapshot:{tag}" if tag else f"sha256:{token_hex(32)}"
        base = self._files_of(found.spec.image)
        added = sum(len(data) for path, data in found.files.items() if base.get(path) != data)
        size = sum(map(len, found.files.values()))
        saved = Saved(image, dict(labels), size, added, time.time())
        self.saves[image] = FakeImage(saved, self._base(found.spec.image), dict(found.files))
        return saved

    async def saved(self) -> Sequence[Saved]:
        """All of them."""
        await anyio.lowlevel.checkpoint()
        return [image.saved for image in self.saves.values()]

    async def labels(self, image: str) -> Mapping[str, str] | None:
        """As it was saved."""
        await anyio.lowlevel.checkpoint()
        if image in self.saves:
            return self.saves[image].saved.labels
        if image not in self.images:
            raise ImageMissing(image)
        return None

    async def drop(self, image: str) -> None:
        """Forgets it; boxes have copies."""
        await anyio.lowlevel.checkpoint()
        if image in self.images:
            raise EngineRefused("delete a snapshot", f"{image} is none")
        if image.startswith("sha256:"):
            self._drop_unused(image)
        else:
            self.saves.pop(image, None)

    async def changes(self, box: BoxId) -> Sequence[Change]:
        """Its files beside those of its image."""
        found = await self._known(box, "look at")
        before = self._files_of(found.spec.image)
        changes = [Change(path, ChangeKind.DELETED) for path in before if path not in found.files]
        for path, data in found.files.items():
            if path not in before:
                changes.append(Change(path, ChangeKind.ADDED))
            elif before[path] != data:
                changes.append(Change(path, ChangeKind.CHANGED))
        return sorted(changes, key=lambda change: change.path)

    async def usage(self, box: BoxId) -> Usage:
        """A fixed figure for what runs, and the size of its files."""
        found = await self._known(box, "look at")
        holds = found.condition in (Condition.RUNNING, Condition.FROZEN)
        size = sum(map(len, found.files.values()))
        return Usage(FAKE_MEMORY if holds else 0, size, len(found.files))

    async def free_disk(self) -> int | None:
        """As a test says."""
        await anyio.lowlevel.checkpoint()
        return self.free

    async def free_files(self) -> int | None:
        """Nothing bounds them."""
        await anyio.lowlevel.checkpoint()
        return None

    def _files_of(self, image: str) -> Mapping[str, bytes]:
        return self.saves[image].files if image in self.saves else {}

    def _base(self, image: str) -> str:
        return self.saves[image].base if image in self.saves else image

    def _drop_unused(self, image: str) -> None:
        if not any(box.spec.image == image for box in self.boxes.values()):
            self.saves.pop(image, None)

    async def last_words(self, box: BoxId) -> str:
        """A fake boxd dies without a word."""
        await self._known(box, "read the log of")
        return ""

    async def open_channel(self, box: BoxId) -> FakeLine:
        """A line to its boxd."""
        found = await self._known(box, "connect to")
        if found.condition is not Condition.RUNNING:
            raise EngineRefused("connect to a box", f"{box} is {found.condition}")
        line = self.line_type(found)
        found.lines.append(line)
        return line

    async def open_pipe(self, box: BoxId, token: str) -> Pipe:  # noqa: ARG002 - nobody waits for it
        """A fake boxd packs and unpacks nothing."""
        await self._known(box, "connect to")
        raise EngineRefused("connect to a box", "a fake box has no pipes")

    async def aclose(self) -> None:
        """Boxes stay as they are."""
        await anyio.lowlevel.checkpoint()

    async def _known(self, box: BoxId, operation: str) -> FakeBox:
        await self.at_door(operation, box)
        if box not in self.boxes:
            raise EngineRefused(f"{operation} a box", f"there is no {box}")
        return self.boxes[box]


class FakeLine:
    """One byte stream to one boxd. What is sent is served at once, unless the box is frozen."""

    def __init__(self, box: FakeBox) -> None:
        self._box = box
        self._decoder = wire.Decoder(wire.FROM_SERVER)
        self._unheard = b""
        self._said = bytearray()
        self._hung_up = False
        self._closed = False
        self._news = anyio.Event()
        self._writes: dict[int, tuple[str, bytearray]] = {}

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """What boxd said."""
        await anyio.lowlevel.checkpoint()
        while not self._said:
            if self._closed:
                raise anyio.ClosedResourceError
            if self._hung_up:
                raise anyio.EndOfStream
            self._news = anyio.Event()
            await self._news.wait()
        data = bytes(self._said[:max_bytes])
        del self._said[:max_bytes]
        return data

    async def send(self, item: bytes) -> None:
        """Says `item` to boxd."""
        await anyio.lowlevel.checkpoint()
        if self._closed:
            raise anyio.ClosedResourceError
        if self._hung_up:
            raise anyio.BrokenResourceError
        self._unheard += item
        self.serve()

    async def aclose(self) -> None:
        """The end of the line, for boxd too."""
        await anyio.lowlevel.checkpoint()
        self._closed = True
        if self in self._box.lines:
            self._box.lines.remove(self)
        self._news.set()

    def tell(self, data: bytes) -> None:
        """Lets boxd say `data`."""
        self._said += data
        self._news.set()

    def hang_up(self) -> None:
        """Ends the line from within: its boxd is gone."""
        self._hung_up = True
        self._news.set()

    def serve(self) -> None:
        """Answers all that was said, if the box can."""
        if self._box.condition is not Condition.RUNNING:
            return
        heard, self._unheard = self._unheard, b""
        for frame in self._decoder.feed(heard):
            if frame.kind == wire.HELLO:
                self.tell(wire.pack_object(wire.HELLO, 0, self._hello()))
            elif frame.kind == wire.OPEN:
                self._open(frame.stream, frame.object())
            elif frame.stream in self._writes:
                self._go_on_writing(frame)

    def _hello(self) -> dict[str, Any]:
        box = self._box
        return {
            "version": wire.VERSION,
            "boot": box.boot,
            "user": "box",
            "workspace": WORKSPACE,
            "busy": box.busy,
        }

    def _open(self, stream: int, request: dict[str, Any]) -> None:
        answers: dict[str, Callable[[int, dict[str, Any]], None]] = {
            "processes": lambda stream, _: self._end(stream, {"runs": [], "total": 0}),
            "stat": self._stat,
            "read": self._read,
            "write": self._start_writing,
        }
        answer = answers.get(str(request["op"]))
        if answer is None:
            self._fail(stream, "invalid", f"a fake box can't {request['op']}")
        else:
            answer(stream, request)

    def _stat(self, stream: int, request: dict[str, Any]) -> None:
        path = _absolute(request)
        if path == "/":
            self._end(stream, {"kind": "directory", "size": 0, "mode": 0o755, "modified": 0.0})
        elif path in self._box.files:
            self._end(stream, self._facts(path))
        else:
            self._fail(stream, "not_found", f"{path}: no such file or directory")

    def _read(self, stream: int, request: dict[str, Any]) -> None:
        path = _absolute(request)
        if path not in self._box.files:
            return self._fail(stream, "not_found", f"{path}: no such file or directory")
        lines = self._box.files[path].splitlines(keepends=True)[request["first_line"] - 1 :]
        taken = lines[: request["max_lines"]]
        self.tell(wire.pack_data(stream, b"".join(taken)))
        seen = {"text": True, "first_line": request.get("first_line", 1), "lines": len(taken)}
        known = {"encoding": "utf-8", "bom": False, "crlf": False, "media": None}
        more = {"total": None, "more": len(lines) > len(taken)}
        self._end(stream, {**self._facts(path), **seen, **known, **more})

    def _start_writing(self, stream: int, request: dict[str, Any]) -> None:
        self._writes[stream] = (_absolute(request), bytearray())

    def _go_on_writing(self, frame: wire.Frame) -> None:
        path, content = self._writes[frame.stream]
        if frame.kind == wire.DATA:
            content += frame.payload
            self.tell(wire.pack_credit(frame.stream, len(frame.payload)))
            return
        del self._writes[frame.stream]
        if frame.kind == wire.CANCEL:
            return self._fail(frame.stream, "cancelled", "the request was cancelled")
        created = path not in self._box.files
        self._box.files[path] = bytes(content)
        self._end(frame.stream, {**self._facts(path), "created": created})

    def _facts(self, path: str) -> dict[str, Any]:
        content = self._box.files[path]
        version = hashlib.sha256(content).hexdigest()[:12]
        found = {"kind": "file", "size": len(content), "mode": 0o644, "modified": 0.0}
        return {**found, "version": version}

    def _end(self, stream: int, result: dict[str, Any]) -> None:
        self.tell(wire.pack_object(wire.END, stream, result))

    def _fail(self, stream: int, code: str, message: str) -> None:
        self.tell(wire.pack_object(wire.FAIL, stream, {"code": code, "message": message}))


def _absolute(request: dict[str, Any]) -> str:
    return posixpath.normpath(posixpath.join(WORKSPACE, str(request["path"])))
