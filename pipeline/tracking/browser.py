"""Shows a page in the user's browser once a server answers: python -m pipeline.tracking.browser PORT PAGE"""

from __future__ import annotations

import os
import socket
import sys
import time
import webbrowser
from contextlib import suppress

SECONDS = 120.0  # MLflow needs some to start


def main(port: int, page: str, parent: int) -> None:
    """Wait until 127.0.0.1:PORT accepts a connection and open the page; give up when the server's process is gone."""
    deadline = time.monotonic() + SECONDS
    while os.getppid() == parent and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            webbrowser.open(page)
            return
        time.sleep(0.5)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], os.getppid())
