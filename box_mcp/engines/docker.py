"""The door to a Docker engine: docker-py behind worker threads, and nothing but this speaks to it.

`docker` is imported at the first call: a server answers `tools/list` before it is needed.
"""

# docker-py carries no types: what it returns is unknown here, and nowhere else.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import asyncio
import random
import re
import socket
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from anyio import to_thread

from box_mcp.domain.box import BoxSpec
from box_mcp.domain.names import BoxId, mint_id
from box_mcp.domain.network import Mode
from box_mcp.engines import isolation, saving
from box_mcp.engines.address import seen_from_here
from box_mcp.engines.authorities import Authorities
from box_mcp.engines.base import Abilities, Change, Condition, Found, Saved, Usage
from box_mcp.engines.counting import free_bytes, free_files
from box_mcp.engines.diagnosis import diagnosed
from box_mcp.engines.guard import Guard, Guarded
from box_mcp.engines.isolation import BOXD_LABEL, LABEL, OWNER_LABEL, Isolation
from box_mcp.engines.payload import boxd_archive, boxd_digest, connector_source
from box_mcp.engines.pipe import DockerPipe
from box_mcp.engines.reach import Reach, released, whole
from box_mcp.engines.saving import SAVED_LABEL
from box_mcp.engines.stream import DockerStream, keep_alive
from box_mcp.errors import (
    BoxBroken,
    EngineError,
    EngineRefused,
    GuardMissing,
    ImageMissing,
    ImageUnusable,
    first_error,
)

if TYPE_CHECKING:
    import docker
    from docker import APIClient

T = TypeVar("T")
Undo = Callable[[], object]

DOOR_WIDTH = 8  # calls to the engine at once; more only makes it slower
CALL_TIMEOUT = 60.0  # s; a commit of a large box takes longer and says so itself
SAVE_TIMEOUT = 3600.0  # s; gigabytes are written to a disk that may be slow
SUBNET_ATTEMPTS = 64  # random picks that have no route, before the range counts as full
SUBNETS_TRIED = 8192  # random picks in all: as many as a range of 16 bits has
BOX_UID = 1000  # of user ``box`` in the standard image, for boxd's directories without sudo

PROBE = "import sys; v = sys.version_info; sys.exit(v < (3, 9) and 'its Python is %d.%d' % v[:2])"
"""Exits with 0 where boxd can run."""

CONNECT = "connect to a box"
NO_NETWORK = re.compile(r"network \S+ not found")
NO_PYTHON = re.compile(r"executable file (`python3` )?not found")  # as runc and crun put it
BUSY = "unable to freeze"  # what runc says of a box that forks all the time, or of a busy machine
FREEZE_ATTEMPTS = 8  # of which each takes runc about a second
NOT_FOUND = "executable file not found"
ENDED = ("is not running", "cannot exec in a")
"""How the engine says that a container ended before, or while, a program was executed in it."""

CONDITIONS = {
    "created": Condition.CREATED,
    "running": Condition.RUNNING,
    "restarting": Condition.RUNNING,
    "paused": Condition.FROZEN,
    "exited": Condition.STOPPED,
    "dead": Condition.STOPPED,
    "removing": Condition.ABSENT,
    # Podman's
    "configured": Condition.CREATED,
    "initialized": Condition.CREATED,
    "stopping": Condition.RUNNING,
    "stopped": Condition.STOPPED,
}


@dataclass(frozen=True)
class Image:
    """What the engine says of an image; `ours` is one that `box-mcp image build` made."""

    name: str
    id: str
    user: str
    ours: bool
    counted: int
    """Bytes of it that count towards what a box's own files may take."""


class DockerEngine:
    """An Engine on a Docker daemon, found as the docker client finds it (``DOCKER_HOST``)."""

    abilities = Abilities(runs_commands=True, isolates_networks=True, opens_pipes=True)

    def __init__(self, options: Isolation | None = None, *, timeout: float = CALL_TIMEOUT) -> None:
        self._isolation = options or Isolation()
        self._timeout = timeout
        self._reach = Reach()
        self._door = anyio.CapacityLimiter(DOOR_WIDTH)
        self._proven: set[str] = set()
        self._unproven: dict[BoxId, Image] = {}
        self._prepared: set[BoxId] = set()
        self._data: str | None = None
        self._guard = Guard(self._isolation, lambda: self.api)
        self._authorities = Authorities(self._isolation.ca_certificates)
        self._has_quotas = self._isolation.disk is not None  # until it says otherwise
        self.address = self._reach.address.url

    def __repr__(self) -> str:
        return f"<DockerEngine {self.address} {self._door.borrowed_tokens} calls under way>"

    async def prepare(self, box: BoxId) -> None:
        """Makes the network, and the guard's rules if they are missing."""
        await self._call("make a network", partial(self._create_network, box, []))
        self._prepared.add(box)
        await self._call(
            "look after its firewall", partial(self._guard.make_ahead, self._bridge(box))
        )

    async def create(self, box: BoxId, spec: BoxSpec) -> None:
        """Container and network are made side by side; a container may name what comes later.

        Beside the container, too, the guard's rules are looked at, as a start needs them.
        After a failure only what was made here is removed: the id may be another box's.
        """
        made: list[Undo] = []
        network = partial(self._create_guarded_network, box, made)
        container = partial(self._create_container, box, spec, made)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._call, "make a network", network)
                group.start_soon(self._call, "create a box", container, spec.image)
        except BaseExceptionGroup as failures:
            with anyio.CancelScope(shield=True), suppress(EngineError):
                for undo in made:
                    await self._call("remove a half-made box", undo)
            raise first_error(failures) from None
        if spec.network.mode is not Mode.FULL:
            await self.attach(box, attached=False)

    async def start(self, box: BoxId) -> None:
        """Starts the container, which starts boxd."""
        await self._call("start a box", partial(self._start, box))

    async def freeze(self, box: BoxId) -> None:
        """`docker pause`."""
        await self._call("freeze a box", partial(self._freeze, box))

    async def thaw(self, box: BoxId) -> None:
        """`docker unpause`."""
        await self._call("thaw a box", partial(self._thaw, box))

    async def stop(self, box: BoxId) -> None:
        """`docker kill`: boxd has nothing to save, and a stop would wait for a time-out."""
        await self._call("stop a box", partial(self._stop, box))

    async def delete(self, box: BoxId) -> None:
        """Removes container, anonymous volumes and network."""
        await self._call("delete a box", partial(self._delete, box))

    async def inspect(self, box: BoxId) -> Found:
        """The container's state, with exit code and OOM kill in words."""
        return await self._call("look at a box", partial(self._inspect, box))

    async def list(self) -> Sequence[Found]:
        """All containers that bear our labels, and networks without one."""
        return await self._call("list boxes", self._list)

    async def attach(self, box: BoxId, *, attached: bool) -> None:
        """`docker network connect` or `disconnect`."""
        await self._call("change a box's network", partial(self._attach, box, attached))

    async def keep(self) -> None:
        """Puts the guard's rules back where somebody took them away; failures are logged."""
        await self._call("look after its firewall", self._guard.keep)

    async def guarded(self) -> Guarded:
        """How the guard's rules are, mended if need be; a network shows where they belong."""
        box = mint_id()
        try:
            await self._call("make a network", partial(self._create_network, box, []))
            look = partial(self._guard.look, self._bridge(box))
            return await self._call("look after its firewall", look)
        finally:
            with anyio.CancelScope(shield=True):
                await self.delete(box)

    async def save(self, box: BoxId, tag: str | None, labels: Mapping[str, str]) -> Saved:
        """`docker commit`; `export` and `import` when there would be too many layers."""

        def commit() -> Saved:
            return saving.save(self._api(SAVE_TIMEOUT), self._isolation.owner, box, tag, labels)

        return await self._call("save a box", commit)

    async def saved(self) -> Sequence[Saved]:
        """The images that bear our label."""
        return await self._call(
            "list snapshots", lambda: saving.saved(self.api, self._isolation.owner)
        )

    async def labels(self, image: str) -> Mapping[str, str] | None:
        """`docker image inspect`."""
        owner = self._isolation.owner
        return await self._call(
            "look at an image", lambda: saving.labels(self.api, owner, image), image
        )

    async def drop(self, image: str) -> None:
        """`docker rmi`, or another name for what boxes still need."""
        owner = self._isolation.owner
        await self._call("delete a snapshot", lambda: saving.drop(self.api, owner, image))

    async def changes(self, box: BoxId) -> Sequence[Change]:
        """`docker diff`."""
        return await self._call("compare a box", lambda: saving.changes(self.api, box))

    async def usage(self, box: BoxId) -> Usage:
        """One sample of `docker stats`, and the size of the writable layer."""
        return await self._call("measure a box", lambda: saving.usage(self.api, box, self._seen))

    async def free_disk(self) -> int | None:
        """Where the engine's data lies, if this process can see that."""
        return await self._call("find its disk", lambda: free_bytes(self._data_root()))

    async def free_files(self) -> int | None:
        """The same of inodes."""
        return await self._call("find its disk", lambda: free_files(self._data_root()))

    def _data_root(self) -> str | None:
        if self._data is None:
            self._data = str(self.api.info().get("DockerRootDir", ""))
        return self._seen(self._data)

    def _seen(self, path: str) -> str | None:
        """A file of the engine's machine, by the name that it has here."""
        return seen_from_here(self._reach.address, path)

    async def last_words(self, box: BoxId) -> str:
        """The last lines of the container's log."""
        return await self._call("read a box's log", partial(self._last_words, box))

    async def open_channel(self, box: BoxId) -> DockerStream:
        """Executes the connector and returns its stdin and stdout."""
        if hijacker := self._reach.hijacker(self._timeout):
            path = await self._call(CONNECT, lambda: self._start_path(self._connector(box)))
            with diagnosed(CONNECT, self.address, self._timeout):
                return await hijacker.stream(path)
        raw = await self._call(CONNECT, partial(self._exec_connector, box))
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        if raw.family == getattr(socket, "AF_UNIX", None):
            return (await loop.create_unix_connection(DockerStream, sock=raw))[1]
        return (await loop.create_connection(DockerStream, sock=raw))[1]

    async def open_pipe(self, box: BoxId, token: str) -> DockerPipe:
        """Executes the connector, as for a channel, with a word for boxd."""
        return DockerPipe(await self._call(CONNECT, partial(self._exec_connector, box, token)))

    async def aclose(self) -> None:
        """Closes the client's idle connections."""
        await to_thread.run_sync(self._reach.close)

    async def _call(self, operation: str, function: Callable[[], T], image: str = "") -> T:
        def diagnosed_call() -> T:
            with diagnosed(operation, self.address, self._timeout, image):
                return function()

        return await to_thread.run_sync(diagnosed_call, limiter=self._door)

    @property
    def api(self) -> APIClient:
        """docker-py's low-level client; only for use in a worker thread."""
        return self._api(self._timeout)

    def _api(self, timeout: float) -> APIClient:
        return self._reach.client(timeout)

    def _create_network(self, box: BoxId, made: list[Undo]) -> None:
        from docker.errors import APIError
        from docker.types import IPAMConfig, IPAMPool

        if self._is_prepared(box):
            return
        options = isolation.network_options(box, self._isolation.owner)
        for subnet in random_subnets(self._isolation.subnets, self._guard.routes()):
            ipam = IPAMConfig(pool_configs=[IPAMPool(subnet=str(subnet))])
            try:
                network = self.api.create_network(ipam=ipam, **options)
            except APIError as error:
                if "overlap" not in str(error.explanation):
                    raise
            else:
                made.append(partial(self.api.remove_network, network["Id"]))
                return
        raise EngineRefused(
            "make a network",
            f"no free subnet found in {self._isolation.subnets}, beside networks and routes of its "
            "machine: delete boxes, or set `subnets` to a larger range",
        )

    def _create_guarded_network(self, box: BoxId, made: list[Undo]) -> None:
        self._create_network(box, made)
        self._guard.make_ahead(self._bridge(box))

    def _bridge(self, box: BoxId) -> str:
        return isolation.bridge_name(box, self._isolation.owner)

    def _is_prepared(self, box: BoxId) -> bool:
        from docker.errors import NotFound

        if box not in self._prepared:
            return False
        self._prepared.remove(box)
        try:
            self.api.inspect_network(isolation.network_name(box))
        except NotFound:  # taken for a leftover, and cleaned away
            return False
        return True

    def _attach(self, box: BoxId, attached: bool) -> None:
        from docker.errors import NotFound

        name = isolation.network_name(box)
        present = self.api.inspect_container(box)["NetworkSettings"]["Networks"]
        if (name in present) is attached:
            return
        if not attached:
            return self.api.disconnect_container_from_network(box, name)
        self._guard.ensure(self._bridge(box))
        try:
            self.api.connect_container_to_network(box, name)
        except NotFound:  # nothing held it, so a `docker network prune` removed it
            self._create_network(box, [])
            self.api.connect_container_to_network(box, name)

    def _create_container(self, box: BoxId, spec: BoxSpec, made: list[Undo]) -> None:
        from docker.types import LogConfig

        image = self._image(spec.image)
        options = isolation.container_options(box, spec, image.user, self._isolation.owner)
        options["labels"][BOXD_LABEL] = self._put_in()
        options["environment"] = {**self._authorities.variables, **options["environment"]}
        host = isolation.host_options(box, spec, self._isolation)
        host["log_config"] = LogConfig(**host["log_config"])
        container = self._make_container(options, host, image.counted)
        made.append(partial(self.api.remove_container, container["Id"], force=True, v=True))
        bundles = self._authorities.of_new(self.api, box, image.id)
        self.api.put_archive(box, "/", boxd_archive(0 if spec.sudo else BOX_UID, bundles))
        if not image.ours and image.id not in self._proven:
            self._unproven[box] = image

    def _make_container(
        self, options: dict[str, Any], host: dict[str, Any], counted: int
    ) -> dict[str, Any]:
        """With a bound on its files, if the engine's storage can hold it to one."""
        from docker.errors import APIError

        def make(**more: Any) -> dict[str, Any]:
            config = {**self.api.create_host_config(**host, **more), **isolation.PATHS}
            return self.api.create_container(host_config=config, **options)

        if self._has_quotas and self._isolation.disk is not None:
            try:
                return make(storage_opt={"size": str(self._isolation.disk + counted)})
            except APIError:  # for that reason or another, which it will give again
                made = make()
            self._has_quotas = False
            return made
        return make()

    def _image(self, name: str) -> Image:
        from box_mcp.engines.images import SOURCE_LABEL

        found = self.api.inspect_image(name)
        config = found["Config"]
        labels = config.get("Labels") or {}
        if labels.get(SAVED_LABEL, self._isolation.owner) != self._isolation.owner:
            raise ImageMissing(name)  # a snapshot of somebody else's, whose name can be guessed
        ours = bool(labels.get(SOURCE_LABEL) or labels.get(SAVED_LABEL))
        # On btrfs a box begins as a copy of its image, and the bound is on the whole of it.
        whole = (found.get("GraphDriver") or {}).get("Name") == "btrfs"
        return Image(
            name, found["Id"], config.get("User") or "", ours, found["Size"] if whole else 0
        )

    def _start(self, box: BoxId) -> None:
        from docker.errors import APIError

        found = self.api.inspect_container(box)
        self._renew_boxd(box, found)
        if found["NetworkSettings"]["Networks"]:
            self._guard.ensure(self._bridge(box))
        try:
            self.api.start(box)
        except APIError as error:
            said, image = str(error.explanation), found["Config"]["Image"]
            if "unable to find user" in said:
                why = f"without sudo it needs a user {isolation.BOX_USER!r}, which it lacks"
                raise ImageUnusable(image, why) from error
            if NO_PYTHON.search(said):
                if box in self._unproven:
                    raise ImageUnusable(image, "it has no python3 on its PATH") from error
                raise BoxBroken(box, "it has no python3 on its PATH any more") from error
            if not NO_NETWORK.search(said):
                raise
            self._renew_network(box)
            self.api.start(box)
        if image := self._unproven.get(box):
            self._prove(box, image)
            self._proven.add(image.id)
            del self._unproven[box]

    def _renew_boxd(self, box: BoxId, found: Mapping[str, Any]) -> None:
        """For a stopped box of another version, whose boxd would not understand us.

        Or of another bundle of authorities, whose commands would not trust what ours do.
        """
        config = found["Config"]
        if config["Labels"].get(BOXD_LABEL) != self._put_in() and not found["State"]["Running"]:
            owner = 0 if config["User"] == "0" else BOX_UID
            bundles = self._authorities.of_used(self.api, box)
            self.api.put_archive(box, "/", boxd_archive(owner, bundles))

    def _put_in(self) -> str:
        """Tells what is put into new boxes from what other versions and settings would put in."""
        return boxd_digest() + self._authorities.digest()

    def _renew_network(self, box: BoxId) -> None:
        """For a stopped box: nothing held its network, so a `docker network prune` removed it."""
        from docker.errors import APIError

        name = isolation.network_name(box)
        try:
            self.api.disconnect_container_from_network(box, name, force=True)
        except APIError:  # it is cut off
            self._create_network(box, [])
        else:
            self._create_network(box, [])
            self.api.connect_container_to_network(box, name)

    def _prove(self, box: BoxId, image: Image) -> None:
        """Runs the python3 of an image not seen before: without a good one, boxd ends at once."""
        from docker.errors import APIError

        try:
            probe = self.api.exec_create(box, ["python3", "-I", "-S", "-c", PROBE])["Id"]
            said = self.api.exec_start(probe).decode(errors="replace")
            if self.api.exec_inspect(probe)["ExitCode"] == 0:
                return
        except APIError as error:
            said = str(error.explanation)
            if not any(words in said for words in (NOT_FOUND, *ENDED)):
                raise
        if not said.strip() or any(words in said for words in ENDED):
            why = reason(self.api.inspect_container(box)["State"])
            silent = ", ".join(filter(None, ("its python3 ended without a word", why)))
            said = self._last_words(box) or silent
        missing = "exec python3 failed" in said or NOT_FOUND in said
        detail = said.strip().rpartition("\n")[2]
        raise ImageUnusable(image.name, "it has no python3 on its PATH" if missing else detail)

    def _freeze(self, box: BoxId) -> None:
        from docker.errors import APIError

        for attempts_left in reversed(range(FREEZE_ATTEMPTS)):
            try:
                return self._unless(("already paused",), "pause", box)
            except APIError as error:
                if BUSY not in str(error.explanation) or not attempts_left:
                    raise

    def _thaw(self, box: BoxId) -> None:
        from docker.errors import APIError

        try:
            self._guard.ensure(self._bridge(box))
        except GuardMissing:
            if self.api.inspect_container(box)["NetworkSettings"]["Networks"]:
                raise
        try:
            self.api.unpause(box)
        except APIError as error:
            running = self.api.inspect_container(box)["State"]["Running"]
            if not running or "is not paused" not in str(error.explanation):
                raise

    def _unless(self, harmless: Sequence[str], method: str, box: BoxId) -> None:
        from docker.errors import APIError

        try:
            getattr(self.api, method)(box)
        except APIError as error:
            if not any(words in str(error.explanation) for words in harmless):
                raise

    def _stop(self, box: BoxId) -> None:
        self._unless(("is not paused",), "unpause", box)
        self._unless(("is not running", "can only kill running"), "kill", box)  # Docker's, Podman's
        self.api.wait(box)

    def _delete(self, box: BoxId) -> None:
        from docker.errors import APIError, NotFound

        self._unproven.pop(box, None)
        self._prepared.discard(box)
        with suppress(NotFound):
            container = self.api.inspect_container(box)
            try:
                self.api.remove_container(box, force=True, v=True)
            except APIError as error:
                if "already in progress" not in str(error.explanation):
                    raise
                self.api.wait(box, condition="removed")
            saving.drop_unused(self.api, container)
        with suppress(NotFound):
            self.api.remove_network(isolation.network_name(box))

    def _inspect(self, box: BoxId) -> Found:
        from docker.errors import NotFound

        try:
            found = self.api.inspect_container(box)
        except NotFound:
            return Found(box, Condition.ABSENT, "the engine has no such container")
        state = found["State"]
        return Found(box, condition(state["Status"]), reason(state), found["Config"]["Labels"])

    def _list(self) -> Sequence[Found]:
        ours = {"label": [LABEL, f"{OWNER_LABEL}={self._isolation.owner}"]}
        # Networks first: what comes to be meanwhile is then seen with its container.
        found: dict[str, Found] = {}
        for network in self.api.networks(filters=ours):
            box = BoxId(network["Labels"][LABEL])
            found[box] = Found(box, Condition.ABSENT, "only its network is left")
        for container in self.api.containers(all=True, filters=ours):
            labels = container["Labels"]
            box = BoxId(labels[LABEL])
            if f"/{box}" in container["Names"]:  # an image made of a box bears its labels, too
                state = condition(container["State"])
                found[box] = Found(box, state, container["Status"], labels)
        return list(found.values())

    def _last_words(self, box: BoxId) -> str:
        return self.api.logs(box, tail=5).decode(errors="replace").strip()

    def _connector(self, box: BoxId, *words: str) -> str:
        """An exec of the connector that is ready to be started."""
        command = ["python3", "-I", "-S", "-c", connector_source(), isolation.SOCKET, *words]
        created = self.api.exec_create(box, command, stdin=True, stdout=True, stderr=True)
        self._guard.expect(self._bridge(box))
        return created["Id"]

    def _start_path(self, connector: str) -> str:
        return f"/v{self.api.api_version}/exec/{connector}/start"

    def _exec_connector(self, box: BoxId, *words: str) -> socket.socket:
        connector = self._connector(box, *words)
        if hijacker := self._reach.hijacker(self._timeout):
            return hijacker.socket(self._start_path(connector))
        line = released(self.api.exec_start(connector, socket=True))
        if line is None:
            why = "is no socket, as boxes take: set DOCKER_HOST to an address by TCP, or use WSL"
            raise EngineRefused(CONNECT, f"{self.address} {why}")
        if line.family != getattr(socket, "AF_UNIX", None):
            keep_alive(line)
        return line


@contextmanager
def connected(
    operation: str, image: str = "", timeout: float = CALL_TIMEOUT
) -> Generator[docker.DockerClient, None, None]:
    """A client for blocking work outside any server; its errors become ours."""
    reach = Reach()
    try:
        with diagnosed(operation, reach.address.url, timeout, image):
            yield whole(reach.client(timeout))
    finally:
        reach.close()


def random_subnets(
    within: IPv4Network, routes: Sequence[IPv4Network] = ()
) -> Iterator[IPv4Network]:
    """Subnets of the size that one box gets, in random order, none twice, none that has a route.

    Routes for more than the whole range don't count: a VPN may claim all of 10.0.0.0/8, and loses
    eight of its addresses then. The engine refuses those subnets that are networks of its own.
    """
    step = 2 ** (32 - isolation.SUBNET_PREFIX)
    first, count = int(within.network_address), within.num_addresses // step
    taken = [route for route in routes if route.subnet_of(within)]
    numbers = random.sample(range(count), min(count, SUBNETS_TRIED))
    subnets = (IPv4Network((first + step * n, isolation.SUBNET_PREFIX)) for n in numbers)
    free = (subnet for subnet in subnets if not any(map(subnet.overlaps, taken)))
    return islice(free, SUBNET_ATTEMPTS)


def condition(word: str) -> Condition:
    """The engine's word for a container's state as ours; raises EngineRefused for others."""
    if word not in CONDITIONS:
        raise EngineRefused(
            "look at a box", f"it says {word!r}, a state that box_mcp does not know"
        )
    return CONDITIONS[word]


def reason(state: Mapping[str, Any]) -> str:
    """Why a container does not run, from the engine's account of its state."""
    said = str(state.get("Error") or "")
    if condition(state["Status"]) is not Condition.STOPPED:
        return said
    said = said or f"exit code {state.get('ExitCode')}"
    return f"out of memory, {said}" if state.get("OOMKilled") else said
