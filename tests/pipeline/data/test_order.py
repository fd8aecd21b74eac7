from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.order import Order


@settings(deadline=None, max_examples=40)
@given(
    samples=st.integers(1, 400),
    batch=st.integers(1, 100),
    seed=st.integers(0, 2**64 - 1),
    block=st.integers(1, 50),
    worlds=st.lists(st.integers(1, 64), min_size=1, max_size=4),
    data=st.data(),
)
def test_every_sample_once_an_epoch_for_any_world_and_across_resumes(
    samples: int, batch: int, seed: int, block: int, worlds: list[int], data: st.DataObject
) -> None:
    """A run is cut into pieces, each with another world size, uneven where it does not divide the batch."""
    epochs = 3
    iterations = -(-epochs * samples // batch)
    cuts = data.draw(st.lists(st.integers(0, iterations), min_size=len(worlds) - 1, max_size=len(worlds) - 1))
    bounds = [0, *sorted(cuts), iterations]
    ledger: list[tuple[int, int]] = []
    for world, start, stop in zip(worlds, bounds, bounds[1:], strict=False):
        edges = [rank * batch // world for rank in range(world + 1)]
        for rank in range(world):
            # Each rank of a piece is a process of its own: a fresh Order knows nothing of what was before.
            order = Order(samples, batch, seed, block)
            for iteration in range(start, stop):
                shown = order.minibatch(iteration).rows(slice(edges[rank], edges[rank + 1]))
                ledger.extend(zip(shown.epochs.tolist(), shown.ids.tolist(), strict=True))
    assert len(ledger) == iterations * batch
    for epoch in range(epochs):
        assert sorted(sample for one, sample in ledger if one == epoch) == list(range(samples))


def test_the_stream_is_the_concatenation_of_the_epochs() -> None:
    order = Order(samples=37, batch=10, seed=5)
    stream = np.concatenate([order.minibatch(t).ids for t in range(37)])
    expected = np.concatenate([Order(37, 1, 5).permutation(epoch) for epoch in range(10)])
    np.testing.assert_array_equal(stream, expected)
    assert len({tuple(order.permutation(epoch)) for epoch in range(10)}) == 10


def test_mini_batch_larger_than_the_set() -> None:
    shown = Order(samples=3, batch=10, seed=0).minibatch(1)
    assert shown.epochs.tolist() == [3, 3, 4, 4, 4, 5, 5, 5, 6, 6]
    assert sorted(shown.ids[2:5].tolist()) == [0, 1, 2]


def test_the_permutation_is_the_sort_of_numpys_raw_words() -> None:
    words = np.random.Philox(key=np.array([11, 1], np.uint64), counter=np.array([0, 4, 0, 0], np.uint64))
    expected = sorted(range(100), key=words.random_raw(100).tolist().__getitem__)
    assert Order(100, 10, 11).permutation(4).tolist() == expected


def test_permutations_are_uniform() -> None:
    """Each of 5 samples (or chunks, with blocks) takes each place in a fifth of 5000 epochs."""
    places = np.array([Order(5, 5, 1).permutation(epoch) for epoch in range(5000)])
    shares = np.array([(places == sample).mean(axis=0) for sample in range(5)])
    np.testing.assert_allclose(shares, 0.2, atol=0.03)


@pytest.mark.parametrize("samples", [96, 100])
def test_blocks_keep_neighbours_together_and_shuffle_both_levels(samples: int) -> None:
    order = Order(samples, 10, 3, block=8)
    permutation = order.permutation(0)
    chunks = permutation // 8
    runs = 1 + int((np.diff(chunks) != 0).sum())
    assert runs == len(np.unique(chunks)) == -(-samples // 8)  # each chunk in one piece
    assert not np.array_equal(chunks, np.sort(chunks))
    inside = [permutation[chunks == chunk] % 8 for chunk in range(samples // 8)]
    assert len({tuple(one) for one in inside}) > samples // 16  # chunks are shuffled differently
    assert not np.array_equal(permutation, order.permutation(1))


def test_seeds_differ_and_pickling_keeps_the_order() -> None:
    order = Order(50, 10, 1)
    assert not np.array_equal(order.minibatch(0).ids, Order(50, 10, 2).minibatch(0).ids)
    copy = pickle.loads(pickle.dumps(order))
    assert copy == order
    np.testing.assert_array_equal(copy.minibatch(7).ids, order.minibatch(7).ids)
