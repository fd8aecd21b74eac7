"""Contract 2: the order is a function. It gives the samples of each iteration's mini-batch, the same on any cluster.

The training stream is the concatenation of seeded permutations of the training set, one per epoch ("reshuffled at the
start of every epoch", section 3.4 of the paper). Mini-batch t is `stream[t*B : (t+1)*B]`: it may straddle epochs;
nothing is dropped, padded or repeated. The order does not depend on the world size, the launcher, or an interruption:
resuming needs one integer, and any iteration is reached in the time of one permutation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# The second half of the Philox key separates the streams of the project's random draws.
ORDER_STREAM = 1


@dataclass(frozen=True)
class Presentations:
    """Rows of a mini-batch: sample `ids` int64 [N] (0..samples-1), each in its epoch (`epochs` int64 [N], 0-based)."""

    epochs: NDArray[np.int64]
    ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, rows: slice) -> Presentations:
        """Return the rows of one rank or of one micro-batch."""
        return Presentations(self.epochs[rows], self.ids[rows])


@dataclass(frozen=True)
class Order:
    """The training stream of `samples` samples in mini-batches of `batch`, drawn from `seed` (0..2**64-1).

    block: 1 permutes single samples. b > 1, for storage with slow random reads, permutes chunks of b neighbouring samples
    and the samples inside each chunk: any b consecutive rows lie in two chunks (three if the last chunk is short).
    """

    samples: int
    batch: int
    seed: int
    block: int = 1

    def __post_init__(self) -> None:
        assert 0 < self.samples < 2**32 and self.batch > 0 and self.block > 0 and 0 <= self.seed < 2**64

    def minibatch(self, iteration: int) -> Presentations:
        """Return the global mini-batch of an iteration (0-based): `batch` rows."""
        assert iteration >= 0
        positions = np.arange(iteration * self.batch, (iteration + 1) * self.batch, dtype=np.int64)
        epochs, places = np.divmod(positions, self.samples)
        ids = np.empty_like(places)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            rows = epochs == epoch
            ids[rows] = self.permutation(epoch)[places[rows]]
        return Presentations(epochs, ids)

    def permutation(self, epoch: int) -> NDArray[np.uint32]:
        """Return the order of an epoch, uint32 [samples], read-only. Thread-safe."""
        return _permutation(self.samples, self.seed, self.block, epoch)


@lru_cache(maxsize=2)  # a mini-batch seldom spans more than two epochs
def _permutation(samples: int, seed: int, block: int, epoch: int) -> NDArray[np.uint32]:
    """Sort raw Philox words: this gives a uniform permutation that no NumPy release can change."""
    key, counter = np.array([seed, ORDER_STREAM], np.uint64), np.array([0, epoch, 0, 0], np.uint64)
    words = np.random.Philox(key=key, counter=counter)
    permutation = np.argsort(words.random_raw(samples), kind="stable")
    if block > 1:
        # `permutation` has the random order inside the chunks; a stable sort by the chunks' ranks keeps it.
        rank = np.argsort(np.argsort(words.random_raw(-(-samples // block)), kind="stable"), kind="stable")
        permutation = permutation[np.argsort(rank[permutation // block], kind="stable")]
    result = permutation.astype(np.uint32)
    result.flags.writeable = False
    return result
