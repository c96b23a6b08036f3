from __future__ import annotations

import pytest

from box_mcp.domain.network import NO_RULE, Mode, Network, parse_rules
from box_mcp.gateway.tally import Refusal
from box_mcp.surface.refusals import LISTED, ONLY_THE_USER, listed, remedy
from box_mcp.surface.words import reach

SOME = Network(Mode.ALLOWLIST, parse_rules(["known.example"]))


def refused(*targets: str) -> list[Refusal]:
    return [Refusal(target, 2, 0.0, f"reason {n}") for n, target in enumerate(targets)]


def said(*targets: str, network: Network = SOME, beyond: bool = False, may_ask: bool = True) -> str:
    wide = ("it",) if beyond else ()
    return remedy(network, refused(*targets), lambda _: wide, ', box="a"', may_ask=may_ask)


def test_what_the_settings_allow_is_proposed_with_the_box_that_the_call_named():
    assert said("a.example:443", "[2001:db8::1]:80") == (
        'network_policy(allow=["a.example:443", "[2001:db8::1]:80"], box="a") allows it'
    )


def test_of_many_the_latest_are_proposed():
    targets = [f"{name}.example:443" for name in "abcde"]
    assert 'allow=["c.example:443", "d.example:443", "e.example:443"]' in said(*targets)


def test_what_is_beyond_the_ceiling_is_asked_for_where_the_client_can_ask():
    assert said("a.example:443", beyond=True).endswith(" asks the user for it")
    told = said("a.example:443", "b.example:80", beyond=True, may_ask=False)
    assert told == f"a.example:443, b.example:80: {ONLY_THE_USER}"


def test_what_needs_no_yes_is_not_asked_for_together_with_what_does():
    def beyond(wanted: Network) -> list[str]:
        return [str(rule) for rule in wanted.allow if rule.private]

    refusals = refused("10.0.0.1:80", "a.example:443")
    assert remedy(SOME, refusals, beyond, may_ask=True) == (
        'network_policy(allow=["a.example:443"]) allows it; '
        'network_policy(allow=["10.0.0.1:80"]) asks the user for it'
    )
    assert remedy(SOME, refusals, beyond, may_ask=False).endswith(f"; 10.0.0.1:80: {ONLY_THE_USER}")


def test_where_a_rule_names_it_and_it_was_refused_for_another_reason_that_is_told():
    assert said("known.example:443") == "reason 0"
    assert "known" not in said("known.example:443", "a.example:443")


@pytest.mark.parametrize("mode", [Mode.FULL, Mode.NONE])
def test_where_no_rules_count_any_more_none_is_proposed(mode: Mode):
    assert said("a.example:443", network=Network(mode)) == f"the box has network '{mode}' now"


def test_what_can_be_no_rule_is_not_proposed():
    assert said("*.127.1:99", "a.example:443") == said("a.example:443")


def test_a_list_of_refusals_shows_the_latest():
    lines = listed(refused(*(f"{n}.example:80" for n in range(LISTED + 1))), SOME)
    assert len(lines) == LISTED
    assert lines[0] == "1.example:80 (2): reason 1"


def test_a_list_of_refusals_does_not_say_that_a_rule_lacks_which_is_there_by_now():
    lacking = [Refusal(f"{name}.example:443", 1, 0.0, NO_RULE) for name in ("known", "other")]
    assert listed(lacking, SOME) == [
        "known.example:443 (1): no rule allowed it then",
        f"other.example:443 (1): {NO_RULE}",
    ]
    assert {line.endswith("then") for line in listed(lacking, Network(Mode.FULL))} == {True}
    assert listed(refused("known.example:443"), SOME) == ["known.example:443 (2): reason 0"]


def test_a_long_list_of_rules_is_cut():
    many = Network(Mode.ALLOWLIST, parse_rules([f"{n}.example" for n in range(22)]))
    assert reach(many).endswith(", 19.example) and 2 rules more")
    assert reach(SOME) == "allowlist (known.example)"
