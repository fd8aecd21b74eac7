"""The runs of a folder that belong to no experiment on the page: other recipes, own data, the demo, ensembles.

Every folder is accounted for: it is shown with an experiment, it is here, it belongs to an experiment that was not asked
for, or it is no run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paper.datasets import DataFacts, described
from paper.names import names
from paper.reading import find
from paper.runs import curves
from paper.spec import Experiment, resolve
from paper.state import RunState, is_run_of, scales_of, state_in
from paper.tested import Tested, ensemble_tests, tests_of
from pipeline.base.command import UserError
from pipeline.base.layout import CONFIG, ENSEMBLE, METRICS, MLFLOW_ARTIFACTS
from pipeline.evaluation.figures import Curve
from pipeline.run.config import Config
from pipeline.run.folder import trained_on
from pipeline.run.starting_point import starting_point_of
from pipeline.tracking import read_metrics


@dataclass(frozen=True, kw_only=True)
class OtherRun:
    """One training or ensemble. state: of a training that can be read; else None.

    status, notes: for people. data: what identifies its dataset, and the dataset's place; None where neither is known.
    """

    folder: Path
    net: str
    status: str
    state: RunState | None = None
    tests: tuple[Tested, ...] = ()
    curves: tuple[Curve, ...] = ()
    members: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    data: tuple[str | None, str | None] = (None, None)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def last_error(self) -> float:
        """The last val error of its curve; infinite where it has none."""
        ends = [curve.y[-1] for curve in self.curves if curve.kind == "test"]
        return float(ends[0]) if ends else math.inf


@dataclass(frozen=True, kw_only=True)
class Group:
    """The runs on one dataset: ensembles last, before them the trainings, by their last val error."""

    data: DataFacts
    runs: tuple[OtherRun, ...]


@dataclass(frozen=True, kw_only=True)
class Others:
    """What the folders hold beside the experiments on the page.

    unselected: run folders by the experiment that they belong to, which is not on the page. strangers: folders that are no
    runs.
    """

    groups: tuple[Group, ...] = ()
    unselected: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    strangers: tuple[Path, ...] = ()

    @property
    def runs(self) -> list[OtherRun]:
        return [run for group in self.groups for run in group.runs]

    @property
    def finished(self) -> int:
        return sum(run.status == "finished" for run in self.runs)

    @property
    def sentences(self) -> list[str]:
        """How many folders are what, in words; nothing about what there is none of."""
        sentences = []
        if runs := self.runs:
            ensembles = sum(bool(run.members) for run in runs)
            detail = f", {_count(ensembles, 'of them an ensemble', 'of them ensembles')}" if ensembles else ""
            sentences.append(f"{_count(len(runs), 'run belongs', 'runs belong')} to no experiment{detail}.")
        for name, folders in self.unselected.items():
            belong = _count(len(folders), "run belongs", "runs belong")
            sentences.append(
                f"{belong} to the experiment {name}, which is not on this page: {_listed([path.name for path in folders])}."
            )
        if self.strangers:
            listed = _listed([path.name for path in self.strangers])
            sentences.append(f"{_count(len(self.strangers), 'folder is no run', 'folders are no runs')}: {listed}.")
        return sentences


def find_others(
    folders: Sequence[Path], experiments: Sequence[Experiment], shown: set[Path], own: str, advance: Callable[[], None]
) -> Others:
    """What `folders` hold beside the runs in `shown`, which the experiments show. own: the folder of the report's own run.

    advance: called after each folder that holds a run.
    """
    conflicting = {spec.name(scale) for one in experiments for spec in one.runs for scale in scales_of(one, folders)}
    places = [path for folder in folders for path in sorted(folder.iterdir()) if path.is_dir() and path not in shown]
    unselected = _unselected(folders, {path.name for path in places}, experiments)
    known = {path for paths in unselected.values() for path in paths}
    trainings = [path for path in places if holds_run(path) and not (path / ENSEMBLE).is_file() and path not in known]
    runs, states = [], {}
    for path in trainings:
        notes = ("a run of an experiment has this name, and another config or another copy",) * (
            path.name in conflicting
        )
        run = _training(path, notes)
        if run.state is not None:
            states[path.resolve()] = run.state
        runs.append(run)
        advance()
    for path in places:
        if (path / ENSEMBLE).is_file():
            runs.append(_ensemble(path, states))
            advance()
    strangers = tuple(path for path in places if _is_stranger(path) and path.name != own)
    return Others(groups=tuple(_grouped(runs)), unselected=unselected, strangers=strangers)


def holds_run(folder: Path) -> bool:
    """Whether a training or an ensemble stands in a folder."""
    return (folder / CONFIG).is_file() or (folder / ENSEMBLE).is_file()


def _is_stranger(path: Path) -> bool:
    """Whether a folder holds no run and nothing that belongs to the store beside the runs."""
    return not holds_run(path) and path.name != MLFLOW_ARTIFACTS and not path.name.startswith(".")


def _unselected(
    folders: Sequence[Path], present: set[str], experiments: Sequence[Experiment]
) -> dict[str, tuple[Path, ...]]:
    """The folders with runs of experiments that come with the code and are not on the page, each under the first of them."""
    found: dict[str, tuple[Path, ...]] = {}
    seen: set[Path] = set()
    for name in names():
        if any(name == one.name for one in experiments):
            continue
        experiment = find(name)
        wanted = {
            spec.name(scale): (spec, scale)
            for scale in scales_of(experiment, folders)
            for spec in experiment.runs
            if spec.name(scale) in present
        }
        runs = [
            folder / key
            for key, (spec, scale) in wanted.items()
            for folder in folders
            if (folder / key / CONFIG).is_file() and folder / key not in seen
            if is_run_of(resolve(spec, runs=str(folder), scale=scale))
        ]
        if runs:
            found[name] = tuple(runs)
            seen |= set(runs)
    return found


def _training(folder: Path, notes: tuple[str, ...]) -> OtherRun:
    try:
        state = state_in(folder)
        records = read_metrics(folder / METRICS)
        if point := starting_point_of(folder):
            notes = (f"starts from {point.without_folders}", *notes)
        return OtherRun(
            folder=folder,
            net=net_of(state.config),
            status=state.text,
            state=state,
            tests=tests_of(state),
            curves=tuple(curves(folder.name, records)),
            notes=notes,
            data=(trained_on(folder), state.config.data),
        )
    except UserError as error:
        return OtherRun(folder=folder, net="unknown", status="damaged", notes=(str(error), *notes))


def _ensemble(folder: Path, states: Mapping[Path, RunState]) -> OtherRun:
    try:
        found = ensemble_tests(folder, states)
    except UserError as error:
        return OtherRun(folder=folder, net="ensemble", status="damaged", notes=(str(error),))
    return OtherRun(
        folder=folder,
        net=f"ensemble of {len(found.members)}",
        status="finished" if found.tests else "without scores",
        tests=found.tests,
        members=found.members,
        notes=found.missing,
        data=(found.dataset_sha256, None),
    )


def net_of(config: Config) -> str:
    """The net in words: its name, and what is not the paper's of it."""
    shortcut = "" if config.shortcut == "default" else f", shortcut {config.shortcut}"
    return f"{config.arch}{shortcut}" + ("" if config.stride == "paper" else f", stride {config.stride}")


def _grouped(runs: Sequence[OtherRun]) -> Iterator[Group]:
    """The runs by dataset, in the order of the datasets' first runs; runs of an unknown one last."""
    known = dict.fromkeys(run.data[0] for run in runs if run.data[0])
    for identity in [*known, None]:
        members = [run for run in runs if run.data[0] == identity]
        if members:
            yield Group(
                data=described(identity, [run.data[1] for run in members if run.data[1]]),
                runs=tuple(sorted(members, key=lambda run: (bool(run.members), run.last_error, run.name))),
            )


def _count(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def _listed(texts: Sequence[str], most: int = 8) -> str:
    """The first few of some names."""
    rest = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {rest:,} more" if rest > 0 else "")
