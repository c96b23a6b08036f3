"""What all harnesses have in common: how one is started, and the events that it tells of; pure.

A harness is a coding agent's own program, such as Claude Code. It prints a JSON object per line;
what it means by it is told in the events here, which are the same for all. What a box prints is
untrusted: a reader takes anything, and what it does not know is an `Unknown`, never a failure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from box_mcp.domain.models import Dialect, Tokens


@dataclass(frozen=True)
class Access:
    """How a harness reaches its model from inside the box; `key` opens nothing elsewhere."""

    dialect: Dialect
    base_url: str
    key: str


@dataclass(frozen=True)
class Assignment:
    """What an agent is to do.

    `resume` is the conversation that goes on, as its harness calls it; `session` is what a new one
    is to be called, where the harness lets others choose. `system` is added to the harness's own
    system prompt. `scratch` is an empty directory in the box for this run's own files. `skills`
    are the texts of SKILL.md files by name, `servers` MCP servers as in ``.mcp.json``.
    """

    prompt: str
    scratch: str
    access: Access | None
    model: str = ""
    resume: str = ""
    session: str = ""
    max_turns: int | None = None
    schema: Mapping[str, Any] | None = None
    system: str = ""
    servers: Mapping[str, Any] = field(default_factory=dict[str, Any])
    skills: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Launch:
    """A command with its input, its variables, and files to be written first.

    Of paths, those that begin with ``~/`` are in the home of the box's user.
    """

    command: Sequence[str]
    stdin: str = ""
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    files: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Started:
    """The agent is there; `session` is what it calls the conversation."""

    session: str
    model: str = ""


@dataclass(frozen=True)
class Text:
    """Something the agent says."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """Something the agent thinks."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """The agent uses a tool; `act` says in some words what for, such as ``runs pytest``.

    `command` is what it runs in a shell, where it does that.
    """

    id: str
    name: str
    act: str
    input: Mapping[str, Any] = field(default_factory=dict[str, Any])
    command: str = ""


@dataclass(frozen=True)
class ToolResult:
    """What came of the tool call `id`."""

    id: str
    text: str
    failed: bool = False


@dataclass(frozen=True)
class FileChange:
    """The agent made (``added``), changed (``changed``) or deleted (``deleted``) a file."""

    path: str
    change: str


@dataclass(frozen=True)
class Used:
    """Tokens that the harness says it has used since its last word on that.

    With `whole`, since its conversation began, by all the legs that this has had.
    """

    tokens: Tokens
    whole: bool = False


@dataclass(frozen=True)
class Notice:
    """Something that the harness tells of itself, such as that it asks the model once more."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The agent is done. `answer` is what it made for a schema, as JSON, where it did.

    It may go on after all, for what it had left running: the last word before its process ends
    counts, be it this or `Failed`.
    """

    text: str
    answer: Any = None
    turns: int | None = None


@dataclass(frozen=True)
class Failed:
    """The agent gave up; `cause` is one of the words in `CAUSES`, `message` its own words."""

    message: str
    cause: str = "error"


CAUSES = ("error", "max_turns", "model", "refused")
"""Why agents give up: by themselves, for their turns, for a model's server, for what that said."""


@dataclass(frozen=True)
class Unknown:
    """Something that this version knows nothing of: `kind` is what the harness calls it."""

    kind: str


Event = (
    Started
    | Text
    | Reasoning
    | ToolCall
    | ToolResult
    | FileChange
    | Used
    | Notice
    | Finished
    | Failed
    | Unknown
)


class Reader(Protocol):
    """Reads what one leg of a run prints, line by line; it may remember what came before."""

    def read(self, said: Mapping[str, Any]) -> Sequence[Event]:
        """What one line, a JSON object, tells; raises nothing, whatever it is."""
        ...


class Harness(Protocol):
    """A coding agent's program. `program` must be in the box, else `package` of npm is installed.

    `dialects` are those of models that it speaks, the best first; none where it needs no model of
    ours. `limits_turns` tells whether it heeds `max_turns` by itself.
    """

    @property
    def name(self) -> str:
        """What callers call it."""
        ...

    @property
    def program(self) -> str:
        """What its command begins with."""
        ...

    @property
    def package(self) -> str:
        """Its package in npm, with ``{version}`` and ``{arch}`` (x64, arm64); empty: there is none.

        One that holds the program for Linux as it is, with all that this needs beside it.
        """
        ...

    @property
    def dialects(self) -> Sequence[Dialect]:
        """See the class."""
        ...

    @property
    def limits_turns(self) -> bool:
        """See the class."""
        ...

    def launch(self, assignment: Assignment) -> Launch:
        """How it is started; raises InvalidArgument for what it can't do."""
        ...

    def reader(self, path: str = "") -> Reader:
        """For what it prints when it works in the directory `path`, which acts are told from."""
        ...
