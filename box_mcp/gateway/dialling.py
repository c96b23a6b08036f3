"""Names looked up, and TCP connections made, by this machine."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from ipaddress import IPv6Address, ip_address

import anyio
from anyio.abc import SocketStream

from box_mcp.domain.network import Address, plain

MAX_ADDRESSES = 8  # of one name that are tried
STAGGER = 0.25  # s until the next address is tried beside the ones before it, as browsers do
LOOKUPS = 8  # at once, for one box
MAX_STUCK = 16  # threads that look up for one box, those included for which nobody waits any more

LookUp = Callable[[str], Awaitable[Sequence[Address]]]
"""The addresses that a name leads to; raises OSError, also when there are none."""


class Resolver:
    """The system's own resolver, in threads, since it blocks and can't be interrupted."""

    def __init__(self) -> None:
        self._turns = anyio.CapacityLimiter(LOOKUPS)
        self._running: set[object] = set()

    async def look_up(self, name: str) -> list[Address]:
        """As LookUp; who is cancelled leaves a thread behind until the system gives up."""
        ask = partial(self._ask, name)
        return await anyio.to_thread.run_sync(ask, abandon_on_cancel=True, limiter=self._turns)

    def _ask(self, name: str) -> list[Address]:
        if len(self._running) >= MAX_STUCK:
            raise OSError(errno.EBUSY, "too many names are being looked up")
        token = object()
        self._running.add(token)
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        finally:
            self._running.remove(token)
        texts = [str(one[4][0]).partition("%")[0] for one in found]
        return list(dict.fromkeys(plain(ip_address(text)) for text in texts))


def own_addresses(addresses: Iterable[Address]) -> frozenset[Address]:
    """Those that are this very machine's, or in its own networks of IPv6."""
    return frozenset(one for one in addresses if one.is_loopback or _is_own(one))


def _is_own(address: Address) -> bool:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))  # which sends nothing
            return is_beside(address, ip_address(probe.getsockname()[0]))
    except OSError:
        return False


def is_beside(address: Address, source: Address) -> bool:
    """Whether `address` is this machine's, or a neighbour's, whom it speaks to from `source`.

    What it sends to itself, it sends from there. Neighbours have public addresses in IPv6, and
    nobody outside reaches them: they share 64 bits.
    """
    if isinstance(address, IPv6Address) and isinstance(source, IPv6Address):
        return int(address) >> 64 == int(source) >> 64
    return address == source


async def connect(addresses: Sequence[Address], port: int) -> tuple[Address, SocketStream]:
    """A connection to the first that answers, each being tried soon after the one before it.

    Raises OSError, the first address's.
    """
    failures: dict[Address, BaseException] = {}
    won: list[tuple[Address, SocketStream]] = []

    async def attempt(address: Address, over: anyio.Event) -> None:
        try:
            stream = await anyio.connect_tcp(str(address), port)
        except OSError as error:
            failures[address] = error.__cause__ or error
            over.set()
            return
        if won:
            await anyio.aclose_forcefully(stream)
        else:
            won.append((address, stream))
            attempts.cancel_scope.cancel()

    tried = addresses[:MAX_ADDRESSES]
    try:
        async with anyio.create_task_group() as attempts:
            for address in tried:
                over = anyio.Event()
                attempts.start_soon(attempt, address, over)
                with anyio.move_on_after(STAGGER):
                    await over.wait()
    except BaseException:
        if won:
            await anyio.aclose_forcefully(won[0][1])
        raise
    if not won:
        raise failures[tried[0]]
    return won[0]
