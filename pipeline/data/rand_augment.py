"""RandAugment as data: which operations an image gets, and how strongly, are numbers drawn before decoding.

The operations and magnitudes are timm's "rand-mM-mstdD-nN-pP-inc1" (timm/data/auto_augment.py), with which "ResNet strikes
back" trained (Wightman et al., arXiv:2110.00476); RandAugment is Cubuk et al., arXiv:1909.13719. `operations.py` computes
the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base.command import UserError
from pipeline.data.draws import RAND_AUGMENT, Draws
from pipeline.data.philox import standard_normal, uniform

# timm's _RAND_INCREASING_TRANSFORMS, in its order; an operation's number is its place here.
OPERATIONS = (
    "auto-contrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize-add", "colour", "contrast",
    "brightness", "sharpness", "shear-x", "shear-y", "translate-x", "translate-y",
)  # fmt: skip
NO_OPERATION = -1
MOST = 16  # operations on an image: more leave nothing of it
LARGEST = 10.0  # of the magnitudes: timm's _LEVEL_DENOM


@dataclass(frozen=True, kw_only=True)
class RandAugmentConfig:
    """Random operations on the cropped and mirrored image, before the mean is subtracted: timm's RandAugment.

    Args:
        operations: how many an image gets, one after the other, each drawn from all fifteen; 0 turns them off. 2 in
            RandAugment and in timm.
        magnitude: mean strength of an operation, 0..10; 6 and 7 in "ResNet strikes back".
        deviation: standard deviation of the strength, which is normal and cut off at 0 and 10; 0.5 there.
        probability: with which each drawn operation is applied; 0.5 there.
    """

    operations: int = 0
    magnitude: float = 6.0
    deviation: float = 0.5
    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.operations <= MOST:
            raise UserError(
                f"augment.rand_augment.operations is {self.operations}: it must lie in [0, {MOST}], such as 2"
            )
        if not 0 <= self.magnitude <= LARGEST:
            raise UserError(
                f"augment.rand_augment.magnitude is {self.magnitude:g}: it must lie in [0, {LARGEST:g}], such as 6"
            )
        if not 0 <= self.deviation < float("inf"):
            raise UserError(f"augment.rand_augment.deviation is {self.deviation:g}: it must be at least 0, such as 0.5")
        if not 0 <= self.probability <= 1:
            raise UserError(f"augment.rand_augment.probability is {self.probability:g}: it must lie in [0, 1]")


def draw_operations(draws: Draws, config: RandAugmentConfig) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Draw the operations of N presentations, in the order in which they are applied, and their magnitudes.

    Returns int64 [N, K], places in OPERATIONS or NO_OPERATION, and float64 [N, K] in [-10, 10]: the sign is the direction of
    the operations that have one (rotate, shear, translate, and colour to sharpness: less or more). K: config.operations.
    """
    count, n = config.operations, len(draws.ids)
    words = draws.words(*range(RAND_AUGMENT, RAND_AUGMENT + 2 * count)).reshape(count, 2, n, 4)
    chance = uniform(words[:, 0])
    normals = standard_normal(words[:, 1].reshape(count * n, 4))[:, 0].reshape(count, n)
    chosen = np.floor(chance[:, :, 0] * len(OPERATIONS)).astype(np.int64)
    operations = np.where(chance[:, :, 1] < config.probability, chosen, NO_OPERATION)
    strengths = np.clip(config.magnitude + config.deviation * normals, 0.0, LARGEST)
    return operations.T, (np.where(chance[:, :, 2] < 0.5, -strengths, strengths)).T
