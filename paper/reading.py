"""Experiments read from YAML: the ones in configs/experiments/, and a user's files of the same form.

Strict: an unknown key, a missing key, a value of another type, and two different runs of one name are refused, each in a
sentence that names the file and the key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from paper.names import FOLDER, names
from paper.spec import Experiment, FigureSpec, Outline, Row, RunSpec, Shortcut, resolve
from pipeline.base.checkout import CONFIGS, configs
from pipeline.base.command import UserError, check_known, nearest
from pipeline.base.files import read_yaml
from pipeline.base.typed import read_typed
from pipeline.evaluation.protocols import find as find_protocol
from pipeline.models.architecture import parse_arch

SUFFIXES = (".yaml", ".yml")
RESERVED = {"arch", "seed", "shortcut", "name", "runs"}  # config keys that rows and the command line set


@dataclass(frozen=True, kw_only=True)
class _Errors:
    top1_error: float | None = None
    top5_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Figures(_Errors):
    top1_mean: float | None = None
    top1_std: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Net:
    """One run for each seed."""

    arch: str
    shortcut: Shortcut = "default"
    seeds: tuple[int, ...] = (0,)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    variant: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Row:
    label: str
    nets: tuple[_Net, ...]
    paper: _Figures = _Figures()
    one_crop: _Errors = _Errors()
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class _File(Outline):
    """An experiment file. config, overrides, variant: of all its runs."""

    config: str
    rows: tuple[_Row, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    variant: str | None = None


def find(name: str) -> Experiment:
    """The experiment of this name, or in this YAML file. Raises UserError where there is none."""
    if name.endswith(SUFFIXES):
        return read_experiment(Path(name))
    check_known("experiment", name, names())
    return read_experiment(configs() / FOLDER / f"{name}.yaml")


def read_experiment(path: Path) -> Experiment:
    """Read one experiment. Raises UserError for whatever does not fit, with its place and the nearest valid names."""
    file = read_typed(_File, read_yaml(path, "experiment file"), str(path))
    _check_tests(file, path)
    base = RunSpec(
        config=_config_file(file.config, path),
        arch="none",
        overrides=_overrides(file.overrides, "", path),
        variant=_variant(file.variant, "", path),
    )
    outline = {one.name: getattr(file, one.name) for one in fields(Outline)}
    outline["figure"] = replace(file.figure, marks_from=_marks_from(file.figure, path))
    experiment = Experiment(name=path.stem, rows=_rows(file, base, path), **outline)
    _check_panels(experiment, path)
    _check_published(experiment, path)
    _check_runs(experiment, path)
    return experiment


def _check_tests(file: _File, path: Path) -> None:
    """Raise UserError where a key needs another measure or other protocols."""
    for protocol in file.protocols:
        find_protocol(protocol)
    if bool(file.protocols) != (file.measure in ("error", "ensemble")):
        raise UserError(f"{path}: measures error and ensemble need protocols, curve and responses have none")
    if file.others and not file.protocols:
        raise UserError(f"'others' in {path} needs a table: give measure error or ensemble, or remove it")
    if file.figure != FigureSpec() and file.measure != "curve":
        raise UserError(f"'figure' in {path} needs curves: give measure curve, or remove it")
    if file.measure == "ensemble" and len(file.rows) > 1:
        raise UserError(f"{path} has {len(file.rows)} ensembles: give each an experiment file of its own")


def _rows(file: _File, base: RunSpec, path: Path) -> tuple[Row, ...]:
    rows: list[Row] = []
    _check_filled(file.rows, "rows", path)
    for number, row in enumerate(file.rows):
        place = f"rows[{number}]"
        _check_filled(row.nets, f"{place}.nets", path)
        specs = [_specs(net, base, f"{place}.nets[{index}].", path) for index, net in enumerate(row.nets)]
        runs = tuple(spec for group in specs for spec in group)
        one_crop = _given(row.one_crop)
        if one_crop and (file.measure != "error" or len(runs) > 1 or "center" not in file.protocols[1:]):
            raise UserError(
                f"'{place}.one_crop' in {path} needs measure error, one run, and the protocol center after the first: "
                "change these, or remove it"
            )
        if any(row.label == other.label for other in rows):
            raise UserError(f"two rows of {path} are labelled '{row.label}': give each its own label")
        rows.append(Row(label=row.label, runs=runs, paper=_given(row.paper), one_crop=one_crop, note=row.note))
    return tuple(rows)


def _check_filled(values: Sequence[object], key: str, path: Path) -> None:
    if not values:
        raise UserError(f"'{key}' in {path} is empty: list at least one")


def _given(figures: _Errors) -> dict[str, float]:
    return {name: value for name, value in asdict(figures).items() if value is not None}


def _specs(net: _Net, base: RunSpec, prefix: str, path: Path) -> list[RunSpec]:
    """One run for each seed of a net."""
    architecture = parse_arch(net.arch)
    shortcut: Shortcut = "default" if net.shortcut == architecture.default_shortcut else net.shortcut
    overrides = {**dict(base.overrides), **dict(_overrides(net.overrides, prefix, path))}
    spec = replace(
        base,
        arch=architecture.name,
        shortcut=shortcut,
        overrides=tuple(sorted(overrides.items())),
        variant="-".join(filter(None, (base.variant, _variant(net.variant, prefix, path)))) or None,
    )
    return [replace(spec, seed=seed) for seed in net.seeds]


def _config_file(name: str, path: Path) -> Path:
    """The base config: beside a user's experiment file, or in configs/."""
    for folder in (path.parent, CONFIGS):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"the config '{name}' of {path} is neither beside it nor in {CONFIGS}: name an existing file")


def _overrides(values: Mapping[str, Any], prefix: str, path: Path) -> tuple[tuple[str, Any], ...]:
    if reserved := RESERVED & values.keys():
        raise UserError(f"'{prefix}overrides' in {path} must not hold '{min(reserved)}': it is set elsewhere")
    return tuple(sorted((key, tuple(value) if isinstance(value, list) else value) for key, value in values.items()))


def _variant(variant: str | None, prefix: str, path: Path) -> str | None:
    if variant is not None and not re.fullmatch(r"[A-Za-z0-9._]+", variant):
        raise UserError(f"'{prefix}variant' in {path} is '{variant}': letters, digits, . and _ only")
    return variant


def _marks_from(figure: FigureSpec, path: Path) -> str | None:
    """The name of an experiment that comes with the code, or a YAML file beside this one; None for this one's rows."""
    name = figure.marks_from
    if name is not None and name.endswith(SUFFIXES):
        return str(path.parent / name)
    if name is not None and name not in names():
        raise UserError(f"'figure.marks_from' in {path} is '{name}': {nearest(name, names())}")
    return name


def _check_panels(experiment: Experiment, path: Path) -> None:
    """Raise UserError where a panel names a row that the experiment does not have."""
    labels = [row.label for row in experiment.rows]
    for number, panel in enumerate(experiment.figure.panels):
        for label in panel.rows:
            if label not in labels:
                raise UserError(f"'figure.panels[{number}].rows' in {path} names '{label}': {nearest(label, labels)}")


def _check_published(experiment: Experiment, path: Path) -> None:
    """Raise UserError where published errors are of a row or protocol that the experiment does not have."""
    labels = [row.label for row in experiment.rows]
    if experiment.published and experiment.measure != "error":
        raise UserError(f"'published' in {path} needs a table of single nets: give measure error, or remove it")
    for number, one in enumerate(experiment.published):
        for index, errors in enumerate(one.errors):
            place = f"'published[{number}].errors[{index}]"
            if errors.row not in labels:
                raise UserError(f"{place}.row' in {path} names '{errors.row}': {nearest(errors.row, labels)}")
            if errors.protocol not in experiment.protocols:
                valid = nearest(errors.protocol, experiment.protocols)
                raise UserError(f"{place}.protocol' in {path} is '{errors.protocol}': {valid}")


def _check_runs(experiment: Experiment, path: Path) -> None:
    """Raise UserError where a run's values do not fit or two different runs would share a name."""
    by_name: dict[str, RunSpec] = {}
    for spec in experiment.runs:
        if by_name.setdefault(spec.name(), spec) != spec:
            raise UserError(
                f"two different runs in {path} would be named {spec.name()}: give one of them a 'variant', which names it"
            )
        try:
            resolve(spec)
        except UserError as error:
            raise UserError(f"the run {spec.name()} of {path} cannot be: {error}") from None
