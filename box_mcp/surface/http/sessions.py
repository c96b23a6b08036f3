"""Sessions of clients that speak MCP up to 2025-11-25; later ones have none."""

from __future__ import annotations

import math
from typing import Any

from mcp.server.auth.middleware.bearer_auth import AuthorizationContext
from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings

MAX_SESSIONS = 5_000
MAX_OWN_SESSIONS = 100  # of one principal; each takes some 50 KB
IDLE = 30 * 60.0  # s without a request or an open stream, after which a session ends


class Sessions(StreamableHTTPSessionManager):
    """Serves MCP in all revisions. Who has many sessions loses the one that was idle for longest.

    Host and Origin are looked at by the door, for all paths and more strictly.
    """

    def __init__(self, server: Server[Any], max_body: int, most: int = MAX_OWN_SESSIONS) -> None:
        super().__init__(
            server,
            security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
            session_idle_timeout=IDLE,
            max_request_body_size=max_body,
            max_sessions=MAX_SESSIONS,
        )
        self._most = most

    def _admit_session(
        self, requestor: AuthorizationContext | None
    ) -> StreamableHTTPServerTransport | None:
        own = [one for one, owner in self._session_owners.items() if owner == requestor]
        if len(own) >= self._most and not self._end_one(own):
            return None
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
        del self._session_owners[longest]
        if scope is not None:
            scope.cancel()
        return True
