"""What the names of the nets stand for: Table 1 (ImageNet) and section 4.2 (CIFAR) of the paper. Needs no torch."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from pipeline.base.command import UserError

Family = Literal["imagenet", "cifar"]
Kind = Literal["resnet", "plain"]
Block = Literal["basic", "bottleneck"]

EXPANSION = {"basic": 1, "bottleneck": 4}  # output channels of a block / its width (Table 1)
IMAGENET_WIDTHS = (64, 128, 256, 512)  # conv2_x .. conv5_x (Table 1)
IMAGENET_STAGES: dict[int, tuple[Block, tuple[int, ...]]] = {  # depth -> block, blocks per stage (Table 1)
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
CIFAR_WIDTHS = (16, 32, 64)  # on maps of 32, 16, 8 pixels (section 4.2)
CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)  # Table 6; every other depth 6n + 2 can be built too


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a name such as "resnet34" stands for. A block is two (basic) or three (bottleneck) convolutions."""

    family: Family
    kind: Kind
    depth: int  # layers with weights: convolutions (projections not counted) and fc
    block: Block
    blocks_per_stage: tuple[int, ...]
    widths: tuple[int, ...]  # channels of the 3x3 convolutions, per stage

    @property
    def name(self) -> str:
        return f"{self.kind}{self.depth}"

    @property
    def feature_channels(self) -> int:
        """Channels of the last feature map: the fc layer's inputs."""
        return self.widths[-1] * EXPANSION[self.block]

    @property
    def default_shortcut(self) -> Literal["A", "B"]:
        """B for the bottleneck nets, A for the others (sections 4.1 and 4.2)."""
        return "B" if self.block == "bottleneck" else "A"


def parse_arch(arch: str) -> Architecture:
    """`arch` ("resnet34", "plain20", ...) -> its `Architecture`. Raises UserError for a name that no net has.

    18, 34, 50, 101 and 152 layers are the ImageNet nets (plain: 18 and 34), every other depth 6n + 2, n >= 1, is a
    CIFAR net. 50 and 152 are 6n + 2 too, but the paper uses them for ImageNet only.
    """
    match = re.fullmatch(r"(resnet|plain)([1-9][0-9]{0,4})", arch)
    if match is None:
        raise _unknown(arch)
    kind: Kind = "resnet" if match[1] == "resnet" else "plain"
    depth = int(match[2])
    if depth in IMAGENET_STAGES:
        block, blocks_per_stage = IMAGENET_STAGES[depth]
        if kind == "plain" and block == "bottleneck":
            raise _unknown(arch)
        return Architecture(
            family="imagenet",
            kind=kind,
            depth=depth,
            block=block,
            blocks_per_stage=blocks_per_stage,
            widths=IMAGENET_WIDTHS,
        )
    n, remainder = divmod(depth - 2, 6)
    if n < 1 or remainder:
        raise _unknown(arch)
    return Architecture(
        family="cifar", kind=kind, depth=depth, block="basic", blocks_per_stage=(n, n, n), widths=CIFAR_WIDTHS
    )


def _unknown(arch: str) -> UserError:
    imagenet = [f"resnet{depth}" for depth in IMAGENET_STAGES] + ["plain18", "plain34"]
    cifar = [f"{kind}{depth}" for kind in ("resnet", "plain") for depth in (8, 14, *CIFAR_DEPTHS)]
    nearest = difflib.get_close_matches(arch.lower(), imagenet + cifar)
    meant = f" (did you mean {' or '.join(nearest)}?)" if nearest else ""
    return UserError(
        f"arch: there is no net named {arch!r}{meant}; the ImageNet nets are {', '.join(imagenet)}; the CIFAR nets are "
        f"resnetD and plainD with any other D = 6n + 2, n >= 1, such as {', '.join(cifar)}"
    )
