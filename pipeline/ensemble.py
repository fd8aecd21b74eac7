"""Average the softmax scores of several nets: python -m pipeline.ensemble runs/A runs/B runs/C

Needs only their score files: no images, no models, no GPU.
"""

from __future__ import annotations

from pipeline.base.parsing import answer
from pipeline.base.starting import begin
from pipeline.command_lines.evaluation import ensemble_options

if __name__ == "__main__":  # before the imports below, which take seconds
    begin("averaging", "nets")
    answer(ensemble_options)

import hashlib
import json
import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.base import command
from pipeline.base.command import UserError
from pipeline.base.files import check_room, write_text
from pipeline.base.layout import CONFIG, ENSEMBLE
from pipeline.base.tables import print_json, print_table
from pipeline.evaluation import ensemble as ensembles
from pipeline.evaluation.cells import rate_cell
from pipeline.evaluation.ensemble import Errors, SizeErrors, Subset
from pipeline.evaluation.members import Member, chosen_members
from pipeline.evaluation.protocols import protocol_names
from pipeline.evaluation.score_files import ScoreFile, metric_kind, read
from pipeline.evaluation.scores import Scores
from pipeline.run.config import RUN_NAME
from pipeline.run.options import load
from pipeline.tracking import TrackingConfig, log_result_run, mlflow_run_id, now_in_ms


@dataclass(frozen=True, kw_only=True)
class Result:
    """The average of some members under one protocol, beside the members. In percent; overlaps are matrices."""

    protocol: str
    members: list[str]
    files: list[ScoreFile]
    errors: list[Errors]
    ensemble: Errors
    images_per_second: float | None
    gain_top1_interval: tuple[float, float]
    gain_top5_interval: tuple[float, float]
    overlap_top1: np.ndarray
    overlap_top5: np.ndarray
    curve: list[SizeErrors]


def main(argv: Sequence[str] | None = None) -> int:
    started = now_in_ms()
    args = ensemble_options().parse_args(argv)
    if args.name is not None and not RUN_NAME.fullmatch(args.name):
        raise UserError(
            f"--name '{args.name}' cannot name a run folder: use letters, digits, '.', '_' and '-', no sign in front"
        )
    torch.set_num_threads(1)  # the tensors are small: on a busy machine, waiting for threads took six times as long
    if len(args.members) < 2:
        raise UserError(f"an ensemble needs at least two members, here is one ({args.members[0]}): name more of them")
    members, protocols = chosen_members(args, args.members)
    if not args.no_tracking:
        check_room(ensemble_folder(members, args) / ENSEMBLE)
    results = [average(members, protocol, args.search, 1 if args.by == "top-1" else 5) for protocol in protocols]
    print_result(results)
    figures = {result.protocol: to_json(result) for result in results}
    if not args.no_tracking:
        track(members, results, figures, args, started)
    if args.json:
        print_json({"protocols": figures})
    return 0


def average(members: Sequence[Member], protocol: str, size: int | None, k: int) -> Result:
    """The ensemble of all members, or of the best `size` of them by top-k error."""
    files = [read(member.files[protocol]) for member in members]
    names = [member.name for member in members]
    ensembles.check_members([file.scores for file in files], names)
    if not files[0].scores.labelled:
        raise UserError(
            f"the scores of the split '{files[0].scores.provenance.split}' have no labels, so there are no errors: "
            "write a submission of it with 'python -m pipeline.submit'"
        )
    if size is not None:
        chosen = searched([file.scores for file in files], names, protocol, size, k)
        files, names = [files[i] for i in chosen], [names[i] for i in chosen]
    return combine(files, names, protocol)


def searched(scores: Sequence[Scores], names: Sequence[str], protocol: str, size: int, k: int) -> Subset:
    """The best `size` members. Prints how they were found."""
    if not 2 <= size <= len(scores):
        raise UserError(f"--search must be 2 to {len(scores)}, the number of members (got {size})")
    chosen, exhaustive = ensembles.search(scores, size, k)
    all_tried = f"all {math.comb(len(scores), size):,} ensembles tried"
    how = all_tried if exhaustive else "members added greedily, one at a time"
    best = ", ".join(names[i] for i in chosen)
    print(f"{protocol}: the best {size} of {len(scores)} by top-{k} error: {best} ({how})")
    print("They were chosen on the same images that they are measured on, which flatters them.")
    return chosen


def combine(files: Sequence[ScoreFile], names: Sequence[str], protocol: str) -> Result:
    """Average all of `files`: the errors and what is compared with them."""
    scores, count = [file.scores for file in files], len(files)
    subsets: list[Subset] = [*((i,) for i in range(count)), tuple(range(count))]
    ranks = ensembles.all_ranks(scores, subsets)
    each, whole = ranks[:-1], ranks[-1]
    rates = [file.images_per_second for file in files]
    gains = []
    for wrong, wrong_ensemble in ((each >= 1, whole >= 1), (each >= 5, whole >= 5)):
        gains.append(ensembles.gain_interval(wrong_ensemble, wrong[wrong.sum(axis=1).argmin()]))
    return Result(
        protocol=protocol,
        members=list(names),
        files=list(files),
        errors=[ensembles.errors_of(member_ranks) for member_ranks in each],
        ensemble=ensembles.errors_of(whole),
        images_per_second=None if None in rates else 1 / sum(1 / rate for rate in rates if rate),
        gain_top1_interval=gains[0],
        gain_top5_interval=gains[1],
        overlap_top1=ensembles.overlap(each, 1),
        overlap_top5=ensembles.overlap(each, 5),
        curve=ensembles.size_curve(scores),
    )


def print_result(results: Sequence[Result]) -> None:
    """Print the details of each ensemble, then the errors of all members and ensembles."""
    for result in results:
        print_details(result)
    rows = []
    for result in results:
        names = [*result.members, f"ensemble of {len(result.members)}"]
        rates = [*(file.images_per_second for file in result.files), result.images_per_second]
        for name, errors, rate in zip(names, [*result.errors, result.ensemble], rates, strict=True):
            cells = (f"{errors.top1_error:.2f}", _interval(errors.top1_interval), f"{errors.top5_error:.2f}")
            rows.append((name, result.protocol, *cells, _interval(errors.top5_interval), rate_cell(rate)))
    scores = results[0].files[0].scores
    columns = ("net", "protocol", "top-1 error %", "95% interval", "top-5 error %", "95% interval", "images/s")
    print_table(f"{len(scores):,} images of {scores.provenance.split}", columns, rows)


def print_details(result: Result) -> None:
    """Print the gain over the best member, the overlap of the members' errors, and the error against the ensemble's size."""
    intervals = {1: result.gain_top1_interval, 5: result.gain_top5_interval}
    gains = ", ".join(f"top-{k} {_interval(interval)}" for k, interval in intervals.items())
    print(f"{result.protocol}: error of the best member minus that of the ensemble, 95% intervals: {gains}\n")
    pairs = zip(result.members, result.overlap_top1, strict=True)
    overlaps = [(name, *(f"{value:.2f}" for value in row)) for name, row in pairs]
    columns = (f"{result.protocol}: % both get wrong, top-1", *(str(i + 1) for i in range(len(overlaps))))
    print_table("", columns, overlaps)
    curve = [
        (errors.size, errors.ensembles, *(f"{value:.2f}" for value in (*errors.top1, *errors.top5)))
        for errors in result.curve
    ]
    columns = ("members", "ensembles", "top-1 mean", "lowest", "highest", "top-5 mean", "lowest", "highest")
    print_table(f"{result.protocol}: error % against ensemble size", columns, curve)


def to_json(result: Result) -> dict[str, Any]:
    """The figures of one protocol as plain values."""
    members = [
        {"name": name, "arch": file.scores.provenance.arch, "scores": str(file.path), **asdict(errors),
         "images_per_second": file.images_per_second}
        for name, file, errors in zip(result.members, result.files, result.errors, strict=True)
    ]  # fmt: skip
    return {
        "members": members,
        "ensemble": {**asdict(result.ensemble), "images_per_second": result.images_per_second},
        "gain_top1_interval": result.gain_top1_interval,
        "gain_top5_interval": result.gain_top5_interval,
        "overlap_top1": result.overlap_top1.tolist(),
        "overlap_top5": result.overlap_top5.tolist(),
        "curve": [asdict(errors) for errors in result.curve],
    }


def first_run(members: Sequence[Member]) -> Path | None:
    """The first run folder among the members."""
    return next((member.run for member in members if member.run is not None), None)


def ensemble_folder(members: Sequence[Member], args: Namespace) -> Path:
    """The ensemble's run folder. Raises UserError where a training has it."""
    first = first_run(members)
    folder = (first.parent if first else args.runs) / (
        args.name or _default_name([member.name for member in members], args)
    )
    if (folder / CONFIG).exists():
        raise UserError(f"{folder} is the run folder of a training: give the ensemble another --name")
    return folder


def track(
    members: Sequence[Member], results: Sequence[Result], figures: dict[str, Any], args: Namespace, started: int
) -> None:
    """Write the ensemble's run folder, beside its members', and its MLflow run, which names the members.

    started: when the command began, in ms since 1970.
    """
    first, folder = first_run(members), ensemble_folder(members, args)
    write_text(folder / ENSEMBLE, json.dumps({"protocols": figures}, indent=1) + "\n")
    tags = {"arch": "ensemble", "candidates": ", ".join(member.name for member in members)}
    chosen = [member for member in members if any(member.name in result.members for result in results)]
    for number, member in enumerate(chosen, start=1):
        identity = mlflow_run_id(member.run) if member.run else None
        tags[f"member.{number}"] = f"{member.name} ({identity})" if identity else member.name
    split = results[0].files[0].scores.provenance.split
    # As pipeline.evaluate names them: MLflow shows the ensemble in its members' columns.
    metrics = {
        metric_kind(result.protocol, split, shared_weights(result.files)): {
            "top1_error": result.ensemble.top1_error,
            "top5_error": result.ensemble.top5_error,
        }
        for result in results
    }
    log_result_run(
        folder,
        load(first / CONFIG).tracking if first else TrackingConfig(),
        name=folder.name,
        kind="ensemble",
        params={"size": len(results[0].members), "split": split},
        metrics=metrics,
        tags=tags,
        artifacts=[folder / ENSEMBLE],
        started=started,
    )
    print(f"The ensemble's run folder: {folder}")


def shared_weights(files: Sequence[ScoreFile]) -> str:
    """Which weights the members' scores were made with, for the metrics' names: "mixed" where they differ."""
    kinds = {file.scores.provenance.weights.replace("file", "final") for file in files}
    return kinds.pop() if len(kinds) == 1 else "mixed"


def _default_name(names: Sequence[str], args: Namespace) -> str:
    """A name made of the members and of every option that is not the default, so that no call replaces another's folder."""
    chosen = [] if args.protocol is None else protocol_names(args.protocol)
    chosen += [args.split] if args.split != "val" else []
    chosen += [args.weights] if args.weights != "final" else []
    chosen += [f"best{args.search}-by-{args.by}"] if args.search is not None else []
    name = "--".join(["-".join(["ensemble", *names]), *chosen])
    if len(name) <= 80 and RUN_NAME.fullmatch(name):
        return name
    return f"ensemble-of-{len(names)}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.2f}..{interval[1]:.2f}"


if __name__ == "__main__":
    command.run(main, kept=True)
