"""What models cost where the settings say nothing else; pure.

As published, in US dollars for a million tokens, and last looked up in November 2026. Anthropic:
platform.claude.com/docs/en/about-claude/pricing, Fable 5.2 by what others say of it. OpenAI:
developers.openai.com/api/docs/pricing and openai.com/api-priority-processing. A model that is not
here has no price: nothing is guessed from its name.
"""

from __future__ import annotations

from collections.abc import Sequence

from box_mcp.domain.models import Price, Prices

WRITE = 1.25  # what writing to a cache costs, by reading without one
LONG = 272_000  # tokens of a prompt; beyond, OpenAI's newer models cost more


def _named(name: str, price: Price) -> Sequence[tuple[str, Price]]:
    """By its name, and by that with a date."""
    return (name, price), (f"{name}-20[0-9][0-9]*", price), (f"{name}-latest", price)


def _plain(name: str, read: float, written: float, cached: float) -> Sequence[tuple[str, Price]]:
    return _named(name, Price(read, written, cached, read * WRITE))


def _long(name: str, read: float, written: float, cached: float) -> Sequence[tuple[str, Price]]:
    """All of an answer to a long prompt costs more."""
    beyond = Price(2 * read, 1.5 * written, 2 * cached, 2 * read * WRITE)
    return _named(name, Price(read, written, cached, read * WRITE, LONG, beyond))


_HAIKU = Price(0.5, 2.5, 0.05, 0.625)
_SONNET = Price(6, 22.5, 0.6, 7.5)

DEFAULT_PRICES = Prices(
    (
        *_plain("claude-fable-5-2", 8, 40, 0.2),
        *_plain("claude-fable-5-1", 10, 50, 0.25),
        *_plain("claude-fable-5", 10, 50, 1),
        *_plain("claude-mythos-5-1", 10, 50, 0.25),
        *_plain("claude-mythos-5", 10, 50, 1),
        *_plain("claude-opus-5-5", 4, 20, 0.2),
        *_plain("claude-opus-5-5-fast", 8, 40, 0.4),
        *_plain("claude-opus-5", 5, 25, 0.5),
        *_plain("claude-opus-5-fast", 10, 50, 1),
        *_plain("claude-opus-4-8", 5, 25, 0.5),
        *_plain("claude-opus-4-8-fast", 10, 50, 1),
        *_plain("claude-opus-4-7", 5, 25, 0.5),
        *_plain("claude-opus-4-7-fast", 30, 150, 3),
        *_plain("claude-opus-4-6", 5, 25, 0.5),
        *_plain("claude-opus-4-6-fast", 30, 150, 3),
        *_plain("claude-opus-4-5", 5, 25, 0.5),
        *_plain("claude-opus-4-1", 15, 75, 1.5),
        *_plain("claude-opus-4-0", 15, 75, 1.5),
        *_plain("claude-opus-4", 15, 75, 1.5),
        *_plain("claude-sonnet-5-5", 2, 10, 0.2),
        *_plain("claude-sonnet-5", 2, 10, 0.2),
        *_plain("claude-sonnet-4-6", 3, 15, 0.3),
        *_named("claude-sonnet-4-5", Price(3, 15, 0.3, 3.75, 200_000, _SONNET)),
        *_named("claude-sonnet-4-0", Price(3, 15, 0.3, 3.75, 200_000, _SONNET)),
        *_named("claude-sonnet-4", Price(3, 15, 0.3, 3.75, 200_000, _SONNET)),
        *_named("claude-haiku-5-5", Price(0.1, 0.5, 0.01, 0.125, 100_000, _HAIKU)),
        *_plain("claude-haiku-4-5", 1, 5, 0.1),
        *_plain("claude-3-5-haiku", 0.8, 4, 0.08),
        *_long("gpt-6.1-sol", 2, 10, 0.1),
        *_long("gpt-6-astra", 10, 50, 1),
        *_long("gpt-6-sol", 2, 10, 0.2),
        *_long("gpt-6-luna", 0.1, 0.5, 0.01),
        *_long("gpt-5.6-sol", 4, 20, 0.4),
        *_long("gpt-5.6-terra", 2, 12, 0.2),
        *_long("gpt-5.6-luna", 0.2, 1.2, 0.02),
        *_long("gpt-5.5", 5, 30, 0.5),
        *_plain("gpt-5.5-priority", 12.5, 75, 1.25),
        *_long("gpt-5.5-pro", 30, 180, 30),
        *_long("gpt-5.4", 2.5, 15, 0.25),
        *_plain("gpt-5.4-priority", 5, 30, 0.5),
        *_plain("gpt-5.4-mini", 0.75, 4.5, 0.075),
        *_plain("gpt-5.4-mini-priority", 1.5, 9, 0.15),
        *_plain("gpt-5.4-nano", 0.2, 1.25, 0.02),
        *_long("gpt-5.4-pro", 30, 180, 30),
        *_plain("gpt-5.3-codex", 1.75, 14, 0.175),
        *_plain("gpt-5.3-codex-priority", 3.5, 28, 0.35),
        *_plain("gpt-5.2-codex", 1.75, 14, 0.175),
        *_plain("gpt-5.2", 1.75, 14, 0.175),
        *_plain("gpt-5.1-codex-max", 1.25, 10, 0.125),
        *_plain("gpt-5.1-codex", 1.25, 10, 0.125),
        *_plain("gpt-5.1", 1.25, 10, 0.125),
        *_plain("gpt-5-codex", 1.25, 10, 0.125),
        *_plain("gpt-5", 1.25, 10, 0.125),
    )
)
"""Names that end in ``-fast`` and ``-priority`` are of answers that come faster for more."""
