"""The worked example of docs/reading.md, recomputed: the groups by torch alone, the two updates by the training step."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.training.batchnorm import plan_groups
from pipeline.training.optimizer import OptimizerConfig
from pipeline.training.step import StepConfig, TrainingStep
from tests.helpers import ROOT
from tests.pages import read
from tests.ranks import ALONE

PIXELS, LABELS = [[1.0, 3.0], [2.0, 6.0]], [[0, 1], [0, 0]]  # of the two groups
RATES = (0.1, 0.01)


class Net(nn.Module):
    """One BN layer over one channel, one fully connected layer with two classes, whose weights are zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.fc = nn.BatchNorm2d(1), nn.Linear(1, 2)
        for parameter in self.fc.parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.bn(images).flatten(1))
        return logits


def table(heading: str) -> dict[str, list[list[float]]]:
    """The numbers of each row of the table whose second column has that heading, cell by cell."""
    _, _, rest = read(ROOT / "docs" / "reading.md").prose.partition(f"| {heading} |")
    lines = rest.splitlines()[2:]
    rows = [line.strip("| ").split(" | ") for line in lines[: lines.index("")]]
    return {name: [[float(number) for number in cell.split(",")] for cell in cells] for name, *cells in rows}


def of_group(pixels: list[float], labels: list[int]) -> dict[str, list[float]]:
    """What one group computes before the first update, by the formulas written out and torch's gradients."""
    net = Net()
    images = torch.tensor(pixels)
    logits = net(images.reshape(-1, 1, 1, 1))
    loss = F.cross_entropy(logits, torch.tensor(labels), reduction="sum") / 4
    loss.backward()
    assert net.fc.weight.grad is not None and net.fc.bias.grad is not None
    variance = images.var(correction=0)
    return {
        "pixels": pixels,
        "labels": [float(label) for label in labels],
        "mean": [float(images.mean())],
        "biased variance": [float(variance)],
        "normalized": ((images - images.mean()) / (variance + 1e-5).sqrt()).tolist(),
        "running mean, from 0": [0.9 * 0 + 0.1 * float(images.mean())],
        "running variance, from 1": [0.9 * 1 + 0.1 * float(images.var())],
        "loss": [loss.item()],
        "gradient of fc.weight": net.fc.weight.grad.flatten().tolist(),
        "gradient of fc.bias": net.fc.bias.grad.tolist(),
    }


def test_the_groups() -> None:
    page = table("group 0")
    for column, (pixels, labels) in enumerate(zip(PIXELS, LABELS, strict=True)):
        computed = of_group(pixels, labels)
        assert page.keys() == computed.keys()
        for name, numbers in computed.items():
            assert page[name][column] == pytest.approx(numbers, abs=1e-4), name


def test_the_updates() -> None:
    step = TrainingStep(Net(), StepConfig(batch=4, reduction="tree"), plan_groups(4, 2, 0, 1), ALONE)
    net = step.model
    assert isinstance(net, Net)
    page, images, labels = table("update 0, η = 0.1"), torch.tensor(PIXELS).reshape(4, 1, 1, 1), torch.tensor(LABELS)
    for column, rate in enumerate(RATES):
        step.step(images, labels.flatten(), rate)
        loss, wrong, counted = step.take_metrics()[0]
        assert counted == 1 and net.fc.weight.grad is not None
        running_mean, running_variance = step.statistics.all_groups().mean(dim=0).tolist()
        computed = {
            "running mean, average of the groups": [running_mean],
            "running variance, average of the groups": [running_variance],
            "loss of the mini-batch": [loss],
            "wrong answers": [wrong],
            "gradient of fc.weight": net.fc.weight.grad.flatten().tolist(),
            "momentum b of fc.weight": step.optimizer.state[net.fc.weight]["momentum_buffer"].flatten().tolist(),
            "fc.weight": net.fc.weight.flatten().tolist(),
            "fc.bias": net.fc.bias.tolist(),
        }
        assert page.keys() == computed.keys()
        for name, numbers in computed.items():
            np.testing.assert_allclose(numbers, page[name][column], atol=1e-4, err_msg=name)
    step.close()


def test_the_page_says_what_is_computed() -> None:
    prose = " ".join(read(ROOT / "docs" / "reading.md").prose.split())
    assert re.search(r"η = 0\.1, m = 0\.9, λ = 0\.0001", prose)
    assert (OptimizerConfig().momentum, OptimizerConfig().weight_decay) == (0.9, 1e-4)
