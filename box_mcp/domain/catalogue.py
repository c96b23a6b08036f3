"""What boxes can be ordered: sizes and profiles of the settings, and a caller's own wishes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from box_mcp.domain.box import BoxSpec, Terms
from box_mcp.domain.network import Mode, Network, parse_rules
from box_mcp.errors import BeyondCeiling, InvalidArgument

RESERVED = ("PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "HOME", "USER", "SHELL", "IFS")
"""Variables that decide what every command in a box is, boxd's and git's own included."""
SECRET_NAMES = re.compile(r"(?i)(token|secret|passw|api_?key|private_?key|credential)")
SECRET_VALUES = re.compile(
    r"^(sk-|ghp_|gho_|ghs_|github_pat_|glpat-|xox[abprs]-|AKIA[0-9A-Z]{16}|-----BEGIN )"
)
"""As the keys of OpenAI and Anthropic, GitHub, GitLab, Slack and AWS begin."""


SHOWN = 100  # characters of a wrong name
SHOWN_IMAGES = 5  # of those that may be named
MAX_TEXT = 64 * 1024  # characters of a box's setup, and of all its variables
MAX_MODEL = 200  # characters
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,499}")


@dataclass(frozen=True)
class Profile:
    """A named template for boxes; what is None is as for any box."""

    image: str | None = None
    size: str | None = None
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    setup: str | None = None
    network: Network | None = None
    cwd: str | None = None
    sudo: bool | None = None
    routes: tuple[str, ...] | None = None
    harness: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Order:
    """A box to be made. What is None is as the profile, the snapshot or the settings say.

    `approved` tells that the person agrees to what is beyond the ceiling.
    """

    name: str | None = None
    reuse: bool = False
    profile: str | None = None
    snapshot: str | None = None
    image: str | None = None
    size: str | None = None
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    setup: str | None = None
    network: str | None = None
    allow: Sequence[str] | None = None
    routes: Sequence[str] | None = None
    harness: str | None = None
    model: str | None = None
    terms: Terms = field(default_factory=Terms)
    approved: bool = False


@dataclass(frozen=True)
class Ceiling:
    """How far tools may go; beyond it, only the person may.

    Sizes and profiles are the settings' own, so they need none. `images` are patterns as of a
    shell; `ports` tells whether ports of boxes may be shown to the user.
    """

    network: Network = field(default_factory=Network)
    images: Sequence[str] = ("*",)
    keep_awake: bool = True
    ports: bool = True


@dataclass(frozen=True)
class Catalogue:
    """What the settings offer. `sizes` maps a size to cores and bytes of memory.

    `max_own_snapshots` is how many bytes the saved copies of one principal's boxes may hold.
    `reserved` has patterns of the principals that a route serves, where it does not serve all.
    """

    default: BoxSpec
    sizes: Mapping[str, tuple[float, int]]
    profiles: Mapping[str, Profile] = field(default_factory=dict[str, Profile])
    min_free_disk: int = 0
    ceiling: Ceiling = field(default_factory=Ceiling)
    routes: Sequence[str] = ()
    harnesses: Sequence[str] = ()
    max_own_snapshots: int | None = None
    reserved: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])

    def of(self, principal: str) -> Catalogue:
        """What this one may choose from: nobody hears of routes that are not for him."""

        def serves(route: str) -> bool:
            return any(fnmatchcase(principal, who) for who in self.reserved.get(route, ("*",)))

        return replace(self, routes=tuple(filter(serves, self.routes)))

    def spec(self, order: Order, saved: BoxSpec | None = None) -> BoxSpec:
        """What the ordered box is made from: the order over its snapshot over its profile.

        `saved` is how the snapshot's box was; its network is cut down to what the ceiling allows.
        Raises InvalidArgument, and BeyondCeiling unless the person approved.
        """
        if not order.approved and (beyond := self.beyond(order)):
            raise BeyondCeiling(beyond)
        for name, given in (("image", order.image), ("profile", order.profile)):
            if saved is not None and given is not None:
                raise InvalidArgument(name, "is settled by the snapshot: give one of the two")
        if order.image and not is_reference(order.image):
            raise InvalidArgument("image", f"is {order.image[:SHOWN]!r}: no image is called so")
        _demand_brevity(order)
        spec = self._profiled(order.profile) if saved is None else self.contained(saved)
        return replace(
            self._sized(spec, order.size),
            image=order.image or spec.image,
            env={**spec.env, **order.env},
            setup=spec.setup if order.setup is None else order.setup,
            network=wished(spec.network, order.network, order.allow),
            routes=self._routes(spec.routes, order.routes),
            harness=spec.harness if order.harness is None else self.harness(order.harness),
            model=spec.model if order.model is None else order.model,
        )

    def harness(self, name: str) -> str:
        """`name`, if it is one that there is; raises InvalidArgument."""
        if name not in self.harnesses:
            raise InvalidArgument("harness", f"is {name!r}: none of {', '.join(self.harnesses)}")
        return name

    def contained(self, spec: BoxSpec) -> BoxSpec:
        """`spec` with no more network than the ceiling allows, and root only if any box has it."""
        sudo = self.default.sudo or any(profile.sudo for profile in self.profiles.values())
        network = spec.network.within(self.ceiling.network)
        return replace(spec, network=network, sudo=spec.sudo and sudo)

    def beyond(self, order: Order) -> tuple[str, ...]:
        """What the order wants, by its own words, beyond the ceiling; raises InvalidArgument."""
        wanted = wished(self._profiled(order.profile).network, order.network, order.allow)
        asked = order.network is not None or order.allow is not None
        return (
            *(wanted.beyond(self.ceiling.network) if asked else ()),
            *self._strange(order.image),
            *(("keep_awake",) if order.terms.keep_awake and not self.ceiling.keep_awake else ()),
        )

    def _strange(self, image: str | None) -> tuple[str, ...]:
        """The image that was named, unless it is one that may be; and those that may be."""
        free = tuple(dict.fromkeys((self.default.image, *self.ceiling.images)))
        if not image or image in free or any(fnmatchcase(image, one) for one in free):
            return ()
        more = ", ..." if free[SHOWN_IMAGES:] else ""
        return (f"image {image!r} (allowed: {', '.join(free[:SHOWN_IMAGES])}{more})",)

    def _profiled(self, name: str | None) -> BoxSpec:
        spec, profiles = self.default, self.profiles
        if name is None:
            return spec
        if name not in profiles:
            known = ", ".join(profiles) or "there are none in the settings"
            raise InvalidArgument("profile", f"is not known: {known}")
        profile = profiles[name]
        return replace(
            self._sized(spec, profile.size),
            image=profile.image or spec.image,
            env={**spec.env, **profile.env},
            setup=profile.setup or spec.setup,
            network=profile.network or spec.network,
            cwd=profile.cwd or spec.cwd,
            sudo=spec.sudo if profile.sudo is None else profile.sudo,
            routes=profile.routes,
            harness=profile.harness or spec.harness,
            model=profile.model or spec.model,
        )

    def _routes(
        self, had: tuple[str, ...] | None, wanted: Sequence[str] | None
    ) -> tuple[str, ...] | None:
        """Those that are wanted, of those that there are; raises InvalidArgument."""
        if wanted is None:
            return had
        known = self.routes if had is None else had
        for name in wanted:
            if name not in known:
                told = ", ".join(known) or "there are none"
                raise InvalidArgument(
                    "routes", f"has {name!r}, which is none of this box's: {told}"
                )
        return tuple(dict.fromkeys(wanted))

    def _sized(self, spec: BoxSpec, size: str | None) -> BoxSpec:
        if size is None:
            return spec
        if size not in self.sizes:
            raise InvalidArgument("size", f"is none of {', '.join(self.sizes)}")
        cpus, memory = self.sizes[size]
        return replace(spec, size=size, cpus=cpus, memory=memory)


def _demand_brevity(order: Order) -> None:
    """Raises InvalidArgument for texts that all servers would have to carry with the box."""
    env = sum(len(name) + len(value) for name, value in order.env.items())
    setup, model = len(order.setup or ""), len(order.model or "")
    for name, size, most in (
        ("env", env, MAX_TEXT),
        ("setup", setup, MAX_TEXT),
        ("model", model, MAX_MODEL),
    ):
        if size > most:
            told = f"has {size:,} characters, and may have {most:,}: put what is longer into a file"
            raise InvalidArgument(name, told)


def wished(now: Network, mode: str | None, allow: Sequence[str] | None) -> Network:
    """`now` with another mode or other rules; raises InvalidArgument.

    Rules alone mean the mode `allowlist`. A mode that rules are of no use in takes none.
    """
    if mode is None and allow is None:
        return now
    if mode is not None and mode not in set(Mode):
        raise InvalidArgument("network", f"is none of {', '.join(Mode)}")
    wanted = Mode(mode or Mode.ALLOWLIST)
    if wanted is not Mode.ALLOWLIST and allow:
        raise InvalidArgument("allow", f"has rules, which are of no use with {wanted.value!r}")
    if wanted is not Mode.ALLOWLIST:
        return Network(wanted)
    return Network(wanted, now.allow if allow is None else parse_rules(allow))


def is_reference(image: str) -> bool:
    """Whether `image` can be the name of an image: engines are asked by paths that have it."""
    return _REFERENCE.fullmatch(image) is not None and ".." not in image


def about_env(env: Mapping[str, str]) -> tuple[str, ...]:
    """Warnings about variables; raises InvalidArgument for those that can't be set."""
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            raise InvalidArgument("env", f"has {name!r}, which can't be a variable")
        if name in RESERVED:
            raise InvalidArgument(
                "env",
                f"has {name}, which decides what every command in the box is; set it for single "
                "commands, or in a file such as ~/.profile",
            )
    secret = [n for n, v in env.items() if SECRET_NAMES.search(n) or SECRET_VALUES.search(v)]
    if not secret:
        return ()
    warning = (
        f"{', '.join(secret)} looks like a secret: everything in the box can read it, and it stays "
        "in snapshots and forks. If it is one, delete the box, and revoke it if untrusted code ran"
    )
    return (warning,)
