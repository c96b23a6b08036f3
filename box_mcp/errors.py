"""What can go wrong, drawn before it was written.

    BoxError
    ├── EngineError              the container engine's failure
    │   ├── EngineUnreachable      nobody answers at its address
    │   │   └── EngineForbidden      this user may not ask
    │   ├── EngineRefused          it answered "no"
    │   ├── EngineStalled          it did not answer in time
    │   └── GuardMissing           boxes would reach more than they may
    ├── ImageError               the image's failure
    │   ├── ImageMissing
    │   ├── ImageUnusable          it has no python3 >= 3.9
    │   └── ImageBuildFailed
    ├── StoreUnusable            the state file's failure
    ├── UsageError               the caller's to mend
    │   ├── InvalidName
    │   ├── InvalidArgument
    │   ├── BoxNotFound            also for a box of somebody else
    │   ├── RunNotFound            also for a run of somebody else
    │   ├── NoModel                no model that a coding agent could have
    │   ├── NoPrice                a budget for a model of which nobody knows what it costs
    │   ├── NameTaken
    │   ├── SnapshotNotFound       also for one of somebody else
    │   ├── IllegalMove            the box is in no state for this
    │   ├── NeedsConsent           only the person may decide this
    │   │   ├── BeyondCeiling        more than the settings allow
    │   │   └── WouldLose            work that is nowhere else would be gone
    │   ├── LimitReached
    │   │   └── SnapshotsFull        saved copies of the caller's boxes hold too much
    │   ├── NotPermitted           the caller's token is not for this
    │   ├── TooManyCalls           the caller's calls of this minute are used up
    │   ├── NotARepository         a path of a box is in none
    │   ├── NoForge                no forge that the box may write to has its repository
    │   ├── DiskFull               boxes could not write any more
    │   ├── NoHostDirectory        no directory of the user's machine is allowed
    │   ├── HostForbidden          what is never read or written there, or is outside of those
    │   └── RepositoryRefused      a repository of the user's does not take a branch as it is
    ├── IdentityUnavailable      whoever issued a token can't be asked about it
    ├── ForgeError               the failure of GitHub, GitLab or the like
    │   ├── ForgeUnreachable       it did not answer, or with nothing of use
    │   └── ForgeRefused           it answered "no"
    ├── HostFailed               the user's machine could not read or write a file
    ├── NoPort                   the user's machine gave no port to listen on
    ├── NoCredential             the user's machine has no secret for a route
    ├── BoxUnavailable           the box's failure
    │   ├── BoxLost                its container is gone
    │   └── BoxBroken              its container runs no daemon, or one that speaks nonsense
    ├── GitFailed                git in the box said no, or nothing that it would say
    ├── HarnessMissing           a coding agent's program is not in the box, nor comes there
    ├── CallInterrupted          the box or the channel went away under a running call
    │   └── CallLeft               the server did, and what was begun goes on in the box
    ├── CallRefused              the daemon in the box said no: path missing, no permission ...
    ├── NotInstalled             what a setting needs is not there
    ├── CannotServe              nothing is served over HTTP, or not in this way
    └── ServerClosed             this server is shutting down

Each leaf bears its facts as attributes and answers three questions: who failed (`str(error)`),
what survived (`survived`), what to do next (`advice`).
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike


class BoxError(Exception):
    """Root of every failure that box_mcp reports; `str()` says who failed and how."""

    survived: str = ""
    advice: str = ""

    def explain(self) -> str:
        """The whole story in one paragraph: what failed, what survived, what to do next."""
        sentences = (str(self), self.survived, self.advice)
        return " ".join(
            sentence if sentence.endswith((".", "?", "\n")) else f"{sentence}."
            for sentence in sentences
            if sentence
        )


class EngineError(BoxError):
    """The container engine failed; boxes keep their files."""

    survived = "Boxes and their files are untouched"


class EngineUnreachable(EngineError):
    """No engine answers at `address`."""

    advice = (
        "Start Docker (Linux: `sudo systemctl start docker`; macOS, Windows: open Docker Desktop), "
        "then repeat the call; `box-mcp doctor` shows what is missing"
    )

    def __init__(self, address: str, detail: str) -> None:
        super().__init__(f"No container engine answers at {address}: {detail}")
        self.address = address
        self.detail = detail
        if not address.startswith(("unix://", "npipe://")):
            self.advice = (
                "See that the engine runs there and that `docker info` reaches it from here, as "
                "the user that the server runs as, then repeat the call"
            )


class EngineForbidden(EngineUnreachable):
    """The engine runs, but this user may not use it."""

    advice = (
        "Join the group that may: `sudo usermod -aG docker $USER`, then log out and in again; "
        "or ask whoever administers this machine"
    )


class EngineRefused(EngineError):
    """The engine answered `operation` with an error."""

    advice = (
        "Repeat the call once; if the engine refuses again, `box-mcp doctor` and "
        "the engine's log say why"
    )

    def __init__(self, operation: str, detail: str) -> None:
        super().__init__(f"The container engine refused to {operation}: {detail}")
        self.operation = operation
        self.detail = detail


class EngineStalled(EngineError):
    """The engine did not finish `operation` within `seconds`."""

    advice = "The machine may be overloaded: wait a moment and repeat the call"

    def __init__(self, operation: str, seconds: float) -> None:
        super().__init__(f"The container engine did not {operation} within {seconds:g} s")
        self.operation = operation
        self.seconds = seconds


class GuardMissing(EngineError):
    """The rules that keep boxes from private addresses are not in place, for `detail`."""

    advice = (
        "`box-mcp doctor` shows what is missing. Boxes with network none or allowlist need no "
        "rules; with `require_guard = false` in the settings, boxes do without, and then reach "
        "whatever the engine's machine reaches"
    )

    def __init__(self, detail: str) -> None:
        super().__init__(
            "The firewall rules that keep boxes from private addresses can't be put in place on "
            f"the engine's machine: {detail}"
        )
        self.detail = detail


class ImageError(BoxError):
    """A box's image is missing or can't be used."""


class ImageMissing(ImageError):
    """The engine does not have `image` and could not fetch it."""

    survived = "No box was made; existing boxes are untouched"
    advice = (
        "Build the standard image with `box-mcp image build`, or name an image that the engine has"
    )

    def __init__(self, image: str) -> None:
        super().__init__(f"The engine has no image {image!r}")
        self.image = image


class ImageUnusable(ImageError):
    """`image` can't run the daemon that every box needs."""

    survived = "No box was made; existing boxes are untouched"
    advice = "Use an image that has python3 (3.9 or newer) on its PATH, such as the standard image"

    def __init__(self, image: str, detail: str) -> None:
        super().__init__(f"The image {image!r} can't be a box: {detail}")
        self.image = image
        self.detail = detail


class ImageBuildFailed(ImageError):
    """Building `tag` ended with `detail`."""

    survived = "The image built before, if any, is unchanged"
    advice = (
        "Mend what the last lines name and run `box-mcp image build` again; or do without coding "
        "agents in the image: `box-mcp image build --target base`, and `image` in the settings"
    )

    def __init__(self, tag: str, detail: str) -> None:
        super().__init__(f"Building the image {tag!r} failed: {detail}")
        self.tag = tag
        self.detail = detail


class StoreUnusable(BoxError):
    """The state file at `path` can't be used, for `detail`."""

    survived = "Boxes and their files are untouched"
    advice = (
        "Free disk space or mend the file's permissions, or set `state_dir` to another directory; "
        "`box-mcp doctor` shows which one is used"
    )

    def __init__(self, path: str | PathLike[str], detail: str) -> None:
        super().__init__(f"The state file {path} can't be used: {detail}")
        self.path = path
        self.detail = detail


class UsageError(BoxError):
    """The caller asked for something that can't be; nothing was changed."""


class InvalidName(UsageError):
    """`text` is neither a box id nor a name that a box may have."""

    advice = (
        "Names are 1-40 characters: lower-case letters, digits, '-', '_' and '.', "
        "a letter or digit first"
    )

    def __init__(self, text: str) -> None:
        super().__init__(f"{text!r} can't be the name of a box")
        self.text = text


class InvalidArgument(UsageError):
    """The argument `name` has a value that can't be used."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"The argument {name!r} {detail}")
        self.name = name


class BoxNotFound(UsageError):
    """The caller has no box of this id or name."""

    advice = (
        "`box_list` shows your boxes; `box_create` makes one; without `box` a call uses "
        "this session's own"
    )

    def __init__(self, ref: str) -> None:
        super().__init__(f"You have no box {ref!r}")
        self.ref = ref


class RunNotFound(UsageError):
    """The caller has no run of a coding agent of this id."""

    advice = "`agent_run` and `agent_status` without `run` tell the ids of yours"

    def __init__(self, ref: str) -> None:
        super().__init__(f"You have no run {ref!r}")
        self.ref = ref


class NoModel(UsageError):
    """`harness` speaks `dialects`, and no route leads to `model` (empty for any) in one of them.

    `variables` have keys for them where the settings name no models.
    """

    survived = "Nothing was started"

    def __init__(
        self,
        harness: str,
        dialects: Sequence[str],
        model: str = "",
        variables: Sequence[str] = (),
    ) -> None:
        which = f"the model {model!r}" if model else "any model"
        spoken = " or ".join(dialects)
        super().__init__(f"box_mcp knows no way to {which} for {harness} (API: {spoken})")
        plainly = f" (where they name none: set {' or '.join(variables)} where its server runs)"
        self.advice = (
            "Ask the user to name the model's server and key under `models` in box_mcp's settings"
            f"{plainly if variables else ''}, or pass another harness or model"
        )
        self.harness = harness
        self.dialects = tuple(dialects)
        self.model = model


class NoPrice(UsageError):
    """A budget can't be kept for `model`, since nobody knows what it costs."""

    survived = "Nothing was started"

    def __init__(self, model: str) -> None:
        super().__init__(f"max_cost can't be kept: box_mcp has no price of the model {model!r}")
        self.model = model
        self.advice = (
            f"Ask the user to add it to `prices` in box_mcp's settings, such as prices."
            f'"{model}" = {{ input = 3, output = 15 }} (US dollars per million tokens), pass a '
            "model that has one, or leave max_cost out, if the settings have none either: timeout "
            "and max_turns bound the run, too"
        )


class NoBoxYet(UsageError):
    """The caller's conversation has made no box of its own yet."""

    advice = (
        "The first `shell_run`, `file_read` or `file_write` makes it; `box_list` shows your other "
        "boxes, which are used by name or id"
    )

    def __init__(self, *, only_reads: bool = False) -> None:
        super().__init__("This session has no box of its own yet")
        if only_reads:
            self.advice = (
                "You may look at boxes here, and make none: pass `box`, the name or id of one that "
                "`box_list` shows"
            )


class NameTaken(UsageError):
    """The caller already has a box of this name, or a snapshot; `holder` says which."""

    advice = "Use what has the name already, or choose another name"

    def __init__(self, name: str, holder: str) -> None:
        super().__init__(f"The name {name!r} is taken already ({holder})")
        self.name = name
        self.holder = holder


class SnapshotNotFound(UsageError):
    """There is no such snapshot, or it is somebody else's: the same answer to both."""

    advice = "`snapshot_list` shows yours"

    def __init__(self, name: str) -> None:
        super().__init__(f"You have no snapshot {name!r}")
        self.name = name


class IllegalMove(UsageError):
    """The table in `domain.box` has no way from `state` by `move`; nothing was changed."""

    def __init__(self, box: str, move: str, state: str) -> None:
        super().__init__(f"The box {box} is {state}: it can't {move}")
        self.box = box
        self.move = move
        self.state = state


class NeedsConsent(UsageError):
    """A person has to say yes to `what`, each a few words."""

    survived = "Nothing was changed"

    def __init__(self, detail: str, what: Sequence[str]) -> None:
        super().__init__(detail)
        self.what = tuple(what)


class BeyondCeiling(NeedsConsent):
    """`what` is more than the settings let a tool allow itself."""

    advice = (
        "Ask the user: only they can allow it, by answering your client's question, if it can ask "
        "one, or by `ceiling` in box_mcp's settings"
    )

    def __init__(self, what: Sequence[str]) -> None:
        told = ", ".join(what)
        super().__init__(f"The user's settings do not let a tool allow this: {told}", what)


class WouldLose(NeedsConsent):
    """`act` would lose `what`, which is nowhere else."""

    advice = "Ask the user whether that may be lost"

    def __init__(self, act: str, what: Sequence[str]) -> None:
        super().__init__(f"To {act} would lose for good: {'; '.join(what)}", what)
        self.act = act


class LimitReached(UsageError):
    """One more would be over `limit`; `what` is a field's name of `domain.limits.Room`."""

    survived = "Your boxes are untouched"

    def __init__(self, what: str, limit: int, detail: str = "") -> None:
        told, self.advice = LIMITS[what.removeprefix("own_")]
        whose = " for each caller" if what.startswith("own_") else ""
        shown = _gib(limit) if what.endswith(IN_BYTES) else str(limit)
        super().__init__(f"The limit of {shown} {told}{whose} is reached{detail}")
        self.what = what
        self.limit = limit


IN_BYTES = ("memory", "snapshots")
SNAPSHOTS_TOLD = 10  # snapshots that a refusal names, the largest
LIMITS = {
    "boxes": (
        "boxes",
        "Delete boxes that you no longer need (`box_list`, `box_delete`), or raise `max_boxes`",
    ),
    "awake": (
        "running boxes",
        "All of them are in use: pause one (`box_list`, `box_pause`), or raise `max_running`",
    ),
    "memory": (
        "of memory for boxes",
        "Stop or delete a box (`box_pause` with depth stopped), or raise `max_memory`",
    ),
    "ports": (
        "exposed ports",
        "Close some with `port_close`",
    ),
    "snapshots": (
        "for saved boxes",
        "Delete some (`snapshot_delete`), or ask whoever runs box_mcp for more `max_own_snapshots`",
    ),
    "watches": (
        "subscriptions to resources",
        "Unsubscribe from some that are no longer needed",
    ),
}
"""What is limited, and what to do next."""


class SnapshotsFull(LimitReached):
    """Copies of a principal's boxes hold `held` bytes; `more` would be over `limit`.

    `named` are its snapshots, by size; the rest of `held` is what boxes need that were made of
    copies which have no name, or none any more.
    """

    def __init__(
        self, limit: int, held: int, more: int, named: Sequence[tuple[str, int]] = ()
    ) -> None:
        detail = f": yours hold {_gib(held)}, and this one would add {_gib(more)}"
        super().__init__("own_snapshots", limit, detail)
        told = [f"{name} {_gib(size)}" for name, size in named[:SNAPSHOTS_TOLD]]
        if others := named[SNAPSHOTS_TOLD:]:
            told.append(f"{len(others)} more")
        if rest := held - sum(size for _, size in named):
            told.append(f"{_gib(rest)} that forks and boxes of deleted snapshots still need")
        if told:
            self.survived = f"There are: {', '.join(told)}"
        self.held = held
        self.more = more
        self.named = tuple(named)


class NotPermitted(UsageError):
    """The caller's token, which is for `scopes`, is not for `what`, which needs `needed`."""

    def __init__(self, what: str, needed: str, scopes: Sequence[str]) -> None:
        super().__init__(f"Your token does not let you use {what}")
        self.what = what
        self.needed = needed
        self.scopes = tuple(scopes)
        self.advice = (
            f"It is for: {', '.join(scopes) or 'nothing'}. Go on without, or ask the user for a "
            f"token with the scope {needed!r}, which whoever runs the server of box_mcp can give"
        )


class TooManyCalls(UsageError):
    """The caller made more than `limit` calls within a minute; the next is free in `wait` s."""

    survived = "Nothing was done; your boxes and what runs in them go on"

    def __init__(self, limit: int, wait: float) -> None:
        super().__init__(f"You have made the {limit} calls that you may make in a minute")
        self.limit = limit
        self.wait = wait
        self.advice = (
            f"Wait {max(1, round(wait))} s before the next; do more in one call, and wait for a "
            "process with process_output rather than by asking often"
        )


class DiskFull(UsageError):
    """Less than `least` bytes are `free` where the engine keeps boxes."""

    survived = "Your boxes are untouched, and nothing was begun"
    advice = (
        "Delete boxes and snapshots that you no longer need (`box-mcp prune` shows leftovers), "
        "make room on the disk, or lower `min_free_disk`"
    )

    def __init__(self, free: int, least: int) -> None:
        super().__init__(
            f"The engine's disk has {free / 1024**3:.1f} GiB left, less than the "
            f"{least / 1024**3:.1f} GiB that are kept free"
        )
        self.free = free
        self.least = least


class NoForge(UsageError):
    """No forge that a box may write to has `repository`, for `reason`."""

    survived = "Nothing was pushed or made"

    def __init__(self, repository: str, reason: str, advice: str = "") -> None:
        super().__init__(f"Nothing can be made for {repository}: {reason}")
        self.repository = repository
        self.reason = reason
        self.advice = advice or (
            "Ask the user for a route with access `write` to it in box_mcp's settings, or to do "
            "this themselves"
        )


class NotARepository(UsageError):
    """`path` in a box is in no git repository; `nearby` are some below it."""

    def __init__(self, path: str, nearby: Sequence[str] = ()) -> None:
        super().__init__(f"{path} is not in a git repository")
        self.advice = (
            f"Pass the path of one: {', '.join(nearby)}"
            if nearby
            else '`git_clone` brings one, shell_run("git init") begins one'
        )
        self.path = path
        self.nearby = tuple(nearby)


class NoHostDirectory(UsageError):
    """No directory of the user's machine may be touched, for `reason`."""

    survived = "Nothing was read or written there"

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"No directory of the user's machine may be touched: {reason}")
        self.reason = reason
        self.advice = advice


class HostForbidden(UsageError):
    """`path` must not be read or written on the user's machine, for `reason`."""

    survived = "Nothing was transferred"

    def __init__(self, path: str, reason: str, advice: str = "") -> None:
        super().__init__(f"{path} is not transferred: {reason}")
        self.path = path
        self.reason = reason
        self.advice = advice


class IdentityUnavailable(BoxError):
    """`issuer`, which issued a token, could not be asked about it, for `detail`."""

    survived = "Nothing was done; boxes are untouched"
    advice = "Repeat the call in a moment; if it goes on, tell whoever runs the server of box_mcp"

    def __init__(self, issuer: str, detail: str) -> None:
        super().__init__(f"Whether the token is good can't be told: {issuer} {detail}")
        self.issuer = issuer
        self.detail = detail


class ForgeError(BoxError):
    """A forge (GitHub, GitLab or the like) did not do what it was asked for.

    `forge` is its name and address, `detail` what it says. Who knows more of what survived replaces
    `survived`.
    """

    survived = "Nothing was made there"

    def __init__(self, message: str, forge: str, detail: str) -> None:
        super().__init__(message)
        self.forge = forge
        self.detail = detail


class ForgeUnreachable(ForgeError):
    """A forge gave no answer of use: `detail`."""

    survived = "What it was asked for may have been done all the same"
    advice = "Repeat the call: what is there already is found, and not made twice"

    def __init__(self, forge: str, detail: str) -> None:
        super().__init__(f"{forge} gives no answer of use: {detail}", forge, detail)


class ForgeRefused(ForgeError):
    """A forge refused, with `status` of HTTP, to `operation`; `route` had the credential."""

    def __init__(self, forge: str, route: str, operation: str, status: int, detail: str) -> None:
        told, advice = FORGE_REFUSALS.get(status, FORGE_REFUSALS[422])
        told = told.format(route=route, operation=operation)
        super().__init__(f"{forge} {told}: {detail}", forge, detail)
        self.advice = advice.format(route=route)
        self.route = route
        self.operation = operation
        self.status = status


FORGE_REFUSALS = {
    401: (
        "does not accept the credential of the route {route!r}",
        "Ask the user to renew it, where `routes.{route}.credential` in box_mcp's settings says",
    ),
    403: (
        "does not let the credential of the route {route!r} {operation}",
        "Ask the user to give it the right, or to do this themselves",
    ),
    404: (
        "can't {operation}: it finds no such thing, or hides it from the route {route!r}",
        "Check the name; else ask the user whether the credential covers this repository",
    ),
    422: (
        "refuses to {operation}",
        "Mend what it names and repeat the call",
    ),
    429: (
        "takes no more requests of the credential of the route {route!r} for now",
        "Wait a few minutes and repeat the call",
    ),
}
"""What a forge's answers mean, and what to do next."""


class RepositoryRefused(UsageError):
    """The user's repository at `path` was not changed, for `reason`."""

    survived = "Nothing in it was changed"

    def __init__(self, path: str, reason: str, advice: str = "") -> None:
        super().__init__(f"{path} was left as it is: {reason}")
        self.path = path
        self.reason = reason
        self.advice = advice


class HostFailed(BoxError):
    """The user's machine, not the box, failed to read or write `path`."""

    survived = "The box is fine"

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(f"The user's machine can't read or write {path}: {detail}")
        self.path = path
        self.detail = detail


class NoPort(BoxError):
    """The user's machine, not the box, gave no port to listen on, for `detail`."""

    survived = "The box is fine"

    def __init__(self, detail: str) -> None:
        super().__init__(f"The user's machine has no port to listen on: {detail}")
        self.detail = detail


class NoCredential(BoxError):
    """The user's machine has no secret for `route`, for `detail`, which does not quote it."""

    survived = "The box is fine"

    def __init__(self, route: str, detail: str) -> None:
        super().__init__(f"There is no credential for the route {route!r}: {detail}")
        self.route = route
        self.detail = detail
        self.advice = (
            "Ask the user to mend it: `credential` of the route in box_mcp's settings says where "
            "it comes from"
        )


class BoxUnavailable(BoxError):
    """The box itself can't serve; other boxes can."""


class BoxLost(BoxUnavailable):
    """The container of `box` is gone, for `reason`."""

    survived = "Its files are gone with it; snapshots and other boxes are untouched"
    advice = "Make a new box with `box_create`, and delete the record of this one with `box_delete`"

    def __init__(self, box: str, reason: str) -> None:
        super().__init__(f"The box {box} is lost: {reason}")
        self.box = box
        self.reason = reason


class BoxBroken(BoxUnavailable):
    """The container of `box` exists, but its daemon does not come up or speaks nonsense."""

    survived = "Its files are kept"
    advice = (
        "Repeat the call: it restarts the box; if that fails again, make a new box "
        "with `box_create`"
    )

    def __init__(self, box: str, detail: str) -> None:
        super().__init__(f"The box {box} does not answer: {detail}")
        self.box = box
        self.detail = detail


class CallInterrupted(BoxError):
    """The connection to `box` ended while a call was running."""

    survived = "Files written so far are kept; processes in the box may have ended"
    advice = (
        "Repeat the call: it wakes or restarts the box if need be. Check first what the "
        "interrupted call already did"
    )

    def __init__(self, box: str, detail: str) -> None:
        super().__init__(f"The box {box} went away during the call: {detail}")
        self.box = box
        self.detail = detail


class CallLeft(CallInterrupted):
    """This server ended while a call was running in `box`, where what it began goes on."""

    survived = "The box is kept, and a command that the call began goes on in it"
    advice = (
        "Connect again. Before you repeat the call, see what it did: `process_list` tells what "
        "runs, `process_output` what that printed, `agent_status` how a coding agent fares"
    )

    def __init__(self, box: str) -> None:
        BoxError.__init__(self, f"box_mcp's server was stopped during this call to the box {box}")
        self.box = box
        self.detail = "its server was stopped"


class CallRefused(BoxError):
    """The daemon in the box refused one request; the box is fine.

    `code` is a short word. Of commands: ``not_started``, ``busy``, ``ended``, ``no_input``,
    ``cancelled``. Of paths: ``not_found``, ``denied``, ``exists``, ``is_directory``,
    ``not_directory``, ``not_a_file``, ``not_empty``, ``kept``, ``no_space``. Of what is in a file:
    ``binary``, ``changed``, ``no_match``, ``many_matches``. Of searches: ``bad_pattern``,
    ``bad_type``. Of ports: ``not_listening``, ``in_use``, ``reset``. Of all: ``too_large``,
    ``too_many``, ``too_slow``, ``invalid``, ``failed``.

    `place` are the box and the path that it was about, where it was about one.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.place: tuple[str, str] | None = None


class GitFailed(BoxError):
    """git in a box did not do `what`, for `reason`; `said` are its own last words."""

    def __init__(self, what: str, reason: str, advice: str = "", said: str = "") -> None:
        super().__init__(f"git did not {what}: {reason}")
        self.what = what
        self.reason = reason
        self.advice = advice
        self.said = said

    def explain(self) -> str:
        """The same, with git's own words below."""
        return f"{super().explain()}\n{self.said}" if self.said else super().explain()


class HarnessMissing(BoxError):
    """`program` of a coding agent is not in `box`, and was not brought there, for `detail`."""

    survived = "Nothing was started; the box is fine"

    def __init__(self, box: str, program: str, detail: str, advice: str = "") -> None:
        super().__init__(f"The box {box} has no {program}: {detail}")
        self.box = box
        self.program = program
        self.detail = detail
        self.advice = advice or (
            "Make a box of an image that has it (`box-mcp image build`), or install it with "
            "`shell_run`"
        )


class NotInstalled(BoxError):
    """`setting` needs packages that come with box-mcp[`extra`] only."""

    def __init__(self, setting: str, extra: str) -> None:
        super().__init__(f"The setting {setting} needs packages that are not installed")
        self.advice = f'Install them by `pip install "box-mcp[{extra}]"`, or leave the setting out'
        self.setting = setting
        self.extra = extra


class CannotServe(BoxError):
    """Nothing is served over HTTP, for `detail`."""

    survived = "Nothing was started"

    def __init__(self, detail: str, advice: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.advice = advice


class ServerClosed(BoxError):
    """The server is shutting down and takes no more calls."""

    survived = "Boxes keep their files"
    advice = "Repeat the call once it is there again"

    def __init__(self) -> None:
        super().__init__("This box_mcp server is shutting down")


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error in a task group's, however deep."""
    error = group.exceptions[0]
    if isinstance(error, BaseExceptionGroup):
        return first_error(error)  # pyright: ignore[reportUnknownArgumentType]  # of what, isinstance can't tell
    return error


def _gib(size: float) -> str:
    """Bytes in words."""
    return f"{size / 1024**3:.3g} GiB"
