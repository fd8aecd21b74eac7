"""The command `python -m pipeline.tracking open RUNS`: MLflow on the runs of a folder, first brought up to date from there.

What stands in the run folders decides: a store that is missing is made from them, and one that was copied or moved with
them is mended (pipeline/tracking/store.py) and gets what it lacks. Nothing is written into the old place.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NoReturn

from pipeline.base.command import UserError
from pipeline.base.lease import is_held
from pipeline.base.lock import NoLocksError, lock
from pipeline.base.redaction import without_secrets
from pipeline.tracking.environment import ENVIRONMENT, sentence
from pipeline.tracking.presentation import kind_of
from pipeline.tracking.process import left_at, open_log
from pipeline.tracking.state import LOOK, Delivered, Wanted
from pipeline.tracking.store import Store, mend, store_in
from pipeline.tracking.view import artifacts_link, link

# MLflow's job execution starts 13 more processes.
QUIET = {"PYTHONWARNINGS": "ignore", "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def open_runs(runs: Path, port: int, *, browser: bool) -> NoReturn:
    """Become an MLflow server: two processes of 250 MB each, where MLflow's defaults start 15.

    browser: show the first page in the user's browser, too. Raises UserError where there is nothing to show.
    """
    store, folders = store_in(runs), tracked(runs)
    assert store.file is not None and store.artifacts is not None
    ours = [folder for folder in folders if elsewhere(folder) is None]
    if not ours and not store.file.is_file():
        raise UserError(_nothing_to_show(runs, folders))
    _check_port(port)
    # Not where a run trains: this may be its folder under the name that another machine has for it, and its own is right.
    if not any(map(is_held, ours)) and (old := mend(store)):
        print(
            f"These runs were copied or moved from {old[0].parent}: MLflow's store here now shows them here",
            file=sys.stderr,
        )
    deliver_all(ours, store)
    for folder in sorted(set(folders) - set(ours)):
        print(f"{folder.name} is in MLflow at {elsewhere(folder)}: open that page", file=sys.stderr)
    pages = _pages(ours, store, port)
    print("MLflow opens in some seconds (Ctrl-C ends it):", file=sys.stderr)
    for name, page in pages:
        print(f"  {name}: {page}" if name else f"  {page}", file=sys.stderr, flush=True)
    if browser and sys.stderr.isatty() and _has_display():
        # A process of its own: this one becomes the server, for which the browser must wait.
        subprocess.Popen([sys.executable, "-m", "pipeline.tracking.browser", str(port), pages[0][1]])
    os.execve(sys.executable, _server(store, port), os.environ | QUIET)


def tracked(runs: Path) -> list[Path]:
    """The folders in `runs` that MLflow is to know, in the order of `in_order`."""
    folders = sorted(runs.resolve().iterdir()) if runs.is_dir() else []
    return in_order(folder for folder in folders if folder.is_dir() and Wanted.read(folder) is not None)


def in_order(folders: Iterable[Path]) -> list[Path]:
    """Tracked run folders with the trainings first: an ensemble then finds its members in MLflow."""

    def rank(folder: Path) -> bool:
        wanted = Wanted.read(folder)
        return wanted is not None and kind_of(wanted) != "training"

    return sorted(folders, key=rank)


def elsewhere(folder: Path) -> str | None:
    """The server or store that the user gave the run; None where the run belongs into the store beside it.

    A run whose last delivery went to a server belongs there, whatever MLFLOW_TRACKING_URI says today.
    """
    wanted, delivered = Wanted.read(folder), Delivered.read(folder)
    assert wanted is not None
    if wanted.uri:
        return delivered.uri or without_secrets(wanted.uri)
    return delivered.uri if delivered.uri.startswith(("http://", "https://")) else None


def deliver_all(folders: Sequence[Path], store: Store) -> None:
    """Send the store what it lacks of each run; say what it did not take. A run that feeds MLflow right now does so itself."""
    lacking = [folder for folder in folders if lacks(folder, store)]
    if not lacking:
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    print(f"MLflow gets what it lacks of {len(lacking)} of {len(folders)} runs ...", file=sys.stderr, flush=True)
    for folder in lacking:
        try:
            with open_log(folder) as log, _output_into(log):
                _deliver(folder, store, log)
        except Exception as error:  # of MLflow, or a folder that this user may only read: the other runs are shown
            print(f"MLflow lacks a part of {folder.name} ({sentence(error)})", file=sys.stderr)


def lacks(folder: Path, store: Store) -> bool:
    """Whether the store lacks anything of the run in `folder`."""
    delivered = Delivered.read(folder, store.name)
    return not delivered.run_id or delivered.look != LOOK or bool(left_at(folder, store.name))


def _deliver(folder: Path, store: Store, log: IO[str]) -> None:
    """Deliver, unless the process beside a training does so right now: it holds the lock of its log."""
    with suppress(NoLocksError):
        if not lock(log):
            return
    from pipeline.tracking.delivery import Delivery

    Delivery(folder, lambda text: print(text, file=log), store=store).deliver(killed=not is_held(folder))


@contextmanager
def _output_into(log: IO[str]) -> Iterator[None]:
    """Let everything that MLflow and its libraries print go to the log."""
    kept = [os.dup(number) for number in (1, 2)]
    sys.stdout.flush(), sys.stderr.flush()
    try:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        yield
    finally:
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


def _nothing_to_show(runs: Path, folders: Sequence[Path]) -> str:
    if folders:
        places = " and ".join(sorted({str(elsewhere(folder)) for folder in folders}))
        return f"the runs in {runs} are in MLflow at {places}: open that page"
    return f"{runs} holds no run that MLflow could show: give the folder that holds the run folders"


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"port {port} cannot be used ({error.strerror}): choose another --port") from None


def _pages(folders: Sequence[Path], store: Store, port: int) -> list[tuple[str, str]]:
    """(name, address) of the first page of each experiment to which the runs belong, and of reports, which the experiment's
    table leaves out; MLflow's own page where none is known.
    """
    address, pages, reports = f"http://127.0.0.1:{port}", {}, []
    for folder in folders:
        wanted, delivered = Wanted.read(folder), Delivered.read(folder, store.name)
        if wanted is not None and delivered.experiment_id:
            pages[delivered.experiment_id] = wanted.experiment
            if kind_of(wanted) == "report":
                reports.append((wanted.name, artifacts_link(address, delivered.experiment_id, delivered.run_id)))
    return [*((name, link(address, key)) for key, name in sorted(pages.items())), *reports] or [("", address)]


def _server(store: Store, port: int) -> list[str]:
    assert store.artifacts is not None
    server = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    server += ["--backend-store-uri", store.uri, "--artifacts-destination", store.artifacts.as_uri()]
    # Without the lifespan, which clears up after MLflow's assistant alone, and whose end at Ctrl-C is a traceback.
    return [*server, "--uvicorn-opts", "--log-level warning --lifespan off"]


def _has_display() -> bool:
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
