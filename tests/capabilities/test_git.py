"""What callers write becomes one word of the shell that runs git, whatever it is."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from box_mcp.capabilities.git import MAX_MESSAGE, message_word, place, word
from box_mcp.errors import InvalidArgument

BYTES = st.binary(min_size=1, max_size=20).filter(lambda raw: b"\0" not in raw)


def printed(command: str) -> bytes:
    """What bash prints of it; its home is /home/box."""
    said = command.encode(errors="surrogatepass")  # as boxd hands commands over
    env = {"HOME": "/home/box", "LC_ALL": "C.UTF-8"}
    return subprocess.run(["bash", "-c", said], env=env, capture_output=True, check=True).stdout


@settings(max_examples=50)
@given(BYTES)
@example(b"it's $(id) `id` \\ \xe9'\n")
@example(b"caf\xe91")
@example(b"\n")
def test_a_word_is_those_bytes_and_nothing_else(raw: bytes):
    assert printed(f"printf %s {word(os.fsdecode(raw))}") == raw


@pytest.mark.parametrize(
    ("path", "meant"),
    [("~", b"/home/box"), ("~/a b", b"/home/box/a b"), ("a~", b"a~"), ("/~/x", b"/~/x")],
)
def test_only_a_place_begins_at_home(path: str, meant: bytes):
    assert printed(f"printf %s {place(path)}") == meant
    assert printed(f"printf %s {word(path)}") == path.encode()


@pytest.mark.parametrize("text", ["\ud800", "a\0b", "x" * (MAX_MESSAGE + 1)])
def test_what_no_commit_can_say_is_refused(text: str):
    with pytest.raises(InvalidArgument, match="'message'"):
        message_word(text)
