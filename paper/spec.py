"""Experiments as data: a table or figure of the paper, its rows, and the runs and tests that each row needs.

They stand in configs/experiments/NAME.yaml (see reading.py). A run's name is a function of
what is trained (`RunSpec.name`), so one run serves every experiment that wants it.
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

from pipeline.base.command import UserError, nearest
from pipeline.evaluation.nets import Weights
from pipeline.run.config import Config, changes, check, to_plain
from pipeline.run.options import parse, parser
from pipeline.run.stretch import stretch, stretched

Measure = Literal["error", "ensemble", "curve", "responses"]
# The paper's figures of a row, percent: of the one net (or the best of several seeds), mean and standard deviation.
PAPER_FIGURES = ("top1_error", "top5_error", "top1_mean", "top1_std")
SHORTEST_INTERVAL = 10  # a rehearsal that evaluates at every update does little else


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One training: a base config file and what differs from it. Hashable; equal specs are one run.

    overrides: (dotted config key, value) pairs, sorted. variant: what the name says of a deviating recipe or dataset.
    """

    config: Path
    arch: str
    seed: int = 0
    shortcut: Literal["default", "B", "C"] = "default"
    overrides: tuple[tuple[str, Any], ...] = ()
    variant: str | None = None

    def name(self, scale: float = 1.0) -> str:
        """The run's name: resnet34-seed0, resnet34B-seed0; with scale 0.05 resnet34-seed0-scale0.05."""
        letter = "" if self.shortcut == "default" else self.shortcut
        parts = [f"{self.arch}{letter}-seed{self.seed}", self.variant, None if scale == 1 else f"scale{scale!r}"]
        return "-".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table, or one net of a figure.

    runs: what must be trained for it: one net, the seeds of one net, or the members of an ensemble.
    paper: the paper's figures, some of PAPER_FIGURES, percent. note: what has to be said when the two are compared.
    """

    label: str
    runs: tuple[RunSpec, ...]
    paper: Mapping[str, float] = field(default_factory=dict)
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A group of runs that makes one table or figure of the paper.

    Args:
        name: the YAML file's name.
        title: one sentence for people.
        place: where it stands in the paper: "Table 6", "Fig. 7".
        measure: what a row shows. error: of its net on `split` under protocols[0]; ensemble: of the average of its runs'
            scores; curve: training and val error over the iterations; responses: standard deviations of layer responses.
        rows: in the paper's order.
        protocols: the tests that the runs are put to; the first one's errors are compared with the paper's.
        split: of the dataset, that is tested on.
        weights: final, or those whose BN statistics were recomputed after training.
        paper_images: images that the paper's figures were counted on, where it is not all of the val (CIFAR: test) set.
        note: what has to be said of the whole.
    """

    name: str
    title: str
    place: str
    measure: Measure
    rows: tuple[Row, ...]
    protocols: tuple[str, ...] = ()
    split: str = "val"
    weights: Weights = "final"
    paper_images: int | None = None
    note: str | None = None

    @property
    def runs(self) -> tuple[RunSpec, ...]:
        """Every run it needs, once each, in the rows' order."""
        return tuple(dict.fromkeys(spec for row in self.rows for spec in row.runs))

    @property
    def data(self) -> str:
        """The dataset folder (or its URL) that its runs' configs name."""
        return resolve(self.runs[0]).data

    def only(self, labels: Sequence[str]) -> Experiment:
        """With the rows of these labels alone (case does not count). Raises UserError for a label that it has not."""
        known = {row.label.lower(): row.label for row in self.rows}
        for label in labels:
            if label.lower() not in known:
                raise UserError(f"{self.name} has no row '{label}': {nearest(label, known.values())}")
        wanted = {label.lower() for label in labels}
        return replace(self, rows=tuple(row for row in self.rows if row.label.lower() in wanted))


def resolve(
    spec: RunSpec,
    data: Path | str | None = None,
    runs: Path | str | None = None,
    scale: float = 1.0,
    surroundings: Sequence[str] = (),
) -> Config:
    """The config of a run; arguments as in `arguments`. Raises UserError as `pipeline.run.options.parse` does."""
    if surroundings:  # they may override any key
        return _parse(arguments(spec, data, runs, scale, surroundings))
    own: dict[str, Any] = {"arch": spec.arch, "seed": spec.seed, "name": spec.name(scale)}
    own |= {} if spec.shortcut == "default" else {"shortcut": spec.shortcut}
    own |= {key: str(value) for key, value in (("data", data), ("runs", runs)) if value is not None}
    config = replace(_recipe(spec.config, spec.overrides, scale), **own)
    check(config)
    return config


def arguments(
    spec: RunSpec,
    data: Path | str | None = None,
    runs: Path | str | None = None,
    scale: float = 1.0,
    surroundings: Sequence[str] = (),
) -> list[str]:
    """The options that make a launcher of launch/ train this run.

    data, runs: the dataset folder and the folder of run folders, where they are not the base config's. scale: shortens
    everything that is counted in iterations (intervals to 10 at least), and the images that BN statistics are recomputed
    over. surroundings: further options, of keys that leave what the run computes as it is. Raises UserError for a scale
    that cannot be.
    """
    words = [f"--config={spec.config}", f"--arch={spec.arch}", f"--seed={spec.seed}", f"--name={spec.name(scale)}"]
    words += [] if spec.shortcut == "default" else [f"--shortcut={spec.shortcut}"]
    words += _options(spec.overrides)
    words += [] if data is None else [f"--data={data}"]
    words += [] if runs is None else [f"--runs={runs}"]
    words += _options(_scaling(spec.config, spec.overrides, scale))
    return [*words, *surroundings]


def _recipe(file: Path, overrides: Sequence[tuple[str, Any]], scale: float) -> Config:
    """What the runs of one recipe share: a config file, what an experiment changes in it, and how much it is shortened."""
    return _parse_once(file, _content(file), (*_options(overrides), *_options(_scaling(file, overrides, scale))))


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
    return [f"--{key}={_text(value)}" for key, value in values]


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None  # the parser says why


@cache  # parsing takes 20 to 100 ms, and an experiment's dozens of runs share few recipes
def _parse_once(file: Path, content: bytes | None, options: tuple[str, ...]) -> Config:
    """`content` is a key of the cache alone, so that an edited file is read again."""
    return _parse([f"--config={file}", *options])


def _parse(words: Sequence[str]) -> Config:
    return parse(_parser(), words)[0]


@cache
def _parser() -> ArgumentParser:
    return parser("Resolves a run of an experiment.", "none")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
