"""The command line: serve, doctor, boxes, demo, image build, prune. With `demo`, all that prints."""

from __future__ import annotations

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


if __name__ == "__main__":
    main()
