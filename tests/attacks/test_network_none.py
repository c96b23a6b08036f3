"""From a box without a network: nothing leads out, whatever it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.attacks import ATTACKS, OUTSIDE

if TYPE_CHECKING:
    from tests.support.scene import Attack, Scene


@pytest.mark.parametrize("attack", ATTACKS, ids=[one.name for one in ATTACKS])
async def test_a_box_without_a_network_can_not(attack: Attack, scene: Scene):
    assert scene.reached("none", attack.name) == ""


@pytest.mark.parametrize("how", OUTSIDE)
async def test_nor_reach_anything_outside_by(how: str, scene: Scene):
    assert scene.reached("none may", how) == ""
    assert scene.reached("full may", how), "a box with the network does not either"


async def test_but_its_own_loopback(scene: Scene):
    assert scene.reached("none may", "itself").startswith("this is none")
