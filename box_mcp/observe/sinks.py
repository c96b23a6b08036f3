"""All sinks of one server as one listener, and their common end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from box_mcp.events import Event, Hook

if TYPE_CHECKING:
    from box_mcp.observe.audit import Audit
    from box_mcp.observe.metrics import Metrics
    from box_mcp.observe.tracing import Tracing

AnyHook = TypeVar("AnyHook", bound=Hook)


class Sinks:
    """A hook that passes each event on to all.

    `metrics` and `tracing` are None where they are off.
    """

    def __init__(self, log: Hook, audit: Audit) -> None:
        self.metrics: Metrics | None = None
        self.tracing: Tracing | None = None
        self._audit = audit
        self._hooks: list[Hook] = [log, audit]

    def __call__(self, event: Event) -> None:
        """As `Hook`."""
        for hook in self._hooks:
            hook(event)

    def add(self, *hooks: Hook) -> None:
        """Passes events on to these, too."""
        self._hooks.extend(hooks)

    def added(self, sink: AnyHook) -> AnyHook:
        """As `add`."""
        self._hooks.append(sink)
        return sink

    def flush(self) -> None:
        """Begins to send spans away; returns at once."""
        if self.tracing is not None:
            self.tracing.flush()

    def close(self, timeout: float) -> None:
        """Waits until all is written and sent away, for `timeout` seconds at most."""
        late = time.monotonic() + timeout
        self.flush()
        self._audit.close(timeout)
        if self.tracing is not None:
            self.tracing.close(max(0.0, late - time.monotonic()))
