"""What can be done in a box; no word of MCP or of Docker."""
