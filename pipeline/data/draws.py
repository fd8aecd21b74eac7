"""The random numbers of contract 3: four words for each (seed, epoch, sample id, block), in any order, without state.

Each use has blocks of its own, so that a new use leaves the numbers of the others as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.philox import Words, philox, uniform

AUGMENT_STREAM = 2  # beside order.ORDER_STREAM: the second half of the Philox key

TRIES = 10  # that a random box gets, as torchvision's get_params gives it
_TRY_BLOCKS = TRIES // 2  # a try takes two numbers, area and ratio; a block has four
GEOMETRY, COLOUR = 0, 1
AREA_CROP = range(2, 2 + _TRY_BLOCKS)
ERASE = 8  # whether and where
ERASE_TRIES = range(9, 9 + _TRY_BLOCKS)
RAND_AUGMENT = 16  # two blocks for each operation, from here on
assert AREA_CROP.stop <= ERASE and ERASE_TRIES.stop <= RAND_AUGMENT  # no number is used twice


@dataclass(frozen=True)
class Draws:
    """The draws of N presentations. epochs, ids: int64 [N]; row i depends on (seed, epochs[i], ids[i]) alone."""

    seed: int
    epochs: NDArray[np.int64]
    ids: NDArray[np.int64]

    def words(self, *blocks: int) -> Words:
        """Return the words of some blocks, uint64 [blocks, N, 4]."""
        n = len(self.ids)
        counters = np.zeros((len(blocks), n, 4), np.uint64)
        counters[:, :, 0], counters[:, :, 1] = self.ids, self.epochs
        counters[:, :, 2] = np.array(blocks, np.uint64)[:, None]
        return philox((self.seed, AUGMENT_STREAM), counters.reshape(-1, 4)).reshape(len(blocks), n, 4)

    def uniforms(self, *blocks: int) -> NDArray[np.float64]:
        """Return the numbers of some blocks, one block after the other: float64 [N, 4 * blocks] in [0, 1)."""
        return np.concatenate(list(uniform(self.words(*blocks))), axis=1)
