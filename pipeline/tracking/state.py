"""Two small files of a run folder: what MLflow is to know of the run beside its metrics, and what it knows by now.

tracking.json is written by the run alone, mlflow.json by the process that feeds MLflow alone: neither waits for the other.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pipeline.base.files import write_text
from pipeline.base.layout import DELIVERED, MLFLOW_STORE, TRACKING

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


@dataclass
class Wanted:
    """What MLflow is to know of a run beside its metrics; tracking.json.

    `key` finds the MLflow run again where its id was lost; `artifacts` are (path, folder in MLflow) with paths relative
    to the run folder where they lie in it; times are ms since 1970.
    """

    key: str
    name: str
    experiment: str
    uri: str | None
    started: int
    status: Status = "RUNNING"
    ended: int | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: list[list[str]] = field(default_factory=list)


@dataclass
class Delivered:
    """What MLflow knows of a run; mlflow.json. `position` counts the bytes of metrics.jsonl that it has.

    `uri` is without passwords, `artifacts` maps (path, folder) to the size and time of the file that was sent, `error` is
    why the last attempt failed.
    """

    uri: str = ""
    experiment_id: str = ""
    run_id: str = ""
    position: int = 0
    status: str = ""
    artifacts: dict[str, str] = field(default_factory=dict)
    error: str = ""


def read_wanted(folder: Path) -> Wanted | None:
    values = _read(folder / TRACKING, Wanted)
    return Wanted(**values) if values else None


def read_delivered(folder: Path, uri: str | None = None) -> Delivered:
    """What MLflow knows of the run in `folder`; where `uri` is given, what MLflow there knows."""
    delivered = Delivered(**_read(folder / DELIVERED, Delivered))
    return delivered if uri in (None, delivered.uri) else Delivered(error=delivered.error)


def write_wanted(folder: Path, wanted: Wanted) -> None:
    _write(folder / TRACKING, asdict(wanted))


def write_delivered(folder: Path, delivered: Delivered) -> None:
    _write(folder / DELIVERED, asdict(delivered))


def resolve_uri(folder: Path, configured: str | None) -> str:
    """Where MLflow is told of the run in `folder`: see TrackingConfig.uri. May hold a password."""
    store = folder.resolve().parent / MLFLOW_STORE
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store}"


def without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)


def artifact_key(path: str, folder: str) -> str:
    return f"{folder}:{path}"


def artifact_version(path: Path) -> str:
    """What tells one content of a file from another; raises OSError where the file is gone."""
    facts = path.stat()
    return f"{facts.st_size}:{facts.st_mtime_ns}"


def _read(path: Path, kind: type[Wanted] | type[Delivered]) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        # Only a power cut on an unsafe file system leaves half a file; all of it can be made again.
        return {}
    return {one.name: values[one.name] for one in fields(kind) if one.name in values}


def _write(path: Path, values: dict[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=1))
