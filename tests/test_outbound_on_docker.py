"""Out of a box that has the network: packages, names, connections, and an image of a registry."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.support.client import serving
from tests.support.internet import DNS, INTERNET, TCP, WS, until_it_listens
from tests.support.scene import PROBE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from tests.support.client import Server
    from tests.support.internet import Internet

DEBIAN_TAKES = 90.0
"""Seconds for what is downloaded."""

REGISTRY_PORT = 5000
REGISTRY = shutil.which(
    "docker-registry", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
)
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
WEBSOCKET = f"""
const WebSocket = require('ws')
const line = new WebSocket('ws://{INTERNET}:{WS}/')
line.on('open', () => line.send('hello'))
line.on('message', text => {{ console.log(String(text)); line.close() }})
"""


@pytest.fixture(scope="module")
async def server(shared_env: dict[str, str]) -> AsyncGenerator[Server, None]:
    """Its session's box has skopeo, by apt."""
    async with serving(shared_env, "--session", "outbound") as server:
        install = (
            "sudo apt-get -q update && sudo apt-get -qy --no-install-recommends install skopeo"
        )
        await server.run(f"({install}) > log 2>&1 || cat log", yield_after=DEBIAN_TAKES)
        yield server


async def test_apt_installs_a_package(server: Server):
    assert "skopeo version" in await server.run("skopeo --version; tail -n 20 log")


async def test_pip_installs_a_package(server: Server):
    await server.run("pip install -q six", yield_after=DEBIAN_TAKES)
    assert "six.py" in await server.run("python3 -c 'import six; print(six.__file__)'")


async def test_npm_installs_a_package_that_speaks_websocket_to_a_host(
    server: Server, internet: Internet
):
    install = "mkdir -p npm && cd npm && npm install ws"
    assert "added 1 package" in await server.run(install, yield_after=DEBIAN_TAKES)
    await server.say("file_write", path="npm/talk.js", content=WEBSOCKET)
    assert "internet heard hello" in await server.run("node talk.js", cwd="npm")


async def test_names_and_connections_lead_to_a_host(server: Server, internet: Internet):
    await server.say("file_write", path="probe.py", content=PROBE)
    attempts = {
        "a name": ("dns", f"good.example@{INTERNET}", DNS),
        "a connection": ("tcp", INTERNET, TCP),
    }
    answer = await server.run("python3 probe.py", stdin=json.dumps(attempts))
    got = json.loads(answer.splitlines()[-1])
    assert got["a name"] == INTERNET
    assert got["a connection"].startswith("this is internet\n")


async def test_skopeo_pulls_an_image_of_a_registry(
    server: Server, internet: Internet, tmp_path: Path
):
    if REGISTRY is None:
        pytest.skip("docker-registry is missing: scripts/setup.sh --dev brings it")
    layer = packed("greeting", b"hello")
    with registry(REGISTRY, internet, tmp_path):
        push(layer)
        source = f"docker://{INTERNET}:{REGISTRY_PORT}/tiny:1"
        await server.run(f"rm -rf tiny; skopeo copy --src-tls-verify=false {source} dir:tiny")
    unpack = f"tar -xOf tiny/{hashlib.sha256(layer).hexdigest()} greeting"
    assert (await server.run(unpack)).endswith("]\nhello")


def packed(name: str, content: bytes) -> bytes:
    """A tar archive with one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        file = tarfile.TarInfo(name)
        file.size = len(content)
        archive.addfile(file, io.BytesIO(content))
    return buffer.getvalue()


@contextmanager
def registry(program: str, internet: Internet, directory: Path) -> Generator[None, None, None]:
    """A registry at the host in the internet."""
    settings = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "images")}},
        "http": {"addr": f"{INTERNET}:{REGISTRY_PORT}"},
    }
    config = directory / "registry.yml"
    config.write_text(json.dumps(settings))
    enter = ["ip", "netns", "exec", internet.internet.namespace]
    with (
        (directory / "registry.log").open("w") as log,
        subprocess.Popen(
            [*enter, program, "serve", str(config)], stdout=log, stderr=log
        ) as running,
    ):
        try:
            until_it_listens(INTERNET, REGISTRY_PORT)
            yield
        finally:
            running.terminate()


def push(layer: bytes) -> None:
    """Puts an image of one layer into the registry, as ``tiny:1``."""
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
        }
    ).encode()
    kind = "application/vnd.docker."
    described = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {**about(config), "mediaType": f"{kind}container.image.v1+json"},
        "layers": [{**about(layer), "mediaType": f"{kind}image.rootfs.diff.tar"}],
    }
    with closing(HTTPConnection(INTERNET, REGISTRY_PORT, timeout=10)) as line:
        for blob in (config, layer):
            place = urlsplit(put(line, "POST", "/v2/tiny/blobs/uploads/", b"", 202))
            put(line, "PUT", f"{place.path}?{place.query}&digest={digest(blob)}", blob, 201)
        put(line, "PUT", "/v2/tiny/manifests/1", json.dumps(described).encode(), 201)


def put(line: HTTPConnection, method: str, target: str, body: bytes, expected: int) -> str:
    """Where what was put is."""
    kind = MANIFEST if "/manifests/" in target else "application/octet-stream"
    line.request(method, target, body, {"Content-Type": kind})
    answer = line.getresponse()
    said = answer.read()
    assert answer.status == expected, said
    return answer.headers["Location"]


def digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def about(blob: bytes) -> dict[str, object]:
    return {"size": len(blob), "digest": digest(blob)}
