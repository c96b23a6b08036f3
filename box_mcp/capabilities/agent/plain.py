"""JSON out of a box, as any client can be given it: the one place where that is parsed; pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, cast

MAX_DEPTH = 100  # of objects and lists in each other


def plain(text: str) -> Any:
    """The JSON value in a text.

    Raises ValueError for what is none, and for what could not be written as JSON again: numbers
    without bounds, nesting without end. Halves of characters become question marks.
    """
    try:
        value = _DECODER.decode(text)
        if "\\ud" in text.lower():  # perhaps half a character
            value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if is_deeper(value, MAX_DEPTH):
        raise ValueError("it is nested too deep")
    return value


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number:.40} is out of bounds")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refused, parse_float=_finite)


def is_deeper(value: object, most: int) -> bool:
    """Whether there are more than so many values within each other, objects and lists or not."""
    level = [value]
    for _ in range(most):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return cast("dict[str, object]", value).values()
    return cast("list[object]", value) if isinstance(value, list) else ()
