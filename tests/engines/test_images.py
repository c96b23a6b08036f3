from __future__ import annotations

import io
import ssl
import subprocess
import tarfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.engines import images
from box_mcp.engines.docker import DockerEngine, connected
from box_mcp.engines.images import (
    SOURCE_LABEL,
    build_image,
    find_dockerfile,
    source_hash,
    source_of,
    split_bundle,
)
from box_mcp.errors import EngineStalled, EngineUnreachable, ImageBuildFailed
from tests.support.client import docker
from tests.support.engines import IMAGE, channel_to, said, workshop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator
    from pathlib import Path

    from box_mcp.channel import Channel

TAG = "box-mcp-test:built"


def authority(folder: Path, name: str) -> Path:
    """A certificate that no system knows."""
    file = folder / f"{name}.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command = [*request, "-subj", f"/CN={name}", "-keyout", "/dev/null", "-out", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    return file


# Certificates


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, the first of them twice, with words and odd line ends between."""
    folder = tmp_path_factory.mktemp("bundle")
    one, two = (authority(folder, f"Authority {n}").read_text() for n in "12")
    file = folder / "bundle.pem"
    file.write_text(f"# one\n{one}\n# two\n{two}{one.replace(chr(10), chr(13) + chr(10))}\n")
    return file


def test_a_bundle_is_split_into_its_certificates_each_once(bundle: Path):
    certificates = split_bundle(bundle)
    assert len(certificates) == 2
    for certificate in certificates:
        assert ssl.PEM_cert_to_DER_cert(certificate)
        assert certificate.endswith("-----END CERTIFICATE-----\n")
        assert max(map(len, certificate.splitlines())) == 64


def test_a_certificate_has_one_form_however_it_is_written(bundle: Path, tmp_path: Path):
    first = split_bundle(bundle)[0]
    lines = first.splitlines()
    other = tmp_path / "other.pem"
    other.write_text(f"{lines[0]}\n{''.join(lines[1:-1])}\n{lines[-1]}")
    assert split_bundle(other) == (first,)


def test_a_bundle_without_certificates_fails_the_build_before_it_begins(tmp_path: Path):
    (tmp_path / "empty.pem").write_bytes(b"\xff nothing here")
    with pytest.raises(ValueError, match="holds no certificate"):
        split_bundle(tmp_path / "empty.pem")
    with pytest.raises(ImageBuildFailed, match="holds no certificate"):
        build(ca_certificates=tmp_path / "empty.pem")
    with pytest.raises(ImageBuildFailed, match="No such file"):
        build(ca_certificates=tmp_path / "none.pem")


# What an image is made from

texts = st.text(max_size=5)
sources = st.tuples(texts, st.lists(texts, max_size=3), texts, texts)


def hashed(source: tuple[str, list[str], str, str]) -> str:
    return source_hash(*source)


@given(sources, sources)
def test_the_hash_of_a_source_tells_sources_apart(
    one: tuple[str, list[str], str, str], two: tuple[str, list[str], str, str]
):
    def content(source: tuple[str, list[str], str, str]) -> tuple[object, ...]:
        return (source[0], sorted(source[1]), source[2:])

    assert (hashed(one) == hashed(two)) is (content(one) == content(two))


def test_the_source_of_the_usual_image_depends_on_all_that_goes_into_it(bundle: Path):
    usual = source_of()
    assert usual == source_of() == source_hash(find_dockerfile().read_text(), (), *USUAL)
    others = (
        source_of(target="agent"),
        source_of(base="debian:trixie"),
        source_of(ca_certificates=bundle),
    )
    assert len({usual, *others}) == 4


USUAL = (images.DEFAULT_BASE, "base")


def test_the_build_context_is_the_same_for_the_same_source():
    recipe, certificates = "FROM scratch\n", ("one", "two")
    context = images._context(recipe, certificates)
    assert context.getvalue() == images._context(recipe, certificates).getvalue()
    with tarfile.open(fileobj=io.BytesIO(context.getvalue())) as tar:
        names = tar.getnames()
        dockerfile = tar.extractfile("Dockerfile")
        assert dockerfile is not None
        assert dockerfile.read().decode() == recipe
    assert len(names) == 3
    assert all(name.startswith("ca/") and name.endswith(".crt") for name in names[1:])


# Building


@contextmanager
def building() -> Generator[Any, None, None]:
    with connected("build an image") as client:
        try:
            yield client
        finally:
            docker("image", "rm", "--force", TAG, check=False)


def build(client: Any = None, **options: Any) -> tuple[str, list[str]]:
    reports: list[str] = []
    image = build_image(client, tag=TAG, base=IMAGE, report=reports.append, **options)
    return image, reports


def recipe(folder: Path, *steps: str) -> Path:
    file = folder / "Dockerfile"
    file.write_text("\n".join(["ARG BASE", "FROM ${BASE} AS base", *steps, ""]))
    return file


def test_an_image_is_built_once_and_again_only_when_its_source_changes(tmp_path: Path):
    with building() as client:
        first, reports = build(client, dockerfile=recipe(tmp_path, "RUN echo warning: built"))
        assert "warning: built" in reports
        assert any(line.startswith("Step ") for line in reports)
        assert client.images.get(TAG).labels[SOURCE_LABEL]

        again, reports = build(client, dockerfile=tmp_path / "Dockerfile")
        assert again == first
        assert reports == [f"{TAG} is already built and current"]

        changed, _ = build(client, dockerfile=recipe(tmp_path, "RUN echo changed"))
        assert changed != first
        forced, reports = build(client, dockerfile=tmp_path / "Dockerfile", force=True)
        assert forced != changed
        assert len(reports) > 1


def test_a_failing_step_is_told_with_its_last_lines_and_leaves_the_image_as_it_was(tmp_path: Path):
    with building() as client:
        before, _ = build(client, dockerfile=recipe(tmp_path, "RUN true"))
        broken = recipe(tmp_path, "RUN seq 100 200; echo E: alas >&2; exit 7")
        with pytest.raises(ImageBuildFailed) as failed:
            build(client, dockerfile=broken)
        assert failed.value.tag == TAG
        assert "returned a non-zero code: 7" in failed.value.detail
        assert failed.value.detail.endswith("198\n199\n200\nE: alas")
        assert "\n150\n" not in failed.value.detail
        assert client.images.get(TAG).id == before


def test_a_recipe_that_the_engine_does_not_understand_is_told(tmp_path: Path):
    with building() as client, pytest.raises(ImageBuildFailed) as failed:
        build(client, dockerfile=recipe(tmp_path, "DANCE"))
    assert "unknown instruction: DANCE" in failed.value.detail
    assert "http" not in failed.value.detail


def test_a_base_that_can_neither_be_pulled_nor_made_here_is_told():
    with building() as client, pytest.raises(ImageBuildFailed, match="can't pull") as failed:
        build_image(client, tag=TAG, base="localhost:1/none:none", report=lambda _: None)
    assert "localhost:1/none:none" in failed.value.detail


def test_an_engine_that_goes_away_before_the_build_is_no_failure_of_the_image(tmp_path: Path):
    import requests

    class Images:
        """An engine's, at the moment when it goes away or hangs."""

        def __init__(self, error: Exception) -> None:
            self.images = self
            self._error = error

        def get(self, name: str) -> None:
            raise self._error

    with pytest.raises(EngineUnreachable):
        build(Images(requests.exceptions.ConnectionError("gone")))
    with pytest.raises(EngineStalled, match="did not build an image within 600 s"):
        build(Images(requests.exceptions.ReadTimeout("read timed out")))


def authorities_step() -> list[str]:
    """The steps of the real Dockerfile that add authorities, on an image that is built already."""
    text = find_dockerfile().read_text()
    start, end = text.index("COPY Dockerfile c[a]"), text.index("LABEL box_mcp.image=base")
    return text[start:end].splitlines()


VERIFY = """
import ssl
names = [dict(item[0] for item in a["subject"]) for a in ssl.create_default_context().get_ca_certs()]
print(sorted(n["commonName"] for n in names if n.get("commonName", "").startswith("Authority")))
print(len(names) > 100)
"""


async def test_authorities_of_a_bundle_are_trusted_in_the_box(bundle: Path, tmp_path: Path):
    with building() as client:
        build(client, dockerfile=recipe(tmp_path, *authorities_step()), ca_certificates=bundle)
        async with workshop(DockerEngine()) as shop:
            box = await shop.running(image=TAG)
            async with channel_to(shop.engine, box) as channel:
                trusted = await said(channel, f"python3 -c '{VERIFY}'".replace("'Auth", "'Auth"))
        assert trusted == "['Authority 1', 'Authority 2']\nTrue"


# The image that boxes start from


@pytest.fixture(scope="module")
async def channel_box() -> AsyncGenerator[tuple[DockerEngine, Any], None]:
    async with workshop(DockerEngine()) as shop:
        yield DockerEngine(), await shop.running()


@pytest.fixture
async def inside(channel_box: tuple[DockerEngine, Any]) -> AsyncGenerator[Channel, None]:
    engine, box = channel_box
    async with channel_to(engine, box) as channel:
        yield channel


@pytest.mark.parametrize(
    "command",
    [
        "python3 --version",
        "python --version",
        "pip --version",
        "git --version",
        "curl --version",
        "rg --version",
        "jq --version",
        "gcc --version",
        "make --version",
        "node --version",
        "npm --version",
        "sudo --version",
        "ssh -V",
        "less --version",
        "unzip -v",
        "ps --version",
    ],
)
async def test_the_image_has(command: str, inside: Channel):
    assert await said(inside, f"{command} 2>&1")


async def test_the_images_user_is_box_with_a_workspace_of_its_own(inside: Channel):
    assert await said(inside, "id -u box; stat -c %U:%G:%a /workspace; echo ~box") == (
        "1000\nbox:box:755\n/home/box"
    )


async def test_programs_can_be_compiled_and_environments_made(inside: Channel):
    await said(
        inside, "echo 'int main(void){return 0;}' | gcc -x c -o /tmp/program - && /tmp/program"
    )
    await said(inside, "python3 -m venv --without-pip /tmp/v && /tmp/v/bin/python -c 'import json'")
    await said(inside, "python3 -c 'import ensurepip, venv'; git init -q /tmp/r; node -e 0")


async def test_the_image_itself_asks_for_no_user_and_bears_its_labels(inside: Channel):
    labels = docker(
        "inspect", "-f", '{{.Config.User}}|{{index .Config.Labels "box_mcp.source"}}', IMAGE
    )
    user, _, source = labels.partition("|")
    assert not user
    assert len(source) == 64
