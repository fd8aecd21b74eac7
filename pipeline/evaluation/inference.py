"""A net as evaluation runs it: batch normalization folded into the convolutions, batches in pieces that suit a CPU's caches.

Both change scores by rounding alone, and neither depends on the number of processes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.models.pairs import conv_norm_pairs

# Pixels in a forward pass on the CPU: 16 crops of 224, or one image of 640 x 853. Measured on a Xeon (2 MB of L2 cache a
# core), ResNet-18: 8 images of 640 x 853 and their flips at once took 1.4 times as long as one by one.
CPU_PIXELS = 16 * 224 * 224

# A folded net is checked on one image of noise, as strong as pixels whose mean is subtracted. On one core that takes 5 ms
# for ResNet-20 and 33 ms for ResNet-50, about a third of what the folding takes.
CHECK_SIDE, CHECK_STD = 32, 60
# In units of float rounding, relative to the largest score: 0.001 in float32. Measured there, nets of 8 to 1202 layers,
# fresh and trained: rounding was 1e-6 at most; a wrong pair 0.01 after the first update and 0.2 to 5 after twenty.
CHECK_TOLERANCE = 2**13


@torch.no_grad()
def inference_net(net: nn.Module) -> nn.Module:
    """A copy of `net` in eval mode without batch normalization: scale and shift are in the weights and biases.

    With fixed statistics batch normalization is an affine map of each channel, so the convolution before it can do it.
    The net's modules declare which norm directly follows which convolution (`pipeline.models.pairs`); exactly these are
    folded, and the copy's scores are compared with those before folding. `net` and its mode do not change.
    """
    folded = copy.deepcopy(net).eval()
    pairs = conv_norm_pairs(folded)
    if not pairs:
        return folded
    noise = torch.randn(1, 3, CHECK_SIDE, CHECK_SIDE, generator=torch.Generator().manual_seed(0))
    image = (CHECK_STD * noise).to(next(folded.parameters()))
    # TF32 rounds more coarsely than the comparison allows.
    with torch.backends.cudnn.flags(enabled=None, allow_tf32=False):
        expected = folded(image)
        for conv, norm in pairs.items():
            convolution, normalization = folded.get_submodule(conv), folded.get_submodule(norm)
            assert isinstance(convolution, nn.Conv2d) and isinstance(normalization, nn.BatchNorm2d), (conv, norm)
            assert convolution.out_channels == normalization.num_features, (
                f"{norm} cannot follow {conv}: other channels"
            )
            folded.set_submodule(conv, fuse_conv_bn_eval(convolution, normalization))
            folded.set_submodule(norm, nn.Identity())
        _check(folded(image), expected, f"conv_norm_pairs of {type(net).__name__} or of one of its blocks")
    return folded


def _check(scores: Tensor, expected: Tensor, declared: str) -> None:
    """Assert that folding changed the scores by rounding alone.

    A net that has diverged has scores that are not finite; these are not compared.
    """
    if not expected.isfinite().all():
        return
    largest, difference = float(expected.abs().max()), float((scores - expected).abs().max())
    tolerance = CHECK_TOLERANCE * torch.finfo(expected.dtype).eps * largest
    assert difference <= tolerance, (
        f"folding batch normalization changes scores by {difference:.3g}, the largest being {largest:.3g}: "
        f"{declared} name a norm that does not directly follow its convolution"
    )


def in_pieces(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """`function` of images [N, H, W, 3], row for row; on a CPU in calls of as many images as suit its caches."""
    rows = max(1, CPU_PIXELS // (images.shape[1] * images.shape[2]))
    if images.device.type != "cpu" or rows >= len(images):
        return function(images)
    return torch.cat([function(piece) for piece in images.split(rows)])
