"""Which names are nets, what they stand for (Table 1, section 4.2), and the message for a wrong name."""

from __future__ import annotations

import re

import pytest

from pipeline.base.command import UserError
from pipeline.models.architecture import parse_arch


@pytest.mark.parametrize(
    ("arch", "family", "block", "blocks"),
    [
        ("resnet34", "imagenet", "basic", (3, 4, 6, 3)),
        ("plain18", "imagenet", "basic", (2, 2, 2, 2)),
        ("resnet50", "imagenet", "bottleneck", (3, 4, 6, 3)),
        ("resnet152", "imagenet", "bottleneck", (3, 8, 36, 3)),
        ("resnet8", "cifar", "basic", (1, 1, 1)),
        ("plain56", "cifar", "basic", (9, 9, 9)),
        ("resnet1202", "cifar", "basic", (200, 200, 200)),
    ],
)
def test_parse_arch(arch: str, family: str, block: str, blocks: tuple[int, ...]) -> None:
    parsed = parse_arch(arch)
    assert (parsed.family, parsed.block, parsed.blocks_per_stage) == (family, block, blocks)
    assert parsed.widths == ((64, 128, 256, 512) if family == "imagenet" else (16, 32, 64))
    assert parsed.name == arch


@pytest.mark.parametrize(
    ("arch", "nearest"),
    [
        ("resnet51", "resnet50"),
        ("ResNet-34", "resnet34"),
        ("resnet2", "resnet20"),
        ("resnet21", "resnet20"),
        ("resnet020", "resnet20"),
        ("plain50", "plain56"),
        ("plain152", None),
        ("plain35", "plain34"),
        ("resnet20 ", "resnet20"),
        ("resnet\u0662\u0660", None),
        ("vgg16", None),
        ("", None),
    ],
)
def test_unknown_arch(arch: str, nearest: str | None) -> None:
    with pytest.raises(UserError) as caught:
        parse_arch(arch)
    message = str(caught.value)
    assert repr(arch) in message and "resnet152" in message and "6n + 2" in message and "\n" not in message
    if nearest is not None:
        suggestions = re.search(r"did you mean ([^?]*)\?", message)
        assert suggestions is not None and nearest in suggestions[1].split(" or ")
