"""The least that a server on the MCP SDK can be: what its own calls cost more is our doing."""

import sys

from mcp.server import MCPServer

server = MCPServer("echo", log_level="WARNING")


@server.tool(structured_output=False)
async def echo(text: str) -> str:
    """Returns what it is given."""
    return text


@server.tool(structured_output=False)
async def repeat(text: str, times: int) -> str:
    """Returns what it is given, so many times."""
    return text * times


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run("stdio")
