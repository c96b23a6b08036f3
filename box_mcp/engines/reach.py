"""The ways to one engine: docker's clients, and what these can't open; blocking."""

# docker-py carries no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import socket
import threading
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from box_mcp.engines.address import Address, find_engine
from box_mcp.engines.hijack import Hijacker
from box_mcp.engines.ssh import Forward
from box_mcp.errors import EngineUnreachable

if TYPE_CHECKING:
    import docker
    from docker import APIClient

TLS_SCHEMES = ("tcp", "https")


class Reach:
    """Shared by all threads of a server; closed once."""

    def __init__(self, address: Address | None = None) -> None:
        self.address = address or find_engine()
        self._clients: dict[float, APIClient] = {}
        self._connecting = threading.Lock()
        self._forward = Forward(self.address) if self.address.scheme == "ssh" else None

    def __repr__(self) -> str:
        return f"<Reach {self.address.url} {len(self._clients)} clients>"

    def client(self, timeout: float) -> APIClient:
        """Docker's low-level client; raises EngineUnreachable and what docker raises."""
        if self.address.trouble:
            raise EngineUnreachable(self.address.url, self.address.trouble)
        way = self._forward.open() if self._forward else ""
        with self._connecting:  # threads that need it first at the same time share one
            if timeout not in self._clients:
                self._clients[timeout] = self._new_client(way, timeout)
            return self._clients[timeout]

    def hijacker(self, timeout: float) -> Hijacker | None:
        """Where streams have to be opened past docker's client; None where that does it."""
        tls = self.address.tls
        if tls is None or self.address.scheme not in TLS_SCHEMES:
            return None
        where = urlsplit(self.address.url)
        return Hijacker(where.hostname or "", where.port or 0, tls, timeout)

    def close(self) -> None:
        """Ends idle connections, and the line that they go by."""
        for client in self._clients.values():
            client.close()
        if self._forward:
            self._forward.close()

    def _new_client(self, way: str, timeout: float) -> APIClient:
        """One that has spoken to the engine, to learn its version."""
        from docker.errors import DockerException

        try:
            return _client_class()(
                **self._arguments(way),
                version="auto",
                timeout=timeout,  # pyright: ignore[reportArgumentType]  # requests takes fractions
            )
        except DockerException as error:
            if self._forward and (words := self._forward.complaint()):
                raise EngineUnreachable(self.address.url, words) from error
            raise

    def _arguments(self, way: str) -> dict[str, Any]:
        from docker.tls import TLSConfig

        if way:
            return {"base_url": f"unix://{way}"}
        if self.address == Address():
            return {}  # docker knows the usual place on each system
        tls = self.address.tls
        if tls is None or self.address.scheme not in TLS_SCHEMES:
            return {"base_url": self.address.url}
        own = (str(tls.certificate), str(tls.key))
        config = TLSConfig(client_cert=own, ca_cert=str(tls.ca), verify=tls.verify)
        return {"base_url": self.address.url, "tls": config}


@cache
def _client_class() -> type[APIClient]:
    from docker import APIClient

    class Client(APIClient):
        """Not led by the variables for HTTPS in general, as proxies and authorities.

        requests lets these go before the authority that the engine's address came with.
        """

        @property
        def trust_env(self) -> bool:
            return False

        @trust_env.setter
        def trust_env(  # pyright: ignore[reportIncompatibleVariableOverride]
            self, _: bool
        ) -> None: ...

    return Client


def whole(api: APIClient) -> docker.DockerClient:
    """Docker's other client, on that one."""
    import docker

    class Whole(docker.DockerClient):
        def __init__(self) -> None:
            self.api = api

    return Whole()


def released(hijacked: Any) -> socket.socket | None:
    """The socket of an exec out of the hands of docker's client; None where that can't be.

    There it would be kept open after we close it.
    """
    raw = getattr(hijacked, "_sock", hijacked)
    return socket.socket(fileno=raw.detach()) if isinstance(raw, socket.socket) else None
