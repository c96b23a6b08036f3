"""Authorities of a network's own HTTPS: commands in any box trust them, beside the usual ones."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from box_mcp.engines.authorities import ALL, GIVEN, VARIABLES
from box_mcp.engines.docker import DockerEngine
from box_mcp.engines.isolation import Isolation
from box_mcp.errors import EngineRefused
from tests.support.engines import channel_to, run, said, workshop

if TYPE_CHECKING:
    from pathlib import Path

    from box_mcp.channel import Channel
    from tests.engines.conftest import Images

PUBLIC = 100
"""There are more authorities than these that all the world trusts."""

PREPARE = """
set -e
mkdir -p /tmp/served; cd /tmp/served
git init --quiet --bare repository; git -C repository update-server-info
cat > ../server.pem
"""
SERVER = """
import http.server, ssl
server = http.server.ThreadingHTTPServer(("localhost", 8443), http.server.SimpleHTTPRequestHandler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("../server.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""
URL = "https://localhost:8443/repository/HEAD"
CLIENTS = {
    "curl": f"curl -sSf {URL}",
    "curl, as root": f"sudo -n curl -sSf {URL}",
    "urllib": f"python3 -c 'import urllib.request as u; u.urlopen(\"{URL}\")'",
    "requests": f"python3 -c 'from pip._vendor import requests as r; r.get(\"{URL}\")'",
    "node": f'node -e \'require("https").get("{URL}", r => r.resume())\'',
    "git": "git ls-remote https://localhost:8443/repository",
}


@dataclass(frozen=True)
class Authority:
    """An authority of a network's own, and a server's certificate by it, with its key."""

    bundle: Path
    server: str


def authority(directory: Path, name: str) -> Authority:
    """Makes one that nobody knows."""
    key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)

    def builder(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )

    own = builder(issuer, key.public_key()).add_extension(x509.BasicConstraints(True, None), True)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(LOOPBACK)])
    server = builder(SERVER_NAME, server_key.public_key()).add_extension(names, False)
    bundle = directory / f"{name}.pem"
    bundle.write_bytes(own.sign(key, hashes.SHA256()).public_bytes(PEM))
    private = server_key.private_bytes(
        PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    signed = server.sign(key, hashes.SHA256()).public_bytes(PEM)
    return Authority(bundle, (private + signed).decode())


PEM = serialization.Encoding.PEM
LOOPBACK = ip_address("127.0.0.1")
SERVER_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("company"), "company")


async def trusting(channel: Channel, authority: Authority) -> set[str]:
    """The clients that take a server in the box for what it says it is."""
    await run(channel, PREPARE, stdin=authority.server)
    ready = "until curl -sk https://localhost:8443/ > /dev/null; do sleep 0.05; done"
    script = f"cd /tmp/served; python3 -c '{SERVER}' 2>/dev/null & {ready}\n"
    script += "".join(
        f"{client} > /dev/null 2>&1 && echo '{name}'\n" for name, client in CLIENTS.items()
    )
    return set((await run(channel, f"{script}kill $!")).output.splitlines())


async def count(channel: Channel, path: str) -> int:
    """How many certificates a file has."""
    return int(await said(channel, f"grep -c BEGIN {path} || true"))


async def test_commands_trust_the_given_authorities_beside_those_of_the_image(company: Authority):
    async with workshop(DockerEngine(Isolation(ca_certificates=company.bundle))) as shop:
        box = await shop.running()
        async with channel_to(shop.engine, box) as channel:
            assert await trusting(channel, company) == set(CLIENTS)
            usual = await count(channel, "/etc/ssl/certs/ca-certificates.crt")
            assert await count(channel, ALL) == usual + 1 > PUBLIC
            assert await said(channel, f"stat -c '%U %a' {ALL} {GIVEN}") == "root 644\nroot 644"


async def test_without_the_setting_nothing_of_it_is_in_a_box(company: Authority):
    async with workshop(DockerEngine()) as shop:
        box = await shop.running()
        async with channel_to(shop.engine, box) as channel:
            assert await trusting(channel, company) == set()
            assert await said(channel, "ls /opt/box_mcp") == "boxd.pyz"
            variables = await said(channel, "env | cut -d= -f1")
            assert VARIABLES.keys().isdisjoint(variables.split())


async def test_an_image_without_authorities_gets_the_public_ones_as_well(
    company: Authority, images: Images
):
    async with workshop(DockerEngine(Isolation(ca_certificates=company.bundle))) as shop:
        box = await shop.running(image=images.no_authorities, sudo=False, env={"PIP_CERT": "/own"})
        async with channel_to(shop.engine, box) as channel:
            assert await trusting(channel, company) == set(CLIENTS) - {"curl, as root"}
            assert await count(channel, ALL) > PUBLIC
            assert await said(channel, "echo $PIP_CERT") == "/own"


async def test_a_box_that_is_started_again_has_the_bundle_of_today(
    company: Authority, tmp_path: Path
):
    async with workshop(DockerEngine(Isolation(ca_certificates=company.bundle))) as shop:
        box = await shop.running()
        async with channel_to(shop.engine, box) as channel:
            await said(channel, "sudo -n sh -c 'echo > /etc/ssl/certs/ca-certificates.crt'")
        await shop.engine.stop(box)
        renewed = authority(tmp_path, "renewed")
        today = DockerEngine(Isolation(ca_certificates=renewed.bundle))
        await today.start(box)
        async with channel_to(today, box) as channel:
            assert await trusting(channel, renewed) == set(CLIENTS)
            assert await trusting(channel, company) == set()
        await today.aclose()
        other = await shop.running()  # what one box did to its own bundle is its own affair
        async with channel_to(shop.engine, other) as channel:
            assert await count(channel, ALL) > PUBLIC


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_a_bundle_that_can_not_be_read_is_told(content: str | None, tmp_path: Path):
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_text(content)
    async with workshop(DockerEngine(Isolation(ca_certificates=bundle))) as shop:
        with pytest.raises(EngineRefused, match="`ca_certificates` names can't be read"):
            await shop.created()
