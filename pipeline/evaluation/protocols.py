"""The test protocols of section 3.4: the views of an image that a net gets, and how they become one softmax.

center       the centre crop of the resized image: the 1-crop test (CIFAR: the image itself)
ten-crop     four corners and the centre and their flips; the average of the ten softmax scores (AlexNet's test)
multi-scale  the whole image, fully convolutionally, at five sizes, and its flips; softmax per position, averaged over
             positions, flips and sizes

A protocol works on evaluation blocks: lists of sample ids that do not depend on the number of processes, so that every
batch is the same everywhere. The last block is short; nothing is padded, repeated or dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.base.command import UserError, check_known
from pipeline.data.conventions import Resizing
from pipeline.data.dataset import Split
from pipeline.data.graphs import Normalization
from pipeline.data.views import CenterCrop, TenCrop, View, WholeImage, shape_blocks
from pipeline.evaluation.inference import in_pieces
from pipeline.evaluation.names import PROTOCOL_NAMES

Block = NDArray[np.int64]
Mirror = Callable[[Tensor], Tensor]  # normalized images [..., H, W, 3] -> their mirror images, normalized


# Section 3.4: "images are resized such that the shorter side is in {224, 256, 384, 480, 640}", for a crop of 224.
SCALES = (224, 256, 384, 480, 640)
SCALES_CROP = 224


@dataclass(frozen=True)
class ViewContext:
    """What a protocol needs beside the images of one view.

    mirror: makes their mirror images. window: side of the last feature map of the net's training crop, which its average
    pooling covers; 7 for a crop of 224.
    """

    mirror: Mirror
    window: int


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A way of testing. `views(short_side, crop, resizing)`: the views of each image, whose softmax scores are averaged.

    `classify(net, images, context)`: one view's batch, float32 [N, ..., 3] normalized -> softmax float32 [N, classes].
    `blocks(split, views)`: the sample ids of each batch; every id is in one block.
    """

    name: str
    views: Callable[[int, int, Resizing | None], tuple[View, ...]]
    classify: Callable[[nn.Module, Tensor, ViewContext], Tensor]
    blocks: Callable[[Split, tuple[View, ...]], list[Block]]


def channels_first(images: Tensor) -> Tensor:
    """View [N, H, W, 3] as [N, 3, H, W] without a copy, in the layout that torch calls channels_last."""
    return images.permute(0, 3, 1, 2)


def softmax(net: nn.Module, images: Tensor) -> Tensor:
    """Return the softmax scores, float32 [N, classes], of images float32 [N, H, W, 3]."""

    def piece(images: Tensor) -> Tensor:
        scores: Tensor = net(channels_first(images))
        return scores.float().softmax(dim=1)

    return in_pieces(piece, images)


def ten_crop_softmax(net: nn.Module, images: Tensor, context: ViewContext) -> Tensor:
    """Return the mean softmax, [N, classes], over the five crops and their flips; images float32 [N, 5, S, S, 3]."""
    n, crops = images.shape[:2]
    views = torch.cat([images, context.mirror(images)], dim=1)
    return softmax(net, views.flatten(0, 1)).view(n, 2 * crops, -1).mean(dim=1)


def fully_convolutional_softmax(net: nn.Module, images: Tensor, context: ViewContext) -> Tensor:
    """Return the mean softmax, [N, classes], over all positions of an image and its flip; images float32 [N, H, W, 3].

    The net runs as a convolution: its average pooling, `window` wide, moves in steps of one over the last feature map, fc
    is a 1x1 convolution, and each position has its softmax. One position corresponds to one crop.
    """
    fc: nn.Linear = net.fc  # type: ignore[assignment]

    def piece(images: Tensor) -> Tensor:
        maps: Tensor = net.features(channels_first(images))  # type: ignore[operator]
        pooled = F.avg_pool2d(maps, context.window, stride=1)
        scores = F.conv2d(pooled, fc.weight[:, :, None, None], fc.bias)
        return scores.float().softmax(dim=1).mean(dim=(2, 3))

    both = torch.cat([images, context.mirror(images)])
    return in_pieces(piece, both).view(2, len(images), -1).mean(dim=0)


@torch.inference_mode()
def feature_side(net: nn.Module, crop: int, device: torch.device) -> int:
    """Return the side of the last feature map of a `crop` square; the net is in eval mode."""
    maps: Tensor = net.features(torch.zeros(1, 3, crop, crop, device=device))  # type: ignore[operator]
    return int(maps.shape[-1])


def mirror_of(normalization: Normalization, device: torch.device) -> Mirror:
    """Return what mirrors normalized images as training does, with the mean subtracted after the flip: flip(image) - mean.

    A per-pixel mean is not symmetric, so flipping `image - mean` alone would be wrong by flip(mean) - mean.
    """
    mean = torch.from_numpy(np.asarray(normalization.mean, np.float64)).to(device)
    if mean.ndim == 1:
        return lambda images: images.flip(-2)
    shift = mean.flip(-2) - mean
    if normalization.std is not None:
        shift = shift / torch.from_numpy(normalization.std).to(device)
    return lambda images: images.flip(-2) + shift.float()


def even_blocks(size: int) -> Callable[[Split, tuple[View, ...]], list[Block]]:
    """Return blocks of `size` consecutive samples; the last one may be short."""
    return lambda split, _: [np.arange(start, min(start + size, len(split))) for start in range(0, len(split), size)]


def like_shaped_blocks(size: int) -> Callable[[Split, tuple[View, ...]], list[Block]]:
    """Return blocks of up to `size` images that have equal shapes in every view."""

    def blocks(split: Split, views: tuple[View, ...]) -> list[Block]:
        shapes = np.stack([split.samples["height"], split.samples["width"]], axis=1).astype(np.int64)
        resizing = views[0].resizing
        rounding = "round" if resizing is None else resizing.longer_side
        return shape_blocks(shapes, [view.short_side for view in views], size, rounding)

    return blocks


def scaled_views(short_side: int, crop: int, resizing: Resizing | None) -> tuple[View, ...]:
    """Return the whole image at the paper's five sizes, in proportion for other crops than 224 (CIFAR, the demo)."""
    return tuple(WholeImage(short_side=round(scale * crop / SCALES_CROP), resizing=resizing) for scale in SCALES)


# The block sizes decide the shapes that the kernels get, hence the last bits of every score: changing a size changes score
# files. 64 crops fill a GPU and keep a CPU's activations in tens of megabytes; ten crops of 16 images are 160 crops, and
# 8 images of 640 x 853 and their flips have the pixels of 174 crops.
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="center",
            views=lambda short_side, crop, resizing: (CenterCrop(short_side=short_side, crop=crop, resizing=resizing),),
            classify=lambda net, images, context: softmax(net, images),
            blocks=even_blocks(64),
        ),
        Protocol(
            name="ten-crop",
            views=lambda short_side, crop, resizing: (TenCrop(short_side=short_side, crop=crop, resizing=resizing),),
            classify=ten_crop_softmax,
            blocks=even_blocks(16),
        ),
        Protocol(
            name="multi-scale", views=scaled_views, classify=fully_convolutional_softmax, blocks=like_shaped_blocks(8)
        ),
    )
}
assert tuple(PROTOCOLS) == PROTOCOL_NAMES, "pipeline/evaluation/names.py must name each protocol, in this order"


def find(name: str) -> Protocol:
    """Return the protocol of that name. Raises UserError if there is none."""
    check_known("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def protocol_names(names: Sequence[str]) -> list[str]:
    """The protocols that `--protocol` names: in that order, each once. Raises UserError if it names none (`--protocol ,`)."""
    if not names:
        raise UserError(f"no protocol was named: give --protocol with {', '.join(PROTOCOLS)}")
    return list(dict.fromkeys(names))
