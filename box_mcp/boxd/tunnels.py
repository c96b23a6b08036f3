"""TCP connections through a server: to ports in the box, and from ports of boxd's own.

    connect   server ──OPEN──▶ boxd ──▶ a program that listens in the box
    listen    a program ──▶ boxd ──NOTE accepted──▶ server, which opens `accept` for the connection

A port is listened on while some server offers it, and some time longer. The newest offer is asked
first, then those before it; where nobody takes a connection, it is told so in words.

Each direction ends by itself: FINISH ends what the server sends, NOTE ``{"eof": true}`` what the
other end does; END comes when both are done. A stream that is given up after FINISH still brings
what was sent, and no more; one that is given up before that, or whose server goes away, is a
connection reset: nobody takes half an answer for a whole one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import itertools
import socket
import struct

from . import wire
from .connection import Refusal, Stream
from .surroundings import files_of, variables_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, Callable

    from .connection import Connection
    from .loop import Loop, Timer
    from .surroundings import Surroundings, Texts

    Address = tuple[socket.AddressFamily, str]

MAX_CONNECTED = 128  # connections to programs in the box, at once
MAX_ACCEPTED = 384  # from such programs; more wait in the kernel
MAX_WAITING = 100  # of these at one port, for a server to take them
MAX_UNANSWERED = 200  # of one server; its channel holds 256 notes that nobody has read
BACKLOG = 128
CONNECT_WITHIN = 10.0  # s; on loopback that takes long only where a program accepts nothing
TAKE_WITHIN = 10.0  # s for a server to take a connection, before another one is asked
KEEP_PORT = 600.0  # s without an offer; what was told of the port hears meanwhile that it is closed
LAST_BYTES_WITHIN = 30.0  # s for a program to take what was sent to it when all else is over
DISCARD_FOR = 2.0  # s; closed with something unread, a connection would be reset
ACCEPT_AGAIN_AFTER = 0.5  # s, without descriptors

OWN_NAME = "127.0.1.1"  # where the box's own name leads
SIOCGIFADDR = 0x8915  # <linux/sockios.h>
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: throw away what waits, and say so
OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)

NOBODY = (
    "127.0.0.1:{port} leads to box_mcp on the user's machine, and no server serves it now. "
    "It is served again when a tool is called that uses this box, if the box may use it.\n"
)
HTTP = (
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"
    "Content-Length: {size}\r\nConnection: close\r\n\r\n{text}"
)


class Crowd:
    """Connections that count together, `most` at once; `on_leave` is called when one has gone."""

    def __init__(self, most: int, on_leave: Callable[[], None]) -> None:
        self._most = most
        self._members: set[object] = set()
        self._on_leave = on_leave

    @property
    def full(self) -> bool:
        """True while no more should come."""
        return len(self._members) >= self._most

    def join(self, member: object) -> None:
        """One more."""
        self._members.add(member)

    def leave(self, member: object) -> None:
        """One less; twice is fine."""
        if member in self._members:
            self._members.remove(member)
            self._on_leave()


class Tunnel(Stream):
    """A stream and a socket: what comes from either goes to the other."""

    def __init__(self, connection: Connection, number: int, loop: Loop, crowd: Crowd) -> None:
        super().__init__(connection, number)
        self._loop = loop
        self._crowd = crowd
        self._socket: socket.socket | None = None
        self._backlog = bytearray()
        self._reading = self._writing = False
        self._finished = False  # the server sends no more
        self._deaf = False  # the other end takes no more
        self._heard_out = False  # nor sends
        crowd.join(self)

    def begin(self, connected: socket.socket) -> None:
        """Both ends are there."""
        self._socket = connected
        self._flush(connected)
        self.on_credit()

    def on_data(self, _label: int, data: bytes, /) -> None:
        """More for the socket; what does not fit waits, within the stream's window."""
        self._backlog += data
        if self._socket is not None and not self._writing:
            self._flush(self._socket)

    def on_finish(self) -> None:
        """The socket's other end is told, once it has all."""
        self._finished = True
        if self._socket is not None and not self._writing:
            self._flush(self._socket)

    def on_credit(self) -> None:
        """Goes on reading."""
        if self._socket is not None and not (self._reading or self._heard_out):
            self._reading = True
            forward = functools.partial(self._forward, self._socket)
            self._loop.on_readable(self._socket.fileno(), forward)

    def on_cancel(self) -> None:
        """Closes the socket."""
        if self._finished and (connected := self._taken()) is not None:
            Farewell(self._loop, self._crowd, connected, self._backlog)
        super().on_cancel()

    def on_disconnect(self) -> None:
        """Closes the socket."""
        self._reset()

    def fail(self, code: str, message: str) -> None:
        """Closes the socket, too."""
        self._reset()
        super().fail(code, message)

    def _flush(self, connected: socket.socket) -> None:
        size = len(self._backlog)
        if size and not self._deaf:
            try:
                size = connected.send(self._backlog)
            except BlockingIOError:
                size = 0
            except OSError:  # it reads no more; but may have said why
                self._deaf = True
        del self._backlog[:size]
        self.consumed(size)
        self._write_on(connected, bool(self._backlog))
        if self._finished and not self._backlog:
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_WR)
        self._conclude()

    def _write_on(self, connected: socket.socket, wanted: bool) -> None:
        if wanted != self._writing:
            self._writing = wanted
            callback = functools.partial(self._flush, connected) if wanted else None
            self._loop.on_writable(connected.fileno(), callback)

    def _forward(self, connected: socket.socket) -> None:
        room = min(self.outgoing.left, wire.CHUNK)
        if self.connection.congested or not room:
            if room:
                self.connection.notify_when_clear(self)
            self._read_no_more(connected)
            return self._conclude()
        try:
            data = connected.recv(room)
        except BlockingIOError:
            return
        except OSError as error:
            return self.fail("reset", f"the connection broke: {error.strerror}")
        if data:
            return self.send(data)
        self._heard_out = True
        self._read_no_more(connected)
        self.note({"eof": True})
        self._conclude()

    def _read_no_more(self, connected: socket.socket) -> None:
        self._reading = False
        self._loop.on_readable(connected.fileno(), None)

    def _conclude(self) -> None:
        if self._deaf and (self._heard_out or not self.outgoing.left):
            self.fail("reset", "the other end was gone before all had been sent to it")
        elif self._heard_out and self._finished and not self._backlog:
            if (connected := self._taken()) is not None:
                connected.close()
            self.end({})

    def _reset(self) -> None:
        if (connected := self._taken()) is not None:
            with contextlib.suppress(OSError):
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            connected.close()
        self._crowd.leave(self)

    def _taken(self) -> socket.socket | None:
        """The socket, which is no longer the stream's then."""
        connected, self._socket = self._socket, None
        if connected is not None:
            self._loop.on_readable(connected.fileno(), None)
            self._loop.on_writable(connected.fileno(), None)
            self._crowd.leave(self)
        return connected


class Outward(Tunnel):
    """To a program that listens in the box, at the first of its addresses that takes it."""

    def __init__(
        self, connection: Connection, number: int, loop: Loop, crowd: Crowd, port: int
    ) -> None:
        super().__init__(connection, number, loop, crowd)
        self._port = port
        self._addresses = addresses()
        self._trial: socket.socket | None = None
        self._patience = loop.call_later(CONNECT_WITHIN, self._give_up, patient=True)
        self._attempt()

    def _attempt(self) -> None:
        for family, host in self._addresses:
            try:
                trial = self._trial = new_socket(family)
            except OSError as error:
                if error.errno in OUT_OF_DESCRIPTORS:
                    return self.fail("too_many", "boxd has no descriptors left")
                continue  # a family that this kernel does not have
            result = trial.connect_ex((host, self._port))
            if result == errno.EINPROGRESS:
                look = functools.partial(self._look, trial)
                return self._loop.on_writable(trial.fileno(), look)
            if self._succeeded(trial, result):
                return
        self.fail("not_listening", f"nothing listens on port {self._port} in the box")

    def _look(self, trial: socket.socket) -> None:
        self._loop.on_writable(trial.fileno(), None)
        if not self._succeeded(trial, trial.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
            self._attempt()

    def _succeeded(self, trial: socket.socket, result: int) -> bool:
        self._trial = None
        if result or with_itself(trial):
            trial.close()
            return False
        self._patience.cancel()
        self.note({"connected": True})
        self.begin(trial)
        return True

    def _reset(self) -> None:
        self._patience.cancel()
        if self._trial is not None:
            self._loop.on_writable(self._trial.fileno(), None)
            self._trial.close()
            self._trial = None
        super()._reset()

    def _give_up(self) -> None:
        self.fail("too_slow", f"what listens on port {self._port} takes no connections")


class Farewell:
    """The end of a socket: `data` is sent, all that still comes is thrown away."""

    def __init__(self, loop: Loop, crowd: Crowd, connected: socket.socket, data: bytearray) -> None:
        self._loop = loop
        self._crowd = crowd
        self._socket = connected
        self._data = data
        self._timer = loop.call_later(LAST_BYTES_WITHIN, self._close, patient=True)
        crowd.join(self)
        loop.on_writable(connected.fileno(), self._flush)

    def _flush(self) -> None:
        try:
            if self._data:
                del self._data[: self._socket.send(self._data)]
            if self._data:
                return
            self._socket.shutdown(socket.SHUT_WR)  # once more, perhaps
        except BlockingIOError:
            return
        except OSError:
            return self._close()
        self._loop.on_writable(self._socket.fileno(), None)
        self._loop.on_readable(self._socket.fileno(), self._discard)
        self._timer.cancel()
        self._timer = self._loop.call_later(DISCARD_FOR, self._close)

    def _discard(self) -> None:
        try:
            if self._socket.recv(wire.CHUNK):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close()

    def _close(self) -> None:
        self._timer.cancel()
        self._loop.on_readable(self._socket.fileno(), None)
        self._loop.on_writable(self._socket.fileno(), None)
        self._socket.close()
        self._crowd.leave(self)


class Offer(Stream):
    """The stream of a `listen` request: a NOTE when it begins, one for each connection, no END."""

    def __init__(
        self,
        connection: Connection,
        number: int,
        port: Port,
        env: Texts,
        files: Texts,
        age: int,
    ) -> None:
        super().__init__(connection, number)
        self.env = env
        self.files = files
        self.age = age
        self.holds = True
        self.unanswered: set[int] = set()
        """Connections that it was asked to take, and has not answered yet."""
        self._port = port

    def fail(self, code: str, message: str) -> None:
        """It holds no more."""
        self._port.withdraw(self)
        super().fail(code, message)

    def on_disconnect(self) -> None:
        """It holds no more."""
        self._port.withdraw(self)


class Caller:
    """A connection that waits for a server to take it, and whom was asked to."""

    def __init__(self, connected: socket.socket, token: int) -> None:
        self.socket = connected
        self.token = token
        self.asked: list[Offer] = []
        self.timer: Timer | None = None

    def wait(self, timer: Timer | None) -> None:
        """For something else than before."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = timer


class Port:
    """A port that boxd listens on, and the servers that offer to serve it; the newest is last."""

    def __init__(self, loop: Loop, number: int, crowd: Crowd, tunnels: Tunnels) -> None:
        self.offers: list[Offer] = []
        self.last: Offer | None = None
        """The newest; when all have been withdrawn, the one that was."""
        self._loop = loop
        self._number = number
        self._crowd = crowd
        self._tunnels = tunnels
        self._callers: dict[int, Caller] = {}
        self._keeping: Timer | None = None
        self._listeners = listeners(number)
        self._listening = False
        self.listen()

    def listen(self) -> None:
        """Takes connections again, if it may."""
        if not (self._listening or self._full):
            self._listening = True
            for listener in self._listeners:
                accept = functools.partial(self._accept, listener)
                self._loop.on_readable(listener.fileno(), accept)

    def add(self, offer: Offer) -> None:
        """One more server serves it; raises Refusal."""
        self.offers.append(offer)
        if self._keeping is not None:
            self._keeping.cancel()
        self.last = offer
        try:
            self._tunnels.offers_changed()
        except Refusal:
            self.withdraw(offer)
            raise

    def withdraw(self, offer: Offer) -> None:
        """A server serves it no more; twice is fine."""
        if offer not in self.offers:
            return
        self.offers.remove(offer)
        offer.holds = False
        for caller in list(self._callers.values()):
            if caller.asked[-1] is offer:
                self._ask(caller)
        if self.offers:
            self.last = self.offers[-1]
        else:
            self._keeping = self._loop.call_later(KEEP_PORT, self._close)
        self._tunnels.offer_went()

    def take(self, connection: Connection, token: int) -> socket.socket | None:
        """A connection for a server that was asked to take it, unless that is over."""
        for offer in self.offers:
            if offer.connection is connection:
                offer.unanswered.discard(token)
        caller = self._callers.get(token)
        if caller is None or not any(offer.connection is connection for offer in caller.asked):
            return None
        self._forget(caller)
        return caller.socket

    @property
    def _full(self) -> bool:
        return self._crowd.full or len(self._callers) >= MAX_WAITING

    def _rest(self) -> None:
        self._listening = False
        for listener in self._listeners:
            self._loop.on_readable(listener.fileno(), None)

    def _accept(self, listener: socket.socket) -> None:
        if self._full:
            return self._rest()
        try:
            connected, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError:
            self._rest()
            self._loop.call_later(ACCEPT_AGAIN_AFTER, self.listen)
            return
        prepare(connected)
        caller = Caller(connected, self._tunnels.next_number())
        self._callers[caller.token] = caller
        self._crowd.join(caller)
        self._ask(caller)

    def _ask(self, caller: Caller) -> None:
        """Asks the next server to take a connection; where there is none, tells so."""
        for offer in reversed(self.offers):
            if offer not in caller.asked and len(offer.unanswered) < MAX_UNANSWERED:
                caller.asked.append(offer)
                offer.unanswered.add(caller.token)
                ask_another = functools.partial(self._ask, caller)
                caller.wait(self._loop.call_later(TAKE_WITHIN, ask_another, patient=True))
                return offer.note({"accepted": caller.token})
        self._forget(caller)
        text = NOBODY.format(port=self._number)
        answer = HTTP.format(size=len(text), text=text).encode()
        Farewell(self._loop, self._crowd, caller.socket, bytearray(answer))

    def _forget(self, caller: Caller) -> None:
        caller.wait(None)
        del self._callers[caller.token]
        self._crowd.leave(caller)

    def _close(self) -> None:
        self._rest()
        while self._listeners:
            self._listeners.pop().close()
        self._tunnels.closed(self._number)


class Tunnels:
    """All of a box. Commands have the `surroundings` of the offers that hold.

    These are the newest for each port, and where two ports' have the same, the newer.
    """

    def __init__(self, loop: Loop, surroundings: Surroundings) -> None:
        self._loop = loop
        self._surroundings = surroundings
        self._ports: dict[int, Port] = {}
        self._numbers = itertools.count(1)
        self._connected = Crowd(MAX_CONNECTED, lambda: None)
        self._accepted = Crowd(MAX_ACCEPTED, self._listen)

    def open_connect(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """A stream to the request's ``port``; NOTE ``{"connected": true}`` says that it is one."""
        port = port_of(request)
        if self._connected.full:
            raise Refusal("too_many", f"{MAX_CONNECTED} connections to ports in the box are open")
        return Outward(connection, number, self._loop, self._connected, port)

    def open_listen(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """Offers to serve ``port``, with variables for commands in ``env``.

        And with texts in ``files``, each by the variable that shall name its file. A NOTE
        ``{"listening": true}``, then ``{"accepted": token}`` for each connection.
        """
        port, env, files = port_of(request), variables_of(request), files_of(request)
        if port not in self._ports:
            self._ports[port] = Port(self._loop, port, self._accepted, self)
        age = self.next_number()
        offer = Offer(connection, number, self._ports[port], env, files, age)
        self._ports[port].add(offer)
        offer.note({"listening": True})
        return offer

    def open_accept(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """The stream of a connection that was announced with this ``token``."""
        token = int(request["token"])
        for port in self._ports.values():
            if (connected := port.take(connection, token)) is not None:
                tunnel = Tunnel(connection, number, self._loop, self._accepted)
                tunnel.begin(connected)
                return tunnel
        raise Refusal("not_found", "the connection is gone, or another server has it")

    def next_number(self) -> int:
        """One that nothing else here has."""
        return next(self._numbers)

    def offers_changed(self) -> None:
        """An offer came or went; raises Refusal."""
        env: Texts = {}
        files: Texts = {}
        gone: Texts = {}
        last = [port.last for port in self._ports.values() if port.last is not None]
        for offer in sorted(last, key=lambda offer: offer.age):
            if offer.holds:
                env.update(offer.env)
            (files if offer.holds else gone).update(offer.files)
        self._surroundings.change(env, files, gone)

    def offer_went(self) -> None:
        """One that held, or was the last for its port."""
        with contextlib.suppress(Refusal):  # what was there stays then
            self.offers_changed()

    def closed(self, port: int) -> None:
        """It is listened on no more."""
        del self._ports[port]
        self.offer_went()

    def _listen(self) -> None:
        for port in self._ports.values():
            port.listen()


def port_of(request: dict[str, Any]) -> int:
    """The port of a request; raises ValueError."""
    port = int(request["port"])
    if not 0 < port < 65536:
        raise ValueError(f"there is no port {port}")
    return port


def loopback() -> Iterable[Address]:
    """Where one reaches oneself."""
    return (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")


def addresses() -> Iterator[Address]:
    """Where programs in the box may listen, each found when its turn has come."""
    yield from loopback()
    yield socket.AF_INET, OWN_NAME
    yield from own_addresses()


def own_addresses() -> list[Address]:
    """The box's addresses on its networks; there is none where it is cut off."""
    found: list[Address] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            if name != "lo":
                with contextlib.suppress(OSError):  # it has no address
                    asked = struct.pack("256s", name.encode())
                    said = fcntl.ioctl(any_socket.fileno(), SIOCGIFADDR, asked)
                    found.append((socket.AF_INET, socket.inet_ntoa(said[20:24])))
    return found


def with_itself(connected: socket.socket) -> bool:
    """Whether both ends are one: so it is where the kernel picks the very port that is tried."""
    try:
        return connected.getsockname() == connected.getpeername()
    except OSError:  # it is broken already
        return False


def new_socket(family: socket.AddressFamily) -> socket.socket:
    """A TCP socket that never blocks; raises OSError."""
    made = socket.socket(family, socket.SOCK_STREAM)
    prepare(made)
    return made


def prepare(connection: socket.socket) -> None:
    """It never blocks, and sends at once: what comes here was sent at once already."""
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def listeners(port: int) -> list[socket.socket]:
    """Sockets that listen on `port` for programs in the box; raises Refusal."""
    made: list[socket.socket] = []
    with contextlib.ExitStack() as undo:
        for family, host in loopback():
            try:
                listener = undo.enter_context(new_socket(family))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((host, port))
                listener.listen(BACKLOG)
            except OSError as error:
                if family == socket.AF_INET6 and error.errno in NO_IPV6:
                    continue
                raise refusal_of(error, port) from None
            made.append(listener)
        undo.pop_all()
    return made


def refusal_of(error: OSError, port: int) -> Refusal:
    """Why boxd can't listen, in words."""
    if error.errno == errno.EADDRINUSE:
        return Refusal("in_use", f"another program in the box listens on port {port}")
    if error.errno == errno.EACCES:
        return Refusal("denied", f"port {port} of the box is for root, which boxd is not here")
    if error.errno in OUT_OF_DESCRIPTORS:
        return Refusal("too_many", "boxd has no descriptors left")
    return Refusal("failed", f"boxd can't listen on port {port}: {error.strerror}")
