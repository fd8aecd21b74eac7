"""Test one net on a split: python -m pipeline.evaluate runs/NAME --protocol center,ten-crop

Alone, or as one rank of several (torchrun and any other launcher): the score files are the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline import command
from pipeline.command import UserError, print_json, print_table
from pipeline.config import load
from pipeline.data.dataset import Dataset
from pipeline.data.loader import LoaderConfig
from pipeline.evaluation.definitions import find
from pipeline.evaluation.nets import STATE_KEYS, TrainedNet, find_checkpoint, open_checkpoint
from pipeline.evaluation.options import CommandParser, add_json_option, errors_cells, protocol_names, rate_cell
from pipeline.evaluation.protocols import Showing
from pipeline.evaluation.score_files import ScoreFile, make, score_path
from pipeline.run_folder import CONFIG
from pipeline.tracking import log_evaluation
from pipeline.world import World, available_cores, on_main, open_world, set_threads

EXAMPLE = "python -m pipeline.evaluate runs/resnet50-seed0 --protocol center,ten-crop --split val"


def options() -> argparse.ArgumentParser:
    made = CommandParser("Tests one net on a split of a dataset and writes its score files.", EXAMPLE)
    made.add_argument("target", type=Path, metavar="RUN|CHECKPOINT", help="a run folder, or a file in its checkpoints/")
    made.add_argument("--protocol", action="append", metavar="NAME", help="center (default), ten-crop; repeated or a,b")
    made.add_argument("--split", default="val", help="of the dataset (default val)")
    made.add_argument("--weights", choices=list(STATE_KEYS), default="final", help="which of the checkpoint's weights")
    made.add_argument("--data", type=Path, metavar="DATASET", help="the dataset folder (default: the run's)")
    made.add_argument(
        "--precision", choices=["float32", "bf16"], default="float32", help="of the net (default float32)"
    )
    made.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    made.add_argument("--threads", type=int, help="CPU threads per rank (default: the cores divided among the ranks)")
    made.add_argument("--again", action="store_true", help="score anew where the same score file stands already")
    add_json_option(made)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    own = options().parse_args(argv)
    names = protocol_names(own.protocol or ["center"])
    with open_world(own.device) as world:
        set_threads(world, own.threads)
        path = on_main(world, lambda: find_checkpoint(own.target))
        subject = open_checkpoint(path, own.weights, own.data)
        results = evaluate(subject, names, own.split, world, precision=own.precision, again=own.again)
        if world.is_main:
            track(subject, results)
            report(subject, results, own.json)
    return 0


def evaluate(
    subject: TrainedNet, names: Sequence[str], split_name: str, world: World, *, precision: str, again: bool
) -> list[ScoreFile]:
    """The score file of each protocol, on rank 0; nothing on the others. Every rank calls it."""
    dataset = Dataset(subject.data)
    if dataset.classes != subject.classes:
        raise UserError(
            f"{subject.name} tells {subject.classes} classes apart, the dataset {subject.data} has {dataset.classes}: "
            "give the dataset that the net was trained for"
        )
    showing = Showing(
        short_side=subject.short_side,
        crop=subject.crop,
        normalization=Dataset(subject.training_data).statistics,
        loader=LoaderConfig(threads=max(1, available_cores() // world.local_size)),
        precision="bf16" if precision == "bf16" else "float32",
    )
    # float32 is float32: on the GPU, convolutions would otherwise round their inputs to TF32's 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    subject.net.to(world.device).to(memory_format=torch.channels_last)
    split = dataset.split(split_name)
    results = [
        make(
            subject,
            split,
            dataset,
            find(name),
            showing,
            score_path(subject, name, split_name),
            world=world,
            again=again,
        )
        for name in names
    ]
    return [one for one in results if one is not None]


def track(subject: TrainedNet, results: Sequence[ScoreFile]) -> None:
    """Add the errors of the score files made now to the run's metrics.jsonl and its MLflow run."""
    if subject.run is None:
        return
    tracking = load(subject.run / CONFIG).tracking
    for one in results:
        top1, top5 = one.scores.errors(1), one.scores.errors(5)
        if one.made and top1 is not None and top5 is not None:
            kind = one.path.stem.replace(f"-{subject.iteration:08d}", "")
            values = {"top1_error": top1, "top5_error": top5}
            log_evaluation(subject.run, tracking, kind, subject.iteration or 0, values)


def report(subject: TrainedNet, results: Sequence[ScoreFile], as_json: bool) -> None:
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
