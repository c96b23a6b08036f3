"""Authorities that a network's own HTTPS needs, in boxes of any image, beside what images bring.

Blocking, in worker threads. What images and boxes hold is untrusted: sizes are bounded, and what is
no bundle counts as none.
"""

# docker-py carries no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Generator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from box_mcp.engines.images import split_bundle
from box_mcp.engines.isolation import HOME
from box_mcp.errors import EngineRefused

if TYPE_CHECKING:
    from docker import APIClient

ALL = f"{HOME}/ca.pem"
GIVEN = f"{HOME}/ca-given.pem"
VARIABLES = {
    **dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), ALL),
    **dict.fromkeys(("PIP_CERT", "GIT_SSL_CAINFO"), ALL),
    "NODE_EXTRA_CA_CERTS": GIVEN,  # node has the usual ones built in, and reads all at each start
}
"""For all commands in boxes that have these files."""

OWN_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora
    "/var/lib/ca-certificates/ca-bundle.pem",  # openSUSE
    "/etc/ca-certificates/extracted/tls-ca-bundle.pem",  # Arch
)
"""Where distributions have theirs; files, not links to them, which the engine would not follow."""
MAX_BUNDLE = 4 * 1024 * 1024  # bytes; Debian's has 0.2 million

Files = tuple[tuple[str, bytes], ...]


class Authorities:
    """What `bundle` (PEM) adds to each box; None for nothing."""

    def __init__(self, bundle: Path | None) -> None:
        self._bundle = bundle
        self._of_images: dict[str, bytes] = {}

    @property
    def variables(self) -> dict[str, str]:
        """What commands need to find them."""
        return dict(VARIABLES) if self._bundle else {}

    def digest(self) -> str:
        """Tells one bundle from another; raises EngineRefused when it can't be read."""
        return hashlib.sha256(self._given()).hexdigest()[:16] if self._bundle else ""

    def of_new(self, api: APIClient, container: str, image: str) -> Files:
        """Files for a container that never ran: it holds what its image does."""
        if self._bundle and image not in self._of_images:
            self._of_images[image] = own(api, container)
        return self._with(self._of_images.get(image, b""))

    def of_used(self, api: APIClient, container: str) -> Files:
        """The same for one that did: what it holds now is its own affair, and no other's."""
        return self._with(own(api, container) if self._bundle else b"")

    def _with(self, usual: bytes) -> Files:
        if not self._bundle:
            return ()
        given = self._given()
        return (ALL, usual.rstrip() + b"\n" + given), (GIVEN, given)

    def _given(self) -> bytes:
        assert self._bundle is not None
        try:
            return "".join(split_bundle(self._bundle)).encode()
        except (OSError, ValueError) as error:
            why = f"the authorities that `ca_certificates` names can't be read: {error}"
            raise EngineRefused("create a box", why) from error


def own(api: APIClient, container: str) -> bytes:
    """The bundle that a container has; the public authorities where it has none."""
    from docker.errors import APIError

    for path in OWN_BUNDLES:
        try:
            chunks, _ = api.get_archive(container, path)
        except APIError as error:
            if error.status_code != 404:
                raise
            continue
        if found := _file_in(_taken(chunks)):
            return found
    return _public()


def _taken(chunks: Generator[bytes, None, None]) -> bytes:
    archive = bytearray()
    with closing(chunks):
        for chunk in chunks:
            archive += chunk
            if len(archive) > MAX_BUNDLE:
                return b""
    return bytes(archive)


def _file_in(archive: bytes) -> bytes:
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            member = next(iter(tar), None)
            file = tar.extractfile(member) if member is not None and member.isreg() else None
            return file.read(MAX_BUNDLE) if file is not None else b""
    except (tarfile.TarError, OSError, ValueError):
        return b""


@cache
def _public() -> bytes:
    from requests.utils import DEFAULT_CA_BUNDLE_PATH

    return Path(DEFAULT_CA_BUNDLE_PATH).read_bytes()
