"""From code in a box, at links to large files: those of its own, and those of other boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from tests.support.gitserver import TOKEN
from tests.support.needles import leaks
from tests.support.routed import BASIC, HEARD, LARGE, MINE, link_in
from tests.support.webserver import Trouble, echoed, redirect

if TYPE_CHECKING:
    from tests.support.routed import Routed


@pytest.mark.parametrize("spoilt", ["POST", "PUT", "DELETE"])
async def test_a_link_to_a_large_file_is_for_what_was_asked_for(spoilt: str, routed: Routed):
    link = await routed.link()
    routed.objects.forget()
    got = await routed.run(f"curl -sS -X {spoilt} -d stolen {link}")
    assert not routed.objects.asked, got
    assert routed.lfs.has(routed.large)
    assert await routed.run(f"curl -sS {link}") == LARGE.decode()


async def test_a_link_to_a_large_file_is_nothing_to_another_box(routed: Routed):
    link = await routed.link("app", MINE)
    routed.objects.forget()
    for route in ("app", "reading", "unlisted"):
        elsewhere = link.replace("/app/", f"/{route}/")
        for who in ("", "sudo -n "):
            got = await routed.run(f"{who}curl -sS {elsewhere}; true", "sibling")
            assert LARGE.decode() not in got
    assert not routed.objects.asked
    assert await routed.run(f"curl -sS {link}") == LARGE.decode()


async def test_a_link_to_a_large_file_can_not_be_guessed(routed: Routed):
    link = await routed.link()
    routed.objects.forget()
    start, _, name = link.rpartition("/")
    assert len(name) >= 22  # 128 bits
    guesses = [
        name[:-1],
        name + "x",
        name[:-1] + "%00",
        name.swapcase(),
        "",
        "..",
        "*",
        "x" * len(name),
    ]
    guesses += [routed.large, *routed.lfs.tokens]
    for guess in guesses:
        assert LARGE.decode() not in await routed.run(f"curl -sS --path-as-is '{start}/{guess}'")
    assert not routed.objects.asked


async def test_a_link_to_a_large_file_ends_with_what_it_stands_for(routed: Routed):
    routed.lfs.seconds = 1.0
    try:
        link = await routed.link()
    finally:
        routed.lfs.seconds = 300.0
    await anyio.sleep(1.1)
    routed.objects.forget()
    assert LARGE.decode() not in await routed.run(f"curl -sS {link}")
    assert not routed.objects.asked
    link = await routed.link()
    routed.lfs.expire()
    got = await routed.run(f"curl -sS -i {link}")
    assert LARGE.decode() not in got
    assert not leaks(got, [TOKEN, *routed.lfs.tokens])


async def test_a_box_sees_nothing_of_what_a_link_stands_for(routed: Routed):
    for in_query in (False, True):
        routed.lfs.in_query = in_query
        got = await routed.batch()
        assert str(routed.objects.port) not in got
        assert not leaks(got, [TOKEN, *routed.lfs.tokens])
        routed.objects.fail(Trouble("GET", 500, {"X-Echo": BASIC}, echoed))
        got = await routed.run(f"curl -sSi {link_in(got)}")
        assert not leaks(got, [TOKEN, *routed.lfs.tokens])
    routed.lfs.in_query = False


async def test_what_a_link_stands_for_is_not_sent_on(routed: Routed):
    for status in (301, 302, 303, 307, 308):
        link = await routed.link()
        routed.objects.fail(redirect("GET", f"{routed.thief.url}/x", status))
        got = await routed.run(f"curl -sSi -L {link}; true")
        assert not leaks(got, [TOKEN, *routed.lfs.tokens])
    assert all(not asked.header("Authorization") for asked in routed.thief.asked)
    routed.forget()


async def test_the_forges_credential_does_not_go_where_large_files_are(routed: Routed):
    routed.objects.forget()
    link = await routed.link()
    mine = "-H 'Authorization: Basic bWU6bWU=' -H 'Cookie: x=y' -H 'X-Evil: 1'"
    assert await routed.run(f"curl -sS {mine} {link}") == LARGE.decode()
    (asked,) = routed.objects.asked
    assert asked.header("Authorization").startswith("RemoteAuth ")
    assert {name.lower() for name, _ in asked.headers} <= HEARD
