from __future__ import annotations

from box_mcp.domain.access import EVERYTHING, Grant, Group, parse_scope
from box_mcp.domain.names import LOCAL


def test_a_token_for_metrics_is_for_nothing_else():
    scope = parse_scope("boxes:metrics")
    given = Grant(LOCAL, (scope,))
    assert str(scope) == "boxes:metrics"
    assert given.sees_metrics
    assert given.only_reads
    assert not any(given.allows(group, reads=True) for group in Group)


def test_a_token_for_everything_does_not_see_metrics():
    assert not Grant(LOCAL, (EVERYTHING,)).sees_metrics
    assert Grant(LOCAL, (EVERYTHING, parse_scope("boxes:metrics"))).sees_metrics
