from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from box_mcp.domain.network import (
    ALL_PORTS,
    MAX_RULES,
    WEB_PORTS,
    Address,
    Host,
    Mode,
    Network,
    Range,
    Rule,
    Surroundings,
    is_public,
    parse_host,
    parse_rule,
    parse_rules,
    plain,
)
from box_mcp.errors import InvalidArgument

PUBLIC = ip_address("198.51.100.7")
PRIVATE = ip_address("10.1.2.3")
HERE = Surroundings()

# Few of each, so that rules often cover one another.
names = st.sampled_from(["*", "a.b", "*.b", "*.a.b", "x.a.b", "b", "ab", "*.xn--bcher-kva.de"])
numbers = st.sampled_from(["10.0.0.0", "10.1.2.3", "198.51.100.7", "127.0.0.1"])
fours = st.tuples(numbers, st.sampled_from([0, 4, 8, 16, 31, 32])).map(
    lambda pair: IPv4Network(pair, strict=False)
)
sixes = st.tuples(
    st.sampled_from(["::1", "2001:db8::", "fd00::"]), st.sampled_from([0, 3, 8, 64, 128])
).map(lambda pair: IPv6Network(pair, strict=False))
port = st.sampled_from([1, 79, 80, 81, 443, 8000, 65535])
ranges_of_ports = st.one_of(
    st.just(WEB_PORTS),
    st.just(ALL_PORTS),
    st.tuples(port, port).map(lambda pair: ((min(pair), max(pair)),)),
)
rules = st.builds(Rule, st.one_of(names, fours, sixes), ranges_of_ports)
networks = st.one_of(
    st.builds(Network, st.sampled_from([Mode.FULL, Mode.ALLOWLIST]), st.tuples(rules)),
    st.builds(Network, st.sampled_from([Mode.FULL, Mode.ALLOWLIST]), st.tuples(rules, rules)),
    st.sampled_from([Network(mode) for mode in Mode]),
)
addresses = st.one_of(
    st.sampled_from([PUBLIC, PRIVATE, ip_address("127.0.0.1"), ip_address("169.254.169.254")]),
    st.ip_addresses(),
)
hosts = st.one_of(st.sampled_from(["a.b", "x.a.b", "b", "other"]), addresses)


def allowlist(*texts: str) -> Network:
    return Network(Mode.ALLOWLIST, parse_rules(texts))


def reached(network: Network, host: Host, port: int, *found: Address, here: Surroundings = HERE):
    return network.permits(host, port, found, here).addresses


@given(rules)
def test_a_rule_is_read_back_as_it_was_written(rule: Rule):
    assert parse_rule(str(rule)) == rule


@given(networks)
def test_a_network_is_read_back_as_it_was_recorded(network: Network):
    assert Network.of(network.record()) == network


def test_the_record_of_an_earlier_version_is_a_mode():
    assert Network.of("none") == Network(Mode.NONE)


@given(st.text(max_size=300))
def test_any_text_is_a_rule_or_refused_and_a_host_or_none(text: str):
    host = parse_host(text)
    assert host is None or parse_host(str(host)) == host
    try:
        rule = parse_rule(text)
    except InvalidArgument:
        return
    assert parse_rule(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Example.ORG.", "example.org"),
        (" *.Example.org:8443 ", "*.example.org:8443"),
        ("bücher.de", "xn--bcher-kva.de"),
        ("*.bücher.de:*", "*.xn--bcher-kva.de:*"),
        ("10.1.2.3/16", "10.1.0.0/16"),
        ("192.0.2.7/32:5432", "192.0.2.7:5432"),
        ("[2001:DB8::/32]:443", "[2001:db8::/32]:443"),
        ("[::1]", "[::1]"),
        ("*", "*"),
        ("db1:5432-5432", "db1:5432"),
        ("example.org:1-65535", "example.org:*"),
    ],
)
def test_a_rule_has_one_form(text: str, written: str):
    assert str(parse_rule(text)) == written


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "*.",
            "**",
            "*.*",
            "a.*.b",
            "*a.b",
            "-a.b",
            "a..b",
            "a b",
            "a/b",
            "http://a.b",
            "a@b",
        ),
        *("a" * 64, "a." * 127 + "a", "é" * 300, "é..b", "*.10.0.0.1", "[example.org]"),
        *("127.1", "0x7f.1", "2130706433", "017700000001", "1.2.3.4.5", "a.0x1f", "10.0.0.0/33"),
        *("[10.0.0.1]", "[fe80::1%eth0]", "::1", "2001:db8::/32"),
        *("a.b:", "a.b:0", "a.b:65536", "a.b:9-8", "a.b:-1", "a.b:1-2-3", "a.b:x", "a.b:٣"),
    ],
)
def test_what_is_no_rule_is_refused(text: str):
    with pytest.raises(InvalidArgument, match="allow"):
        parse_rule(text)


def test_a_refusal_does_not_repeat_a_text_without_end():
    with pytest.raises(InvalidArgument) as refusal:
        parse_rule("a b" * 100_000)
    assert len(str(refusal.value)) < 1000


def test_there_are_not_too_many_rules_and_each_is_there_once():
    assert len(parse_rules(["a.b", "A.B.", "a.b"])) == 1
    with pytest.raises(InvalidArgument):
        parse_rules(["a.b"] * (MAX_RULES + 1))


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("Example.ORG", "example.org"),
        ("example.org.", "example.org"),
        ("BÜCHER.de", "xn--bcher-kva.de"),
        ("exämple。org", "xn--exmple-cua.org"),
        ("_dmarc.example.org", "_dmarc.example.org"),
        ("127.0.0.1", IPv4Address("127.0.0.1")),
        ("１２７.0.0.1", IPv4Address("127.0.0.1")),  # noqa: RUF001  # digits of another kind
        ("::1", IPv6Address("::1")),
        ("::ffff:127.0.0.1", IPv4Address("127.0.0.1")),
        ("::FFFF:7f00:1", IPv4Address("127.0.0.1")),
    ],
)
def test_a_host_has_one_form(text: str, host: Host):
    assert parse_host(text) == host


@pytest.mark.parametrize(
    "text",
    [
        *("0x7f.1", "0x7f000001", "127.1", "127.0.1", "2130706433", "0177.0.0.1", "0x7f.0.0.0x1"),
        *("127.0.0.1.", "1.2.3.4.5", "example.0x7f", "example.1", "256.0.0.1", "0x", "1e9.1"),
        *(
            "",
            ".",
            "..",
            "a..b",
            "*",
            "*.example.org",
            "a b",
            "a\x00.b",
            "a\n",
            "a:80",
            "a/b",
            "[::1]",
        ),
        *("stra\u00dfe.de", "STRA\u1e9eE.de", "\u03c2.gr", "a\u200db.example"),
        *("fe80::1%eth0", "%", "a%2eb", "é" * 300, "é" * 60 + ".é" * 100, "a" * 255),
    ],
)
def test_what_is_neither_a_name_nor_an_address_is_no_host(text: str):
    assert parse_host(text) is None


@given(rules, rules, hosts, port)
def test_what_a_covered_rule_allows_the_covering_one_does(
    wide: Rule, narrow: Rule, host: Host, port: int
):
    if wide.covers(narrow) and Network(Mode.ALLOWLIST, (narrow,)).names(host, port):
        assert Network(Mode.ALLOWLIST, (wide,)).names(host, port)


@given(rules, rules, rules)
def test_covering_is_an_order(one: Rule, two: Rule, three: Rule):
    assert one.covers(one)
    if one.covers(two) and two.covers(one):
        assert one == two or set(one.ports) != set(two.ports)
    if one.covers(two) and two.covers(three):
        assert one.covers(three)


@given(networks, networks)
def test_what_is_within_a_ceiling_is_not_beyond_it(network: Network, ceiling: Network):
    cut = network.within(ceiling)
    assert cut.beyond(ceiling) == ()
    if not network.beyond(ceiling):
        assert cut.mode is network.mode
        assert cut == network or cut.mode is not Mode.ALLOWLIST


@given(networks, networks, hosts, port, st.lists(addresses, max_size=3))
def test_nothing_within_a_ceiling_reaches_what_the_ceiling_does_not(
    network: Network, ceiling: Network, host: Host, port: int, found: list[Address]
):
    # The private ranges of a ceiling of `full` are those that its boxes reach anyway.
    opened = tuple(
        rule.host
        for rule in ceiling.allow
        if ceiling.mode is Mode.FULL and not isinstance(rule.host, str)
    )
    assume(all(rule.ports == ALL_PORTS for rule in ceiling.allow) or not opened)
    here = Surroundings(opened)
    inside = reached(network.within(ceiling), host, port, *found, here=here)
    assert set(inside) <= set(reached(ceiling, host, port, *found, here=here))


few = st.lists(st.sampled_from(["a.b", "b", "10.1.2.3"]), unique=True).map(lambda t: allowlist(*t))
any_of_few = st.one_of(few, st.sampled_from([Network(Mode.NONE), Network()]))


@given(few, any_of_few, any_of_few, st.sampled_from(["a.b", "b", PRIVATE]))
def test_what_is_beyond_neither_of_two_networks_reaches_nothing_that_both_do_not(
    network: Network, now: Network, ceiling: Network, host: Host
):
    assume(not set(network.beyond(now)).intersection(network.beyond(ceiling)))
    found = [PUBLIC if isinstance(host, str) else host]
    either = [*reached(now, host, 80, *found), *reached(ceiling, host, 80, *found)]
    assert set(reached(network, host, 80, *found)) <= set(either)


@pytest.mark.parametrize("mode", Mode)
def test_rules_that_a_mode_does_not_use_do_not_survive_a_ceiling(mode: Mode):
    saved = Network(mode, parse_rules(["10.0.0.5", "a.b"]))
    assert Network(Mode.ALLOWLIST, saved.within(Network()).allow).beyond(Network()) == ()


@given(networks, networks, networks)
def test_a_lower_ceiling_leaves_no_more(network: Network, high: Network, low: Network):
    assume(not low.beyond(high))
    assume(high.mode is not Mode.FULL or low.mode is not Mode.FULL or high.allow == low.allow)
    assert network.within(low).beyond(high) == ()


@given(networks, rules)
def test_more_rules_are_never_less_beyond(network: Network, rule: Rule):
    ceiling = allowlist("a.b", "10.0.0.0/8:*", "*.b:80")
    more = replace(network, allow=(*network.allow, rule))
    assert set(network.beyond(ceiling)) <= set(more.beyond(ceiling))


def test_a_ceiling_covers_a_rule_by_several_of_its_own():
    assert allowlist("a.b").beyond(allowlist("a.b:80", "*.b:443")) == ()
    assert allowlist("a.b").beyond(allowlist("a.b:80")) == ("a.b",)


@pytest.mark.parametrize("text", ["127.0.0.1:22", "10.0.0.0/8", "0.0.0.0/0", "[::1]:*", "[::/0]"])
def test_rules_for_private_addresses_are_beyond_a_ceiling_of_full(text: str):
    assert allowlist(text).beyond(Network(Mode.FULL)) == (text,)
    assert allowlist(text).beyond(Network(Mode.FULL, parse_rules([text]))) == ()


def test_rules_for_what_is_public_are_below_full():
    assert allowlist("*:*", "198.51.100.0/24:*", "[2001:db8::/32]").beyond(Network()) == ()


@pytest.mark.parametrize(
    "name", ["example.org", "a.example.org", "b.a.example.org", "example.org.evil.example"]
)
def test_a_star_stands_for_names_below_only(name: str):
    below = name.endswith(".example.org")
    assert allowlist("*.example.org").names(name, 443) is below
    assert not allowlist("example.org").names("notexample.org", 443)
    assert not allowlist("*.example.org").names("notexample.org", 443)


def test_a_name_leads_to_public_addresses_only():
    network = allowlist("example.org")
    assert reached(network, "example.org", 443, PUBLIC, PRIVATE) == (PUBLIC,)
    verdict = network.permits("example.org", 443, [PRIVATE], HERE)
    assert verdict.addresses == ()
    assert "10.1.2.3" in verdict.reason
    assert "not public" in verdict.reason


def test_a_name_leads_to_a_private_address_that_a_rule_names():
    network = allowlist("db.example", "10.1.0.0/16:443")
    assert reached(network, "db.example", 443, PRIVATE) == (PRIVATE,)
    assert reached(network, "db.example", 80, PRIVATE) == ()
    assert reached(network, "other.example", 443, PRIVATE) == ()


def test_a_name_leads_to_private_addresses_that_are_opened_for_all():
    here = Surroundings(opened=(ip_network("10.1.0.0/16"),))
    assert reached(allowlist("example.org"), "example.org", 80, PRIVATE, here=here) == (PRIVATE,)
    assert reached(Network(), PRIVATE, 5432, PRIVATE, here=here) == (PRIVATE,)
    assert reached(allowlist("example.org"), PRIVATE, 80, PRIVATE, here=here) == ()


@pytest.mark.parametrize(
    "text",
    [
        *("169.254.169.254", "168.63.129.16", "100.100.100.200", "0.0.0.0", "224.0.0.1"),
        *("255.255.255.255", "::", "fe80::1", "ff02::1", "fd00:ec2::254", "64:ff9b::a9fe:a9fe"),
        *("2002:7f00:1::", "2001:0:7f00:1::"),
    ],
)
def test_some_addresses_are_opened_by_nothing(text: str):
    address = ip_address(text)
    everything: tuple[Range, ...] = (ip_network("0.0.0.0/0"), ip_network("::/0"))
    here = Surroundings(opened=everything)
    for network in (Network(), allowlist("*:*", "0.0.0.0/0:*", "[::/0]:*")):
        assert reached(network, "example.org", 80, address, here=here) == ()
        assert reached(network, address, 80, address, here=here) == ()


def test_what_is_closed_is_opened_by_nothing():
    here = Surroundings(opened=(ip_network("10.0.0.0/8"),), closed=(ip_network("10.1.0.0/16"),))
    assert reached(allowlist("10.0.0.0/8"), PRIVATE, 80, PRIVATE, here=here) == ()


def test_this_machine_is_reached_by_its_private_addresses_and_a_rule_only():
    mine = ip_address("192.168.1.5")
    here = Surroundings(own=frozenset({mine, PUBLIC}))
    assert reached(Network(), "example.org", 80, mine, PUBLIC, here=here) == ()
    assert reached(allowlist("*", "198.51.100.7"), PUBLIC, 80, PUBLIC, here=here) == ()
    assert reached(allowlist("*"), "example.org", 80, mine, here=here) == ()
    assert reached(allowlist("192.168.1.5"), mine, 80, mine, here=here) == (mine,)
    opened = replace(here, opened=(ip_network("192.168.0.0/16"),))
    for network in (Network(), allowlist("*", "192.168.1.5")):
        assert reached(network, "example.org", 80, mine, here=opened) == ()
        assert reached(network, mine, 80, mine, here=opened) == ()


@given(hosts, port, st.lists(addresses, max_size=3))
def test_without_a_network_nothing_is_reached(host: Host, port: int, found: list[Address]):
    assert Network(Mode.NONE).permits(host, port, found, HERE).addresses == ()


@given(networks, hosts, port, st.lists(addresses, max_size=3))
def test_a_verdict_has_addresses_or_a_reason(
    network: Network, host: Host, port: int, found: list[Address]
):
    verdict = network.permits(host, port, found, HERE)
    assert bool(verdict.reason) is not bool(verdict.addresses)
    assert set(verdict.addresses) <= set(found)


@given(st.ip_addresses(v=4))
def test_an_address_in_the_form_of_ipv6_is_the_same(address: Address):
    assert plain(ip_address(f"::ffff:{address}")) == address
    assert parse_host(f"::ffff:{address}") == address


@given(st.ip_addresses())
def test_what_python_calls_private_is_not_public(address: Address):
    documentation = any(
        address in ip_network(text)
        for text in (
            "192.0.2.0/24",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "2001:db8::/32",
            "3fff::/20",
        )
    )
    if is_public(ip_network(address)) and not documentation:
        assert not address.is_private
        assert not address.is_multicast
