"""What is Docker's alone: engines that are away, refuse or stall, strange images, its streams."""

from __future__ import annotations

import json
import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from random import randrange
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.channel import open_channel
from box_mcp.domain.names import BoxId
from box_mcp.engines.address import DEFAULT_ADDRESS
from box_mcp.engines.base import Condition
from box_mcp.engines.diagnosis import diagnosed
from box_mcp.engines.docker import (
    FREEZE_ATTEMPTS,
    SUBNET_ATTEMPTS,
    DockerEngine,
    connected,
    random_subnets,
)
from box_mcp.engines.isolation import LABEL, Isolation, network_name
from box_mcp.engines.payload import boxd_archive
from box_mcp.engines.pipe import STDERR_KEPT
from box_mcp.engines.stream import RECEIVE_AHEAD, DockerStream
from box_mcp.errors import (
    BoxBroken,
    EngineForbidden,
    EngineRefused,
    EngineStalled,
    EngineUnreachable,
    ImageMissing,
    ImageUnusable,
)
from tests.support import internet
from tests.support.client import docker, until
from tests.support.engines import (
    IMAGE,
    PATIENCE,
    SPEC,
    Workshop,
    channel_to,
    run,
    said,
    that_leaves_sockets_behind,
    workshop,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from anyio.abc import ByteStream, Listener, SocketStream

    from tests.engines.conftest import Images

IMPATIENT = 0.3  # s; the time-out of an engine that will not answer
BOX = BoxId("box-00000000")

SUBNET = "{{(index .IPAM.Config 0).Subnet}}"

Answer = bytes | None
"""An HTTP response, or None for none ever."""


def reply(status: int, body: object, *headers: str) -> bytes:
    """An HTTP response with JSON, after which the connection is closed."""
    content = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} -", f"Content-Length: {len(content)}", *headers]
    head = "\r\n".join([*lines, "Content-Type: application/json", "Connection: close", "", ""])
    return head.encode() + content


VERSION = reply(200, {"ApiVersion": "1.41"})


@dataclass(frozen=True)
class EngineThatRefuses:
    """Tells its version, and answers all else with an error."""

    status: int
    message: str

    def __call__(self, request: str) -> Answer:
        return VERSION if "/version" in request else reply(self.status, {"message": self.message})


@dataclass(frozen=True)
class EngineThatStalls:
    """Answers nothing, or nothing but its version."""

    tells_version: bool

    def __call__(self, request: str) -> Answer:
        return VERSION if self.tells_version and "/version" in request else None


class NoEngine:
    """Some other web server, at the engine's address."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def __call__(self, request: str) -> Answer:
        return self._answer


@asynccontextmanager
async def answering(
    listener: Listener[ByteStream], answer: Callable[[str], Answer]
) -> AsyncGenerator[None, None]:
    """Serves HTTP for the length of the block; `answer` is given each request's first line."""

    async def serve(stream: ByteStream) -> None:
        async with stream:
            received = b""
            while b"\r\n\r\n" not in received:
                try:
                    received += await stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return
            answered = answer(received.decode().splitlines()[0])
            await (stream.send(answered) if answered else anyio.sleep_forever())

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield
        group.cancel_scope.cancel()


@asynccontextmanager
async def asked(
    path: Path,
    answer: Callable[[str], Answer],
    monkeypatch: pytest.MonkeyPatch,
    timeout: float = PATIENCE,
) -> AsyncGenerator[DockerEngine, None]:
    """Our door to an engine that answers so, on a socket of its own."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    engine = DockerEngine(timeout=timeout)
    async with answering(await anyio.create_unix_listener(path), answer):
        yield engine
    await engine.aclose()


# Engines that are not there


@pytest.fixture
def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@that_leaves_sockets_behind
async def test_a_socket_that_is_not_there_is_told_with_its_address_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    engine = DockerEngine()
    for call in (engine.list(), engine.inspect(BOX), engine.create(BOX, SPEC)):
        with pytest.raises(EngineUnreachable) as error:
            await call
        assert error.value.address == f"unix://{tmp_path}/none.sock"
        assert error.value.detail == "No such file or directory"
        assert "Start Docker" in error.value.explain()
    await engine.aclose()


@that_leaves_sockets_behind
async def test_a_closed_port_is_told_with_its_address(
    closed_port: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{closed_port}")
    engine = DockerEngine()
    with pytest.raises(EngineUnreachable) as error:
        await engine.start(BOX)
    assert error.value.address == f"tcp://127.0.0.1:{closed_port}"
    assert error.value.detail == "Connection refused"
    await engine.aclose()


async def test_a_socket_that_may_not_be_used_is_told_with_another_remedy():
    cause = PermissionError(13, "Permission denied")
    with (
        pytest.raises(EngineForbidden, match="Permission denied") as error,
        diagnosed("list boxes", "unix:///x", 1.0),
    ):
        raise ConnectionError("Connection aborted.", cause)
    assert "usermod -aG docker" in error.value.explain()


@pytest.mark.parametrize("address", ["nonsense://x", "ssh://nobody@127.0.0.1:1"])
async def test_an_address_that_can_not_be_used_is_told(
    address: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DOCKER_HOST", address)
    engine = DockerEngine()
    with pytest.raises(EngineUnreachable) as error:
        await engine.list()
    assert error.value.address == address
    assert error.value.detail
    assert "Error" not in error.value.detail


def test_an_empty_address_means_the_usual_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOCKER_HOST", "")
    assert DockerEngine().address == DEFAULT_ADDRESS
    assert repr(DockerEngine()) == f"<DockerEngine {DEFAULT_ADDRESS} 0 calls under way>"


# Engines that are there and do not do what is asked


@pytest.mark.parametrize("status", [403, 409, 500, 503])
async def test_an_engine_that_refuses_is_quoted(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    refuses = EngineThatRefuses(status, "not on a Sunday")
    async with asked(tmp_path / "s", refuses, monkeypatch) as engine:
        for operation, call in (
            ("list boxes", engine.list),
            ("start a box", lambda: engine.start(BOX)),
            ("delete a box", lambda: engine.delete(BOX)),
            ("connect to a box", lambda: engine.open_channel(BOX)),
        ):
            with pytest.raises(EngineRefused) as error:
                await call()
            assert (error.value.operation, error.value.detail) == (operation, "not on a Sunday")
        with pytest.raises(EngineRefused, match="not on a Sunday"):
            await engine.create(BOX, SPEC)


class EngineThatCanNotFreeze:
    """Says for a while what runc says of a box that forks all the time."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self, request: str) -> Answer:
        if "/pause" not in request:
            return VERSION
        self.left -= 1
        if self.left < 0:
            return reply(204, {})
        return reply(500, {"message": "OCI runtime pause failed: unable to freeze: unknown"})


async def test_a_box_that_can_not_be_frozen_at_once_is_frozen_a_little_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    busy = EngineThatCanNotFreeze(FREEZE_ATTEMPTS - 1)
    async with asked(tmp_path / "s", busy, monkeypatch) as engine:
        await engine.freeze(BOX)
        assert busy.left == -1
        busy.left = FREEZE_ATTEMPTS
        with pytest.raises(EngineRefused, match="unable to freeze"):
            await engine.freeze(BOX)
        assert busy.left == 0


class EngineThatGivesNoLabels:
    """Podman 4.3 keeps nothing of what it is told of an image that a box is saved to."""

    def __init__(self) -> None:
        self.images: set[str] = set()

    def __call__(self, request: str) -> Answer:
        if "/commit?" in request:
            self.images.add("saved")
            return reply(201, {"Id": "saved"})
        if request.startswith("DELETE"):
            self.images.discard("saved")
            return reply(200, [])
        if "/containers/" in request:
            return reply(200, {"Image": "base", "Config": {"Env": []}})
        about = {"Config": {"Labels": None}, "RootFS": {"Layers": ["one"]}, "Id": "saved"}
        return VERSION if "/version" in request else reply(200, about)


async def test_what_is_saved_and_could_not_be_found_again_is_refused_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    answer = EngineThatGivesNoLabels()
    async with asked(tmp_path / "s", answer, monkeypatch) as engine:
        with pytest.raises(EngineRefused, match="gives images no labels"):
            await engine.save(BOX, None, {})
    assert not answer.images


async def test_a_box_that_has_ended_is_stopped_in_podmans_words_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def podman(request: str) -> Answer:
        words = {
            "/unpause": f'"{BOX}" is not paused, can\'t unpause: container state improper',
            "/kill": f"can only kill running containers. {BOX} is in state stopped",
        }
        said = next((said for path, said in words.items() if path in request), "")
        done = VERSION if "/version" in request else reply(200, {"StatusCode": 0})
        return reply(500, {"message": said}) if said else done

    async with asked(tmp_path / "s", podman, monkeypatch) as engine:
        await engine.stop(BOX)


async def test_an_engine_that_refuses_even_to_tell_its_version_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sick = NoEngine(reply(500, {"message": "the disk is full"}))
    async with asked(tmp_path / "s", sick, monkeypatch) as engine:
        with pytest.raises(EngineRefused, match="the disk is full"):
            await engine.list()


@pytest.mark.parametrize("tells_version", [False, True])
async def test_an_engine_that_does_not_answer_is_given_up_in_time(
    tells_version: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    stalls = EngineThatStalls(tells_version)
    async with asked(tmp_path / "s", stalls, monkeypatch, IMPATIENT) as engine:
        with anyio.fail_after(PATIENCE), pytest.raises(EngineStalled) as error:
            await engine.start(BOX)
        assert (error.value.operation, error.value.seconds) == ("start a box", IMPATIENT)


@pytest.mark.parametrize(
    "answer",
    [
        reply(200, {"hello": "world"}),
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>",
        b"220 mail.example ESMTP\r\n",
    ],
)
async def test_something_that_is_no_engine_is_told_as_none(
    answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with asked(tmp_path / "s", NoEngine(answer), monkeypatch) as engine:
        with pytest.raises(EngineUnreachable) as error:
            await engine.list()
        assert len(error.value.detail.split()) > 1


async def test_a_state_that_we_have_no_word_for_is_told_and_not_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def odd(request: str) -> Answer:
        state = {"State": {"Status": "dreaming"}}
        return VERSION if "/version" in request else reply(200, state)

    async with asked(tmp_path / "s", odd, monkeypatch) as engine:
        with pytest.raises(EngineRefused, match="'dreaming'"):
            await engine.inspect(BOX)


@that_leaves_sockets_behind
def test_blocking_work_has_the_same_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ImageMissing) as missing, connected("look", "box-mcp-test:none") as client:
        client.images.get("box-mcp-test:none")
    assert missing.value.image == "box-mcp-test:none"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(EngineUnreachable), connected("look") as client:
        pytest.fail("there is no engine")


# What a failed creation leaves


def networks_of(box: BoxId) -> str:
    return docker("network", "ls", "--quiet", "--filter", f"name={box}")


def containers_of(box: BoxId) -> str:
    return docker("ps", "--all", "--quiet", "--filter", f"name={box}")


async def test_a_failed_creation_leaves_neither_container_nor_network(shop: Workshop):
    for changes in ({"image": "box-mcp-test:none"}, {"memory": 1}, {"cpus": 100_000.0}):
        with pytest.raises((ImageMissing, EngineRefused)):
            await shop.created(**changes)
        assert containers_of(shop.made[-1]) == networks_of(shop.made[-1]) == ""


async def test_a_box_leaves_no_network_behind(shop: Workshop):
    box = await shop.created()
    assert networks_of(box)
    await shop.engine.delete(box)
    assert not networks_of(box)


async def test_a_box_whose_network_alone_is_left_is_listed_as_absent_and_can_be_deleted(
    shop: Workshop,
):
    box = await shop.created()
    docker("rm", box)
    found = await shop.listed(box)
    assert found is not None
    assert found.condition is Condition.ABSENT
    assert found.detail
    await shop.engine.delete(box)
    assert await shop.listed(box) is None


async def test_a_foreign_container_under_our_id_is_left_alone(shop: Workshop):
    box = shop.new_id()
    docker("create", "--name", box, IMAGE)
    with pytest.raises(EngineRefused, match="already in use"):
        await shop.engine.create(box, SPEC)
    assert containers_of(box)
    assert not networks_of(box)


async def test_a_container_that_only_inherits_our_label_is_no_box_of_ours(shop: Workshop):
    box, other = await shop.created(), shop.new_id()
    docker("create", "--name", other, "--label", f"{LABEL}={box}", IMAGE)
    found = await shop.listed(box)
    assert found is not None
    assert found.condition is Condition.CREATED
    assert await shop.listed(other) is None


async def test_boxes_of_another_owner_are_not_listed(shop: Workshop):
    box = await shop.created()
    async with workshop(DockerEngine(Isolation(owner="somebody"))) as theirs:
        other = await theirs.created()
        assert await theirs.listed(box) is None
        assert await theirs.listed(other)
    assert await shop.listed(other) is None


# Networks


@given(st.integers(0, 2**32 - 1), st.integers(8, 32))
def test_random_subnets_lie_within_the_range_and_come_once_each(address: int, prefix: int):
    within = IPv4Network((address, prefix), strict=False)
    subnets = list(random_subnets(within))
    assert all(subnet.prefixlen == 29 and subnet.subnet_of(within) for subnet in subnets)
    assert len(set(subnets)) == len(subnets)
    assert len(subnets) == min(SUBNET_ATTEMPTS, within.num_addresses // 8)


@given(
    st.integers(16, 28),
    st.lists(st.tuples(st.integers(0, 2**17 - 1), st.integers(14, 32)), max_size=8),
)
def test_random_subnets_have_no_route_and_routes_for_more_than_the_range_do_not_count(
    prefix: int, ends: list[tuple[int, int]]
):
    base = int(IPv4Network("10.212.0.0/15").network_address)
    within = IPv4Network((base, prefix), strict=False)
    routes = [IPv4Network((base + offset, length), strict=False) for offset, length in ends]
    inside = [route for route in routes if route.subnet_of(within)]
    free = [
        subnet
        for subnet in within.subnets(new_prefix=29)
        if not any(route.overlaps(subnet) for route in inside)
    ]
    found = list(random_subnets(within, routes))
    assert set(found) <= set(free)
    assert len(found) == min(SUBNET_ATTEMPTS, len(free))


@pytest.mark.skipif(not internet.usable, reason=f"takes {internet.NEEDS}")
async def test_subnets_that_this_machine_has_routes_to_are_passed_over():
    part = f"10.215.{randrange(256)}"
    two_subnets = IPv4Network(f"{part}.0/28")
    async with workshop(DockerEngine(Isolation(subnets=two_subnets))) as shop:
        route = ("blackhole", f"{part}.8/30")
        internet.run("ip", "route", "add", *route)
        try:
            network = network_name(await shop.created())
            assert docker("network", "inspect", "-f", SUBNET, network) == f"{part}.0/29"
            with pytest.raises(EngineRefused, match="beside networks and routes of its machine"):
                await shop.created()
        finally:
            internet.run("ip", "route", "delete", *route)


async def test_a_taken_subnet_is_passed_over_and_a_full_range_is_told():
    part = f"10.214.{randrange(256)}"
    two_subnets = IPv4Network(f"{part}.0/28")
    async with workshop(DockerEngine(Isolation(subnets=two_subnets))) as shop:
        taken = {
            docker("network", "inspect", "-f", SUBNET, network)
            for network in [network_name(await shop.created()) for _ in range(2)]
        }
        assert taken == {f"{part}.0/29", f"{part}.8/29"}
        with pytest.raises(EngineRefused, match=f"no free subnet found in {two_subnets}"):
            await shop.created()
        assert not containers_of(shop.made[-1])


async def test_a_range_too_small_for_one_box_is_told():
    async with workshop(DockerEngine(Isolation(subnets=IPv4Network("10.214.78.0/30")))) as shop:
        with pytest.raises(EngineRefused, match="no free subnet"):
            await shop.created()


async def test_a_runtime_that_the_engine_lacks_is_told():
    async with workshop(DockerEngine(Isolation(runtime="no-such-runtime"))) as shop:
        with pytest.raises(EngineRefused, match="no-such-runtime"):
            await shop.running()


# Images


@pytest.mark.parametrize(
    ("image", "who"), [("worker", "worker 1234 1234"), ("number", "4321 4321 4321")]
)
async def test_commands_run_as_the_images_own_user_where_there_is_no_user_box(
    image: str, who: str, shop: Workshop, images: Images
):
    box = await shop.running(image=getattr(images, image))
    async with channel_to(shop.engine, box) as channel:
        assert await said(channel, "echo $USER $(id -u) $(id -g)") == who
        assert (await run(channel, "cat /etc/shadow")).failed


async def test_without_sudo_an_image_without_user_box_is_unusable(shop: Workshop, images: Images):
    box = await shop.created(image=images.worker, sudo=False)
    with pytest.raises(ImageUnusable, match="needs a user 'box'") as unusable:
        await shop.engine.start(box)
    assert unusable.value.image == images.worker


async def test_a_python_that_can_not_run_the_daemon_is_named(shop: Workshop, images: Images):
    box = await shop.created(image=images.old_python)
    with pytest.raises(ImageUnusable, match=r"this Python is 3\.6"):
        await shop.engine.start(box)
    assert "this Python is 3.6" in await shop.engine.last_words(box)


async def test_a_python_that_says_nothing_is_told_as_such(shop: Workshop, images: Images):
    box = await shop.created(image=images.mute_python)
    with pytest.raises(ImageUnusable, match="its python3 ended without a word"):
        await shop.engine.start(box)


async def test_a_strangers_image_with_a_good_python_is_proven_once(shop: Workshop, images: Images):
    for _ in range(2):
        box = await shop.running(image=images.strange)
        async with channel_to(shop.engine, box) as channel:
            assert await said(channel, "whoami") == "box"


async def test_a_box_that_lost_its_python_is_told_by_what_the_engine_says(shop: Workshop):
    box = await shop.running()
    async with channel_to(shop.engine, box) as channel:
        await said(channel, "sudo mv /usr/bin/python3 /usr/bin/python4")
        with pytest.raises(BoxBroken, match='"python3": executable file not found'):
            await open_channel(box, await shop.engine.open_channel(box))
        assert await said(channel, "echo still there") == "still there"
    await shop.engine.stop(box)
    with pytest.raises(BoxBroken, match="it has no python3 on its PATH any more"):
        await shop.engine.start(box)


async def test_a_stopped_box_that_another_version_made_gets_the_boxd_of_this_one(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
):
    main = b"from boxd.main import main\nmain()"
    ancient = boxd_archive(0).replace(main, b"raise SystemExit('ancient')".ljust(len(main)))

    def archive(*_: object) -> bytes:
        return ancient

    with monkeypatch.context() as earlier:
        earlier.setattr("box_mcp.engines.docker.boxd_digest", lambda: "another")
        earlier.setattr("box_mcp.engines.docker.boxd_archive", archive)
        box = await shop.running()

    async def ended() -> bool:
        return await shop.condition(box) is Condition.STOPPED

    await until(ended, "the end of an ancient boxd")
    assert "ancient" in await shop.engine.last_words(box)
    await shop.engine.start(box)
    async with channel_to(shop.engine, box) as channel:
        assert await said(channel, "echo hello") == "hello"


async def test_variables_of_the_spec_reach_commands(shop: Workshop):
    box = await shop.running(env={"GREETING": "good morning"})
    async with channel_to(shop.engine, box) as channel:
        assert await said(channel, "echo $GREETING") == "good morning"


async def test_a_closed_channel_is_noticed_in_the_box_at_once(shop: Workshop):
    box = await shop.running()
    async with channel_to(shop.engine, box) as channel:
        connectors = "pgrep -cf 'sleep infinity'"
        before = int(await said(channel, connectors))
        other = await open_channel(box, await shop.engine.open_channel(box))
        assert int(await said(channel, connectors)) == before + 1
        await other.aclose()

        async def noticed() -> bool:
            return int(await said(channel, connectors)) == before

        await until(noticed, "the end of the connector")


# Docker's framing of what a program prints


def frame(kind: int, payload: bytes) -> bytes:
    return struct.pack("!BxxxI", kind, len(payload)) + payload


async def everything(stream: DockerStream) -> bytes:
    stream.connection_lost(None)
    received = b""
    while True:
        try:
            received += await stream.receive()
        except anyio.EndOfStream:
            return received


async def test_stdout_comes_through_and_stderr_is_kept_as_the_complaint():
    stream = DockerStream()
    frames = [frame(1, b"\0one "), frame(2, b"alas"), frame(1, b"two"), frame(2, b", poor me")]
    stream.data_received(b"".join(frames))
    assert await everything(stream) == b"\0one two"
    assert stream.complaint == b"alas, poor me"


# boxd's frames begin with a length, whose first byte is zero.
payloads = st.builds(b"\0".__add__, st.binary(max_size=40))


@given(st.lists(st.tuples(st.sampled_from([1, 2]), payloads)), st.integers(1, 30))
async def test_frames_may_be_split_anywhere(frames: list[tuple[int, bytes]], step: int):
    stream = DockerStream()
    sent = b"".join(frame(kind, payload) for kind, payload in frames)
    for start in range(0, len(sent), step):
        stream.data_received(sent[start : start + step])
    assert await everything(stream) == b"".join(data for kind, data in frames if kind == 1)
    assert stream.complaint == b"".join(data for kind, data in frames if kind == 2)[-STDERR_KEPT:]


async def test_of_a_long_complaint_the_end_is_kept():
    stream = DockerStream()
    stream.data_received(frame(2, b"x" * STDERR_KEPT) + frame(2, b"the end"))
    assert len(stream.complaint) == STDERR_KEPT
    assert stream.complaint.endswith(b"xthe end")


async def test_a_reader_gets_at_most_what_it_asked_for_and_loses_nothing():
    stream = DockerStream()
    stream.data_received(frame(1, b"\x00123456789"))
    assert [await stream.receive(4), await stream.receive(4), await stream.receive(4)] == [
        b"\x00123",
        b"4567",
        b"89",
    ]


async def test_empty_frames_wake_nobody():
    stream = DockerStream()
    stream.data_received(frame(1, b"") + frame(2, b"hm"))
    with anyio.move_on_after(0) as scope:
        await stream.receive()
    assert scope.cancelled_caught


async def test_what_the_engine_says_of_a_failed_start_is_a_complaint_and_ends_the_stream():
    async with stream_and_engine() as (stream, engine):
        await engine.send(frame(1, b"OCI runtime exec failed: no python3\r\n"))
        with anyio.fail_after(PATIENCE), pytest.raises(anyio.EndOfStream):
            await stream.receive()
        assert b"no python3" in stream.complaint


async def test_the_same_words_later_on_are_data_like_any_other():
    stream = DockerStream()
    stream.data_received(frame(1, b"\0"))
    assert await stream.receive() == b"\0"
    stream.data_received(frame(1, b"OCI runtime exec failed"))
    assert await everything(stream) == b"OCI runtime exec failed"


@asynccontextmanager
async def stream_and_engine() -> AsyncGenerator[tuple[DockerStream, SocketStream], None]:
    """A stream on a socket, and the other end of it."""
    import asyncio

    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    loop = asyncio.get_running_loop()
    stream = (await loop.create_unix_connection(DockerStream, sock=ours))[1]
    async with await anyio.abc.UNIXSocketStream.from_socket(theirs) as engine:
        yield stream, engine
        with anyio.move_on_after(0):
            await stream.aclose()


GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


async def read_on(stream: SocketStream) -> None:
    while True:
        await stream.receive()


async def send_on(stream: DockerStream) -> None:
    while True:
        await stream.send(bytes(64 * 1024))


async def test_an_engine_that_floods_is_held_off_until_its_bytes_are_read():
    sent = 0

    async with stream_and_engine() as (stream, engine), anyio.create_task_group() as group:

        async def flood() -> None:
            nonlocal sent
            while True:
                await engine.send(frame(1, bytes(64 * 1024)))
                sent += 64 * 1024

        group.start_soon(flood)
        received = 0
        while received < 4 * RECEIVE_AHEAD:
            await anyio.wait_all_tasks_blocked()
            assert sent - received < 3 * RECEIVE_AHEAD
            received += len(await stream.receive(RECEIVE_AHEAD))
        group.cancel_scope.cancel()


async def test_closing_sends_what_is_under_way_first():
    async with stream_and_engine() as (stream, engine):
        await stream.send(b"good-bye")
        await stream.aclose()
        assert await engine.receive() == b"good-bye"
        with pytest.raises(anyio.EndOfStream):
            await engine.receive()


async def test_closing_waits_for_an_engine_that_takes_nothing_only_as_long_as_its_caller():
    async with stream_and_engine() as (stream, engine):
        with anyio.move_on_after(0.05):
            await send_on(stream)
        with anyio.move_on_after(0.05) as closing:
            await stream.aclose()
        assert closing.cancelled_caught
        with anyio.fail_after(PATIENCE), pytest.raises(GONE):
            await read_on(engine)


async def test_a_sender_that_is_held_up_hears_of_the_end():
    async with stream_and_engine() as (stream, engine), anyio.create_task_group() as group:

        async def send() -> None:
            with pytest.raises(GONE):
                await send_on(stream)

        with anyio.fail_after(PATIENCE):
            group.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            await engine.aclose()
