"""Listeners to `box_mcp.events`, one file per sink."""
