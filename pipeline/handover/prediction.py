"""A trained net ready for pictures: what it wants done to a picture, its scores, and the names of its classes.

`pipeline.load` opens one. A picture goes through the decoder, the resizing, the crop and the net of the evaluation protocol
`center`. On a CPU, with equal threads and in the same blocks of BLOCK pictures, the scores are those of the score file to
the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pipeline.base.command import UserError, check_known
from pipeline.base.layout import MODEL
from pipeline.base.output import shown
from pipeline.data.graphs import Normalization
from pipeline.data.pictures import read_pictures
from pipeline.data.views import CenterCrop
from pipeline.evaluation.inference import inference_net
from pipeline.evaluation.names import STATE_KEYS, Weights
from pipeline.evaluation.nets import TrainedNet, open_target
from pipeline.evaluation.protocols import channels_first, softmax
from pipeline.handover.model_folder import has_model, read_model
from pipeline.handover.training_data import TrainingData, training_dataset
from pipeline.process.world import open_world

BLOCK = 64  # pictures in memory at once; the block of the protocol `center`
TOP = 5  # classes of a picture that are named

# A picture: its file, the bytes of one, Pillow's image, or RGB pixels uint8 [H, W, 3].
Source = str | Path | bytes | Image.Image | NDArray[np.uint8]
Device = Literal["auto", "cpu", "cuda"]


class Answer(NamedTuple):
    """A class that a picture may show: its readable `name`, its softmax `score` (0..1), `label` and `wnid` (its folder)."""

    name: str
    score: float
    label: int
    wnid: str


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A picture's `answers`, the highest score first; none where it cannot be read, for the `reason`."""

    picture: Source
    answers: tuple[Answer, ...] = ()
    reason: str = ""

    @property
    def name(self) -> str:
        """Its file, as it was named."""
        return _name(self.picture)


class Predictor:
    """A net in evaluation mode on `device`, with its own preprocessing and the names of its classes.

        model = pipeline.load("runs/resnet50-seed0")
        model.predict("picture.jpg")[0].name         # what one picture shows
        scores = model(model.preprocess(["picture.jpg"]))

    Attributes:
        trained: the net, where it comes from, and the sizes of its test.
        data: the names of its classes and its mean.
        net: the net itself: takes what `preprocess` gives, on `device`; gives logits [N, classes].
    """

    def __init__(self, trained: TrainedNet, data: TrainingData, device: torch.device) -> None:
        trained.net.to(device).to(memory_format=torch.channels_last)
        self.trained, self.data, self.device = trained, data, device
        self._folded: tuple[list[tuple[Tensor, int]], nn.Module] | None = None

    def __repr__(self) -> str:
        return f"<{self.trained.arch} of {self.trained.name}, {len(self.classes):,} classes of {self.data.name}, {self.device}>"

    @property
    def net(self) -> nn.Module:
        return self.trained.net

    @property
    def classes(self) -> tuple[str, ...]:
        """The readable name of every class, in the order of the scores."""
        return self.data.classes

    def preprocess(self, pictures: Sequence[Source]) -> Tensor:
        """float32 [N, 3, crop, crop] on the CPU: RGB, 0..255, the training mean subtracted. Takes a list of one or more.

        Raises UserError for a picture that cannot be read, and for what is no list of pictures.
        """
        if isinstance(pictures, str | bytes) or not isinstance(pictures, Sequence) or not pictures:
            raise UserError("preprocess takes a list of one picture or more: write model.preprocess([picture])")
        reasons, crops = self._read(pictures)
        for picture, reason in zip(pictures, reasons, strict=True):
            if reason is not None:
                raise UserError(_sentence(picture, reason))
        return channels_first(crops)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Softmax scores float32 [N, classes] on the CPU, of what `preprocess` gives: float32 [N, 3, crop, crop].

        Raises UserError for anything else.
        """
        if not isinstance(images, Tensor) or images.dtype != torch.float32 or images.ndim != 4 or images.shape[1] != 3:
            raise UserError(
                f"the net takes what preprocess gives, float32 [N, 3, {self.trained.crop}, {self.trained.crop}], and this is "
                f"{_kind(images)}: write model(model.preprocess([picture])), or model.predict(picture)"
            )
        return self._softmax(images.permute(0, 2, 3, 1)).cpu()

    def predict(self, picture: Source, top: int = TOP) -> tuple[Answer, ...]:
        """The `top` classes with the highest scores of one picture, the highest first. For many pictures, `predict_all`.

        Raises UserError where it cannot be read, is no picture, or `top` is below 1.
        """
        (prediction,) = self.predict_all([picture], top)
        if prediction.reason:
            raise UserError(_sentence(picture, prediction.reason))
        return prediction.answers

    def predict_all(self, pictures: Iterable[Source], top: int = TOP) -> Iterator[Prediction]:
        """The prediction of each picture, in their order; one that cannot be read does not keep the others from theirs.

        BLOCK pictures are taken at a time: memory does not grow with their number. Raises UserError for what is no picture,
        and where `top` is below 1.
        """
        if isinstance(pictures, str | bytes | Path | Image.Image | np.ndarray):
            raise UserError("predict_all takes many pictures: for one, write model.predict(picture)")
        if not isinstance(top, int) or top < 1:
            raise UserError(f"top is {top}: give how many classes of a picture to name, 1 or more")
        remaining = iter(pictures)
        while block := list(islice(remaining, BLOCK)):
            reasons, crops = self._read(block)
            rows = iter(self._scores(crops))
            for picture, reason in zip(block, reasons, strict=True):
                if reason is not None:
                    yield Prediction(picture=picture, reason=reason)
                else:
                    yield Prediction(picture=picture, answers=self._answers(next(rows), top))

    def _answers(self, scores: Tensor, count: int) -> tuple[Answer, ...]:
        """Ties go to the lower label. scores: [classes]."""
        order = torch.sort(scores, descending=True, stable=True)
        best = zip(order.indices[:count].tolist(), order.values[:count].tolist(), strict=True)
        return tuple(Answer(self.classes[label], score, label, self.data.wnids[label]) for label, score in best)

    @torch.inference_mode()
    def _scores(self, crops: Tensor) -> Tensor:
        """float16 [N, classes], as a score file has them; crops: float32 [N, crop, crop, 3]."""
        if not len(crops):
            return torch.empty(0, len(self.classes), dtype=torch.float16)
        return self._softmax(crops).half().cpu()

    def _softmax(self, crops: Tensor) -> Tensor:
        with _exact_float32():
            return softmax(self._inference_net(), crops.to(self.device))

    def _inference_net(self) -> nn.Module:
        """The net as evaluation runs it; made again where a weight of `net` has changed since."""
        weights = [(weight, weight._version) for weight in self.net.state_dict(keep_vars=True).values()]
        if self._folded is None or not _are_equal(weights, self._folded[0]):
            self._folded = weights, inference_net(self.net)
        return self._folded[1]

    def _read(self, pictures: Sequence[Source]) -> tuple[list[str | None], Tensor]:
        view = CenterCrop(short_side=self.trained.short_side, crop=self.trained.crop)
        return read_pictures([_place(picture) for picture in pictures], view, Normalization(self.data.mean))


def open_predictor(
    target: str | Path,
    weights: Weights = "final",
    data: str | None = None,
    device: Device = "auto",
) -> Predictor:
    """What `pipeline.load` does, which says it."""
    check_known("set of weights", str(weights), STATE_KEYS)
    check_known("device", str(device), get_args(Device))
    with open_world(device) as world, torch.inference_mode(False):  # whose tensors could not be told from changed ones
        trained = open_target(Path(target), weights, data, world)
    return Predictor(trained, _training_data(trained, data), world.device)


def _training_data(trained: TrainedNet, data: str | None) -> TrainingData:
    if trained.run is not None and data is None and has_model(trained.run):
        return read_model(trained.run / MODEL)[1]
    return TrainingData.of(training_dataset(trained), trained.crop, trained.subtracted)


def _place(picture: Source) -> Path | bytes | Image.Image:
    """A picture as it is read. Raises UserError for what is none."""
    if isinstance(picture, str):
        return Path(picture)
    if isinstance(picture, Path | bytes | Image.Image):
        return picture
    if (
        isinstance(picture, np.ndarray)
        and picture.dtype == np.uint8
        and picture.ndim == 3
        and picture.shape[2] == 3
        and picture.size
    ):
        return Image.fromarray(np.ascontiguousarray(picture))
    several = "; predict_all takes many" if isinstance(picture, list | tuple) else ""
    raise UserError(
        f"{_kind(picture)} is no picture: give a path, the bytes of a file, an image of Pillow, or a NumPy array of RGB, uint8 "
        f"[H, W, 3]{several}"
    )


def _kind(value: Any) -> str:
    """What a value is, in a few words: `a float32 array [3, 32, 32]`."""
    if isinstance(value, np.ndarray | Tensor):
        form = "array" if isinstance(value, np.ndarray) else "tensor"
        what = f"{str(value.dtype).removeprefix('torch.')} {form} {list(value.shape)}"
    else:
        what = type(value).__name__
    return f"{'an' if what[0] in 'aeio' else 'a'} {what}"


def _name(picture: Source) -> str:
    return str(picture) if isinstance(picture, str | Path) else "a picture"


def _sentence(picture: Source, reason: str) -> str:
    return f"{shown(_name(picture))} cannot be read ({reason}): give another"


def _are_equal(some: list[tuple[Tensor, int]], others: list[tuple[Tensor, int]]) -> bool:
    """Whether they are the same tensors with the same contents. Each has the number of its in-place changes beside it."""
    return len(some) == len(others) and all(a is b and m == n for (a, m), (b, n) in zip(some, others, strict=True))


@contextmanager
def _exact_float32() -> Iterator[None]:
    """float32 is float32, as in `pipeline.evaluate`: on a GPU, convolutions would round their inputs to TF32's 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
