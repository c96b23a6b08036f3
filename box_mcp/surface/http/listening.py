"""Where the server listens, and whether it may: nobody is let in unseen, and no token read."""

from __future__ import annotations

import os
import re
import socket
import ssl
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from box_mcp.errors import CannotServe
from box_mcp.surface.http.heads import bracketed

UNIX_PREFIX = "unix:"
ONLY_OWN = 0o600  # the mode of a unix socket
PROBE_TIMEOUT = 1.0  # s for whoever serves at a unix socket already
URL_ADVICE = 'Set http.url to what clients call it, such as "https://boxes.example.org/mcp"'

_LISTEN = re.compile(r"(?:(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+):)?([0-9]{1,5})")


@dataclass(frozen=True)
class Listen:
    """A host and a port of it, or the `path` of a unix socket. Port 0: any that is free."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"{UNIX_PREFIX}{self.path}"
        return f"{bracketed(self.host)}:{self.port}"

    @property
    def named(self) -> str:
        """By which name or address one comes here; empty where that is any."""
        with suppress(ValueError):
            return "" if ip_address(self.host).is_unspecified else self.host
        return self.host

    @property
    def private(self) -> bool:
        """Whether nobody reaches it from elsewhere."""
        if self.path is not None or self.host == "localhost":
            return True
        with suppress(ValueError):
            return ip_address(self.host).is_loopback
        return False


def parse_listen(text: str) -> Listen:
    """``HOST:PORT``, ``PORT`` of the loopback, or ``unix:PATH``; raises CannotServe."""
    if text.startswith(UNIX_PREFIX) and len(text) > len(UNIX_PREFIX):
        return Listen(path=Path(text.removeprefix(UNIX_PREFIX)).expanduser().absolute())
    found = _LISTEN.fullmatch(text)
    if found is None or int(found[2]) > 65535:
        advice = 'Give one as "127.0.0.1:8765", "[::1]:8765", "8765" or "unix:/path/of/a/socket"'
        raise CannotServe(f"{text!r} is no address to listen on", advice)
    return Listen((found[1] or "127.0.0.1").strip("[]"), int(found[2]))


def demand_privacy(listen: Listen, *, tokens: bool, tls: bool, proxies: bool) -> None:
    """Raises CannotServe where strangers would be let in, or tokens travel in the clear."""
    if not tokens and (proxies or not listen.private):
        what = "behind a proxy" if proxies else f"at {listen}"
        advice = 'Set http.auth = "token", or listen on the loopback or on a unix socket alone'
        raise CannotServe(f"Without tokens, anybody {what} could use your boxes", advice)
    if not (listen.private or tls or proxies):
        advice = (
            "Set http.tls_certificate and http.tls_key; or have a proxy do TLS, and name it in "
            "http.trusted_proxies"
        )
        raise CannotServe(f"Tokens would travel to {listen} in the clear", advice)


def demand_name(url: str, listen: Listen, *, issuer: bool) -> None:
    """Raises CannotServe where `url` is none, or where an issuer's tokens would be for nobody."""
    parts = urlsplit(url)
    plain = not (parts.query or parts.fragment or "@" in parts.netloc)
    if url and not (parts.scheme in ("http", "https") and parts.hostname and plain):
        raise CannotServe(f"http.url is {url!r}, which is no address of a server", URL_ADVICE)
    if issuer and not url and (listen.path is not None or not listen.private):
        what = "Tokens of an issuer are for a server by its URL, and nobody knows this one's"
        raise CannotServe(what, URL_ADVICE)


def bind(listen: Listen) -> list[socket.socket]:
    """Sockets that clients can connect to as soon as somebody listens; raises CannotServe."""
    try:
        return [_unix(listen.path)] if listen.path is not None else _tcp(listen)
    except OSError as error:
        words = error.strerror or str(error)
        advice = "Choose another address, or end whoever has this one"
        raise CannotServe(f"{listen} can't be listened on: {words}", advice) from None


def release(listen: Listen, sockets: Sequence[socket.socket]) -> None:
    """Takes a unix socket away again; others went with their closing.

    Not the next server's: it may have taken the place of one that does not listen any more.
    """
    for one in sockets:
        one.close()
        if listen.path is not None and isinstance(one, _Unix):
            with suppress(OSError):
                if _same(listen.path.lstat(), one.file):
                    listen.path.unlink()


def tls_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """For serving with that certificate; raises CannotServe."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _certify(context, certificate, key)
    return context


def renew(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    """Reads it anew, for connections to come; raises CannotServe, and changes nothing then."""
    tls_context(certificate, key)
    _certify(context, certificate, key)


def _certify(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    try:
        # Without a password there is nobody to ask: OpenSSL would, on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        words = f"The TLS certificate {certificate} can't be used: {error}"
        raise CannotServe(words, "See http.tls_certificate and http.tls_key") from None


def _tcp(listen: Listen) -> list[socket.socket]:
    """One for each address of the host, of which all have the same port."""
    found = socket.getaddrinfo(
        listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    port = listen.port
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            bound = socket.socket(family, kind, protocol)
            sockets.append(bound)
            if os.name == "posix":  # elsewhere it would let two servers have one port
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family is socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind((address[0], port, *address[2:]))
            port = bound.getsockname()[1]
    except OSError:
        for bound in sockets:
            bound.close()
        raise
    return sockets


class _Unix(socket.socket):
    """One that knows the file that it is bound to."""

    file: os.stat_result


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether it is one file: the number of one that is gone may be given to the next."""
    return os.path.samestat(one, other) and one.st_ctime_ns == other.st_ctime_ns


def _unix(path: Path) -> socket.socket:
    """For this user alone. One that nobody serves at any more is replaced."""
    if not hasattr(socket, "AF_UNIX"):
        raise OSError(0, "this system has no unix sockets")
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(0, "there is another kind of file")
        if _served(path):
            raise OSError(0, "another server has it")
        path.unlink()
    bound = _Unix(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        bound.bind(str(path))
        path.chmod(ONLY_OWN)
        bound.file = path.lstat()
    except OSError:
        bound.close()
        raise
    finally:
        os.umask(before)
    return bound


def _served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_TIMEOUT)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            pass  # somebody does who is busy, or whom we may not ask
        return True
