"""Where the engine is: found as docker's own command line finds it, without docker's client.

``DOCKER_HOST``, with ``DOCKER_TLS_VERIFY`` and ``DOCKER_CERT_PATH``; else the context that
``DOCKER_CONTEXT`` names, or that `docker context use` chose; else the usual socket.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

DEFAULT_ADDRESS = "unix:///var/run/docker.sock"
DEFAULT_CONTEXT = "default"
LOOK_TIMEOUT = 2.0  # s to connect to a socket of this machine
CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv")  # Docker's and Podman's
CONTAINER_VARIABLE = "container"  # Podman's, systemd's, and that of our own image
_CREDENTIALS = struct.Struct("3i")  # pid, uid and gid, as SO_PEERCRED tells them


@dataclass(frozen=True)
class Tls:
    """The files that an engine's certificate is checked with, and our own; `verify` tells if so."""

    ca: Path
    certificate: Path
    key: Path
    verify: bool


@dataclass(frozen=True)
class Address:
    """An engine's URL, as docker's command line has it; `trouble` is why it can't be used."""

    url: str = DEFAULT_ADDRESS
    tls: Tls | None = None
    trouble: str = ""

    @property
    def scheme(self) -> str:
        """``unix``, ``npipe``, ``tcp``, ``ssh``, or whatever else was written."""
        return self.url.partition("://")[0]

    @property
    def is_remote(self) -> bool:
        """Whether it is reached over a network: then nothing on this machine is the engine's."""
        return self.scheme not in {"unix", "npipe", "http+unix"}


def find_engine(environ: Mapping[str, str] = os.environ) -> Address:
    """The engine that the environment names; never raises."""
    if host := environ.get("DOCKER_HOST"):
        return Address(host, _tls_of(environ))
    home = Path(environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    name = environ.get("DOCKER_CONTEXT") or _chosen(home)
    return Address() if name == DEFAULT_CONTEXT else _context(home, name)


def is_in_container() -> bool:
    """Whether this process is in a container, as Docker, Podman and our own image mark theirs."""
    return bool(os.environ.get(CONTAINER_VARIABLE)) or any(map(os.path.exists, CONTAINER_MARKS))


def seen_from_here(address: Address, path: str) -> str | None:
    """The path under which this process finds a file of the engine's machine, None where it can't.

    Never what merely has the same name here: the engine's root directory is looked up through the
    process that listens on its socket, where we may. Where we may not, that process is at least one
    of those that are seen from here: not one outside of a container that this one is in.
    """
    if address.is_remote or not path or not sys.platform.startswith("linux"):
        return None
    process = _listener(address)
    if not process:
        return None
    through = f"/proc/{process}/root{path}"
    for way in (through, path):
        try:
            Path(way).stat()
        except PermissionError:
            continue
        except OSError:
            return None
        else:
            return way
    return None


def _listener(address: Address) -> int:
    """The process that listens on a socket; 0 for one that is hidden by a container."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(LOOK_TIMEOUT)
        try:
            line.connect(address.url.partition("://")[2])
            said = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:
            return 0
    return _CREDENTIALS.unpack(said)[0]


def _tls_of(environ: Mapping[str, str]) -> Tls | None:
    """As the docker client reads them: empty is off, and any other value on."""
    verify = bool(environ.get("DOCKER_TLS_VERIFY"))
    directory = environ.get("DOCKER_CERT_PATH")
    if not verify and not directory:
        return None
    home = Path(directory or Path.home() / ".docker")
    return Tls(home / "ca.pem", home / "cert.pem", home / "key.pem", verify)


def _chosen(home: Path) -> str:
    """The context that the user chose; what can't be read chooses none, as for docker itself."""
    try:
        name = json.loads((home / "config.json").read_text(encoding="utf-8"))["currentContext"]
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_CONTEXT
    return str(name) or DEFAULT_CONTEXT


def _context(home: Path, name: str) -> Address:
    key = sha256(name.encode()).hexdigest()
    files = home / "contexts" / "meta" / key / "meta.json"
    unusable = partial(Address, f"context {name!r}", None)
    try:
        meta: dict[str, Any] = json.loads(files.read_text(encoding="utf-8"))
        endpoint: dict[str, Any] = meta["Endpoints"]["docker"]
        url = str(endpoint["Host"])
    except FileNotFoundError:
        return unusable("there is no such context; `docker context ls` tells which there are")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return unusable(f"its description {files} can't be read: {error}")
    directory = home / "contexts" / "tls" / key / "docker"
    if not directory.is_dir():
        return Address(url)
    ca, certificate, key_file = (directory / f"{part}.pem" for part in ("ca", "cert", "key"))
    return Address(url, Tls(ca, certificate, key_file, not endpoint.get("SkipTLSVerify")))
