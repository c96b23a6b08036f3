"""What forges say of repositories is taken for no more than it can be."""

from __future__ import annotations

import pytest

from box_mcp.errors import InvalidArgument
from box_mcp.surface.forges import default_of


@pytest.mark.parametrize("said", ["", None, ["main"], "-f", "main\x1b[31m", "a b", "x" * 10**7])
def test_what_no_branch_can_be_called_is_no_default(said: object):
    with pytest.raises(InvalidArgument, match="must be given") as refused:
        default_of(said)
    assert len(refused.value.explain()) < 500


def test_what_one_can_be_called_is():
    assert default_of("trunk/1.x") == "trunk/1.x"
