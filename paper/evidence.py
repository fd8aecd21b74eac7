"""The figures of an experiment's rows, from the runs' own files alone: nothing is remembered, so nothing can be stale.

A figure counts where it comes from the very checkpoint that ends its run: score files and responses.json name the file
(and so the digest) they were made from. Figures are percent: train_error, top1_error, top5_error; for several seeds, of
the best with top1_mean and top1_std (n - 1) beside it, as in Table 6; response_std is the mean over the layers.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paper.spec import Experiment, Row, RunSpec, resolve
from paper.state import RunState, read_state
from pipeline.base.command import UserError
from pipeline.base.layout import METRICS, RESPONSES, score_path_in
from pipeline.evaluation.ensemble import all_ranks, check_members
from pipeline.evaluation.scores import Scores, load, percent
from pipeline.run.folder import read_facts
from pipeline.tracking.journal import read_metrics


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run of a row: its state, its figures ({} where it has none yet) and the file that they come from.

    missing: what still has to be made of the finished run: protocols, or "responses".
    """

    spec: RunSpec
    state: RunState
    figures: dict[str, float] = field(default_factory=dict)
    source: Path | None = None
    missing: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """For tables: the state, and what a finished run still lacks."""
        return f"finished, without {', '.join(self.missing)}" if self.missing else self.state.text


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """One row: its figures only where every run of it is finished and tested; never of a part of them."""

    row: Row
    runs: tuple[RunResult, ...]
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return bool(self.figures)

    @property
    def text(self) -> str:
        """For tables: the run's state, or how many of several are finished."""
        if len(self.runs) == 1:
            return self.runs[0].text
        texts = [one.text for one in self.runs]
        if len(set(texts)) == 1:
            return texts[0]
        done = sum(bool(one.figures) for one in self.runs)
        conflicting = sum(one.state.kind == "conflicting" for one in self.runs)
        return f"{done} of {len(texts)} finished" + (f", {conflicting} conflicting" if conflicting else "")


def collect(
    experiment: Experiment, data: Path | str | None = None, runs: Path | str | None = None, scale: float = 1.0
) -> list[RowResult]:
    """Every row as the run folders show it now; arguments as in `definitions.resolve`. Starts nothing."""
    found = {
        spec: read_result(experiment, spec, read_state(resolve(spec, data, runs, scale))) for spec in experiment.runs
    }
    return [_row(experiment, row, [found[spec] for spec in row.runs]) for row in experiment.rows]


def read_result(experiment: Experiment, spec: RunSpec, state: RunState) -> RunResult:
    """What the folder of a run in that state has to say for the experiment."""
    if state.kind != "finished":
        return RunResult(spec=spec, state=state)
    if experiment.measure == "curve":
        return RunResult(spec=spec, state=state, figures=_last_errors(state), source=state.folder / METRICS)
    if experiment.measure == "responses":
        figures, source = _responses(state, experiment), state.folder / RESPONSES
        if not figures:
            return RunResult(spec=spec, state=state, missing=("responses",))
        return RunResult(spec=spec, state=state, figures=figures, source=source)
    scores = {protocol: _scores(experiment, state, protocol) for protocol in experiment.protocols}
    compared = scores[experiment.protocols[0]]
    missing = tuple(protocol for protocol, found in scores.items() if found is None)
    if compared is None or missing:
        return RunResult(spec=spec, state=state, missing=missing)
    return RunResult(spec=spec, state=state, figures=_errors(compared), source=compared.path)


def _scores(experiment: Experiment, state: RunState, protocol: str) -> Scores | None:
    """The scores of a finished run under one protocol; None where there are none of its final checkpoint."""
    path = score_path_in(state.folder, protocol, experiment.split, state.config.iterations, experiment.weights)
    try:
        found = load(path)
    except UserError:
        return None  # missing or damaged: they are made again
    have = found.provenance
    wanted = (state.checkpoint, experiment.weights, experiment.split, protocol, _trained_on(state))
    same = (have.checkpoint, have.weights, have.split, have.protocol, have.dataset_sha256) == wanted
    return found if same else None


def _trained_on(state: RunState) -> str | None:
    return read_facts(state.folder).get("dataset_sha256")


def _errors(scores: Scores) -> dict[str, float]:
    """{} where the split has no labels."""
    errors = {"top1_error": scores.errors(1), "top5_error": scores.errors(5)}
    return {name: value for name, value in errors.items() if value is not None}


def _last_errors(state: RunState) -> dict[str, float]:
    """The training and val errors that the run logged at its last iteration."""
    last = {
        record.kind: record.values
        for record in read_metrics(state.folder / METRICS)
        if record.iteration == state.config.iterations
    }
    figures = {"train_error": last.get("train", {}).get("top1_error", math.nan)}
    figures |= {name: last.get("val", {}).get(name, math.nan) for name in ("top1_error", "top5_error")}
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _responses(state: RunState, experiment: Experiment) -> dict[str, float]:
    """The mean of the layers' standard deviations; {} where responses.json is not of the final checkpoint."""
    try:
        values = json.loads((state.folder / RESPONSES).read_text())
        wanted = (state.checkpoint, experiment.weights, experiment.split, _trained_on(state))
        if tuple(values[key] for key in ("checkpoint", "weights", "split", "dataset_sha256")) != wanted:
            return {}
        return {"response_std": statistics.fmean(values["std"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _row(experiment: Experiment, row: Row, results: Sequence[RunResult]) -> RowResult:
    runs = tuple(results)
    if not all(one.figures for one in runs):
        return RowResult(row=row, runs=runs)
    if experiment.measure == "ensemble":
        return RowResult(row=row, runs=runs, figures=_ensemble(runs))
    if len(runs) == 1:
        return RowResult(row=row, runs=runs, figures=dict(runs[0].figures))
    return RowResult(row=row, runs=runs, figures=_best_and_spread(runs))


def _best_and_spread(runs: Sequence[RunResult]) -> dict[str, float]:
    """Table 6: "best (mean +- std)" over the seeds of one net."""
    key = "response_std" if "response_std" in runs[0].figures else "top1_error"
    values = [one.figures[key] for one in runs]
    best = min(runs, key=lambda one: one.figures[key])
    prefix = key.removesuffix("_error")
    return {**best.figures, f"{prefix}_mean": statistics.fmean(values), f"{prefix}_std": statistics.stdev(values)}


def _ensemble(runs: Sequence[RunResult]) -> dict[str, float]:
    scores = [load(one.source) for one in runs if one.source is not None]
    check_members(scores, [one.state.config.run_name for one in runs])
    ranks = all_ranks(scores, [tuple(range(len(scores)))])[0]
    return {"top1_error": percent(ranks >= 1), "top5_error": percent(ranks >= 5)}
