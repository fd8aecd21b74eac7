"""Two small files of a run folder. tracking.json: what MLflow should know of the run, beside its metrics. mlflow.json: what
has been delivered so far.

Only the run writes tracking.json and only the feeder writes mlflow.json: neither waits for the other.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.base.files import write_text
from pipeline.base.layout import DELIVERED, METRICS, TRACKING

# Raise it when MLflow is to show more of a run than before (its tags, dataset, description, the experiment's view): a run that
# is finished is then described anew by the next `open` or `sync`.
LOOK = 1

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


class Artifact(NamedTuple):
    """A `file` that MLflow should keep in `folder` of the MLflow run; mlflow.json lists it under `key`."""

    key: str
    file: Path
    folder: str

    @property
    def version(self) -> str:
        """Size and time of the file, which tell its contents apart. Raises OSError if the file is gone."""
        status = self.file.stat()
        return f"{status.st_size}:{status.st_mtime_ns}"


@dataclass
class Wanted:
    """What MLflow should know of a run, beside its metrics: the content of tracking.json.

    `key` finds the MLflow run if its id was lost. `artifacts` are pairs (path, folder in MLflow), the path relative to the
    run folder if the file lies in it. `dataset` is what `pipeline.tracking.inputs` makes of a training's dataset, and
    `command` the command line that started the latest attempt; empty where there is none. Times are in ms since 1970.
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
    dataset: dict[str, Any] = field(default_factory=dict)
    command: str = ""

    @classmethod
    def read(cls, folder: Path) -> Wanted | None:
        """Return what the run in `folder` wants; None if it has no tracking.json."""
        values = _read(folder / TRACKING, cls)
        return cls(**values) if values else None

    def write(self, folder: Path) -> None:
        write_text(folder / TRACKING, json.dumps(asdict(self), indent=1))

    def files(self, folder: Path) -> list[Artifact]:
        """Return the artifacts of the run in `folder`."""
        return [Artifact(f"{inside}:{path}", folder / path, inside) for path, inside in self.artifacts]


@dataclass
class Delivered:
    """What MLflow has of a run: the content of mlflow.json. `position`: the bytes of metrics.jsonl that MLflow has.

    `uri` holds no password. `artifacts` maps an artifact's key to the version that was sent. `look`: the LOOK of the code
    that described the run there. `error`: why the last attempt to deliver failed.
    """

    uri: str = ""
    experiment_id: str = ""
    run_id: str = ""
    position: int = 0
    status: str = ""
    artifacts: dict[str, str] = field(default_factory=dict)
    look: int = 0
    error: str = ""

    @classmethod
    def read(cls, folder: Path, uri: str | None = None) -> Delivered:
        """Return what MLflow has of the run in `folder`; with `uri`, what the MLflow at that address has."""
        delivered = cls(**_read(folder / DELIVERED, cls))
        return delivered if uri in (None, delivered.uri) else cls(error=delivered.error)

    def write(self, folder: Path) -> None:
        write_text(folder / DELIVERED, json.dumps(asdict(self), indent=1))

    def unsent(self, artifacts: list[Artifact]) -> list[Artifact]:
        """Return those of `artifacts` that exist and of which MLflow lacks the present version."""
        return [a for a in artifacts if a.file.exists() and self.artifacts.get(a.key) != a.version]


def is_concluded(folder: Path) -> bool:
    """Return whether tracking.json states that the run in `folder` is finished (its feeder tells MLflow)."""
    wanted = Wanted.read(folder)
    return wanted is not None and wanted.status == "FINISHED"


def is_delivered(folder: Path) -> bool:
    """Return whether MLflow has every metric and artifact of the run in `folder`."""
    wanted, delivered, metrics = Wanted.read(folder), Delivered.read(folder), folder / METRICS
    if wanted is None or not metrics.exists():
        return True
    return not delivered.unsent(wanted.files(folder)) and delivered.position == metrics.stat().st_size


def mlflow_run_id(folder: Path) -> str | None:
    """Return the id of the MLflow run of the run in `folder`; None if MLflow does not know the run yet."""
    return Delivered.read(folder).run_id or None


def _read(path: Path, kind: type[Wanted] | type[Delivered]) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        # Only a power cut on an unsafe file system leaves half a file, and its whole content can be made again.
        return {}
    return {key.name: values[key.name] for key in fields(kind) if key.name in values}
