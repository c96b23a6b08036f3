from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from box_mcp.domain.metering import (
    CONTINUED,
    Frames,
    Lines,
    Metered,
    Total,
    Whole,
    prices_of,
)
from box_mcp.domain.modelrequests import Wanted
from box_mcp.domain.models import Price, Prices, Tokens
from box_mcp.domain.prices import DEFAULT_PRICES
from tests.support.models import claude, events, frames

ASKED = Wanted(("m",), ("m",), streams=True, body=b"x" * 3000)


def counted(*said: dict[str, Any]) -> Total:
    lines = Lines()
    for piece in events({"type": "any"} | one for one in said):
        lines.feed(piece)
    return lines.total


def metered(usage: dict[str, Any], **more: Any) -> Metered:
    whole = Whole()
    whole.feed(json.dumps({"usage": usage} | more).encode())
    assert whole.total.metered is not None
    return whole.total.metered


def dollars(model: str, found: Metered) -> float:
    prices = prices_of(DEFAULT_PRICES, [model])
    assert prices is not None
    return found.cost(prices)


@given(st.data())
@settings(max_examples=50)
def test_an_answer_counts_the_same_in_whatever_pieces_it_comes(data: st.DataObject):
    for meter, made in ((Lines(), events), (Frames(), frames)):
        left = b"".join(made(claude("text \n\n data: {}")))
        while left:
            size = data.draw(st.integers(1, 400))
            meter.feed(left[:size])
            left = left[size:]
        assert meter.total.over
        assert meter.total.metered == Metered(Tokens(1000, 500, 0, 200))
        assert meter.total.said == len("text \n\n data: {}")


def test_what_each_api_counts_is_made_one():
    anthropic = {
        "input_tokens": 1,
        "cache_read_input_tokens": 2,
        "cache_creation_input_tokens": 3,
        "output_tokens": 4,
    }
    details = {"cached_tokens": 2, "cache_write_tokens": 3}
    responses = {"input_tokens": 6, "input_tokens_details": details, "output_tokens": 4}
    chat = {"prompt_tokens": 6, "prompt_tokens_details": details, "completion_tokens": 4}
    for usage in (anthropic, responses, chat):
        assert metered(usage).tokens == Tokens(1, 2, 3, 4)
    bedrock = {
        "inputTokenCount": 1,
        "cacheReadInputTokenCount": 2,
        "cacheWriteInputTokenCount": 3,
        "outputTokenCount": 4,
    }
    found = counted({"amazon-bedrock-invocationMetrics": bedrock}).metered
    assert found == Metered(Tokens(1, 2, 3, 4))


def test_an_answer_to_an_embedding_counts_what_was_read():
    assert metered({"prompt_tokens": 8, "total_tokens": 8}).tokens == Tokens(input=8)


def test_the_cache_costs_more_for_an_hour():
    usage = {"cache_creation_input_tokens": 1_000_000}
    short = metered(usage)
    mixed = metered(usage | {"cache_creation": {"ephemeral_1h_input_tokens": 500_000}})
    long = metered(usage | {"cache_creation": {"ephemeral_1h_input_tokens": 1_000_000}})
    costs = [dollars("claude-opus-5", found) for found in (short, mixed, long)]
    assert costs == pytest.approx([6.25, 8.125, 10])


def test_a_long_prompt_costs_more_as_a_whole():
    details = {"cached_tokens": 100_000}
    usage = {"input_tokens": 272_000, "input_tokens_details": details, "output_tokens": 1000}
    assert dollars("gpt-5.5", metered(usage)) == pytest.approx(0.86 + 0.05 + 0.03)
    longer = metered(usage | {"input_tokens": 272_001})
    assert dollars("gpt-5.5", longer) == pytest.approx(1.72001 + 0.1 + 0.045)


def test_what_servers_do_beside_an_answer_costs_too():
    searched = metered({"input_tokens": 0, "server_tool_use": {"web_search_requests": 3}})
    assert dollars("claude-opus-5", searched) == pytest.approx(0.03)
    items = [{"type": "web_search_call"}, {"type": "message"}, {"type": "web_search_call"}, 7]
    assert dollars("gpt-5.5", metered({"input_tokens": 0}, output=items)) == 0.02


def test_a_certain_region_costs_more():
    there = metered({"output_tokens": 1_000_000, "inference_geo": "us"})
    assert dollars("claude-opus-5", there) == pytest.approx(27.5)


def test_steps_of_other_models_count_where_the_sum_leaves_them_out():
    steps = [{"input_tokens": 10, "output_tokens": 5}, {"input_tokens": 100, "output_tokens": 50}]
    assert metered({"input_tokens": 10, "output_tokens": 5, "iterations": steps}).tokens == Tokens(
        input=110, output=55
    )


def test_the_dearest_of_all_models_that_may_have_a_part_is_paid():
    prices = Prices([("a", Price(1, 1, 1, 1)), ("b", Price(2, 2, 2, 2))])
    found = prices_of(prices, ["a", "b"])
    assert found is not None
    assert Metered(Tokens(input=1_000_000)).cost(found) == 2
    assert prices_of(prices, ["a", "c"]) is None


def test_counts_that_make_no_sense_are_none():
    odd = {"input_tokens": -5, "output_tokens": True, "cache_read_input_tokens": "9"}
    assert metered(odd).tokens == Tokens()
    assert metered({"input_tokens": 10**30}).tokens.input == 10**12


@pytest.mark.parametrize(
    "said",
    [
        b"data: [1, 2]\n\ndata: null\n\ndata: {\n\n: comment\n\nevent: x\n\n",
        b'data: {"usage": [], "delta": {"a": [1]}, "choices": {"b": 1}}\n\n',
        b'data: {"usage": {"iterations": [1], "cache_creation": 1}}\n\n' + b"data: " + b"[" * 99999,
        b"\xff\xfe\0" * 100,
    ],
)
def test_nonsense_in_a_stream_is_passed_over(said: bytes):
    for meter in (Lines(), Frames()):
        meter.feed(said + b"\n\n")
        assert not meter.total.over
    lines = Lines()
    lines.feed(said + b"\n\n" + b"".join(events(claude())))
    assert lines.total.metered is not None


def test_an_answer_without_an_end_is_taken_for_what_it_said_or_thought_whichever_is_more():
    start, delta, *_ = claude("x" * 5000)
    total = counted(start, delta)
    assert total.settle(ASKED, 1.0).tokens == Tokens(1000, 500, 0, 2500)
    assert total.settle(ASKED, 60.0).tokens == Tokens(1000, 500, 0, 6000)


def test_thoughts_of_a_stream_are_no_longer_than_the_answer_may_be():
    few = Wanted(("m",), ("m",), streams=True, most=100, body=b"x" * 3000)
    assert Total().settle(few, 60.0).tokens == Tokens(input=1000, output=100)


def test_a_request_that_was_not_answered_is_taken_for_its_length():
    assert Total().settle(ASKED, 0.0).tokens == Tokens(input=1000)
    whole = Wanted(("m",), ("m",), most=5000, continues=True, body=b"x" * 3000)
    assert Total().settle(whole, 1.0).tokens == Tokens(input=1000 + CONTINUED, output=5000)


def test_a_server_that_gives_up_is_paid_for_what_it_told_and_said():
    failed = {"type": "response.failed", "response": {"usage": None}}
    assert counted(failed).settle(ASKED, 60.0) == Metered()
    delta = {"type": "response.output_text.delta", "delta": "x" * 100}
    assert counted(delta, failed).settle(ASKED, 60.0).tokens == Tokens(input=1000, output=50)


def test_what_chat_completions_say_is_seen_in_all_their_choices():
    call = {"tool_calls": [{"function": {"arguments": "x" * 100}}]}
    choices = [{"delta": {"content": "y" * 100}}, {"delta": call}, {"delta": None}]
    assert counted({"choices": choices}).said > 200


@pytest.mark.parametrize(
    ("model", "price"),
    [
        ("claude-opus-5-5", 20),
        ("claude-opus-5-5-fast", 40),
        ("claude-opus-5-20260724", 25),
        ("claude-opus-4-20250514", 75),
        ("claude-sonnet-4-5@20250929", 15),
        ("eu.anthropic.claude-haiku-4-5-20251001-v1:0", 5),
        ("anthropic.claude-opus-4-6-v1", 25),
        ("gpt-6.1-sol", 10),
        ("gpt-5.5-2026-04-23", 30),
        ("gpt-5.5-priority", 75),
    ],
)
def test_models_that_are_in_use_have_a_price_by_whatever_name(model: str, price: float):
    found = prices_of(DEFAULT_PRICES, [model])
    assert found is not None
    assert found[0].output == price


@pytest.mark.parametrize(
    "model", ["claude-opus-6", "claude-opus-5-5-turbo", "gpt-6.1-sol-priority", "gpt-7", "", "*"]
)
def test_no_price_is_guessed_from_a_name_that_is_alike(model: str):
    assert prices_of(DEFAULT_PRICES, [model]) is None


def test_prices_are_in_proportion():
    for pattern, price in DEFAULT_PRICES.patterns:
        assert price.cache_read <= price.input <= price.cache_write < price.output, pattern
        if price.beyond is not None:
            assert price.beyond.input > price.input


def test_what_is_nested_as_deep_as_can_just_be_read_ends_nothing():
    for depth in range(900, 1000):
        counter = Lines()
        counter.feed(b'data: {"delta": {"x": %s%s}}\n' % (b"[" * depth, b"]" * depth))
        counter.feed(b'data: {"usage": {"output_tokens": 3}}\n')
        assert counter.total.metered is not None
