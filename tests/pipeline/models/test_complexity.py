"""Every net's parameters and multiply-adds against the table of the paper."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from pipeline.models.complexity import count
from pipeline.models.resnet import ResNet, Shortcut, Stride, build

# Table 1 as computed in shared/paper.md: arch, shortcut, stride, multiply-adds in G at 224, parameters in M.
IMAGENET = [
    ("plain18", "default", "paper", 1.795, 11.516),
    ("resnet18", "default", "paper", 1.795, 11.516),
    ("resnet18", "A", "paper", 1.795, 11.516),
    ("resnet18", "B", "paper", 1.814, 11.690),
    ("resnet18", "C", "paper", 1.878, 12.044),
    ("plain34", "default", "paper", 3.644, 21.624),
    ("resnet34", "default", "paper", 3.644, 21.624),
    ("resnet34", "A", "paper", 3.644, 21.624),
    ("resnet34", "B", "paper", 3.664, 21.798),
    ("resnet34", "B", "v1.5", 3.664, 21.798),
    ("resnet34", "C", "paper", 3.831, 22.717),
    ("resnet50", "default", "paper", 3.858, 25.557),
    ("resnet50", "B", "v1.5", 4.089, 25.557),
    ("resnet101", "default", "paper", 7.570, 44.549),
    ("resnet101", "B", "v1.5", 7.801, 44.549),
    ("resnet152", "default", "paper", 11.282, 60.193),
    ("resnet152", "B", "v1.5", 11.514, 60.193),
]
CIFAR = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962, 1202: 19_421_274}


def on_meta(arch: str, classes: int, shortcut: Shortcut = "default", stride: Stride = "paper") -> ResNet:
    with torch.device("meta"):
        return build(arch, classes=classes, shortcut=shortcut, stride=stride)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("arch", "shortcut", "stride", "giga_multiply_adds", "mega_parameters"), IMAGENET)
def test_imagenet_complexity(
    arch: str, shortcut: Shortcut, stride: Stride, giga_multiply_adds: float, mega_parameters: float
) -> None:
    complexity = count(on_meta(arch, 1000, shortcut, stride), 224)
    assert round(complexity.multiply_adds / 1e9, 3) == giga_multiply_adds
    assert round(complexity.parameters / 1e6, 3) == mega_parameters


@pytest.mark.parametrize("arch", [f"resnet{d}" for d in CIFAR] + [f"plain{d}" for d in (20, 32, 44, 56, 110)])
def test_cifar_parameters_and_depth(arch: str) -> None:
    net = on_meta(arch, 10)
    depth = int(re.sub(r"\D", "", arch))
    assert parameters(net) == CIFAR[depth]
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == depth


def test_count_leaves_the_net_alone() -> None:
    net = build("resnet8", classes=10)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    # By hand: conv1 and the two 3x3 convolutions of the one block of each stage, then fc.
    expected = (
        32**2 * 9 * (3 * 16 + 2 * 16 * 16) + 16**2 * 9 * (16 * 32 + 32 * 32) + 8**2 * 9 * (32 * 64 + 64 * 64) + 640
    )
    assert count(net, 32).multiply_adds == expected
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
