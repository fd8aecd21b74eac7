"""What MLflow shows of a run beside its metrics: its tags, its dataset, its description; and the view of its experiment.

Users may change what stands in MLflow: a description or a view that differs from the one that we wrote stays as it is.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.tracking import view
from pipeline.tracking.description import TOP1, TOP5, Errors, MemberRun
from pipeline.tracking.state import Delivered, Wanted
from pipeline.tracking.store import Store

KIND_TAG = "kind"  # training, ensemble or report
MEMBER_TAG = re.compile(r"member\.\d+")  # numbered: those left over from an earlier, larger ensemble are removed
MEMBER = re.compile(r"(.*?)(?: \(([0-9a-f]{32})\))?", re.DOTALL)  # its name and, where it was known, its MLflow run
# A run's description, and the hash of the one that we wrote. MLflow's page shows no tag that begins with mlflow.
NOTE, NOTE_WRITTEN = "mlflow.note.content", "mlflow.note.sha256"
# MLflow's page takes a run's colour in charts from this tag; without it, from a hash of its id, which gave two runs one colour.
COLOR = "mlflow.runColor"
COLORS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#6a3d9a", "#7f7f7f", "#b2182b"),
    *("#1b7837", "#40004b", "#bcbd22", "#17becf", "#ff9896", "#2f4b7c", "#a05195", "#8c510a", "#35978f", "#000000"),
)
VIEW_WRITTEN = "errors_view"  # of an experiment: "VERSION HASH" of the view that we wrote


def show_errors_first(client: Any, experiment: Any) -> None:
    """Give an experiment its kind and the view "Errors", or the present version of it, unless a user has changed it."""
    for key, value in experiment_tags(experiment.tags).items():
        client.set_experiment_tag(experiment.experiment_id, key, value)


def experiment_tags(present: dict[str, str]) -> dict[str, str]:
    """Return the tags that an experiment with the tags `present` lacks."""
    tags = {key: value for key, value in view.KIND.items() if key not in present}
    version, _, digest = present.get(VIEW_WRITTEN, "0 ").partition(" ")
    now = present.get(view.TAG)
    if now is None or (digest == _digest(now) and version.isdecimal() and int(version) < view.VERSION):
        shared = view.shared_view()
        tags |= {view.TAG: shared, VIEW_WRITTEN: f"{view.VERSION} {_digest(shared)}"}
    return tags


def free_color(client: Any, experiment_id: str) -> str:
    """Return the colour that the fewest of an experiment's newest runs have: a page of charts shows twenty."""
    runs = client.search_runs([experiment_id], max_results=len(COLORS))
    taken = Counter(run.data.tags.get(COLOR) for run in runs)
    return min(COLORS, key=lambda color: taken[color])


def kind_of(wanted: Wanted) -> str:
    """Return training, ensemble or report. Runs from before the tag stood in tracking.json are known by their net."""
    arch = wanted.tags.get("arch", "")
    return wanted.tags.get(KIND_TAG) or (arch if arch in ("ensemble", "report") else "training")


def members_of(client: Any, folder: Path, store: Store, wanted: Wanted) -> list[MemberRun]:
    """Return the members that an ensemble's tags name, as this MLflow knows them.

    A member beside the ensemble's folder is found by its name: where runs were copied or moved, MLflow may know it under
    another id than the tag says.
    """
    keys = sorted((key for key in wanted.tags if MEMBER_TAG.fullmatch(key)), key=lambda key: int(key.split(".")[1]))
    return [_member(client, folder, store, wanted.tags[key]) for key in keys]


def _member(client: Any, folder: Path, store: Store, tag: str) -> MemberRun:
    from mlflow.exceptions import MlflowException

    match = MEMBER.fullmatch(tag)
    assert match is not None
    name, noted = match.groups()
    beside = Delivered.read(folder.parent / name.partition("/")[0], store.name).run_id
    for run_id in filter(None, (beside, noted)):
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            errors = errors_in_mlflow(run.data.metrics)
            return MemberRun(name=name, run_id=run_id, experiment_id=run.info.experiment_id, errors=errors)
    return MemberRun(name=name)


def errors_in_mlflow(metrics: dict[str, float]) -> Errors:
    """The latest errors of each kind of evaluation among the metrics of an MLflow run."""
    kinds = [key.removesuffix(f"/{TOP1}") for key in metrics if key.endswith(f"/{TOP1}")]
    return {kind: (metrics[f"{kind}/{TOP1}"], metrics.get(f"{kind}/{TOP5}", float("nan"))) for kind in kinds}


def member_tags(members: Sequence[MemberRun]) -> dict[str, str]:
    return {f"member.{number}": member.tag for number, member in enumerate(members, start=1)}


def write_note(client: Any, run_id: str, text: str) -> None:
    """Set the run's description, unless somebody has written another one than ours."""
    from mlflow.entities import RunTag

    tags = client.get_run(run_id).data.tags
    now, written = tags.get(NOTE), tags.get(NOTE_WRITTEN)
    if now == text or (now is not None and _digest(now) != written and (now or written)):
        return
    client.log_batch(run_id, tags=[RunTag(NOTE, text), RunTag(NOTE_WRITTEN, _digest(text))])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
