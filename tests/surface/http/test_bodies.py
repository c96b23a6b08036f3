"""Bodies of requests: JSON that every parser takes for the same, and bounded."""

from __future__ import annotations

import json
from time import process_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.surface.http.bodies import MAX_BEGINNING, MAX_VALUES, Unreadable, check

MIB = 1024**2

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def request(params: str) -> bytes:
    return b'{"jsonrpc":"2.0","id":1,"method":"ping","params":%b}' % params.encode(
        errors="surrogatepass"
    )


@given(st.dictionaries(st.text(), JSON, max_size=4), st.integers() | st.text())
def test_whatever_a_client_may_say_is_let_in(params: dict[str, Any], number: int | str):
    said = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
    check(json.dumps(said).encode())
    check(json.dumps(said, ensure_ascii=False).encode())


@pytest.mark.parametrize(
    "said",
    [
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 1, "result": {}},
        {"jsonrpc": "2.0", "id": "a", "error": {"code": 1, "message": "no"}},
    ],
)
def test_notifications_and_responses_are_let_in(said: dict[str, Any]):
    check(json.dumps(said).encode())


@pytest.mark.parametrize(
    "params",
    [
        *('{"a":NaN}', '{"a":-Infinity}', '{"a":"\\ud800"}', '{"a":"\ud800"}', '{"a":1', "{}}", ""),
        *('{"a":' + "[" * 300 + "]" * 300 + "}", '{"a":' + "9" * 5000 + "}", "{'a':1}", '{"a":01}'),
    ],
)
def test_what_only_some_parsers_take_is_no_json(params: str):
    with pytest.raises(Unreadable) as refused:
        check(request(params))
    assert (refused.value.status, refused.value.code) == (400, -32700)


@pytest.mark.parametrize(
    "body",
    [
        *(b"[]", b"null", b"1", b"{}", b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]'),
        *(b'{"jsonrpc":"1.0","id":1,"method":"x"}', b'{"jsonrpc":"2.0","id":1,"method":2}'),
        *(b'{"jsonrpc":"2.0","id":null,"method":"x"}', b'{"jsonrpc":"2.0","id":true,"method":"x"}'),
        *(
            b'{"jsonrpc":"2.0","id":1.5,"method":"x"}',
            b'{"jsonrpc":"2.0","id":1,"method":"x","params":[]}',
        ),
        *(
            b'{"jsonrpc":"2.0","id":1}',
            b'{"jsonrpc":"2.0","id":1,"result":1}',
            b'{"jsonrpc":"2.0"}',
        ),
    ],
)
def test_what_is_no_single_message_is_refused(body: bytes):
    with pytest.raises(Unreadable) as refused:
        check(body)
    assert (refused.value.status, refused.value.code) == (400, -32600)


@pytest.mark.parametrize("value", ["{}", "[]", "1", '""', '{"a":1}', r'"\\"', r'"\""'])
def test_a_body_of_many_small_values_is_refused_before_they_are_made(value: str):
    bomb = request('{"a":[' + ",".join([value] * (15 * MIB // (len(value) + 1))) + "]}")
    began = process_time()
    with pytest.raises(Unreadable) as refused:
        check(bomb)
    assert refused.value.status == 413
    assert process_time() - began < 2


@pytest.mark.parametrize("text", [",", '{"a":[1,2]},', "\\", '"', '\\"', 'a\\\\",\n', "é,"])
def test_a_file_may_have_as_many_commas_and_quotes_as_it_likes(text: str):
    content = text * (2 * MIB // len(text))
    check(request(json.dumps({"content": content})))
    check(request(json.dumps({"content": content}, ensure_ascii=False)))


def test_a_message_of_a_few_values_is_looked_at_whole():
    values = ",".join(["1"] * (MAX_VALUES // 2))
    check(request(f'{{"a":[{values}]}}'))


def test_what_a_session_would_keep_is_bounded_and_nothing_else():
    body = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"a":"%b"}}'
    check(body % (b"x" * (MAX_BEGINNING - len(body))))
    with pytest.raises(Unreadable) as refused:
        check(body % (b"x" * MAX_BEGINNING))
    assert refused.value.status == 413
    check((body % (b"x" * MAX_BEGINNING)).replace(b"initialize", b"tools/call"))
