"""What is in deploy/: the server's image, run as compose.yaml would, and the systemd unit."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
import pytest
import yaml
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from box_mcp.engines.images import split_bundle
from box_mcp.engines.isolation import OWNER_LABEL
from box_mcp.settings import Settings, load
from tests.support import second_engine
from tests.support.client import PATIENCE, docker, text, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

TOP = Path(__file__).parent.parent
DEPLOY = TOP / "deploy"
TEAM = TOP / "configs" / "team.toml"
RECIPE = "deploy/Dockerfile"
TAG = "box-mcp-test:server"
PATIENT = 300.0  # s; the first build fetches packages, in most of a minute; later ones take seconds
DOCKER_SOCKET = Path("/var/run/docker.sock")

VARIABLES = {
    "DOCKER_GID": "0",
    "BOX_MCP_DOMAIN": "boxes.example.org",
    "BOX_MCP_PORTS_DOMAIN": "ports.example.org",
}


def service() -> dict[str, Any]:
    """The server's part of compose.yaml."""
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["server"]


def filled(value: str) -> str:
    """A value as compose would read it."""
    for name, known in VARIABLES.items():
        start, found, rest = value.partition(f"${{{name}")
        if found:
            value = f"{start}{known}{rest.partition('}')[2]}"
    return value


def seconds(word: str) -> float:
    assert word.endswith("s")
    return float(word[:-1])


# Files that are held to what the server knows


def test_the_teams_settings_are_settings_and_a_server_would_start_with_them(
    monkeypatch: pytest.MonkeyPatch,
):
    for variable in [name for name in os.environ if name.startswith("BOX_MCP_")]:
        monkeypatch.delenv(variable)
    settings = load(TEAM)
    assert settings.require_guard
    assert settings.http.auth == "token"
    assert not settings.ceiling.ports
    own = (settings.max_own_boxes, settings.max_own_running, settings.max_own_memory)
    assert None not in own
    assert None not in (settings.max_own_snapshots, settings.calls_per_minute)
    assert None not in (settings.max_cost, settings.max_cost_per_day)


def test_the_tables_that_are_commented_out_there_can_be_taken(tmp_path: Path):
    used, _, spare = TEAM.read_text().partition("# [oauth]")
    lines = [line.removeprefix("# ") for line in f"# [oauth]{spare}".splitlines()]
    settings = [line for line in lines if line.startswith("[") or " = " in line]
    file = tmp_path / "team.toml"
    file.write_text("\n".join([used, *settings]))
    found = load(file)
    assert found.oauth is not None
    assert found.oauth.described(found.http.url).scopes.keys() == {"box-users", "box-readers"}
    assert [route.name for route in found.model_routes()] == ["anthropic"]


def test_containers_and_services_are_given_longer_to_end_than_calls_are():
    drain = load(TEAM).http.drain
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read(DEPLOY / "box-mcp.service")
    assert float(unit["Service"]["TimeoutStopSec"]) > drain + 10
    assert seconds(service()["stop_grace_period"]) > drain + 10


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd here")
def test_systemd_knows_all_that_the_unit_says(tmp_path: Path):
    """But for the program, which is not installed there."""
    unit = (DEPLOY / "box-mcp.service").read_text()
    file = tmp_path / "box-mcp.service"
    file.write_text(unit.replace("/opt/box_mcp/bin/box-mcp", "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert str(file) not in done.stderr
    assert done.returncode == 0, done.stderr


def test_the_proxies_names_and_networks_of_the_compose_file_are_settings(
    monkeypatch: pytest.MonkeyPatch,
):
    for name, value in service()["environment"].items():
        if name != "BOX_MCP_CONFIG":
            monkeypatch.setenv(name, filled(value))
    settings = load(TEAM)
    whole = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    (subnet,) = whole["networks"]["front"]["ipam"]["config"]
    assert [str(one) for one in settings.http.trusted_proxies] == [subnet["subnet"]]
    assert settings.http.url == "https://boxes.example.org/mcp"
    assert settings.max_own_boxes == load(TEAM).max_own_boxes


def test_what_exposed_ports_take_is_commented_out_in_the_compose_file_and_can_be_taken(
    monkeypatch: pytest.MonkeyPatch,
):
    text = (DEPLOY / "compose.yaml").read_text()
    spare = re.sub(r"^( *)# (- \./|BOX_MCP_\w+: )", r"\1\2", text, flags=re.MULTILINE)
    services = yaml.safe_load(spare)["services"]
    name = "BOX_MCP_HTTP__PORTS_DOMAIN"
    monkeypatch.setenv(name, filled(services["server"]["environment"][name]))
    assert load(TEAM).http.ports_domain == VARIABLES["BOX_MCP_PORTS_DOMAIN"]
    proxy, caddy = services["proxy"], (DEPLOY / "Caddyfile").read_text()
    (tls,) = (path for path in map(mounted, proxy["volumes"]) if path.endswith("/tls"))
    ports = caddy[caddy.index("# *.{$BOX_MCP_PORTS_DOMAIN}") :]
    assert f"tls {tls}/" in ports
    assert set(re.findall(r"{\$(\w+)}", caddy)) == proxy["environment"].keys()


def mounted(volume: str) -> str:
    """Where it is in the container."""
    return volume.split(":")[1]


# The image


@dataclass
class Contained:
    """The server in a container; `url` is its endpoint."""

    name: str
    url: str

    def box_mcp(self, *arguments: str, check: bool = True) -> str:
        """What the command prints in there."""
        return docker("exec", self.name, "box-mcp", *arguments, check=check)

    @asynccontextmanager
    async def client(self, principal: str) -> AsyncGenerator[Client, None]:
        token = self.box_mcp("token", "create", principal).split()[-1]
        async with (
            httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=90) as http,
            Client(streamable_http_client(self.url, http_client=http)) as client,
        ):
            yield client


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Built as its first lines say, of what .dockerignore lets in, with the authorities here.

    It stays, as boxes' images do.
    """
    context = tmp_path_factory.mktemp("context")
    rules = (TOP / ".dockerignore").read_text().splitlines()
    for kept in [rule[1:] for rule in rules if rule.startswith("!") and "*" not in rule]:
        source, target = TOP / kept, context / kept
        target.parent.mkdir(exist_ok=True)
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, target)
    shutil.copy(TOP / ".dockerignore", context)
    (context / "ca").mkdir()
    if (authorities := Settings().authorities()) is not None:
        for number, certificate in enumerate(split_bundle(authorities)):
            (context / "ca" / f"{number}.crt").write_text(certificate)
    before = docker("images", "--quiet", "--no-trunc", TAG)
    build = ["docker", "build", "--quiet", "--file", context / RECIPE, "--tag", TAG, context]
    done = subprocess.run(build, capture_output=True, text=True, timeout=PATIENT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    if before not in ("", docker("images", "--quiet", "--no-trunc", TAG)):
        docker("rmi", before)
    return TAG


@pytest.fixture(scope="module")
def contained(image: str) -> Iterator[Contained]:
    """Run with the options of compose.yaml; its boxes are gone afterwards."""
    options = service()
    bridge = json.loads(docker("network", "inspect", "bridge"))[0]["IPAM"]["Config"][0]["Subnet"]
    group = str(DOCKER_SOCKET.stat().st_gid)
    environment = {
        "BOX_MCP_CONFIG": options["environment"]["BOX_MCP_CONFIG"],
        "BOX_MCP_HTTP__LISTEN": options["environment"]["BOX_MCP_HTTP__LISTEN"],
        "BOX_MCP_HTTP__TRUSTED_PROXIES": json.dumps([bridge]),
        "BOX_MCP_IMAGE": "box-mcp:base",
        "BOX_MCP_WARM_MAX": "0",
        "BOX_MCP_MIN_FREE_DISK": "0",
    }
    volumes = [volume for volume in options["volumes"] if not volume.startswith("state:")]
    health = options["healthcheck"]
    run = [
        *("run", "--detach", "--group-add", group, "--health-interval", "1s"),
        *("--health-cmd", " ".join(map(quoted, health["test"][1:]))),
        *(f"--cap-drop={one}" for one in options["cap_drop"]),
        *(f"--security-opt={one}" for one in options["security_opt"]),
        *(f"--tmpfs={one}" for one in options["tmpfs"]),
        *(f"--env={name}={value}" for name, value in environment.items()),
        *(f"--volume={absolute(volume)}" for volume in volumes),
        *(f"--pids-limit={options['pids_limit']}", image, *options.get("command", ())),
    ]
    assert options["read_only"]
    assert options["init"]
    name, mark = docker(*run[:2], "--read-only", "--init", *run[2:]), ""
    try:
        shown = "{{.NetworkSettings.IPAddress}}"
        base = f"http://{docker('inspect', '-f', shown, name)}:8765"
        second_engine.until(lambda: answers(f"{base}/healthz"), "a server in a container")
        mark = docker("exec", name, "cat", "/var/lib/box_mcp/mark")
        yield Contained(name, f"{base}/mcp")
    finally:
        docker("rm", "--force", "--volumes", name)
        if mark:
            left = f"label={OWNER_LABEL}={mark}"
            for kind, remove in (("container", ("rm", "-fv")), ("network", ("rm",))):
                if found := docker(kind, "ls", "-aq" if kind == "container" else "-q", "-f", left):
                    docker(kind, *remove, *found.split())


def answers(url: str) -> bool:
    try:
        return httpx2.get(url).status_code == 200
    except httpx2.TransportError:
        return False


def quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def absolute(volume: str) -> str:
    """As compose takes paths: from where its file is."""
    source, found, rest = volume.partition(":")
    return f"{(DEPLOY / source).resolve()}{found}{rest}"


async def test_a_team_has_boxes_by_a_server_that_is_nobody_in_a_container(contained: Contained):
    names: set[str] = set()
    for principal in ("alice", "bob"):
        async with contained.client(principal) as client:
            result = await client.call_tool("shell_run", {"command": "hostname"})
            assert not result.is_error, text(result)
            names.add(text(result).split()[-1])
    assert len(names) == 2
    status = docker("exec", contained.name, "cat", "/proc/self/status")
    assert "Uid:\t10001\t10001" in status
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status


async def test_it_tells_that_it_is_well(contained: Contained):
    async def healthy() -> bool:
        return docker("inspect", "-f", "{{.State.Health.Status}}", contained.name) == "healthy"

    await until(healthy, "a healthy container")


def test_its_doctor_knows_what_can_not_be_seen_from_a_container(contained: Contained):
    said = contained.box_mcp("doctor")
    assert "the engine's socket is here, its files are not" in said
    assert "by a container" in said
    assert "FAILURE" not in said
    assert len(docker("exec", contained.name, "cat", "/var/lib/box_mcp/mark")) == 16


async def test_a_call_comes_to_its_end_when_the_container_is_stopped(contained: Contained):
    async with contained.client("alice") as client, anyio.create_task_group() as group:
        answers: list[str] = []

        async def call() -> None:
            command = "touch begun; sleep 2; echo whole"
            answers.append(text(await client.call_tool("shell_run", {"command": command})))

        async def begun() -> bool:
            looked = await client.call_tool("shell_run", {"command": "ls"})
            return "begun" in text(looked)

        group.start_soon(call)
        await until(begun, "a call under way")
        await anyio.to_thread.run_sync(docker, "stop", "--time", "90", contained.name)
        assert answers
        assert answers[0].endswith("whole\n")
    assert docker("inspect", "-f", "{{.State.ExitCode}}", contained.name) == "0"
