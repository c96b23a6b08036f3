"""The command line: serve, and image build."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def main() -> None:
    """box_mcp: a box (its own Docker container) for every AI agent session, over MCP."""


@main.command()
@click.option(
    "--session", help="Name of the conversation, where the client gives none (Claude Desktop)."
)
def serve(session: str | None) -> None:
    """Serve MCP over stdin and stdout."""
    from box_mcp import app, settings

    app.serve(settings.load(), session)


@main.group()
def image() -> None:
    """The image that boxes start from."""


@image.command()
@click.option("--target", default="base", type=click.Choice(["base", "agent"]))
@click.option("--force", is_flag=True, help="Build even when nothing changed.")
@click.option("--ca-certificates", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def build(target: str, force: bool, ca_certificates: Path | None) -> None:
    """Build the image box-mcp:TARGET."""
    import docker

    from box_mcp import settings
    from box_mcp.engines.images import build_image

    bundle = ca_certificates or settings.load().ca_certificates
    client = docker.from_env(timeout=600)
    tag = f"box-mcp:{target}"
    build_image(
        client, target=target, tag=tag, ca_certificates=bundle, force=force, report=click.echo
    )


if __name__ == "__main__":
    main()
