from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.domain.names import is_id, mint_id, parse_name
from box_mcp.errors import InvalidName


def test_a_minted_id_has_the_form_of_an_id():
    assert is_id(mint_id())


def test_minted_ids_differ():
    assert len({mint_id() for _ in range(1000)}) == 1000


@pytest.mark.parametrize("name", ["a", "7", "my-box", "a_b.c-d", "box-short", "a" * 40])
def test_a_proper_name_is_parsed_to_itself(name: str):
    assert parse_name(name) == name


@pytest.mark.parametrize(
    "text",
    ["", "A", "-a", ".a", "_a", "a b", "a/b", "a\n", "naïve", "a" * 41, "..", "../x"],
)
def test_what_is_no_name_is_refused_with_what_was_given(text: str):
    with pytest.raises(InvalidName) as refusal:
        parse_name(text)
    assert refusal.value.text == text


def test_a_name_can_not_look_like_an_id():
    with pytest.raises(InvalidName):
        parse_name("box-abcd1234")


@pytest.mark.parametrize("text", ["box-ABCD1234", "box-abcd123", "box-abcd12345", "box-abcd1234\n"])
def test_what_is_no_id_is_not_taken_for_one(text: str):
    assert not is_id(text)


@given(st.text(max_size=50))
def test_any_text_is_a_name_or_refused(text: str):
    try:
        name = parse_name(text)
    except InvalidName:
        return
    assert name == text
    assert name.isascii()
    assert 1 <= len(name) <= 40
    assert not is_id(name)
