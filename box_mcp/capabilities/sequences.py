"""The language that programs speak to terminals: control characters and sequences, played.

Understood are those of xterm's ctlseqs that move, print or remove text. All others are recognised
and left out; questions to the terminal stay without an answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from box_mcp.capabilities.display import Display

MAX_PARAMETERS = 32  # of one sequence
MAX_DIGITS = 5  # of one parameter

# Every repeat is possessive, and strings stop at the next introducer: so the time is linear.
# It is compiled when it is first used: that takes longer than the rest of the module's import.
_PIECE = r"""(?xs)
      (?P<text> [^\x00-\x1f\x7f-\x9f]++ )
      # home and erase all after it, which is the way of some terminals to clear
    | (?P<clear> \x1b\[ (?: 1;1 )? H \x1b\[ 0? J )
      # CSI: parameters, intermediates and a final character; or broken off before that
    | (?: \x1b\[ | \x9b ) (?P<private> [<-?]?+ ) (?P<parameters> [0-?]*+ )
      (?: (?P<csi> [ -/]*+ [@-~] ) | [ -/]*+ )
      # OSC, DCS, SOS, PM, APC: a string up to its terminator. Without one, to the line's end at
      # most: a stray introducer, as in binary output, hides no more than that.
    | (?: \x1b[]PX^_] | [\x90\x98\x9d-\x9f] )
      (?: (?P<string> [^\x07\x18\x1a\x1b\x80-\x9f]*+ ) (?: \x07 | \x1b\\ | \x9c )
        | [^\n\x07\x18\x1a\x1b\x80-\x9f]*+ )
      # character sets and other escapes; or one that is broken off
    | \x1b (?: (?P<escape> [ -/]*+ [0-~] ) | [ -/]*+ )
    | (?P<control> . )
"""
_TITLE = ("\x1b]0;", "\x1b]2;")

# What stands in place of these letters in DEC's set of graphic characters: frames, mostly.
_GRAPHICS = str.maketrans("`abcdefghijklmnopqrstuvwxyz{|}~", "◆▒␉␌␍␊°±␤␋┘┐┌└┼⎺⎻─⎼⎽├┤┴┬│≤≥π≠£·")


def play(text: str, display: Display) -> None:
    """Does to `display` what `text` says; a sequence that it ends in the midst of is left out."""
    for token in re.finditer(_PIECE, text):
        kind = token.lastgroup
        if kind == "text":
            display.write(token[0])
        elif kind == "control":
            _CONTROLS.get(token[0], _nothing)(display)
        elif kind == "csi":
            _sequence(display, token["private"], token["parameters"], token["csi"])
        elif kind == "escape":
            _escape(display, token["escape"])
        elif kind == "clear":
            display.move(0, 0)
            display.clear()
        elif kind == "string" and token[0].startswith(_TITLE):
            display.title = token["string"][2:]


def _sequence(display: Display, private: str, parameters: str, code: str) -> None:
    fields = parameters.split(";", MAX_PARAMETERS)[:MAX_PARAMETERS]
    numbers = [_number(field) for field in fields]
    if private == "?" and code in {"h", "l"}:
        for mode in numbers:
            _private_mode(display, mode, on=code == "h")
    elif private:
        return
    elif code in _COUNTED:
        display.settle()
        _COUNTED[code](display, numbers[0] or 1)
    elif code in _OTHERS:
        _OTHERS[code](display, numbers[0], numbers[1] if len(numbers) > 1 else 0)


def _number(field: str) -> int:
    """A parameter; 0 if it is left out. What follows a colon only refines a colour."""
    digits = field.partition(":")[0][:MAX_DIGITS]
    return int(digits) if digits.isdigit() else 0


def _private_mode(display: Display, mode: int, *, on: bool) -> None:
    if mode == 7:
        display.wraps = on
    if mode in {1048, 1049} and on:
        display.save()
    if mode in {47, 1047, 1049}:
        display.alternate(on=on)
    if mode in {1048, 1049} and not on:
        display.restore()


def _escape(display: Display, code: str) -> None:
    if code[0] in "()":
        first, second = display.translations
        chosen = _GRAPHICS if code[1:] == "0" else {}
        display.translations = (chosen, second) if code[0] == "(" else (first, chosen)
    elif code in _ESCAPES:
        _ESCAPES[code](display)


def _nothing(display: Display) -> None:
    """What is not followed."""


def _back(display: Display) -> None:
    display.settle()
    display.move(display.x - 1, display.y)


def _return(display: Display) -> None:
    display.x = 0


def _next_line(display: Display) -> None:
    display.x = 0
    display.index()


def _charset(display: Display, number: int) -> None:
    display.charset = number


def _insert_mode(display: Display, mode: int, *, on: bool) -> None:
    if mode == 4:
        display.inserts = on


def _place(display: Display, row: int, column: int) -> None:
    display.move(max(column, 1) - 1, max(row, 1) - 1)


def _to_start(display: Display, rows: int) -> None:
    display.x = 0
    if rows > 0:
        display.down(rows)
    else:
        display.up(-rows)


_CONTROLS: dict[str, Callable[[Display], None]] = {
    "\b": _back,
    "\t": lambda display: display.tab(),
    "\n": lambda display: display.line_feed(),
    "\v": lambda display: display.line_feed(),
    "\f": lambda display: display.line_feed(),
    "\r": _return,
    "\x0e": lambda display: _charset(display, 1),
    "\x0f": lambda display: _charset(display, 0),
    # Of eight bits: the same as ESC and a letter.
    "\x84": Display.index,
    "\x85": _next_line,
    "\x8d": Display.reverse_index,
}
_ESCAPES: dict[str, Callable[[Display], None]] = {
    "7": Display.save,
    "8": Display.restore,
    "D": Display.index,
    "E": _next_line,
    "M": Display.reverse_index,
    "c": Display.reset,
}
_COUNTED: dict[str, Callable[[Display, int], None]] = {
    # The count is 1 if it is left out, or 0; places are from 1.
    "@": Display.insert_cells,
    "A": Display.up,
    "B": Display.down,
    "C": lambda display, n: display.move(display.x + n, display.y),
    "D": lambda display, n: display.move(display.x - n, display.y),
    "E": _to_start,
    "F": lambda display, n: _to_start(display, -n),
    "G": lambda display, n: display.move(n - 1, display.y),
    "L": Display.insert_rows,
    "M": Display.remove_rows,
    "P": Display.remove_cells,
    "X": Display.erase_cells,
    "Z": lambda display, n: display.to_stop(-n),
    "`": lambda display, n: display.move(n - 1, display.y),
    "a": lambda display, n: display.move(display.x + n, display.y),
    "d": lambda display, n: display.move(display.x, n - 1),
    "e": lambda display, n: display.move(display.x, display.y + n),
}
_OTHERS: dict[str, Callable[[Display, int, int], None]] = {
    "H": _place,
    "I": lambda display, n, _second: display.to_stop(max(n, 1)),
    "J": lambda display, how, _second: display.erase_in_display(how),
    "K": lambda display, how, _second: display.erase_in_line(how),
    "S": lambda display, n, _second: display.scroll_up(max(n, 1)),
    "T": lambda display, n, _second: display.scroll_down(max(n, 1)),
    "b": lambda display, n, _second: display.repeat(max(n, 1)),
    "f": _place,
    "h": lambda display, mode, _second: _insert_mode(display, mode, on=True),
    "l": lambda display, mode, _second: _insert_mode(display, mode, on=False),
    "r": Display.set_margins,
    "s": lambda display, _first, _second: display.save(),
    "u": lambda display, _first, _second: display.restore(),
    "!p": lambda display, _first, _second: display.soft_reset(),
}
