"""What all tests share."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.support import internet as stand_in
from tests.support.client import fresh_state
from tests.support.second_engine import NEEDS, Machine, machine, usable
from tests.support.workers import Sharing, goes_with_others, show_hung_tests

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from xdist.remote import Producer

    from tests.support.internet import Internet

# How long an example takes tells of the machine and what else it does, not of what is tested.
settings.register_profile(
    "any machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        show_hung_tests(config)


def pytest_keyboard_interrupt() -> None:
    """A worker is interrupted once more, by execnet, if it is still tidying up after 5 s."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Sharing:
    """Where there are several workers."""
    return Sharing(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuses what would wait for the stand-in internet of the other worker till that one ends."""
    for item in items:
        if isinstance(item, pytest.Function) and "internet" in item.fixturenames:
            assert goes_with_others(item.nodeid), f"tests/support/workers.py lacks {item.nodeid}"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The one that MCP servers run on."""
    return "asyncio"


@pytest.fixture
def server_command() -> list[str]:
    """How to start the server over stdio."""
    return [sys.executable, "-m", "box_mcp", "serve"]


@pytest.fixture
def server_env(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The server's own state directory; its boxes are deleted afterwards."""
    with fresh_state(tmp_path) as env:
        yield env


@pytest.fixture(scope="module")
def shared_env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """As `server_env`, for all tests of a module: a session's box is made once for them."""
    with fresh_state(tmp_path_factory.mktemp("shared")) as env:
        yield env


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with an engine that may be treated badly."""
    if not usable:
        pytest.skip(f"a second engine takes {NEEDS}")
    with machine(tmp_path_factory.mktemp("machine")) as made:
        yield made


@pytest.fixture
def host_env(host: Machine, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Variables of a server on that machine, which is well and empty again afterwards."""
    with fresh_state(tmp_path) as env:
        env["DOCKER_HOST"] = host.host
        yield env
        host.recover()
        host.clear()


@pytest.fixture(scope="session")
def internet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    """A stand-in for all that lies around this machine."""
    if not stand_in.usable:
        pytest.skip(f"a stand-in for the internet takes {stand_in.NEEDS}")
    with stand_in.stand_in(tmp_path_factory.mktemp("internet")) as made:
        yield made
