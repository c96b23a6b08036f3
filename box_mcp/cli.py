"""The command line. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from box_mcp import __version__
from box_mcp.errors import BoxError, first_error

if TYPE_CHECKING:
    from box_mcp.settings import Settings

TARGETS = ("base", "agent")


class Program(click.Group):
    """A group whose commands end with one clear message where something is to be mended."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; our own errors become a message on stderr and exit code 1."""
        try:
            return super().invoke(ctx)
        except BoxError as error:
            raise click.ClickException(error.explain()) from None


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="box-mcp")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Settings file (TOML), instead of BOX_MCP_CONFIG or the user's own.",
)
@click.pass_context
def main(ctx: click.Context, config: Path | None) -> None:
    """A box (its own Docker container) for every AI agent session, over MCP."""
    ctx.obj = config


@main.command()
@click.option(
    "--session", help="Name of the conversation, where the client gives none (Claude Desktop)."
)
@click.pass_obj
def serve(config: Path | None, session: str | None) -> None:
    """Serve MCP over stdin and stdout; MCP clients start this."""
    gc.disable()  # imports leave no garbage, and looking for it is a tenth of the start
    settings = load(config)
    from box_mcp import app

    gc.freeze()
    gc.enable()
    app.serve(settings, session)


@main.command()
@click.pass_obj
def doctor(config: Path | None) -> None:
    """Look whether everything is there that boxes need; say what to do where it is not."""
    settings = load(config)
    from box_mcp.doctor import Verdict, examine

    marks = {Verdict.OK: ("ok", "green"), Verdict.WARNING: ("warning", "yellow")}
    failed = False

    async def look() -> None:
        nonlocal failed
        async for finding in examine(settings):
            failed = failed or finding.verdict is Verdict.FAILURE
            mark, colour = marks.get(finding.verdict, ("FAILURE", "red"))
            click.echo(f"{click.style(f'{mark:8}', fg=colour)} {finding.subject}: {finding.detail}")
            if finding.remedy:
                click.echo(f"         -> {finding.remedy}")

    _run(look)
    sys.exit(1 if failed else 0)


@main.command()
@click.pass_obj
def boxes(config: Path | None) -> None:
    """List the boxes of this machine's servers."""
    settings = load(config)
    from box_mcp import app
    from box_mcp.domain.names import LOCAL
    from box_mcp.lifecycle import Caller

    async def show() -> None:
        async with app.backend(settings, guest=True) as running:
            reports = await running.lifecycle.list(Caller(LOCAL, ""))
        rows = [("ID", "NAME", "STATE", "SIZE", "IMAGE", "CREATED", "USED")]
        for box in (report.box for report in reports):
            times = (_moment(box.created), _moment(box.used))
            rows.append((box.id, box.name or "-", box.state, box.spec.size, box.spec.image, *times))
        click.echo(_table(rows) if len(rows) > 1 else "There are no boxes.")

    _run(show)


@main.command()
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.pass_obj
def prune(config: Path | None, yes: bool) -> None:
    """Delete what dead servers left behind: boxes that are nobody's, records of lost ones."""
    settings = load(config)
    from box_mcp import app

    async def sweep() -> None:
        async with app.backend(settings, guest=True) as running:
            left = await running.lifecycle.leftovers()
            for box, why in left.items():
                click.echo(f"{box}: {why}")
            if not left:
                click.echo("There is nothing to delete.")
            elif yes or click.confirm(f"Delete {'it' if len(left) == 1 else 'all of them'}?"):
                for box in left:
                    await running.lifecycle.clear(box)
                click.echo(f"Deleted {len(left)}.")

    _run(sweep)


@main.command()
def demo() -> None:
    """Show a box at work: a real client, the real server, real Docker; about ten seconds."""
    from box_mcp.demo import DemoFailed
    from box_mcp.demo import demo as walk

    try:
        _run(walk)
    except DemoFailed as error:
        raise click.ClickException(f"{error}\n`box-mcp doctor` says what is missing.") from None


@main.group()
def image() -> None:
    """The image that boxes start from."""


@image.command()
@click.option("--target", default="base", type=click.Choice(TARGETS))
@click.option("--force", is_flag=True, help="Build even when nothing changed.")
@click.option(
    "--ca-certificates",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Bundle (PEM) of authorities to trust beside the usual ones.",
)
@click.pass_obj
def build(config: Path | None, target: str, force: bool, ca_certificates: Path | None) -> None:
    """Build the image box-mcp:TARGET."""
    bundle = ca_certificates or load(config).authorities()
    from box_mcp.engines.docker import connected
    from box_mcp.engines.images import BUILD_TIMEOUT, build_image

    tag = f"box-mcp:{target}"
    with connected("build an image", timeout=BUILD_TIMEOUT) as client:
        build_image(
            client, target=target, tag=tag, ca_certificates=bundle, force=force, report=click.echo
        )


def load(config: Path | None) -> Settings:
    """The settings; what is wrong with them becomes one message."""
    import tomllib

    from pydantic import ValidationError

    from box_mcp import settings

    file = config or settings.config_path()
    try:
        return settings.load(config)
    except ValidationError as error:
        faults = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        lines = [f"The settings ({file} and BOX_MCP_* variables) can't be used:", *faults]
        raise click.ClickException("\n".join(lines)) from None
    except (tomllib.TOMLDecodeError, OSError) as error:
        raise click.ClickException(f"The settings file {file} can't be read: {error}") from None


def _run(main: Callable[[], Any]) -> None:
    """Runs `main`, and lets its first error out of the groups that tasks wrap it in."""
    import anyio

    try:
        anyio.run(main)
    except BaseExceptionGroup as group:
        raise first_error(group) from None


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
