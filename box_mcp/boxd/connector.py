"""Joins a server to boxd; executed in the box with ``python3 -c``, its source as the argument.

``argv``: the socket's path; and a token, where the connection is for the data of one request.
Hands stdin and stdout to boxd, then becomes a process that costs nothing but keeps the engine's
streams open; boxd ends it when the connection ends.
"""

import os
import socket
import sys
import time

deadline = time.monotonic() + 10  # s; a fresh boxd needs 0.05
while True:
    link = socket.socket(socket.AF_UNIX)
    try:
        link.connect(sys.argv[1])
        break
    except OSError as error:
        link.close()
        if time.monotonic() > deadline:
            sys.exit(f"boxd does not listen: {error}")
        time.sleep(0.005)
socket.send_fds(link, [b"K", *map(os.fsencode, sys.argv[2:])], [0, 1])
link.recv(1)  # end of file: boxd has taken them over
null = os.open(os.devnull, os.O_RDWR)
os.dup2(null, 0)
os.dup2(null, 1)
os.execvp("sleep", ["sleep", "infinity"])
