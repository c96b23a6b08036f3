"""Where one box's connections may lead, just now."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import anyio

from box_mcp.domain.network import Address, Host, Network, Surroundings, Verdict
from box_mcp.domain.routes import bracketed
from box_mcp.gateway.dialling import LookUp, own_addresses
from box_mcp.gateway.tally import Tally

MAX_TOLD = 400  # characters of the rules that a refusal repeats


class Refused(Exception):
    """The box's network policy does not allow it; `str` is for whoever is in the box."""

    def __init__(self, target: str, reason: str, network: Network) -> None:
        rules = str(network)
        if len(rules) > MAX_TOLD:
            rules = rules[:MAX_TOLD] + " ...)"
        super().__init__(
            f"{target} is refused: {reason}. This box's network: {rules}. "
            "The tool `network_policy` asks for more"
        )
        self.target = target


class Unreachable(Exception):
    """It is allowed, but there is no connection; `late` when nobody said so in time."""

    def __init__(self, target: str, detail: str, *, late: bool = False) -> None:
        super().__init__(f"{target} is allowed, but can't be reached: {detail}")
        self.target = target
        self.late = late


@dataclass(frozen=True)
class Limits:
    """In seconds."""

    idle: float = 600.0  # of silence that end a connection
    look_up: float = 10.0
    connect: float = 10.0


@dataclass(frozen=True)
class Ways:
    """`policy` tells what the box may reach by now; `tally` is what was refused."""

    policy: Callable[[], Network]
    surroundings: Surroundings
    look_up: LookUp
    limits: Limits
    tally: Tally = field(default_factory=Tally)

    def permits(self, host: Host, port: int, addresses: Iterable[Address]) -> Verdict:
        """As Network.permits, with this machine's present addresses."""
        found = tuple(addresses)
        here = replace(self.surroundings, own=own_addresses(found))
        return self.policy().permits(host, port, found, here)

    def refuse(self, host: Host, port: int, reason: str) -> Refused:
        """Notes it down."""
        self.tally.add(target(host, port), reason)
        return Refused(target(host, port), reason, self.policy())

    async def find(self, host: Host, port: int) -> tuple[Address, ...]:
        """What may be connected to for `host`; raises Refused, Unreachable."""
        found = [] if isinstance(host, str) else [host]
        if isinstance(host, str) and self.policy().names(host, port):
            found = await self._addresses(host, port)
        verdict = self.permits(host, port, found)
        if not verdict.addresses:
            raise self.refuse(host, port, verdict.reason)
        return verdict.addresses

    async def _addresses(self, name: str, port: int) -> list[Address]:
        try:
            with anyio.fail_after(self.limits.look_up):
                return list(await self.look_up(name))
        except TimeoutError:
            detail = "its name could not be looked up in time"
            raise Unreachable(target(name, port), detail, late=True) from None
        except OSError as error:
            raise Unreachable(target(name, port), worded(error)) from None


def worded(error: OSError) -> str:
    """What went wrong, without the system's details."""
    number = error.errno or 0  # below zero where names are looked up, and with words of its own
    return os.strerror(number) if number > 0 else error.strerror or str(error)


def target(host: Host, port: int) -> str:
    """As in URLs."""
    return f"{bracketed(str(host))}:{port}"
