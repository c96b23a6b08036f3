"""Real clients of the proxy: git, whose libcurl speaks HTTP and SOCKS, urllib, httpx, Node."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING

import anyio
import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from box_mcp.gateway.proxying import proxy_env
from tests.support.egress import LOOPBACK, Place, proxy
from tests.support.node import node_environment

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

HERE = f"{LOOPBACK}:*"
READ = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read())"
QUIET = {"GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1", "GIT_SSL_NO_VERIFY": "1"}


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files to be served: a repository as git can read it from any server, and a text."""
    root = tmp_path_factory.mktemp("site")
    work, bare = root / "work", root / "repo.git"
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (
        ["git", "init", "-q", "-b", "main", str(work)],
        ["git", *who, "-C", str(work), "commit", "-q", "--allow-empty", "-m", "first"],
        ["git", "clone", "-q", "--bare", str(work), str(bare)],
        ["git", "-C", str(bare), "update-server-info"],
    ):
        subprocess.run(command, check=True)
    (root / "hello.txt").write_text("hello")
    return root


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `a.example`, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a.example")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("a.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = tmp_path_factory.mktemp("certificate") / "a.pem"
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture(scope="module")
def sites(root: Path, certificate: Path) -> Iterator[dict[str, int]]:
    """The ports of the same files by http and https."""
    handler = partial(Handler, directory=str(root))
    plain = ThreadingHTTPServer((LOOPBACK, 0), handler)
    secure = ThreadingHTTPServer((LOOPBACK, 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    secure.socket = context.wrap_socket(secure.socket, server_side=True)
    threads = [Thread(target=server.serve_forever) for server in (plain, secure)]
    for thread in threads:
        thread.start()
    yield {"http": plain.server_port, "https": secure.server_port}
    for server in (plain, secure):
        server.shutdown()
        server.server_close()
    for thread in threads:
        thread.join()


@asynccontextmanager
async def allowing(name: str) -> AsyncGenerator[Place, None]:
    async with proxy(f"{name}:*", HERE) as box:
        yield box


async def run(*command: str, **env: str) -> tuple[int, str]:
    """A program's status and what it says."""
    with anyio.fail_after(30):
        done = await anyio.run_process(
            command, check=False, stderr=subprocess.STDOUT, env=os.environ | env
        )
    return done.returncode, done.stdout.decode()


def env_of(box: Place) -> dict[str, str]:
    """The variables of a box whose proxy is this one; all on one machine, here."""
    env = {
        name: value.replace("http://127.0.0.1:3128", box.url) for name, value in proxy_env().items()
    }
    return env | {"NO_PROXY": "", "no_proxy": ""}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("way", ["http", "socks5h"])
async def test_git_reads_from_where_it_may(sites: dict[str, int], scheme: str, way: str):
    async with allowing("a.example") as box:
        through = f"http.proxy={box.url.replace('http', way, 1)}"
        for host, works in (("a.example", True), ("b.example", False)):
            url = f"{scheme}://{host}:{sites[scheme]}/repo.git"
            status, told = await run("git", "-c", through, "ls-remote", url, **QUIET)
            assert (status == 0) is works, told
            assert ("refs/heads/main" in told) is works
        assert list(box.refused) == [f"b.example:{sites[scheme]}"]


async def test_git_clones_by_the_variables_of_a_box(sites: dict[str, int], tmp_path: Path):
    async with allowing("a.example") as box:
        url = f"https://a.example:{sites['https']}/repo.git"
        status, told = await run(
            "git", "clone", "-q", url, str(tmp_path / "clone"), **QUIET, **env_of(box)
        )
        assert status == 0, told
        assert (tmp_path / "clone" / ".git" / "HEAD").exists()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_pythons_own_client_reads_from_where_it_may(
    sites: dict[str, int], certificate: Path, scheme: str
):
    async with allowing("a.example") as box:
        env = env_of(box) | {"SSL_CERT_FILE": str(certificate)}
        for host, works in (("a.example", True), ("b.example", False)):
            url = f"{scheme}://{host}:{sites[scheme]}/hello.txt"
            status, told = await run(sys.executable, "-c", READ, url, **env)
            assert (status == 0) is works, told
            expected = "b'hello'" if works else "is refused by the network policy of this box"
            assert expected in told


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_httpx_reads_from_where_it_may(
    sites: dict[str, int], certificate: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
):
    async with allowing("a.example") as box:
        for name, value in env_of(box).items():
            monkeypatch.setenv(name, value)
        verify = ssl.create_default_context(cafile=certificate)
        async with httpx2.AsyncClient(verify=verify) as client:
            for _ in range(2):
                answer = await client.get(f"{scheme}://a.example:{sites[scheme]}/hello.txt")
                assert answer.text == "hello"
            url = f"{scheme}://b.example:{sites[scheme]}/hello.txt"
            if scheme == "http":
                assert (await client.get(url)).status_code == 403
            else:
                with pytest.raises(httpx2.ProxyError, match="is refused by the network policy"):
                    await client.get(url)


async def test_nodes_own_client_reads_from_where_it_may(sites: dict[str, int]):
    read = "fetch(process.argv[1]).then(a => a.text()).then(console.log)"
    async with allowing("a.example") as box:
        url = f"http://a.example:{sites['http']}/hello.txt"
        status, told = await run("node", "-e", read, url, **(node_environment() | env_of(box)))
        assert (status, told) == (0, "hello\n")
