"""The walls of a box: their plan as data, and what becomes of attacks from inside."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.capabilities.files import Files
from box_mcp.domain.box import BoxSpec
from box_mcp.domain.names import BoxId
from box_mcp.engines.base import Condition
from box_mcp.engines.docker import DockerEngine
from box_mcp.engines.isolation import (
    CAPABILITIES,
    LABEL,
    MASKED_PATHS,
    OWNER_LABEL,
    READONLY_PATHS,
    SPEC_LABEL,
    Isolation,
    container_options,
    host_options,
    network_name,
    network_options,
)
from box_mcp.errors import CallInterrupted
from tests.support.client import docker, until
from tests.support.engines import MEBI, SPEC, Workshop, channel_to, run, said, workshop
from tests.support.walls import ATTACKS, SHOWN, WRITABLE, allowed_calls, as_root, refused

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from box_mcp.channel import Channel

BOX = BoxId("box-abcd1234")

# The plan


def test_all_capabilities_are_dropped_but_the_few_that_sudo_and_apt_need():
    options = host_options(BOX, SPEC, Isolation())
    assert options["cap_drop"] == ["ALL"]
    assert set(options["cap_add"]) == {
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "SETUID",
        "SETGID",
        "KILL",
        "AUDIT_WRITE",
    }


def test_without_sudo_there_are_no_capabilities_and_no_new_privileges():
    spec = BoxSpec(image="i", cpus=1, memory=MEBI, sudo=False)
    options = host_options(BOX, spec, Isolation())
    assert (options["cap_drop"], options["cap_add"]) == (["ALL"], [])
    assert options["security_opt"] == ["no-new-privileges"]
    assert container_options(BOX, spec, "")["user"] == "box"


def test_memory_processes_and_processors_are_limited_and_there_is_no_swap():
    spec = BoxSpec(image="i", cpus=1.5, memory=300 * MEBI, pids=77)
    options = host_options(BOX, spec, Isolation())
    assert options["mem_limit"] == options["memswap_limit"] == 300 * MEBI
    assert options["nano_cpus"] == 1_500_000_000
    assert options["pids_limit"] == 77


def test_each_box_is_on_a_network_of_its_own():
    options = network_options(BOX)
    assert host_options(BOX, SPEC, Isolation())["network_mode"] == options["name"]
    assert network_name(BOX) != network_name(BoxId("box-abcd1235"))
    bridge = options["options"]["com.docker.network.bridge.name"]
    assert bridge.startswith("bx")
    assert len(bridge) < 16  # the kernel's limit for names of interfaces


def test_labels_hold_whose_box_it_is_and_what_it_was_made_from():
    spec = BoxSpec(image="i", cpus=1, memory=MEBI, env={"A": "ä"}, sudo=False)
    labels = container_options(BOX, spec, "", "me")["labels"]
    assert (labels[LABEL], labels[OWNER_LABEL]) == (BOX, "me")
    assert BoxSpec.of(json.loads(labels[SPEC_LABEL])) == spec
    assert network_options(BOX, "me")["labels"] == {LABEL: BOX, OWNER_LABEL: "me"}


def test_the_runtime_is_the_settings_own():
    assert host_options(BOX, SPEC, Isolation())["runtime"] is None
    assert host_options(BOX, SPEC, Isolation(runtime="runsc"))["runtime"] == "runsc"


def test_the_images_user_comes_after_user_box_and_without_its_group():
    options = container_options(BOX, SPEC, "worker:staff")
    assert json.loads(options["command"][-1])["users"] == ["box", "worker"]


OPENINGS = {
    "privileged",
    "binds",
    "mounts",
    "volumes",
    "volumes_from",
    "devices",
    "device_requests",
    "device_cgroup_rules",
    "port_bindings",
    "ports",
    "publish_all_ports",
    "pid_mode",
    "userns_mode",
    "uts_mode",
    "cgroup_parent",
    "sysctls",
    "group_add",
    "links",
    "oom_kill_disable",
}

specs = st.builds(
    BoxSpec,
    image=st.text(),
    cpus=st.floats(0.01, 64),
    memory=st.integers(1, 2**50),
    size=st.text(),
    pids=st.integers(1, 2**20),
    env=st.dictionaries(st.text(), st.text()),
    sudo=st.booleans(),
    orphan_after=st.floats(0, 1e6),
)


@given(specs, st.text(), st.text(), st.none() | st.text())
def test_nothing_that_may_be_asked_for_opens_a_way_out(
    spec: BoxSpec, user: str, owner: str, runtime: str | None
):
    inner: dict[str, Any] = container_options(BOX, spec, user, owner)
    outer = host_options(BOX, spec, Isolation(runtime=runtime, owner=owner))
    assert not OPENINGS & (inner.keys() | outer.keys())
    assert outer["network_mode"] == network_name(BOX)
    assert outer["extra_hosts"] == {BOX: "127.0.1.1"}
    assert outer["ipc_mode"] == "private"
    assert outer["cap_drop"] == ["ALL"]
    assert set(outer["cap_add"]) <= set(CAPABILITIES)
    assert set(outer["security_opt"]) <= {"no-new-privileges"}
    assert outer["memswap_limit"] == outer["mem_limit"] == spec.memory
    assert outer["restart_policy"] == {"Name": "no"}
    assert inner["name"] == inner["hostname"] == inner["labels"][LABEL] == BOX
    assert inner["entrypoint"] == ["python3"]
    assert json.loads(inner["labels"][SPEC_LABEL]) == spec.record()


# From inside

SECRET = "do-not-leak-81c1"
BITS = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "FSETID": 4,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "AUDIT_WRITE": 29,
}
MASK = f"{sum(1 << BITS[name] for name in CAPABILITIES):016x}"
NONE = f"{0:016x}"


@pytest.fixture(scope="module")
def secret_file(tmp_path_factory: pytest.TempPathFactory) -> Generator[str, None, None]:
    """A file of the host's, and a variable of the server's, with the secret."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOX_MCP_TEST_SECRET", SECRET)
        file = tmp_path_factory.mktemp("host") / SECRET
        file.write_text(SECRET)
        yield str(file)


@pytest.fixture(scope="module")
async def boxes(secret_file: str) -> AsyncGenerator[Workshop, None]:
    """Two running boxes: the usual one, and one without sudo."""
    async with workshop(DockerEngine()) as shop:
        await shop.running()
        await shop.running(sudo=False)
        yield shop


@pytest.fixture
async def usual(boxes: Workshop) -> AsyncGenerator[Channel, None]:
    async with channel_to(boxes.engine, boxes.made[0]) as channel:
        yield channel


@pytest.fixture
async def strict(boxes: Workshop) -> AsyncGenerator[Channel, None]:
    """Without sudo."""
    async with channel_to(boxes.engine, boxes.made[1]) as channel:
        yield channel


async def test_commands_run_as_user_box_in_a_place_of_its_own(usual: Channel, boxes: Workshop):
    assert await said(usual, "id -un; id -u; id -G; hostname; pwd") == (
        f"box\n1000\n1000\n{boxes.made[0]}\n/workspace"
    )
    assert await said(usual, "stat -c %U /workspace") == "box"


async def test_capabilities_are_exactly_those_of_the_plan(usual: Channel):
    show = "grep -E '^Cap(Eff|Prm|Bnd|Amb)' /proc/self/status | cut -f2 | xargs"
    assert await said(usual, show) == f"{NONE} {NONE} {MASK} {NONE}"
    assert await said(usual, f'sudo -n sh -c "{show}"') == f"{MASK} {MASK} {MASK} {NONE}"


async def test_sudo_works_and_can_do_what_a_package_manager_does(usual: Channel):
    assert await said(usual, "sudo -n id -u") == "0"
    await said(
        usual,
        "sudo -n sh -ec 'install -o root -g games -m 2755 /bin/true /usr/local/bin/t; chown box "
        "/usr/local/bin/t; chmod 4755 /usr/local/bin/t; useradd made; su made -c true; rm "
        "/usr/local/bin/t; userdel made'",
    )


@pytest.mark.parametrize("attack", ATTACKS)
async def test_the_boxs_own_root_can_not(attack: str, usual: Channel):
    assert await refused(usual, f"sudo -n {ATTACKS[attack]}"), attack


async def test_system_calls_that_reach_the_hosts_kernel_are_closed_even_to_root(usual: Channel):
    assert await said(usual, "grep Seccomp: /proc/self/status | cut -f2") == "2"
    assert await said(usual, "sudo grep Seccomp: /proc/self/status | cut -f2") == "2"
    assert await allowed_calls(usual) == []


async def test_no_device_of_the_host_is_there(usual: Channel):
    devices = set((await said(usual, "ls /dev")).split())
    harmless = "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert devices <= {*harmless.split(), "console"}
    assert await said(usual, "sudo find / -xdev -type b") == ""


async def test_what_the_kernel_tells_of_the_host_is_masked_and_the_rest_of_it_is_read_only(
    usual: Channel,
):
    assert await as_root(usual, SHOWN.format(paths=MASKED_PATHS)) == ""
    mounts = (await said(usual, "cut -d' ' -f5,6 /proc/self/mountinfo")).splitlines()
    read_only = {line.split()[0] for line in mounts if line.split()[1].startswith("ro")}
    there = (await said(usual, f"ls -d {' '.join(READONLY_PATHS)} 2>/dev/null || true")).split()
    assert read_only >= {"/sys", *there}


async def test_a_box_sees_no_more_of_the_hosts_control_groups_than_that_it_has_some(
    usual: Channel,
):
    paths = {line.split(":")[2] for line in (await said(usual, "cat /proc/1/cgroup")).splitlines()}
    assert paths == {"/"}


async def test_a_box_yields_to_the_host_and_its_commands_yield_to_its_daemon(
    usual: Channel, boxes: Workshop
):
    shares = docker("inspect", "-f", "{{.HostConfig.CpuShares}}", boxes.made[0])
    assert 0 < int(shares) < 1024  # which is what the host's own services have
    daemon = int(await said(usual, "cat /proc/1/oom_score_adj"))
    assert 0 < daemon < int(await said(usual, "cat /proc/self/oom_score_adj"))


async def test_shared_memory_is_small_and_there_is_no_other_way_around_the_limits(usual: Channel):
    sizes = await said(usual, "df --block-size=1M --output=size /dev /dev/shm | tail -n +2 | xargs")
    assert sizes == "64 64"
    fill = "sudo dd if=/dev/zero of={} bs=1M count=65 status=none"
    for path in ("/dev/shm/much", "/dev/much"):
        assert "No space left" in (await run(usual, fill.format(path))).output
        await said(usual, f"sudo rm {path}")
    files = int(await said(usual, "ulimit -Hn"))
    assert files <= 65536
    assert (await run(usual, f"sudo sh -c 'ulimit -n {files + 1}'")).failed


async def test_nothing_below_proc_sys_and_sys_can_be_written_by_root(usual: Channel):
    assert await as_root(usual, WRITABLE) == ""


async def test_nothing_of_the_host_is_mounted_but_what_the_engine_makes_for_the_box(usual: Channel):
    mounts = await said(usual, "cut -d' ' -f5 /proc/self/mountinfo")
    theirs = [path for path in mounts.split() if not path.startswith(("/proc", "/sys", "/dev"))]
    made = {"/", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"}
    assert set(theirs) == made


async def test_the_engines_socket_and_the_hosts_files_are_out_of_sight(
    usual: Channel, secret_file: str
):
    sockets = await said(usual, "sudo find / -xdev -type s")
    assert sockets == "/run/box_mcp/boxd.sock"
    assert (await run(usual, f"sudo cat {secret_file}")).failed
    assert await said(usual, f"sudo find / -xdev -name '{SECRET}'") == ""
    assert "docker" not in await said(usual, "cat /proc/net/unix")


async def test_the_servers_variables_do_not_leak_into_the_box(usual: Channel):
    assert os.environ["BOX_MCP_TEST_SECRET"] == SECRET
    assert (await run(usual, f"sudo grep -aqs {SECRET[:8]}-leak-81 /proc/[0-9]*/environ")).failed
    assert "BOX_MCP" not in await said(usual, "env")


async def test_processes_of_the_host_are_out_of_sight(usual: Channel):
    assert await said(usual, "cat /proc/1/comm") == "python3"
    look = "grep -las '[9]87654' /proc/[0-9]*/cmdline | wc -l"
    own = "sh -c 'echo up; read x' 987654"  # says that it has a command line, and keeps it
    async with await anyio.open_process(["sleep", "987654"]) as sleeper:
        try:
            assert await said(usual, look) == "0"
            seen = await said(
                usual, f"coproc {own}; read -u ${{COPROC[0]}}; {look}; kill $COPROC_PID"
            )
            assert seen == "1"
        finally:
            sleeper.kill()


async def test_the_user_can_not_reach_the_daemon(usual: Channel):
    for attack in (
        "kill -TERM 1",
        "cat /proc/1/environ",
        "head -c 1 /proc/1/mem",
        "ls /run/box_mcp",
        "sh -c 'echo > /opt/box_mcp/boxd.pyz'",
    ):
        assert await refused(usual, attack), attack


async def test_nothing_in_a_box_kills_or_stops_the_daemon(boxes: Workshop):
    usual, strict = boxes.made[:2]
    for box, who in ((usual, ""), (usual, "sudo -n "), (strict, "")):
        async with channel_to(boxes.engine, box) as channel:
            boot = channel.hello["boot"]
        for aim in ("-KILL 1", "-STOP 1", "-SEGV 1", "-KILL $(pgrep python3)", "-KILL -1"):
            async with channel_to(boxes.engine, box) as channel:
                with suppress(CallInterrupted):  # connections are held by other processes
                    await run(channel, f"{who}kill {aim}")
        async with channel_to(boxes.engine, box) as channel:
            assert channel.hello["boot"] == boot
            assert await said(channel, "cat /proc/1/comm") == "python3"


async def test_nothing_in_a_box_writes_to_the_containers_log(usual: Channel, boxes: Workshop):
    ends = "for pid in 1 $(pgrep python3); do readlink /proc/$pid/fd/1 /proc/$pid/fd/2; done"
    assert set((await said(usual, f"sudo -n sh -c '{ends}'")).split()) == {"/dev/null"}
    await run(usual, "sudo -n sh -c 'echo flood > /proc/1/fd/1; echo flood > /proc/1/fd/2'")
    assert await boxes.engine.last_words(boxes.made[0]) == ""


# Without sudo


async def test_without_sudo_no_process_has_any_capability_or_can_get_one(strict: Channel):
    status = "cat /proc/[0-9]*/status 2>/dev/null | grep -E '^({})' | cut -f2 | sort -u | xargs"
    assert await said(strict, status.format("CapEff|CapPrm|CapBnd|CapInh|CapAmb")) == NONE
    assert await said(strict, status.format("NoNewPrivs")) == "1"
    assert await said(strict, status.format("Uid")) == "1000"


async def test_without_sudo_nothing_leads_to_root(strict: Channel):
    for attack in (
        "sudo -n id -u",
        "su -c 'id -u' < /dev/null",
        "python3 -c 'import os; os.setuid(0)'",
        "chown root /workspace",
        "sh -c 'echo x >> /etc/passwd'",
        "sh -c 'echo x >> /opt/box_mcp/boxd.pyz'",
        "unshare --user --map-root-user id -u",
    ):
        assert (await run(strict, attack)).failed, attack
    assert "no new privileges" in (await run(strict, "sudo -n true")).output


# Limits


async def test_a_hog_is_killed_at_its_boxs_limit_and_the_box_lives_on(boxes: Workshop):
    box = await boxes.running(memory=128 * MEBI)
    async with channel_to(boxes.engine, box) as channel:
        ran = await run(channel, "python3 -c 'x = b\"x\" * 400_000_000; print(len(x))'")
        assert ran.record.signal == 9 or ran.record.exit == 137
        assert await said(channel, "echo alive") == "alive"
    assert await boxes.condition(box) is Condition.RUNNING


FORKS = """
import os, signal
children = 0
try:
    while children < 1000:
        if os.fork() == 0:
            signal.pause()
        children += 1
except OSError as error:
    print(children, error.strerror)
"""


async def test_a_fork_bomb_ends_at_its_boxs_limit_and_the_box_still_answers(boxes: Workshop):
    box = await boxes.running(pids=48)
    async with channel_to(boxes.engine, box) as channel:
        children, reason = (await run(channel, f"python3 -c '{FORKS}'")).output.split(maxsplit=1)
        assert 10 < int(children) < 48
        assert reason == "Resource temporarily unavailable"
        assert await channel.request("processes")
        await Files(channel).write("saved", b"in time")
    await boxes.engine.stop(box)
    await boxes.engine.start(box)
    async with channel_to(boxes.engine, box) as channel:
        assert await said(channel, "cat saved") == "in time"


BURN = """
import time
end = time.time() + 1
while time.time() < end:
    pass
print(time.process_time())
"""


async def test_processors_are_limited(boxes: Workshop):
    box = await boxes.running(cpus=0.5)
    async with channel_to(boxes.engine, box) as channel:
        assert float((await run(channel, "python3 -", stdin=BURN)).output) < 0.8


# Two boxes

LISTEN = """
import socket
listener = socket.create_server(("0.0.0.0", 8000))
while True:
    client, _ = listener.accept()
    client.sendall(b"hello")
    client.close()
"""
CONNECT = """
import socket
try:
    print(socket.create_connection(("{address}", 8000), 1).recv(9))
except OSError as error:
    print("no")
"""


async def address_of(channel: Channel) -> str:
    return (await said(channel, "hostname -I")).split()[0]


async def try_to_reach(channel: Channel, address: str) -> str:
    return (await run(channel, "python3 -", stdin=CONNECT.format(address=address))).output


async def test_no_box_reaches_another_by_its_address(usual: Channel, strict: Channel):
    ends = ((usual, await address_of(strict)), (strict, await address_of(usual)))
    async with anyio.create_task_group() as group:
        for listener in (usual, strict):
            group.start_soon(run, listener, f"exec timeout 15 python3 -c '{LISTEN}'")
        for channel, other in ends:
            own = await address_of(channel)

            async def listens(channel: Channel = channel, own: str = own) -> bool:
                return await try_to_reach(channel, own) == "b'hello'"

            await until(listens, "a listener in the box itself")
            assert await try_to_reach(channel, other) == "no"
        group.cancel_scope.cancel()


async def test_no_box_finds_another_by_name(boxes: Workshop, usual: Channel):
    own, other = boxes.made[:2]
    assert await address_of(usual) in await said(usual, f"getent hosts {own}")
    container = docker("inspect", "-f", "{{.Id}}", other)[:12]
    for name in (other, f"{other}.{network_name(other)}", container, f"{other}.local"):
        assert (await run(usual, f"getent hosts {name}")).failed, name


async def test_a_box_is_alone_on_its_network_and_speaks_no_ipv6(usual: Channel):
    routes = (await said(usual, "tail -n +2 /proc/net/route | cut -f1,8")).splitlines()
    assert sorted(routes) == ["eth0\t00000000", "eth0\tF8FFFFFF"]
    assert "eth0" not in (await run(usual, "cat /proc/net/if_inet6")).output
