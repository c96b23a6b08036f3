"""Keys by name, and what xterm sends when they are pressed.

The codes are those of terminfo's xterm-256color; with shift, alt and ctrl, of xterm's ctlseqs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from box_mcp.errors import InvalidArgument

SHIFT, ALT, CTRL = 1, 2, 4  # as ctlseqs adds them up
_MODIFIERS = {
    **dict.fromkeys(("s", "shift"), SHIFT),
    **dict.fromkeys(("a", "m", "alt", "meta", "option"), ALT),
    **dict.fromkeys(("c", "ctrl", "control"), CTRL),
}
_MODIFIER = re.compile(rf"({'|'.join(_MODIFIERS)})[-+ ](?=.)", re.IGNORECASE)

_CHARACTERS = {"enter": "\r", "tab": "\t", "escape": "\x1b", "space": " ", "backspace": "\x7f"}
_CURSOR = {"up": "A", "down": "B", "right": "C", "left": "D", "end": "F", "home": "H"}
_FUNCTION = {"f1": "P", "f2": "Q", "f3": "R", "f4": "S"}
_NUMBERED = {
    "insert": 2,
    "delete": 3,
    "page-up": 5,
    "page-down": 6,
    "f5": 15,
    "f6": 17,
    "f7": 18,
    "f8": 19,
    "f9": 20,
    "f10": 21,
    "f11": 23,
    "f12": 24,
}
KEYS = (*_CHARACTERS, *_CURSOR, *_FUNCTION, *_NUMBERED)
_SYNONYMS = {name.replace("-", ""): name for name in KEYS} | {
    "return": "enter",
    "cr": "enter",
    "esc": "escape",
    "spc": "space",
    "spacebar": "space",
    "bs": "backspace",
    "bspace": "backspace",
    "del": "delete",
    "ins": "insert",
    "pgup": "page-up",
    "pgdn": "page-down",
    "pgdown": "page-down",
    "arrowup": "up",
    "arrowdown": "down",
    "arrowright": "right",
    "arrowleft": "left",
}
_WITH_CTRL = {" ": "\0", "/": "\x1f", "?": "\x7f", "\x7f": "\b", "\r": "\r", "\t": "\t"}
SHOWN = 40  # characters of an unknown name


def key_bytes(keys: Sequence[str], *, application: bool = False) -> bytes:
    """What a terminal sends when `keys` are pressed one after the other.

    A key is a character or a name, in capitals or not, and may have modifiers: ``enter``,
    ``shift-tab``, ``ctrl-c``, ``ctrl+alt+x``; also ``C-c``, ``^C``, ``<CR>``, ``PageUp``.
    In `application` mode, which most full-screen programs ask for, arrows, home and end send
    other codes (`terminal.sends_application_keys` tells). Raises InvalidArgument for no key.
    """
    return "".join(_pressed(key, application=application) for key in keys).encode()


def _pressed(key: str, *, application: bool) -> str:
    modifiers, name = _parsed(key)
    which = f"1;{1 + modifiers}" if modifiers else ""
    if name in _CURSOR:
        return (
            f"\x1b[{which}{_CURSOR[name]}" if which or not application else f"\x1bO{_CURSOR[name]}"
        )
    if name in _FUNCTION:
        return f"\x1b[{which}{_FUNCTION[name]}" if which else f"\x1bO{_FUNCTION[name]}"
    if name in _NUMBERED:
        return f"\x1b[{_NUMBERED[name]}{which[1:]}~"
    return _typed(key, _CHARACTERS.get(name, name), modifiers)


def _parsed(key: str) -> tuple[int, str]:
    """The modifiers of `key`, and a name of `KEYS` or one character."""
    name = key[1:-1] if len(key) > 2 and key[0] + key[-1] == "<>" else key
    modifiers = 0
    if len(name) == 2 and name[0] == "^":
        modifiers, name = CTRL, name[1]
    while found := _MODIFIER.match(name):
        modifiers |= _MODIFIERS[found[1].lower()]
        name = name[found.end() :]
    if len(name) == 1 and (name.isprintable() or name.isascii()):
        return modifiers, name.replace("\n", "\r")
    plain = re.sub("[-_ ]", "", name.lower())
    if plain == "backtab":
        return modifiers | SHIFT, "tab"
    if plain not in _SYNONYMS:
        raise _no_key(key)
    return modifiers, _SYNONYMS[plain]


def _typed(key: str, char: str, modifiers: int) -> str:
    """A key that types a character, with what modifiers make of it."""
    if modifiers & CTRL:
        char = _control(key, char)
    elif modifiers & SHIFT and char == "\t":
        char = "\x1b[Z"
    elif modifiers & SHIFT:
        char = char.upper()
    return f"\x1b{char}" if modifiers & ALT else char


def _control(key: str, char: str) -> str:
    if char in _WITH_CTRL:
        return _WITH_CTRL[char]
    if char.isascii() and "@" <= char.upper() <= "_":
        return chr(ord(char.upper()) & 0x1F)
    raise _no_key(key)


def _no_key(key: str) -> InvalidArgument:
    from difflib import get_close_matches

    key = key[:SHOWN]
    close = get_close_matches(key.lower(), [*KEYS, *_SYNONYMS, "shift-tab", "ctrl-c"], n=1)
    hint = (
        f"did you mean {close[0]!r}?"
        if close
        else "keys are single characters and names such as enter, escape, up, f1, ctrl-c"
    )
    return InvalidArgument("keys", f"has {key!r}, which is no key: {hint}")
