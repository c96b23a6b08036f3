"""Runs a benchmark by its name: ``python -m benchmarks calls --rounds 50``."""

from __future__ import annotations

import signal
import sys
from importlib import import_module

BENCHMARKS = {
    "calls": "the cost of single calls, from the client's side",
    "lifecycle": "the cost of waking, making and saving boxes",
    "density": "what many frozen boxes cost",
    "shell": "many callers, streams, floods: what commands cost when they are not alone",
    "files": "what files cost: read, written, edited, searched, moved in and out",
    "git": "what git costs: cloned by a credential route, asked and told by tools",
    "agent": "how soon a coding agent in a box says something, run by a tool and by hand",
    "neighbours": "what a box feels of another that takes all it can get",
    "network": "what tunnels, the proxy, and networks of boxes' own cost",
    "serve": "what serving many over HTTP costs, killed in the middle and flooded",
    "soak": "random calls to servers that are killed at random; nothing may be lost or left",
}


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was made is removed
    name, arguments = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if name not in BENCHMARKS:
        known = "\n".join(f"  {name}  {about}" for name, about in BENCHMARKS.items())
        sys.exit(f"usage: python -m benchmarks NAME [--help]\n\n{known}")
    import_module(f"benchmarks.{name}").main(arguments)


if __name__ == "__main__":
    main()
