"""What a run's files prove of it: its figures, and the tests that are still missing. Read anew on every call; no cache.

A figure counts only where it comes from the checkpoint that ends the run: score files and responses.json name the
checkpoint file (and so its digest) that they were made from.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paper.spec import Experiment, RunSpec
from paper.state import RunState
from pipeline.base.command import UserError
from pipeline.base.layout import METRICS, RESPONSES, score_path_in
from pipeline.evaluation import responses
from pipeline.evaluation.ensemble import errors_of
from pipeline.evaluation.responses import Responses
from pipeline.evaluation.scores import Scores, load, ranks_of
from pipeline.run.folder import trained_on
from pipeline.tracking.journal import read_metrics


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The figures of one model or ensemble: train_error, top1_error, top5_error in percent; response_std.

    intervals: 95%, of the figures that have one. images: how many the errors are counted on; 0 where that is not known.
    logged: whether the figures come from the run's own evaluation at its end, not from a score file.
    """

    figures: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    images: int = 0
    logged: bool = False


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run of a row.

    measured: the figures that count, of a run that is finished and has all its tests; else None. source: the file that
    they come from. tested: errors by protocol, of the tests that are there. responses: of Fig. 7, the mean of which is
    response_std. missing: tests that a finished run still lacks: protocols, or "responses".
    """

    spec: RunSpec
    state: RunState
    measured: Measured | None = None
    source: Path | None = None
    tested: Mapping[str, Measured] = field(default_factory=dict)
    responses: Responses | None = None
    missing: tuple[str, ...] = ()

    @property
    def figures(self) -> dict[str, float]:
        return dict(self.measured.figures) if self.measured else {}

    @property
    def text(self) -> str:
        """For tables: the state, and the tests that a finished run still lacks."""
        return f"finished, without {', '.join(self.missing)}" if self.missing else self.state.text


def read_result(experiment: Experiment, spec: RunSpec, state: RunState) -> RunResult:
    """What the experiment gets from the run folder of a run in this state."""
    result = RunResult(spec=spec, state=state)
    if state.kind != "finished":
        return result
    match experiment.measure:
        case "curve":
            return replace(result, measured=_last_errors(state), source=state.folder / METRICS)
        case "responses":
            return _with_responses(experiment, result)
        case "error" | "ensemble":
            return _with_errors(experiment, result)


def measured_errors(ranks: NDArray[np.int64]) -> Measured:
    """Top-1 and top-5 error, with bootstrap intervals, from the true class's rank in each image."""
    errors = errors_of(ranks)
    return Measured(
        figures={"top1_error": errors.top1_error, "top5_error": errors.top5_error},
        intervals={"top1_error": errors.top1_interval, "top5_error": errors.top5_interval},
        images=len(ranks),
    )


def _with_errors(experiment: Experiment, result: RunResult) -> RunResult:
    """The errors under each protocol; those under the first count, once the scores of all are there."""
    tested: dict[str, Measured] = {}
    missing: list[str] = []
    source: Path | None = None
    for protocol in experiment.protocols:
        scores = _scores(experiment, result.state, protocol)
        if scores is None:
            missing.append(protocol)
            continue
        source = source or scores.path
        if scores.labelled:
            tested[protocol] = measured_errors(ranks_of(scores))
    if missing:
        return replace(result, tested=tested, missing=tuple(missing))
    return replace(result, tested=tested, measured=tested.get(experiment.protocols[0]), source=source)


def _scores(experiment: Experiment, state: RunState, protocol: str) -> Scores | None:
    """The scores of a finished run under one protocol; None where there are none of its final checkpoint."""
    path = score_path_in(state.folder, protocol, experiment.split, state.config.iterations, experiment.weights)
    try:
        scores = load(path)
    except UserError:
        return None  # missing or damaged: the test is made again
    have = scores.provenance
    wanted = (state.checkpoint, experiment.weights, experiment.split, protocol, trained_on(state.folder))
    same = (have.checkpoint, have.weights, have.split, have.protocol, have.dataset_sha256) == wanted
    return scores if same else None


def _last_errors(state: RunState) -> Measured:
    """The training and val errors that the run logged at its last iteration."""
    records = read_metrics(state.folder / METRICS)
    last = {record.kind: record.values for record in records if record.iteration == state.config.iterations}
    figures = {"train_error": last.get("train", {}).get("top1_error", math.nan)}
    figures |= {name: last.get("val", {}).get(name, math.nan) for name in ("top1_error", "top5_error")}
    return Measured(figures={name: value for name, value in figures.items() if math.isfinite(value)})


def _with_responses(experiment: Experiment, result: RunResult) -> RunResult:
    """The standard deviations of the layers and their mean, where responses.json is of the final checkpoint."""
    state = result.state
    try:
        found = responses.read(state.folder)
    except UserError:
        found = None  # damaged: the responses are measured again
    wanted = (state.checkpoint, experiment.weights, experiment.split, trained_on(state.folder))
    if found is None or (found.checkpoint, found.weights, found.split, found.dataset_sha256) != wanted:
        return replace(result, missing=("responses",))
    measured = Measured(figures={"response_std": statistics.fmean(found.std)})
    return replace(result, measured=measured, responses=found, source=state.folder / RESPONSES)
