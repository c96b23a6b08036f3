"""MCP words only: tools, their texts, and who is calling."""
