"""Made boards behind one socket: ``python -m tests.support.made_fleet SOCKET FOLDER``; ``HOST:PORT`` for one of TCP.

Who connects names a board in one line and is then served by that board's agent, in a process of its own with a home of
its own: as sshd does it, but for the login, and forked from a process that has imported everything, which makes fifty
boards cheap.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

from armlet_runtime.install.agent import HOME, Agent, serve


def main() -> None:
    """Serve until killed."""
    at, folder = sys.argv[1], Path(sys.argv[2])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a link that has ended
    if at.startswith("/"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(at)
        listener.listen(64)
    else:
        host, _, port = at.rpartition(":")
        listener = socket.create_server((host, int(port)))
    print("listening", flush=True)
    while True:
        link, _ = listener.accept()
        if os.fork():
            link.close()
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with link.makefile("rb") as source, link.makefile("wb") as sink:
            board = folder / source.readline().decode().strip()
            os.environ["ARMLET_HOME"] = str(board / HOME)
            serve(Agent(board), source, sink)
        os._exit(0)


if __name__ == "__main__":
    main()
