"""Loads a net from a model folder (handover/model_folder.py), for `mlflow.pyfunc.load_model`. The folder's MLmodel names
this module, so it works where this checkout can be imported; `pipeline.export --register` makes models that need no code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from pipeline.base.command import UserError
from pipeline.base.files import file_sha256
from pipeline.base.layout import CHECKPOINTS, ML_MODEL
from pipeline.data.graphs import Normalization
from pipeline.evaluation.names import STATE_KEYS
from pipeline.evaluation.nets import load_weights
from pipeline.handover.exporting import Deployed
from pipeline.handover.model_folder import Model, read_model
from pipeline.models.resnet import build


class LoadedModel:
    """What `mlflow.pyfunc.load_model` wraps: `module` is the net with its normalization, in evaluation mode."""

    def __init__(self, module: Deployed, classes: tuple[str, ...]) -> None:
        self.module, self.classes = module, classes

    @torch.inference_mode()
    def predict(self, images: NDArray[np.float32], params: dict[str, Any] | None = None) -> NDArray[np.float32]:
        """Softmax scores float32 [N, classes] of RGB images float32 [N, crop, crop, 3], 0..255."""
        scores: torch.Tensor = self.module(torch.from_numpy(np.asarray(images, np.float32)))
        return scores.numpy()

    def get_raw_model(self) -> Deployed:
        """What MLflow's `unwrap` calls."""
        return self.module


def _load_pyfunc(path: str) -> LoadedModel:
    """MLflow calls this by its name. Raises UserError where the weights have gone or are others."""
    folder = Path(path)
    model, data = read_model(folder)
    checkpoint = _weights(folder, model)
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)[STATE_KEYS["final"]]
    net = build(model.arch, classes=len(model.classes), shortcut=model.shortcut, stride=model.stride)
    load_weights(net, state, checkpoint)
    return LoadedModel(Deployed(net, Normalization(data.mean), model.crop, model.classes).eval(), model.classes)


def _weights(folder: Path, model: Model) -> Path:
    """The checkpoint file with the model's SHA-256, wherever it is found first."""
    damaged = []
    for path in _places(folder, model):
        if file_sha256(path) == model.sha256:
            return path
        damaged.append(str(path))
    found = f"{damaged[0]} holds others" if damaged else "they have gone"
    raise UserError(
        f"the weights of {model.name} ({model.checkpoint}, SHA-256 {model.sha256[:16]}...) cannot be loaded: {found}; put "
        f"the run folder back to {model.run_folder}, or that file among the artifacts of its MLflow run"
    )


def _places(folder: Path, model: Model) -> Iterator[Path]:
    """The files that may be the checkpoint: in the run folder, where it is or was; then the artifact of the MLflow run."""
    for run in (folder.resolve().parent, Path(model.run_folder)):
        path = run / CHECKPOINTS / model.checkpoint
        if path.is_file():
            yield path
    run_id = yaml.safe_load((folder / ML_MODEL).read_text(encoding="utf-8")).get("run_id")
    if run_id is not None:
        from mlflow.artifacts import download_artifacts  # here: it takes seconds
        from mlflow.exceptions import MlflowException

        with suppress(MlflowException, OSError):
            yield Path(download_artifacts(f"runs:/{run_id}/{CHECKPOINTS}/{model.checkpoint}"))
