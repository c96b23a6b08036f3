"""Boxes at an engine that is not on this machine: over TLS, and by ssh."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.capabilities.transfer import Transfers
from box_mcp.engines.docker import DockerEngine
from box_mcp.engines.hijack import Upgrade
from box_mcp.engines.survey import survey
from box_mcp.errors import CallInterrupted, EngineRefused, EngineUnreachable
from tests.support import remote
from tests.support.client import until
from tests.support.engines import (
    MEBI,
    PATIENCE,
    channel_to,
    said,
    that_leaves_sockets_behind,
    workshop,
)
from tests.support.remote import certify
from tests.support.transfers import Hashed, OneFile, digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.support.second_engine import Machine

SIZE = 20 * MEBI
USUAL = "/var/run/docker.sock"


# The question for a stream

SWITCHED = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"


@given(cuts=st.lists(st.integers(0, len(SWITCHED) + 5), max_size=8))
def test_what_is_behind_the_answer_is_the_streams_wherever_it_is_cut(cuts: list[int]):
    upgrade = Upgrade("far:2376", "/v1.41/exec/0/start")
    assert upgrade.question.startswith(b"POST /v1.41/exec/0/start HTTP/1.1\r\n")
    data = SWITCHED + b"first"
    places = sorted({0, len(data), *(cut for cut in cuts if cut)})
    rest = b""
    switched = False
    for begin, end in pairwise(places):
        if switched:
            rest += data[begin:end]
        elif (behind := upgrade.take(data[begin:end])) is not None:
            switched, rest = True, behind
    assert rest == b"first"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            b'HTTP/1.1 409 Conflict\r\nContent-Length: 21\r\n\r\n{"message": "paused"}',
            "paused",
        ),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 2\r\n\r\nhi", "HTTP status 502"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP status 200"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 101 UPGRADED\r\n" + b"X: y\r\n" * 20_000, "no HTTP"),
    ],
)
def test_an_engine_that_gives_no_stream_is_quoted(answer: bytes, words: str):
    with pytest.raises(EngineRefused, match=words):
        Upgrade("far:2376", "/").take(answer)


# Real ones


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Below it: an authority, an engine's certificate, a client's; and a stranger's."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("authority", "stranger"):
        certify(folder / name, name)
    authority = folder / "authority"
    certify(folder / "engine", "engine", "-addext", "subjectAltName=IP:127.0.0.1", signer=authority)
    certify(folder / "client", "client", "-addext", "extendedKeyUsage=clientAuth", signer=authority)
    return folder


def tls_arguments(folder: Path) -> tuple[str, ...]:
    return (
        *(
            "--host",
            f"tcp://127.0.0.1:{remote.TLS_PORT}",
            "--tlsverify",
            "--tlscacert",
            f"{folder}/ca.pem",
        ),
        *("--tlscert", f"{folder}/cert.pem", "--tlskey", f"{folder}/key.pem"),
    )


@pytest.fixture(scope="module")
def tls(host: Machine, certificates: Path) -> Iterator[dict[str, str]]:
    """Variables for an engine that listens for TLS, beside the usual socket."""
    host.recover()
    host.stop_engine()
    host.start_engine(tls=tls_arguments(certificates / "engine"))
    with remote.reached(host, remote.TLS_PORT) as port:
        yield {
            "DOCKER_HOST": f"tcp://127.0.0.1:{port}",
            "DOCKER_TLS_VERIFY": "1",
            "DOCKER_CERT_PATH": str(certificates / "client"),
            # requests would have it go before the authority of the engine
            "REQUESTS_CA_BUNDLE": str(certificates / "stranger" / "cert.pem"),
        }
        host.clear()
    host.recover()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[remote.Sshd]:
    """Of ssh."""
    if remote.SSHD is None or os.geteuid() != 0:
        pytest.skip(f"logins take root and {remote.SSHD_NEEDS}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with remote.sshd(tmp_path_factory.mktemp("ssh"), port) as server:
        yield server


@pytest.fixture
def ssh(server: remote.Sshd) -> dict[str, str]:
    """Variables for the usual engine, as if it were elsewhere."""
    return {
        "DOCKER_HOST": f"ssh://root@127.0.0.1:{server.port}",
        "PATH": f"{server.programs}:{os.environ['PATH']}",
    }


@pytest.fixture(params=["tls", "ssh"])
def far(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The one way or the other, and that is where engines are now."""
    variables: dict[str, str] = request.getfixturevalue(request.param)
    use(variables, monkeypatch)
    return variables


def use(variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("far")
async def test_boxes_of_an_engine_elsewhere_live_as_others_do(tmp_path: Path):
    big, back = tmp_path / "big", Hashed()
    big.write_bytes(os.urandom(SIZE))
    async with workshop(DockerEngine()) as shop:
        box = await shop.running()
        async with channel_to(shop.engine, box) as channel:
            assert await said(channel, "hostname") == box
            numbers = await said(channel, "seq 20000")
            assert numbers.split() == [str(number) for number in range(1, 20001)]
            moves = Transfers(channel, lambda token: shop.engine.open_pipe(box, token))
            await moves.upload(OneFile(big), "big")
            assert (await said(channel, "sha256sum < big")).split()[0] == digest(big)
            await moves.download("big", back)
            assert back.hashes[b""] == digest(big)
            await shop.engine.freeze(box)
            await shop.engine.thaw(box)
            assert await said(channel, "echo thawed") == "thawed"
        async with channel_to(shop.engine, box) as channel:

            async def alone() -> bool:
                return await said(channel, "pgrep -xc sleep") == "1"

            await until(alone, "the end of the first connection's program")
        # Nothing of it is on this machine, whatever has the same name here.
        assert await shop.engine.free_disk() is None
        usage = await shop.engine.usage(box)
        assert usage.disk is not None
        assert usage.disk >= SIZE
        assert usage.files is None


async def test_the_guards_rules_are_put_in_place_over_there(
    tls: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    use(tls, monkeypatch)
    async with workshop(DockerEngine()) as shop:
        assert isinstance(shop.engine, DockerEngine)
        assert (await shop.engine.guarded()).by_helper


@pytest.mark.usefixtures("far")
def test_blocking_work_goes_the_same_way():
    assert survey().free is None


# What goes wrong


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"DOCKER_CERT_PATH": "stranger"}, "certificate verify failed"),
        ({"DOCKER_CERT_PATH": "none"}, "client_cert"),
    ],
)
async def test_an_engine_with_another_authority_is_not_spoken_to(
    tls: dict[str, str],
    certificates: Path,
    changed: dict[str, str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
):
    shutil.copy(certificates / "stranger" / "cert.pem", certificates / "stranger" / "ca.pem")
    use(tls | {name: str(certificates / value) for name, value in changed.items()}, monkeypatch)
    engine = DockerEngine()
    with pytest.raises(EngineUnreachable, match=words):
        await engine.list()
    await engine.aclose()


async def test_an_engine_lets_nobody_in_without_a_certificate_of_its_authority(
    tls: dict[str, str], certificates: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its own may be checked or not."""
    use(tls | {"DOCKER_CERT_PATH": str(certificates / "stranger")}, monkeypatch)
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "")
    engine = DockerEngine()
    with pytest.raises(EngineUnreachable):
        await engine.list()
    await engine.aclose()


@that_leaves_sockets_behind
async def test_one_login_carries_everything_and_a_line_that_broke_is_made_anew(
    server: remote.Sshd, ssh: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    use(ssh, monkeypatch)
    before = server.logins()
    async with workshop(DockerEngine()) as shop:
        box = await shop.running()
        async with channel_to(shop.engine, box) as channel, channel_to(shop.engine, box):
            assert await said(channel, "echo one") == "one"
            assert server.logins() == before + 1
            (line,) = ssh_programs()
            line.kill()
            line.wait()
            with pytest.raises(CallInterrupted):
                await said(channel, "echo lost")
        async with channel_to(shop.engine, box) as channel:
            assert await said(channel, "echo two") == "two"
        assert server.logins() == before + 2
    assert not ssh_programs()


async def test_nothing_of_the_line_is_left_when_its_server_is_killed(
    server: remote.Sshd, ssh: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    use(ssh | {"TMPDIR": str(tmp_path)}, monkeypatch)
    connects = "from box_mcp.engines.reach import Reach; Reach().client(30); print(flush=True)"
    waits = f"{connects}; input()"
    with psutil.Popen([sys.executable, "-c", waits], stdin=-1, stdout=-1) as other:
        assert other.stdout is not None
        other.stdout.readline()
        (line,) = other.children()
        other.kill()
        other.communicate()
    assert not psutil.wait_procs([line], PATIENCE)[1]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"user": "nobody"}, "Permission denied"),
        ({"host": "[::1]"}, "Host key verification failed|Connection refused"),
        ({"path": "/nowhere.sock"}, "connect failed"),
    ],
)
@that_leaves_sockets_behind
async def test_what_ssh_complains_of_is_told(
    server: remote.Sshd,
    ssh: dict[str, str],
    changed: dict[str, str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
):
    parts = {"user": "root", "host": "127.0.0.1", "path": "", **changed}
    use(ssh, monkeypatch)
    url = f"ssh://{parts['user']}@{parts['host']}:{server.port}{parts['path']}"
    monkeypatch.setenv("DOCKER_HOST", url)
    engine = DockerEngine()
    with pytest.raises(EngineUnreachable, match=words) as error:
        await engine.list()
    assert error.value.address == url
    assert "docker info" in error.value.explain()
    await engine.aclose()


def ssh_programs() -> list[psutil.Process]:
    """Those that are ours."""
    return [child for child in psutil.Process().children() if child.name() == "ssh"]
