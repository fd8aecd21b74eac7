"""The protocols of section 3.4: how an image is shown to a net, and how one softmax comes of it.

center    the centre crop of the resized image: the 1-crop test (CIFAR: the image itself)
ten-crop  four corners and the centre and their flips; the average of the ten softmax scores (AlexNet's test)

A protocol works on evaluation blocks: fixed lists of sample ids that never depend on the number of processes, so every
batch is the same everywhere. The last block is short; nothing is padded, repeated or dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.command import UserError, nearest
from pipeline.data.augment import CenterCrop, TenCrop
from pipeline.data.dataset import Split
from pipeline.data.graphs import Normalization

View = CenterCrop | TenCrop
Block = NDArray[np.int64]
Mirror = Callable[[Tensor], Tensor]  # normalized images [..., H, W, 3] -> their mirror images, normalized


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way of testing. `views(short_side, crop)`: the sets of images wanted, whose softmax scores are averaged.

    `classify(net, images, mirror)`: one view's batch, float32 [N, ..., 3] normalized -> softmax float32 [N, classes].
    `blocks(split)`: the sample ids of each batch; every id in one block.
    """

    name: str
    views: Callable[[int, int], tuple[View, ...]]
    classify: Callable[[nn.Module, Tensor, Mirror], Tensor]
    blocks: Callable[[Split], list[Block]]


def channels_first(images: Tensor) -> Tensor:
    """[N, H, W, 3] as [N, 3, H, W] without a copy: what torch calls the channels_last layout."""
    return images.permute(0, 3, 1, 2)


def softmax(net: nn.Module, images: Tensor) -> Tensor:
    """images float32 [N, H, W, 3] -> softmax scores float32 [N, classes]."""
    scores: Tensor = net(channels_first(images))
    return scores.float().softmax(dim=1)


def ten_crop_softmax(net: nn.Module, images: Tensor, mirror: Mirror) -> Tensor:
    """images float32 [N, 5, S, S, 3] -> mean of the softmax scores of the five crops and their flips, [N, classes]."""
    n, crops = images.shape[:2]
    views = torch.cat([images, mirror(images)], dim=1)
    return softmax(net, views.flatten(0, 1)).view(n, 2 * crops, -1).mean(dim=1)


def mirror_of(normalization: Normalization, device: torch.device) -> Mirror:
    """Mirrors normalized images as if the mean were subtracted after the flip, as in training: flip(image) - mean.

    A per-pixel mean is no mirror image of itself, so flipping `image - mean` alone would be wrong by flip(mean) - mean.
    """
    mean = torch.from_numpy(np.asarray(normalization.mean, np.float64)).to(device)
    if mean.ndim == 1:
        return lambda images: images.flip(-2)
    shift = mean.flip(-2) - mean
    if normalization.std is not None:
        shift = shift / torch.from_numpy(normalization.std).to(device)
    return lambda images: images.flip(-2) + shift.float()


def even_blocks(size: int) -> Callable[[Split], list[Block]]:
    """Blocks of `size` consecutive samples, the last one short."""
    return lambda split: [np.arange(start, min(start + size, len(split))) for start in range(0, len(split), size)]


# The block sizes decide the shapes that the kernels see, hence the last bits of every score: changing one changes score
# files. 64 crops fill a GPU and keep a CPU's activations in tens of megabytes; ten crops of 16 images are 160.
PROTOCOLS = {
    one.name: one
    for one in (
        Protocol(
            name="center",
            views=lambda short_side, crop: (CenterCrop(short_side=short_side, crop=crop),),
            classify=lambda net, images, mirror: softmax(net, images),
            blocks=even_blocks(64),
        ),
        Protocol(
            name="ten-crop",
            views=lambda short_side, crop: (TenCrop(short_side=short_side, crop=crop),),
            classify=ten_crop_softmax,
            blocks=even_blocks(16),
        ),
    )
}


def find(name: str) -> Protocol:
    """The protocol of that name. Raises UserError for any other name."""
    if name not in PROTOCOLS:
        raise UserError(f"there is no protocol '{name}': {nearest(name, PROTOCOLS)}")
    return PROTOCOLS[name]
