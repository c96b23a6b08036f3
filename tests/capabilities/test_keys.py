from __future__ import annotations

import curses
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.capabilities.keys import KEYS, key_bytes
from box_mcp.errors import InvalidArgument

# What terminfo's names for keys are called here; its arrows are those of application mode.
TERMINFO = {
    "backspace": "kbs",
    "delete": "kdch1",
    "insert": "kich1",
    "home": "khome",
    "end": "kend",
    "page-up": "kpp",
    "page-down": "knp",
    "up": "kcuu1",
    "down": "kcud1",
    "left": "kcub1",
    "right": "kcuf1",
    "shift-tab": "kcbt",
    "shift-left": "kLFT",
    "shift-home": "kHOM",
    "shift-delete": "kDC",
    "shift-page-down": "kNXT",
    **{f"f{number}": f"kf{number}" for number in range(1, 13)},
    "shift-f1": "kf13",
    "shift-f5": "kf17",
    "ctrl-f4": "kf28",
    "ctrl-f12": "kf36",
    "alt-f6": "kf54",
}

SENT = {
    "enter": b"\r",
    "tab": b"\t",
    "escape": b"\x1b",
    "space": b" ",
    "ctrl-c": b"\x03",
    "ctrl-d": b"\x04",
    "ctrl-z": b"\x1a",
    "ctrl-\\": b"\x1c",
    "ctrl-[": b"\x1b",
    "ctrl-]": b"\x1d",
    "ctrl-_": b"\x1f",
    "ctrl-/": b"\x1f",
    "ctrl-space": b"\0",
    "ctrl-@": b"\0",
    "ctrl-backspace": b"\b",
    "ctrl-shift-c": b"\x03",
    "alt-x": b"\x1bx",
    "alt-X": b"\x1bX",
    "alt-enter": b"\x1b\r",
    "alt-backspace": b"\x1b\x7f",
    "ctrl-alt-x": b"\x1b\x18",
    "up": b"\x1b[A",
    "home": b"\x1b[H",
    "ctrl-left": b"\x1b[1;5D",
    "alt-shift-up": b"\x1b[1;4A",
    "ctrl-alt-delete": b"\x1b[3;7~",
    "shift-a": b"A",
    "q": b"q",
    "-": b"-",
    "^": b"^",
    "<": b"<",
    "é": "é".encode(),
    "\n": b"\r",
    "\x03": b"\x03",
}

SAME = {
    "enter": ("Enter", "ENTER", "return", "<CR>", "<Enter>", "cr"),
    "escape": ("esc", "Esc", "<Esc>", "^["),
    "backspace": ("BS", "<BS>", "Back-Space", "BSpace", "^?"),
    "delete": ("del", "<Del>"),
    "page-up": ("PageUp", "page_up", "Page Up", "pgup"),
    "page-down": ("PageDown", "pgdn", "<PageDown>"),
    "up": ("ArrowUp", "arrow-up", "<Up>"),
    "space": ("spacebar", "<Space>"),
    "shift-tab": ("S-Tab", "<S-Tab>", "shift+tab", "backtab", "BackTab"),
    "ctrl-c": ("C-c", "^C", "^c", "ctrl+c", "Ctrl-C", "CONTROL-C", "<C-c>", "ctrl c"),
    "alt-x": ("M-x", "meta+x", "<A-x>", "option-x"),
    "ctrl-alt-x": ("C-M-x", "alt-ctrl-x", "Ctrl+Alt+X"),
    "f5": ("F5", "<F5>"),
}


@pytest.mark.parametrize(("key", "sent"), SENT.items(), ids=map(repr, SENT))
def test_a_key_sends(key: str, sent: bytes):
    assert key_bytes([key]) == sent


@pytest.fixture(scope="module")
def xterm() -> None:
    """What this machine's terminfo says of xterm-256color."""
    with Path(os.devnull).open("wb") as nowhere:
        curses.setupterm("xterm-256color", nowhere.fileno())


@pytest.mark.usefixtures("xterm")
@pytest.mark.parametrize(("key", "name"), TERMINFO.items(), ids=TERMINFO)
def test_a_key_sends_what_terminfo_says_of_xterm(key: str, name: str):
    assert key_bytes([key], application=True) == curses.tigetstr(name)


@pytest.mark.parametrize(
    ("name", "written"),
    [(name, written) for name, several in SAME.items() for written in several],
)
def test_a_key_may_be_written_in_several_ways(name: str, written: str):
    assert key_bytes([written]) == key_bytes([name])


def test_application_mode_is_for_arrows_home_and_end_without_modifiers():
    differ = {key for key in KEYS if key_bytes([key]) != key_bytes([key], application=True)}
    assert differ == {"up", "down", "left", "right", "home", "end"}
    assert key_bytes(["ctrl-up"], application=True) == key_bytes(["ctrl-up"])


def test_keys_are_pressed_one_after_the_other():
    assert key_bytes(["escape", ":", "q", "!", "enter"]) == b"\x1b:q!\r"
    assert key_bytes([]) == b""


def test_no_two_keys_send_the_same():
    assert len({key_bytes([key]) for key in KEYS}) == len(KEYS)


@pytest.mark.parametrize(
    ("written", "close"),
    [("entr", "enter"), ("Esape", "escape"), ("ctr-c", "ctrl-c"), ("pagedwn", "pagedown")],
)
def test_what_is_no_key_is_refused_with_the_closest_name(written: str, close: str):
    with pytest.raises(InvalidArgument, match=f"{written!r}, which is no key.* {close!r}") as error:
        key_bytes(["up", written])
    assert error.value.name == "keys"


@pytest.mark.parametrize(
    "written", ["", "hello world", "ctrl-é", "ctrl-1", "\udc80", "ctrl-\u017f", "xy" * 999]
)
def test_what_is_like_no_key_is_refused_too(written: str):
    with pytest.raises(InvalidArgument, match="is no key") as error:
        key_bytes([written])
    assert len(str(error.value)) < 300


@given(st.text(max_size=20) | st.sampled_from(KEYS).map("ctrl-{}".format))
def test_anything_is_a_key_or_refused(written: str):
    try:
        sent = key_bytes([written])
    except InvalidArgument:
        return
    assert 1 <= len(sent) <= 8
