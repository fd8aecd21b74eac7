"""Which MLflow a run belongs to: the one place that decides it, for every command that reads or writes MLflow.

Where nothing is configured it is the SQLite file beside the run folders. That file holds the absolute places of its
artifacts, so a copied or moved file points at the old place. `open_store` mends it before anything is read or written:
the places under the old root become places under the new one, and runs, notes, tags and registered models stay.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from pipeline.base.command import UserError
from pipeline.base.layout import MLFLOW_ARTIFACTS, MLFLOW_STORE
from pipeline.base.redaction import learn

# Columns of MLflow's tables that hold places of artifacts; a version of MLflow may lack some.
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
# SQLAlchemy takes what follows a ? for options, and from 2.1 on it decodes %20.
NOT_IN_ADDRESSES = re.compile(r"[?%]")
BUSY_SECONDS = 30.0
ABANDONED_SECONDS = 3600.0  # making a store takes less than a minute


@dataclass(frozen=True)
class Store:
    """An MLflow. `name`: its address without secrets, as mlflow.json and users see it. `uri`: what MLflow connects to.

    `file`: the SQLite file, where it is one with an absolute path. `artifacts`: where experiments that are made there keep
    their artifacts; None where a server decides. `beside`: whether it is the file beside the run folders, by default.
    """

    name: str
    uri: str
    file: Path | None
    artifacts: Path | None
    beside: bool


def store_of(folder: Path, configured: str | None) -> Store:
    """The MLflow of the run in `folder`: `configured` (tracking.uri), else MLFLOW_TRACKING_URI, else the file beside it."""
    if uri := configured or os.environ.get("MLFLOW_TRACKING_URI"):
        remote = uri.startswith(("http://", "https://", "databricks"))
        artifacts = None if remote else folder.resolve().parent / MLFLOW_ARTIFACTS
        file = Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:////") else None
        return Store(learn(uri), uri, file, artifacts, beside=False)
    return store_in(folder.resolve().parent)


def store_in(runs: Path) -> Store:
    """The SQLite file in the folder of the run folders."""
    file = runs.resolve() / MLFLOW_STORE
    return Store(f"sqlite:///{file}", _address(file), file, file.parent / MLFLOW_ARTIFACTS, beside=True)


def open_store(store: Store) -> Store:
    """Make the store if it is missing, and mend it if it was copied or moved: it is then ready to be read and written."""
    if store.file is not None:
        make_store(store.file)
    mend(store)
    return store


def make_store(path: Path) -> None:
    """Make MLflow's SQLite file, whole or not at all.

    Two processes that made it at once, or one that was killed while making it, left MLflow's migrations half done, and no
    later start could mend that.
    """
    if path.exists() or not path.parent.is_dir():
        return
    from mlflow import MlflowClient

    for abandoned in path.parent.glob(f".{path.name}.*"):  # by a process that was killed
        with suppress(OSError):
            if time.time() - abandoned.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(abandoned)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.{os.getpid()}.") as folder:
        address = f"{_address(path).removesuffix(path.name)}{Path(folder).name}/{path.name}"
        MlflowClient(tracking_uri=address).search_experiments(max_results=1)
        with suppress(OSError):  # another process was quicker; or there are no hard links: MLflow then makes the file
            os.link(Path(folder) / path.name, path)


def mend(store: Store) -> list[Path]:
    """Let the places of artifacts in a copied or moved store point beside it; return the old roots, [] if there are none.

    Only in the store beside the run folders: one that a user configured may keep its artifacts anywhere. Raises UserError
    where the file cannot be written, or is none of MLflow's.
    """
    if not store.beside or store.file is None or store.artifacts is None or not store.file.is_file():
        return []
    try:
        with closing(sqlite3.connect(store.file, timeout=BUSY_SECONDS)) as database, database:
            old = [location for location in _locations(database) if _has_moved(location, store, database)]
            if old:
                database.execute("BEGIN IMMEDIATE")
            for location in old:
                _replace(database, location, store.artifacts.as_uri())
    except sqlite3.Error as error:
        raise UserError(
            f"MLflow's store {store.file} cannot be read, or was moved and cannot be written ({error}): copy the folder to "
            "where you can write, or remove that file, and the run folders fill a new one"
        ) from None
    return [_path(location) for location in old]


def _locations(database: sqlite3.Connection) -> list[str]:
    """The different roots of artifacts under which experiments of this project stand."""
    if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
        return []  # another process is making the store
    found = database.execute("SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE 'file:%'")
    return [location for (location,) in found if _path(location).name == MLFLOW_ARTIFACTS]


def _has_moved(location: str, store: Store, database: sqlite3.Connection) -> bool:
    """Whether artifacts under `location` belong beside the store: it is not the same folder, and either gone or a store's
    beside which it stands, or the runs' artifacts stand here, too.
    """
    assert store.artifacts is not None and store.file is not None
    old = _path(location)
    if old == store.artifacts:
        return False
    if not old.exists():
        return True
    if store.artifacts.exists() and old.samefile(store.artifacts):  # one folder under two names
        return False
    if (there := old.parent / MLFLOW_STORE).exists():
        return not there.samefile(store.file)
    runs = database.execute("SELECT run_uuid FROM runs WHERE artifact_uri LIKE ? || '/%'", (location,))
    return any((store.artifacts / run).exists() for (run,) in runs)


def _replace(database: sqlite3.Connection, old: str, new: str) -> None:
    tables = {(table, column) for table, column in PLACES if column in _columns(database, table)}
    for table, column in tables:
        database.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?",
            (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
        )


def _columns(database: sqlite3.Connection, table: str) -> set[str]:
    return {name for _, name, *_ in database.execute(f"PRAGMA table_info({table})")}


def _path(location: str) -> Path:
    return Path(url2pathname(urlparse(location).path))


def _address(file: Path) -> str:
    """The address of an SQLite file for SQLAlchemy, which cannot express some characters: then by a link in a folder of the
    user's own, to the file's folder. SQLite follows the link, so that all processes lock the same file.
    """
    if not NOT_IN_ADDRESSES.search(str(file)):
        return f"sqlite:///{file}"
    links = Path(tempfile.gettempdir()).resolve() / f"mlflow-stores-{os.getuid()}"
    if NOT_IN_ADDRESSES.search(str(links)):
        raise UserError(
            f"MLflow cannot open a file in {links.parent}: set TMPDIR to a folder without ? and % in its name"
        )
    links.mkdir(mode=0o700, exist_ok=True)
    if links.is_symlink() or links.stat().st_uid != os.getuid():
        raise UserError(f"{links} belongs to another user: set TMPDIR to a folder of your own")
    link = links / hashlib.sha256(os.fsencode(file.parent)).hexdigest()[:16]
    with suppress(FileExistsError):
        link.symlink_to(file.parent)
    return f"sqlite:///{link / file.name}"
