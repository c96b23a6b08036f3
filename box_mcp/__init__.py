"""box_mcp: an MCP server that gives every AI agent session its own Docker container."""

__version__ = "0.1.0"
