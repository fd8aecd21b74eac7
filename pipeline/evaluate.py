"""Test one net on a split: python -m pipeline.evaluate runs/NAME --protocol center,ten-crop

Alone, or as one rank of several (torchrun and any other launcher): the score files are the same.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline.base import command
from pipeline.base.command import CommandParser, UserError, print_json, print_table
from pipeline.base.cores import available_cores
from pipeline.base.layout import CONFIG, SCORES
from pipeline.data.dataset import Dataset, Split, Statistics
from pipeline.data.graphs import Normalization
from pipeline.evaluation.datasets import tested_on, trained_on
from pipeline.evaluation.foreign import open_weights
from pipeline.evaluation.nets import TrainedNet, open_target
from pipeline.evaluation.options import (
    add_weights_option,
    errors_cells,
    positive,
    protocol_names,
    rate_cell,
    three_numbers,
    three_positive_numbers,
)  # fmt: skip
from pipeline.evaluation.protocols import PROTOCOLS, Protocol, find
from pipeline.evaluation.score_files import ScoreFile, make, metric_kind, score_path, trial_suffix
from pipeline.evaluation.scoring import EvaluationSettings
from pipeline.process.world import World, on_main, open_world, set_threads
from pipeline.run.options import load
from pipeline.tracking import is_delivered, log_evaluations

EXAMPLE = "python -m pipeline.evaluate runs/resnet50-seed0 --protocol center,ten-crop --split val"


def options() -> CommandParser:
    made = CommandParser("Tests one net on a split of a dataset and writes its score files.", EXAMPLE)
    made.add_argument(
        "target", type=Path, nargs="?", metavar="RUN|CHECKPOINT", help="a run folder, or a file in its checkpoints/"
    )
    names = ", ".join(PROTOCOLS)
    made.add_argument("--protocol", action="append", metavar="NAME", help=f"{names}; repeated or a,b (default center)")
    made.add_argument("--split", default="val", help="of the dataset (default val)")
    add_weights_option(made)
    made.add_argument("--data", metavar="DATASET", help="the dataset, a folder or URL (default: the run's)")
    made.add_argument("--mean", type=three_numbers, metavar="R,G,B", help="subtracted, 0..255 (default: the dataset's)")
    made.add_argument(
        "--std", type=three_positive_numbers, metavar="R,G,B", help="divided by, 0..255 (default: no division)"
    )
    made.add_argument(
        "--short-side", type=positive, metavar="PIXELS", help="of center and ten-crop (default: the run's)"
    )
    made.add_argument(
        "--precision", choices=["float32", "bf16"], default="float32", help="of the net (default float32)"
    )
    made.add_argument("--scores", type=Path, metavar="OUT.npz", help="the score file (default: in the run folder)")
    made.add_argument("--again", action="store_true", help="score anew where a score file stands already")
    made.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    made.add_argument(
        "--threads", type=positive, help="CPU threads per rank (default: the cores divided among the ranks)"
    )
    foreign = made.add_argument_group("weights from elsewhere, instead of RUN|CHECKPOINT")
    foreign.add_argument("--weights-file", type=Path, metavar="FILE", help="a state dict in torchvision's naming")
    foreign.add_argument("--arch", help="the net, such as resnet50; needs --data too")
    foreign.add_argument("--shortcut", choices=["default", "A", "B", "C"], default="default")
    foreign.add_argument("--stride", choices=["paper", "v1.5"], default="paper", help="v1.5 is torchvision's")
    foreign.add_argument(
        "--crop", type=positive, metavar="PIXELS", help="the net's input (default: 224, CIFAR nets 32)"
    )
    made.add_json_option()
    return made


def main(argv: Sequence[str] | None = None) -> int:
    own = options().parse_args(argv)
    names = protocol_names(own.protocol or ["center"])
    check(own, names)
    with open_world(own.device) as world:
        set_threads(world, own.threads)
        subject = open_subject(own, world)
        results = evaluate(subject, names, own, world)
    if world.is_main:
        report(subject, results, own.json)
        tell_mlflow(subject)
    return 0


def check(own: Namespace, names: Sequence[str]) -> None:
    """Raise UserError for options that do not go together."""
    if (own.target is None) == (own.weights_file is None):
        raise UserError("name either a run folder (or checkpoint) or a --weights-file: see --help")
    if own.weights_file is not None and (own.arch is None or own.data is None):
        raise UserError("--weights-file needs --arch and --data: say which net it is and what to test it on")
    if own.weights_file is not None and own.weights != "final":
        raise UserError("--weights goes with a run: a --weights-file holds one set of weights, name the file you mean")
    if own.weights_file is None and (own.arch, own.crop, own.shortcut, own.stride) != (None, None, "default", "paper"):
        raise UserError("--arch, --shortcut, --stride and --crop go with --weights-file: a run's config knows them")
    if own.std is not None and own.mean is None:
        raise UserError("--std needs --mean: give both on the 0..255 scale")
    if own.scores is not None and (len(names) > 1 or own.scores.suffix != ".npz"):
        raise UserError("--scores names the one file OUT.npz: give it with one --protocol")
    if own.scores is not None:
        standing = next(folder for folder in own.scores.absolute().parents if folder.exists())
        if not standing.is_dir() or own.scores.is_dir():
            where = own.scores if own.scores.is_dir() else standing
            raise UserError(f"--scores {own.scores} cannot be written ({where} stands there): name another file")


def open_subject(own: Namespace, world: World) -> TrainedNet:
    """The net that is to be tested, on every rank the same."""
    if own.weights_file is None:
        return open_target(own.target, own.weights, own.data, world)
    return open_weights(
        own.weights_file,
        own.arch,
        own.data,
        shortcut=own.shortcut,
        stride=own.stride,
        short_side=own.short_side,
        crop=own.crop,
    )


def evaluate(subject: TrainedNet, names: Sequence[str], own: Namespace, world: World) -> list[ScoreFile]:
    """The score file of each protocol, on rank 0; nothing on the others. Every rank calls it."""
    dataset = tested_on(subject)
    threads = subject.loader.threads or max(1, available_cores() // world.local_size)
    showing = EvaluationSettings(
        short_side=own.short_side or subject.short_side,
        crop=subject.crop,
        normalization=normalization(subject, dataset, own),
        loader=replace(subject.loader, threads=threads),
        precision=own.precision,
    )
    # float32 is float32: on the GPU, convolutions would otherwise round their inputs to TF32's 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    subject.net.to(world.device).to(memory_format=torch.channels_last)
    split = dataset.split(own.split)
    results = [evaluate_protocol(subject, split, dataset, find(name), showing, own, world) for name in names]
    return [one for one in results if one is not None]


def evaluate_protocol(
    subject: TrainedNet,
    split: Split,
    dataset: Dataset,
    protocol: Protocol,
    showing: EvaluationSettings,
    own: Namespace,
    world: World,
) -> ScoreFile | None:
    """The score file of one protocol, made or found, and recorded; None on ranks other than 0. Every rank calls it."""
    trial = trial_suffix(subject, dataset, protocol, showing)
    path = own.scores or score_path(subject, protocol.name, split.name, trial)
    guarded = own.scores is not None or subject.run is None  # nothing in such a name tells two evaluations apart
    result = make(subject, split, dataset, protocol, showing, path, world=world, again=own.again, guarded=guarded)
    on_main(world, lambda: record(subject, result, trial))
    return result


def normalization(subject: TrainedNet, dataset: Dataset, own: Namespace) -> Statistics | Normalization:
    """`--mean` and `--std`, else the statistics of the dataset that the net was trained on."""
    if own.mean is None:
        return trained_on(subject, dataset).statistics
    std = None if own.std is None else np.array(own.std, np.float32)
    return Normalization(np.array(own.mean, np.float32), std)


def record(subject: TrainedNet, result: ScoreFile | None, trial: str) -> None:
    """Add a score file's errors to the run's metrics.jsonl and have it wait there, with the file, for `tell_mlflow`.

    One that was found is added too: an attempt that was interrupted may not have come to that.
    """
    if subject.run is None or result is None:
        return
    made = result.scores.provenance
    evaluations: dict[str, dict[str, float]] = {}
    top1, top5 = result.scores.errors(1), result.scores.errors(5)
    if top1 is not None and top5 is not None:
        kind = metric_kind(made.protocol, made.split, subject.weights, trial)
        evaluations[kind] = {"top1_error": top1, "top5_error": top5}
    quiet = replace(load(subject.run / CONFIG).tracking, mlflow=False)  # the other ranks wait for this
    log_evaluations(subject.run, quiet, subject.iteration or 0, evaluations, [(result.path, SCORES)])


def tell_mlflow(subject: TrainedNet) -> None:
    """Have MLflow take over what was recorded, now or by an attempt that was interrupted before it came to that."""
    if subject.run is not None and not is_delivered(subject.run):
        log_evaluations(subject.run, load(subject.run / CONFIG).tracking, subject.iteration or 0, {})


def report(subject: TrainedNet, results: Sequence[ScoreFile], as_json: bool) -> None:
    """Print the table and, with `as_json`, the figures."""
    rows, figures = [], []
    for one in results:
        provenance, errors = one.scores.provenance, (one.scores.errors(1), one.scores.errors(5))
        rows.append((subject.name, provenance.protocol, *errors_cells(*errors), rate_cell(one.images_per_second)))
        figures.append(
            {
                "protocol": provenance.protocol,
                "top1_error": errors[0],
                "top5_error": errors[1],
                "images": len(one.scores),
                "images_per_second": one.images_per_second,
                "scores": str(one.path),
            }
        )
    split = results[0].scores.provenance.split
    title = f"{subject.arch} ({subject.checkpoint.name}) on {len(results[0].scores):,} images of {split}"
    print_table(title, ("net", "protocol", "top-1 error %", "top-5 error %", "images/s"), rows)
    if as_json:
        print_json({"net": subject.name, "arch": subject.arch, "split": split, "results": figures})


if __name__ == "__main__":
    command.run(main)
