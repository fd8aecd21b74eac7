"""How far a run is, read from its run folder alone on every call: a run whose folder was deleted is 'not run' at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from paper.spec import Experiment, RunSpec, resolve
from pipeline.base.command import UserError
from pipeline.base.entries import check_entries
from pipeline.base.layout import CHECKPOINTS, CONFIG, METRICS, checkpoints_in
from pipeline.base.lease import is_held
from pipeline.data.dataset import MANIFEST, Dataset
from pipeline.run.config import Config, departures
from pipeline.run.folder import is_own, lost_config, other_code, read_facts, trained_on
from pipeline.run.options import load
from pipeline.tracking.journal import read_metrics

Kind = Literal["not run", "running", "interrupted", "finished", "conflicting"]


@dataclass(frozen=True, kw_only=True)
class RunState:
    """One run as its folder shows it.

    config: of the run that the experiment wants. iteration: updates in the newest sound checkpoint; of a running run, the
    last iteration in metrics.jsonl. checkpoint: the final checkpoint's file name, which holds its digest; of a finished run
    alone. differences: of a conflicting run, `key: the folder's -> the wanted`. place: the folder where its name is not the
    config's.
    """

    kind: Kind
    config: Config
    iteration: int = 0
    checkpoint: str | None = None
    differences: tuple[str, ...] = ()
    place: Path | None = None

    @property
    def folder(self) -> Path:
        return self.place or self.config.run_folder

    @property
    def text(self) -> str:
        """For tables: `interrupted (iteration 1,000 of 64,000)`."""
        if self.kind in ("running", "interrupted"):
            return f"{self.kind} (iteration {self.iteration:,} of {self.config.iterations:,})"
        return f"conflicting ({'; '.join(self.differences)})" if self.differences else self.kind


def read_state(config: Config) -> RunState:
    """The state of the run that `config` describes, in its run folder.

    finished: the folder has a sound checkpoint of the last iteration. conflicting: the folder has a run of this name with
    other values that affect its results, on other data (where the dataset folder is at hand to compare), or by code of
    another TRAJECTORY; or its config.yaml is lost. A finished run of such code stays finished, and a running one is left
    alone.
    """
    folder = config.run_folder
    try:
        check_entries(folder)
    except UserError as error:
        return RunState(kind="conflicting", config=config, differences=(str(error),))
    if sentence := lost_config(folder):
        return RunState(kind="conflicting", config=config, differences=(sentence,))
    if not (folder / CONFIG).exists():
        return RunState(kind="not run", config=config)
    if conflicts := _conflicts(config):
        return RunState(kind="conflicting", config=config, differences=tuple(conflicts))
    return _progress(config, None)


def state_in(folder: Path) -> RunState:
    """The state of whatever run stands in a folder, by its own config. Raises UserError where one of its files is damaged."""
    check_entries(folder)
    config = load(folder / CONFIG)
    read_metrics(folder / METRICS)
    return _progress(config, folder)


def is_run_of(config: Config) -> bool:
    """Whether the run in the folder that `config` names is the run that it describes."""
    return not _conflicts(config)


def _progress(config: Config, place: Path | None) -> RunState:
    """How far the run in a folder is: in `place`, else in that of its config."""
    folder = place or config.run_folder
    state = RunState(kind="interrupted", config=config, place=place)
    listed, data = checkpoints_in(folder / CHECKPOINTS), trained_on(folder)
    newest = next((pair for pair in reversed(listed) if is_own(pair[1], config, data)), None)
    saved = newest[0] if newest else 0
    if newest and saved == config.iterations:
        return replace(state, kind="finished", iteration=saved, checkpoint=newest[1].name)
    if is_held(folder):
        logged = max((record.iteration for record in read_metrics(folder / METRICS)), default=0)
        return replace(state, kind="running", iteration=logged)
    if other := other_code(read_facts(folder)):
        return replace(state, kind="conflicting", differences=(other,))
    return replace(state, iteration=saved)


def _conflicts(config: Config) -> list[str]:
    """How the run in the folder differs from `config`, or which of its files is damaged."""
    folder = config.run_folder
    try:
        conflicts = departures(load(folder / CONFIG), config)
        had = trained_on(folder)
        read_metrics(folder / METRICS)
    except UserError as error:
        return [str(error)]
    if had is not None and (Path(config.data) / MANIFEST).is_file():
        wanted = Dataset(config.data).sha256
        if had != wanted:
            conflicts.append(f"the dataset's content: {had[:12]} -> {wanted[:12]}")
    return conflicts


def find_state(folders: Sequence[Path], spec: RunSpec, scale: float) -> RunState:
    """The state of a run in the first of several folders that has it. A run that is in two of them is conflicting."""
    wanted = resolve(spec, scale=scale)
    states = [read_state(replace(wanted, runs=str(folder))) for folder in folders]
    present = [state for state in states if state.kind != "not run"]
    if len(present) > 1:
        places = " and ".join(str(state.folder.parent) for state in present)
        return replace(present[0], kind="conflicting", differences=(f"a run of this name stands in {places}",))
    return (present or states)[0]


def scales_of(experiment: Experiment, runs: Sequence[Path]) -> list[float]:
    """1, and every scale at which the folders have a shortened run of the experiment; largest first."""
    scales = {1.0}
    for spec in experiment.runs:
        prefix = f"{spec.name()}-scale"
        for place in (path for folder in runs for path in folder.glob(f"{prefix}*/{CONFIG}")):
            text = place.parent.name.removeprefix(prefix)
            try:
                scale = float(text)
            except ValueError:
                continue  # a run that somebody named so
            if 0 < scale < 1 and spec.name(scale) == place.parent.name:
                scales.add(scale)
    return sorted(scales, reverse=True)
