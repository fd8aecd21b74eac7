"""The folder model/ of a finished run: all that using its net takes, its weights by reference. MLflow reads it as a model.

    MLmodel       MLflow's description: signature, metadata, and the module that loads the net (handover/loading.py)
    model.json    Model: net, preprocessing, classes, dataset, and which checkpoint holds the weights
    mean.npy      float32 [crop, crop, 3] or [3], RGB, 0..255: subtracted from the images
    classes.txt   the readable name of every label, one a line

A training writes it without MLflow; the feeder (tracking/logged_model.py) gives MLflow a copy. MLmodel is written last.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline.base.command import UserError, describe_user_error
from pipeline.base.files import replacing, write_text
from pipeline.base.json_text import parse_json
from pipeline.base.layout import CHECKPOINTS, ML_MODEL, MODEL, MODEL_FACTS
from pipeline.base.regular import read_regular
from pipeline.data.dataset import Dataset
from pipeline.evaluation.nets import digest
from pipeline.handover.training_data import TrainingData
from pipeline.models.resnet import Shortcut, Stride
from pipeline.run.config import Config
from pipeline.run.folder import last_commit
from pipeline.training.checkpoint import Checkpoint

VERSION = 1
MEAN, CLASSES = "mean.npy", "classes.txt"
LOADER = "pipeline.handover.loading"


@dataclass(frozen=True, kw_only=True)
class Model:
    """model.json. run_folder: where the run was when the folder was written. checkpoint: the file's name.

    sha256: of the checkpoint file. weights_sha256: of the weights' contents, as score files have it. short_side, crop:
    pixels of the centre-crop test, after resizing by `interpolation`; images are RGB, 0..255. train_images: of the dataset.
    """

    name: str
    arch: str
    shortcut: Shortcut
    stride: Stride
    iteration: int
    run_folder: str
    checkpoint: str
    sha256: str
    weights: str
    weights_sha256: str
    git_commit: str
    short_side: int
    crop: int
    interpolation: str
    dataset: str
    dataset_sha256: str
    train_images: int
    classes: tuple[str, ...]
    wnids: tuple[str, ...]


def write_model(run: Path, config: Config, dataset: Dataset, checkpoint: Checkpoint) -> None:
    """Write the model folder of the finished run in `run`, whose last checkpoint is `checkpoint`; a failure gets a warning."""
    try:
        data = TrainingData.of(dataset, config.test_crop, config.subtract)
        _write(run / MODEL, describe(run, config, data, checkpoint), data)
    except (OSError, UserError) as error:  # the run is whole without the folder
        reason = describe_user_error(error) or str(error)
        print(f"warning: the folder {MODEL} of the run was not written ({reason})", file=sys.stderr)


def describe(run: Path, config: Config, data: TrainingData, checkpoint: Checkpoint) -> Model:
    """The model that is the last checkpoint of a run."""
    return Model(
        name=run.name,
        arch=config.arch,
        shortcut=config.shortcut,
        stride=config.stride,
        iteration=checkpoint.iteration,
        run_folder=str(run.resolve()),
        checkpoint=checkpoint.path.name,
        sha256=checkpoint.sha256,
        weights="final",
        weights_sha256=digest(checkpoint.state["model"]),
        git_commit=last_commit(run),
        short_side=config.evaluation.short_side,
        crop=config.test_crop,
        interpolation="bilinear, antialiased",
        dataset=data.name,
        dataset_sha256=data.sha256,
        train_images=data.images,
        classes=data.classes,
        wnids=data.wnids,
    )


def _write(folder: Path, model: Model, data: TrainingData) -> None:
    folder.mkdir(exist_ok=True)
    with replacing(folder / MEAN) as file:
        np.save(file, data.mean, allow_pickle=False)
    write_text(folder / CLASSES, class_lines(model.classes))
    write_text(folder / MODEL_FACTS, json.dumps({"version": VERSION, **dataclasses.asdict(model)}, indent=1) + "\n")
    write_text(folder / ML_MODEL, yaml.safe_dump(ml_model(model), sort_keys=False, width=120))


def class_lines(classes: Sequence[str]) -> str:
    """classes.txt: one name a line, line by line as the labels go."""
    return "".join(f"{' '.join(name.split())}\n" for name in classes)


def ml_model(model: Model) -> dict[str, Any]:
    """What MLflow wants to know of a model: the content of the file MLmodel."""
    side, classes = model.crop, len(model.classes)
    signature = {"inputs": _tensor(-1, side, side, 3), "outputs": _tensor(-1, classes), "params": None}
    preprocessing = {
        "short_side": model.short_side,
        "crop": model.crop,
        "interpolation": model.interpolation,
        "pixels": "RGB, 0..255; the net's module subtracts mean.npy",
    }
    metadata = {
        "arch": model.arch,
        "classes": list(model.classes),
        "dataset": model.dataset,
        "dataset_sha256": model.dataset_sha256,
        "preprocessing": preprocessing,
        "weights": f"{CHECKPOINTS}/{model.checkpoint}",
        "weights_file_sha256": model.sha256,
    }
    flavor = {"loader_module": LOADER, "python_version": platform.python_version()}
    return {"flavors": {"python_function": flavor}, "signature": signature, "metadata": metadata}


def _tensor(*shape: int) -> str:
    return json.dumps([{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": list(shape)}}])


def has_model(run: Path) -> bool:
    return (run / MODEL / ML_MODEL).is_file()


def read_model(folder: Path) -> tuple[Model, TrainingData]:
    """The model in a model folder. Raises UserError where it cannot be read."""
    try:
        facts = parse_json(read_regular(folder / MODEL_FACTS))
        if (version := facts.pop("version")) != VERSION:
            raise ValueError(f"its version is {version}, not {VERSION}")
        model = Model(**{**facts, "classes": tuple(facts["classes"]), "wnids": tuple(facts["wnids"])})
        mean = np.load(folder / MEAN, allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the model folder {folder} cannot be read ({error}): remove it; "
            "python -m pipeline.export RUN --register NAME writes it again"
        ) from None
    return model, TrainingData(
        name=model.dataset,
        sha256=model.dataset_sha256,
        images=model.train_images,
        classes=model.classes,
        wnids=model.wnids,
        mean=mean,
    )
