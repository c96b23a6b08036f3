"""What the engine itself offers, without box_mcp: the figures to beat."""

# docker-py carries no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import io
import json
import secrets
import shutil
import socket
import struct
import subprocess
import tarfile
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Batch, seconds_of
from box_mcp.engines import isolation
from box_mcp.engines.isolation import OWNER_LABEL
from box_mcp.engines.payload import boxd_archive

if TYPE_CHECKING:
    from docker import APIClient

    from box_mcp.domain.box import BoxSpec
    from box_mcp.domain.names import BoxId
    from box_mcp.engines.isolation import Isolation

STREAM_HEADER = struct.Struct("!BxxxI")  # Docker's multiplexed streams: 1 stdout, 2 stderr, length
FORK_EXEC = """\
import os
env = dict(os.environ)
while os.read(0, 1):
    os.waitpid(os.posix_spawn("/bin/bash", ["bash", "-c", "true"], env), 0)
    os.write(1, b".")
"""
RUN_TIMED = """\
import json, subprocess, sys, time
for line in sys.stdin.buffer:
    started = time.perf_counter()
    done = subprocess.run(json.loads(line), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    said = [time.perf_counter() - started, done.returncode, done.stdout.count(b"\\n")]
    sys.stdout.write(json.dumps(said) + "\\n")
    sys.stdout.flush()
"""
FIRST_LINE_TIMED = """\
import json, os, sys, time
from subprocess import DEVNULL, PIPE, Popen
for line in sys.stdin.buffer:
    command, env, said = json.loads(line)
    started = time.perf_counter()
    with Popen(
        command, env={**os.environ, **env}, stdin=PIPE, stdout=PIPE, stderr=DEVNULL
    ) as process:
        process.stdin.write(said.encode())
        process.stdin.close()
        process.stdout.readline()
        seconds = time.perf_counter() - started
        rest = process.stdout.read()
    said = [seconds, process.returncode, rest.decode(errors="replace")[-2000:]]
    sys.stdout.write(json.dumps(said) + "\\n")
    sys.stdout.flush()
"""
RUN_BARE = """\
import json, os, sys
nothing = os.open(os.devnull, os.O_RDWR)
actions = [(os.POSIX_SPAWN_DUP2, nothing, 0), (os.POSIX_SPAWN_DUP2, nothing, 2)]
env = dict(os.environ)
for line in sys.stdin.buffer:
    command = json.loads(line)
    reader, writer = os.pipe()
    to_us = [*actions, (os.POSIX_SPAWN_DUP2, writer, 1)]
    pid = os.posix_spawnp(command[0], command, env, file_actions=to_us)
    os.close(writer)
    printed = b"".join(iter(lambda: os.read(reader, 65536), b""))
    os.close(reader)
    said = [os.waitpid(pid, 0)[1], printed.decode(errors="replace")]
    os.write(1, json.dumps(said).encode() + b"\\n")
"""

ENGINE_TIMEOUT = 300.0  # s
REMOVE_AT_ONCE = 8


def connect() -> APIClient:
    import docker
    from docker.utils import kwargs_from_env

    return docker.APIClient(
        **kwargs_from_env(),
        version="auto",
        timeout=ENGINE_TIMEOUT,  # pyright: ignore[reportArgumentType]  # requests takes fractions
    )


class Engine:
    """The engine without box_mcp: the figures to beat. What is timed returns its seconds."""

    def __init__(self) -> None:
        self.api = connect()
        self.cli = shutil.which("docker")

    def version(self) -> str:
        return str(self.api.version()["Version"])

    def run(self, image: str, *, on_new_network: bool = False) -> float:
        """`docker run IMAGE echo` up to its exit, on the default bridge if not told otherwise."""
        made: list[Callable[[], object]] = []
        started = perf_counter()
        try:
            host = self.api.create_host_config()
            if on_new_network:
                own = self.api.create_network(f"bench-{secrets.token_hex(4)}")["Id"]
                made.append(lambda: self.api.remove_network(own))
                host = self.api.create_host_config(network_mode=own)
            container = self.api.create_container(image, ["echo", "done"], host_config=host)["Id"]
            made.append(lambda: self.api.remove_container(container, force=True))
            output = self.api.attach(container, stream=True)
            self.api.start(container)
            said = b"".join(output)
            self.api.wait(container)
            seconds = perf_counter() - started
        finally:
            for undo in reversed(made):
                undo()
        if said != b"done\n":
            raise RuntimeError(f"the container said {said!r}")
        return seconds

    def run_by_cli(self, image: str) -> float:
        """The same by the engine's own client."""
        assert self.cli is not None  # asked before
        name = f"bench-{secrets.token_hex(4)}"
        started = perf_counter()
        command = [self.cli, "run", "--name", name, image, "echo", "done"]
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        seconds = perf_counter() - started
        self.api.remove_container(name, force=True)
        return seconds

    @contextmanager
    def idle(self, image: str) -> Generator[str, None, None]:
        """A plain container in which nothing happens."""
        made = self.api.create_container(image, ["sleep", "infinity"])["Id"]
        try:
            self.api.start(made)
            yield made
        finally:
            self.api.remove_container(made, force=True)

    def pause(self, container: str) -> None:
        self.api.pause(container)

    def unpause(self, container: str) -> None:
        self.api.unpause(container)

    def commit(self, container: str) -> float:
        """`docker commit`, which pauses the container meanwhile; the image is removed."""
        started = perf_counter()
        image = self.api.commit(container)["Id"]
        seconds = perf_counter() - started
        self.api.remove_image(image)
        return seconds

    def first_process(self, container: str) -> int:
        """The pid of its first process, as the host sees it."""
        return int(self.api.inspect_container(container)["State"]["Pid"])

    def create_without_network(self, box: BoxId, spec: BoxSpec, options: Isolation) -> None:
        """A started container like a box's, but for its network."""
        from docker.types import LogConfig

        host: dict[str, Any] = isolation.host_options(box, spec, options)
        host |= {"network_mode": "none", "log_config": LogConfig(**host["log_config"])}
        self.api.create_container(
            host_config={**self.api.create_host_config(**host), **isolation.PATHS},
            **isolation.container_options(box, spec, "", options.owner),
        )
        self.api.put_archive(box, "/", boxd_archive(0))
        self.api.start(box)

    def addresses(self, owner: str) -> int:
        """How many addresses running containers have, each counted once."""
        found = self.api.containers(filters=self._of(owner))
        joined = [one["NetworkSettings"]["Networks"].values() for one in found]
        return len({network["IPAddress"] for networks in joined for network in networks} - {""})

    def containers(self, owner: str) -> int:
        return len(self.api.containers(all=True, filters=self._of(owner)))

    def networks(self, owner: str) -> int:
        return len(self.api.networks(filters=self._of(owner)))

    def remove_all_of(self, owner: str) -> None:
        """Containers, networks and images, whatever became of their servers."""
        filters = self._of(owner)
        with ThreadPoolExecutor(REMOVE_AT_ONCE) as threads:
            for remove, found in (
                (self._remove_container, self.api.containers(all=True, filters=filters)),
                (self.api.remove_network, self.api.networks(filters=filters)),
                (self._remove_image, self.api.images(filters=filters)),
            ):
                list(threads.map(remove, [one["Id"] for one in found]))

    def _of(self, owner: str) -> dict[str, str]:
        return {"label": f"{OWNER_LABEL}={owner}"}

    def _remove_container(self, container: str) -> None:
        self.api.remove_container(container, force=True, v=True)

    def _remove_image(self, image: str) -> None:
        from docker.errors import ImageNotFound

        with suppress(ImageNotFound):  # gone with one that was made of it
            self.api.remove_image(image, force=True)


class Direct:
    """One box by the engine's own calls."""

    def __init__(self, box: str) -> None:
        self.api = connect()
        self.box = box
        self.cli = shutil.which("docker")

    def execute(self) -> None:
        """`docker exec BOX true` by the API."""
        made = self.api.exec_create(self.box, ["true"])
        self.api.exec_start(made["Id"])

    def execute_by_cli(self) -> None:
        assert self.cli is not None  # asked before
        subprocess.run([self.cli, "exec", self.box, "true"], stdin=subprocess.DEVNULL, check=True)

    def put(self, content: bytes) -> None:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            info = tarfile.TarInfo("archived.txt")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        self.api.put_archive(self.box, "/workspace", archive.getvalue())

    def get(self) -> bytes:
        chunks, _ = self.api.get_archive(self.box, "/workspace/archived.txt")
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
            file = tar.extractfile("archived.txt")
            assert file is not None  # a plain file
            return file.read()

    def copy_in(self, source: Path, target: str) -> None:
        """`docker cp SOURCE BOX:TARGET`."""
        self._copy(str(source), f"{self.box}:{target}")

    def copy_out(self, source: str, target: Path) -> None:
        """`docker cp BOX:SOURCE TARGET`."""
        self._copy(f"{self.box}:{source}", str(target))

    def _copy(self, source: str, target: str) -> None:
        command = [engine_client(), "cp", source, target]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)

    def output(self, command: Sequence[str]) -> bytes:
        """What a command prints that is run by the box's root; raises RuntimeError if it fails."""
        made = self.api.exec_create(self.box, command, user="root")["Id"]
        said = self.api.exec_start(made)
        if code := self.api.exec_inspect(made)["ExitCode"]:
            raise RuntimeError(f"{command} ended with {code}: {said!r}")
        return said

    def forker(self, env: Mapping[str, str]) -> Forker:
        """A process in the box that forks, run as its commands are."""
        return Forker(self._hold(FORK_EXEC, env))

    def stopwatch(self, env: Mapping[str, str]) -> Stopwatch:
        """A process in the box that times commands, run as these are."""
        return Stopwatch(self._hold(RUN_TIMED, env))

    def runner(self, env: Mapping[str, str]) -> Runner:
        """A process in the box that runs commands, as its own are."""
        return Runner(self._hold(RUN_BARE, env))

    def starter(self, env: Mapping[str, str]) -> Starter:
        """A process in the box that starts programs."""
        return Starter(self._hold(FIRST_LINE_TIMED, env))

    def _hold(self, program: str, env: Mapping[str, str]) -> socket.socket:
        """A connection to a process in the box that stays."""
        made = self.api.exec_create(
            self.box,
            ["python3", "-I", "-S", "-c", program],
            stdin=True,
            user=env["USER"],
            environment=dict(env),
            workdir="/workspace",
        )
        hijacked = self.api.exec_start(made["Id"], socket=True)
        raw = getattr(hijacked, "_sock", hijacked)
        assert isinstance(raw, socket.socket)  # the engine is on this machine
        return raw


def engine_client() -> str:
    """The engine's own client."""
    if (found := shutil.which("docker")) is None:
        raise RuntimeError("docker, the engine's own client, is not installed")
    return found


def execute_at_once(callers: Sequence[Direct], calls: int) -> Batch:
    """`docker exec BOX true`, so many `calls` by all `callers` at once."""

    def execute(caller: Direct) -> list[float]:
        return [seconds_of(caller.execute) for _ in range(calls // len(callers))]

    started = perf_counter()
    with ThreadPoolExecutor(len(callers)) as threads:
        each = [seconds for taken in threads.map(execute, callers) for seconds in taken]
    return Batch(each, perf_counter() - started)


class Held:
    """A process in the box, by a connection that stays."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link

    def ask(self, said: bytes, end: bytes) -> bytes:
        """Sends it, and returns what the process answers up to this end."""
        self._link.sendall(said)
        answer = b""
        while not answer.endswith(end):
            kind, length = STREAM_HEADER.unpack(self._exactly(STREAM_HEADER.size))
            answer += self._exactly(length)
            if kind != 1:
                raise RuntimeError(f"the process in the box said {answer!r}")
        return answer

    def close(self) -> None:
        self._link.close()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._link.recv(size - len(data))
            if not more:
                raise RuntimeError("the process in the box hung up")
            data += more
        return data


class Forker(Held):
    """It forks and executes `bash -c true` for every byte that it is sent."""

    def fork(self) -> None:
        self.ask(b"x", b".")


class Stopwatch(Held):
    """It runs commands and times them itself: nothing of any connection is in the figures."""

    def run(self, command: Sequence[str]) -> tuple[float, int]:
        """Seconds of a command whose output is taken in, and the lines of that."""
        said = self.ask(json.dumps(command).encode() + b"\n", b"\n")
        seconds, code, lines = json.loads(said)
        if code != 0:
            raise RuntimeError(f"{command} ended with {code}")
        return seconds, lines


class Runner(Held):
    """It runs commands and tells what they print: the least that a command can cost."""

    def run(self, command: Sequence[str]) -> str:
        """What a command prints; raises RuntimeError if it fails."""
        code, printed = json.loads(self.ask(json.dumps(command).encode() + b"\n", b"\n"))
        if code != 0:
            raise RuntimeError(f"{command} ended with {code}")
        return printed


class Starter(Held):
    """It starts programs and times how long they take to say something."""

    def start(self, command: Sequence[str], env: Mapping[str, str], stdin: str) -> float:
        """Seconds until a command's first line; returns when it has ended, which it must, well."""
        said = json.dumps([command, env, stdin]).encode() + b"\n"
        seconds, code, printed = json.loads(self.ask(said, b"\n"))
        if code != 0:
            raise RuntimeError(f"{command} ended with {code}: {printed}")
        return seconds
