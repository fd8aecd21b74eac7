"""What the evaluation tests share: nets whose scores vary, the protocols told slowly, run folders without a training."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as transforms

from pipeline.data.augment import AugmentConfig
from pipeline.data.dataset import Dataset, Statistics
from pipeline.data.loader import LoaderConfig
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.scores import Provenance
from pipeline.evaluation.scoring import EvaluationSettings
from pipeline.models.resnet import build
from pipeline.run.config import Config, to_yaml
from pipeline.tracking import TrackingConfig
from pipeline.training.checkpoint import publish
from tests.patience import limit

LOADER = LoaderConfig(threads=1, read_threads=2)
Run = Callable[..., tuple[int, str, str]]  # of a command: exit code, standard output, standard error


class SmallNet(nn.Module):
    """A quick net with the interface of pipeline.models.resnet; its last map has one place for `stride` pixels.

    Without padding, a place of the map of a whole image is what a crop there would give: the sliding window can be told.
    It looks at texture, so a crop that is one pixel off changes its scores by percents, one grey level here and there
    (what two correct ways of resizing differ by) by less than a thousandth.
    """

    def __init__(self, classes: int, stride: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.conv = nn.Conv2d(3, 24, 5, stride=stride, bias=False)
        self.fc = nn.Linear(24, classes)
        kernels = torch.randn(self.conv.weight.shape, generator=generator)
        self.conv.weight.data = 0.02 * (kernels - kernels.mean(dim=(1, 2, 3), keepdim=True))
        self.fc.weight.data = 0.025 * torch.randn(self.fc.weight.shape, generator=generator)
        self.fc.bias.data.zero_()

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images).relu()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(images).mean(dim=(2, 3)))


def varied_resnet(arch: str, classes: int, images: torch.Tensor, seed: int = 0) -> nn.Module:
    """An untrained net whose batch normalization fits `images` [N, 3, H, W] and whose softmax differs between them."""
    net = build(arch, classes=classes, generator=torch.Generator().manual_seed(seed))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain average
    with torch.no_grad():
        net.train()(images)
        net.eval()
        logits = net(images)
        net.fc.weight *= 2 / logits.std(dim=0).mean()
        net.fc.bias.sub_(net(images).mean(dim=0))
    return net


def resized(image: Image.Image, short_side: int) -> Image.Image:
    """Shorter side to `short_side`, the longer one to the nearest pixel, by Pillow."""
    width, height = image.size
    scale = short_side / min(width, height)
    size = (int(np.floor(width * scale + 0.5)), int(np.floor(height * scale + 0.5)))
    return image.resize(size, Image.Resampling.BILINEAR)


def normalized(image: Image.Image, mean: NDArray[np.float32]) -> torch.Tensor:
    """[1, 3, H, W] of one Pillow image, the mean [H, W, 3] or [3] subtracted."""
    return torch.from_numpy(np.asarray(image, np.float32) - mean).permute(2, 0, 1)[None]


@torch.no_grad()
def slow_softmax(
    net: nn.Module,
    image: Image.Image,
    protocol: str,
    short_side: int,
    crop: int,
    mean: NDArray[np.float32],
    off: int = 0,
) -> NDArray[np.float32]:
    """The protocol for one image, crop by crop: Pillow, and torchvision's CenterCrop, FiveCrop and flip.

    AlexNet's ten crops are five and *their* flips. torchvision's TenCrop takes the five crops of the flipped image: the
    same ten but where the centre crop has an odd margin, whose flip then lies one pixel further.
    off: columns cut away on the left of the resized image, to see what a mistake would do.
    """
    image = resized(image, short_side)
    image = image.crop((off, 0, *image.size))
    crops = [transforms.center_crop(image, [crop, crop])]
    if protocol == "ten-crop":
        five = transforms.five_crop(image, [crop, crop])
        crops = [*five, *(transforms.horizontal_flip(one) for one in five)]
        if even_margins(image, crop):
            ten = transforms.ten_crop(image, [crop, crop])
            assert sorted(one.tobytes() for one in ten) == sorted(one.tobytes() for one in crops)
    return torch.cat([net(normalized(one, mean)).softmax(dim=1) for one in crops]).mean(dim=0).numpy()


@torch.no_grad()
def slow_sliding_windows(
    net: SmallNet, image: Image.Image, crop: int, mean: NDArray[np.float32], scales: Sequence[int]
) -> NDArray[np.float32]:
    """The fully convolutional test for one image, told with crops: the net on every window, in steps of its stride."""
    stride, averages = net.conv.stride[0], []
    crop = (crop - 5) // stride * stride + 5  # the pixels of the crop that the net sees
    for scale in scales:
        pixels = normalized(resized(image, scale), mean)
        for shown in (pixels, pixels.flip(3)):
            height, width = shown.shape[2:]
            starts = itertools.product(range(0, height - crop + 1, stride), range(0, width - crop + 1, stride))
            windows = (shown[:, :, y : y + crop, x : x + crop] for y, x in starts)
            averages.append(torch.cat([net(window).softmax(dim=1) for window in windows]).mean(dim=0))
    return torch.stack(averages).mean(dim=0).numpy()


def even_margins(image: Image.Image, crop: int) -> bool:
    return all((side - crop) % 2 == 0 for side in image.size)


def decoded(dataset: Dataset, split: str = "train") -> list[Image.Image]:
    """The dataset's images by Pillow, in sample-id order."""
    samples = dataset.split(split)
    return [Image.open(io.BytesIO(samples.read(i))).convert("RGB") for i in range(len(samples))]


def settings(short_side: int, crop: int, statistics: Statistics) -> EvaluationSettings:
    return EvaluationSettings(short_side=short_side, crop=crop, normalization=statistics, loader=LOADER)


def provenance(protocol: str = "center", **changes: Any) -> Provenance:
    fields: dict[str, Any] = {
        "arch": "resnet8", "stride": "paper", "checkpoint": "00000100-0123456789abcdef.pt", "iteration": 100,
        "weights": "final", "weights_sha256": "a" * 64, "dataset_sha256": "b" * 64, "split": "val", "protocol": protocol,
        "short_sides": (36,), "crop": 32, "normalization": "per-pixel mean", "precision": "float32",
    }  # fmt: skip
    return Provenance(**{**fields, **changes})


def random_softmax(random: np.random.Generator, images: int, classes: int, sharpness: float = 2) -> NDArray[np.float16]:
    logits = random.normal(0, sharpness, (images, classes))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float16)


def write_run(
    runs: Path, name: str, dataset: Dataset, *, arch: str = "resnet8", iteration: int = 100, seed: int = 0,
    classes: int | None = None, sizes: tuple[int, int] = (36, 32), **changes: Any,
) -> Path:  # fmt: skip
    """A run folder as a training leaves it, with an untrained net: run.json, config.yaml and one checkpoint.

    sizes: short side and crop, pixels.
    """
    config = Config(
        arch=arch, data=str(dataset.folder), runs=str(runs), name=name, batch=16, bn_group=8, iterations=iteration,
        augment=AugmentConfig(short_side=(sizes[0], sizes[0] + 8), crop=sizes[1]),
        evaluation=EvaluationConfig(short_side=sizes[0]),
        tracking=TrackingConfig(mlflow=False, close_seconds=limit(300)), **changes,
    )  # fmt: skip
    folder = config.run_folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"dataset_sha256": dataset.sha256, "attempts": []}))
    (folder / "config.yaml").write_text(to_yaml(config))
    net = varied_resnet(arch, classes or dataset.classes, _noise(), seed)
    publish(folder / "checkpoints", iteration, {"iteration": iteration, "model": net.state_dict()})
    return folder


def _noise() -> torch.Tensor:
    return torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 60


def name_data(folder: Path, place: object) -> None:
    """Have the config of a run folder name another place for its dataset."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "data": str(place)}, sort_keys=False))


def changed_copy(dataset: Dataset, folder: Path, change: Callable[[dict[str, Any]], None]) -> Dataset:
    """A copy of the dataset with another manifest."""
    shutil.copytree(dataset.folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Dataset(folder)


def figures(output: str) -> dict[str, Any]:
    """What a command ended with under --json."""
    return json.loads(output.splitlines()[-1])
