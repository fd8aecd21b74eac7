"""A trained net ready for pictures: what it wants done to a picture, its scores, and the names of its classes.

A picture goes through the decoder, the resizing, the crop and the net of the evaluation protocol `center`. On a CPU, with
equal threads and in the same blocks of BLOCK pictures, the scores are those of the score file to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.base.command import UserError
from pipeline.base.layout import MODEL
from pipeline.data.augment import CenterCrop
from pipeline.data.graphs import Normalization
from pipeline.data.pictures import SUFFIXES, Picture, centre_crops, read_pictures
from pipeline.evaluation.inference import inference_net
from pipeline.evaluation.names import Weights
from pipeline.evaluation.nets import TrainedNet, open_target
from pipeline.evaluation.protocols import channels_first, softmax
from pipeline.handover.model_folder import has_model, read_model
from pipeline.handover.training_data import TrainingData, training_dataset
from pipeline.process.world import open_world

BLOCK = 64  # pictures in memory at once; the block of the protocol `center`


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A picture's softmax scores, float16 [classes] on the CPU; or, where it cannot be read, the `reason`."""

    picture: Path
    scores: Tensor | None = None
    reason: str = ""

    def top(self, count: int) -> list[tuple[int, float]]:
        """(label, score 0..1) of the `count` classes with the highest scores, the highest first; ties go to the lower label."""
        assert self.scores is not None
        order = torch.sort(self.scores, descending=True, stable=True)
        return list(zip(order.indices[:count].tolist(), order.values[:count].tolist(), strict=True))


@dataclass(frozen=True)
class Predictor:
    """A net with its weights, in evaluation mode on `device`. data: the names of its classes and its mean."""

    trained: TrainedNet
    data: TrainingData
    device: torch.device

    @property
    def net(self) -> nn.Module:
        """Takes what `preprocess` gives, on `device`; gives logits [N, classes]."""
        return self.trained.net

    @property
    def classes(self) -> tuple[str, ...]:
        return self.data.classes

    def preprocess(self, pictures: Sequence[Path | bytes]) -> Tensor:
        """float32 [N, 3, crop, crop] on the CPU: RGB, 0..255, the training mean subtracted. Takes one picture or more.

        Raises UserError for a picture that cannot be read.
        """
        sound = []
        for picture, place in zip(read_pictures(pictures, self._view), pictures, strict=True):
            if isinstance(picture, str):
                name = place if isinstance(place, Path) else "a picture"
                raise UserError(f"{name} cannot be read ({picture}): give another")
            sound.append(picture)
        return channels_first(self._crops(sound))

    def predict(self, pictures: Sequence[Path]) -> Iterator[Prediction]:
        """The prediction of each picture, in their order; one that cannot be read does not keep the others from theirs."""
        for start in range(0, len(pictures), BLOCK):
            block = pictures[start : start + BLOCK]
            read = read_pictures(block, self._view)
            rows = iter(self._scores([picture for picture in read if isinstance(picture, Picture)]))
            for path, picture in zip(block, read, strict=True):
                if isinstance(picture, str):
                    yield Prediction(picture=path, reason=picture)
                else:
                    yield Prediction(picture=path, scores=next(rows))

    @torch.inference_mode()
    def _scores(self, pictures: Sequence[Picture]) -> Tensor:
        if not pictures:
            return torch.empty(0, len(self.classes), dtype=torch.float16)
        return softmax(self._folded, self._crops(pictures).to(self.device)).half().cpu()

    def _crops(self, pictures: Sequence[Picture]) -> Tensor:
        return centre_crops(pictures, self._view, Normalization(self.data.mean))

    @property
    def _view(self) -> CenterCrop:
        return CenterCrop(short_side=self.trained.short_side, crop=self.trained.crop)

    @cached_property
    def _folded(self) -> nn.Module:
        return inference_net(self.trained.net)


def open_predictor(
    target: Path, weights: Weights = "final", data: str | None = None, device: Literal["auto", "cpu", "cuda"] = "auto"
) -> Predictor:
    """Open the net of a run folder or of a file in its checkpoints/.

    data: the training dataset, where it is not where the run's config says; not needed where the run has a model folder.
    Raises UserError where one of them is missing or another.
    """
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, as in `pipeline.evaluate`
    with open_world(device) as world:
        trained = open_target(target, weights, data, world)
    trained.net.to(world.device).to(memory_format=torch.channels_last)
    return Predictor(trained, _training_data(trained, data), world.device)


def _training_data(trained: TrainedNet, data: str | None) -> TrainingData:
    if trained.run is not None and data is None and has_model(trained.run):
        return read_model(trained.run / MODEL)[1]
    return TrainingData.of(training_dataset(trained), trained.crop, trained.subtracted)


def pictures_in(place: Path) -> list[Path]:
    """`place` itself; or where it is a folder, all pictures below it, by name. Raises UserError where it has none."""
    if not place.is_dir():
        return [place]
    found = sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise UserError(f"there is no picture ({', '.join(SUFFIXES)}) in the folder {place}: give another")
    return found
