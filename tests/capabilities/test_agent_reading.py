"""Very many lines of an agent are read some at a time."""

from __future__ import annotations

from box_mcp.capabilities.agent.account import Account
from box_mcp.capabilities.agent.lines import MANY
from box_mcp.capabilities.harnesses.base import Finished
from box_mcp.capabilities.harnesses.custom import Custom


def test_very_many_lines_are_read_some_at_a_time_and_none_is_lost():
    account = Account(Custom("any", ["any"]).reader)
    printed = b"x\n" * (3 * MANY) + b'{"type":"finished","text":"done"}'
    account.lines.put(0, printed)
    counts: list[int] = []
    while events := account.read(last=True):
        counts.append(len(events))
        assert account.lines.end == len(printed)
    assert counts == [MANY, MANY, MANY, 1]
    assert account.cursor == len(printed)
    assert isinstance(account.word, Finished)


def test_blank_lines_tell_nothing_and_hide_nothing():
    account = Account(Custom("any", ["any"]).reader)
    account.lines.put(0, b"\n" * (2 * MANY) + b'{"type":"finished","text":"done"}\n')
    for count in (MANY, 2 * MANY):
        assert account.read() == []
        assert account.cursor == count
    assert len(account.read()) == 1
