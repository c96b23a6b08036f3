"""boxd: the daemon that runs in every box. Standard library only, Python 3.9 or newer.

It travels as a zip and is started as the container's main process; nothing here may import
anything of box_mcp outside this package, nor a slow module of the standard library: its start
is part of every box's creation, its memory part of every box's cost.
"""
