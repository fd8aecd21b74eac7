"""A row of an experiment as it stands in the run folders now: how far its runs are, and their errors beside the paper's.

What counts as a run's errors, paper.evidence decides: score files made from the final checkpoint. Where a
finished run was not tested yet but evaluated itself at its end, that centre-crop error stands in, with Wilson's interval.
Unfinished and conflicting runs give no errors.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from paper import published as paper
from paper.evidence import RunResult, read_result
from paper.spec import Experiment, Row, RunSpec, resolve
from paper.state import RunState, read_state
from pipeline.base.command import UserError
from pipeline.base.layout import CONFIG, METRICS
from pipeline.data.dataset import Dataset
from pipeline.evaluation.ensemble import Errors, all_ranks, check_members, errors_of
from pipeline.evaluation.scores import load as load_scores
from pipeline.evaluation.scores import ranks_of
from pipeline.models.architecture import parse_arch
from pipeline.run.config import Config
from pipeline.run.folder import read_facts
from pipeline.run.options import load
from pipeline.tracking import read_metrics

Z95 = 1.959964  # standard normal quantile of a two-sided 95% interval
VAL_KINDS = {"final": "val", "recomputed-bn": "val_recomputed_bn"}  # records of the centre crop in metrics.jsonl


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The errors of one net or ensemble on `images` images. logged: by the run itself, not from a score file."""

    errors: Errors
    images: int
    logged: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """One figure of a row beside the paper's. Percent; None where there is none.

    spread: sample standard deviation over seeds, ours and the paper's. comparable: whether a difference means anything.
    """

    metric: str
    paper: float | None
    ours: float | None = None
    interval: tuple[float, float] | None = None
    paper_spread: float | None = None
    spread: float | None = None
    comparable: bool = True

    @property
    def difference(self) -> float | None:
        """Ours less the paper's, in percentage points."""
        if self.ours is None or self.paper is None or not self.comparable:
            return None
        return self.ours - self.paper


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A row as it stands: each of its runs, its figures beside the paper's, and what has to be said of them."""

    row: Row
    runs: tuple[RunResult, ...]
    lines: tuple[Line, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def shown_notes(self) -> tuple[str, ...]:
        """The notes; before them, where several runs are only partly there, how far they are."""
        partly = any(line.ours is not None for line in self.lines) and any(
            run.state.kind != "finished" for run in self.runs
        )
        return (*((self.status,) if partly else ()), *self.notes)

    @property
    def counted(self) -> tuple[str, ...]:
        """The names of the finished runs: those that its figures come from, where it has any."""
        if not any(line.ours is not None for line in self.lines):
            return ()
        return tuple(run.state.folder.name for run in self.runs if run.state.kind == "finished")

    @property
    def status(self) -> str:
        """`finished`, `not run`, `interrupted (iteration 5 of 10)`, or how many of several runs are how far."""
        if len(self.runs) == 1:
            return self.runs[0].text
        texts = [one.text for one in self.runs]
        if len(set(texts)) == 1:
            return texts[0] if texts[0] == "not run" else f"all {len(texts)} runs {texts[0]}"
        finished = sum(one.state.kind == "finished" for one in self.runs)
        others = [
            f"{one.state.config.run_name} {one.text}" for one in self.runs if one.text not in ("finished", "not run")
        ]
        return "; ".join([f"{finished} of {len(texts)} runs finished", *others])


class States:
    """The states of runs in some folders, each read once, however many experiments ask for it."""

    def __init__(self, runs: Sequence[Path]) -> None:
        self.runs = runs
        self._known: dict[tuple[RunSpec, float], RunState] = {}
        self._recipes: dict[tuple[RunSpec, float], Config] = {}

    def recipe(self, spec: RunSpec, scale: float = 1.0) -> Config:
        """The config that the experiment wants the run to have; resolving one takes a tenth of a second."""
        if (spec, scale) not in self._recipes:
            self._recipes[spec, scale] = resolve(spec, scale=scale)
        return self._recipes[spec, scale]

    def of(self, spec: RunSpec, scale: float) -> RunState:
        """In the first of the folders that has the run. A run that stands in two of them is conflicting."""
        if (spec, scale) not in self._known:
            self._known[spec, scale] = self._read(spec, scale)
        return self._known[spec, scale]

    def _read(self, spec: RunSpec, scale: float) -> RunState:
        wanted = self.recipe(spec, scale)
        states = [read_state(replace(wanted, runs=str(folder))) for folder in self.runs]
        present = [state for state in states if state.kind != "not run"]
        if len(present) > 1:
            places = " and ".join(str(state.folder.parent) for state in present)
            return replace(present[0], kind="conflicting", differences=(f"a run of this name stands in {places}",))
        return (present or states)[0]


def scales_of(experiment: Experiment, runs: Sequence[Path]) -> list[float]:
    """1, and the scales under which any of the experiment's runs stand shortened in the folders; largest first."""
    found = {1.0}
    for spec in experiment.runs:
        prefix = f"{spec.name()}-scale"
        for place in (path for folder in runs for path in folder.glob(f"{prefix}*/{CONFIG}")):
            text = place.parent.name.removeprefix(prefix)
            try:
                found |= {float(text)} if 0 < float(text) < 1 and spec.name(float(text)) == place.parent.name else set()
            except ValueError:
                continue  # a run that somebody named so
    return sorted(found, reverse=True)


def table_row(experiment: Experiment, row: Row, states: States, scale: float) -> TableRow:
    """The row's runs and, for error and ensemble experiments, its figures under the experiment's protocols."""
    results = tuple(read_result(experiment, spec, states.of(spec, scale)) for spec in row.runs)
    notes = [row.note] if row.note else []
    if experiment.measure not in ("error", "ensemble"):
        return TableRow(row=row, runs=results, notes=tuple(notes))
    if experiment.measure == "ensemble":
        measured = _ensemble(results)
        known = [measured] if measured else []
    else:
        known = [one for result in results if (one := _measured(experiment, result)) is not None]
    if any(one.logged for one in known):
        notes.append("not tested yet: the error is that of the run's own evaluation at its end")
    comparable = _comparable(experiment, row, known, notes)
    if len(row.runs) > 1 and experiment.measure == "error":
        lines = _lines_of_seeds(row, known, comparable)
    else:
        top5 = any("top5_error" in one.paper for one in experiment.rows)
        lines = _lines_of_one(row.paper, known[0] if known else None, top5, comparable)
        lines += _one_crop_lines(experiment, row, results, comparable)
    return TableRow(row=row, runs=results, lines=lines, notes=tuple(notes))


def _measured(experiment: Experiment, result: RunResult) -> Measured | None:
    """The errors of one run; None where it has none yet."""
    if result.source is not None:
        scores = load_scores(result.source)
        return Measured(errors=errors_of(ranks_of(scores)), images=len(scores)) if scores.labelled else None
    if result.state.kind == "finished" and experiment.protocols[0] == "center" and experiment.split == "val":
        return _logged_errors(result.state, VAL_KINDS[experiment.weights])
    return None


def _ensemble(results: Sequence[RunResult]) -> Measured | None:
    """The errors of the average of all members' scores; None where one has none. Raises UserError where they do not fit."""
    if any(one.source is None for one in results):
        return None
    members = [load_scores(one.source) for one in results if one.source is not None]
    check_members(members, [one.state.config.run_name for one in results])
    ranks = all_ranks(members, [tuple(range(len(members)))])[0]
    return Measured(errors=errors_of(ranks), images=len(members[0]))


def _one_crop_lines(
    experiment: Experiment, row: Row, results: Sequence[RunResult], comparable: bool
) -> tuple[Line, ...]:
    """The authors' 1-crop errors beside ours, for the nets they give them of, where the experiment tests that too."""
    if row.label not in paper.ONE_CROP or "center" not in experiment.protocols[1:]:
        return ()
    single = replace(experiment, protocols=("center",))
    measured = _measured(single, read_result(single, results[0].spec, results[0].state))
    figures = dict(zip(("top1_error", "top5_error"), paper.ONE_CROP[row.label], strict=True))
    lines = _lines_of_one(figures, measured, True, comparable)
    return tuple(replace(line, metric=f"{line.metric}, 1-crop") for line in lines)


def wilson_interval(wrong: int, images: int) -> tuple[float, float]:
    """Wilson's 95% score interval of an error rate, percent (Wilson 1927), where only the count is known."""
    share, z2 = wrong / images, Z95**2
    middle = share + z2 / (2 * images)
    half = Z95 * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    low, high = (100 * (middle + sign * half) / (1 + z2 / images) for sign in (-1, 1))
    return max(0.0, low), min(100.0, high)


def _logged_errors(state: RunState, kind: str) -> Measured | None:
    """From the run's own evaluation at its end, where the dataset folder is at hand to say on how many images."""
    values = [
        one.values
        for one in read_metrics(state.folder / METRICS)
        if (one.kind, one.iteration) == (kind, state.config.iterations)
    ]
    images = _val_images(state.folder)
    if not values or images is None:
        return None
    top1, top5 = values[0]["top1_error"], values[0]["top5_error"]
    intervals = [wilson_interval(round(error * images / 100), images) for error in (top1, top5)]
    errors = Errors(top1_error=top1, top5_error=top5, top1_interval=intervals[0], top5_interval=intervals[1])
    return Measured(errors=errors, images=images, logged=True)


def _val_images(run: Path) -> int | None:
    try:
        dataset = Dataset(load(run / CONFIG).data)
        return len(dataset.split("val")) if dataset.sha256 == read_facts(run).get("dataset_sha256") else None
    except (UserError, OSError):
        return None


def _comparable(experiment: Experiment, row: Row, known: Sequence[Measured], notes: list[str]) -> bool:
    """Whether the errors were counted on as many images as the paper's; adds a note where they were not."""
    wanted = experiment.paper_images or paper.TEST_IMAGES[parse_arch(row.runs[0].arch).family]
    others = sorted({one.images for one in known} - {wanted})
    if others:
        notes.append(f"on {others[0]:,} images, not the paper's {wanted:,}: no difference is given")
    return not others


def _lines_of_one(
    figures: Mapping[str, float], measured: Measured | None, top5: bool, comparable: bool
) -> tuple[Line, ...]:
    """Top-1 and, where the experiment gives it, top-5; `figures`: the paper's, by the names of Row.paper."""
    errors = measured.errors if measured else None
    return tuple(
        Line(
            metric=f"top-{k}",
            paper=figures.get(f"top{k}_error"),
            ours=getattr(errors, f"top{k}_error") if errors else None,
            interval=getattr(errors, f"top{k}_interval") if errors else None,
            comparable=comparable,
        )
        for k in ((1, 5) if top5 else (1,))
    )


def _lines_of_seeds(row: Row, known: Sequence[Measured], comparable: bool) -> tuple[Line, ...]:
    """Best, and mean and standard deviation, over the seeds of one net, as Table 6 has ResNet-110."""
    errors = [one.errors.top1_error for one in known]
    count = f"{len(known)} of {len(row.runs)}" if len(known) < len(row.runs) else f"{len(known)}"
    best = min(known, key=lambda one: one.errors.top1_error).errors if known else None
    return (
        Line(
            metric=f"best of {count} runs" if known else "best run",
            paper=row.paper.get("top1_error"),
            ours=best.top1_error if best else None,
            interval=best.top1_interval if best else None,
            comparable=comparable,
        ),
        Line(
            metric=f"mean of {count} runs" if known else "mean of runs",
            paper=row.paper.get("top1_mean"),
            ours=statistics.fmean(errors) if errors else None,
            spread=statistics.stdev(errors) if len(errors) > 1 else None,
            paper_spread=row.paper.get("top1_std"),
            comparable=comparable,
        ),
    )
