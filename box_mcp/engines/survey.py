"""What a Docker engine can do for us, for `box-mcp doctor`; blocking, and for no other use.

All raise EngineUnreachable, EngineRefused and EngineStalled.
"""

# docker-py carries no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from box_mcp.engines.address import Address, find_engine, seen_from_here
from box_mcp.engines.counting import free_bytes
from box_mcp.engines.docker import connected
from box_mcp.engines.images import SOURCE_LABEL, arguments_of, source_of, target_of

LIMITS = {"MemoryLimit": "memory", "CpuCfsQuota": "cpu", "PidsLimit": "processes"}


@dataclass(frozen=True)
class Survey:
    """An engine's own account of itself.

    `missing_limits` names what it can't bound; `free` is in bytes where its data lies, None when
    that is on another machine. `remapped` tells that root in a container is nobody outside,
    `podman` that it is Podman, which speaks Docker's API.
    """

    address: Address
    version: str
    api: tuple[int, int]
    system: str
    missing_limits: tuple[str, ...]
    seccomp: bool
    remapped: bool
    runtimes: frozenset[str]
    data: str
    free: int | None
    podman: bool = False


def survey() -> Survey:
    """Asks the engine."""
    with connected("describe itself") as client:
        info, version = client.info(), client.version()
    major, _, minor = str(version["ApiVersion"]).partition(".")
    data = str(info.get("DockerRootDir", ""))
    return Survey(
        address=find_engine(),
        version=str(info.get("ServerVersion", "unknown")),
        api=(int(major), int(minor)),
        system=str(info.get("OSType", "unknown")),
        missing_limits=tuple(word for key, word in LIMITS.items() if not info.get(key, True)),
        seccomp=any("seccomp" in option for option in info.get("SecurityOptions") or ()),
        remapped=any("name=userns" in option for option in info.get("SecurityOptions") or ()),
        runtimes=frozenset(info.get("Runtimes") or ()),
        podman=any("Podman" in str(part.get("Name")) for part in version.get("Components") or ()),
        data=data,
        free=free_bytes(seen_from_here(find_engine(), data)),
    )


def is_current(
    image: str, ca_certificates: Path | None, versions: Mapping[str, str]
) -> bool | None:
    """Whether a standard image was built from this version's sources, with these harnesses.

    None for any other image. Raises ImageMissing, and OSError and ValueError for authorities that
    can't be read.
    """
    target = target_of(image)
    source = source_of(
        target=target or "base",
        ca_certificates=ca_certificates,
        arguments=arguments_of(target or "base", versions),
    )
    with connected("look at an image", image) as client:
        labels: Mapping[str, str] = client.images.get(image).labels
    return None if target is None else labels.get(SOURCE_LABEL) == source
