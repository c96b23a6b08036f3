"""How tools are declared: a function, its annotations, a lean schema, and strict arguments."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from inspect import Parameter
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin

import pydantic_core
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.mcpserver.resolve import (
    Resolve,
    build_resolver_plans,
    find_resolved_parameters,
)
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import (
    ArgModelBase,
    FuncMetadata,
    func_metadata,
)
from mcp_types import CallToolResult, TextContent, ToolAnnotations
from pydantic import ConfigDict, ValidationError, create_model

from box_mcp.domain.access import Group
from box_mcp.surface.failures import complaint, explained

R = TypeVar("R")

Repair = Callable[[dict[str, Any]], dict[str, Any]]
"""Gives a tool's arguments the form that it takes, where they have one that others' tools do."""

OTHER_NAMES = {"file_path": "path"}
"""What Claude Code's own tools call an argument, and what ours call it."""

BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "minItems", "maxItems", "minLength")

CONTEXT = "ctx"
"""What tools call the argument that no client gives."""

CORE = {"anthropic/alwaysLoad": True}
"""For tools whose schema Claude Code should have at hand from the first request on."""


class Strict(ArgModelBase):
    """Arguments of which unknown ones are refused: a misspelled `timeout` must not be ignored."""

    model_config = ConfigDict(extra="forbid")


class Arguments(FuncMetadata):
    """A tool's arguments, of which text stays text.

    The SDK would take a `str | None` that happens to be JSON, such as a file's content, for
    the object that it describes.
    """

    repair: Repair | None = None

    def pre_parse_json(self, data: dict[str, Any]) -> dict[str, Any]:
        """Parses JSON in strings, for clients that send objects so, where no text is expected."""
        if self.repair is not None:
            data = self.repair(data)
        fields = self.arg_model.model_fields
        if ours := fields.keys() - data.keys():
            data = {
                OTHER_NAMES[name] if OTHER_NAMES.get(name) in ours else name: value
                for name, value in data.items()
            }
        texts = {name for name in data if name in fields and takes_text(fields[name].annotation)}
        others = {name: value for name, value in data.items() if name not in texts}
        return {**data, **super().pre_parse_json(others)}


class BoxTool(Tool):
    """A tool that tells its caller which argument was wrong, and what it takes."""

    async def run(
        self,
        arguments: dict[str, Any],
        context: Context[Any, Any],
        convert_result: bool = False,
    ) -> Any:
        """Runs the tool; raises ToolError, with words for a model, when that fails."""
        try:
            return await super().run(arguments, context, convert_result)
        except UnexpectedToolError:
            raise
        except ToolError as error:
            if not isinstance(fault := error.__cause__, ValidationError):
                raise
            known = list(self.fn_metadata.arg_model.model_fields)
            raise ToolError(complaint(self.name, known, fault)) from None


class Toolset:
    """Tools of one group."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.tools: list[Tool] = []

    def tool(
        self,
        *,
        reads: bool = False,
        destroys: bool = False,
        repeatable: bool = False,
        open_world: bool = False,
        core: bool = False,
        structured: bool = False,
        repair: Repair | None = None,
    ) -> Callable[[Callable[..., Awaitable[R]]], Callable[..., Awaitable[R]]]:
        """Declares a tool. Its docstring is what models choose it by.

        What MCP takes for granted is not said: that a tool does not only read, that repeating it
        does more, and that one that only reads destroys nothing.
        """

        def declare(function: Callable[..., Awaitable[R]]) -> Callable[..., Awaitable[R]]:
            annotations = ToolAnnotations(
                read_only_hint=reads or None,
                destructive_hint=None if reads else destroys,
                idempotent_hint=None if reads else repeatable or None,
                open_world_hint=open_world,
            )
            parameters = [*inspect.signature(function, eval_str=True).parameters.values()]
            resolved = find_resolved_parameters(function) if any(map(_asks, parameters)) else {}
            given = [one for one in parameters if one.name not in (CONTEXT, *resolved)]
            taken = arguments(function.__name__, given, repair)
            if structured:
                own = func_metadata(function, [one.name for one in parameters], structured)
                taken.output_schema = own.output_schema and compact(own.output_schema)
                taken.output_model, taken.wrap_output = own.output_model, own.wrap_output
            tool = BoxTool(
                fn=explained(function),
                name=function.__name__,
                title=None,
                description=_unwrapped(function.__doc__ or ""),
                parameters=lean(taken.arg_model.model_json_schema()),
                fn_metadata=taken,
                is_async=True,
                context_kwarg=CONTEXT if CONTEXT in function.__annotations__ else None,
                resolved_params=resolved,
                resolver_plans=build_resolver_plans(resolved, set(taken.arg_model.model_fields)),
                annotations=annotations,
                meta=CORE if core else None,
            )
            self.tools.append(tool)
            return function

        return declare


def record(facts: dict[str, Any]) -> CallToolResult:
    """A structured result of a tool that publishes no schema: complete in itself, as text too."""
    text = pydantic_core.to_json(facts).decode()
    return CallToolResult(content=[TextContent(text=text)], structured_content=facts)


def arguments(tool: str, given: Iterable[Parameter], repair: Repair | None) -> Arguments:
    """What a tool takes from clients.

    The SDK's own way makes models and schemas twice where any of them is to be another, and that is
    a good part of a server's start.
    """
    fields: dict[str, Any] = {
        one.name: (one.annotation, ... if one.default is one.empty else one.default)
        for one in given
    }
    return Arguments(
        arg_model=create_model(f"{tool}Arguments", __base__=Strict, **fields), repair=repair
    )


def _asks(parameter: Parameter) -> bool:
    """Whether the user is asked for it, or the like; so it is with few, and looking takes long."""
    marks = getattr(parameter.annotation, "__metadata__", ())
    return any(isinstance(mark, Resolve) for mark in marks)


def takes_text(annotation: Any) -> bool:
    """True for `str`, and for unions with it."""
    union = get_origin(annotation) in (Union, UnionType)
    return annotation is str or (union and str in get_args(annotation))


def lean(schema: dict[str, Any]) -> dict[str, Any]:
    """A tool's input schema in few tokens.

    What may be left out is not said to take null, too, nor to be nothing where it is left out. Who
    breaks a bound, or gives an argument that there is not, is told so; a bound that is worth
    knowing before stands in the description.
    """
    return _lean_object(compact(schema))


def _lean_object(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema`, and the objects that its lists have."""
    if "properties" not in schema:
        return schema
    known = {key: value for key, value in schema.items() if key != "additionalProperties"}
    return {**known, "properties": {name: _lean(one) for name, one in known["properties"].items()}}


def _lean(schema: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _lean_object(value) if key == "items" else value
        for key, value in _without_null(schema).items()
        if key not in BOUNDS
        and (key != "default" or value)
        and (key != "additionalProperties" or value is not True)
    }


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    kinds = schema.get("anyOf", [])
    if len(kinds) != 2 or kinds[1] != {"type": "null"} or schema.get("default", 0) is not None:
        return schema
    return {**kinds[0], **{key: schema[key] for key in schema.keys() - {"anyOf", "default"}}}


def compact(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` without titles, with what it refers to in its place."""
    small: dict[str, Any] = without_titles(schema)
    return _placed(small, small.pop("$defs", {}))


def _placed(schema: Any, definitions: dict[str, Any]) -> Any:
    match schema:
        case {"$ref": str(name), **more}:
            return _placed({**definitions[name.rpartition("/")[2]], **more}, definitions)
        case dict():
            items = cast("dict[str, Any]", schema)
            return {key: _placed(value, definitions) for key, value in items.items()}
        case list():
            return [_placed(value, definitions) for value in cast("list[Any]", schema)]
        case _:
            return schema


def without_titles(schema: Any, *, names: bool = False) -> Any:
    """`schema` without pydantic's titles, and models' docstrings, which are for programmers.

    `names`: its keys are names of properties.
    """
    if isinstance(schema, dict):
        items = cast("dict[str, Any]", schema)
        return {
            key: without_titles(value, names=key in ("properties", "$defs") and not names)
            for key, value in items.items()
            if names or not (key == "title" or (key == "description" and "properties" in items))
        }
    if isinstance(schema, list):
        return [without_titles(value) for value in cast("list[Any]", schema)]
    return schema


def _unwrapped(docstring: str) -> str:
    """The docstring with its lines joined into paragraphs: line breaks cost tokens."""
    paragraphs = docstring.strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
