"""What several kinds of attacks share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.attacks import ATTACKS, INBOUND, TWINS
from tests.support.routed import Routed, routes_with_enemies
from tests.support.scene import Scene, play

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.support.internet import Internet


@pytest.fixture(scope="session")
async def scene(internet: Internet, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """After all attacks on the network."""
    return await play(
        internet,
        tmp_path_factory.mktemp("scene"),
        ATTACKS,
        [twin._replace(name=name) for name, twin in TWINS.items()],
        INBOUND,
    )


@pytest.fixture(scope="session")
async def routed(
    internet: Internet, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Routed, None]:
    """Boxes with routes."""
    async with routes_with_enemies(internet, tmp_path_factory.mktemp("routed")) as made:
        yield made
