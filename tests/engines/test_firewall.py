"""The guard's rules: what they let through, how they are mended, and the real firewalls of Linux.

What is real is done in network namespaces of the tests' own.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.domain.network import NOT_PUBLIC
from box_mcp.engines import firewall
from box_mcp.engines.firewall import (
    DOCKER_USER,
    DROPPING,
    IPV6,
    NEVER,
    PRIVATE,
    RAW,
    REJECTING,
    VERSION,
    Chains,
    Order,
    Wanted,
    hook_of,
    lacks,
    mended,
    newest,
    opened,
    parse,
    routes,
    usable,
    wanted,
)
from box_mcp.engines.guard import program

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

RESOLVER = "10.9.9.53"
BOX, OTHER_OWNERS = "bxabcde00000001", "bx1234500000001"
FORWARD, OPEN = f"BOX-MCP-{VERSION}-FORWARD", f"BOX-MCP-{VERSION}-OPEN"

# What they let through


@dataclass(frozen=True)
class Packet:
    """A packet that this machine forwards, or takes in."""

    source: str = BOX
    to: str = "eth0"
    address: str = "198.51.100.10"
    protocol: str = "tcp"
    port: int = 443
    answer: bool = False


def verdict(chains: Chains, chain: str, packet: Packet) -> str:
    """What becomes of a packet in a chain: PASS, DROP or REJECT."""
    return _walk(chains, chain, packet) or "PASS"


def _walk(chains: Chains, chain: str, packet: Packet) -> str | None:
    for rule in chains.get(chain, ()):
        words = rule.split()
        if not _matches(words, packet):
            continue
        flag, target = next(
            (word, words[at + 1]) for at, word in enumerate(words) if word in "-j-g"
        )
        if target in ("DROP", "REJECT"):
            return target
        if target == "RETURN":
            return None
        found = _walk(chains, target, packet)
        if found or flag == "-g":
            return found
    return None


def _matches(words: list[str], packet: Packet) -> bool:
    for at, word in enumerate(words[:-1]):
        negated = at > 0 and words[at - 1] == "!"
        if _is_so(word, words[at + 1], packet) == negated:
            return False
    return True


def _is_so(option: str, value: str, packet: Packet) -> bool | None:
    match option:
        case "-i" | "-o":
            return _is_interface(value, packet.source if option == "-i" else packet.to)
        case "-d":
            return IPv4Address(packet.address) in IPv4Network(value)
        case "-p":
            return packet.protocol == value
        case "--dport":
            return packet.port == int(value)
        case "--ctstate":
            return packet.answer
        case _:
            return None


def _is_interface(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern


def rules(*openings: str, refusal: Sequence[str] = REJECTING) -> Chains:
    """What `filter` holds where some things are opened."""
    want = wanted(DOCKER_USER, refusal, [RESOLVER], openings)
    return {**want.chains, **want.first}


def opening(tag: str, *allowed: str) -> list[str]:
    return opened(Order(tag, allowed), [], [])


def within(net: str) -> st.SearchStrategy[str]:
    parsed = IPv4Network(net)
    numbers = st.integers(int(parsed[0]), int(parsed[-1]))
    return numbers.map(lambda number: str(IPv4Address(number)))


addresses = st.integers(0, 2**32 - 1).map(lambda number: str(IPv4Address(number)))
of_never = st.sampled_from(NEVER).flatmap(within)
of_private = st.sampled_from(PRIVATE).flatmap(within)
networks = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
    lambda pair: str(IPv4Network(pair, strict=False))
)


def is_any(address: str, nets: Sequence[str]) -> bool:
    return any(IPv4Address(address) in IPv4Network(net) for net in nets)


@given(addresses | of_private | of_never)
def test_a_box_reaches_what_is_public_and_nothing_else(address: str):
    private = is_any(address, (*NEVER, *PRIVATE))
    packet = Packet(address=address)
    assert verdict(rules(), DOCKER_USER, packet) == ("REJECT" if private else "PASS")
    dropping = rules(refusal=DROPPING)
    assert verdict(dropping, DOCKER_USER, packet) == ("DROP" if private else "PASS")


@given(of_never, st.lists(networks))
def test_no_opening_leads_to_metadata_loopback_or_multicast(address: str, allowed: list[str]):
    chains = rules(*opening("abcde", *allowed, "0.0.0.0/0"))
    assert verdict(chains, DOCKER_USER, Packet(address=address)) == "REJECT"


@given(of_private, networks)
def test_an_opening_is_for_its_owners_boxes_and_its_range_alone(address: str, allowed: str):
    chains = rules(*opening("abcde", allowed))
    inside = is_any(address, [allowed])
    own, others = Packet(address=address), Packet(OTHER_OWNERS, address=address)
    assert verdict(chains, DOCKER_USER, own) == ("PASS" if inside else "REJECT")
    assert verdict(chains, DOCKER_USER, others) == "REJECT"


@given(addresses, st.sampled_from(["tcp", "udp"]), st.integers(1, 65535), st.booleans())
def test_of_this_machine_a_box_reaches_its_resolver_alone(
    address: str, protocol: str, port: int, resolver: bool
):
    packet = Packet(to="", address=RESOLVER if resolver else address, protocol=protocol, port=port)
    passes = packet.address == RESOLVER and port == 53
    assert verdict(rules(), "INPUT", packet) == ("PASS" if passes else "REJECT")


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_resolver_with_a_private_address_is_reached_as_such_alone(protocol: str):
    query = Packet(address=RESOLVER, protocol=protocol, port=53)
    assert verdict(rules(), DOCKER_USER, query) == "PASS"
    assert verdict(rules(), "INPUT", query) == "PASS"
    assert verdict(rules(), DOCKER_USER, replace(query, port=80)) == "REJECT"
    metadata = wanted(DOCKER_USER, REJECTING, ["169.254.169.254"], [])
    chains = {**metadata.chains, **metadata.first}
    query = replace(query, address="169.254.169.254")  # some clouds have both there
    assert verdict(chains, DOCKER_USER, query) == "PASS"
    assert verdict(chains, DOCKER_USER, replace(query, port=80)) == "REJECT"


@given(addresses, st.sampled_from(["eth0", "docker0", "wg0"]))
def test_nobody_opens_a_connection_to_a_box_and_answers_come_in(address: str, source: str):
    packet = Packet(source, to=BOX, address=address)
    assert verdict(rules(), DOCKER_USER, packet) == "DROP"
    assert verdict(rules(), DOCKER_USER, replace(packet, answer=True)) == "PASS"


def test_this_machine_answers_boxes_and_calls_none():
    packet = Packet("", to=BOX, address="224.0.0.251", protocol="udp", port=5353)
    assert verdict(rules(), "OUTPUT", packet) == "DROP"
    assert verdict(rules(), "OUTPUT", replace(packet, answer=True)) == "PASS"
    assert verdict(rules(), "OUTPUT", replace(packet, to="eth0")) == "PASS"


@given(addresses, st.booleans())
def test_boxes_do_not_reach_each_other_whatever_is_opened(address: str, answer: bool):
    chains = rules(*opening("abcde", "0.0.0.0/0"))
    packet = Packet(to=OTHER_OWNERS, address=address, answer=answer)
    assert verdict(chains, DOCKER_USER, packet) == "REJECT"


@given(addresses, st.sampled_from(["docker0", "eth0", "virbr0"]))
def test_what_has_nothing_to_do_with_boxes_passes_untouched(address: str, source: str):
    packet = Packet(source, address=address)
    assert verdict(rules(), DOCKER_USER, packet) == "PASS"
    assert verdict(rules(), "INPUT", replace(packet, to="")) == "PASS"


def test_other_owners_openings_stay_while_they_have_boxes():
    kept = "-d 10.1.0.0/16 -i bx12345+ -j RETURN"
    present = [
        kept,
        "-d 10.2.0.0/16 -i bx99999+ -j RETURN",  # it has no boxes
        "-d 10.3.0.0/16 -i bxabcde+ -j RETURN",  # ours, of settings that were changed
        "-i bx+ -j RETURN",
        "-d 10.4.0.0/99 -i bx12345+ -j RETURN",
        "-j ACCEPT",
    ]
    found = opened(Order("abcde", ("10.8.0.0/16",)), present, ["12345", "abcde"])
    assert found == [kept, "-d 10.8.0.0/16 -i bxabcde+ -j RETURN"]


# How they are mended


WANTED = wanted(DOCKER_USER, REJECTING, [RESOLVER], opening("abcde", "10.1.0.0/16"))
NEWER = wanted(DOCKER_USER, REJECTING, [RESOLVER], [], VERSION + 1)
FOREIGN = ("-i wg0 -j ACCEPT", "-p icmp -j ACCEPT", "-s 192.0.2.1/32 -j DROP", "-j RETURN")
STRAY = (
    f"-j {FORWARD}",
    f"-i bx+ -j BOX-MCP-{VERSION}-INPUT",
    f"-i eth0 -j {FORWARD}",
    f"-d 10.0.0.0/8 -j BOX-MCP-{VERSION}-REFUSE",
)


def restored(present: Chains, lines: Sequence[str]) -> Chains:
    """What iptables-restore makes of a table; it fails where that does."""
    chains = {chain: list(rules) for chain, rules in present.items()}
    for line in lines:
        what, _, rest = line.partition(" ")
        chain, _, rule = rest.partition(" ")
        if what.startswith(":"):
            chains[what[1:]] = []
        elif what == "-A":
            chains[chain].append(rule)
        elif what == "-D":
            chains[chain].remove(rule)
        elif what == "-I":
            place, _, rule = rule.partition(" ")
            chains[chain].insert(int(place) - 1, rule)
        else:
            assert what == "-X"
            assert not chains.pop(chain)
            assert not any(
                f" {chain} " in f"{rule} " for rules in chains.values() for rule in rules
            )
    return chains


@st.composite
def tables(draw: st.DrawFn) -> Chains:
    """A table `filter` in some state, ours in ruins or not, in the midst of what others have."""
    rule = st.sampled_from([*FOREIGN, *STRAY])
    chains = {
        name: draw(st.lists(rule, max_size=5))
        for name in ("INPUT", "FORWARD", "OUTPUT", DOCKER_USER, "ufw-user-forward")
    }
    for name, whole in WANTED.chains.items():
        chains[name] = whole[: draw(st.integers(0, len(whole)))]
    return chains


def foreign(chains: Chains) -> Chains:
    """What is not ours, in its order."""
    return {
        chain: [rule for rule in rules if rule in FOREIGN]
        for chain, rules in chains.items()
        if not chain.startswith("BOX-MCP")
    }


@given(tables(), st.sampled_from([WANTED, NEWER]))
def test_whatever_was_there_one_step_makes_it_whole_and_leaves_others_rules_alone(
    present: Chains, want: Wanted
):
    done = restored(present, mended(present, want))
    assert lacks(done, want) == []
    assert foreign(done) == foreign(present)
    assert {name for name in done if name.startswith("BOX-MCP")} == {*want.chains}
    for chain, first in want.first.items():
        assert done[chain][: len(first)] == first


@given(tables(), st.data())
def test_any_rule_that_is_missing_or_foreign_is_noticed(present: Chains, data: st.DataObject):
    whole = restored(present, mended(present, WANTED))
    chain = data.draw(st.sampled_from(sorted(WANTED.chains)))
    place = data.draw(st.integers(0, len(whole[chain]) - 1))
    torn = {**whole, chain: [*whole[chain][:place], *whole[chain][place + 1 :]]}
    assert lacks(torn, WANTED)
    assert lacks({**whole, chain: ["-j RETURN", *whole[chain]]}, WANTED)
    assert lacks({name: rules for name, rules in whole.items() if name != chain}, WANTED)


def test_only_rules_that_drop_may_come_before_the_jump():
    whole = restored({}, [f":{name} - [0:0]" for name in WANTED.first])
    whole = restored(whole, mended(whole, WANTED))
    for before, harmless in (
        ("-s 192.0.2.1/32 -j DROP", True),
        ("-s 192.0.2.1/32 -j REJECT --reject-with icmp-port-unreachable", True),
        ("-i wg0 -j ACCEPT", False),
        ("-j ts-forward", False),
    ):
        changed = {**whole, DOCKER_USER: [before, *whole[DOCKER_USER]]}
        assert (lacks(changed, WANTED) == []) is harmless, before
    assert lacks({**whole, DOCKER_USER: whole[DOCKER_USER] * 2}, WANTED)


def test_how_a_version_of_iptables_writes_a_rule_makes_no_difference():
    want = Wanted({}, {"X": ["-d 10.0.0.1/32 -i bx+ -p udp -m udp --dport 53 -j RETURN"]})
    assert lacks({"X": ["-i bx+ -d 10.0.0.1/32 -p udp --dport 53 -j RETURN"]}, want) == []
    assert lacks({"X": ["-i bx+ -d 10.0.0.2/32 -p udp --dport 53 -j RETURN"]}, want) == ["X"]


def test_all_of_ipv6_is_dropped_from_and_to_boxes():
    done = restored({}, [f":{name} - [0:0]" for name in IPV6])
    done = restored(done, mended(done, Wanted(IPV6)))
    for source, to, chain in (
        (BOX, "eth0", "FORWARD"),
        ("eth0", BOX, "FORWARD"),
        (BOX, "", "INPUT"),
        ("", BOX, "OUTPUT"),
    ):
        assert verdict(done, chain, Packet(source, to)) == "DROP"
    assert verdict(done, "FORWARD", Packet("eth0", "docker0")) == "PASS"


def test_rules_are_hooked_where_the_engine_leaves_room_if_it_goes_there():
    assert hook_of({"FORWARD": ["-j DOCKER-USER"], DOCKER_USER: ["-j RETURN"]}) == DOCKER_USER
    assert hook_of({"FORWARD": [], DOCKER_USER: ["-j RETURN"]}) == "FORWARD"
    for before, hook in (("-j ACCEPT", "FORWARD"), ("-i evil0 -j DROP", DOCKER_USER)):
        chains = {"FORWARD": [before, "-j DOCKER-USER"], DOCKER_USER: ["-j RETURN"]}
        assert hook_of(chains) == hook
    twice = ["-j DOCKER-USER", "-o docker0 -j ACCEPT", "-j DOCKER-USER"]
    assert hook_of({"FORWARD": twice, DOCKER_USER: []}) == DOCKER_USER
    assert hook_of({"FORWARD": ["-j DOCKER-FORWARD"]}) == "FORWARD"
    assert hook_of({}) == "FORWARD"


def test_firewall_and_proxy_agree_on_what_is_not_public():
    """The program that sets the rules stands alone, so both have a list."""
    refused = collapse_addresses(map(IPv4Network, (*NEVER, *PRIVATE)))
    judged = collapse_addresses(one for one in NOT_PUBLIC if isinstance(one, IPv4Network))
    assert list(refused) == list(judged)


def test_rules_that_are_changed_get_another_version():
    """Two that differ under one name would put each other right for ever."""
    want = wanted(DOCKER_USER, REJECTING, [RESOLVER], opening("abcde", "10.1.0.0/16"))
    digest = sha256(json.dumps([want.first, want.chains, RAW, IPV6]).encode()).hexdigest()
    assert (VERSION, digest[:8]) == (1, "603b4428")


def test_a_version_is_in_use_when_something_leads_to_it():
    chains = {"BOX-MCP-9-FORWARD": ["-j BOX-MCP-9-REFUSE"], "BOX-MCP-9-REFUSE": ["-j DROP"]}
    assert newest(chains) == 0
    assert newest({**chains, "FORWARD": ["-j BOX-MCP-3-FORWARD", "-j BOX-MCP-9-FORWARD"]}) == 9


# What the machine tells


def test_resolvers_are_addresses_that_a_box_can_send_to():
    names = [
        "127.0.0.53",
        "::1",
        "10.0.0.2",
        "8.8.8.8",
        "0.0.0.0",
        "224.0.0.1",
        "x",
        None,
        "8.8.8.8",
    ]
    assert usable(names) == ("8.8.8.8", "10.0.0.2")
    assert len(usable(f"10.0.0.{number}" for number in range(200))) == firewall.MOST_RESOLVERS


TABLE = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
tun0\t0000D50A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""


def test_routes_are_read_as_the_kernel_writes_them_but_for_the_default():
    assert routes(TABLE) == ("10.213.0.0/16", "192.0.2.0/24")
    assert routes("") == ()


def test_the_program_needs_python_3_9_and_its_standard_library_alone():
    tree = ast.parse(program(), feature_version=(3, 9))
    names = {
        alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {
        str(node.module).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    }
    assert names <= set(sys.stdlib_module_names)


# The real thing

BACKENDS = ("nft", "legacy")
usable_here = (
    sys.platform == "linux"
    and os.geteuid() == 0
    and all(shutil.which(f"iptables-{backend}-save") for backend in BACKENDS)
    and shutil.which("unshare")
)
real = pytest.mark.skipif(not usable_here, reason="takes root on Linux, unshare and iptables")


class Space:
    """A network namespace, for as long as its first process runs."""

    def __init__(self, pid: int) -> None:
        self._enter = ("nsenter", "--net", "--target", str(pid))

    def run(self, *command: str, stdin: str = "", check: bool = True) -> str:
        """What a command prints there."""
        done = subprocess.run(
            [*self._enter, *command], input=stdin, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def ensure(self, source: str | None = None, **order: Any) -> dict[str, Any]:
        """What the program reports, run as a helper runs it."""
        given = json.dumps({"tag": "abcde", "resolvers": [RESOLVER], **order})
        command = ("/usr/bin/env", "python3", "-I", "-c", source or program(), given)
        return json.loads(self.run(*command, check=False))

    def tables(self, backend: str, *, ipv6: bool = False) -> dict[str, Chains]:
        """What its firewall holds."""
        return parse(self.run(f"ip{'6' * ipv6}tables-{backend}-save"))

    def as_docker(self, backend: str) -> None:
        """Makes the chains that Docker makes."""
        rules = [":DOCKER-USER - [0:0]", "-A FORWARD -j DOCKER-USER", "-A DOCKER-USER -j RETURN"]
        text = "\n".join(["*filter", *rules, "COMMIT", ""])
        self.run(f"iptables-{backend}-restore", "-w", "30", "--noflush", stdin=text)


@contextmanager
def space() -> Generator[Space, None, None]:
    """A namespace where nothing is yet."""
    command = ["unshare", "--net", "sh", "-c", "echo ready; exec cat"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "ready\n"
        yield Space(first.pid)


@real
@pytest.mark.parametrize("backend", BACKENDS)
def test_rules_come_into_place_where_the_engines_are_and_then_stay_as_they_are(backend: str):
    with space() as here:
        here.as_docker(backend)
        here.run(f"iptables-{backend}", "-w", "-A", "INPUT", "-i", "wg0", "-j", "ACCEPT")
        looked = here.ensure(mend=False)
        assert (looked["backend"], looked["hook"], looked["lacking"]) == (backend, DOCKER_USER, {})
        assert here.ensure()["missing"] == looked["missing"]
        assert {f"filter {FORWARD}", "security FORWARD", "raw PREROUTING"} < {*looked["missing"]}
        assert here.ensure()["missing"] == []
        filtering = here.tables(backend)["filter"]
        assert filtering[DOCKER_USER] == [f"-j {FORWARD}", "-j RETURN"]
        assert filtering["INPUT"][0].startswith("-i bx+ ")
        assert filtering["INPUT"][1:] == ["-i wg0 -j ACCEPT"]
        assert here.tables(backend, ipv6=True)["filter"]["INPUT"] == ["-i bx+ -j DROP"]


@real
@pytest.mark.parametrize("backend", BACKENDS)
def test_rules_that_somebody_wiped_are_told_and_come_back(backend: str):
    with space() as here:
        here.as_docker(backend)
        here.ensure()
        whole = here.tables(backend)
        for table in ("filter", "raw", "security"):
            here.run(f"iptables-{backend}", "-w", "-t", table, "-F")
        here.as_docker(backend)  # as the engine does when a firewall was loaded anew
        assert f"filter {DOCKER_USER}" in here.ensure(mend=False)["missing"]
        assert "raw PREROUTING" in here.ensure()["missing"]
        assert here.tables(backend) == whole
        here.run(f"iptables-{backend}", "-w", "-I", DOCKER_USER, "-j", "ACCEPT")
        assert here.ensure()["missing"] == [f"filter {DOCKER_USER}"]
        assert here.tables(backend)["filter"][DOCKER_USER][0] == f"-j {FORWARD}"


@real
def test_who_lets_packets_pass_before_the_engines_chain_comes_after_the_rules():
    with space() as here:
        here.as_docker("nft")
        here.ensure()
        here.run("iptables-nft", "-I", "FORWARD", "-j", "ACCEPT")
        assert {"filter FORWARD", f"filter {DOCKER_USER}"} <= {*here.ensure()["missing"]}
        filtering = here.tables("nft")["filter"]
        assert filtering["FORWARD"] == [f"-j {FORWARD}", "-j ACCEPT", "-j DOCKER-USER"]
        assert filtering[DOCKER_USER] == ["-j RETURN"]
        assert here.ensure()["missing"] == []


@real
def test_without_the_engines_chain_the_rules_are_hooked_where_all_pass():
    with space() as here:
        assert here.ensure()["hook"] == "FORWARD"
        assert here.tables("nft")["filter"]["FORWARD"] == [f"-j {FORWARD}"]
        here.as_docker("nft")  # the engine comes to be started
        assert here.ensure()["hook"] == DOCKER_USER
        filtering = here.tables("nft")["filter"]
        assert filtering["FORWARD"] == ["-j DOCKER-USER"]
        assert filtering[DOCKER_USER] == [f"-j {FORWARD}", "-j RETURN"]


@real
@pytest.mark.parametrize("backend", BACKENDS)
def test_many_at_once_do_not_break_each_others_work(backend: str):
    with space() as here, ThreadPoolExecutor(6) as threads:
        here.as_docker(backend)
        tags = [f"{number:05d}" for number in range(4)]
        for tag in tags:
            here.run("ip", "link", "add", f"bx{tag}00000001", "type", "bridge")

        def order(tag: str) -> dict[str, Any]:
            return here.ensure(tag=tag, allow=[f"10.{int(tag)}.0.0/16"])

        def wipe(table: str) -> None:
            here.run(f"iptables-{backend}", "-w", "-t", table, "-F", check=False)

        jobs = [threads.submit(order, tag) for tag in tags * 2]
        jobs += [threads.submit(wipe, table) for table in ("security", "raw", "security")]
        results = [job.result() for job in jobs]
        assert [found for found in results if found and found.get("error")] == []
        for tag in tags:  # each takes what was lost in between for its own
            order(tag)
        for tag in tags:
            assert order(tag)["missing"] == []
        filtering = here.tables(backend)["filter"]
        assert filtering[DOCKER_USER] == [f"-j {FORWARD}", "-j RETURN"]
        assert len([rule for rule in filtering[OPEN] if "RETURN" in rule]) == len(tags)


@real
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_older_version_leaves_a_newer_ones_rules_alone_and_a_newer_one_takes_over(backend: str):
    newer = program().replace(f"VERSION = {VERSION}\n", f"VERSION = {VERSION + 1}\n")
    assert newer != program()
    with space() as here:
        here.as_docker(backend)
        here.ensure()
        assert here.ensure(newer)["version"] == VERSION + 1
        taken_over = here.tables(backend)
        assert FORWARD not in taken_over["filter"]
        assert FORWARD not in taken_over["security"]
        found = here.ensure(resolvers=["10.9.9.54"], allow=["10.0.0.0/8"])
        assert (found["version"], found["missing"]) == (VERSION + 1, [])
        assert here.tables(backend) == taken_over


@real
def test_an_owners_opening_goes_with_its_last_bridge():
    with space() as here:
        here.run("ip", "link", "add", "bx1234500000001", "type", "bridge")
        here.ensure(tag="12345", allow=["10.1.0.0/16"])
        here.ensure()
        assert "-d 10.1.0.0/16 -i bx12345+ -j RETURN" in here.tables("nft")["filter"][OPEN]
        here.run("ip", "link", "delete", "bx1234500000001")
        assert here.ensure()["missing"] == [f"filter {OPEN}", f"security {OPEN}"]
        assert len(here.tables("nft")["filter"][OPEN]) == 1


@real
def test_what_can_not_be_had_of_the_second_line_of_defence_is_told_and_the_rest_is_there():
    without = program().replace("rpfilter", "no_such_match").replace('"security":', '"nonsense":')
    with space() as here:
        found = here.ensure(without)
        assert set(found["lacking"]) == {"raw", "nonsense"}
        assert "no_such_match" in found["lacking"]["raw"]
        assert here.tables("nft")["filter"]["FORWARD"] == [f"-j {FORWARD}"]


@real
def test_why_rules_can_not_be_put_in_place_is_told():
    with space() as here:
        broken = program().replace("icmp-admin-prohibited", "no-such-answer")
        assert "no-such-answer" in here.ensure(broken)["error"]
        missing = program().replace(
            '("iptables", "iptables-nft", "iptables-legacy")', '("nothing",)'
        )
        assert here.ensure(missing) == {"error": "there is no iptables here"}
