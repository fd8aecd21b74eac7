"""Finds the members of an ensemble that a user gives: run folders, score files or MLflow run ids."""

from __future__ import annotations

import itertools
import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.base.command import UserError
from pipeline.base.entries import check_entries
from pipeline.base.layout import CONFIG
from pipeline.data.dataset import Dataset
from pipeline.data.storage import open_dataset
from pipeline.evaluation.protocols import PROTOCOLS, protocol_names
from pipeline.evaluation.score_files import newest
from pipeline.evaluation.scores import read_provenance
from pipeline.run.options import load
from pipeline.tracking import mlflow_run_id

MLFLOW_RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Member:
    """One member: its name, its run folder (None for a score file outside a run) and its score files."""

    name: str
    run: Path | None
    files: dict[str, Path]  # by protocol


def chosen_members(args: Namespace, texts: Sequence[str]) -> tuple[list[Member], list[str]]:
    """The members that `texts` name, and their protocols: those of `--protocol`, else all that they share."""
    members = find_members(texts, runs=args.runs, split=args.split, weights=args.weights)
    return members, shared_protocols(members, [] if args.protocol is None else protocol_names(args.protocol))


def find_members(texts: Sequence[str], *, runs: Path, split: str, weights: str) -> list[Member]:
    """Return the members that `texts` name. Of a run, the newest score files of `split` with `weights` are taken.

    runs: the folder of the run folders among which MLflow run ids are looked up. Members whose usual names are equal are
    named as in `texts`. Raises UserError for a member that is missing, has no scores, or is given twice.
    """
    members = [_find(text, runs, split, weights) for text in texts]
    names = [member.name for member in members]
    places = [{path.resolve() for path in member.files.values()} for member in members]
    for i, place in enumerate(places):
        if place in places[:i]:
            raise UserError(f"{names[i]} is given twice: give each member once")
    return [
        replace(member, name=text) if names.count(member.name) > 1 else member
        for text, member in zip(texts, members, strict=True)
    ]


def shared_protocols(members: Sequence[Member], wanted: Sequence[str]) -> list[str]:
    """Return the `wanted` protocols, or all that all members have scores of. Raises UserError if a member lacks one."""
    shared = [name for name in PROTOCOLS if all(name in member.files for member in members)]
    for name, member in itertools.product(wanted, members):
        if name not in member.files:
            raise UserError(
                f"{member.name} has no {name} scores: write them with 'python -m pipeline.evaluate ... --protocol {name}'"
            )
    if not shared:
        each = "; ".join(f"{member.name}: {', '.join(member.files)}" for member in members)
        raise UserError(f"the members have no protocol in common ({each}): evaluate them under the same one")
    return list(wanted) or shared


def dataset_of(members: Sequence[Member], data: str | None, sha256: str) -> Dataset:
    """The dataset that the members' scores are of: `data`, a folder or a URL, or that of the first run among the members.

    Raises UserError where its manifest's hash is not `sha256`.
    """
    runs = [member.run for member in members if member.run is not None]
    if data is None and not runs:
        raise UserError("score files do not say where their dataset lies: give it with --data")
    dataset = open_dataset(data or load(runs[0] / CONFIG).data)
    if dataset.sha256 != sha256:
        raise UserError(
            f"the scores are not of the dataset {dataset.folder}: give with --data the one they were made on"
        )
    return dataset


def _find(text: str, runs: Path, split: str, weights: str) -> Member:
    path = Path(text)
    if path.is_dir():
        check_entries(path)
        if not (path / CONFIG).is_file():
            raise UserError(f"{path} is not a run folder (it has no {CONFIG}): give runs/NAME or a score file")
        return Member(name=path.resolve().name, run=path, files=newest(path, split, weights))
    if path.is_file():
        run, files = path.absolute().parent.parent, {read_provenance(path)[0].protocol: path}
        if (run / CONFIG).is_file():
            return Member(name=f"{run.name}/{path.stem}", run=run, files=files)
        return Member(name=path.stem, run=None, files=files)
    if MLFLOW_RUN_ID.fullmatch(text):
        for config in sorted(runs.glob(f"*/{CONFIG}")):
            if mlflow_run_id(config.parent) == text:
                return Member(name=config.parent.name, run=config.parent, files=newest(config.parent, split, weights))
        raise UserError(f"no run folder in {runs} is the MLflow run {text}: give --runs, or the run folder itself")
    raise UserError(f"the member {text} does not exist: give a run folder, a score file or an MLflow run id")
