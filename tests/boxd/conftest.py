from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.boxd import Client, LocalBoxd, local_boxd

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def boxd() -> Iterator[LocalBoxd]:
    yield from local_boxd()


@pytest.fixture
def client(boxd: LocalBoxd) -> Iterator[Client]:
    with boxd.connect() as client:
        yield client
