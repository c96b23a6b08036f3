from __future__ import annotations

from hypothesis import assume, example, given
from hypothesis import strategies as st

from box_mcp.gateway.withheld import Repeated, Withheld

SECRETS = ("abcabcabd", "aaaaaaaab")

letters = st.text("abcdx", max_size=12)


def passed(pieces: list[str]) -> tuple[str, bool]:
    """What passes, and whether that was all."""
    withheld, heard = Withheld(SECRETS), b""
    try:
        for piece in pieces:
            heard += withheld.let_pass(piece.encode())
    except Repeated:
        return heard.decode(), False
    return (heard + withheld.rest()).decode(), True


@given(st.lists(letters))
@example(["abcabcab", "c"])
@example(["", "a", "aaaaaaaaa", "c"])
def test_what_has_no_secret_passes_whole(pieces: list[str]):
    text = "".join(pieces)
    assume(not any(secret in text for secret in SECRETS))
    assert passed(pieces) == (text, True)


@given(letters, st.sampled_from(SECRETS), letters, st.lists(st.integers(0, 33)))
def test_a_secret_does_not_pass_however_it_is_cut(
    before: str, secret: str, after: str, cuts: list[int]
):
    text = before + secret + after
    ends = zip([0, *sorted(cuts)], [*sorted(cuts), len(text)], strict=True)
    heard, whole = passed([text[start:end] for start, end in ends])
    assert not whole
    assert len(heard) <= min(text.index(one) for one in SECRETS if one in text)


def test_what_is_no_secrets_beginning_does_not_wait():
    withheld = Withheld(SECRETS)
    assert withheld.let_pass(b"0008NAK\n") == b"0008NAK\n"
    assert withheld.let_pass(b"xyz abc") == b"xyz "
    assert withheld.let_pass(b"x") == b"abcx"


def test_a_short_secret_is_not_looked_for():
    assert Withheld(["a"]).let_pass(b"a") == b"a"
