"""A dozen updates of each recipe, made small: the recipe's own file, with every one of its features left on.

What a feature does must show within the dozen: the learning rate changes, so that the order of momentum and learning rate
shows; weight decay is large, so that it shows which weights it reaches; the moving average of the weights forgets soon.
Learning rates are so low that another CPU's last bits do not grow: see TOLERANCE.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.base.layout import METRICS
from pipeline.data.dataset import Dataset
from pipeline.process.world import World
from pipeline.run.config import Config, trajectory
from pipeline.run.options import parse, parser
from pipeline.tracking.journal import read_metrics
from pipeline.training.checkpoint import Checkpoints
from tests.golden.values import Made, Numbers, Value
from tests.helpers import ROOT
from tests.pipeline.small_runs import train_rank
from tests.ranks import run_ranks

UPDATES = 12
BATCH = 16
SMALL: Mapping[str, object] = {
    "arch": "resnet8",
    "iterations": UPDATES,
    "batch": BATCH,
    "bn_group": 4,
    "recompute_bn_images": 56,  # no multiple of the mini-batch: four mini-batches
    "precision": "float32",  # bf16 rounds away what is looked for, and differently on every kind of CPU
    "compile": False,
    "device": "cpu",
    "threads": 1,
    "augment.crop": 24,
    "augment.short_side": [25, 29],
    "optimizer.lr": 0.003,
    "optimizer.weight_decay": 0.2,
    "evaluation.every": UPDATES,
    "evaluation.short_side": 20,
    "evaluation.crop": 16,
    "checkpoint.every": UPDATES,
    "loader.threads": 1,
    "tracking.log_every": 1,
    "tracking.mlflow": False,
}
STEPS = {"schedule.steps": [5, 9]}
START_UNTIL_ERROR = 90  # percent
RECIPES: Mapping[str, Mapping[str, object]] = {
    # A plateau is one evaluation without an improvement of 100 points.
    "configs/imagenet.yaml": {"schedule.patience": 1, "schedule.threshold": 100, "evaluation.every": 3},
    "configs/imagenet_fast.yaml": {
        "bn_group": "rank",
        "ema_decay": 0.3,  # of the twelve updates, the last nine have it: before, (1 + t) / (10 + t) is less
        "optimizer.lr": 0.02,
        "schedule.warmup_iterations": 4,
        "augment.stages": [
            {"until": 3, "crop": 16, "short_side": [17, 20]},
            {"until": 6, "crop": 18, "short_side": [19, 22]},
            {"until": 9, "crop": 22, "short_side": [23, 26]},
        ],
    },
    "configs/imagenet_a3.yaml": {"schedule.warmup_iterations": 4},
    # The digits are 48 x 48 pixels, and pad-crop takes images as they are.
    "configs/cifar10.yaml": {
        "augment.crop": 48,
        **STEPS,
        "schedule.start_lr": 0.001,  # as the nets of 110 and more layers have one
        "schedule.start_until_error": START_UNTIL_ERROR,
    },
    "configs/demo.yaml": STEPS,
}
# Relative. Between AVX-512, AVX2 and SSE4.1 in torch, oneDNN and libm, and one thread and two, losses differed by 6e-6 of
# themselves at most, lengths of vectors by 3e-5, since gradients show first where a ReLU has turned.
TOLERANCE = 1e-4
TOLERANCE_OF_LENGTHS = 1e-3
TOLERANCE_OF_SCORES = 5e-4  # means over val; with AVX2 they differed by 1.1e-4, cross-entropies by less than 1e-4
IMAGES_THAT_MAY_TURN = 0.02  # share of the val images whose prediction may be another; none was

STATISTICS = re.compile(r"\.(running_\w+|num_batches_tracked)$")


def run_name(recipe: str) -> str:
    return f"{UPDATES} updates of a small run of {recipe}"


def small_config(recipe: str, digits: Path, runs: Path) -> Config:
    """The recipe with what makes a run of it small, on the digits."""
    values = {**SMALL, **RECIPES[recipe], "data": str(digits), "runs": str(runs), "name": "golden"}
    words = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
    return parse(parser("Makes a recipe small.", "none"), [f"--config={ROOT / recipe}", *words])[0]


def small_run(recipe: str, digits: Path, runs: Path, ranks: int = 1) -> Made:
    """Train the small run, on ranks of one thread each, and look at what came out."""
    config = small_config(recipe, digits, runs)
    of_ranks = run_ranks(ranks, train_noting_scores, config)
    dataset = Dataset(digits)
    inputs = {"config": trajectory(config), "images_sha256": images_sha256(dataset)}
    scores = _scores(config, of_ranks, len(dataset.split("val")))
    return Made(inputs, {**_metrics(config), **scores, **_lengths_of(config)})


def train_noting_scores(world: World, config: Config) -> list[list[float]]:
    """In a rank: train, and for each evaluation of the training add up what it made of this rank's images.

    After a dozen updates a net predicts one class for all images, so its errors say nothing of how they were seen; its
    scores do. Noted are the sum of the cross-entropies and, for each class, the sum of the scores.
    """
    import pipeline.loop.validation
    from pipeline.evaluation import scoring as protocols

    evaluate_errors, ranks = protocols.evaluate_errors, protocols.ranks
    noted: list[torch.Tensor] = []

    def noting_ranks(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        table = scores.double()
        cross_entropies = -table.gather(1, labels[:, None]).log()
        noted[-1] = noted[-1] + torch.cat([cross_entropies, table], dim=1).sum(dim=0)
        return ranks(scores, labels)

    def noting_evaluate(*arguments: Any, **options: Any) -> tuple[float, float]:
        noted.append(torch.zeros(1, dtype=torch.float64))
        return evaluate_errors(*arguments, **options)

    protocols.ranks, pipeline.loop.validation.evaluate_errors = noting_ranks, noting_evaluate
    assert train_rank(world, config) == 0
    return [one.tolist() for one in noted]


def _scores(config: Config, of_ranks: Sequence[Sequence[Sequence[float]]], images: int) -> dict[str, Value]:
    """What `train_noting_scores` noted, as means over the images, by the kind of evaluation as metrics.jsonl has them."""
    kinds = [one.kind for one in read_metrics(config.run_folder / METRICS) if one.kind != "train"]
    sums = torch.tensor(of_ranks, dtype=torch.float64).sum(dim=0)
    assert len(kinds) == len(sums)
    values: dict[str, Value] = {}
    for kind in dict.fromkeys(kinds):
        means = [sums[number] / images for number, one in enumerate(kinds) if one == kind]
        losses = tuple(float(mean[0]) for mean in means)
        values[f"the cross-entropies of {kind}"] = Numbers(losses, TOLERANCE)
        values[f"the mean scores of {kind}, the last"] = Numbers(tuple(means[-1][1:].tolist()), TOLERANCE_OF_SCORES)
    return values


def images_sha256(dataset: Dataset) -> str:
    """Of the images, their labels and order, and their mean: all of a dataset that a run on grey images depends on.

    The colours' statistics are left out: their last bits are those of a machine's LAPACK.
    """
    known = hashlib.sha256(dataset.statistics.mean_image.tobytes())
    for split in dataset.manifest.splits.values():
        known.update("".join([split.table_sha256, *(shard.sha256 for shard in split.shards)]).encode())
    return known.hexdigest()


def _metrics(config: Config) -> dict[str, Value]:
    records = read_metrics(config.run_folder / METRICS)

    def series(kind: str, key: str) -> tuple[float, ...]:
        return tuple(one.values[key] for one in records if one.kind == kind)

    values: dict[str, Value] = {
        "the training losses": Numbers(series("train", "loss"), TOLERANCE),
        "the learning rates": Numbers(series("train", "lr")),
        "the training errors": Numbers(series("train", "top1_error"), 0, 100 / BATCH),
    }
    for kind in dict.fromkeys(one.kind for one in records if one.kind != "train"):
        for key, title in {"top1_error": "top-1", "top5_error": "top-5"}.items():
            values[f"the {title} errors of {kind}"] = Numbers(series(kind, key), 0, 100 * IMAGES_THAT_MAY_TURN)
    return values


def _lengths_of(config: Config) -> dict[str, Value]:
    """How long what the run ends with is, as vectors: it shows which weights decay, and what statistics are taken of."""
    newest = Checkpoints(config.run_folder / "checkpoints", config.checkpoint).newest()
    assert newest is not None and newest.iteration == config.iterations
    state = newest.state
    moving = "exp_avg" if config.optimizer.kind == "lamb" else "momentum_buffer"
    momentum = [one[moving] for one in state["training"]["optimizer"]["state"].values()]
    values = _lengths("the momentum", momentum)
    for key, title in {"model": "the weights", "model_ema": "the moving average"}.items():
        weights = [tensor for name, tensor in state.get(key, {}).items() if not STATISTICS.search(name)]
        values |= _lengths(title, weights)
    for key, title in {
        "model": "BN",
        "model_ema": "the moving average",
        "model_recomputed_bn": "recomputed BN",
    }.items():
        for ending in ("running_mean", "running_var") if key in state else ():
            tensors = [tensor for name, tensor in state[key].items() if name.endswith(ending)]
            values[f"the length of {title}'s {ending}"] = _length(tensors)
    return values


def _lengths(title: str, tensors: Sequence[torch.Tensor]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for dimensions, kind in {4: "convolutions", 2: "fc", 1: "BN and biases"}.items():
        if chosen := [tensor for tensor in tensors if tensor.ndim == dimensions]:
            values[f"the length of {title} of {kind}"] = _length(chosen)
    return values


def _length(tensors: Iterable[torch.Tensor]) -> Numbers:
    squares = [float(tensor.double().square().sum()) for tensor in tensors]
    return Numbers((sum(squares) ** 0.5,), TOLERANCE_OF_LENGTHS)
