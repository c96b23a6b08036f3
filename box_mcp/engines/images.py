"""Building the images that boxes start from.

- base image: the engine has it → used; else pulled; else made here (see `debian`)
- box image: its label holds the hash of all it was made from, and that is current → kept;
  else built from the Dockerfile that comes with this package
- box image with coding agents: the same, on the one without
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections import deque
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from box_mcp.engines import debian
from box_mcp.engines.address import find_engine
from box_mcp.engines.diagnosis import diagnosed
from box_mcp.errors import ImageBuildFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import docker

DEFAULT_BASE = "debian:bookworm-slim"

TARGETS = ("base", "agent")
"""The Dockerfile's stages; ``agent`` is ``base`` with the coding agents."""

BUILD_TIMEOUT = 600.0  # s that the engine may be silent for during a step

SOURCE_LABEL = "box_mcp.source"
"""Holds the hash of everything that an image was built from."""

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_PEM_COLUMNS = 64
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_NOISE = ("---> ", "Removing intermediate container ")
_NOTABLE = ("Step ", "E: ", "W: ", "Err:", "warning:", "error:")
_TAIL = 15
_REPORTED_COLUMNS = 120


_NO_ARGUMENTS: Mapping[str, str] = {}


def tag_of(target: str) -> str:
    """The name of the standard image of a target."""
    return f"box-mcp:{target}"


def target_of(image: str) -> str | None:
    """What a standard image is the image of; None for any other image."""
    return next((target for target in TARGETS if image == tag_of(target)), None)


def arguments_of(target: str, versions: Mapping[str, str]) -> dict[str, str]:
    """The build arguments of a target that is to have harnesses in these versions."""
    if target != "agent":
        return {}
    return {f"{harness.upper()}_VERSION": version for harness, version in versions.items()}


def build_standard(
    client: docker.DockerClient,
    target: str,
    *,
    versions: Mapping[str, str],
    ca_certificates: Path | None = None,
    force: bool = False,
    report: Callable[[str], None],
) -> None:
    """Build the standard image of `target`, and the one it is built on; see `build_image`.

    `versions` are those of the harnesses by their names.
    """
    build = partial(
        build_image, client, ca_certificates=ca_certificates, force=force, report=report
    )
    build(target="base", tag=tag_of("base"))
    if target != "base":
        build(
            target=target,
            tag=tag_of(target),
            arguments=arguments_of(target, versions),
            built_on=tag_of("base"),
        )


def build_image(
    client: docker.DockerClient,
    *,
    target: str = "base",
    tag: str,
    ca_certificates: Path | None = None,
    base: str = DEFAULT_BASE,
    arguments: Mapping[str, str] = _NO_ARGUMENTS,
    dockerfile: Path | None = None,
    force: bool = False,
    built_on: str | None = None,
    report: Callable[[str], None],
) -> str:
    """Build `tag` unless the engine has it already from the very same source; return its id.

    Args:
        client: The engine.
        target: The Dockerfile's stage.
        tag: The name that the image gets.
        ca_certificates: A bundle (PEM) of authorities to trust beside the usual ones.
        base: The image to build on.
        arguments: What the Dockerfile asks for beside that.
        dockerfile: The recipe, by default the one that comes with this package.
        force: Build even if nothing has changed, and without the engine's cache.
        built_on: An image of an earlier stage: its steps are not done again by `force`.
        report: Called with each step and notable line while building.

    Raises:
        EngineUnreachable: The engine does not answer, or has gone away.
        EngineStalled: It said nothing for `BUILD_TIMEOUT`.
        ImageBuildFailed: The network or a step of the Dockerfile failed.
    """
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        recipe, certificates = _inputs(ca_certificates, dockerfile)
        arguments = {"BASE": base, **arguments}
        source = source_hash(recipe, certificates, target, arguments)
        if not force and (present := _built_from(client, tag, source)):
            report(f"{tag} is already built and current")
            return present
        _provide_base(client, base, report)
        return _build(
            client,
            build_context(recipe, certificates),
            report,
            tag=tag,
            target=target,
            buildargs=arguments,
            labels={SOURCE_LABEL: source},
            **_cache(force, built_on),
        )
    except (DockerException, debian.CannotBootstrap) as exc:
        why = getattr(exc, "explanation", None) or exc
        raise ImageBuildFailed(tag, str(why)) from exc
    except RequestException:  # the engine's own silence, not a step's failure
        with diagnosed("build an image", find_engine().url, BUILD_TIMEOUT):
            raise
    except (OSError, ValueError) as exc:
        raise ImageBuildFailed(tag, str(exc)) from exc
    except _StepFailed as exc:
        raise ImageBuildFailed(tag, str(exc)) from None


def _cache(force: bool, built_on: str | None) -> dict[str, Any]:
    """Which steps of earlier builds the engine may take over."""
    if force and built_on:
        return {"cache_from": [built_on]}  # from this image alone
    return {"nocache": force}


def source_of(
    *,
    target: str = "base",
    ca_certificates: Path | None = None,
    base: str = DEFAULT_BASE,
    arguments: Mapping[str, str] = _NO_ARGUMENTS,
) -> str:
    """What `SOURCE_LABEL` says on an image that `build_image` would make now from these."""
    recipe, certificates = _inputs(ca_certificates)
    return source_hash(recipe, certificates, target, {"BASE": base, **arguments})


def _inputs(
    ca_certificates: Path | None, dockerfile: Path | None = None
) -> tuple[str, tuple[str, ...]]:
    recipe = (dockerfile or find_dockerfile()).read_text(encoding="utf-8")
    return recipe, split_bundle(ca_certificates) if ca_certificates else ()


def find_dockerfile() -> Path:
    """The Dockerfile: inside an installed package, at the top of a source tree."""
    package = Path(__file__).parents[1]
    for candidate in (package / "Dockerfile", package.parent / "Dockerfile"):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"box_mcp is installed without its Dockerfile (looked in {package})")


def split_bundle(bundle: Path) -> tuple[str, ...]:
    """The certificates of a PEM bundle, each once and in one canonical form."""
    bodies = (
        "".join(body.split()) for body in _CERTIFICATE.findall(bundle.read_text("utf-8", "replace"))
    )
    certificates = tuple(dict.fromkeys(_pem(body) for body in bodies))
    if not certificates:
        raise ValueError(f"{bundle} holds no certificate in PEM form")
    return certificates


def _pem(body: str) -> str:
    """The form that Debian's own certificate files have, so that equal ones have equal hashes."""
    lines = [body[at : at + _PEM_COLUMNS] for at in range(0, len(body), _PEM_COLUMNS)]
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])


def source_hash(
    recipe: str, certificates: Iterable[str], target: str, arguments: Mapping[str, str]
) -> str:
    """A digest that changes when anything changes that the image is made from."""
    digest = hashlib.sha256()
    given = json.dumps(arguments, sort_keys=True)
    for part in (recipe, target, given, *sorted(certificates)):
        digest.update(hashlib.sha256(part.encode()).digest())
    return digest.hexdigest()


def _built_from(client: docker.DockerClient, tag: str, source: str) -> str | None:
    from docker.errors import ImageNotFound

    try:
        image: Any = client.images.get(tag)
    except ImageNotFound:
        return None
    return image.id if image.labels.get(SOURCE_LABEL) == source else None


def _provide_base(client: docker.DockerClient, base: str, report: Callable[[str], None]) -> None:
    from docker.errors import APIError, ImageNotFound

    try:
        client.images.get(base)
    except ImageNotFound:
        report(f"pulling {base}")
    else:
        return
    try:
        client.images.pull(base)
    except APIError as exc:
        why = exc.explanation or str(exc)
        suite = debian.suite_of(base)
        if suite is None:
            raise debian.CannotBootstrap(f"the engine can't pull {base}: {why}") from exc
        report(f"the engine can't pull {base} ({why}): making it here")
        try:
            _bootstrap(client, base, suite, report)
        except debian.CannotBootstrap as more:
            raise debian.CannotBootstrap(
                f"the engine can't pull {base} ({why}), and {more}"
            ) from more


def _bootstrap(
    client: docker.DockerClient, base: str, suite: str, report: Callable[[str], None]
) -> None:
    api: Any = client.api
    with debian.bootstrapped(suite, report) as stream:
        answer: str = api.import_image_from_stream(stream, changes=['CMD ["bash"]'])
    imported = json.loads(answer.splitlines()[-1])
    if "error" in imported:
        raise debian.CannotBootstrap(f"the engine refused it: {imported['error']}")
    # Named only now: half an image must not pass for the base next time.
    name, _, tag = base.rpartition(":")
    api.tag(imported["status"], name, tag)


def build_context(recipe: str, certificates: Iterable[str]) -> io.BytesIO:
    """The build context: the same bytes for the same input, so that the engine's cache holds."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as context:
        _add(context, "Dockerfile", recipe)
        for certificate in certificates:
            digest = hashlib.sha256(certificate.encode()).hexdigest()
            _add(context, f"ca/box-mcp-{digest[:16]}.crt", certificate)
    buffer.seek(0)
    return buffer


def _add(context: tarfile.TarFile, name: str, text: str) -> None:
    content = text.encode()
    member = tarfile.TarInfo(name)
    member.size = len(content)
    context.addfile(member, io.BytesIO(content))


class _StepFailed(Exception):
    """A step of the build failed; the text is the end of what it printed."""


def _build(
    client: docker.DockerClient,
    context: io.BytesIO,
    report: Callable[[str], None],
    *,
    tag: str,
    **options: Any,
) -> str:
    events = client.api.build(
        fileobj=context, custom_context=True, tag=tag, rm=True, forcerm=True, decode=True, **options
    )
    tail: deque[str] = deque(maxlen=_TAIL)
    for event in events:
        if "error" in event:
            raise _StepFailed("\n".join([str(event["error"]), *tail]))
        for line in str(event.get("stream", "")).splitlines():
            _take(line, tail, report)
    image: Any = client.images.get(tag)
    return image.id


def _take(line: str, tail: deque[str], report: Callable[[str], None]) -> None:
    """Remember `line` for an error's end, and report it if it tells how the build goes."""
    line = " ".join(_COLOUR.sub("", line).split())
    if not line or line.startswith(_NOISE):
        return
    tail.append(line)
    if line.startswith(_NOTABLE):
        report(line if len(line) <= _REPORTED_COLUMNS else f"{line[: _REPORTED_COLUMNS - 1]}…")
