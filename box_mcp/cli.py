"""The command line. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from box_mcp import __version__
from box_mcp.errors import BoxError, first_error

if TYPE_CHECKING:
    from box_mcp.identity.tokens import Tokens
    from box_mcp.inventory import Leftover, Place
    from box_mcp.settings import Settings

T = TypeVar("T")

REPOSITORY = click.Path(exists=True, file_okay=False, path_type=Path)
DIFF_COLOURS = {"+": "green", "-": "red", "@": "cyan"}
DIRECTORY = click.Path(file_okay=False, path_type=Path)
TOKEN_DAYS = 90
STATE_DIR = "Another state directory; it may be gone."


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
@click.option(
    "--http",
    "listen",
    metavar="[LISTEN]",
    is_flag=False,
    flag_value="",
    help="Serve over HTTP instead, for many callers, at HOST:PORT, PORT or unix:PATH (default: as "
    "the settings say).",
)
@click.pass_obj
def serve(config: Path | None, session: str | None, listen: str | None) -> None:
    """Serve MCP over stdin and stdout; MCP clients start this."""
    if listen is not None and session is not None:
        raise click.UsageError("--session is for one client; over HTTP there are many")
    gc.disable()  # imports leave no garbage, and looking for it is a tenth of the start
    build_models_late()
    settings = load(config)
    if listen is not None:
        from box_mcp.httpd import serve_http

        run = partial(serve_http, settings, listen)
    else:
        from box_mcp.app import serve as serve_stdio

        run = partial(serve_stdio, settings, session)
    gc.freeze()
    gc.enable()
    run()


def build_models_late() -> None:
    """Has pydantic build what checks a model when that is first used.

    The SDK has some 550 models and needs few of them: to build all was an eighth of the start. A
    pydantic that does not know the second switch builds unions as before.
    """
    from pydantic import BaseModel, TypeAdapter

    BaseModel.model_config["defer_build"] = True
    TypeAdapter._defer_build = True  # noqa: SLF001  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]


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
@click.option("--json", "as_json", is_flag=True, help="Print it for programs.")
@click.option("--state-dir", type=DIRECTORY, help=STATE_DIR)
@click.pass_obj
def boxes(config: Path | None, as_json: bool, state_dir: Path | None) -> None:
    """List boxes, spares and snapshots, with the memory and disk that each holds now.

    Changes nothing. Without the engine, or without the store, it shows what the other one knows,
    says what to do, and exits with 1.
    """
    where = place(load(config), state_dir)
    from box_mcp import listing
    from box_mcp.inventory import take_stock

    async def show() -> bool:
        inventory = await take_stock(where)
        if as_json:
            click.echo(json.dumps(listing.as_json(inventory), indent=2))
        else:
            click.echo(listing.in_words(inventory))
            for trouble in inventory.troubles:
                click.echo(f"Error: {trouble.explain()}", err=True)
        return bool(inventory.troubles)

    sys.exit(1 if _run(show) else 0)


@main.command()
@click.option("--days", default=7, type=click.IntRange(min=1), help="How many, the newest first.")
@click.pass_obj
def usage(config: Path | None, days: int) -> None:
    """Show what models cost: a line for each day (UTC), caller and model."""
    settings = load(config)
    from box_mcp import listing
    from box_mcp.ledger import Ledger

    async def show() -> None:
        ledger = Ledger(settings.state_dir / "runs.db")
        try:
            known = await ledger.days()
            shown = sorted({day for _, day in known}, reverse=True)[:days]
            uses = [
                (principal, day, use)
                for principal, day in known
                if day in shown
                for use in await ledger.usage_of(principal, day)
            ]
        finally:
            await ledger.aclose()
        click.echo(listing.usage_in_words(uses))

    _run(show)


@main.command()
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.option("--dry-run", is_flag=True, help="Show only.")
@click.option("--state-dir", type=DIRECTORY, help=STATE_DIR)
@click.pass_obj
def prune(config: Path | None, yes: bool, dry_run: bool, state_dir: Path | None) -> None:
    """Delete what nobody needs any more, after asking.

    That is: containers and networks that bear box_mcp's label and this state directory's mark, but
    belong to no box that is known here; images of forks that are gone; records of lost boxes.
    Boxes, snapshots, whatever a server holds, and what bears no label of box_mcp are never touched.
    """
    where = place(load(config), state_dir)
    from box_mcp import listing
    from box_mcp.inventory import clean, take_stock

    async def sweep() -> None:
        inventory = await take_stock(where)
        for trouble in inventory.troubles:  # half the truth is not enough to delete by
            raise trouble
        for line in (*inventory.notes, *listing.strangers_in_words(inventory)):
            click.echo(line)
        left = inventory.leftovers
        if not left:
            return click.echo("There is nothing to delete.")
        click.echo(listing.leftovers_in_words(left))
        if dry_run or not (yes or click.confirm(f"Delete {'it' if len(left) == 1 else 'them'}?")):
            return click.echo("Nothing was deleted.")
        gone: list[Leftover] = []
        answers = clean(where, left)
        for leftover in left:
            if why_not := await anext(answers):
                click.echo(f"{leftover.kind} {leftover.name} stays: {why_not}")
            else:
                gone.append(leftover)
        await answers.aclose()
        click.echo(listing.freed(gone))

    _run(sweep)


@main.command()
@click.argument("name")
@click.option("--stat", is_flag=True, help="Only which files, and how much of each.")
@click.option("--repo", type=REPOSITORY, default=".", help="Your repository, if you are not in it.")
def diff(name: str, stat: bool, repo: Path) -> None:
    """Show what came home from the box NAME (branch box/NAME) and is not in your branch yet."""
    from box_mcp.capabilities.hostgit.take import difference

    found = _run(lambda: difference(repo, name, stat=stat))
    _warn(found.acting)
    if not found.text:
        click.echo(f"Your branch has all of {found.branch}.", err=True)
    for line in found.text.split("\n")[:-1]:
        colour = None if stat else DIFF_COLOURS.get(line[:1])
        click.echo(click.style(_visible(line), fg=colour) if colour else _visible(line))


@main.command()
@click.argument("name")
@click.option("--repo", type=REPOSITORY, default=".", help="Your repository, if you are not in it.")
@click.option("--yes", is_flag=True, help="Do not ask about files that act without being run.")
def merge(name: str, repo: Path, yes: bool) -> None:
    """Merge what came home from the box NAME (branch box/NAME) into the branch you are on.

    Wholly or not at all: where both sides changed the same, nothing is changed. Hooks and filters
    of git's are not run, since what is merged was written in a box.
    """
    from box_mcp.capabilities.hostgit.take import coming
    from box_mcp.capabilities.hostgit.take import merge as take

    brought = _run(lambda: coming(repo, name))
    _warn(brought.acting)
    if brought.acting and not yes:
        click.confirm("Merge all the same?", abort=True, err=True)
    merged = _run(lambda: take(repo, name, brought.commit))
    click.echo(f"Merged {merged.branch} into {merged.into}, now at {merged.commit}.")
    click.echo(merged.summary)
    if merged.unfiltered:
        click.echo(
            "git's filters were not run on these: `git lfs pull`, or `git checkout` of them once "
            f"they are deleted, does that: {', '.join(merged.unfiltered)}"
        )


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
def audit() -> None:
    """The record of what was called, and what boxes asked of others."""


@audit.command()
@click.option(
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The present file of an audit; those beside it are read, too. Default: this server's.",
)
@click.option("--head", default="", help="What an earlier verify told as its head: NUMBER:HASH.")
@click.pass_obj
def verify(config: Path | None, file: Path | None, head: str) -> None:
    """Look whether every line is there as it was written; say where not, and exit with 1.

    Each line bears the hash of the one before. Whoever owns the machine can write all of them anew:
    note the head that this tells elsewhere, and give it to a later verify.
    """
    from box_mcp.observe.verifying import verify as look

    path = file or load(config).audit
    try:
        verdict = look(path, head)
    except OSError as error:
        raise click.ClickException(f"The audit {path} can't be read: {error}") from None
    for line in (*verdict.notes, *(f"BROKEN {line}" for line in verdict.breaks)):
        click.echo(line)
    if verdict.left_out:
        click.echo(f"{verdict.left_out} more places are broken")
    whole = "whole" if not verdict.breaks else "broken"
    click.echo(f"{verdict.lines} lines in {len(verdict.files)} files: {whole}")
    if verdict.lines:
        click.echo(f"head {verdict.last}")
    sys.exit(1 if verdict.breaks else 0)


@main.group()
def image() -> None:
    """The image that boxes start from."""


@image.command()
@click.option(
    "--target",
    default="agent",
    type=click.Choice(("base", "agent")),
    help="agent (the default): with Claude Code and Codex. base: without.",
)
@click.option("--force", is_flag=True, help="Build even when nothing changed.")
@click.option(
    "--ca-certificates",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Bundle (PEM) of authorities to trust beside the usual ones.",
)
@click.pass_obj
def build(config: Path | None, target: str, force: bool, ca_certificates: Path | None) -> None:
    """Build the image box-mcp:TARGET; with `agent`, box-mcp:base as well, which it is made from."""
    settings = load(config)
    from box_mcp.engines.docker import connected
    from box_mcp.engines.images import BUILD_TIMEOUT, build_standard

    with connected("build an image", timeout=BUILD_TIMEOUT) as client:
        build_standard(
            client,
            target,
            versions=settings.versions(),
            ca_certificates=ca_certificates or settings.authorities(),
            force=force,
            report=click.echo,
        )


@main.group()
def token() -> None:
    """Tokens by which a server over HTTP knows who is calling."""


@token.command("create")
@click.argument("principal")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    default=("boxes",),
    help="What it is for: boxes (everything, the default), boxes:read, boxes:GROUP, "
    "boxes:GROUP:read, boxes:metrics; several times for several.",
)
@click.option(
    "--days", type=click.IntRange(1, 36500), help="How long it is good; 90 unless you say."
)
@click.option("--forever", is_flag=True, help="It is good until it is revoked.")
@click.pass_obj
def create_token(
    config: Path | None, principal: str, scopes: Sequence[str], days: int | None, forever: bool
) -> None:
    """Make a token for PRINCIPAL, whose boxes its bearer gets; print its text, and nothing else.

    Words about it go to stderr. The text is not kept, and can't be shown again.
    """
    if forever and days is not None:
        raise click.UsageError("--days and --forever exclude each other.")
    from box_mcp.domain.access import parse_principal, parse_scope
    from box_mcp.identity import showing

    who, allowed = parse_principal(principal), tuple(dict.fromkeys(map(parse_scope, scopes)))
    expires = None if forever else time.time() + (days or TOKEN_DAYS) * 86400
    made, text = _with_tokens(config, lambda tokens: tokens.create(who, allowed, expires))
    click.echo(showing.made(made), err=True)
    click.echo(text)


@token.command("revoke")
@click.argument("id")
@click.pass_obj
def revoke_token(config: Path | None, id: str) -> None:  # noqa: A002 - as it is called in the help
    """End the token ID, which servers refuse from now on. Its whole text will do, too."""
    name = id.removeprefix("bxm_").partition("_")[0]
    revoked = _with_tokens(config, lambda tokens: tokens.revoke(name))
    if revoked is None:
        raise click.ClickException("There is no such token; `box-mcp token list` shows all.")
    click.echo(f"Token {revoked.id} of {revoked.principal} is revoked.")


@token.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print it for programs.")
@click.pass_obj
def list_tokens(config: Path | None, as_json: bool) -> None:
    """List all tokens; those that are good no more for another 90 days."""
    from box_mcp.identity import showing

    tokens = _with_tokens(config, lambda tokens: tokens.list())
    if as_json:
        click.echo(json.dumps(showing.as_json(tokens, time.time()), indent=2))
    else:
        click.echo(showing.in_words(tokens, time.time()))


def load(config: Path | None) -> Settings:
    """The settings; what is wrong with them becomes one message."""
    import tomllib

    from pydantic import ValidationError

    from box_mcp import settings

    file = config or settings.config_path()
    try:
        return settings.load(config)
    except ValidationError as error:
        faults = [f"  {fault(e['loc'], e['msg'])}" for e in error.errors()]
        lines = [f"The settings ({file} and BOX_MCP_* variables) can't be used:", *faults]
        raise click.ClickException("\n".join(lines)) from None
    except (tomllib.TOMLDecodeError, OSError) as error:
        raise click.ClickException(f"The settings file {file} can't be read: {error}") from None


def fault(place: Sequence[str | int], said: str) -> str:
    """What pydantic says of a setting, with the setting's name if it is about one."""
    name = f"{'.'.join(map(str, place))}: " if place else ""
    return f"{name}{said.removeprefix('Value error, ')}"


def place(settings: Settings, state_dir: Path | None) -> Place:
    """Where the boxes are that a command is about: those of another state directory if named."""
    from box_mcp.inventory import Place

    if state_dir is not None:
        settings = settings.model_copy(update={"state_dir": state_dir})
    return Place(settings.state_dir, settings.isolation().owner, settings.policy())


def _with_tokens(config: Path | None, act: Callable[[Tokens], Awaitable[T]]) -> T:
    """What `act` makes of the tokens of this state directory."""
    settings = load(config)
    from box_mcp.identity.tokens import FILE, Tokens

    async def work() -> T:
        tokens = Tokens(settings.state_dir / FILE)
        try:
            return await act(tokens)
        finally:
            await tokens.aclose()

    return _run(work)


def _warn(acting: Sequence[str]) -> None:
    """Tells of files that came out of a box and act without being run."""
    if acting:
        click.secho("Look at these first, since they act without being run:", fg="yellow", err=True)
    for one in acting:
        click.echo(f"  {one}", err=True)


def _visible(text: str) -> str:
    """One line of what came out of a box, with what would control a terminal written out."""
    return "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in text)


def _run(main: Callable[[], Awaitable[T]]) -> T:
    """Runs `main`, and lets its first error out of the groups that tasks wrap it in."""
    import anyio

    try:
        return anyio.run(main)
    except BaseExceptionGroup as group:
        raise first_error(group) from None
