"""Run folders as trainings and evaluations leave them, with errors that the test chooses."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paper.reading import find
from paper.spec import RunSpec, resolve
from pipeline.base.layout import METRICS, RESPONSES
from pipeline.evaluation import responses
from pipeline.evaluation.responses import Responses
from pipeline.evaluation.scores import Provenance, Scores, save
from pipeline.run.config import TRAJECTORY, Config, to_yaml
from pipeline.tracking.journal import Journal
from pipeline.training.checkpoint import publish

IMAGES = 10_000
DATASET = "d" * 64
HARDWARE = {
    "started": "2026-11-01T00:00:00Z", "host": "node1", "launcher": "local", "world_size": 2, "device": "cpu",
    "threads": 2, "git_commit": "c" * 40,
}  # fmt: skip


WRONG = {
    "resnet20-seed0": 869,
    "resnet56-seed0": 703,
    "resnet110-seed0": 643,
    "resnet110-seed1": 661,
    "resnet110-seed2": 700,
}
Report = Callable[..., dict[str, Any]]


def spec_of(name: str) -> RunSpec:
    return specs()[name]


@cache
def specs() -> dict[str, RunSpec]:
    return {spec.name(): spec for key in ("table6", "fig6") for spec in find(key).runs}


def rows_of(found: dict[str, Any], name: str = "table6") -> dict[str, Any]:
    return {row["label"]: row for row in found["experiments"][name]["rows"]}


def write_run(
    spec: RunSpec, runs: Path, *, wrong: int = 800, iteration: int | None = None, scale: float = 1.0,
    tested: bool = True, std: float | None = None,
) -> Path:  # fmt: skip
    """The folder of a run that came to `iteration` (None: its end), with `wrong` of 10,000 test images wrong.

    tested: whether it has score files. std: of all layers' responses; None where they were not measured.
    """
    config = resolve(spec, runs=runs, scale=scale)
    folder = config.run_folder
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "run.json").write_text(
        json.dumps({"dataset_sha256": DATASET, "trajectory": TRAJECTORY, "attempts": [HARDWARE]})
    )
    done = config.iterations if iteration is None else iteration
    write_metrics(folder, config, done, 100 * wrong / IMAGES)
    state = {"iteration": done, "model": {"fc.bias": torch.zeros(10)}}
    checkpoint = publish(folder / "checkpoints", done, state).name
    if tested and done == config.iterations:
        save_scores(folder, config, checkpoint, wrong)
    if std is not None:
        depth = int("".join(filter(str.isdigit, spec.arch)))
        save_responses(folder, config, checkpoint, [std * (1 + 0.1 * np.sin(i)) for i in range(depth - 1)])
    return folder


def write_metrics(folder: Path, config: Config, done: int, last: float) -> None:
    """An error that falls from 90% towards `last`, and 5 points more in training; 1,000 images/s."""
    journal, random = Journal(folder / METRICS), np.random.default_rng(config.seed)
    for iteration in range(config.tracking.log_every, done + 1, config.tracking.log_every):
        error = last + 60 * np.exp(-8 * iteration / config.iterations)
        train = {"loss": error / 40, "top1_error": max(0.1, error - 4 + random.normal()), "lr": 0.1}
        journal.append("train", iteration, {**train, "images_per_second": 1000.0})
        if iteration % config.evaluation.every == 0:
            final = last if iteration == config.iterations else error + abs(random.normal())
            journal.append("val", iteration, {"top1_error": final, "top5_error": final / 10})
    journal.close()


def save_scores(folder: Path, config: Config, checkpoint: str, wrong: int) -> Path:
    """Certain scores: the first `wrong` images are taken for the next class, of which the true one is the second choice."""
    labels = np.arange(IMAGES) % 10
    table = np.zeros((IMAGES, 10), np.float16)
    table[np.arange(IMAGES), labels] = np.where(np.arange(IMAGES) < wrong, 0.25, 0.75)
    table[np.arange(IMAGES), (labels + 1) % 10] = np.where(np.arange(IMAGES) < wrong, 0.75, 0.25)
    made = Provenance(
        arch=config.arch, stride=config.stride, checkpoint=checkpoint, iteration=config.iterations, weights="final",
        weights_sha256=f"{config.arch}{config.seed}", dataset_sha256=DATASET, split="val", protocol="center",
        short_sides=(32,), crop=32, normalization="per-pixel mean", precision="float32",
    )  # fmt: skip
    path = folder / f"scores/center-val-{config.iterations:08d}.npz"
    save(Scores(scores=table, ids=np.arange(IMAGES), labels=labels, provenance=made), path)
    return path


def save_responses(folder: Path, config: Config, checkpoint: str, std: list[float]) -> None:
    made = Responses(
        arch=config.arch, split="val", images=IMAGES, iteration=config.iterations, checkpoint=checkpoint,
        weights="final", weights_sha256="", dataset_sha256=DATASET,
        layers=tuple(f"layer{i}" for i in range(len(std))), std=tuple(float(value) for value in std),
    )  # fmt: skip
    responses.save(made, folder / RESPONSES)
