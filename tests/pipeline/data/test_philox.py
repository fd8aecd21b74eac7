from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.philox import philox, standard_normal, uniform

word = st.integers(0, 2**64 - 1)


@settings(deadline=None)
@given(key=st.tuples(word, word), counters=st.lists(st.tuples(word, word, word, word), min_size=1, max_size=8))
def test_words_equal_numpys(key: tuple[int, int], counters: list[tuple[int, ...]]) -> None:
    expected = []
    for counter in counters:
        # NumPy increments the 256-bit counter before it generates: start one below.
        number = sum(part << (64 * place) for place, part in enumerate(counter))
        before = (number - 1) % 2**256
        parts = np.array([(before >> (64 * place)) & (2**64 - 1) for place in range(4)], np.uint64)
        expected.append(np.random.Philox(key=np.array(key, np.uint64), counter=parts).random_raw(4))
    np.testing.assert_array_equal(philox(key, np.array(counters, np.uint64)), np.array(expected))


def words(n: int) -> np.ndarray:
    counters = np.zeros((n, 4), np.uint64)
    counters[:, 0] = np.arange(n)
    return philox((7, 9), counters)


def test_uniforms_are_those_of_numpys_generator() -> None:
    raw = np.random.Philox(key=3).random_raw(1000)
    np.testing.assert_array_equal(uniform(raw), np.random.Generator(np.random.Philox(key=3)).random(1000))


def test_normals_have_the_normal_distribution() -> None:
    normals = standard_normal(words(100_000))
    assert normals.shape == (100_000, 4)
    assert np.isfinite(normals).all()
    np.testing.assert_allclose(normals.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(np.corrcoef(normals.T), np.eye(4), atol=0.02)
    # Shares of a normal distribution within 1, 2 and 3 standard deviations.
    for bound, share in ((1, 0.682689), (2, 0.954500), (3, 0.997300)):
        np.testing.assert_allclose((np.abs(normals) < bound).mean(), share, atol=0.003)


def test_a_row_does_not_depend_on_the_others() -> None:
    together = standard_normal(words(1001))
    for row in (0, 1, 500, 1000):
        np.testing.assert_array_equal(standard_normal(words(1001)[row : row + 1])[0], together[row])


def test_extreme_words_are_finite() -> None:
    extremes = np.array([[0, 0, 2**64 - 1, 2**64 - 1]], np.uint64)
    assert np.isfinite(standard_normal(extremes)).all()
    assert uniform(extremes).max() < 1
