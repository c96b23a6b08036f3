"""The guard on real engines: this machine's, and one in namespaces whose rules tests may ruin."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tarfile
from dataclasses import replace
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

import pytest

from box_mcp.doctor import Verdict, guard
from box_mcp.domain.network import Mode, Network
from box_mcp.engines import guard as guard_module
from box_mcp.engines.base import Condition
from box_mcp.engines.docker import DockerEngine
from box_mcp.engines.firewall import DOCKER_USER, VERSION, Chains, FirewallError, Report, parse
from box_mcp.engines.guard import Guarded, report_of
from box_mcp.engines.isolation import Isolation, owner_tag
from box_mcp.errors import GuardMissing
from tests.support.client import docker
from tests.support.engines import RUN, Workshop, channel_to, run, said, workshop

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.internet import Internet
    from tests.support.second_engine import Machine

FORWARD, OPEN = f"BOX-MCP-{VERSION}-FORWARD", f"BOX-MCP-{VERSION}-OPEN"
JUMP = f"-j {FORWARD}"

# From a real box

CONNECT = """
import socket, time
began = time.monotonic()
try:
    said = socket.create_connection(("{address}", {port}), 5).recv(20)
except OSError as error:
    said = error.strerror or error
print(said, "at once" if time.monotonic() - began < 1 else "late")
"""


async def test_a_box_is_refused_at_once_what_is_private_and_reaches_what_is_public(
    shop: Workshop, internet: Internet
):
    box, other = await shop.running(), await shop.running()
    gateway = "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}"
    bridge = docker("inspect", "-f", gateway, box)
    with socket.create_server(("0.0.0.0", 0)) as listener:
        port = listener.getsockname()[1]
        async with channel_to(shop.engine, box) as channel, channel_to(shop.engine, other) as there:
            address = (await said(there, "hostname -I")).split()[0]
            for target, on in (
                (internet.metadata.address, 80),
                (internet.lan.address, 80),
                (bridge, port),
                (own_address(), port),
                ("172.17.0.1", port),
                (address, port),
            ):
                attempt = CONNECT.format(address=target, port=on)
                answer = (await run(channel, "python3 -", stdin=attempt)).output
                assert answer == "Connection refused at once", target
            attempt = CONNECT.format(address=internet.internet.address, port=7)
            reached = await said(channel, f"python3 -c '{attempt}'")
            assert reached.startswith(r"b'this is internet\n' ")


def own_address() -> str:
    """This machine's, on its way out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("203.0.113.1", 9))
        return str(probe.getsockname()[0])


# On a machine of its own


class Rules:
    """What the firewall of a machine holds."""

    def __init__(self, host: Machine) -> None:
        self._host = host

    @property
    def whole(self) -> bool:
        """Whether what boxes send goes through ours first."""
        return self.filter[DOCKER_USER][0] == JUMP and len(self.filter[FORWARD]) > 10

    @property
    def opened(self) -> list[str]:
        """What owners opened."""
        return [rule for rule in self.filter[OPEN] if "RETURN" in rule]

    @property
    def filter(self) -> Chains:
        return parse(self._run("iptables-save"))["filter"]

    def wipe(self) -> None:
        """As somebody does who sets up a firewall of his own."""
        for table in ("filter", "security", "raw"):
            self._run("iptables", "-t", table, "-F")
        for rule in (("FORWARD", "-j", DOCKER_USER), (DOCKER_USER, "-j", "RETURN")):
            self._run("iptables", "-A", *rule)  # as the engine does when it hears of it

    def _run(self, *command: str) -> str:
        enter = self._host.network
        return subprocess.run([*enter, *command], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def rules(host: Machine, host_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Rules:
    """Of `host`, whose engine is the one that is found, and has made no box yet."""
    monkeypatch.setenv("DOCKER_HOST", host_env["DOCKER_HOST"])
    found = Rules(host)
    found.wipe()
    return found


ISOLATION = Isolation(owner=f"guard-{RUN}")


async def test_where_bridges_are_not_among_our_interfaces_a_container_sees_to_the_rules(
    host: Machine, rules: Rules
):
    engine = DockerEngine(ISOLATION)
    async with workshop(engine) as shop:
        box = await shop.created()
        assert rules.whole, "they are made beside the container"
        rules.wipe()
        found = await engine.guarded()
        assert found.by_helper
        assert (found.report.hook, found.report.backend) == (DOCKER_USER, "nft")
        assert any(FORWARD in missing for missing in found.report.missing)
        assert rules.whole
        await engine.start(box)
        assert host.containers() == {box}, "a helper is left"
        assert len(host.networks()) == 1


async def test_rules_that_went_with_an_engine_are_there_again_before_a_box_starts(
    host: Machine, rules: Rules
):
    async with workshop(DockerEngine(ISOLATION)) as shop:
        box = await shop.running()
        host.stop_engine()
        rules.wipe()
        host.start_engine()
        await shop.engine.start(box)
        assert rules.whole


async def test_rules_that_somebody_wiped_are_put_back_without_any_call(
    rules: Rules, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(guard_module, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(guard_module, "HELPER_GOOD_FOR", 0.0)
    other = DockerEngine(ISOLATION)  # of a server that finds the box running
    async with workshop(DockerEngine(ISOLATION)) as shop:
        box = await shop.running()
        rules.wipe()
        await shop.engine.keep()
        assert rules.whole
        rules.wipe()
        await other.keep()
        assert not rules.whole, "it knows of no box yet"
        async with channel_to(other, box):
            await other.keep()
        assert rules.whole
    await other.aclose()


async def test_one_who_is_root_on_the_engines_network_needs_no_container(
    host: Machine, rules: Rules, host_env: dict[str, str]
):
    first, second = (doctors_word(host, host_env) for _ in range(2))
    assert first.endswith("by rules in DOCKER-USER (nft); some were missing, and are in place now")
    assert second.endswith("by rules in DOCKER-USER (nft)")
    assert rules.whole


def doctors_word(host: Machine, env: dict[str, str]) -> str:
    """What `box-mcp doctor` says of the guard, when it is run on that machine's network."""
    done = subprocess.run(
        [*host.network, sys.executable, "-m", "box_mcp", "doctor"],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    return next(line for line in done.stdout.splitlines() if line.startswith("ok       guard: "))


async def test_what_an_owner_opened_is_in_the_rules_under_its_own_tag(host: Machine, rules: Rules):
    opened = replace(ISOLATION, allow_cidrs=(IPv4Network("10.20.0.0/16"),))
    async with workshop(DockerEngine(opened)) as shop, workshop(DockerEngine()) as others:
        await shop.created()
        await others.created()
        line = f"-d 10.20.0.0/16 -i bx{owner_tag(opened.owner)}+ -j RETURN"
        assert rules.opened == [line]


# Without the rules

UNGUARDED = replace(ISOLATION, helper_image="box-mcp-test:nowhere")


async def test_without_the_rules_a_box_with_a_network_does_not_start_and_others_do(
    host: Machine, rules: Rules
):
    async with workshop(DockerEngine(UNGUARDED)) as shop:
        box = await shop.created()
        with pytest.raises(
            GuardMissing, match="test:nowhere: the engine has no such image"
        ) as told:
            await shop.engine.start(box)
        assert await shop.condition(box) is Condition.CREATED
        assert "require_guard = false" in told.value.explain()
        cut_off = await shop.running(network=Network(Mode.NONE))
        await shop.engine.freeze(cut_off)
        await shop.engine.thaw(cut_off)
        with pytest.raises(GuardMissing):
            await shop.engine.attach(cut_off, attached=True)
        async with channel_to(shop.engine, cut_off) as channel:
            assert await said(channel, "ls /sys/class/net") == "lo"
        assert not rules.whole


async def test_who_requires_no_rules_is_warned_once(rules: Rules, caplog: pytest.LogCaptureFixture):
    async with workshop(DockerEngine(replace(UNGUARDED, require_guard=False))) as shop:
        for _ in range(2):
            assert await shop.condition(await shop.running()) is Condition.RUNNING
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "no such image" in warning
    assert not rules.whole


async def test_no_image_that_a_box_had_a_part_in_is_let_loose_on_the_firewall(
    host: Machine, rules: Rules
):
    async with workshop(DockerEngine(ISOLATION)) as shop:
        saved = await shop.engine.save(await shop.created(), None, {})
        rules.wipe()
        engine = DockerEngine(replace(ISOLATION, helper_image=saved.image))
        with pytest.raises(GuardMissing, match="it was saved from a box"):
            await engine.guarded()
        assert not rules.whole
        await engine.aclose()


async def test_an_image_without_python_is_told(host: Machine, rules: Rules, tmp_path: Path):
    with tarfile.open(tmp_path / "bare.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("file"))
    host.docker("import", str(tmp_path / "bare.tar"), "bare:latest")
    engine = DockerEngine(replace(ISOLATION, helper_image="bare:latest"))
    with pytest.raises(GuardMissing, match='"python3": executable file not found'):
        await engine.guarded()
    await engine.aclose()
    assert not host.containers()
    assert not rules.whole


# What helpers say


@pytest.mark.parametrize(
    ("output", "errors", "word"),
    [
        ("", "Traceback ...\nImportError: no json", "ImportError: no json"),
        ("nonsense", "", "nonsense"),
        ("", "", "it said nothing"),
        ('{"error": "there is no iptables here"}', "", "there is no iptables here"),
        ('{"backend": "nft"}', "", "backend"),
        ("[]", "", "[]"),
        ("7", "", "7"),
        ('{"routes": ["x"]}', "", "routes"),
    ],
)
def test_a_helper_that_says_anything_but_a_report_has_failed(output: str, errors: str, word: str):
    with pytest.raises(FirewallError) as told:
        report_of(output, errors)
    assert word in str(told.value)


REPORT = Report("nft", DOCKER_USER, VERSION, [], {}, ["10.0.0.2"], ["10.213.0.0/29"])


def test_the_doctor_tells_where_the_rules_are_and_which_are_lacking():
    assert guard(Guarded(REPORT, by_helper=False)).verdict is Verdict.OK
    mended = guard(Guarded(replace(REPORT, missing=["raw PREROUTING"]), by_helper=True))
    assert mended.verdict is Verdict.OK
    assert mended.detail.endswith(
        "DOCKER-USER (nft, by a container); some were missing, and are in place now"
    )
    newer = guard(Guarded(replace(REPORT, version=VERSION + 1), by_helper=False))
    assert "they are a newer version's" in newer.detail
    lacking = guard(Guarded(replace(REPORT, lacking={"raw": "no rpfilter"}), by_helper=False))
    assert lacking.verdict is Verdict.WARNING
    assert "raw: no rpfilter" in lacking.detail
    assert lacking.remedy
