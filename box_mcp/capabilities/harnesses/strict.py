"""Which JSON Schemas OpenAI's API takes for answers: it knows a part of the language; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

_OF_TEXTS = {"format", "pattern"}
_OF_NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_OF_LISTS = {"items", "minItems", "maxItems"}
_OF_OBJECTS = {"properties", "required", "additionalProperties"}
_OF_ALL = {"type", "description", "title", "enum", "const", "anyOf"}
KEYWORDS = _OF_ALL | _OF_TEXTS | _OF_NUMBERS | _OF_LISTS | _OF_OBJECTS
"""What it surely knows: references, too, but those need a look at what they lead to."""

DEEPEST = 5


def takes(schema: Mapping[str, Any]) -> bool:
    """Whether a model can be held to it; where that isn't sure, no."""
    return schema.get("type") == "object" and "anyOf" not in schema and _takes(schema, 0)


def _takes(schema: object, depth: int) -> bool:
    if not isinstance(schema, Mapping) or depth > DEEPEST:
        return False
    told = cast("Mapping[str, Any]", schema)
    if not told.keys() <= KEYWORDS:
        return False
    within: list[object] = []
    if "object" in _listed(told.get("type")):
        properties = told.get("properties")
        if not isinstance(properties, Mapping) or told.get("additionalProperties") is not False:
            return False
        named = cast("Mapping[str, object]", properties)
        if sorted(map(str, _listed(told.get("required", [])))) != sorted(named):
            return False
        within += named.values()
    within += _listed(told.get("anyOf", []))
    if "items" in told:
        within.append(told["items"])
    return all(_takes(each, depth + 1) for each in within)


def _listed(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else [value]
