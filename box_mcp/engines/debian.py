"""A Debian base image made on this machine, for engines that reach no image registry.

`debootstrap` installs the release into a directory, `tar` packs it, the engine imports it: about
30 seconds. The mirrors are those of the host's own apt, where the host is a Debian.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

APT_SOURCES = Path("/etc/apt")

# As in the published slim images: no manuals, no translations, no service started by installing it.
SLIM_DPKG = """\
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
"""
NO_SERVICES = "#!/bin/sh\nexit 101\n"
LEFT_OUT = (
    "./var/cache/apt/*.bin",
    "./var/cache/apt/archives/*.deb",
    "./var/lib/apt/lists/*",
    "./var/log/*.log",
    "./usr/share/info/*",
    "./usr/share/locale/*",
    "./usr/share/man/*",
    "./proc/*",
    "./sys/*",
)

NO_SUITES = ("latest", "slim")
"""Tags of the published images that name no release."""
SWITCHED_OFF = ("no", "false", "without", "off", "disable")  # as apt reads `Enabled`

_SUITE = re.compile(r"[a-z]+\Z")
_TAIL = 5


class CannotBootstrap(Exception):
    """This host can't make the image itself; the text says why and what would help."""


@dataclass(frozen=True)
class AptSource:
    """One place that apt takes packages from."""

    uri: str
    suite: str
    components: tuple[str, ...]

    def __str__(self) -> str:
        return f"deb {self.uri} {self.suite} {' '.join(self.components)}"


def suite_of(image: str) -> str | None:
    """The Debian release that `image` names: `bookworm` for `debian:bookworm-slim`, else None."""
    name, _, tag = image.rpartition(":")
    suite = tag.partition("-")[0]
    named = name.rpartition("/")[2] == "debian" and _SUITE.match(suite)
    return suite if named and suite not in NO_SUITES else None


def sources_of(folder: Path, suite: str) -> tuple[AptSource, ...]:
    """What the apt of `folder` reads from Debian for `suite` and its updates; the suite first."""
    found: dict[AptSource, None] = {}
    for file in (folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))):
        if file.suffix == ".list" and file.is_file():
            found.update(dict.fromkeys(_one_line_entries(file.read_text(encoding="utf-8"))))
        elif file.suffix == ".sources":
            found.update(dict.fromkeys(_stanzas(file.read_text(encoding="utf-8"))))
    wanted = [s for s in found if s.suite == suite or s.suite.startswith(f"{suite}-")]
    return tuple(sorted(wanted, key=lambda source: source.suite != suite))


def _one_line_entries(text: str) -> Iterator[AptSource]:
    for line in text.splitlines():
        entry = re.match(r"\s*deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]+)", line)
        if entry is None:
            continue
        options, uri, suite, components = entry.groups()
        if _is_debians_own(re.findall(r"(?i)signed-by=(\S+)", options or "") or None):
            yield AptSource(uri, suite, tuple(components.split()))


def _stanzas(text: str) -> Iterator[AptSource]:
    uncommented = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    uncommented = re.sub(r"\n[ \t]+(?=\S)", " ", uncommented)  # long fields go on in indented lines
    for stanza in re.split(r"\n\s*\n", uncommented):
        lines = re.findall(r"(?m)^([\w-]+):(.*)$", stanza)
        fields: dict[str, list[str]] = {key.lower(): value.split() for key, value in lines}
        if _is_off(fields.get("enabled", [])) or "deb" not in fields.get("types", []):
            continue
        if _is_debians_own(fields.get("signed-by")):
            components = tuple(fields.get("components", []))
            for uri, suite in product(fields.get("uris", []), fields.get("suites", [])):
                yield AptSource(uri, suite, components)


def _is_off(enabled: list[str]) -> bool:
    return bool(enabled) and enabled[0].lower() in SWITCHED_OFF


def _is_debians_own(signers: list[str] | None) -> bool:
    """Whether an entry is Debian's: another vendor's names the key that it is signed by."""
    return signers is None or any("debian-archive" in signer for signer in signers)


@contextmanager
def bootstrapped(suite: str, report: Callable[[str], None]) -> Generator[IO[bytes]]:
    """A tar stream of a minimal Debian `suite`, for as long as the block runs."""
    as_root = _root_prefix()
    debootstrap = _find_debootstrap(as_root, report)
    folder = Path(tempfile.mkdtemp(prefix="box-mcp-base-"))
    try:
        sources = sources_of(APT_SOURCES, suite)
        report(f"installing Debian {suite} into a folder (debootstrap, about 30 s)")
        mirror = [source.uri for source in sources or _host_sources()][:1]
        options = ["--variant=minbase", "--include=ca-certificates"]
        _run([*as_root, debootstrap, *options, suite, str(folder), *mirror])
        for name, text in _slimming(sources).items():
            _run([*as_root, "install", "-D", "-m", "0755", "/dev/stdin", str(folder / name)], text)
        report("packing it and handing it to the engine")
        with _packed(as_root, folder) as stream:
            yield stream
    finally:
        _remove(as_root, folder)


def _host_sources() -> tuple[AptSource, ...]:
    """What a Debian host of another release reads: its mirror has the wanted release too."""
    with suppress(OSError):
        host = platform.freedesktop_os_release()
        if host["ID"] == "debian":
            return sources_of(APT_SOURCES, host.get("VERSION_CODENAME", "sid"))
    return ()


def _slimming(sources: tuple[AptSource, ...]) -> dict[str, str]:
    files = {"etc/dpkg/dpkg.cfg.d/docker": SLIM_DPKG, "usr/sbin/policy-rc.d": NO_SERVICES}
    if sources:
        files["etc/apt/sources.list"] = "".join(f"{source}\n" for source in sources)
    return files


@contextmanager
def _packed(as_root: list[str], folder: Path) -> Generator[IO[bytes]]:
    excluded = [f"--exclude={pattern}" for pattern in LEFT_OUT]
    command = [*as_root, "tar", "--numeric-owner", *excluded, "-C", str(folder), "-c", "."]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
        assert tar.stdout is not None
        yield tar.stdout
    if tar.returncode:
        raise CannotBootstrap(f"tar ended with status {tar.returncode}")


def _root_prefix() -> list[str]:
    if sys.platform != "linux":
        raise CannotBootstrap("it can only be made without a registry on Linux")
    import os

    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if (
        sudo
        and subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode == 0
    ):
        return [sudo, "-n"]
    raise CannotBootstrap("making it without a registry takes root, or sudo without a password")


def _find_debootstrap(as_root: list[str], report: Callable[[str], None]) -> str:
    path = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
    found = shutil.which("debootstrap", path=path)
    if found:
        return found
    if not shutil.which("apt-get"):
        raise CannotBootstrap("making it without a registry takes debootstrap: install that")
    report("installing debootstrap")
    packages = ["debootstrap", "debian-archive-keyring"]
    _run([*as_root, "apt-get", "update", "-q"])
    _run([*as_root, "apt-get", "install", "-q", "-y", "--no-install-recommends", *packages])
    return shutil.which("debootstrap", path=path) or "debootstrap"


def _run(command: list[str], stdin: str = "") -> None:
    done = subprocess.run(
        command,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        last_lines = " / ".join(done.stdout.strip().splitlines()[-_TAIL:])
        raise CannotBootstrap(
            f"`{' '.join(command)}` ended with status {done.returncode}: {last_lines}"
        )


def _remove(as_root: list[str], folder: Path) -> None:
    """Delete `folder`, but nothing that an interrupted debootstrap left mounted in it."""
    for mounted in ("proc", "sys"):
        subprocess.run(
            [*as_root, "umount", "-l", str(folder / mounted)], capture_output=True, check=False
        )
    subprocess.run([*as_root, "rm", "-rf", "--one-file-system", str(folder)], check=False)
