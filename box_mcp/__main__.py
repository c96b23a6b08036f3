"""``python -m box_mcp`` is ``box-mcp``."""

from box_mcp.cli import main

main()
