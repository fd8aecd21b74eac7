"""How far one run is: from its run folder alone, read anew every time, so a deleted run is 'not run' at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.base.command import UserError
from pipeline.base.layout import CHECKPOINTS, CONFIG, METRICS, checkpoints_in
from pipeline.base.lease import is_held
from pipeline.data.dataset import MANIFEST, Dataset
from pipeline.run.config import Config, differences, trajectory
from pipeline.run.folder import lost_config, other_code, read_facts
from pipeline.run.options import load
from pipeline.tracking.journal import read_metrics
from pipeline.training.checkpoint import is_sound

Kind = Literal["not run", "running", "interrupted", "finished", "conflicting"]


@dataclass(frozen=True, kw_only=True)
class RunState:
    """One run as its folder shows it.

    config: of the run that is wanted. iteration: updates that its newest sound checkpoint holds; while it runs, those
    that metrics.jsonl tells of. checkpoint: the final one's file name (it holds its digest), of a finished run alone.
    differences: `key: the folder's -> the wanted` of a conflicting run, else none.
    """

    kind: Kind
    config: Config
    iteration: int = 0
    checkpoint: str | None = None
    differences: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return self.config.run_folder

    @property
    def text(self) -> str:
        """For tables: `interrupted (iteration 1,000 of 64,000)`."""
        if self.kind in ("running", "interrupted"):
            return f"{self.kind} (iteration {self.iteration:,} of {self.config.iterations:,})"
        return f"conflicting ({'; '.join(self.differences)})" if self.differences else self.kind


def read_state(config: Config) -> RunState:
    """The state of the run that `config` describes, in its run folder.

    finished: a sound checkpoint of the last iteration is there. conflicting: a run of that name stands there with other
    values that affect its results, on other data (where the dataset folder is at hand to compare), or by code of another
    TRAJECTORY; or its config.yaml is lost. A finished run of such code stays finished, and a running one is left alone.
    """
    folder = config.run_folder
    if sentence := lost_config(folder):
        return RunState(kind="conflicting", config=config, differences=(sentence,))
    if not (folder / CONFIG).exists():
        return RunState(kind="not run", config=config)
    if found := _conflicts(config):
        return RunState(kind="conflicting", config=config, differences=tuple(found))
    newest = next((one for one in reversed(checkpoints_in(folder / CHECKPOINTS)) if is_sound(one[1])), None)
    saved = newest[0] if newest else 0
    if newest and saved == config.iterations:
        return RunState(kind="finished", config=config, iteration=saved, checkpoint=newest[1].name)
    if is_held(folder):
        logged = max((record.iteration for record in read_metrics(folder / METRICS)), default=0)
        return RunState(kind="running", config=config, iteration=logged)
    if other := other_code(read_facts(folder)):
        return RunState(kind="conflicting", config=config, differences=(other,))
    return RunState(kind="interrupted", config=config, iteration=saved)


def _conflicts(config: Config) -> list[str]:
    """In what the run that stands in the folder differs from `config`, or which of its files is damaged."""
    folder = config.run_folder
    try:
        found = differences(trajectory(load(folder / CONFIG)), trajectory(config))
        trained_on = read_facts(folder).get("dataset_sha256")
        read_metrics(folder / METRICS)
    except UserError as error:
        return [str(error)]
    if trained_on is not None and (Path(config.data) / MANIFEST).is_file():
        wanted = Dataset(config.data).sha256
        if trained_on != wanted:
            found.append(f"the dataset's content: {trained_on[:12]} -> {wanted[:12]}")
    return found
