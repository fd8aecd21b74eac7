"""What the ranks of test_responses.py do."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from pipeline.data.dataset import Dataset
from pipeline.evaluation.responses import measure
from pipeline.process.world import World
from tests.pipeline.evaluation.nets_and_images import settings, varied_resnet


def net_of(dataset: Dataset) -> nn.Module:
    noise = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 60
    return varied_resnet("resnet8", dataset.classes, noise)


def respond(world: World, folder: Path) -> dict[str, float] | None:
    dataset = Dataset(folder)
    return measure(net_of(dataset), dataset.split("train"), settings(36, 32, dataset.statistics), world=world)
