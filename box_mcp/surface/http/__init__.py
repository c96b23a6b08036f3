"""MCP over Streamable HTTP: who is let in, how much of it, and what answers."""
