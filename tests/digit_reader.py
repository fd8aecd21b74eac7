"""A run whose net reads digits, made in a second: a random net of whose features the last layer is fitted by least squares."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.data.dataset import Dataset, Split
from pipeline.models.resnet import ResNet, build
from pipeline.training.checkpoint import publish
from tests.pipeline.evaluation.nets_and_images import write_run

SHARPNESS = 10.0  # of the softmax: targets are 0 and 1


def write_digit_reader(runs: Path, name: str, digits: Dataset, arch: str = "resnet8") -> Path:
    """A run folder of the demo's sizes with one checkpoint, of iteration 400, without a model folder."""
    net = build(arch, classes=digits.classes, generator=torch.Generator().manual_seed(0))
    train = digits.split("train")
    images = pixels(train, digits.statistics.mean_image)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the plain average
        net.train()(images[:256])
        net.eval()
        fit(net, images, torch.from_numpy(np.asarray(train.labels, np.int64)))
    run = write_run(runs, name, digits, arch=arch, iteration=400)
    for checkpoint in (run / "checkpoints").iterdir():
        checkpoint.unlink()
    publish(run / "checkpoints", 400, {"iteration": 400, "model": net.state_dict()})
    return run


def pixels(split: Split, mean: np.ndarray) -> Tensor:
    """float32 [N, 3, 32, 32]: the centres of the images at 36 pixels, by Pillow, the mean [32, 32, 3] subtracted."""
    images = [Image.open(io.BytesIO(split.read(sample))).convert("RGB") for sample in range(len(split))]
    resized = [image.resize((36, 36), Image.Resampling.BILINEAR).crop((2, 2, 34, 34)) for image in images]
    return torch.from_numpy(np.stack([np.asarray(one, np.float32) - mean for one in resized])).permute(0, 3, 1, 2)


def fit(net: ResNet, images: Tensor, labels: Tensor) -> None:
    """Fit the last layer to images [N, 3, H, W] and their labels int64 [N]: ridge regression on the pooled features."""
    features = net.features(images).mean(dim=(2, 3)).double()
    ones = torch.ones(len(features), 1, dtype=torch.float64)
    inputs, targets = torch.cat([features, ones], dim=1), torch.nn.functional.one_hot(labels).double()
    ridge = 1e-6 * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.float64)
    solution = SHARPNESS * torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ targets)
    net.fc.weight.copy_(solution[:-1].T)
    net.fc.bias.copy_(solution[-1])
