"""What the events of a run come to: its last word, what it did, what it does; pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from box_mcp.capabilities.agent.lines import Lines
from box_mcp.capabilities.agent.plain import plain
from box_mcp.capabilities.harnesses.base import (
    Event,
    Failed,
    FileChange,
    Finished,
    Reader,
    Reasoning,
    Started,
    Text,
    ToolCall,
    Unknown,
)

LEG = 10**12  # what cursors of one leg have less than; a log's offsets never come near
MAX_FILES = 200  # that are told by name
MAX_COMMANDS = 100
MAX_COMMAND = 500  # characters of one
MAX_EVENTS = 200  # of one line
MAX_TEXT = 1024 * 1024  # characters of what the agent says at once

_SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_FENCED = re.compile(r"\A\s*```(?:json)?\n(.*)\n```\s*\Z", re.DOTALL)

LEFT_OUT = Unknown("left out")
"""Stands for a line that was too long, or lost."""
NO_EVENT = Unknown("no event")
"""Stands for a line that is no JSON object."""


def is_session(text: str) -> bool:
    """Whether `text` can be what a harness calls a conversation; it becomes part of a command."""
    return _SESSION.fullmatch(text) is not None


class Account:
    """All that was printed by the legs of one run, one after the other.

    `word` is the last word of the present leg, if it has had one; `said` what the agent said last.
    """

    def __init__(self, reader: Callable[[], Reader]) -> None:
        self.leg = 0
        self.lines = Lines()
        self.session = ""
        self.word: Finished | Failed | None = None
        self.said = ""
        self.act = ""
        self.acts = 0
        self.files: dict[str, str] = {}
        self.more_files = 0
        self.commands: list[str] = []
        self.more_commands = 0
        self._turns: dict[int, int] = {}
        self._new_reader = reader
        self._reader = reader()

    @property
    def cursor(self) -> int:
        """Where the next event is."""
        return self.leg * LEG + self.lines.cursor

    @property
    def turns(self) -> int | None:
        """Those of all legs that told them."""
        return sum(self._turns.values()) if self._turns else None

    def next_leg(self) -> None:
        """What comes is of the next process."""
        self.leg += 1
        self.lines = Lines()
        self.word = None
        self._reader = self._new_reader()

    def read(self, *, last: bool = False) -> list[tuple[int, Event]]:
        """The events that are whole, each with its cursor; no two have the same.

        Of very many lines only some are read: until the cursor stays where it is there are more.
        When they are the `last` of a leg, a line needs no end.
        """
        read: list[tuple[int, Event]] = []
        start = self.cursor
        for line in self.lines.take(last=last):
            for place, event in enumerate(self._events(line), start):
                self._note(event)
                read.append((place, event))
            start = self.cursor
        return read

    def _events(self, line: bytes | None) -> Sequence[Event]:
        """What a line tells: not more events than it has bytes, whose offsets are their cursors."""
        if line is None:
            return [LEFT_OUT]
        if not (bare := line.strip()):
            return []
        if not bare.startswith(b"{"):
            return [NO_EVENT]
        try:
            said = plain(line.decode(errors="replace"))
        except ValueError:
            return [NO_EVENT]
        if not isinstance(said, dict):
            return [NO_EVENT]
        events = self._reader.read(cast("Mapping[str, Any]", said))
        return events[: min(MAX_EVENTS, len(line))]

    def _note(self, event: Event) -> None:
        self.acts += 1
        match event:
            case Started(session):
                self.session = session if is_session(session) else self.session
                self.act = self.act or "starts"
            case Text(text):
                self.said = text[:MAX_TEXT]
                self.act = "writes"
            case Reasoning():
                self.act = "thinks"
            case ToolCall(act=act, command=command):
                self.act = act
                if command:
                    self._ran(command)
            case FileChange(path, change):
                self._changed(path, change)
            case Finished(text, turns=turns):
                self.word = event
                self.said = text[:MAX_TEXT] or self.said
                if turns is not None:
                    self._turns[self.leg] = turns
            case Failed():
                self.word = event
            case _:
                pass

    def _ran(self, command: str) -> None:
        if len(self.commands) < MAX_COMMANDS:
            self.commands.append(command[:MAX_COMMAND])
        else:
            self.more_commands += 1

    def _changed(self, path: str, change: str) -> None:
        """A file that the agent made stays one that it made, unless it is deleted after all."""
        if path not in self.files and len(self.files) >= MAX_FILES:
            self.more_files += 1
        elif self.files.get(path) == "added" and change == "deleted":
            del self.files[path]
        elif self.files.get(path) == "deleted" and change == "added":
            self.files[path] = "changed"
        elif self.files.get(path) != "added":
            self.files[path] = change


def answer_of(word: Finished) -> Any:
    """What a harness made for a schema: as such, or as JSON in its last words, fenced or not."""
    if word.answer is not None:
        return word.answer
    try:
        return plain(_FENCED.sub(r"\1", word.text))
    except ValueError:
        return None
