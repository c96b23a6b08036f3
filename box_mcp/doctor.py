"""Is everything there that boxes need? Findings, each with its remedy, for `box-mcp doctor`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from anyio import to_thread

from box_mcp.app import backend
from box_mcp.capabilities.shell import Shell
from box_mcp.domain.catalogue import Order
from box_mcp.domain.models import KEY_VARIABLES
from box_mcp.domain.names import LOCAL
from box_mcp.engines.docker import DockerEngine
from box_mcp.engines.firewall import VERSION
from box_mcp.engines.guard import Guarded
from box_mcp.engines.survey import Survey, is_current, survey
from box_mcp.errors import BoxError, EngineError, GuardMissing, NoCredential
from box_mcp.findings import Finding, Verdict, failure, ok, warning
from box_mcp.gateway.credentials import Keyed, Secrets
from box_mcp.http_doctor import examine_http, shared
from box_mcp.lifecycle import Caller
from box_mcp.settings import GIB, Settings

LEAST_API = (1, 41)  # Docker 20.10
LITTLE_DISK = 5 * GIB
NO_DISK = 1 * GIB
TRIAL_TIMEOUT = 30.0  # s for a command that takes milliseconds
TRIAL_OUTPUT = 200  # bytes; there is none


async def examine(settings: Settings) -> AsyncGenerator[Finding, None]:
    """Looks at one thing after another; what can't be looked at without the engine is left out."""
    yield ok("python", f"{sys.version.split()[0]} at {sys.executable}")
    yield state_directory(settings.state_dir)
    async for finding in examine_http(settings):
        yield finding
    async for finding in keyed("route", settings.credential_routes()):
        yield finding
    async for finding in keyed("model", models := settings.model_routes()):
        yield finding
    if not models:
        yield no_models(wanted=settings.models is not None, shared=shared(settings))
    try:
        found = await to_thread.run_sync(survey)
    except EngineError as error:
        yield failure("engine", str(error), error.advice)
        return
    for finding in engine(found, settings.runtime):
        yield finding
    yield place(found)
    yield disk(found)
    yield await look_at_guard(settings)
    image = await to_thread.run_sync(_image, settings)
    yield image
    if image.verdict is not Verdict.FAILURE:
        yield await trial(settings)


def state_directory(path: Path) -> Finding:
    """Whether the server can keep its records."""
    subject = "state directory"
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        return failure(subject, f"{path} can't be made: {error.strerror}", _STATE_REMEDY)
    if not os.access(path, os.W_OK | os.X_OK):
        return failure(subject, f"{path} is not writable", _STATE_REMEDY)
    return ok(subject, str(path))


_STATE_REMEDY = "Make it writable for this user, or set state_dir to another directory"


async def keyed(subject: str, found: Sequence[Keyed]) -> AsyncGenerator[Finding, None]:
    """Which servers boxes reach with a credential, and whether it can be had; it is not told."""
    secrets = Secrets()
    for route in found:
        try:
            await secrets.of(route)
        except NoCredential as error:
            remedy = f"Look at `{subject}s.{route.name}.credential` in the settings; all else works"
            yield warning(subject, f"{route}. Its credential can't be had: {error.detail}", remedy)
        else:
            here = "set here; the server needs it, too" if route.credential.variable else "there"
            yield ok(subject, f"{route}. Its credential is {here}")


def no_models(*, wanted: bool, shared: bool) -> Finding:
    """Boxes work without models, coding agents in them do not.

    Keys in the environment are for whoever runs the server, so none for callers of a `shared` one.
    """
    how = "name some in `models`"
    if not shared:
        how = f"set {' or '.join(KEY_VARIABLES.values())} where the server runs, or {how}"
    return ok("model", f"none; for coding agents, {how}" if wanted else "none, as the settings say")


def engine(found: Survey, runtime: str | None) -> Generator[Finding, None, None]:
    """Whether the engine is one that boxes can live on."""
    name, api = "Podman" if found.podman else "Docker", ".".join(map(str, found.api))
    about = f"{name} {found.version}, API {api}, at {found.address.url}"
    if found.system != "linux":
        remedy = "Switch Docker Desktop to Linux containers"
        yield failure("engine", f"{about} runs {found.system} containers", remedy)
    elif found.api < LEAST_API:
        yield failure("engine", f"{about} is too old", "Install Docker 20.10 or newer")
    elif found.podman:
        remedy = 'Docker has thicker walls, and snapshots: docs/operations.md, "Podman"'
        yield warning("engine", f"{about}: its filter lets more system calls through", remedy)
    else:
        yield ok("engine", about)
    if found.missing_limits:
        what = ", ".join(found.missing_limits)
        remedy = "Turn the missing cgroup controllers on (kernel command line) and restart Docker"
        yield warning("limits", f"the engine can't limit {what}", remedy)
    else:
        yield ok("limits", "memory, cpu and processes of a box are bounded")
    if not found.seccomp:
        remedy = "Use a kernel and a Docker with seccomp"
        yield warning("seccomp", "system calls of boxes are not filtered", remedy)
    if found.remapped:
        yield ok("users", "root in a box is nobody outside: the engine remaps users")
    else:
        about = "root in a box would be root outside, if it got out: docs/security.md, userns-remap"
        yield ok("users", about)
    if runtime is not None and runtime not in found.runtimes:
        known = ", ".join(sorted(found.runtimes))
        remedy = "Register it in Docker's daemon.json, or change `runtime` in the settings"
        yield failure("runtime", f"the engine has no {runtime!r}, only {known}", remedy)


def place(found: Survey) -> Finding:
    """Where the engine is, and what that means."""
    address, subject = found.address, "place"
    if address.scheme in {"tcp", "http"} and address.tls is None:
        remedy = "Have it listen for TLS, with certificates of both ends, or use ssh://"
        return warning(subject, f"whoever reaches {address.url} is root on its machine", remedy)
    if address.tls is not None and not address.tls.verify:
        remedy = "Set DOCKER_TLS_VERIFY=1, with the engine's authority in DOCKER_CERT_PATH/ca.pem"
        return warning(subject, f"whether it is the engine at {address.url} is not checked", remedy)
    if address.is_remote:
        about = "the engine is on another machine: boxes use that one's memory, disk and network"
        return ok(subject, about)
    if found.free is None:
        return ok(subject, "the engine's socket is here, its files are not: a container, or a VM")
    return ok(subject, "the engine is on this machine; who may use its socket is root here")


def disk(found: Survey) -> Finding:
    """Whether there is room for boxes."""
    if found.free is None:
        return ok("disk", f"{found.data} can't be seen from here: `min_free_disk` says nothing")
    about = f"{found.free / GIB:.1f} GiB free in {found.data}"
    remedy = (
        "Delete boxes (`box-mcp boxes`, `box-mcp prune`) or unused images (`docker image prune`)"
    )
    if found.free < NO_DISK:
        return failure("disk", about, remedy)
    if found.free < LITTLE_DISK:
        return warning("disk", about, remedy)
    return ok("disk", about)


async def look_at_guard(settings: Settings) -> Finding:
    """Looks after the rules on the engine's machine, as a server would before it starts a box."""
    engine = DockerEngine(settings.isolation())
    try:
        return guard(await engine.guarded())
    except GuardMissing as error:
        say = failure if settings.require_guard else warning
        return say("guard", str(error), _GUARD_REMEDY)
    except EngineError as error:
        return failure("guard", str(error), error.advice)
    finally:
        await engine.aclose()


_GUARD_REMEDY = (
    "Have iptables on the engine's machine and run as root there, or build the standard image, of "
    "which a container does it (`box-mcp image build`); or leave boxes open to what that machine "
    "reaches (`require_guard = false`)"
)


def guard(found: Guarded) -> Finding:
    """Whether rules keep boxes from what is not public."""
    report = found.report
    where = f"{report.hook} ({report.backend}{', by a container' if found.by_helper else ''})"
    about = f"boxes reach public addresses only, by rules in {where}"
    if report.missing:
        about += "; some were missing, and are in place now"
    if report.version > VERSION:
        about += "; they are a newer version's, and were left alone"
    if not report.lacking:
        return ok("guard", about)
    lacking = "; ".join(f"{table}: {why}" for table, why in report.lacking.items())
    remedy = (
        "Have the kernel's modules for it (ipt_rpfilter, iptable_security, ip6table_filter): each "
        "is a second line of defence, and boxes work without"
    )
    return warning("guard", f"{about}. Not in place: {lacking}", remedy)


def _image(settings: Settings) -> Finding:
    """Whether boxes have something to start from."""
    try:
        current = is_current(settings.image, settings.authorities(), settings.versions())
    except BoxError as error:
        return failure("image", str(error), error.advice)
    except (OSError, ValueError) as error:
        remedy = "Name a file with certificates in PEM form: `ca_certificates`, else SSL_CERT_FILE"
        return failure("image", f"the authorities to trust can't be read: {error}", remedy)
    if current is None:
        return ok("image", f"{settings.image} (your own)")
    if not current:
        detail = f"{settings.image} was built from other sources, or for other versions of agents"
        return warning("image", detail, "Build it anew with `box-mcp image build`")
    return ok("image", f"{settings.image}, current")


async def trial(settings: Settings) -> Finding:
    """Makes a box, runs a command in it and deletes it: the proof of all the rest."""
    caller = Caller(LOCAL, "doctor")
    started = time.perf_counter()
    try:
        with TemporaryDirectory(prefix="box-mcp-doctor-") as directory:
            own = settings.model_copy(update={"warm_max": 0, "state_dir": Path(directory)})
            async with backend(own) as running:
                box = (await running.lifecycle.create(caller, Order())).box.id
                try:
                    async with running.lifecycle.open(caller, box) as claim:
                        await _run_true(Shell(claim.channel))
                finally:
                    await running.lifecycle.delete(caller, box)
    except BoxError as error:
        return failure("box", str(error), error.advice)
    return ok(
        "box", f"made one, ran a command in it, deleted it: {time.perf_counter() - started:.1f} s"
    )


async def _run_true(shell: Shell) -> None:
    await shell.run(
        "true", timeout=TRIAL_TIMEOUT, yield_after=TRIAL_TIMEOUT, max_output=TRIAL_OUTPUT
    )
