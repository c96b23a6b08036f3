"""Sees to it that the guard's rules are in place on the engine's machine before a box needs them.

Where boxes' bridges are among this machine's interfaces, and we are root, that is done here. Else a
short-lived container does it: on the engine's own network, with the right to change firewalls and
no other, of an image that no box had a part in.
"""

# docker-py carries no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from box_mcp.engines import firewall
from box_mcp.engines.firewall import FirewallError, Order, Report
from box_mcp.engines.isolation import Isolation, owner_tag
from box_mcp.engines.saving import SAVED_LABEL
from box_mcp.errors import GuardMissing

if TYPE_CHECKING:
    from docker import APIClient

logger = logging.getLogger(__name__)

GOOD_FOR = 10.0  # s that a look of our own at the rules is believed; `keep` looks more often
HELPER_GOOD_FOR = 300.0  # s that a helper's is, if the engine was not restarted; it takes 0.5 s
KEEP_EVERY = 5.0  # s between two looks without need, of some ms each
RETRY = 30.0  # s until rules that could not be put in place are tried again without need
LOCK_PATIENCE = 60.0  # s for another thread's look

HELPER_LABEL = "box_mcp.helper"
HELPER_MEMORY = 256 * 1024 * 1024
HELPER_PIDS = 64
HELPER_LEFT = 60.0  # s after which a helper is a dead server's
HELPER_TIMEOUT = 60  # s
HELPER_WORDS = 300  # characters of its complaint
XTABLES_LOCK = "/run/xtables.lock"


@dataclass(frozen=True)
class Guarded:
    """What was found of the rules, and whether a helper looked."""

    report: Report
    by_helper: bool


@dataclass(frozen=True)
class Look:
    """A look at the rules. A helper's is good only as long as its `basis` is the same."""

    guarded: Guarded
    at: float
    basis: object


class Guard:
    """Its methods block, and may be called from several threads; `api` gives docker's client."""

    def __init__(self, isolation: Isolation, api: Callable[[], APIClient]) -> None:
        self._isolation = isolation
        self._api = api
        self._lock = threading.Lock()
        self._last: Look | None = None
        self._here = False
        self._bridge = ""
        self._kept_at = self._failed_at = float("-inf")
        self._warned = False

    def __repr__(self) -> str:
        return f"<Guard {self._last or 'not looked yet'}>"

    def ensure(self, bridge: str) -> None:
        """Before a box uses `bridge`, which exists; raises GuardMissing where it is required."""
        try:
            if self._isolation.require_guard or not self._failed_lately:
                self.look(bridge, good_for=GOOD_FOR)
        except GuardMissing as error:
            if self._isolation.require_guard:
                raise
            self._note(error)

    def make_ahead(self, bridge: str) -> None:
        """As `ensure`, when no box uses `bridge` yet: who starts one is told of failures."""
        if self._failed_lately:
            return
        try:
            self.ensure(bridge)
        except GuardMissing:
            self._failed_at = time.monotonic()

    def expect(self, bridge: str) -> None:
        """A box lives on `bridge`: from now on there is something to keep."""
        self._bridge = bridge

    def keep(self) -> None:
        """Puts back what somebody took away, if it is time to look; failures are logged."""
        now = time.monotonic()
        if not self._bridge or now - self._kept_at < KEEP_EVERY or self._failed_lately:
            return
        self._kept_at = now
        try:
            self.look(self._bridge, good_for=KEEP_EVERY)
        except GuardMissing as error:
            self._note(error)

    def look(self, bridge: str, *, good_for: float = 0.0) -> Guarded:
        """Looks and mends, unless that was done within `good_for` seconds; raises GuardMissing."""
        with self._alone():
            self.expect(bridge)
            # A bridge that is gone says nothing; one that was here says it for all.
            self._here = self._here or bridge in firewall.bridges()
            resolvers = firewall.resolvers() if self._here else None
            last = self._last
            if good_for and last and time.monotonic() - last.at < HELPER_GOOD_FOR:
                by_helper = last.guarded.by_helper
                if by_helper and last.basis == self._basis(resolvers):
                    return last.guarded
                if not by_helper and time.monotonic() - last.at < good_for:
                    return last.guarded
            found = self._look(resolvers)
            basis = self._basis(resolvers) if found.by_helper else None
            self._last = Look(found, time.monotonic(), basis)
            self._warned = False
            return found

    def routes(self) -> tuple[IPv4Network, ...]:
        """The networks that the engine's machine has routes to, as far as is known."""
        last = self._last
        elsewhere = last is not None and last.guarded.by_helper
        found = last.guarded.report.routes if last and elsewhere else firewall.routes()
        return tuple(map(IPv4Network, found))

    def _look(self, resolvers: Sequence[str] | None) -> Guarded:
        tag = owner_tag(self._isolation.owner)
        order = Order(tag, tuple(map(str, self._isolation.allow_cidrs)), resolvers)
        reasons: list[str] = []
        if self._here and is_root():
            try:
                return Guarded(firewall.ensure(order), by_helper=False)
            except FirewallError as error:
                reasons.append(str(error))
        try:
            return Guarded(Helper(self._api(), self._isolation).ensure(order), by_helper=True)
        except FirewallError as error:
            reasons.append(f"a container of {self._isolation.helper_image}: {error}")
        raise GuardMissing("; ".join(reasons))

    def _basis(self, resolvers: Sequence[str] | None) -> object:
        """Changes with the resolvers, and when the engine is started anew."""
        from docker.errors import NotFound

        try:  # made by each engine when it starts
            return resolvers, self._api().inspect_network("bridge")["Id"]
        except NotFound:
            return resolvers, None

    @property
    def _failed_lately(self) -> bool:
        return time.monotonic() - self._failed_at < RETRY

    def _note(self, error: GuardMissing) -> None:
        self._failed_at = time.monotonic()
        if not self._warned:
            logger.warning("%s", error.explain())
        self._warned = True

    @contextmanager
    def _alone(self) -> Generator[None, None, None]:
        if not self._lock.acquire(timeout=LOCK_PATIENCE):
            raise GuardMissing("an earlier look at the rules does not come to its end")
        try:
            yield
        finally:
            self._lock.release()


class Helper:
    """Has `firewall` run by a container on the engine's machine."""

    def __init__(self, api: APIClient, isolation: Isolation) -> None:
        self._api = api
        self._image = isolation.helper_image
        self._labels = {HELPER_LABEL: isolation.owner}

    def ensure(self, order: Order) -> Report:
        """As `firewall.ensure`, there."""
        from docker.errors import APIError, ImageNotFound

        try:
            self._check_image()
            self._remove_old()
            return report_of(*self._run(order))
        except ImageNotFound:
            raise FirewallError("the engine has no such image") from None
        except APIError as error:
            raise FirewallError(str(error.explanation or error)) from error

    def _check_image(self) -> None:
        """What was saved of a box may have been changed by it, and would be let loose outside."""
        config = self._api.inspect_image(self._image)["Config"]
        if SAVED_LABEL in (config.get("Labels") or {}):
            raise FirewallError("it was saved from a box")

    def _run(self, order: Order) -> tuple[str, str]:
        key = self._create(json.dumps(asdict(order)))["Id"]
        try:
            self._api.start(key)
            self._api.wait(key, timeout=HELPER_TIMEOUT)
            output, errors = (
                self._api.logs(key, stdout=not errors, stderr=errors).decode(errors="replace")
                for errors in (False, True)
            )
        finally:
            self._api.remove_container(key, force=True, v=True)
        return output, errors

    def _create(self, order: str) -> dict[str, Any]:
        from docker.errors import APIError
        from docker.types import Mount

        lock = Mount(XTABLES_LOCK, XTABLES_LOCK, type="bind")
        try:
            return self._create_with([lock], order)
        except APIError as error:
            if "does not exist" not in str(error.explanation):
                raise
        return self._create_with([], order)  # no user of iptables there has needed a lock yet

    def _create_with(self, mounts: list[Any], order: str) -> dict[str, Any]:
        from docker.types import LogConfig

        return self._api.create_container(
            self._image,
            ["-I", "-c", program(), order],
            entrypoint=["python3"],
            user="0",
            labels=self._labels,
            healthcheck={"test": ["NONE"]},
            host_config=self._api.create_host_config(
                network_mode="host",
                userns_mode="host",  # which an engine that remaps users asks for
                cap_drop=["ALL"],
                cap_add=["NET_ADMIN", "NET_RAW"],
                security_opt=["no-new-privileges"],
                read_only=True,
                tmpfs={"/run": "size=1m"},
                mounts=mounts,
                mem_limit=HELPER_MEMORY,
                pids_limit=HELPER_PIDS,
                log_config=LogConfig(type="json-file", config={}),
            ),
        )

    def _remove_old(self) -> None:
        """Servers that were killed meanwhile left theirs."""
        labels = [f"{name}={value}" for name, value in self._labels.items()]
        for old in self._api.containers(all=True, filters={"label": labels}):
            if old["Created"] < time.time() - HELPER_LEFT:
                self._api.remove_container(old["Id"], force=True, v=True)


@cache
def program() -> str:
    """The source of `firewall`."""
    return Path(firewall.__file__).read_text(encoding="utf-8")


def report_of(output: str, errors: str) -> Report:
    """What a helper says; raises FirewallError."""
    try:
        said = json.loads(output)
        if "error" in said:
            raise FirewallError(str(said["error"]))
        report = Report(**said)
        for route in report.routes:
            IPv4Network(route)
    except (ValueError, TypeError):
        words = (errors.strip() or output.strip() or "it said nothing").rpartition("\n")[2]
        raise FirewallError(words[:HELPER_WORDS]) from None
    return report


def is_root() -> bool:
    """Whether this process may change a firewall, as far as that can be told."""
    geteuid = getattr(os, "geteuid", None)
    return geteuid is not None and geteuid() == 0
