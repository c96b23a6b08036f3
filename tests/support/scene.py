"""The stage of attacks on the network: boxes, ordinary containers, and services all around them.

Each attack is made at the same time in boxes of all modes and, to show that its target can be
reached in just that way, in an ordinary container of the same engine. Boxes also try the same on
what they may reach.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Interface
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio
from anyio import to_thread

from tests.support import internet as stand_in
from tests.support import probe
from tests.support.client import docker, fresh_state, serving, until
from tests.support.engines import IMAGE, RUN
from tests.support.internet import PROGRAM as SERVICES
from tests.support.internet import run

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterable, Mapping, Sequence

    from anyio.abc import TaskStatus

    from tests.support.client import Server
    from tests.support.internet import Internet

SERVED = 7007
"""The port of services on this machine and in boxes, TCP and UDP."""
PUBLISHED = 7008
"""The port of this machine that an ordinary container publishes."""
DOCKER_API = 2375
MDNS_GROUP, MDNS = "224.0.0.251", 5353
GROUP = "239.77.7.7"
ABSTRACT = f"@box-mcp-test-{RUN}"


PROBE = Path(probe.__file__).read_text()
MUCH = 100_000

BOXES: dict[str, dict[str, dict[str, object]]] = {
    "mine": {"full": {}, "none": {"network": "none"}, "sibling": {}},
    "theirs": {"stranger": {}},
}
"""The boxes of two principals, by the names that they have there, with what they are made with."""

Attempts = dict[str, tuple[str, str, int]]


class Attack(NamedTuple):
    """An attempt of `probe.HOW`; `host` may name one of `places`."""

    name: str
    how: str
    host: str
    port: int = SERVED
    control: bool = True
    """Whether an ordinary container gets through."""


def mark_of(place: str, name: str) -> str:
    """What an attempt says, so that it is known again."""
    return f"{place}: {name}"


def attempts(place: str, where: Mapping[str, str], attacks: Iterable[Attack]) -> Attempts:
    """For `probe.py`."""
    return {
        mark_of(place, one.name): (one.how, one.host.format_map(where), one.port) for one in attacks
    }


@dataclass
class Scene:
    """What came of all attempts; their targets still listen."""

    got: dict[str, str] = field(default_factory=dict[str, str])
    heard: str = ""
    """What targets heard."""

    def reached(self, place: str, name: str) -> str:
        """What an attempt got, or that it was heard; nothing if neither."""
        mark = mark_of(place, name)
        if json.dumps(mark) in self.heard:
            return f"{self.got[mark]}, and it was heard"
        return "" if self.got[mark].startswith(("no:", "shouted")) else self.got[mark]


@dataclass(frozen=True)
class Home:
    """A container on a network, box or not, by its engine's own word."""

    id: str
    network: str
    container: str
    address: str
    bridge: str
    """This machine's address on its network."""
    broadcast: str
    bridge_six: str

    @classmethod
    def of(cls, name: str) -> Home:
        """Of one that runs."""
        (found,) = json.loads(docker("inspect", name))
        ((network, place),) = found["NetworkSettings"]["Networks"].items()
        interface = IPv4Interface(f"{place['IPAddress']}/{place['IPPrefixLen']}")
        show = ("ip", "-o", "address", "show")
        link = run(*show, "to", f"{place['Gateway']}/32").split()[1]
        six = run(*show, "dev", link, "scope", "link").split()
        return cls(
            name,
            network,
            found["Id"][:12],
            place["IPAddress"],
            place["Gateway"],
            str(interface.network.broadcast_address),
            six[3].partition("/")[0],
        )


def places(own: Home, sibling: Home, stranger: Home, elsewhere: Home) -> dict[str, str]:
    """What `Attack.host` may name."""
    about_bridge = ("network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "bridge")
    return {
        "own": own.address,
        "own_id": own.id,
        "own_bridge": own.bridge,
        "own_broadcast": own.broadcast,
        "own_bridge_six": own.bridge_six,
        "sibling": sibling.address,
        "sibling_id": sibling.id,
        "sibling_container": sibling.container,
        "sibling_network": sibling.network,
        "sibling_broadcast": sibling.broadcast,
        "stranger": stranger.address,
        "stranger_id": stranger.id,
        "other_bridge": elsewhere.bridge,
        "machine": address_of_machine(),
        "engine_bridge": docker(*about_bridge),
    }


def address_of_machine() -> str:
    """By which it is known outside."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.connect(("203.0.113.1", 9))  # sends nothing
        return str(line.getsockname()[0])


@dataclass(frozen=True)
class BoxOnStage:
    """A box, and the server that it is used by."""

    server: Server
    name: str
    id: str

    async def run(self, command: str, **arguments: object) -> str:
        """What a command prints, below the header."""
        answer = await self.server.run(command, box=self.name, max_output=MUCH, **arguments)
        return answer.partition("]\n")[2]

    async def offers(self) -> None:
        """Starts services in it."""
        await self.server.say(
            "file_write", box=self.name, path="services.py", content=SERVICES.read_text()
        )
        offers = f"tcp:{SERVED} udp:{SERVED}:{GROUP} udp:{MDNS}:{MDNS_GROUP} unix:@own"
        serve = f"touch heard; python3 services.py {self.name} heard {offers} > ready"
        await self.server.run(serve, box=self.name, background=True)

        async def listens() -> bool:
            return "ready" in await self.run("cat ready; true")

        await until(listens, f"the services in {self.name}")

    async def tries(self, attempts: Attempts) -> dict[str, str]:
        """What attempts get that its root makes."""
        for path, content in (("probe.py", PROBE), ("attempts", json.dumps(attempts))):
            await self.server.say("file_write", box=self.name, path=path, content=content)
        answer = await self.run("sudo -n python3 probe.py < attempts")
        return json.loads(answer.splitlines()[-1])


@asynccontextmanager
async def boxes_of(
    directory: Path, owners: Mapping[str, Mapping[str, Mapping[str, object]]]
) -> AsyncGenerator[dict[str, BoxOnStage], None]:
    """Boxes of several principals, each with a server of his own, as `BOXES` has them."""
    made: dict[str, BoxOnStage] = {}
    ended = anyio.Event()

    async def own(
        owner: str, wanted: Mapping[str, Mapping[str, object]], *, task_status: TaskStatus[None]
    ) -> None:
        (directory / owner).mkdir()
        with fresh_state(directory / owner) as env:
            roots = {"BOX_MCP_HOST_ROOTS": json.dumps([str(directory / owner)])}
            async with serving({**env, **roots}) as server:
                for name, order in wanted.items():
                    box = await server.tell("box_create", name=name, **order)
                    made[name] = BoxOnStage(server, name, str(box["id"]))
                task_status.started()
                await ended.wait()

    async with anyio.create_task_group() as group:
        for owner, wanted in owners.items():
            await group.start(own, owner, wanted)
        yield made
        ended.set()


@contextmanager
def ordinary_containers() -> Generator[tuple[Home, Home], None, None]:
    """Two containers on one network, as anybody makes them; the second one has services."""
    network, one, two = (f"test-{what}-{RUN}" for what in ("net", "one", "two"))
    start = ("run", "--detach", "--init", "--network", network)
    try:
        docker("network", "create", "--ipv6", "--subnet", "fd77:77::/64", network)
        docker(*start, "--name", one, IMAGE, "sleep", "infinity")
        docker(*start, "--name", two, "-p", f"{PUBLISHED}:{SERVED}", IMAGE, "sleep", "infinity")
        docker("cp", str(SERVICES), f"{two}:/services.py")
        serve = ("python3", "/services.py", "ordinary", "/heard", f"tcp:{SERVED}", f"udp:{SERVED}")
        docker("exec", "--detach", two, *serve)
        yield Home.of(one), Home.of(two)
    finally:
        docker("rm", "-fv", one, two, check=False)
        docker("network", "rm", network, check=False)


def tried(program: Sequence[str], attempts: Attempts) -> dict[str, str]:
    """What attempts get that a program makes elsewhere."""
    done = subprocess.run(
        [*program, PROBE], input=json.dumps(attempts), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@contextmanager
def services_here(log: Path) -> Generator[None, None, None]:
    """Services on all addresses of this machine, and in all groups of its interfaces."""
    offers = (
        *(f"tcp:{SERVED}", f"udp:{SERVED}:{GROUP}", f"udp:{MDNS}:{MDNS_GROUP}"),
        *(f"tcp:{DOCKER_API}", f"unix:{ABSTRACT}"),
    )
    with stand_in.serving("machine", log, offers):
        yield


async def play(
    internet: Internet,
    directory: Path,
    attacks: Sequence[Attack],
    twins: Sequence[Attack],
    inbound: Sequence[Attack],
) -> Scene:
    """Has all attempts made, and tells what came of them."""
    scene = Scene()
    log = directory / "machine.log"
    async with boxes_of(directory, BOXES) as boxes:
        for one_of_them in boxes.values():
            await one_of_them.offers()
        with ExitStack() as stack:
            one, two = stack.enter_context(ordinary_containers())
            stack.enter_context(services_here(log))
            full, sibling, stranger = (
                Home.of(boxes[n].id) for n in ("full", "sibling", "stranger")
            )
            there = places(full, sibling, stranger, sibling)
            here = places(one, two, two, full)
            python = [sys.executable, "-I", "-c"]
            at_lan = ["ip", "netns", "exec", internet.lan.namespace, *python]
            ordinary = ["docker", "exec", "-i", one.id, "python3", "-c"]
            controls = [attack for attack in attacks if attack.control]

            async def in_box(name: str) -> None:
                made = attempts(name, there, attacks) | attempts(f"{name} may", there, twins)
                scene.got |= await boxes[name].tries(made)

            async def elsewhere(program: list[str], made: Attempts) -> None:
                scene.got |= await to_thread.run_sync(partial(tried, program, made))

            async with anyio.create_task_group() as group:
                for name in ("full", "none"):
                    group.start_soon(in_box, name)
                group.start_soon(elsewhere, ordinary, attempts("ordinary", here, controls))
                for place, program in (("lan", at_lan), ("machine", python)):
                    made = attempts(place, there, inbound)
                    made |= attempts(f"{place} to ordinary", {"own": two.address}, inbound)
                    group.start_soon(elsewhere, program, made)
            for name, one_of_them in boxes.items():  # each hears itself, when it shouts
                lines = (await one_of_them.run("cat heard")).splitlines()
                scene.heard += "\n".join(line for line in lines if f'"{name}: ' not in line)
            scene.heard += log.read_text() + internet.metadata.heard() + internet.lan.heard()
            scene.heard += docker("exec", two.id, "cat", "/heard")
    return scene
