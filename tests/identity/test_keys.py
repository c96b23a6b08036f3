"""When an issuer's keys are fetched, how long they are believed, and which of them can be used."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jwt import get_algorithm_by_name

from box_mcp.errors import IdentityUnavailable
from box_mcp.identity.keys import (
    FRESH,
    LASTING,
    MAX_KEYS,
    MAX_TRIED,
    PAUSE,
    RETRY,
    Key,
    Keys,
    parse_keys,
)
from tests.support.issuer import Signer, rsa_key

pytestmark = pytest.mark.anyio

AWAY = IdentityUnavailable("https://id.example.org", "is away")
ONE, OTHER = Signer.new(), Signer.new()


def published(*signers: Signer) -> tuple[Key, ...]:
    return parse_keys({"keys": [signer.jwk() for signer in signers]})


class Scene:
    """A clock, and an issuer that publishes keys, or is away."""

    def __init__(self, group: anyio.abc.TaskGroup) -> None:
        self.now = 5000.0
        self.published: tuple[Key, ...] | None = published(ONE)
        self.asked = 0
        self.fetched = anyio.Event()
        self.keys = Keys("https://id.example.org", self._fetch, group, lambda: self.now)

    async def _fetch(self) -> tuple[Key, ...]:
        self.asked += 1
        await anyio.lowlevel.checkpoint()
        self.fetched.set()
        self.fetched = anyio.Event()
        if self.published is None:
            raise AWAY
        return self.published

    async def has(self, signer: Signer, *, anew: bool = False) -> bool:
        """Whether it is believed."""
        return bool(await self.keys.suiting(signer.name, signer.algorithm, anew=anew))


async def test_keys_are_fetched_when_they_are_needed_and_kept():
    async with anyio.create_task_group() as group:
        scene = Scene(group)
        assert scene.asked == 0
        for _ in range(5):
            assert await scene.has(ONE)
        assert scene.asked == 1


async def test_old_keys_are_renewed_while_they_are_used():
    async with anyio.create_task_group() as group:
        scene = Scene(group)
        assert await scene.has(ONE)
        scene.published = published(OTHER)
        scene.now += FRESH + 1
        fetched = scene.fetched
        assert await scene.has(ONE)
        await fetched.wait()
        await anyio.wait_all_tasks_blocked()
        assert not await scene.has(ONE)
        assert await scene.has(OTHER)
        assert scene.asked == 2


async def test_a_new_key_is_looked_for_but_not_often():
    async with anyio.create_task_group() as group:
        scene = Scene(group)
        assert await scene.has(ONE)
        scene.now += PAUSE - 1
        scene.published = published(ONE, OTHER)
        assert not await scene.has(OTHER, anew=True)
        assert scene.asked == 1
        scene.now += 2
        assert await scene.has(OTHER, anew=True)
        for _ in range(5):
            assert not await scene.has(Signer.new(), anew=True)
        assert scene.asked == 2


async def test_all_who_need_keys_at_once_share_one_look():
    async with anyio.create_task_group() as group:
        scene = Scene(group)
        had: list[bool] = []

        async def need() -> None:
            had.append(await scene.has(ONE))

        async with anyio.create_task_group() as callers:
            for _ in range(20):
                callers.start_soon(need)
        assert had == [True] * 20
        assert scene.asked == 1


async def test_who_gives_up_leaves_the_look_to_others():
    async with anyio.create_task_group() as group:
        scene = Scene(group)
        async with anyio.create_task_group() as callers:
            callers.start_soon(scene.has, ONE)
            await anyio.lowlevel.checkpoint()
            callers.cancel_scope.cancel()
        assert await scene.has(ONE)
        assert scene.asked == 1


async def test_keys_are_believed_for_a_day_while_the_issuer_is_away():
    async with anyio.create_task_group() as group:
        scene = Scene(group)
        assert await scene.has(ONE)
        scene.published = None
        for _ in range(3):
            scene.now += LASTING / 3 - 1
            assert await scene.has(ONE)
            await anyio.wait_all_tasks_blocked()
        assert scene.asked == 4
        scene.now += 20
        with pytest.raises(IdentityUnavailable, match="is away"):
            await scene.has(ONE)
        scene.published = published(ONE)
        scene.now += RETRY
        assert await scene.has(ONE)


async def test_an_issuer_that_is_away_is_not_pressed():
    async with anyio.create_task_group() as group:
        scene = Scene(group)
        scene.published = None
        for _ in range(5):
            with pytest.raises(IdentityUnavailable):
                await scene.has(ONE)
        assert scene.asked == 1
        scene.published = published(ONE)
        scene.now += RETRY
        assert await scene.has(ONE)


async def test_a_mistake_while_keys_are_read_ends_nothing(caplog: pytest.LogCaptureFixture):
    async def fetch() -> tuple[Key, ...]:
        raise ZeroDivisionError

    async with anyio.create_task_group() as group:
        keys = Keys("https://id.example.org", fetch, group)
        with pytest.raises(IdentityUnavailable):
            await keys.suiting(None, "ES256")
    assert "could not be read" in caplog.text


def test_a_key_serves_its_own_algorithms_only():
    signer = Signer("a", "RS256", rsa_key())
    (named,) = parse_keys({"keys": [signer.jwk()]})
    (unnamed,) = parse_keys({"keys": [signer.jwk(alg=None)]})
    assert named.algorithms == {"RS256"}
    assert unnamed.algorithms == {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
    (curve,) = parse_keys({"keys": [ONE.jwk(alg=None)]})
    assert curve.algorithms == {"ES256"}


UNUSABLE: dict[str, dict[str, Any]] = {
    "a shared secret": {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"},
    "a public key called a secret": ONE.jwk(kty="oct", k="c2VjcmV0", alg="HS256"),
    "with its private part": get_algorithm_by_name("ES256").to_jwk(ONE.private, as_dict=True),
    "for encryption": ONE.jwk(use="enc"),
    "for signing only": ONE.jwk(key_ops=["sign"]),
    "for another algorithm": ONE.jwk(alg="RS256"),
    "for no algorithm": ONE.jwk(alg="none"),
    "for a list of algorithms": ONE.jwk(alg=["ES256"]),
    "too short": Signer("s", "RS256", rsa_key(1024)).jwk(),
    "on another curve": ONE.jwk(crv="P-384"),
    "not on its curve": ONE.jwk(x=OTHER.jwk()["x"]),
    "on no curve": ONE.jwk(crv="secp256k1", alg=None),
    "of no kind": ONE.jwk(kty=None),
    "with a name that is none": ONE.jwk(kid=7),
    "with a type that is none": ONE.jwk(kty=["EC"]),
    "half": {name: value for name, value in ONE.jwk().items() if name != "y"},
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_keys_that_can_not_be_used_are_left_out(what: str):
    assert [key.id for key in parse_keys({"keys": [UNUSABLE[what], OTHER.jwk()]})] == [OTHER.name]


VALUES = st.none() | st.integers() | st.text(max_size=8) | st.lists(st.text(max_size=3), max_size=2)


@given(st.dictionaries(st.sampled_from([*ONE.jwk(), "n", "e", "key_ops", "d"]), VALUES))
def test_whatever_is_published_is_a_key_or_left_out(changes: dict[str, Any]):
    for signer in (ONE, Signer("r", "RS256", rsa_key()), Signer("e", "EdDSA", EDWARDS)):
        keys = parse_keys({"keys": [signer.jwk(**changes)]})
        assert all(key.algorithms for key in keys)


EDWARDS = Signer.new("EdDSA").private


@pytest.mark.parametrize("listed", [None, {}, "keys", [1, None, [], "key"]])
def test_what_is_no_list_of_keys_has_none(listed: object):
    assert parse_keys({"keys": listed}) == parse_keys({}) == ()


async def test_only_so_many_keys_are_looked_at():
    many = [ONE.jwk(kid=str(number)) for number in range(MAX_KEYS + 1)]
    assert len(parse_keys({"keys": many})) == MAX_KEYS
    async with anyio.create_task_group() as group:
        scene = Scene(group)
        scene.published = parse_keys({"keys": many})
        assert len(await scene.keys.suiting(None, "ES256")) == MAX_TRIED
