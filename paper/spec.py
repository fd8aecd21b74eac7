"""Experiments as data: a table or figure of the paper, its rows, and the runs and tests that each row needs.

configs/experiments/NAME.yaml holds them (reading.py). A run's name is a function of what is trained (`RunSpec.name`), so
that one run serves every experiment that needs it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from paper.published import Published
from pipeline.base.command import UserError, nearest
from pipeline.evaluation.names import Weights
from pipeline.run.config import Config, changes, check, to_plain
from pipeline.run.options import parse, parser
from pipeline.run.stretch import stretch, stretched

Measure = Literal["error", "ensemble", "curve", "responses"]
Shortcut = Literal["default", "A", "B", "C"]
Place = Path | str | None  # of the dataset folder or of the run folders; None: the base config's
SHORTEST_INTERVAL = 10  # a rehearsal that evaluates at every update does little else


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One training: a base config file and its overrides. Hashable; equal specs are one run.

    overrides: (dotted config key, value) pairs, sorted. variant: the part of the run's name that stands for another recipe
    or dataset.
    """

    config: Path
    arch: str
    seed: int = 0
    shortcut: Shortcut = "default"
    overrides: tuple[tuple[str, Any], ...] = ()
    variant: str | None = None

    def name(self, scale: float = 1.0) -> str:
        """The run's name: resnet34-seed0, resnet34B-seed0; with scale 0.05 resnet34-seed0-scale0.05."""
        letter = "" if self.shortcut == "default" else self.shortcut
        parts = [f"{self.arch}{letter}-seed{self.seed}", self.variant, None if scale == 1 else f"scale{scale!r}"]
        return "-".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table, or one model of a figure.

    runs: the trainings that the row needs: one model, several seeds of one model, or the members of an ensemble.
    paper: the paper's figures, some of top1_error, top5_error, top1_mean, top1_std; percent. one_crop: top1_error and
    top5_error of the centre crop, for a table of another protocol. note: what a reader must know to compare.
    """

    label: str
    runs: tuple[RunSpec, ...]
    paper: Mapping[str, float] = field(default_factory=dict)
    one_crop: Mapping[str, float] = field(default_factory=dict)
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class OtherMethod:
    """A row of the paper's table that this project does not train. Errors in percent; None where the paper has a dash."""

    name: str
    top1: float | None = None
    top5: float | None = None

    @property
    def metric(self) -> str:
        """`top-1 / top-5`, or whichever of the two the paper gives."""
        return " / ".join(name for name, value in (("top-1", self.top1), ("top-5", self.top5)) if value is not None)

    @property
    def text(self) -> str:
        return " / ".join(f"{value:.2f}" for value in (self.top1, self.top5) if value is not None)


@dataclass(frozen=True, kw_only=True)
class PanelSpec:
    """One panel of a figure: its title and the labels of its rows. kind: of error that the panel shows; None: both."""

    title: str
    rows: tuple[str, ...]
    kind: Literal["train", "test"] | None = None


@dataclass(frozen=True, kw_only=True)
class FigureSpec:
    """How a figure of training and test errors is drawn: x in 1e4 iterations, y in percent.

    x_limits, y_limits: of the axes; None fits the curves. panels: left to right; none: one panel with all rows.
    marks_from: the experiment whose rows give the paper's errors at the end, or a YAML file; None: this one's rows.
    mark_note: what a reader must know of these errors.
    """

    x_limits: tuple[float, float] | None = None
    y_limits: tuple[float, float] | None = None
    panels: tuple[PanelSpec, ...] = ()
    marks_from: str | None = None
    mark_note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outline:
    """An experiment without its rows, as its YAML file gives it.

    Args:
        title: one sentence for people.
        place: the place in the paper: "Table 6", "Fig. 7".
        measure: what a row shows. error: of its model on `split` under protocols[0]; ensemble: of the average of its runs'
            scores; curve: training and val error over the iterations; responses: standard deviations of layer responses.
        others: rows of the paper's table that this project does not train.
        published: errors that others published of nets in the rows.
        figure: how curves are drawn.
        protocols: the tests of every run; the errors under the first are compared with the paper's.
        split: of the dataset, that the tests read.
        weights: final, or those whose BN statistics were recomputed after training.
        paper_images: images that the paper's errors are counted on, where it is not all of the val (CIFAR: test) set.
        note: what a reader must know of the whole.
    """

    title: str
    place: str
    measure: Measure
    others: tuple[OtherMethod, ...] = ()
    published: tuple[Published, ...] = ()
    figure: FigureSpec = FigureSpec()
    protocols: tuple[str, ...] = ()
    split: str = "val"
    weights: Weights = "final"
    paper_images: int | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Experiment(Outline):
    """A group of runs that makes one table or figure of the paper. name: the YAML file's; rows: in the paper's order."""

    name: str
    rows: tuple[Row, ...]

    @property
    def runs(self) -> tuple[RunSpec, ...]:
        """Every run of the rows, once each, in their order."""
        return tuple(dict.fromkeys(spec for row in self.rows for spec in row.runs))

    @property
    def data(self) -> str:
        """The dataset folder (or URL) in the config of the runs."""
        return resolve(self.runs[0]).data

    def only(self, labels: Sequence[str]) -> Experiment:
        """The experiment with these rows alone (case does not count). Raises UserError for an unknown label."""
        known = {row.label.lower(): row.label for row in self.rows}
        for label in labels:
            if label.lower() not in known:
                raise UserError(f"{self.name} has no row '{label}': {nearest(label, known.values())}")
        wanted = {label.lower() for label in labels}
        return replace(self, rows=tuple(row for row in self.rows if row.label.lower() in wanted))


def resolve(
    spec: RunSpec, data: Place = None, runs: Place = None, scale: float = 1.0, surroundings: Sequence[str] = ()
) -> Config:
    """The config of a run; arguments as in `arguments`. Raises UserError as `pipeline.run.options.parse` does."""
    if surroundings:  # they may override any key
        return _parse(arguments(spec, data, runs, scale, surroundings))
    values: dict[str, Any] = {"arch": spec.arch, "seed": spec.seed, "name": spec.name(scale)}
    values |= {} if spec.shortcut == "default" else {"shortcut": spec.shortcut}
    values |= {key: str(value) for key, value in (("data", data), ("runs", runs)) if value is not None}
    config = replace(_recipe(spec.config, spec.overrides, scale), **values)
    check(config)
    return config


def arguments(
    spec: RunSpec, data: Place = None, runs: Place = None, scale: float = 1.0, surroundings: Sequence[str] = ()
) -> list[str]:
    """The options with which a launcher of launch/ trains this run.

    scale: shortens everything that is counted in iterations (intervals to 10 at least), and the number of images that BN
    statistics are recomputed over. surroundings: further options, of keys that do not change what the run computes. Raises
    UserError for a scale that is out of range.
    """
    words = [f"--config={spec.config}", f"--arch={spec.arch}", f"--seed={spec.seed}", f"--name={spec.name(scale)}"]
    words += [] if spec.shortcut == "default" else [f"--shortcut={spec.shortcut}"]
    words += _options(spec.overrides)
    words += [] if data is None else [f"--data={data}"]
    words += [] if runs is None else [f"--runs={runs}"]
    words += _options(_scaling(spec.config, spec.overrides, scale))
    return [*words, *surroundings]


def _recipe(file: Path, overrides: Sequence[tuple[str, Any]], scale: float) -> Config:
    """The config that the runs of one recipe share: a config file, an experiment's overrides in it, and the scale."""
    content = file.read_bytes() if file.is_file() else None  # where there is no file, the parser says so
    return _parse_once(file, content, (*_options(overrides), *_options(_scaling(file, overrides, scale))))


def _scaling(file: Path, overrides: Sequence[tuple[str, Any]], scale: float) -> list[tuple[str, Any]]:
    """(dotted key, value) of what `scale` changes in a recipe."""
    if not 0 < scale <= 1:
        raise UserError(f"--scale {scale:g} cannot be: give a number above 0 and at most 1, such as 0.05")
    if scale == 1:
        return []
    recipe = _recipe(file, overrides, 1.0)
    changed = changes(to_plain(recipe), to_plain(shorten(recipe, scale)))
    return [(key, value) for key, (_, value) in changed.items()]


def shorten(config: Config, scale: float) -> Config:
    """The rehearsal of a recipe: all that it counts, in iterations or images, times `scale`. Raises UserError."""
    schedule = config.schedule
    marks = (*schedule.steps, config.iterations)
    iterations = stretched(config.iterations, scale)
    if schedule.kind == "steps" and len({stretched(mark, scale) for mark in marks}) < len(marks):
        least = 1 / min(after - before for before, after in itertools.pairwise((0, *marks)))
        raise UserError(
            f"--scale {scale:g} leaves {iterations} iterations, too few for a learning rate that drops "
            f"{len(schedule.steps)} times: give at least {least:g}"
        )
    return stretch(config, scale, "iterations", "updates", "images", shortest_period=SHORTEST_INTERVAL)


def _options(values: Sequence[tuple[str, Any]]) -> list[str]:
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values]


@cache  # parsing takes 20 to 100 ms, and an experiment's dozens of runs share few recipes
def _parse_once(file: Path, content: bytes | None, options: tuple[str, ...]) -> Config:
    """`content` is a key of the cache alone, so that an edited file is read again."""
    return _parse([f"--config={file}", *options])


def _parse(words: Sequence[str]) -> Config:
    return parse(_parser(), words)[0]


@cache
def _parser() -> ArgumentParser:
    return parser("Resolves a run of an experiment.", "none")
