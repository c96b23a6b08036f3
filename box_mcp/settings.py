"""All settings, read once: a TOML file, then ``BOX_MCP_*`` variables over it. Frozen afterwards.

`configs/local.toml` documents each; a test holds it to this module. Only `cli` and `app` read
settings: everything below is handed values.
"""

from __future__ import annotations

import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal, Self, overload

import platformdirs
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from box_mcp.domain.access import Group, parse_scope
from box_mcp.domain.box import BoxSpec
from box_mcp.domain.catalogue import Catalogue, Ceiling, Profile, wished
from box_mcp.domain.disk import Bounds
from box_mcp.domain.issuers import Issuer, parse_endpoint
from box_mcp.domain.limits import Room
from box_mcp.domain.models import KEY_VARIABLES, Dialect, ModelRoute, Price, Prices
from box_mcp.domain.names import LOCAL
from box_mcp.domain.network import ALL_PORTS, Mode, Network, Rule, parse_rules
from box_mcp.domain.plan import Policy
from box_mcp.domain.prices import DEFAULT_PRICES, WRITE
from box_mcp.domain.routes import (
    FORGES,
    Access,
    Credential,
    Forge,
    Route,
    api_of,
    demand_privacy,
    parse_pattern,
    parse_route_name,
    parse_upstream,
)
from box_mcp.engines.isolation import Isolation
from box_mcp.engines.marks import mark_of
from box_mcp.errors import InvalidArgument

GIB = 1024**3
BUILT_IN = ("claude_code", "codex")
"""The harnesses that every server knows."""

DEFAULT_IMAGE = "box-mcp:agent"
CLAUDE_CODE_VERSION = "2.1.330"
CODEX_VERSION = "0.169.0"
AUTHORITY_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
"""Where HTTPS goes through an inspecting proxy, these name a bundle, and boxes need it too."""

Seconds = Annotated[float, Field(gt=0)]

Version = Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+[0-9A-Za-z.+-]*$")]
"""One release of a package, not a word such as "latest" for whichever it is today."""


@overload
def _bytes(gib: float) -> int: ...
@overload
def _bytes(gib: float | None) -> int | None: ...
def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * GIB)


def _none_for_off(value: object) -> object:
    return None if value == "off" else value


UserPath = Annotated[Path, AfterValidator(Path.expanduser)]

Count = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_none_for_off)]
"""A limit, or "off"."""

Amount = Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(_none_for_off)]
"""A limit in GiB or US dollars, or "off"."""

Step = Annotated[Seconds | None, BeforeValidator(_none_for_off)]
"""Seconds, or "off" (None here): TOML and variables have no other word for nothing."""


class Size(BaseModel):
    """Cores and GiB of memory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: float = Field(gt=0)
    memory: float = Field(gt=0)


def _standard_sizes() -> dict[str, Size]:
    return {
        "small": Size(cpus=1, memory=1),
        "medium": Size(cpus=2, memory=4),
        "large": Size(cpus=4, memory=8),
    }


class ProfileSettings(BaseModel):
    """A named template for boxes; what is left out is as for any box."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str | None = None
    size: str | None = None
    env: dict[str, str] = Field(default_factory=dict)
    setup: str | None = None
    network: Mode | None = None
    allow: list[str] | None = None
    cwd: str | None = None
    sudo: bool | None = None
    routes: list[str] | None = None
    harness: str | None = None
    model: str | None = None


class CredentialSettings(BaseModel):
    """Where a route's secret comes from: exactly one of variable, file, command and helper."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variable: str = ""
    file: UserPath | None = None
    command: list[str] = Field(default_factory=list)
    helper: bool = False
    user: str = "x-access-token"

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [bool(one) for one in (self.variable, self.file, self.command, self.helper)]
        if sum(given) != 1:
            raise ValueError("a credential has exactly one of variable, file, command and helper")
        return self

    def credential(self) -> Credential:
        """As the gateway takes it."""
        return Credential(
            self.variable,
            "" if self.file is None else str(self.file),
            tuple(self.command),
            self.helper,
            self.user,
        )


class RouteSettings(BaseModel):
    """A server that boxes reach with a credential which they do not have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    upstream: str
    credential: CredentialSettings
    repositories: list[str] = Field(default_factory=lambda: ["*"], min_length=1)
    access: Access = Access.READ
    principals: list[str] = Field(default_factory=lambda: ["*"])
    forge: Forge | None = None
    api: str = ""

    @model_validator(mode="after")
    def _is_a_route(self) -> Self:
        try:
            self.route("any")
        except InvalidArgument as error:
            raise ValueError(str(error)) from None
        return self

    def route(self, name: str) -> Route:
        """As the gateway takes it; raises InvalidArgument."""
        upstream = parse_upstream(self.upstream)
        demand_privacy(upstream)
        if self.api:
            demand_privacy(parse_upstream(self.api, "api"), "api")
        forge = self.forge or FORGES.get(upstream.host)
        return Route(
            name=parse_route_name(name),
            upstream=upstream,
            credential=self.credential.credential(),
            repositories=tuple(map(parse_pattern, self.repositories)),
            access=self.access,
            principals=tuple(self.principals),
            forge=forge,
            api=self.api or api_of(forge, upstream),
        )


UPSTREAMS = {
    Dialect.ANTHROPIC: "https://api.anthropic.com",
    Dialect.OPENAI: "https://api.openai.com/v1",
}
"""Whose dialect it is, unless the settings name another server."""


class ModelSettings(BaseModel):
    """A server of models that boxes reach with a key which they do not have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    api: Dialect
    upstream: str = ""
    credential: CredentialSettings
    bearer: bool = False
    models: list[str] = Field(default_factory=lambda: ["*"], min_length=1)
    principals: list[str] = Field(default_factory=lambda: ["*"])

    @model_validator(mode="after")
    def _is_a_route(self) -> Self:
        try:
            self.route("any")
        except InvalidArgument as error:
            raise ValueError(str(error)) from None
        return self

    def route(self, name: str) -> ModelRoute:
        """As the gateway takes it; raises InvalidArgument."""
        address = self.upstream or UPSTREAMS.get(self.api)
        if not address:
            raise InvalidArgument("upstream", f"is needed for {self.api.value}")
        upstream = parse_upstream(address)
        demand_privacy(upstream)
        return ModelRoute(
            name=parse_route_name(name),
            dialect=self.api,
            upstream=upstream,
            credential=self.credential.credential(),
            models=tuple(self.models),
            principals=tuple(self.principals),
            bearer=self.bearer,
        )


Models = Annotated[dict[str, ModelSettings] | None, BeforeValidator(_none_for_off)]
"""Empty for those that there are keys for in the environment, None ("off") for none at all."""


def _usual_models() -> dict[str, ModelSettings]:
    """Those for which there is a key in the environment: whoever started the server has them."""

    def model(dialect: Dialect, variable: str) -> ModelSettings:
        key = CredentialSettings(variable=variable)
        return ModelSettings(api=dialect, credential=key, principals=[LOCAL])

    return {
        dialect.value: model(dialect, variable)
        for dialect, variable in KEY_VARIABLES.items()
        if os.environ.get(variable)
    }


class PriceSettings(BaseModel):
    """US dollars for a million tokens; `price` says what caches cost unless it is said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cache_read: float | None = Field(default=None, ge=0)
    cache_write: float | None = Field(default=None, ge=0)

    def price(self) -> Price:
        """As the gateway takes it; caches never cost less than is usual."""
        read = self.input if self.cache_read is None else self.cache_read
        write = self.input * WRITE if self.cache_write is None else self.cache_write
        return Price(self.input, self.output, read, write)


class HarnessSettings(BaseModel):
    """A coding agent of the user's own; docs/agents.md says what it must print."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: list[str] = Field(min_length=1)
    api: Dialect | None = None


class HttpSettings(BaseModel):
    """How clients are served over HTTP."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: str = "127.0.0.1:8765"
    url: str = ""
    hosts: list[str] = Field(default_factory=list)
    origins: list[str] = Field(default_factory=list)
    auth: Literal["token", "none"] = "token"
    tls_certificate: UserPath | None = None
    tls_key: UserPath | None = None
    trusted_proxies: list[IPv4Network | IPv6Network] = Field(default_factory=list)
    max_body: float = Field(default=16, gt=0)
    requests_per_minute: Count = 1200
    refusals_per_minute: Count = 60
    drain: Seconds = 60
    metrics: str = ""
    ports_domain: str = Field(default="", pattern=r"^(?:[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*)?$")


class OAuthSettings(BaseModel):
    """Whose tokens are believed beside our own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: str
    audience: str = ""
    jwks_url: str = ""
    introspection_url: str = ""
    client_id: str = ""
    client_secret: CredentialSettings | None = None
    principal_claim: str = Field(default="sub", min_length=1)
    scopes: dict[str, list[str]] = Field(default_factory=dict)
    default_scopes: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _is_an_issuer(self) -> Self:
        if self.introspection_url and not (self.client_id and self.client_secret):
            raise ValueError("introspection_url needs client_id and client_secret")
        if self.introspection_url and self.jwks_url:
            raise ValueError("tokens are judged by introspection_url or by jwks_url, not by both")
        try:
            self.described("")
        except InvalidArgument as error:
            raise ValueError(str(error)) from None
        return self

    def described(self, resource: str) -> Issuer:
        """As identity takes it; `resource` is the URL that clients know this server by.

        Raises InvalidArgument.
        """
        secret = self.client_secret and self.client_secret.credential()
        return Issuer(
            url=parse_endpoint(self.issuer, "issuer", query=False),
            audience=self.audience or resource,
            jwks=self.jwks_url and parse_endpoint(self.jwks_url, "jwks_url"),
            introspection=self.introspection_url
            and parse_endpoint(self.introspection_url, "introspection_url"),
            client=self.client_id,
            secret=secret,
            subject=self.principal_claim,
            scopes={name: tuple(map(parse_scope, ours)) for name, ours in self.scopes.items()},
            always=tuple(map(parse_scope, self.default_scopes)),
        )


class CeilingSettings(BaseModel):
    """How far tools may go by themselves; what is left out is as for any box."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: Mode | None = None
    allow: list[str] | None = None
    images: list[str] | None = None
    keep_awake: bool = True
    ports: bool = True


class Settings(BaseSettings):
    """Every setting; times in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="BOX_MCP_", env_nested_delimiter="__", frozen=True, extra="forbid"
    )

    image: str = DEFAULT_IMAGE
    claude_code_version: Version = CLAUDE_CODE_VERSION
    codex_version: Version = CODEX_VERSION
    size: str = "medium"
    sizes: dict[str, Size] = Field(default_factory=_standard_sizes)
    env: dict[str, str] = Field(default_factory=dict)
    setup: str = ""
    network: Mode = Mode.FULL
    allow: list[str] = Field(default_factory=list)
    cwd: str = ""
    profiles: dict[str, ProfileSettings] = Field(default_factory=dict)
    sudo: bool = True
    pids: int = Field(default=1024, ge=32)
    runtime: str | None = None
    subnets: IPv4Network = IPv4Network("10.213.0.0/16")
    allow_cidrs: list[IPv4Network] = Field(default_factory=list)
    require_guard: bool = True
    ceiling: CeilingSettings = Field(default_factory=CeilingSettings)
    routes: dict[str, RouteSettings] = Field(default_factory=dict)
    git_name: str = ""
    git_email: str = ""
    models: Models = Field(default_factory=dict[str, ModelSettings])
    prices: dict[str, PriceSettings] = Field(default_factory=dict)
    harness: str = "claude_code"
    model: str = ""
    harnesses: dict[str, HarnessSettings] = Field(default_factory=dict)
    agent_timeout: Seconds = 3600
    max_cost: Amount = None
    max_cost_per_day: Amount = None
    ca_certificates: UserPath | None = None

    pause_after: Step = 300
    stop_after: Step = 3600
    delete_after: Step = 7 * 86400
    job_awake_max: Seconds = 3600
    orphan_after: Seconds = 600
    warm_min: int = Field(default=1, ge=0, le=16)
    warm_max: int = Field(default=3, ge=0, le=16)

    max_boxes: int = Field(default=50, ge=1)
    max_own_boxes: Count = None
    max_running: Count = None
    max_own_running: Count = None
    max_memory: Amount = None
    max_own_memory: Amount = None
    queue_timeout: Seconds = 30
    min_free_disk: float = Field(default=2, ge=0)
    box_disk: Amount = 20

    max_output: int = Field(default=12_000, ge=500, le=100_000)
    timeout: Seconds = 600
    yield_after: Seconds = 45

    host_roots: list[UserPath] = Field(default_factory=list)

    toolsets: list[Group] = Field(default_factory=lambda: list(Group), min_length=1)
    read_only: bool = False
    max_own_snapshots: Amount = None
    calls_per_minute: Count = None
    http: HttpSettings = Field(default_factory=HttpSettings)
    oauth: OAuthSettings | None = None
    tracing: Literal["off", "otlp"] = "off"
    log_format: Literal["text", "json"] = "text"
    audit_size: float = Field(default=16, gt=0)
    audit_files: int = Field(default=8, ge=2)

    state_dir: UserPath = Field(
        default_factory=lambda: platformdirs.user_state_path("box_mcp", appauthor=False)
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then variables, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.size not in self.sizes:
            raise ValueError(f"size is {self.size!r}, which is none of {', '.join(self.sizes)}")
        for name, profile in self.profiles.items():
            if profile.size is not None and profile.size not in self.sizes:
                known = ", ".join(self.sizes)
                raise ValueError(f"the size of profile {name} is {profile.size!r}: none of {known}")
            if unknown := set(profile.routes or ()) - self.routes.keys():
                raise ValueError(f"profile {name} has routes that there are not: {unknown}")
        if taken := self.harnesses.keys() & set(BUILT_IN):
            raise ValueError(f"harnesses has {', '.join(taken)}, which is there already")
        try:
            catalogue = self.catalogue()
            for profile in (self, *self.profiles.values()):
                catalogue.harness(profile.harness or self.harness)
            self.credential_routes()
            self.model_routes()
        except InvalidArgument as error:
            raise ValueError(str(error)) from None
        if beyond := catalogue.default.network.beyond(catalogue.ceiling.network):
            raise ValueError(f"the ceiling is lower than what any box has: {', '.join(beyond)}")
        return self

    def spec(self) -> BoxSpec:
        """What a box is made from when nothing else is asked for."""
        size = self.sizes[self.size]
        return BoxSpec(
            image=self.image,
            size=self.size,
            cpus=size.cpus,
            memory=_bytes(size.memory),
            pids=self.pids,
            env=self.env,
            sudo=self.sudo,
            orphan_after=self.orphan_after,
            setup=self.setup,
            network=Network(self.network, parse_rules(self.allow)),
            cwd=self.cwd,
            harness=self.harness,
            model=self.model,
        )

    def versions(self) -> dict[str, str]:
        """The release of each harness that the standard image has, and that boxes without get."""
        return {"claude_code": self.claude_code_version, "codex": self.codex_version}

    def catalogue(self, *, shared: bool = False) -> Catalogue:
        """What callers may choose from; `shared` by others than whoever started the server."""
        sizes = {name: (size.cpus, _bytes(size.memory)) for name, size in self.sizes.items()}
        profiles = {name: self._profile(profile) for name, profile in self.profiles.items()}
        return Catalogue(
            self.spec(),
            sizes,
            profiles,
            _bytes(self.min_free_disk),
            self._ceiling(shared=shared),
            tuple(self.routes),
            (*BUILT_IN, *self.harnesses),
            _bytes(self.max_own_snapshots),
            {name: tuple(route.principals) for name, route in self.routes.items()},
        )

    def model_routes(self) -> tuple[ModelRoute, ...]:
        """The ways to models, in the order of the settings; raises InvalidArgument."""
        models = _usual_models() if self.models == {} else self.models or {}
        return tuple(model.route(name) for name, model in models.items())

    def model_prices(self) -> Prices:
        """What models cost, as far as that is known; the settings' own prices first."""
        own = [(pattern, price.price()) for pattern, price in self.prices.items()]
        return Prices([*own, *DEFAULT_PRICES.patterns])

    def credential_routes(self) -> tuple[Route, ...]:
        """The routes, in the order of the settings; raises InvalidArgument."""
        return tuple(route.route(name) for name, route in self.routes.items())

    def _profile(self, profile: ProfileSettings) -> Profile:
        network = wished(self.spec().network, profile.network, profile.allow)
        return Profile(
            image=profile.image,
            size=profile.size,
            env=profile.env,
            setup=profile.setup,
            network=network,
            cwd=profile.cwd,
            sudo=profile.sudo,
            routes=None if profile.routes is None else tuple(profile.routes),
            harness=profile.harness,
            model=profile.model,
        )

    def _ceiling(self, *, shared: bool) -> Ceiling:
        """Tools may always do what is done when nothing is asked for.

        Others' tools may not have whatever image the engine has: some are not for them.
        """
        ceiling = self.ceiling
        allow = self.allow if ceiling.allow is None else [*self.allow, *ceiling.allow]
        network = Network(
            self.network if ceiling.network is None else ceiling.network,
            (*parse_rules(allow), *(Rule(cidr, ALL_PORTS) for cidr in self.allow_cidrs)),
        )
        of_profiles = [profile.image for profile in self.profiles.values() if profile.image]
        images = ceiling.images
        if images is None:
            images = of_profiles if shared else ["*"]
        return Ceiling(network, tuple(images), ceiling.keep_awake, ceiling.ports)

    def policy(self) -> Policy:
        """What the pool plans by."""
        return Policy(
            pause_after=self.pause_after,
            stop_after=self.stop_after,
            delete_after=self.delete_after,
            orphan_after=self.orphan_after,
            job_awake_max=self.job_awake_max,
            warm_min=min(self.warm_min, self.warm_max),
            warm_max=self.warm_max,
            room=Room(
                boxes=self.max_boxes,
                awake=self.max_running,
                memory=_bytes(self.max_memory),
                own_boxes=self.max_own_boxes,
                own_awake=self.max_own_running,
                own_memory=_bytes(self.max_own_memory),
            ),
            queue_timeout=self.queue_timeout,
        )

    def authorities(self) -> Path | None:
        """The bundle that images are built with: the setting, else what this machine trusts."""
        named = (os.environ.get(variable) for variable in AUTHORITY_VARIABLES)
        return self.ca_certificates or next((Path(path) for path in named if path), None)

    @property
    def audit(self) -> Path:
        """Where it is written who did what; see `observe.audit`."""
        return self.state_dir / "audit.jsonl"

    def disk(self) -> Bounds:
        """How much boxes may write."""
        return Bounds(_bytes(self.box_disk), _bytes(self.min_free_disk))

    def isolation(self) -> Isolation:
        """What holds for all boxes; raises StoreUnusable."""
        return Isolation(
            runtime=self.runtime,
            subnets=self.subnets,
            owner=mark_of(self.state_dir),
            allow_cidrs=tuple(self.allow_cidrs),
            require_guard=self.require_guard,
            ca_certificates=self.ca_certificates,
            disk=_bytes(self.box_disk),
        )


def config_path() -> Path:
    """Where the settings file is: ``BOX_MCP_CONFIG``, else the user's configuration directory."""
    named = os.environ.get("BOX_MCP_CONFIG")
    return (
        Path(named)
        if named
        else platformdirs.user_config_path("box_mcp", appauthor=False) / "config.toml"
    )


def load(path: Path | None = None) -> Settings:
    """The settings; `path` is a TOML file that must exist, by default `config_path()` if it does.

    Raises pydantic.ValidationError, tomllib.TOMLDecodeError and OSError.
    """
    file = path or config_path()
    if path is not None or "BOX_MCP_CONFIG" in os.environ:
        file.open("rb").close()

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    return FromFile()
