"""Sessions of clients that speak MCP up to 2025-11-25; later ones have none."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from typing import Any, cast

import anyio
from mcp.server.auth.middleware.bearer_auth import AuthorizationContext
from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.types import Message, Receive, Scope, Send

from box_mcp.surface.http.answers import Refused

MAX_SESSIONS = 5_000
MAX_OWN_SESSIONS = 100  # of one principal; each takes some 40 KiB
FAILED = frozenset({500, 502})
GONE = 404
CLOSED = (anyio.ClosedResourceError, anyio.BrokenResourceError)
SDK_LOG = "mcp.server.streamable_http"
GO_ON = b"last-event-id"  # the SDK gives no answer to it where no events are kept
IDLE = 12 * 3600.0  # s without a request or an open stream: with the session its box is forgotten


class Gone(logging.Filter):
    """Drops what the SDK tells, with a traceback, of a session that its client ended meanwhile."""

    def filter(self, record: logging.LogRecord) -> bool:
        """As `logging` has it."""
        return not (record.exc_info and _is_closed(record.exc_info[1]))


def _is_closed(error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return all(map(_is_closed, group.exceptions))
    return isinstance(error, CLOSED)


_gone = Gone()


def _principal(owner: AuthorizationContext | None) -> str:
    return owner["client_id"] if owner else ""


class Sessions(StreamableHTTPSessionManager):
    """Serves MCP in all revisions. Who has many sessions loses the one that was idle for longest.

    When there are as many as there may be in all, that is whoever has most: clients leave them
    behind, and nobody should wait until they end by themselves.

    Host and Origin are looked at by the door, for all paths and more strictly.
    """

    def __init__(
        self,
        server: Server[Any],
        max_body: int,
        most: int = MAX_OWN_SESSIONS,
        in_all: int = MAX_SESSIONS,
    ) -> None:
        super().__init__(
            server,
            security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
            session_idle_timeout=IDLE,
            max_request_body_size=max_body,
            max_sessions=in_all,
        )
        self._most = most
        self._in_all = in_all
        logging.getLogger(SDK_LOG).addFilter(_gone)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it. A session that ends under a request is told as one that is not there.

        Nothing is sent a second time: who asks to go on from some event goes on from now.
        """
        scope["headers"] = [one for one in scope["headers"] if one[0] != GO_ON]
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            if message.get("status", 0) in FAILED:
                message = {**message, "status": GONE}
            await send(message)

        try:
            await self.asgi_app(scope, receive, sending)
        except CLOSED:
            if not started:
                raise Refused(GONE, "session gone", "Session not found", counts=False) from None

    def _admit_session(
        self, requestor: AuthorizationContext | None
    ) -> StreamableHTTPServerTransport | None:
        owned: defaultdict[str, list[str]] = defaultdict(list)
        for session in self._server_instances:
            owned[_principal(self._session_owners.get(session))].append(session)
        own = owned[_principal(requestor)]
        if len(own) >= self._most:
            if not self._end_one(own):
                return None
        elif len(self._server_instances) >= self._in_all:
            for sessions in sorted(owned.values(), key=len, reverse=True):
                if self._end_one(sessions):
                    break
        return super()._admit_session(requestor)

    def _end_one(self, sessions: list[str]) -> bool:
        """Ends the session that was idle for longest; False when all are in use."""
        scopes = [(one, self._server_instances[one].idle_scope) for one in sessions]
        idle = [
            (scope.deadline, one) for one, scope in scopes if scope and scope.deadline < math.inf
        ]
        if not idle:
            return False
        _, longest = min(idle)
        scope = self._server_instances.pop(longest).idle_scope
        self._session_owners.pop(longest, None)
        if scope is not None:
            scope.cancel()
        return True
