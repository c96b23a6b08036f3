"""All settings, read once: a TOML file, then ``BOX_MCP_*`` variables over it. Frozen afterwards.

`configs/local.toml` documents each; a test holds it to this module. Only `cli` and `app` read
settings: everything below is handed values.
"""

from __future__ import annotations

import os
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated

import platformdirs
from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from box_mcp.domain.box import BoxSpec
from box_mcp.domain.plan import Policy
from box_mcp.engines.isolation import Isolation

GIB = 1024**3
DEFAULT_IMAGE = "box-mcp:base"

Seconds = Annotated[float, Field(gt=0)]


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


class Settings(BaseSettings):
    """Every setting; times in seconds, None (``"off"`` is not a number) switches a step off."""

    model_config = SettingsConfigDict(
        env_prefix="BOX_MCP_", env_nested_delimiter="__", frozen=True, extra="forbid"
    )

    image: str = DEFAULT_IMAGE
    size: str = "medium"
    sizes: dict[str, Size] = Field(default_factory=_standard_sizes)
    env: dict[str, str] = Field(default_factory=dict)
    sudo: bool = True
    pids: int = Field(default=1024, ge=32)
    runtime: str | None = None
    subnets: IPv4Network = IPv4Network("10.213.0.0/16")
    ca_certificates: Path | None = None

    pause_after: Seconds | None = 300
    stop_after: Seconds | None = 3600
    delete_after: Seconds | None = 7 * 86400
    job_awake_max: Seconds = 3600
    orphan_after: Seconds = 600
    warm: int = Field(default=1, ge=0, le=16)
    max_boxes: int = Field(default=50, ge=1)

    max_output: int = Field(default=12_000, ge=500, le=100_000)
    timeout: Seconds = 600
    yield_after: Seconds = 45

    state_dir: Path = Field(
        default_factory=lambda: platformdirs.user_state_path("box_mcp", appauthor=False)
    )
    log_level: str = "INFO"

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

    def spec(self) -> BoxSpec:
        """What a box is made from when nothing else is asked for."""
        size = self.sizes[self.size]
        return BoxSpec(
            image=self.image,
            size=self.size,
            cpus=size.cpus,
            memory=int(size.memory * GIB),
            pids=self.pids,
            env=self.env,
            sudo=self.sudo,
            orphan_after=self.orphan_after,
        )

    def policy(self) -> Policy:
        """What the pool plans by."""
        return Policy(
            pause_after=self.pause_after,
            stop_after=self.stop_after,
            delete_after=self.delete_after,
            job_awake_max=self.job_awake_max,
            warm=self.warm,
            max_boxes=self.max_boxes,
        )

    def isolation(self) -> Isolation:
        """What holds for all boxes."""
        return Isolation(runtime=self.runtime, subnets=self.subnets)


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
