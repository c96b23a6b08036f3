"""What the engine itself offers, without box_mcp: the figures to beat."""

# docker-py carries no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import io
import shutil
import socket
import struct
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from docker import APIClient

STREAM_HEADER = struct.Struct("!BxxxI")  # Docker's multiplexed streams: 1 stdout, 2 stderr, length
FORK_EXEC = """\
import os
env = dict(os.environ)
while os.read(0, 1):
    os.waitpid(os.posix_spawn("/bin/bash", ["bash", "-c", "true"], env), 0)
    os.write(1, b".")
"""


class Direct:
    """One box by the engine's own calls."""

    def __init__(self, box: str) -> None:
        import docker
        from docker.utils import kwargs_from_env

        self.api: APIClient = docker.APIClient(**kwargs_from_env(), version="auto", timeout=60)
        self.box = box
        self.cli = shutil.which("docker")

    def version(self) -> str:
        return str(self.api.version()["Version"])

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

    def forker(self, env: Mapping[str, str]) -> Forker:
        """A held connection to a process in the box, run as its commands are."""
        made = self.api.exec_create(
            self.box,
            ["python3", "-I", "-S", "-c", FORK_EXEC],
            stdin=True,
            user=env["USER"],
            environment=dict(env),
            workdir="/workspace",
        )
        hijacked = self.api.exec_start(made["Id"], socket=True)
        raw = getattr(hijacked, "_sock", hijacked)
        assert isinstance(raw, socket.socket)  # the engine is on this machine
        return Forker(raw)


class Forker:
    """A process in the box that forks and executes `bash -c true` for every byte it is sent."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link

    def fork(self) -> None:
        self._link.sendall(b"x")
        kind, length = STREAM_HEADER.unpack(self._exactly(STREAM_HEADER.size))
        said = self._exactly(length)
        if (kind, said) != (1, b"."):
            raise RuntimeError(f"the process in the box said {said!r}")

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


def remove(boxes: Iterable[str]) -> None:
    """Makes sure that nothing of `boxes` is left, whatever became of their servers."""
    from docker.errors import NotFound

    for box in boxes:
        direct = Direct(box)
        with suppress(NotFound):
            direct.api.remove_container(box, force=True, v=True)
        with suppress(NotFound):
            direct.api.remove_network(f"{box}-net")
