from __future__ import annotations

import gc
import io
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from box_mcp.engines.docker import DockerEngine
from tests.support.engines import IMAGE, RUN, Workshop, workshop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

# Without its source's label an image is a stranger's, and not trusted to have a good python3.
RECIPE = f"""\
FROM {IMAGE} AS strange
LABEL box_mcp.source=""

FROM strange AS no-python
RUN rm /usr/bin/python3

FROM strange AS old-python
RUN rm /usr/bin/python3 \
    && printf '#!/bin/sh\\necho "this Python is 3.6" >&2\\nexit 1\\n' > /usr/bin/python3 \
    && chmod 755 /usr/bin/python3

FROM strange AS mute-python
RUN rm /usr/bin/python3 && ln -s /bin/false /usr/bin/python3

FROM strange AS no-authorities
RUN rm -r /etc/ssl/certs && mkdir -p /etc/ssl/certs/ca-certificates.crt \
    && head -c 5000000 /dev/zero > /etc/ssl/certs/ca-certificates.crt/much

FROM strange AS worker
RUN userdel --remove box 2>&1 && useradd --create-home --uid 1234 worker
USER worker

FROM worker AS number
USER 4321:4321
"""


@dataclass(frozen=True)
class Images:
    """Images made for tests, by their names."""

    strange: str
    no_python: str
    old_python: str
    mute_python: str
    """It says nothing and fails."""
    no_authorities: str
    """It knows none; where its bundle should be is something else, and much of it."""
    worker: str
    """Commands run as user `worker` (1234); there is no user `box`."""
    number: str
    """Its user is 4321, a number without a name."""


@pytest.fixture(scope="session")
def images() -> Generator[Images, None, None]:
    """Built once; removed when all tests are done."""
    import docker
    from docker.errors import ImageNotFound

    client: Any = docker.from_env()
    targets = [line.split(" AS ")[1] for line in RECIPE.splitlines() if " AS " in line]
    names = {target.replace("-", "_"): f"box-mcp-test:{target}-{RUN}" for target in targets}
    try:
        for target, name in zip(targets, names.values(), strict=True):
            client.images.build(
                fileobj=io.BytesIO(RECIPE.encode()), target=target, tag=name, rm=True, forcerm=True
            )
        yield Images(**names)
    finally:
        for name in reversed(names.values()):
            with suppress(ImageNotFound):
                client.images.remove(name, force=True)
        client.close()


@pytest.fixture
async def shop() -> AsyncGenerator[Workshop, None]:
    """Real Docker, for one test."""
    async with workshop(DockerEngine()) as shop:
        yield shop


@pytest.fixture
def collected() -> Generator[None, None, None]:
    """What a test left to the garbage collector is collected before its end."""
    yield
    gc.collect()
