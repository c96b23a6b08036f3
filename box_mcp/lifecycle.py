"""What a user may ask of boxes: make, find, list, pause, resume, delete. Whose they are counts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import anyio

from box_mcp.domain.box import Box, BoxSpec, State
from box_mcp.domain.names import BoxId, Principal, is_id, parse_name
from box_mcp.domain.plan import Act
from box_mcp.errors import BoxNotFound, InvalidArgument, InvalidName
from box_mcp.pool import Claim, Pool
from box_mcp.store import Store


@dataclass(frozen=True)
class Caller:
    """Who is calling, and in which conversation; see DESIGN's "which box does a call mean"."""

    principal: Principal
    conversation: str


@dataclass(frozen=True)
class Report:
    """A box, its present and its near future; times in seconds since the epoch."""

    box: Box
    busy: bool
    next_act: Act | None
    next_at: float | None


class Lifecycle:
    """The users' side of the pool. `sizes` maps a size to cores and bytes of memory."""

    def __init__(
        self, pool: Pool, store: Store, default: BoxSpec, sizes: Mapping[str, tuple[float, int]]
    ) -> None:
        self._pool = pool
        self._store = store
        self._default = default
        self._sizes = sizes
        self._own: dict[Caller, BoxId] = {}
        self._making: dict[Caller, anyio.Lock] = {}

    async def create(
        self,
        caller: Caller,
        name: str | None,
        image: str | None = None,
        size: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Report:
        """A new running box.

        Raises InvalidName, NameTaken, LimitReached, InvalidArgument and what
        `Pool.claim` raises; a box that can't start leaves nothing behind.
        """
        spec = self._spec(image, size, env or {})
        box = await self._pool.create(caller.principal, parse_name(name) if name else None, spec)
        await self._pool.wake(box.id, caller.principal)
        return await self._report(box.id, caller)

    @asynccontextmanager
    async def open(self, caller: Caller, ref: str | None) -> AsyncGenerator[Claim, None]:
        """Holds the box that `ref` names, or the conversation's own, made when there is none."""
        if ref is not None:
            box, news = await self.find(caller, ref), ""
        else:
            box, news = await self._own_box(caller)
        async with self._pool.claim(box, caller.principal) as claim:
            yield replace(claim, news="\n".join(filter(None, (news, claim.news))))

    async def find(self, caller: Caller, ref: str) -> BoxId:
        """The id that `ref`, an id or a name, means to this caller; raises BoxNotFound."""
        if is_id(ref):
            return (await self._pool.box(BoxId(ref), caller.principal)).id
        try:
            name = parse_name(ref)
        except InvalidName:
            raise BoxNotFound(ref) from None
        for box in await self._pool.boxes(caller.principal):
            if box.name == name:
                return box.id
        raise BoxNotFound(ref)

    async def list(self, caller: Caller) -> list[Report]:
        """All boxes of the caller, oldest first."""
        return [self._reported(box) for box in await self._pool.boxes(caller.principal)]

    async def info(self, caller: Caller, ref: str | None) -> Report:
        """One box, which is not woken for it."""
        box = await self._meant(caller, ref)
        return self._reported(await self._pool.box(box, caller.principal, fresh=True))

    async def pause(self, caller: Caller, ref: str | None, act: Act) -> Report:
        """Freezes or stops a box; raises IllegalMove when it is paused so already, or in use."""
        box = await self._pool.act(await self._meant(caller, ref), caller.principal, act)
        return self._reported(box)

    async def resume(self, caller: Caller, ref: str | None) -> Report:
        """Wakes a box; one that runs is left as it is."""
        box = await self._meant(caller, ref)
        await self._pool.wake(box, caller.principal)
        return await self._report(box, caller)

    async def delete(self, caller: Caller, ref: str) -> Box:
        """Deletes a box with its files, whatever runs in it."""
        return await self._pool.act(await self.find(caller, ref), caller.principal, Act.DELETE)

    async def leftovers(self) -> dict[BoxId, str]:
        """What dead servers left behind, of whatever principal, and why it is of no use."""
        return await self._pool.leftovers()

    async def clear(self, box: BoxId) -> None:
        """Deletes one of the `leftovers`."""
        await self._pool.clear(box)

    async def _meant(self, caller: Caller, ref: str | None) -> BoxId:
        if ref is not None:
            return await self.find(caller, ref)
        own = await self._known_own_box(caller)
        if own is None:
            raise BoxNotFound("(this session's own: it has made none yet)")
        return own

    async def _own_box(self, caller: Caller) -> tuple[BoxId, str]:
        """The conversation's own box, made if need be; and news of it when it was."""
        async with self._making.setdefault(caller, anyio.Lock()):
            if (own := await self._known_own_box(caller)) is not None:
                return own, ""
            with anyio.CancelScope(shield=True):  # no box without a conversation that knows it
                await self._make_own_box(caller)
            own = self._own[caller]
            return own, f"[made the box {own} for this session; calls without `box` use it]"

    async def _make_own_box(self, caller: Caller) -> None:
        box = await self._pool.create(caller.principal, None, self._default)
        self._own[caller] = box.id
        await self._store.set_own_box(caller.principal, caller.conversation, box.id)

    async def _known_own_box(self, caller: Caller) -> BoxId | None:
        """The conversation's own box, unless it is lost or deleted."""
        if (own := self._own.get(caller)) is not None and await self._usable(own, caller):
            return own
        own = await self._store.own_box(caller.principal, caller.conversation)
        if own is None or not await self._usable(own, caller):
            self._own.pop(caller, None)
            return None
        self._own[caller] = own
        return own

    async def _usable(self, box: BoxId, caller: Caller) -> bool:
        try:
            return (await self._pool.box(box, caller.principal)).state is not State.LOST
        except BoxNotFound:
            return False

    async def _report(self, box: BoxId, caller: Caller) -> Report:
        return self._reported(await self._pool.box(box, caller.principal))

    def _reported(self, box: Box) -> Report:
        busy, step = self._pool.outlook(box)
        return Report(box, busy, step[1] if step else None, step[0] if step else None)

    def _spec(self, image: str | None, size: str | None, env: Mapping[str, str]) -> BoxSpec:
        if size is not None and size not in self._sizes:
            raise InvalidArgument("size", f"is none of {', '.join(self._sizes)}")
        for name in env:
            if not name or "=" in name or "\0" in name + env[name]:
                raise InvalidArgument("env", f"has {name!r}, which can't be a variable")
        spec = self._default
        if size is not None:
            cpus, memory = self._sizes[size]
            spec = replace(spec, size=size, cpus=cpus, memory=memory)
        return replace(spec, image=image or spec.image, env={**spec.env, **env})


PAUSES = {"frozen": Act.FREEZE, "stopped": Act.STOP}


def pause_act(depth: str) -> Act:
    """The act for a depth of pause; raises InvalidArgument."""
    if depth not in PAUSES:
        raise InvalidArgument("depth", f"is none of {', '.join(PAUSES)}")
    return PAUSES[depth]
