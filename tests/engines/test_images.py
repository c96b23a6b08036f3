from __future__ import annotations

import io
import re
import ssl
import subprocess
import tarfile
from dataclasses import dataclass, field
from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requests.exceptions import ConnectionError as NoConnection
from requests.exceptions import ReadTimeout

from box_mcp.engines.docker import DockerEngine, connected
from box_mcp.engines.images import (
    DEFAULT_BASE,
    SOURCE_LABEL,
    arguments_of,
    build_context,
    build_image,
    find_dockerfile,
    source_hash,
    source_of,
    split_bundle,
)
from box_mcp.engines.survey import is_current
from box_mcp.errors import EngineStalled, EngineUnreachable, ImageBuildFailed
from box_mcp.settings import Settings, load
from tests.support.client import docker
from tests.support.engines import (
    IMAGE,
    RUN,
    Workshop,
    channel_to,
    said,
    that_leaves_sockets_behind,
    workshop,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator
    from pathlib import Path

    from box_mcp.channel import Channel

TAG = f"box-mcp-test:built-{RUN}"
BELOW = f"box-mcp-test:below-{RUN}"


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
        Builder(None).build(find_dockerfile(), ca_certificates=tmp_path / "empty.pem")
    with pytest.raises(ImageBuildFailed, match="No such file"):
        Builder(None).build(find_dockerfile(), ca_certificates=tmp_path / "none.pem")


# What an image is made from

texts = st.text(max_size=5)
arguments = st.dictionaries(texts, texts, max_size=2)
sources = st.tuples(texts, st.lists(texts, max_size=3), texts, arguments)
Source = tuple[str, list[str], str, dict[str, str]]


def hashed(source: Source) -> str:
    return source_hash(*source)


@given(sources, sources)
def test_the_hash_of_a_source_tells_sources_apart(one: Source, two: Source):
    def content(source: Source) -> tuple[object, ...]:
        return (source[0], sorted(source[1]), source[2:])

    assert (hashed(one) == hashed(two)) is (content(one) == content(two))


def test_the_source_of_the_usual_image_depends_on_all_that_goes_into_it(bundle: Path):
    usual = source_of()
    assert usual == source_of() == source_hash(find_dockerfile().read_text(), (), *USUAL)
    others = (
        source_of(target="agent"),
        source_of(base="debian:trixie"),
        source_of(ca_certificates=bundle),
        source_of(arguments={"CODEX_VERSION": "1.2.3"}),
    )
    assert len({usual, *others}) == 5


USUAL = ("base", {"BASE": DEFAULT_BASE})


def test_the_versions_of_agents_are_for_the_image_that_has_them():
    versions = Settings().versions()
    assert arguments_of("base", versions) == {}
    assert set(arguments_of("agent", versions)) == set(_asked())
    assert set(arguments_of("agent", versions).values()) == set(versions.values())


def _asked() -> list[str]:
    """What the Dockerfile's last stage asks for."""
    _, _, stage = find_dockerfile().read_text().partition("FROM base AS agent")
    return re.findall(r"^ARG (\w+)$", stage, re.MULTILINE)


def test_the_build_context_is_the_same_for_the_same_source():
    recipe, certificates = "FROM scratch\n", ("one", "two")
    context = build_context(recipe, certificates)
    assert context.getvalue() == build_context(recipe, certificates).getvalue()
    with tarfile.open(fileobj=io.BytesIO(context.getvalue())) as tar:
        names = tar.getnames()
        dockerfile = tar.extractfile("Dockerfile")
        assert dockerfile is not None
        assert dockerfile.read().decode() == recipe
    assert len(names) == 3
    assert all(name.startswith("ca/") and name.endswith(".crt") for name in names[1:])


# Building


@dataclass
class Builder:
    """Builds `TAG` on the standard image, and remembers what is to be removed."""

    client: Any
    made: list[str] = field(default_factory=list[str])
    reports: list[str] = field(default_factory=list[str])

    def build(self, dockerfile: Path, **options: Any) -> str:
        """The new image's id; `reports` are those of this build."""
        self.reports.clear()
        options = {"tag": TAG, "base": IMAGE, "report": self.reports.append, **options}
        self.made.append(build_image(self.client, dockerfile=dockerfile, **options))
        return self.made[-1]


@pytest.fixture
def builder() -> Generator[Builder, None, None]:
    with connected("build an image") as client:
        builder = Builder(client)
        try:
            yield builder
        finally:
            docker("image", "rm", "--force", TAG, BELOW, *builder.made, check=False)


def recipe(folder: Path, *steps: str) -> Path:
    file = folder / "Dockerfile"
    file.write_text("\n".join(["ARG BASE", "FROM ${BASE} AS base", *steps, ""]))
    return file


def test_an_image_is_built_once_and_again_only_when_its_source_changes(
    tmp_path: Path, builder: Builder
):
    file = recipe(tmp_path, f"RUN echo warning: {token_hex()}")
    first = builder.build(file)
    assert any(line.startswith("warning: ") for line in builder.reports)
    assert any(line.startswith("Step ") for line in builder.reports)
    assert builder.client.images.get(TAG).labels[SOURCE_LABEL]

    assert builder.build(file) == first
    assert builder.reports == [f"{TAG} is already built and current"]

    assert builder.build(recipe(tmp_path, f"RUN echo {token_hex()}")) != first
    assert builder.build(file, force=True) not in builder.made[:-1]


@that_leaves_sockets_behind
def test_a_failing_step_is_told_with_its_last_lines_and_leaves_the_image_as_it_was(
    tmp_path: Path, builder: Builder
):
    before = builder.build(recipe(tmp_path, f"RUN echo {token_hex()}"))
    broken = recipe(tmp_path, "RUN { seq 100 200; echo E: alas; } >&2; exit 7")
    with pytest.raises(ImageBuildFailed) as failed:
        builder.build(broken)
    assert failed.value.tag == TAG
    assert "returned a non-zero code: 7" in failed.value.detail
    assert failed.value.detail.endswith("198\n199\n200\nE: alas")
    assert "\n150\n" not in failed.value.detail
    assert builder.client.images.get(TAG).id == before


@that_leaves_sockets_behind
def test_a_recipe_that_the_engine_does_not_understand_is_told(tmp_path: Path, builder: Builder):
    with pytest.raises(ImageBuildFailed) as failed:
        builder.build(recipe(tmp_path, "DANCE"))
    assert "unknown instruction: DANCE" in failed.value.detail
    assert "http" not in failed.value.detail


@that_leaves_sockets_behind
def test_a_base_that_can_neither_be_pulled_nor_made_here_is_told(tmp_path: Path, builder: Builder):
    with pytest.raises(ImageBuildFailed, match="can't pull") as failed:
        builder.build(recipe(tmp_path), base="localhost:1/none:none")
    assert "localhost:1/none:none" in failed.value.detail


class EngineThatFails:
    """A client of an engine that goes away or hangs when it is asked for images."""

    def __init__(self, error: Exception) -> None:
        self.images = self
        self._error = error

    def get(self, name: str) -> None:
        raise self._error


def test_an_engine_that_goes_away_or_hangs_is_no_failure_of_the_image():
    with pytest.raises(EngineUnreachable):
        Builder(EngineThatFails(NoConnection("gone"))).build(find_dockerfile())
    with pytest.raises(EngineStalled, match="did not build an image within 600 s"):
        Builder(EngineThatFails(ReadTimeout("timed out"))).build(find_dockerfile())


def stages(folder: Path, *steps: str) -> Path:
    """A recipe of two stages, the second with these steps."""
    file = recipe(folder, f"RUN echo {token_hex()} > /first")
    file.write_text("\n".join([file.read_text(), "FROM base AS agent", *steps, ""]))
    return file


def test_what_an_image_is_built_on_is_not_made_again_when_it_is_to_be_built_anyway(
    tmp_path: Path, builder: Builder
):
    file = stages(tmp_path, "RUN head -c8 /dev/urandom > /second")
    builder.build(file, tag=BELOW)
    first, second = (
        builder.client.images.get(builder.build(file, target="agent", force=force, built_on=BELOW))
        for force in (False, True)
    )
    below, *_ = builder.client.images.get(BELOW).attrs["RootFS"]["Layers"][-1:]
    layers = [image.attrs["RootFS"]["Layers"] for image in (first, second)]
    assert [one[-2] for one in layers] == [below, below]
    assert layers[0][-1] != layers[1][-1]


def authorities_step() -> list[str]:
    """The steps of the real Dockerfile that add authorities, on an image that is built already."""
    text = find_dockerfile().read_text()
    start, end = text.index("COPY Dockerfile c[a]"), text.index("LABEL box_mcp.image=base")
    return text[start:end].splitlines()


VERIFY = """
import ssl
trusted = ssl.create_default_context().get_ca_certs()
names = [dict(item[0] for item in a["subject"]).get("commonName", "") for a in trusted]
print(*sorted(name for name in names if name.startswith("Authority")), len(names) > 100)
"""


async def test_authorities_of_a_bundle_are_trusted_in_the_box(
    bundle: Path, tmp_path: Path, builder: Builder
):
    builder.build(recipe(tmp_path, *authorities_step()), ca_certificates=bundle)
    async with workshop(DockerEngine()) as shop:
        box = await shop.running(image=TAG)
        async with channel_to(shop.engine, box) as channel:
            assert await said(channel, f"python3 -c '{VERIFY}'") == "Authority 1 Authority 2 True"


# The image that boxes start from


@pytest.fixture(scope="module")
async def shared() -> AsyncGenerator[Workshop, None]:
    """With one running box."""
    async with workshop(DockerEngine()) as shop:
        await shop.running()
        yield shop


@pytest.fixture
async def inside(shared: Workshop) -> AsyncGenerator[Channel, None]:
    async with channel_to(shared.engine, shared.made[0]) as channel:
        yield channel


@pytest.mark.parametrize(
    "command",
    [
        "python3 --version",
        "python --version",
        "pip --version",
        "git --version",
        "git lfs version && git config --system filter.lfs.process",
        "GIT_CONFIG_SYSTEM=kept sudo printenv GIT_CONFIG_SYSTEM",
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
    await said(inside, "echo 'int main(){}' | gcc -x c -o /tmp/program - && /tmp/program")
    await said(inside, "python3 -m venv --without-pip /tmp/v && /tmp/v/bin/python -c 'import json'")
    await said(inside, "python3 -c 'import ensurepip, venv'; git init -q /tmp/r; node -e 0")


async def test_the_usual_image_has_the_agents_in_the_versions_of_the_settings(shared: Workshop):
    settings = Settings()
    box = await shared.running(image=settings.image)
    async with channel_to(shared.engine, box) as channel:
        for prefix in ("", "sudo "):
            assert (await said(channel, f"{prefix}claude --version")).split()[0] == (
                settings.claude_code_version
            )
            assert (await said(channel, f"{prefix}codex --version")).split()[1] == (
                settings.codex_version
            )
        assert await said(channel, "printenv DISABLE_AUTOUPDATER") == "1"
        assert await said(channel, "sudo ls -d ~root/.npm /tmp/* 2>/dev/null; true") == ""
        # Codex runs commands of newer models by it, and looks for it there.
        assert (
            await said(channel, 'test -x "$(dirname "$(which codex)")/codex-code-mode-host"') == ""
        )


def test_it_is_told_whether_an_image_is_current_for_the_settings():
    settings = load()
    versions = settings.versions()
    told = partial(is_current, ca_certificates=settings.authorities())
    other = {**versions, "codex": "0.0.1"}
    assert told(settings.image, versions=versions) is True
    assert told(settings.image, versions=other) is False
    assert told(IMAGE, versions=other) is True
    assert told(DEFAULT_BASE, versions=versions) is None


def test_the_image_itself_asks_for_no_user_and_tells_what_it_was_made_from():
    assert docker("inspect", "-f", "{{.Config.User}}", IMAGE) == ""
    assert (
        len(docker("inspect", "-f", f'{{{{index .Config.Labels "{SOURCE_LABEL}"}}}}', IMAGE)) == 64
    )
