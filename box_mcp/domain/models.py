"""Models: what boxes may ask of them with the host's keys, and what that costs; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from box_mcp.domain.routes import Credential, Upstream

MODELS_PORT = 3130
"""Where a box reaches models, on its own loopback: ``http://127.0.0.1:3130/<name>``."""

KEYLESS = "box-mcp"
"""What stands where a key would, in requests that belong to no run."""

PER = 1_000_000  # tokens that a price is for


class Dialect(StrEnum):
    """How one talks to a model's server."""

    ANTHROPIC = "anthropic"
    OPENAI = "openai"
    VERTEX = "vertex"
    BEDROCK = "bedrock"


KEY_VARIABLES = {
    Dialect.ANTHROPIC: "ANTHROPIC_API_KEY",
    Dialect.OPENAI: "OPENAI_API_KEY",
}
"""Where programs look for a key; also the server, when the settings say nothing of models."""


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens: read, written, read from the cache, and written to it.

    Where a prompt has more tokens than `up_to`, all of that answer costs as `beyond` says.
    """

    input: float
    output: float
    cache_read: float
    cache_write: float
    up_to: int = 0
    beyond: Price | None = None

    def at(self, prompt: int) -> Price:
        """What holds for a prompt of so many tokens."""
        return self.beyond if self.beyond is not None and prompt > self.up_to else self


@dataclass(frozen=True)
class Tokens:
    """Counts of tokens; `input` are those that the cache had no part in."""

    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(
            self.input + other.input,
            self.cache_read + other.cache_read,
            self.cache_write + other.cache_write,
            self.output + other.output,
        )

    @property
    def prompt(self) -> int:
        """How many a model was given."""
        return self.input + self.cache_read + self.cache_write

    def cost(self, price: Price) -> float:
        """In US dollars."""
        price = price.at(self.prompt)
        return (
            self.input * price.input
            + self.cache_read * price.cache_read
            + self.cache_write * price.cache_write
            + self.output * price.output
        ) / PER


@dataclass(frozen=True)
class Prices:
    """What models cost: patterns as a shell's, the first that fits counts."""

    patterns: Sequence[tuple[str, Price]] = ()

    def of(self, model: str) -> Price | None:
        """None where nobody knows: nothing is guessed."""
        return next(
            (price for pattern, price in self.patterns if fnmatchcase(model, pattern)), None
        )


@dataclass(frozen=True)
class ModelRoute:
    """A way to the models of one server with a key of the host's.

    What a box asks below the route's name is asked below `upstream`'s path. `models` and
    `principals` are patterns as a shell's. With `bearer` the credential goes as ``Authorization:
    Bearer`` where its dialect has another way, too.
    """

    name: str
    dialect: Dialect
    upstream: Upstream
    credential: Credential
    models: tuple[str, ...] = ("*",)
    principals: tuple[str, ...] = ("*",)
    bearer: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.dialect}, {', '.join(self.models)} at {self.upstream}"

    @property
    def base_url(self) -> str:
        """Where a box has it."""
        return f"http://127.0.0.1:{MODELS_PORT}/{self.name}"

    def serves(self, principal: str) -> bool:
        """Whether this principal's boxes may use it."""
        return any(fnmatchcase(principal, pattern) for pattern in self.principals)

    def offers(self, model: str) -> bool:
        """Whether boxes may have this model; an empty name is a program's own choice."""
        return not model or any(fnmatchcase(model, pattern) for pattern in self.models)
