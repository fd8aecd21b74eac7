"""Experiments read from YAML: the ones in configs/experiments/, and a user's own files of the same form.

Strict: an unknown key, a missing one, a value of another type, or two runs of one name are refused with their place.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from paper.spec import PAPER_FIGURES, Experiment, Measure, Row, RunSpec, resolve
from pipeline.base.checkout import CONFIGS, configs
from pipeline.base.command import UserError, nearest
from pipeline.base.files import read_yaml
from pipeline.evaluation.nets import Weights
from pipeline.evaluation.protocols import find as find_protocol
from pipeline.models.architecture import parse_arch

FOLDER = "experiments"  # of configs/


def names() -> list[str]:
    """The experiments that come with the code."""
    return sorted(path.stem for path in (configs() / FOLDER).glob("*.yaml"))


def find(name: str) -> Experiment:
    """The experiment of that name, or in that YAML file. Raises UserError where there is none."""
    if name.endswith((".yaml", ".yml")):
        return read_experiment(Path(name))
    if name not in names():
        raise UserError(f"there is no experiment '{name}': {nearest(name, names())}")
    return read_experiment(configs() / FOLDER / f"{name}.yaml")


def read_experiment(path: Path) -> Experiment:
    """Read one experiment. Raises UserError for whatever in it does not fit, with the place and the nearest names."""
    made = _experiment(_Reader(path, "", read_yaml(path, "experiment file")))
    _check_runs(made, path)
    return made


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


_KINDS: dict[Any, str] = {
    str: "some text",
    int: "a whole number",
    int | float: "a number",
    list: "a list",
    dict: "'key: value' lines",
}


@dataclass(frozen=True)
class _Reader:
    """A mapping in a YAML file whose keys and types are checked as they are taken. `prefix`: where it stands in it."""

    path: Path
    prefix: str
    values: Any

    def __post_init__(self) -> None:
        if not isinstance(self.values, dict):
            raise UserError(f"{self.prefix or 'the whole'} of {self.path} must hold 'key: value' lines")

    def check_keys(self, valid: Sequence[str]) -> None:
        for key in self.values:
            if key not in valid:
                raise UserError(f"unknown key '{self.prefix}{key}' in {self.path}: {nearest(str(key), valid)}")

    def take(self, key: str, kind: type | UnionType, *default: Any) -> Any:
        """The value of `key`, of the type `kind`; the default, where one is given, for a key that is not there."""
        if default and key not in self.values:
            return default[0]
        value = self.values.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            said = "is missing" if key not in self.values else f"is {value!r}"
            raise UserError(f"'{self.prefix}{key}' in {self.path} {said}: give {_KINDS[kind]}")
        return value

    def items(self, key: str, kind: type, default: list[Any]) -> list[Any]:
        """The list `key`, whose items are all of the type `kind`."""
        values = self.take(key, list, default)
        for number, value in enumerate(values):
            if not isinstance(value, kind) or isinstance(value, bool):
                raise UserError(f"'{self.prefix}{key}[{number}]' in {self.path} is {value!r}: give {_KINDS[kind]}")
        return values

    def one_of(self, key: str, valid: Sequence[str], *default: str) -> Any:
        value = self.take(key, str, *default)
        if value not in valid:
            raise UserError(f"'{self.prefix}{key}' in {self.path} is '{value}': {nearest(value, valid)}")
        return value

    def children(self, key: str) -> list[_Reader]:
        found = self.take(key, list)
        if not found:
            raise UserError(f"'{self.prefix}{key}' in {self.path} is empty: list at least one")
        return [_Reader(self.path, f"{self.prefix}{key}[{number}].", one) for number, one in enumerate(found)]


def _experiment(reader: _Reader) -> Experiment:
    fields = [one.name for one in dataclasses.fields(Experiment) if one.name != "name"]
    reader.check_keys([*fields, "config", "overrides", "variant"])
    measure: Measure = reader.one_of("measure", get_args(Measure))
    protocols = tuple(reader.items("protocols", str, []))
    for protocol in protocols:
        find_protocol(protocol)
    if bool(protocols) != (measure in ("error", "ensemble")):
        raise UserError(f"{reader.path}: measures error and ensemble need protocols, curve and responses have none")
    if measure == "ensemble" and len(rows := reader.take("rows", list)) > 1:
        raise UserError(f"{reader.path} has {len(rows)} ensembles: give each an experiment file of its own")
    base = RunSpec(
        config=_config_file(reader),
        arch="none",
        overrides=_overrides(reader),
        variant=_variant(reader),
    )
    return Experiment(
        name=reader.path.stem,
        title=reader.take("title", str),
        place=reader.take("place", str),
        measure=measure,
        rows=_rows(reader, base),
        protocols=protocols,
        split=reader.take("split", str, "val"),
        weights=reader.one_of("weights", get_args(Weights), "final"),
        paper_images=reader.take("paper_images", int, None),
        note=reader.take("note", str, None),
    )


def _config_file(reader: _Reader) -> Path:
    """The base config: beside an experiment file of one's own, or in configs/."""
    name = reader.take("config", str)
    for folder in (reader.path.parent, CONFIGS):
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"the config '{name}' of {reader.path} is neither beside it nor in {CONFIGS}: name an existing file"
    )


def _overrides(reader: _Reader) -> tuple[tuple[str, Any], ...]:
    values = reader.take("overrides", dict, {})
    reserved = {"arch", "seed", "shortcut", "name", "runs"} & set(values)
    if reserved:
        raise UserError(
            f"'{reader.prefix}overrides' in {reader.path} may not hold '{min(reserved)}': it is set elsewhere"
        )
    return tuple(
        sorted((str(key), tuple(value) if isinstance(value, list) else value) for key, value in values.items())
    )


def _variant(reader: _Reader) -> str | None:
    variant = reader.take("variant", str, None)
    if variant is not None and not re.fullmatch(r"[A-Za-z0-9._]+", variant):
        raise UserError(f"'{reader.prefix}variant' in {reader.path} is '{variant}': letters, digits, . and _ only")
    return variant


def _rows(reader: _Reader, base: RunSpec) -> tuple[Row, ...]:
    rows = []
    for one in reader.children("rows"):
        one.check_keys(["label", "nets", "paper", "note"])
        paper = _Reader(one.path, f"{one.prefix}paper.", one.take("paper", dict, {}))
        paper.check_keys(PAPER_FIGURES)
        runs = tuple(spec for net in one.children("nets") for spec in _specs(net, base))
        figures = {key: float(paper.take(key, int | float)) for key in paper.values}
        rows.append(Row(label=one.take("label", str), runs=runs, paper=figures, note=one.take("note", str, None)))
    labels = [row.label for row in rows]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"two rows of {reader.path} are labelled '{label}': give each its own label")
    return tuple(rows)


def _specs(net: _Reader, base: RunSpec) -> list[RunSpec]:
    """One run for each seed of a net."""
    net.check_keys(["arch", "shortcut", "seeds", "overrides", "variant"])
    architecture = parse_arch(net.take("arch", str))
    shortcut = net.one_of("shortcut", ("default", "A", "B", "C"), "default")
    return [
        replace(
            base,
            arch=architecture.name,
            seed=seed,
            shortcut="default" if shortcut == architecture.default_shortcut else shortcut,
            overrides=tuple(sorted({**dict(base.overrides), **dict(_overrides(net))}.items())),
            variant="-".join(filter(None, (base.variant, _variant(net)))) or None,
        )
        for seed in net.items("seeds", int, [0])
    ]
