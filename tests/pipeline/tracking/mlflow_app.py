"""MLflow's own application on a store, in one process and not in the several of its command, which take long to start.

A process of its own, because MLflow's server leaves settings in the environment that its client reads.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers import ROOT


@contextmanager
def mlflow_app(store: str, artifacts: Path) -> Iterator[int]:
    """Serve the SQLite store at the address `store` on 127.0.0.1 while the block runs; the port."""
    command = [sys.executable, "-m", "tests.pipeline.tracking.mlflow_app", store, str(artifacts)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (
        open(artifacts / "server.log", "w") as log,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.kill()


def main(store: str, artifacts: Path) -> None:
    from mlflow.server import app
    from mlflow.server.handlers import initialize_backend_stores
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    initialize_backend_stores(store, store, (artifacts / "mlartifacts").as_uri())
    server = make_server("127.0.0.1", 0, app, threaded=True)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
