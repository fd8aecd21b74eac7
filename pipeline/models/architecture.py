"""What the names of the nets stand for, and the registry of the kinds of net, KINDS. Needs no torch.

A new kind of net is one file beside resnet.py, with a class derived from `ResNet`, and one line in KINDS.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.base.command import UserError

Family = Literal["imagenet", "cifar"]
Block = Literal["basic", "bottleneck"]

EXPANSION = {"basic": 1, "bottleneck": 4}  # output channels of a block / its width (Table 1)
WIDTHS: dict[Family, tuple[int, ...]] = {  # channels of the 3x3 convolutions, per stage
    "imagenet": (64, 128, 256, 512),  # conv2_x .. conv5_x (Table 1)
    "cifar": (16, 32, 64),  # on maps of 32, 16, 8 pixels (section 4.2)
}


@dataclass(frozen=True)
class Layout:
    """What the layers of a net are. A block is two (basic) or three (bottleneck) convolutions."""

    family: Family
    block: Block
    blocks_per_stage: tuple[int, ...]


TABLE_1 = {  # by depth
    18: Layout("imagenet", "basic", (2, 2, 2, 2)),
    34: Layout("imagenet", "basic", (3, 4, 6, 3)),
    50: Layout("imagenet", "bottleneck", (3, 4, 6, 3)),
    101: Layout("imagenet", "bottleneck", (3, 4, 23, 3)),
    152: Layout("imagenet", "bottleneck", (3, 8, 36, 3)),
}
CIFAR_DEPTHS = (8, 14, 20, 32, 44, 56, 110, 1202)  # Table 6 and two small ones; every other depth 6n + 2 exists too


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of net. Its names are the kind's word in KINDS, a depth and a variant: resnet + 50, resnext + 50 + _32x4d.

    net: the class of its nets, "module:class", imported only when a net is built: reading a name needs no torch.
    layouts: by depth. cifar: whether every depth 6n + 2 outside Table 1 is a CIFAR net of basic blocks (section 4.2).
    variants: what may follow the depth; the net's class gives them their meaning.
    """

    net: str
    layouts: Mapping[int, Layout]
    cifar: bool = True
    variants: tuple[str, ...] = ("",)

    def layout(self, depth: int) -> Layout | None:
        """The layers of the net with this depth, None where there is no such net."""
        if depth in self.layouts:
            return self.layouts[depth]
        n, remainder = divmod(depth - 2, 6)
        # 50 and 152 are 6n + 2 too, but the paper uses them for ImageNet only.
        is_cifar = self.cifar and n >= 1 and remainder == 0 and depth not in TABLE_1
        return Layout("cifar", "basic", (n, n, n)) if is_cifar else None


KINDS = {
    "resnet": Kind(net="pipeline.models.resnet:ResNet", layouts=TABLE_1),
    "plain": Kind(net="pipeline.models.resnet:PlainNet", layouts={depth: TABLE_1[depth] for depth in (18, 34)}),
}


@dataclass(frozen=True, kw_only=True)
class Architecture(Layout):
    """What a name such as "resnet34" stands for; `kind` is a key of KINDS."""

    kind: str
    depth: int  # layers with weights: convolutions (projections not counted) and fc
    variant: str

    @property
    def name(self) -> str:
        return f"{self.kind}{self.depth}{self.variant}"

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the 3x3 convolutions, per stage."""
        return WIDTHS[self.family]

    @property
    def feature_channels(self) -> int:
        """Channels of the last feature map: the fc layer's inputs."""
        return self.widths[-1] * EXPANSION[self.block]

    @property
    def default_shortcut(self) -> Literal["A", "B"]:
        """B for the bottleneck nets, A for the others (sections 4.1 and 4.2)."""
        return "B" if self.block == "bottleneck" else "A"


def parse_arch(arch: str) -> Architecture:
    """`arch` ("resnet34", "plain20", ...) -> its `Architecture`. Raises UserError for a name that no net has."""
    match = re.fullmatch(r"([a-z]+)([1-9][0-9]{0,4})(.*)", arch)
    if match and (kind := KINDS.get(match[1])) and match[3] in kind.variants:
        depth = int(match[2])
        if layout := kind.layout(depth):
            return Architecture(kind=match[1], depth=depth, variant=match[3], **vars(layout))
    close = difflib.get_close_matches(arch.lower(), net_names(CIFAR_DEPTHS))
    meant = f" (did you mean {' or '.join(close)}?)" if close else ""
    raise UserError(f"arch: there is no net named {arch!r}{meant}; the nets are {known_nets()}")


def known_nets() -> str:
    """The names of all nets, for help and errors."""
    any_depth = [f"{word}D{variant}" for word, kind in KINDS.items() if kind.cifar for variant in kind.variants]
    return (
        f"{', '.join(net_names())}, and for CIFAR {' and '.join(any_depth)} with any other D = 6n + 2, n >= 1, "
        f"such as {', '.join(map(str, CIFAR_DEPTHS))}"
    )


def net_names(cifar_depths: tuple[int, ...] = ()) -> list[str]:
    """The names of the nets with layouts of their own, and of CIFAR nets of the given depths."""
    return [
        f"{word}{depth}{variant}"
        for word, kind in KINDS.items()
        for depth in (*kind.layouts, *(cifar_depths if kind.cifar else ()))
        for variant in kind.variants
    ]
