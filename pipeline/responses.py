"""Measure the layer responses of a net (Fig. 7 of the paper): python -m pipeline.responses runs/NAME

Alone, or as one rank of several (torchrun and any other launcher): the result is the same.
"""

from __future__ import annotations

from pipeline.base.parsing import answer
from pipeline.base.starting import begin
from pipeline.command_lines.evaluation import responses_options

if __name__ == "__main__":  # before the imports below, which take seconds
    begin("measuring the responses of", "a net")
    answer(responses_options)

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.base import command
from pipeline.base.files import check_room, write_text
from pipeline.base.layout import CONFIG, RESPONSES, RESPONSES_FIGURE
from pipeline.base.tables import print_json, print_table
from pipeline.data.dataset import Dataset
from pipeline.data.tuned import with_queues
from pipeline.evaluation.datasets import Datasets, data_suffix, open_datasets
from pipeline.evaluation.decoding import with_working_decoder
from pipeline.evaluation.figures import response_panels, standalone
from pipeline.evaluation.nets import TrainedNet, open_target
from pipeline.evaluation.protocols import find
from pipeline.evaluation.responses import Responses, measure, save
from pipeline.evaluation.scoring import EvaluationSettings
from pipeline.process.world import World, on_main, open_world, set_threads
from pipeline.run.options import load
from pipeline.tracking import log_evaluations


def main(argv: Sequence[str] | None = None) -> int:
    args = responses_options().parse_args(argv)
    with open_world(args.device) as world:
        set_threads(world, args.threads)
        trained = open_target(args.target, args.weights, args.data, world)
        datasets = open_datasets(trained)
        on_main(world, lambda: check_room(*written_files(trained, datasets.tested)))
        responses = responses_of(trained, datasets, args.split, world)
        if responses is not None:
            print_result(trained, responses, track(trained, datasets.tested, responses), args)
    return 0


def responses_of(trained: TrainedNet, datasets: Datasets, split: str, world: World) -> Responses | None:
    """The responses of a trained net, on rank 0. Every rank calls it."""
    settings = EvaluationSettings(
        short_side=trained.short_side,
        crop=trained.crop,
        normalization=datasets.statistics,
        loader=with_queues(trained.loader, world),
    )
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, as in pipeline.evaluate
    trained.net.to(world.device).to(memory_format=torch.channels_last)
    images = datasets.tested.split(split)
    views = settings.views(find("center"))
    settings = with_working_decoder(settings, images, views, trained.run, world)
    measured = measure(trained.net, images, settings, world=world)
    if measured is None:
        return None
    assert trained.iteration is not None, "a checkpoint of a run counts its updates"
    return Responses(
        arch=trained.arch,
        split=split,
        images=len(images),
        iteration=trained.iteration,
        checkpoint=trained.checkpoint.name,
        weights=trained.weights,
        weights_sha256=trained.weights_sha256,
        dataset_sha256=datasets.tested.sha256,
        layers=tuple(measured),
        std=tuple(measured.values()),
    )


def written_files(trained: TrainedNet, dataset: Dataset) -> list[Path]:
    """Where responses.json and its figure go, in the run folder.

    Responses on another dataset than the net's training dataset are a trial: its files have other names, as a trial's
    score files do.
    """
    assert trained.run is not None, "responses are measured on a checkpoint of a run"
    trial = data_suffix(trained, dataset)
    return [trained.run / f"{kind.stem}{trial}{kind.suffix}" for kind in (Path(RESPONSES), Path(RESPONSES_FIGURE))]


def track(trained: TrainedNet, dataset: Dataset, responses: Responses) -> list[Path]:
    """Write the `written_files` and add them to the run's MLflow run."""
    assert trained.run is not None, "responses are measured on a checkpoint of a run"
    run, (measured, figure) = trained.run, written_files(trained, dataset)
    save(responses, measured)
    title = "Standard deviation of the responses of each 3x3 layer"
    write_text(figure, standalone(response_panels({responses.arch: responses.std}), title, "responses"))
    artifacts = [(path, "responses") for path in (measured, figure)]
    log_evaluations(run, load(run / CONFIG).tracking, responses.iteration, {}, artifacts=artifacts)
    return [measured, figure]


def print_result(trained: TrainedNet, responses: Responses, files: Sequence[Path], args: Namespace) -> None:
    """Print the table and, on request, the figures."""
    title = f"{trained.arch} ({trained.checkpoint.name}) on {responses.images:,} images of {responses.split}"
    rows = [(name, f"{std:.4f}") for name, std in zip(responses.layers, responses.std, strict=True)]
    print(f"Written: {', '.join(str(path) for path in files)}")
    print_table(title, ("3x3 layer", "std of its responses"), rows)
    if args.json:
        figures = {key: getattr(responses, key) for key in ("arch", "split", "images", "iteration", "layers", "std")}
        print_json({"net": trained.name, **figures, "responses": str(files[0])})


if __name__ == "__main__":
    command.run(main, kept=True)
