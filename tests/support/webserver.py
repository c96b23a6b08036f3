"""A real HTTP server in threads, which records what it is asked and fails when it is told to.

It may listen in a network namespace as well, such as those of `internet.py`: boxes reach it there
as they reach the internet, while it stays in this process.
"""

from __future__ import annotations

import ctypes
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Generator

PIECE = 1 << 16
PATIENCE = 60.0
"""Seconds that a client may be silent, or a stalled answer take."""


@dataclass
class Asked:
    """A request as it came, and how it was answered; `who` sent the right password, or ""."""

    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]
    who: str = ""
    status: int = 0
    received: int = 0
    """Bytes of its body, decoded."""
    sent: int = 0
    """Bytes of the answer's body."""
    said: bytes = b""
    """The request's body, if its handler has kept it."""

    @property
    def path(self) -> str:
        """Without the query."""
        return self.target.partition("?")[0]

    def header(self, name: str) -> str:
        """All values of a header, joined; "" where there is none."""
        return ", ".join(value for key, value in self.headers if key.lower() == name.lower())


@dataclass
class Trouble:
    """What happens, `times` often, to requests whose method and target contain `where`.

    They are answered with `status`, `headers` and `body` (or what it says of the request), if
    `status` is not 0. Otherwise they are answered as ever, but after `after` bytes of the answer's
    body the connection is reset, or, with `stall`, silent until the server ends or `released`.
    """

    where: str
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes | Callable[[Asked], bytes] = b""
    after: int = 0
    stall: bool = False
    times: int = 1
    met: threading.Event = field(default_factory=threading.Event)
    """Set as soon as a request has met it."""
    released: threading.Event = field(default_factory=threading.Event)


def redirect(where: str, to: str, status: int = 302, times: int = 1) -> Trouble:
    """An answer that leads elsewhere."""
    return Trouble(where, status, {"Location": to}, times=times)


def echoed(asked: Asked) -> bytes:
    """All that a request's head said, for servers that talk too much."""
    lines = [f"{asked.method} {asked.target} {asked.version}"]
    return "\n".join([*lines, *(f"{name}: {value}" for name, value in asked.headers)]).encode()


class Gone(Exception):
    """The client has left, or the server has been told to leave it."""


class Exchange(BaseHTTPRequestHandler):
    """One connection's requests, one after the other."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 17
    timeout = PATIENCE
    asked: Asked
    web: Web
    trouble: Trouble | None

    def body(self) -> Iterator[bytes]:
        """The request's body, piece by piece, without its coding."""
        self._begun = True
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline(99).partition(b";")[0], 16):
                yield from self._exactly(size)
                self.rfile.readline(9)
            while self.rfile.readline(9999).strip():
                pass
        else:
            yield from self._exactly(int(self.headers.get("Content-Length", 0)))
        self._whole = True

    def answer(
        self,
        status: int,
        headers: Mapping[str, str] | None = None,
        body: bytes | Iterable[bytes] = b"",
    ) -> None:
        """Sends everything; `Content-Length` is added where `body` is bytes."""
        more = dict(headers or {})
        if isinstance(body, bytes):
            more.setdefault("Content-Length", str(len(body)))
            body = [body]
        chunked = "content-length" not in {name.lower() for name in more}
        if chunked:
            more["Transfer-Encoding"] = "chunked"
        self.asked.status = status
        self.send_response_only(status)
        for name, value in more.items():
            self.send_header(name, value)
        self.end_headers()
        trouble = self.trouble
        for piece in body:
            room = len(piece) if trouble is None else trouble.after - self.asked.sent
            self._send(piece[:room], chunked=chunked)
            if trouble is not None and len(piece) >= room:
                self._suffer(trouble)
                self._send(piece[room:], chunked=chunked)
                trouble = None
        if trouble is not None:
            self._suffer(trouble)
        self.wfile.write(b"0\r\n\r\n" if chunked else b"")
        self.wfile.flush()

    def setup(self) -> None:
        self.web = cast("_Listener", self.server).web
        if self.web.context is not None:
            self.request = self.web.context.wrap_socket(self.request, server_side=True)
        self.web.connected(self.request)
        super().setup()

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        if self.web.context is not None:  # the listener closes the other one
            self.request.close()

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (Gone, OSError, ValueError):  # half a request, perhaps
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - it is called so
        """Nothing: there are records."""

    def _respond(self) -> None:
        target = self.requestline.split()[1]  # `path` is not quite what was asked for
        self.asked = Asked(self.command, target, self.request_version, self.headers.items())
        self._begun = self._whole = False
        self.web.record(self.asked)
        self.trouble = self.web.trouble_for(self.asked)
        if self.trouble is not None and self.trouble.status:
            trouble, self.trouble = self.trouble, None
            body = trouble.body if isinstance(trouble.body, bytes) else trouble.body(self.asked)
            self.answer(trouble.status, trouble.headers, body)
        else:
            self.web.handle(self)
        if not self._begun:
            for _ in self.body():
                pass
        self.close_connection = self.close_connection or not self._whole

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _respond  # noqa: N815
    do_DELETE = do_CONNECT = _respond  # noqa: N815

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self.rfile.read1(min(size, PIECE))
            if not piece:
                raise Gone
            size -= len(piece)
            self.asked.received += len(piece)
            yield piece

    def _send(self, piece: bytes, *, chunked: bool) -> None:
        if piece and self.command != "HEAD":
            self.asked.sent += len(piece)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if len(piece) < PIECE:  # whoever makes it is slower than the line
                self.wfile.flush()

    def _suffer(self, trouble: Trouble) -> None:
        self.wfile.flush()
        if trouble.stall:
            trouble.released.wait(PATIENCE)
            return
        on_for_no_time = b"\1\0\0\0\0\0\0\0"
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, on_for_no_time)
        os.close(self.connection.detach())  # so it is a reset
        raise Gone


class _Listener(ThreadingHTTPServer):
    """One address of a server."""

    request_queue_size = 512

    def __init__(self, web: Web, listening: socket.socket) -> None:
        super().__init__(("", 0), Exchange, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_address = listening.getsockname()
        self.web = web

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: clients end as they like."""


Handler = Callable[[Exchange], bool]
"""Answers a request and says so, or leaves it to the next."""


class Web:
    """A server: what it is asked, what it answers, and how it fails."""

    def __init__(self, context: ssl.SSLContext | None = None, certificate: Path | None = None):
        self.context = context
        self.certificate = certificate
        """What clients must trust; None without TLS."""
        self.url = ""
        self.port = 0
        self.handlers: list[Handler] = []
        self.asked: list[Asked] = []
        """All requests, the oldest first."""
        self.connections = 0
        """How many there were."""
        self._troubles: list[Trouble] = []
        self._lock = threading.Lock()
        self._lines: list[socket.socket] = []

    def fail(self, trouble: Trouble) -> Trouble:
        """From now on, until it has happened as often as it may."""
        with self._lock:
            self._troubles.append(trouble)
        return trouble

    def heal(self) -> None:
        """Ends all troubles."""
        with self._lock:
            for trouble in self._troubles:
                trouble.times = 0
                trouble.released.set()

    def forget(self) -> None:
        """All requests up to now."""
        with self._lock:
            self.asked.clear()

    def record(self, asked: Asked) -> None:
        """As it begins."""
        with self._lock:
            self.asked.append(asked)

    def trouble_for(self, asked: Asked) -> Trouble | None:
        """What is to happen to a request."""
        with self._lock:
            for trouble in self._troubles:
                if trouble.times and trouble.where in f"{asked.method} {asked.target}":
                    trouble.times -= 1
                    trouble.met.set()
                    return trouble
        return None

    def connected(self, line: socket.socket) -> None:
        """A client."""
        with self._lock:
            self.connections += 1
            self._lines = [line for line in self._lines if line.fileno() >= 0]
            self._lines.append(line)

    def handle(self, exchange: Exchange) -> None:
        """Has the first handler answer that can."""
        if not any(handler(exchange) for handler in self.handlers):
            exchange.answer(404, body=b"no such page\n")

    def close(self) -> None:
        """All connections; threads end by that."""
        self.heal()
        with self._lock:
            for line in self._lines:
                with suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)


@contextmanager
def web(
    port: int = 0,
    *,
    also: Sequence[tuple[str, str]] = (),
    tls: Path | None = None,
    names: Sequence[str] = (),
) -> Generator[Web, None, None]:
    """A server on this machine's loopback, for as long as the block.

    `also` are further addresses, each with the network namespace that has it; the port is the same
    on all. With `tls`, a directory, it speaks TLS: its authority is made there, its certificate is
    for `names`, for 127.0.0.1 and for the further addresses.
    """
    context, certificate = None, None
    if tls is not None:
        certificate = certify(tls, [*names, "127.0.0.1", "localhost", *(ip for ip, _ in also)])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls / "server.pem")
        context.set_alpn_protocols(["http/1.1"])
    made = Web(context, certificate)
    with ExitStack() as stack:
        first = socket.create_server(("127.0.0.1", port), backlog=512)
        made.port = first.getsockname()[1]
        made.url = f"{'https' if tls else 'http'}://127.0.0.1:{made.port}"
        lines = [first, *(listen_in(space, ip, made.port) for ip, space in also)]
        listeners = [stack.enter_context(_Listener(made, line)) for line in lines]
        stack.callback(made.close)
        for listener in listeners:
            threading.Thread(target=listener.serve_forever, args=(0.02,)).start()
            stack.callback(listener.shutdown)
        yield made


def listen_in(namespace: str, address: str, port: int) -> socket.socket:
    """A listening socket of a network namespace, in this process."""
    made: list[socket.socket] = []

    def enter() -> None:  # a thread has its own namespace
        space = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
        try:
            assert ctypes.CDLL(None).setns(space, 0) == 0, f"no way into {namespace}"
            made.append(socket.create_server((address, port), backlog=512))
        finally:
            os.close(space)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    (line,) = made
    return line


def certify(directory: Path, names: Sequence[str]) -> Path:
    """An authority's certificate; beside it stands ``server.pem``, key and certificate by it."""
    directory.mkdir(parents=True, exist_ok=True)
    authority, key, pem = (directory / name for name in ("ca.pem", "ca.key", "server.pem"))
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    ca = ("-subj", "/CN=test authority", "-keyout", key, "-out", authority, "-days", "3")
    use = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    _openssl("req", "-x509", *curve, *ca, *use)
    _openssl("req", *curve, "-subj", "/CN=server", "-keyout", f"{pem}.key", "-out", f"{pem}.csr")
    Path(f"{pem}.ext").write_text(
        "subjectAltName="
        + ",".join(f"{'IP' if is_address(name) else 'DNS'}:{name}" for name in names)
        + "\nauthorityKeyIdentifier=keyid\nbasicConstraints=CA:FALSE\n"
    )
    signed = ("-CA", authority, "-CAkey", key, "-CAcreateserial", "-days", "2")
    _openssl("x509", "-req", "-in", f"{pem}.csr", *signed, "-extfile", f"{pem}.ext", "-out", pem)
    pem.write_text(Path(f"{pem}.key").read_text() + pem.read_text())
    return authority


def is_address(name: str) -> bool:
    """Whether it is no name."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
