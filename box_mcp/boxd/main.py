"""Starts boxd: listens on a unix socket, takes connections over, serves their requests.

A server reaches boxd through `connector.py`, which is executed in the box, hands its own stdin
and stdout over the socket, and steps aside. Nothing stands between server and boxd from then on.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import socket
import struct
import sys

from . import wire
from .connection import Connection, Refusal, Stream
from .files import Files
from .identity import User
from .loop import Loop
from .processes import Processes
from .surroundings import Surroundings
from .tunnels import Tunnels
from .worker import Meeting, end_connector

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .loop import Timer

UCRED = struct.Struct("3i")  # pid, uid, gid; see unix(7), SO_PEERCRED
BACKLOG = 16
MAX_MESSAGE = 256  # bytes of a connector's; a token has 32
ACCEPT_AGAIN_AFTER = 0.5  # s; without descriptors, the loop would find the socket ready for ever


class Daemon:
    """All that one boxd holds: its socket, its connections, its runs and its dead man's switch."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._loop = Loop()
        self._orphan_after = float(settings["orphan_after"])
        self._orphan_timer: Timer | None = None
        self._connections: dict[Connection, int] = {}
        self._boot = os.urandom(8).hex()
        root = str(settings["root"])
        socket_path = str(settings["socket"])
        self._socket = listen(socket_path)
        user = User(root.rstrip("/"), [str(name) for name in settings["users"]])
        if os.getpid() == 1:
            let_go_of_output()
        self._processes = Processes(self._loop, root, user, str(settings["log_dir"]))
        self._processes.on_busy = self._busy_changed
        self._processes.on_change = self._arm_dead_mans_switch
        self._meeting = Meeting()
        files = Files(self._loop, root, user, self._meeting)
        beside = f"{os.path.dirname(socket_path)}-files"  # which all in the box may enter
        tunnels = Tunnels(self._loop, Surroundings(beside, self._processes.surround))
        self._requests = {
            "run": self._processes.open_run,
            "output": self._processes.open_output,
            "input": self._processes.open_input,
            "signal": self._processes.open_signal,
            "end": self._processes.open_end,
            "processes": self._processes.open_list,
            "read": files.open_read,
            "write": files.open_write,
            "edit": files.open_edit,
            "list": files.open_list,
            "search": files.open_search,
            "move": files.open_move,
            "copy": files.open_copy,
            "delete": files.open_delete,
            "stat": files.open_stat,
            "survey": files.open_survey,
            "pack": files.open_pack,
            "unpack": files.open_unpack,
            "watch": files.open_watch,
            "connect": tunnels.open_connect,
            "listen": tunnels.open_listen,
            "accept": tunnels.open_accept,
        }
        self._user = user

    def serve(self) -> None:
        """Runs until SIGTERM, or until nobody was connected for `orphan_after` seconds."""
        self._listen()
        self._arm_dead_mans_switch()
        self._loop.run()
        for connection in list(self._connections):
            connection.close()
        self._processes.end_all()

    def _listen(self) -> None:
        self._loop.on_readable(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            peer, _ = self._socket.accept()
        except OSError:
            self._loop.on_readable(self._socket.fileno(), None)
            self._loop.call_later(ACCEPT_AGAIN_AFTER, self._listen)
            return
        peer.settimeout(1.0)
        with peer:
            try:
                message, fds, _, _ = socket.recv_fds(peer, MAX_MESSAGE, 2)
            except OSError:
                return
            if len(fds) != 2:
                for fd in fds:
                    os.close(fd)
                return
            pid = UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))[
                0
            ]
        self._connect(message[1:], (fds[0], fds[1]), pid if message[:1] == b"K" else 0)

    def _connect(self, token: bytes, fds: tuple[int, int], connector: int) -> None:
        """Takes what a connector brought: a server's connection, or one for a request's data."""
        if token:
            awaited = self._meeting.bring(token, fds, connector)
            for fd in fds:
                os.close(fd)
            if not awaited:
                end_connector(connector)
            return
        connection = Connection(self._loop, fds, self._hello, self._open, self._disconnected)
        self._connections[connection] = connector
        self._arm_dead_mans_switch()

    def _hello(self) -> dict[str, Any]:
        return {
            "version": wire.VERSION,
            "boot": self._boot,
            "user": self._user.name,
            "workspace": self._user.workspace,
            **self._processes.told(),
        }

    def _disconnected(self, connection: Connection) -> None:
        end_connector(self._connections.pop(connection, 0))
        self._arm_dead_mans_switch()

    def _arm_dead_mans_switch(self) -> None:
        if self._orphan_timer is not None:
            self._orphan_timer.cancel()
            self._orphan_timer = None
        if not self._connections and not self._processes.busy:
            self._orphan_timer = self._loop.call_later(
                self._orphan_after, self._loop.stop, patient=True
            )

    def _busy_changed(self) -> None:
        for connection in list(self._connections):
            connection.tell(self._processes.told())

    def _open(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        opener = self._requests.get(str(request.get("op")))
        if opener is None:
            raise Refusal("invalid", f"unknown request {request.get('op')!r}")
        return opener(connection, number, request)


def let_go_of_output() -> None:
    """From here on, nothing in the box holds the pipes that its container's log comes by.

    Whoever does could have the engine copy without end, outside of all that bounds the box.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2):
        os.dup2(nowhere, fd)
    os.close(nowhere)


def listen(path: str) -> socket.socket:
    """A listening unix socket that only this user can reach."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(BACKLOG)
    return listener


def main() -> None:
    """`argv[1]` is a JSON object: ``root, socket, users, log_dir, orphan_after`` (s)."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # a C library that is not glibc
        ctypes.CDLL(None).malloc_trim(0)  # a mebibyte that compiling boxd took
    gc.freeze()  # what is here now stays: forks then share more of their memory
    Daemon(json.loads(sys.argv[1])).serve()
