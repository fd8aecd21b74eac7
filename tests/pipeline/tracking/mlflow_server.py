"""A real MLflow server, started by the command that users type."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers import wait_for
from tests.patience import limit


@contextmanager
def server(runs: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A real MLflow server on the store in `runs`, by the command that users open it with."""
    command = [sys.executable, "-m", "pipeline.tracking", "open", str(runs), "--port", str(port)]
    with open(runs / "server.log", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: process.poll() is not None or _answers(port), "the MLflow server", 250)
        assert process.poll() is None, "the MLflow server ended"
        yield process
    finally:
        os.killpg(process.pid, signal.SIGCONT)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=limit(10)).status == 200
    except OSError:
        return False
