"""The rows of a table or figure, evaluated: the runs of each row, and the row's figures beside the paper's.

`pipeline.experiment` prints the rows as text and JSON, `pipeline.report` as HTML. Figures are percent, but for the
responses of Fig. 7. paper/evidence.py decides what counts as a run's figures. A finished run without a score file may have
evaluated itself at its end: that centre-crop error stands in on the page, with Wilson's interval. Unfinished and
conflicting runs give no figures.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from paper import published
from paper.evidence import Measured, RunResult, measured_errors, read_result
from paper.logged import logged_errors
from paper.spec import Experiment, Measure, Place, Row, RunSpec, resolve
from paper.state import RunState, read_state
from pipeline.evaluation.ensemble import all_ranks, check_members
from pipeline.evaluation.scores import load as load_scores
from pipeline.models.architecture import parse_arch

# Images that the paper's errors are counted on: ImageNet val (section 4.1) and CIFAR-10's test set (section 4.2).
TEST_IMAGES = {"imagenet": 50_000, "cifar": 10_000}
FIGURES: Mapping[Measure, tuple[str, ...]] = {
    "error": ("top1_error", "top5_error"),
    "ensemble": ("top1_error", "top5_error"),
    "curve": ("train_error", "top1_error", "top5_error"),
    "responses": ("response_std",),
}
METRIC = {"train_error": "training", "top1_error": "top-1", "top5_error": "top-5", "response_std": "mean std"}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One figure of a row beside the paper's; None where there is no value.

    name: the figure's key in JSON, such as top1_error or top1_mean. metric: the same in words. interval: 95%.
    spread: sample standard deviation (n - 1) over the seeds. published: what others published, by source. comparable:
    whether a difference means anything.
    """

    name: str
    metric: str
    paper: float | None
    ours: float | None = None
    interval: tuple[float, float] | None = None
    paper_spread: float | None = None
    spread: float | None = None
    published: Mapping[str, float] = field(default_factory=dict)
    comparable: bool = True

    @property
    def reference(self) -> float | None:
        """The paper's value; where it has none, that of the first source that published one."""
        return next(iter(self.published.values()), None) if self.paper is None else self.paper

    @property
    def difference(self) -> float | None:
        """Ours less the reference, in percentage points."""
        if self.ours is None or self.reference is None or not self.comparable:
            return None
        return self.ours - self.reference


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """One row as the run folders show it now.

    lines: figures of the finished runs, even where other runs of the row are missing. one_crop: centre-crop errors
    beside published ones, where the experiment file gives some. notes: what a reader must know to compare.
    """

    row: Row
    runs: tuple[RunResult, ...]
    lines: tuple[Line, ...]
    one_crop: tuple[Line, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def figures(self) -> dict[str, float]:
        """The row's figures by name, but only where every run is finished and tested."""
        if not all(run.figures for run in self.runs):
            return {}
        values = {line.name: line.ours for line in self.lines}
        spreads = {line.name.removesuffix("_mean") + "_std": line.spread for line in self.lines}
        return {name: value for name, value in {**spreads, **values}.items() if value is not None}

    @property
    def complete(self) -> bool:
        return bool(self.figures)

    @property
    def measured(self) -> bool:
        """Whether there is any figure of ours."""
        return any(line.ours is not None for line in (*self.lines, *self.one_crop))

    @property
    def state(self) -> str:
        """The run's state; of several runs in different states, how many are finished."""
        states = {run.text for run in self.runs}
        return states.pop() if len(states) == 1 else f"{len(self.finished)} of {len(self.runs)} runs finished"

    @property
    def status(self) -> str:
        """`state` and, of several runs in different states, the states of those that are neither finished nor 'not run'."""
        others = [run for run in self.runs if run.text not in ("finished", "not run", self.state)]
        return "; ".join([self.state, *(f"{run.state.config.run_name} {run.text}" for run in others)])

    @property
    def finished(self) -> tuple[str, ...]:
        """The names of the finished runs."""
        return tuple(run.state.folder.name for run in self.runs if run.state.kind == "finished")


def collect(experiment: Experiment, data: Place = None, runs: Place = None, scale: float = 1.0) -> list[RowResult]:
    """Every row as the run folders show it now; arguments as in `paper.spec.resolve`. Starts nothing."""
    return evaluate(experiment, lambda spec: read_state(resolve(spec, data, runs, scale)))


def evaluate(experiment: Experiment, state_of: Callable[[RunSpec], RunState]) -> list[RowResult]:
    """Every row, given the state of each run. Raises UserError for members of an ensemble that do not fit together."""
    results = {spec: read_result(experiment, spec, state_of(spec)) for spec in experiment.runs}
    return [_row_result(experiment, row, tuple(results[spec] for spec in row.runs)) for row in experiment.rows]


def _row_result(experiment: Experiment, row: Row, runs: tuple[RunResult, ...]) -> RowResult:
    protocol = experiment.protocols[0] if experiment.protocols else None
    if experiment.measure == "ensemble":
        known = [_ensemble(runs)] if all(run.figures for run in runs) else []
    else:
        found = [run.measured or _logged(experiment, run, protocol) for run in runs]
        known = [measured for measured in found if measured is not None]
    notes = [row.note] if row.note else []
    if any(measured.logged for measured in known):
        notes.append("not tested yet: the error is that of the run's own evaluation at its end")
    comparable = protocol is None or _comparable(experiment, row, known, notes)
    if len(runs) > 1 and experiment.measure != "ensemble":
        lines = _lines_of_seeds(experiment, row, known, comparable)
    else:
        lines = _lines(FIGURES[experiment.measure], row.paper, known[0] if known else None, comparable)
    return RowResult(
        row=row,
        runs=runs,
        lines=_with_published(experiment, row, protocol, lines),
        one_crop=_one_crop(experiment, row, runs[0], comparable),
        notes=tuple(notes),
    )


def _one_crop(experiment: Experiment, row: Row, run: RunResult, comparable: bool) -> tuple[Line, ...]:
    """The centre crop's lines of a row, where a table of another protocol has published errors of it."""
    names: dict[str, None] = {}
    if experiment.measure == "error" and experiment.protocols[0] != "center":
        names = {**dict.fromkeys(row.one_crop), **published.centre_crop(experiment.published, row.label)}
    if not names:
        return ()
    centre = run.tested.get("center") or _logged(experiment, run, "center")
    lines = _lines(tuple(names), row.one_crop, centre, comparable)
    lines = tuple(replace(line, metric=f"{line.metric}, 1-crop") for line in lines)
    return _with_published(experiment, row, "center", lines)


def _with_published(
    experiment: Experiment, row: Row, protocol: str | None, lines: tuple[Line, ...]
) -> tuple[Line, ...]:
    known = experiment.published
    return tuple(replace(line, published=published.beside(known, row.label, protocol, line.name)) for line in lines)


def _ensemble(runs: Sequence[RunResult]) -> Measured:
    """The errors of the average of all members' scores. Raises UserError where the score files do not fit together."""
    members = [load_scores(run.source) for run in runs if run.source is not None]
    check_members(members, [run.state.config.run_name for run in runs])
    return measured_errors(all_ranks(members, [tuple(range(len(members)))])[0])


def _lines(
    names: Sequence[str], paper: Mapping[str, float], measured: Measured | None, comparable: bool
) -> tuple[Line, ...]:
    """A line for each figure of one model or ensemble; `paper`: the paper's figures by name."""
    return tuple(
        Line(
            name=name,
            metric=METRIC[name],
            paper=paper.get(name),
            ours=measured.figures.get(name) if measured else None,
            interval=measured.intervals.get(name) if measured else None,
            comparable=comparable,
        )
        for name in names
    )


def _lines_of_seeds(experiment: Experiment, row: Row, known: Sequence[Measured], comparable: bool) -> tuple[Line, ...]:
    """The best of several seeds of one model, then their mean and standard deviation, as Table 6 has ResNet-110."""
    key = "response_std" if experiment.measure == "responses" else "top1_error"
    known = [measured for measured in known if key in measured.figures]
    values = [measured.figures[key] for measured in known]
    best = min(known, key=lambda measured: measured.figures[key]) if known else None
    count = f"{len(known)} of {len(row.runs)}" if len(known) < len(row.runs) else f"{len(known)}"
    metrics = {key: f"best of {count} runs" if known else "best run"}
    name = key.removesuffix("_error")
    mean = Line(
        name=f"{name}_mean",
        metric=f"mean of {count} runs" if known else "mean of runs",
        paper=row.paper.get(f"{name}_mean"),
        ours=statistics.fmean(values) if values else None,
        spread=statistics.stdev(values) if len(values) > 1 else None,
        paper_spread=row.paper.get(f"{name}_std"),
        comparable=comparable,
    )
    lines = _lines(FIGURES[experiment.measure], row.paper, best, comparable)
    return (*(replace(line, metric=metrics.get(line.name, f"{line.metric} of the best")) for line in lines), mean)


def _comparable(experiment: Experiment, row: Row, known: Sequence[Measured], notes: list[str]) -> bool:
    """Whether the errors are counted on as many images as the paper's; adds a note where they are not."""
    wanted = experiment.paper_images or TEST_IMAGES[parse_arch(row.runs[0].arch).family]
    others = sorted({measured.images for measured in known} - {wanted})
    if others:
        notes.append(f"on {others[0]:,} images, not the paper's {wanted:,}: no difference is given")
    return not others


def _logged(experiment: Experiment, run: RunResult, protocol: str | None) -> Measured | None:
    """What the run logged at its end, where that is what the experiment tests: the centre crop of val."""
    if protocol != "center" or experiment.split != "val":
        return None
    return logged_errors(run.state, experiment.weights)
