from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.domain.modelrequests import MAX_PARTS, PASSED_ON, Asked, judge, parse
from box_mcp.domain.models import Dialect, ModelRoute
from box_mcp.domain.routes import Credential, Forbidden, parse_upstream

MESSAGES = Asked("/v1/messages")


def route(dialect: Dialect = Dialect.ANTHROPIC, models: tuple[str, ...] = ("*",)) -> ModelRoute:
    upstream = parse_upstream("https://models.example/base/")
    return ModelRoute("r", dialect, upstream, Credential(variable="KEY"), models)


def body(**said: Any) -> bytes:
    return json.dumps({"model": "m"} | said).encode()


@pytest.mark.parametrize(
    ("dialect", "asked", "model", "free"),
    [
        (Dialect.ANTHROPIC, "POST /v1/messages", "", False),
        (Dialect.ANTHROPIC, "POST /v1/messages?beta=true", "", False),
        (Dialect.ANTHROPIC, "POST /v1/messages/count_tokens?beta=true", "", True),
        (Dialect.ANTHROPIC, "GET /v1/models?limit=1000&after_id=x", "", True),
        (Dialect.ANTHROPIC, "GET /v1/models/claude-opus-5-5", "", True),
        (Dialect.OPENAI, "POST /responses", "", False),
        (Dialect.OPENAI, "POST /responses/compact", "", False),
        (Dialect.OPENAI, "POST /chat/completions", "", False),
        (Dialect.OPENAI, "POST /embeddings", "", False),
        (Dialect.OPENAI, "GET /models?client_version=0.169.0", "", True),
        (
            Dialect.VERTEX,
            "POST /projects/p-1/locations/us-east5/publishers/anthropic/models/m@1:rawPredict",
            "m@1",
            False,
        ),
        (Dialect.VERTEX, "POST /publishers/anthropic/models/m:streamRawPredict", "m", False),
        (Dialect.VERTEX, "POST /publishers/anthropic/models/count-tokens:rawPredict", "", True),
        (Dialect.BEDROCK, "POST /model/eu.anthropic.m-v1%3A0/invoke", "eu.anthropic.m-v1:0", False),
        (Dialect.BEDROCK, "POST /model/m-v1:0/invoke-with-response-stream", "m-v1:0", False),
        (
            Dialect.BEDROCK,
            "POST /model/arn:aws:bedrock:eu:1:inference-profile%2Feu.m/invoke",
            "arn:aws:bedrock:eu:1:inference-profile/eu.m",
            False,
        ),
    ],
)
def test_what_clients_of_models_ask_is_asked_below_the_upstream_s_path(
    dialect: Dialect, asked: str, model: str, free: bool
):
    method, target = asked.split(" ")
    found = judge(route(dialect), method, target)
    assert found == Asked(f"/base{target}", model, free)


@pytest.mark.parametrize(
    ("dialect", "asked"),
    [
        (Dialect.ANTHROPIC, "GET /v1/messages"),
        (Dialect.ANTHROPIC, "POST /v1/messages/batches"),
        (Dialect.ANTHROPIC, "POST /v1/messages/"),
        (Dialect.ANTHROPIC, "POST //v1/messages"),
        (Dialect.ANTHROPIC, "POST /v1/messages?beta=true&x=y"),
        (Dialect.ANTHROPIC, "POST /v1/complete"),
        (Dialect.ANTHROPIC, "GET /v1/files"),
        (Dialect.ANTHROPIC, "GET /v1/organizations/api_keys"),
        (Dialect.ANTHROPIC, "GET /v1/models/../organizations/api_keys"),
        (Dialect.ANTHROPIC, "GET /v1/models/%2e%2e%2Forganizations"),
        (Dialect.ANTHROPIC, "GET /v1/models/a%2F..%2F..%2Ffiles"),
        (Dialect.ANTHROPIC, "POST /v1/messages#/v1/files"),
        (Dialect.ANTHROPIC, "DELETE /v1/models/m"),
        (Dialect.OPENAI, "GET /responses/resp_1"),
        (Dialect.OPENAI, "POST /images/generations"),
        (Dialect.OPENAI, "POST /batches"),
        (Dialect.OPENAI, "GET /files"),
        (Dialect.OPENAI, "POST /fine_tuning/jobs"),
        (Dialect.VERTEX, "POST /publishers/google/models/m:rawPredict"),
        (Dialect.VERTEX, "POST /projects/../publishers/anthropic/models/m:rawPredict"),
        (Dialect.BEDROCK, "POST /model/a%2F..%2Fb/invoke"),
        (Dialect.BEDROCK, "POST /model/m/converse"),
        (Dialect.BEDROCK, "GET /inference-profiles?type=SYSTEM_DEFINED"),
    ],
)
def test_all_else_is_forbidden(dialect: Dialect, asked: str):
    method, target = asked.split(" ")
    with pytest.raises(Forbidden, match="is not asked here"):
        judge(route(dialect), method, target)


def test_a_body_says_of_which_models_an_answer_is_wanted_and_is_sent_as_it_is():
    said = body(tools=[{"name": "Bash"}, {"type": "advisor", "model": "n"}], fallbacks=["o"])
    wanted = parse(route(), MESSAGES, said)
    assert wanted.models == wanted.priced == ("m", "n", "o")
    assert wanted.body is said


def test_a_path_that_names_the_model_counts_instead_of_the_body():
    with pytest.raises(Forbidden, match="not 'p'"):
        parse(route(Dialect.BEDROCK, ("m",)), Asked("/model/p/invoke", "p"), body())


@pytest.mark.parametrize(
    "said",
    [
        b'{"model": "m", "model": "n"}',
        b'{"model": "n", "Model": "m"}',
        b'{"Model": "m"}',
        '{"model": "m", "bac\u212aground": true}'.encode(),
        b'{"model": ["m"]}',
        b'{"model": ""}',
        b'{"model": "%s"}' % (b"m" * 201),
        b'{"model": "m", "stream": 1}',
        b'{"model": "m", "stream": "true"}',
        b'{"messages": []}',
        b'["model", "m"]',
        b"model=m",
        b"",
        b"[" * 100_000,
        '{"model": "m"}'.encode("utf-16"),
        b'{"model": "m", "x": "\xff"}',
        b"[" + b"[]," * MAX_PARTS,
    ],
)
def test_a_body_that_others_could_read_in_another_way_is_forbidden(said: bytes):
    with pytest.raises(Forbidden):
        parse(route(), MESSAGES, said)


@pytest.mark.parametrize("name", ["m\x1b[2J", "m\n", "m\u202e", "m\x9b5n", "m" * 201])
def test_no_model_s_name_floods_or_controls_the_terminal_of_who_looks_what_it_cost(name: str):
    for said in (body(model=name), body(fallbacks=[name])):
        with pytest.raises(Forbidden, match="no name"):
            parse(route(), MESSAGES, said)


def test_names_inside_of_a_body_may_stand_there_twice_since_nothing_hangs_on_them():
    said = b'{"model": "m", "metadata": {"A": 1, "a": 2}}'
    assert parse(route(), MESSAGES, said).models == ("m",)


@pytest.mark.parametrize(
    ("more", "priced"),
    [
        ({"speed": "fast"}, "m-fast"),
        ({"speed": "standard"}, "m"),
        ({"service_tier": "priority"}, "m-priority"),
        ({"service_tier": "auto"}, "m"),
        ({"service_tier": "something-new"}, "m-priority"),
    ],
)
def test_what_comes_faster_for_more_has_a_price_of_its_own(more: dict[str, Any], priced: str):
    assert parse(route(), MESSAGES, body(**more)).priced == (priced,)


def test_answers_in_the_background_are_forbidden_since_nobody_counts_them():
    with pytest.raises(Forbidden, match="background"):
        parse(route(Dialect.OPENAI), Asked("/responses"), body(background=True))


def test_only_a_streamed_chat_completion_is_written_anew_to_have_tokens_told():
    chat = Asked("/chat/completions")
    openai = route(Dialect.OPENAI)
    for said in (
        body(messages=[]),
        body(stream=True, stream_options={"include_usage": True}),
    ):
        assert parse(openai, chat, said).body is said
    streamed = json.loads(parse(openai, chat, body(stream=True, n=2)).body)
    assert streamed == {
        "model": "m",
        "stream": True,
        "n": 2,
        "stream_options": {"include_usage": True},
    }
    refused = body(stream=True, stream_options={"include_usage": False})
    assert json.loads(parse(openai, chat, refused).body)["stream_options"]["include_usage"] is True
    assert parse(openai, Asked("/responses"), body(stream=True)).body == body(stream=True)


def test_no_upstream_hears_of_keys_cookies_and_accounts():
    secret = ("authorization", "cookie", "x-api-key", "openai-organization", "openai-project")
    for names in PASSED_ON.values():
        assert not {name.lower() for name in names} & set(secret)


def test_the_largest_of_several_limits_may_be_the_one_that_holds_for_each_answer():
    said = body(max_tokens=1, max_completion_tokens=500, max_output_tokens=-9, n=3)
    wanted = parse(route(Dialect.OPENAI), Asked("/chat/completions"), said)
    assert (wanted.most, wanted.answers) == (1500, 3)
    assert parse(route(), MESSAGES, body(max_tokens="x", n="x")).most is None


@pytest.mark.parametrize(
    "said",
    [
        body(models=["dear"]),
        body(fallbacks=[{"Model": "dear", "model": "m"}]),
        b'{"model": "m", "tools": [{"model": "dear", "type": "advisor", "model": "m"}]}',
    ],
)
def test_no_other_model_has_a_part_unseen(said: bytes):
    with pytest.raises(Forbidden):
        parse(route(models=("m",)), MESSAGES, said)


FAR = {"type": "input_image", "image_url": "https://elsewhere.example/x.png"}


@pytest.mark.parametrize(
    "part",
    [
        FAR,
        {"type": "image", "source": {"type": "url", "url": "https://elsewhere.example/"}},
        {"type": "image_url", "image_url": {"url": "https://elsewhere.example/"}},
        {"type": "input_file", "file_url": "https://elsewhere.example/"},
    ],
)
def test_what_a_server_is_to_fetch_may_be_long_and_is_not_fetched_for_who_is_alone(part: Any):
    said = body(messages=[{"role": "user", "content": [part]}])
    assert parse(route(), MESSAGES, said).continues
    with pytest.raises(Forbidden, match="network"):
        parse(route(), MESSAGES, said, alone=True)


@pytest.mark.parametrize("name", ["mcp_servers", "web_search_options", "plugins", "prompt"])
def test_who_is_alone_has_no_network_by_what_its_server_connects_to(name: str):
    said = body(**{name: [{"id": "x"}]})
    assert parse(route(), MESSAGES, said).body is said
    with pytest.raises(Forbidden, match="network"):
        parse(route(), MESSAGES, said, alone=True)


def test_who_is_alone_has_the_tools_only_that_it_runs_itself():
    own: list[Any] = [
        {"name": "Bash", "input_schema": {"properties": {"url": {"type": "string"}}}},
        {"type": "custom", "name": "apply_patch"},
        {"type": "function", "name": "exec_command"},
        {"type": "tool_search", "execution": "client"},
        {"type": "text_editor_20250728", "name": "edit"},
    ]
    servers: list[Any] = [
        {"type": "web_search", "external_web_access": True},
        {"type": "web_fetch_20250910", "name": "web_fetch"},
        {"type": "mcp", "server_url": "https://elsewhere.example/"},
        {"type": "something_new"},
        "web_search",
    ]
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    said = body(tools=[*own, *servers], input=[image])
    assert json.loads(parse(route(), MESSAGES, said).body)["tools"] == [*own, *servers]
    alone = parse(route(), MESSAGES, said, alone=True)
    assert json.loads(alone.body) == {"model": "m", "tools": own, "input": [image]}
    assert not alone.continues


NAMES = st.sampled_from(
    [
        "type",
        "tools",
        "model",
        "url",
        "image_url",
        "n",
        "max_tokens",
        "stream",
        "stream_options",
        "speed",
        "service_tier",
        "fallbacks",
        "mcp_servers",
        "background",
    ]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["url", "m", "input_image", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(said=st.dictionaries(NAMES, ANYTHING), alone=st.booleans())
def test_whatever_a_body_says_it_is_understood_or_forbidden(said: dict[str, Any], alone: bool):
    for asked in (MESSAGES, Asked("/chat/completions")):
        with suppress(Forbidden):
            parse(route(), asked, json.dumps({"model": "m"} | said).encode(), alone=alone)
