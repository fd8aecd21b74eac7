"""Turns weights that want their images otherwise into weights for ours, which are RGB, 0..255, minus a mean.

A net's first convolution is linear and has no bias, so dividing the images by a standard deviation is dividing its weights,
and another order of the colours is another order of its input channels. What a net computes stays the same up to rounding.

The mean stays with the images: a training subtracts the mean of its own dataset, from every net's images. A net that was
trained on images around one mean then goes on with images around another, and both are around zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.data.conventions import Convention
from pipeline.evaluation.foreign import for_rgb
from pipeline.evaluation.wrappings import FIRST


def folded(state: Mapping[str, Tensor], convention: Convention) -> dict[str, Tensor]:
    """`state`, whose first convolution takes images by `convention`, for images RGB, 0..255, minus the convention's mean.

    state: by torchvision's names; `conv1.weight` [C, 3, k, k] has its input channels in the convention's order of colours.
    Weights in half precision become float32 there: the division would round them again.
    """
    weight = for_rgb(state[FIRST], convention).double()
    if convention.std is not None:
        weight = weight / torch.tensor(convention.std, dtype=torch.float64).view(1, 3, 1, 1)
    return {**state, FIRST: weight.to(torch.promote_types(state[FIRST].dtype, torch.float32))}
