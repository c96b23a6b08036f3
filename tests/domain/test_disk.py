"""Who is to be stopped for the sake of the disk, and in which words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.domain.disk import (
    FEWEST_FILES,
    GIB,
    GRACE,
    MANY,
    MANY_FILES,
    Bounds,
    Growth,
    Size,
    Space,
    to_stop,
)
from box_mcp.domain.names import BoxId

ONE, OTHER = BoxId("box-00000001"), BoxId("box-00000002")
BOUNDS = Bounds(20 * GIB, 2 * GIB)
ROOM = Space(100 * GIB, 10_000_000)


def grew(before: float, now: float, excused: float = 0) -> Growth:
    return Growth(Size(int(before * GIB)), Size(int(now * GIB)), int(excused * GIB))


def test_a_box_is_stopped_when_its_files_are_more_than_it_may_have():
    assert not to_stop({ONE: grew(19, 20)}, BOUNDS, ROOM)
    [(box, why)] = to_stop({ONE: grew(19, 21.3), OTHER: grew(1, 1)}, BOUNDS, ROOM)
    assert box == ONE
    assert why.startswith("its files take 21.3 GiB, more than the 20 GiB it may have: delete")
    assert not to_stop({ONE: grew(19, 21.3)}, Bounds(None, 0), ROOM)


def test_one_that_was_stopped_for_that_is_stopped_again_only_if_it_grew():
    assert not to_stop({ONE: grew(21, 21 + GRACE / GIB, excused=21)}, BOUNDS, ROOM)
    assert to_stop({ONE: grew(21, 21.1 + GRACE / GIB, excused=21)}, BOUNDS, ROOM)


def test_of_those_that_fill_a_full_disk_the_one_that_grew_most_is_stopped():
    boxes = {ONE: grew(1, 2), OTHER: grew(10, 10)}
    [(box, why)] = to_stop(boxes, BOUNDS, Space(GIB, None))
    assert box == ONE
    assert why.startswith("its files grew to 2 GiB, and the engine's disk has only 1 GiB free: ")
    assert not to_stop({OTHER: boxes[OTHER]}, BOUNDS, Space(GIB, None))


def test_nobody_is_stopped_for_a_disk_that_is_not_looked_at():
    filling = {ONE: grew(1, 2)}
    assert not to_stop(filling, Bounds(20 * GIB, 0), Space(0, 0))
    assert not to_stop(filling, BOUNDS, Space(None, None))


def test_the_one_that_made_most_files_is_stopped_when_no_more_can_be_made():
    def made(before: int, now: int, size: float) -> Growth:
        return Growth(Size(0, before), Size(int(size * GIB), now))

    boxes = {ONE: made(0, 900_000, 0), OTHER: made(5, 5, 1)}
    [(box, why)] = to_stop(boxes, BOUNDS, Space(50 * GIB, 9))
    assert box == ONE
    assert why.startswith("it has 900,000 files of its own, and the engine's disk has room for 9 ")


sizes = st.builds(Size, st.integers(0, 100 * GIB), st.none() | st.integers(0, 10**7))
growths = st.dictionaries(
    st.sampled_from([ONE, OTHER]), st.builds(Growth, sizes, sizes, st.integers(0, 100 * GIB))
)
bounds = st.builds(Bounds, st.none() | st.integers(1, 50 * GIB), st.integers(0, 9 * GIB))
spaces = st.builds(Space, st.none() | st.integers(0, 99 * GIB), st.none() | st.integers(0, 10**6))


@given(growths, bounds, spaces)
def test_who_neither_is_too_large_nor_grows_is_never_stopped(
    boxes: dict[BoxId, Growth], bounds: Bounds, space: Space
):
    for box, why in to_stop(boxes, bounds, space):
        growth = boxes[box]
        large = bounds.box is not None and growth.now.bytes > bounds.box
        more = growth.now.bytes - growth.before.bytes >= MANY
        files = (growth.now.files or 0) - (growth.before.files or 0) >= MANY_FILES
        assert why
        assert large or (space.short(bounds) and (more or files))


@pytest.mark.parametrize("space", [Space(2 * GIB - 1, None), Space(9 * GIB, FEWEST_FILES - 1)])
def test_a_disk_is_short_of_bytes_or_of_files(space: Space):
    assert space.short(BOUNDS)
    assert not space.short(Bounds(1, 0))
    assert not Space(2 * GIB, FEWEST_FILES).short(BOUNDS)
