"""MLflow's own server in a thread of this process: real in all but its processes, which take seconds to start."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def mlflow_app(store: str, artifacts: Path) -> Iterator[int]:
    """Serve the SQLite store at the address `store` on 127.0.0.1 while the block runs; the port."""
    from mlflow.server import app
    from mlflow.server.handlers import initialize_backend_stores
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    initialize_backend_stores(store, store, (artifacts / "mlartifacts").as_uri())
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
