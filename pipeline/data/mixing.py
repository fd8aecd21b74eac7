"""Mixup and cutmix as data (contract 3): how the two images of a pair are mixed is drawn before anything is decoded.

The rows 2i and 2i + 1 of the mini-batch are a pair, a and b. With a share s that belongs to every pixel,

    a' = s a + (1 - s) b        b' = s b + (1 - s) a

Mixup (Zhang et al. 2018) has one s for all pixels. Cutmix (Yun et al. 2019) swaps a box: s is 0 inside and 1 outside. The
labels follow with a weight that is the mean of s over the pixels. A pair's draws are a function of (seed, epoch, sample id)
of its first presentation; the ranks hold consecutive rows, so a pair lies on one rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.base.command import UserError
from pipeline.data.order import Presentations
from pipeline.data.philox import philox, uniform

MIXING_STREAM = 3  # beside order.ORDER_STREAM and draws.AUGMENT_STREAM: the second half of the Philox key


@dataclass(frozen=True, kw_only=True)
class MixingConfig:
    """Mixup and cutmix: two neighbouring images of the mini-batch become two mixtures of both, and so do their labels.

    Args:
        mixup: alpha of the distribution Beta(alpha, alpha) from which mixup draws how much of its own image each of the two
            keeps, such as 0.1; 0 turns mixup off, as in the paper.
        cutmix: alpha of the distribution Beta(alpha, alpha) from which cutmix draws the share of the area that each of the
            two keeps, such as 1; the rest is a box, which the two swap. 0 turns cutmix off, as in the paper.
        switch: share of the pairs that get cutmix where both are on; the others get mixup.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    switch: float = 0.5

    def __post_init__(self) -> None:
        for key in ("mixup", "cutmix"):
            if not 0 <= getattr(self, key) < math.inf:
                raise UserError(f"mixing.{key} is {getattr(self, key)}: it must be at least 0, such as 1, and 0 is off")
        if not 0 <= self.switch <= 1:
            raise UserError(f"mixing.switch is {self.switch}: it must lie in [0, 1], such as 0.5")

    @property
    def on(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class Mixes:
    """How P pairs of images are mixed.

    box int64 [P, 4]: top, left, bottom and right edge of the box that the two swap, pixels; empty for mixup.
    share float32 [P]: what each of the two keeps of its own image outside the box; 1 for cutmix.
    weight float32 [P]: what each keeps of its own label: `share`, less the box's part of the area.
    """

    box: NDArray[np.int64]
    share: NDArray[np.float32]
    weight: NDArray[np.float32]


def check_pairs(config: MixingConfig, batch: int, ranks: int) -> None:
    """Raise UserError where images are mixed and a pair of them would lie on two of `ranks` ranks."""
    if config.on and batch % (2 * ranks):
        possible = [number for number in range(1, batch + 1) if batch % (2 * number) == 0 and number <= 2 * ranks]
        remedy = f"use one of {possible} processes, or another batch" if possible else "use an even batch"
        raise UserError(
            f"mixing takes the images of a process in pairs, and batch {batch} gives {ranks} "
            f"{'process' if ranks == 1 else 'processes'} no even number of images each: {remedy}"
        )


def check_rows(config: MixingConfig, batch: int, rows: slice) -> None:
    """Raise UserError where images are mixed and `rows` of a mini-batch of `batch` images hold one image of a pair alone."""
    taken = range(batch)[rows]
    if config.on and (taken.start % 2 or len(taken) % 2):
        raise UserError(
            f"mixing takes the rows (0, 1), (2, 3) ... of a mini-batch in pairs, and the rows from {taken.start} up to "
            f"{taken.stop} of {batch} split a pair: begin and end at even rows"
        )


def draw_mixes(seed: int, presentations: Presentations, side: int, config: MixingConfig) -> Mixes:
    """Draw how the pairs of rows (0, 1), (2, 3) ... of `presentations` are mixed, for images of `side` pixels square.

    Pair i depends on (seed, epoch and id of row 2i, side, config) alone. The box is that of timm's rand_bbox
    (timm/data/mixup.py): from half its length before any pixel to half its length behind, where the length is
    sqrt(1 - share of the area) of the image's side and both are rounded down; what reaches beyond the image is cut off.
    """
    assert config.on and len(presentations) % 2 == 0
    epochs, ids = presentations.epochs[::2], presentations.ids[::2]
    counters = np.zeros((len(ids), 4), np.uint64)
    counters[:, 0], counters[:, 1] = ids, epochs
    chosen, kept, *centre = uniform(philox((seed, MIXING_STREAM), counters)).T
    swaps = chosen < (config.switch if config.mixup and config.cutmix else float(config.cutmix > 0))
    share = np.where(swaps, _beta(config.cutmix, kept), _beta(config.mixup, kept))
    half = np.floor(side * np.sqrt(1 - share)).astype(np.int64)[:, None] // 2
    middle = np.floor(np.stack(centre, axis=1) * side).astype(np.int64)  # [P, 2]: y, x
    start, end = np.clip(middle - half, 0, side), np.clip(middle + half, 0, side)
    box = np.where(swaps[:, None], np.concatenate([start, end], axis=1), 0)
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    outside = np.where(swaps, 1.0, share)
    return Mixes(box, outside.astype(np.float32), (outside - area / side**2).astype(np.float32))


def mix(images: Tensor, box: Tensor, share: Tensor) -> Tensor:
    """Mix the pairs of `images` [2P, H, W, C]; box int64 [P, 4] and share float32 [P] as in `Mixes`, on the same device.

    A pixel that was swapped, or that keeps all of its own image, has the bits that it had.
    """
    pairs = images.unflatten(0, (-1, 2))
    height, width = images.shape[1:3]
    top, left, bottom, right = (edge[:, None] for edge in box.unbind(1))
    rows, columns = (torch.arange(length, device=images.device) for length in (height, width))
    inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]
    own = torch.where(inside, 0, share[:, None, None])[:, None, :, :, None].to(images.dtype)  # [P, 1, H, W, 1]
    # Products and sums one by one: a fused multiply-add would round otherwise, on some devices.
    return (pairs * own + pairs.flip(1) * (1 - own)).flatten(0, 1)


def mix_in_place(images: Tensor, box: Tensor, share: Tensor) -> Tensor:
    """Do the same, to the bit, to images on the CPU, and return them: only what changes is computed or copied.

    By NumPy, in a tenth of the time: `mix` goes over all pixels of all pairs several times.
    """
    pairs = images.numpy().reshape(-1, 2, *images.shape[1:])
    for pair, (top, left, bottom, right), own in zip(pairs, box.tolist(), share.numpy(), strict=True):
        if own != 1:
            pair[:] = pair * own + pair[::-1] * (1 - own)
        inside = pair[:, top:bottom, left:right]
        inside[:] = inside[::-1].copy()
    return images


def swapped(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int64 [2P]: for each row the label of the other row of its pair."""
    return np.ascontiguousarray(labels.reshape(-1, 2)[:, ::-1]).reshape(-1)


def _beta(alpha: float, uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn uniforms in [0, 1) into draws from Beta(alpha, alpha), by the inverse of its distribution function; alpha 0: 1s."""
    from scipy.special import betaincinv  # type: ignore[import-untyped]  # imported where it is used: 0.2 s

    return betaincinv(alpha, alpha, uniforms) if alpha else np.ones_like(uniforms)
