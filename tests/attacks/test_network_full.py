"""From a box that has the network, out to where it must not get; and from there into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.attacks import ATTACKS, INBOUND, TWINS

if TYPE_CHECKING:
    from tests.support.scene import Attack, Scene

WAYS_IN = [
    (place, attack)
    for place in ("lan", "machine")
    for attack in INBOUND
    if (place, attack.how) != ("machine", "ping")  # only root may do that here
]


@pytest.mark.parametrize("attack", ATTACKS, ids=[one.name for one in ATTACKS])
async def test_a_box_with_the_network_can_not(attack: Attack, scene: Scene):
    assert scene.reached("full", attack.name) == ""
    if attack.control:
        assert scene.reached("ordinary", attack.name), "the attack itself is no good"
    if attack.how in TWINS:
        assert scene.reached("full may", attack.how), "nor what it may do"


@pytest.mark.parametrize(
    ("place", "attack"), WAYS_IN, ids=[f"{place}: {one.name}" for place, one in WAYS_IN]
)
async def test_nobody_gets_into_a_box_from(place: str, attack: Attack, scene: Scene):
    assert scene.reached(place, attack.name) == ""
    assert scene.reached(f"{place} to ordinary", attack.name), "the attack itself is no good"
    assert scene.reached("full may", f"{attack.how} itself"), "its own services do not answer"
