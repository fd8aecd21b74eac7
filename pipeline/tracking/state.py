"""Two small files of a run folder. tracking.json: what MLflow should know of the run, beside its metrics. mlflow.json: what
has been delivered so far.

Only the run writes tracking.json and only the feeder writes mlflow.json: neither waits for the other.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pipeline.base.command import UserError
from pipeline.base.files import write_text
from pipeline.base.json_text import parse_json
from pipeline.base.layout import DELIVERED, METRICS, ML_MODEL, MODEL, MODEL_FACTS, TRACKING
from pipeline.base.regular import read_regular

# Raise it when MLflow is to show more of a run than before (its tags, dataset, description, the experiment's view): a run that
# is finished is then described anew by the next `open` or `sync`.
LOOK = 1

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
KEY = re.compile(r"[\w.-]+")  # stands in a query to MLflow
T = TypeVar("T")


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

    @property
    def place(self) -> str:
        """Where the copy is in the MLflow run."""
        return f"{self.folder}/{self.file.name}".lstrip("/")


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
        """Return what the run in `folder` wants; None if it has no tracking.json, or, with a warning, a damaged one."""
        wanted = _read(folder / TRACKING, cls)
        if wanted is not None and not wanted._is_sound():
            _warn(folder / TRACKING)
            return None
        return wanted

    def write(self, folder: Path) -> None:
        write_text(folder / TRACKING, json.dumps(asdict(self), indent=1))

    def _is_sound(self) -> bool:
        described = not self.dataset or {"name", "sha256", "place"} <= self.dataset.keys()
        pairs = all(len(artifact) == 2 for artifact in self.artifacts)
        return KEY.fullmatch(self.key) is not None and pairs and described

    def files(self, folder: Path) -> list[Artifact]:
        """Return the artifacts of the run in `folder`."""
        return [Artifact(f"{inside}:{path}", folder / path, inside) for path, inside in self.artifacts]


@dataclass
class Delivered:
    """What MLflow has of a run: the content of mlflow.json. `position`: the bytes of metrics.jsonl that MLflow has.

    `system`: the same of each file in system/, by its name. `uri` holds no secret. `artifacts` maps an artifact's key to
    the version that was sent. `model`: the id of the logged model and the `model_version` that was sent. `look`: the LOOK of
    the code that described the run there. `error`: why the last attempt to deliver failed.
    """

    uri: str = ""
    experiment_id: str = ""
    run_id: str = ""
    position: int = 0
    system: dict[str, int] = field(default_factory=dict)
    status: str = ""
    artifacts: dict[str, str] = field(default_factory=dict)
    model: str = ""
    look: int = 0
    error: str = ""

    @classmethod
    def read(cls, folder: Path, uri: str | None = None) -> Delivered:
        """Return what MLflow has of the run in `folder`; with `uri`, what the MLflow at that address has.

        Of a damaged mlflow.json, after a warning: nothing. MLflow then gets everything again, and stores it once.
        """
        delivered = _read(folder / DELIVERED, cls) or cls()
        return delivered if uri in (None, delivered.uri) else cls(error=delivered.error)

    def write(self, folder: Path) -> None:
        write_text(folder / DELIVERED, json.dumps(asdict(self), indent=1))

    def unsent(self, artifacts: list[Artifact]) -> list[Artifact]:
        """Return those of `artifacts` that exist and of which MLflow lacks the present version."""
        return [a for a in artifacts if a.file.exists() and self.artifacts.get(a.key) != a.version]

    @property
    def model_id(self) -> str:
        """The id of the logged model in MLflow; empty where there is none."""
        return self.model.partition(" ")[0]

    def has_model(self, folder: Path) -> bool:
        """Whether MLflow has the model of the run in `folder` as it is now, or the run has none."""
        version = model_version(folder)
        return not version or self.model == f"{self.model_id} {version}"


def is_concluded(folder: Path) -> bool:
    """Return whether tracking.json states that the run in `folder` is finished (its feeder tells MLflow)."""
    wanted = Wanted.read(folder)
    return wanted is not None and wanted.status == "FINISHED"


def is_delivered(folder: Path) -> bool:
    """Return whether MLflow has every metric and artifact of the run in `folder`."""
    wanted, delivered, metrics = Wanted.read(folder), Delivered.read(folder), folder / METRICS
    if wanted is None or not metrics.exists():
        return True
    unsent = delivered.unsent(wanted.files(folder)) or not delivered.has_model(folder)
    return not unsent and delivered.position == metrics.stat().st_size


def model_version(folder: Path) -> str:
    """What tells a run's model folder, and the metrics that belong to the model, from earlier ones; empty without a model."""
    if not (folder / MODEL / ML_MODEL).is_file():
        return ""
    facts = hashlib.sha256((folder / MODEL / MODEL_FACTS).read_bytes()).hexdigest()
    metrics = folder / METRICS
    return f"{facts[:16]}:{metrics.stat().st_size if metrics.exists() else 0}"


def mlflow_run_id(folder: Path) -> str | None:
    """Return the id of the MLflow run of the run in `folder`; None if MLflow does not know the run yet."""
    return Delivered.read(folder).run_id or None


def mlflow_model_id(folder: Path) -> str | None:
    """Return the id of the logged model of the run in `folder`; None if MLflow has none."""
    return Delivered.read(folder).model_id or None


def _read(path: Path, kind: type[T]) -> T | None:
    """The content of a file of this module; None where there is none. A damaged one counts as none, with a warning.

    A power cut on an unsafe file system leaves half a file, and its whole content can be made again: nobody has to mend it.
    """
    from pipeline.base.typed import read_typed  # here: metrics are read without pydantic, too (bench/gpu)

    if not path.exists():
        return None
    try:
        values = parse_json(read_regular(path))
        if not isinstance(values, dict):
            raise ValueError
        known = {key.name: values[key.name] for key in fields(kind) if key.name in values}  # type: ignore[arg-type]
        return read_typed(kind, known, str(path))
    except FileNotFoundError:  # it was removed just now
        return None
    except (OSError, ValueError, UserError):
        _warn(path)
        return None


@cache  # the file is read again and again
def _warn(path: Path) -> None:
    print(f"warning: {path} is damaged (it is not what a run wrote) and counts as missing", file=sys.stderr)
