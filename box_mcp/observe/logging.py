"""Writes events, and what libraries have to say, to stderr by Python's logging: as text or JSON.

Neither form has what an exception says: it may quote what a caller sent, or a file.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, cast

from box_mcp.events import (
    ActFailed,
    BoxAsked,
    BoxAssigned,
    BoxClaimed,
    BoxMoved,
    CallEnded,
    Event,
    ModelUsed,
    NetworkChanged,
    PortUsed,
    RequestRefused,
    RouteUsed,
)
from box_mcp.observe.bounding import Bounds, Room
from box_mcp.observe.fields import fields

logger = logging.getLogger("box_mcp")

TEXT = "%(levelname)s %(name)s: %(message)s"
MAX_MESSAGE = 8_000  # characters
MAX_NESTED = 20  # exceptions behind one another


def configure(level: str, form: str) -> None:
    """Has all that is logged go to stderr, as "text" or "json"; ours from `level` on.

    Of libraries warnings are logged, and no more at any level: it would be what they were sent,
    headers with tokens and arguments that do not fit.
    """
    ours = logging.getLevelNamesMapping()[level]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines(TEXT))
    handler.addFilter(Sparing())
    logging.basicConfig(handlers=[handler], level=max(ours, logging.WARNING), force=True)
    logger.setLevel(ours)
    logging.captureWarnings(capture=True)


class Log:
    """A listener. `calls` is the level at which requests of MCP are logged, one by one."""

    def __init__(self, calls: int = logging.DEBUG) -> None:
        self._calls = calls
        self._bounds = Bounds()

    def __call__(self, event: Event) -> None:
        """As `Hook`: one line an event."""
        level = self._level(event)
        if logger.isEnabledFor(level) and self._bounds.take(event):
            logger.log(level, "%s", _Words(event), extra={"event": event})

    def _level(self, event: Event) -> int:
        match event:
            case BoxAsked() | BoxClaimed():
                return logging.DEBUG
            case CallEnded() if event.outcome == "failed":
                return logging.ERROR
            case CallEnded() | RequestRefused():
                return self._calls
            case ActFailed():
                return logging.WARNING
            case _:
                return logging.INFO


class _Words:
    """An event in words, which are found when somebody reads them."""

    def __init__(self, event: Event) -> None:
        self._event = event

    def __str__(self) -> str:
        return _words(self._event)


def _words(event: Event) -> str:
    match event:
        case BoxAssigned(box, principal):
            words = f"{box}: now of {principal}"
        case BoxMoved(box, before, after, reason):
            words = f"{box}: {before} -> {after}{_aside(reason)}"
        case NetworkChanged(box):
            words = f"{box}: another network policy"
        case RouteUsed() | ModelUsed() | PortUsed():
            words = _use(event)
        case ActFailed(box, act, error):
            words = f"{box}: could not {act}: {error}"
        case BoxClaimed(box, principal, was, seconds):
            words = f"{box}: claimed for {principal} in {seconds:.3f} s{_aside(was)}"
        case BoxAsked(box, request, outcome, seconds):
            words = f"{box}: {request} in {seconds:.3f} s: {outcome}"
        case CallEnded():
            asked = " ".join(filter(None, (event.method, event.tool)))
            ended = f"{event.outcome} in {event.seconds:.3f} s{_aside(event.error)}"
            words = f"{event.principal}: {asked}: {ended}"
        case RequestRefused(client, status, why):
            words = f"{client}: {status}{_aside(why)}"
    return words


def _use(event: RouteUsed | ModelUsed | PortUsed) -> str:
    if isinstance(event, PortUsed):
        return f"{event.box}: port {event.port} asked by {event.principal}, x{event.requests}"
    asked = f"{event.box}: {event.method} {event.path} by route {event.route}"
    return f"{asked}: {event.status}{_aside(event.refused)}"


def _aside(text: str) -> str:
    return f" ({text})" if text else ""


class Sparing(logging.Filter):
    """Leaves out what one place in a program says too often, and tells later how much.

    A caller can have libraries warn with each message that he sends. Events are bounded by `Log`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._rooms: dict[tuple[str, int], Room] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is to be logged."""
        if hasattr(record, "event"):
            return True
        now = self._clock()
        room = self._rooms.setdefault((record.pathname, record.lineno), Room(now))
        if not room.take(now):
            return False
        if room.left_out:
            record.msg, record.args = f"{record.getMessage()} ({room.left_out} more left out)", ()
            room.left_out = 0
        return True


class TextLines(logging.Formatter):
    """A line each, whatever is in it; tracebacks below."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's own name
        """What is printed of the record itself."""
        line = super().formatMessage(record)
        return line if line.isprintable() else _visible(line)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Where it happened, and of what kind it is."""
        return "\n".join(("Traceback (most recent call last):", *where(ei[1])))


class JsonLines(logging.Formatter):
    """An object each: time, level, logger and message.

    Then an event's name and fields, where it tells of one, or the frames of a traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, in ASCII."""
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage()[:MAX_MESSAGE],
        }
        event: Event | None = getattr(record, "event", None)
        if event is not None:
            line |= fields(event)
        if record.exc_info and record.exc_info[1] is not None:
            line["traceback"] = list(where(record.exc_info[1]))
        return json.dumps(line)


def where(error: BaseException, depth: int = 0) -> Iterator[str]:
    """The frames that an exception came through, its kind, and the same of those behind it."""
    behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if depth > MAX_NESTED:
        return
    if behind is not None:
        yield from where(behind, depth + 1)
    for frame in traceback.extract_tb(error.__traceback__):
        yield f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}'
    yield f"{type(error).__module__}.{type(error).__qualname__}"
    if isinstance(error, BaseExceptionGroup):
        for one in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from where(one, depth + 1)


def _visible(text: str) -> str:
    """`text` with what would begin a line or control a terminal written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
