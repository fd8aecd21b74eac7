"""Measure the layer responses of a net (Fig. 7 of the paper): python -m pipeline.responses runs/NAME

Alone, or as one rank of several (torchrun and any other launcher): the result is the same.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.base import command
from pipeline.base.command import CommandParser, print_json, print_table
from pipeline.base.cores import available_cores
from pipeline.base.files import write_text
from pipeline.base.layout import CONFIG, RESPONSES, RESPONSES_FIGURE
from pipeline.data.dataset import Dataset
from pipeline.evaluation.datasets import Datasets, data_suffix, open_datasets
from pipeline.evaluation.figures import responses_figure
from pipeline.evaluation.nets import TrainedNet, open_target
from pipeline.evaluation.options import add_weights_option
from pipeline.evaluation.responses import Responses, measure, save
from pipeline.evaluation.scoring import EvaluationSettings
from pipeline.process.world import World, open_world, set_threads
from pipeline.run.options import load
from pipeline.tracking import log_evaluations

EXAMPLE = "python -m pipeline.responses runs/resnet56-seed0"


def options() -> CommandParser:
    made = CommandParser(
        "Measures the standard deviation of each 3x3 layer's output, after BN and before ReLU and addition (Fig. 7).",
        EXAMPLE,
    )
    made.add_argument("target", type=Path, metavar="RUN|CHECKPOINT", help="a run folder, or a file in its checkpoints/")
    made.add_argument("--split", default="val", help="of the dataset (default val)")
    add_weights_option(made)
    made.add_argument("--data", metavar="DATASET", help="the dataset, a folder or URL (default: the run's)")
    made.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    made.add_argument("--threads", type=int, help="CPU threads per rank (default: the cores divided among the ranks)")
    made.add_json_option()
    return made


def main(argv: Sequence[str] | None = None) -> int:
    own = options().parse_args(argv)
    with open_world(own.device) as world:
        set_threads(world, own.threads)
        subject = open_target(own.target, own.weights, own.data, world)
        datasets = open_datasets(subject)
        responses = responses_of(subject, datasets, own.split, world)
        if responses is not None:
            print_result(subject, responses, track(subject, datasets.tested, responses), own)
    return 0


def responses_of(subject: TrainedNet, datasets: Datasets, split: str, world: World) -> Responses | None:
    """The responses of a trained net, on rank 0. Every rank calls it."""
    showing = EvaluationSettings(
        short_side=subject.short_side,
        crop=subject.crop,
        normalization=datasets.statistics,
        loader=replace(subject.loader, threads=max(1, available_cores() // world.local_size)),
    )
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, as in pipeline.evaluate
    subject.net.to(world.device).to(memory_format=torch.channels_last)
    shown = datasets.tested.split(split)
    measured = measure(subject.net, shown, showing, world=world, show_progress=True)
    if measured is None:
        return None
    assert subject.iteration is not None, "a checkpoint of a run counts its updates"
    return Responses(
        arch=subject.arch,
        split=split,
        images=len(shown),
        iteration=subject.iteration,
        checkpoint=subject.checkpoint.name,
        weights=subject.weights,
        weights_sha256=subject.weights_sha256,
        dataset_sha256=datasets.tested.sha256,
        layers=tuple(measured),
        std=tuple(measured.values()),
    )


def track(subject: TrainedNet, dataset: Dataset, responses: Responses) -> list[Path]:
    """Write responses.json and its figure into the run folder and add both to the run's MLflow run.

    On another dataset than the net's own they are a trial: it gets names of its own, as a trial's score files do.
    """
    run = subject.run
    assert run is not None, "responses are measured on a checkpoint of a run"
    trial = data_suffix(subject, dataset)
    measured, figure = (run / f"{kind.stem}{trial}{kind.suffix}" for kind in (Path(RESPONSES), Path(RESPONSES_FIGURE)))
    write_text(figure, responses_figure({responses.arch: responses.std}))
    files = [save(responses, measured), figure]
    artifacts = [(path, "responses") for path in files]
    log_evaluations(run, load(run / CONFIG).tracking, responses.iteration, {}, artifacts=artifacts)
    return files


def print_result(subject: TrainedNet, responses: Responses, files: Sequence[Path], own: Namespace) -> None:
    """Print the table and, on request, the figures."""
    title = f"{subject.arch} ({subject.checkpoint.name}) on {responses.images:,} images of {responses.split}"
    rows = [(name, f"{std:.4f}") for name, std in zip(responses.layers, responses.std, strict=True)]
    print(f"Written: {', '.join(str(path) for path in files)}")
    print_table(title, ("3x3 layer", "std of its responses"), rows)
    if own.json:
        print_json(
            {
                "net": subject.name,
                "arch": responses.arch,
                "split": responses.split,
                "images": responses.images,
                "iteration": responses.iteration,
                "layers": responses.layers,
                "std": responses.std,
                "responses": str(files[0]),
            }
        )


if __name__ == "__main__":
    command.run(main)
