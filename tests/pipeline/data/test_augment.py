from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.command import UserError
from pipeline.data.augment import AugmentConfig, ResizeStage, training_views
from pipeline.data.erasing import EraseConfig
from pipeline.data.rand_augment import RandAugmentConfig
from pipeline.data.views import Views
from tests.pipeline.data.small_datasets import statistics_of_size

STATISTICS = statistics_of_size(224)


def draw(n: int, config: AugmentConfig, seed: int = 1, height: int = 375, width: int = 500) -> Views:
    ids = np.arange(n)
    return training_views(seed, ids // 7, ids, np.full(n, height), np.full(n, width), config, STATISTICS)


def test_scale_and_crop_cover_their_ranges_uniformly() -> None:
    views = draw(50_000, AugmentConfig())
    short = views.resized.min(axis=1)
    counts = np.bincount(short)[256:]
    assert short.min() == 256 and short.max() == 480 and len(counts) == 225
    np.testing.assert_allclose(counts / len(views), 1 / 225, rtol=0.35)
    free = views.resized - 224
    assert (views.crop_start >= 0).all() and (views.crop_start <= free).all()
    assert (views.crop_start == free).any(axis=0).all() and (views.crop_start == 0).any(axis=0).all()
    np.testing.assert_allclose((views.crop_start / free).mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(views.mirror.mean(), 0.5, atol=0.01)


def test_the_longer_side_keeps_the_aspect_ratio_to_the_nearest_pixel() -> None:
    views = draw(1000, AugmentConfig())
    exact = views.resized[:, 0] * 500 / 375
    np.testing.assert_array_less(np.abs(views.resized[:, 1] - exact), 0.5 + 1e-9)


def test_colour_follows_alexnets_formula() -> None:
    """Section 4.1 of AlexNet: [p1 p2 p3] [a1 l1, a2 l2, a3 l3]^T with a ~ N(0, 0.1), for pixels in [0, 1]."""
    colour = draw(100_000, AugmentConfig()).colour / 255
    covariance = (STATISTICS.eigenvectors * (0.1 * STATISTICS.eigenvalues) ** 2) @ STATISTICS.eigenvectors.T
    np.testing.assert_allclose(np.cov(colour.T), covariance, atol=1e-5)
    np.testing.assert_allclose(colour.mean(axis=0), 0, atol=3e-4)
    assert not draw(10, AugmentConfig(colour=0)).colour.any()


def test_draws_are_independent_of_one_another() -> None:
    views = draw(50_000, AugmentConfig())
    free = np.maximum(views.resized - 224, 1)
    draws = np.column_stack([views.resized[:, 0], views.crop_start / free, views.mirror, views.colour[:, 0]])
    np.testing.assert_allclose(np.corrcoef(draws.T), np.eye(5), atol=0.02)


EVERYTHING = AugmentConfig(
    kind="area-crop", rand_augment=RandAugmentConfig(operations=3), erase=EraseConfig(probability=0.5)
)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**64 - 1), config=st.sampled_from([AugmentConfig(), EVERYTHING]), data=st.data())
def test_a_view_depends_on_its_presentation_alone(seed: int, config: AugmentConfig, data: st.DataObject) -> None:
    n = 64
    random = np.random.default_rng(seed)
    epochs, ids = random.integers(0, 120, n), random.integers(0, 1_281_167, n)
    heights, widths = random.integers(50, 2000, n), random.integers(50, 2000, n)
    whole = training_views(seed, epochs, ids, heights, widths, config, STATISTICS)
    part = data.draw(st.permutations(range(n))).copy()[: data.draw(st.integers(1, n))]
    alone = training_views(seed, epochs[part], ids[part], heights[part], widths[part], config, STATISTICS)
    for field in dataclasses.fields(Views):
        np.testing.assert_array_equal(getattr(alone, field.name), getattr(whole.rows(np.array(part)), field.name))


def test_epochs_seeds_and_samples_differ() -> None:
    config, size = AugmentConfig(), np.full(1, 400)
    seen = {
        tuple(training_views(seed, np.array([epoch]), np.array([sample]), size, size, config, STATISTICS).colour[0])
        for seed in range(3)
        for epoch in range(3)
        for sample in range(3)
    }
    assert len(seen) == 27


@settings(deadline=None)
@given(height=st.integers(1, 5000), width=st.integers(1, 5000), seed=st.integers(0, 1000))
def test_the_window_holds_the_crop_and_the_filters_reach(height: int, width: int, seed: int) -> None:
    views = draw(20, AugmentConfig(), seed, height, width)
    shape = np.array([height, width])
    end = views.window_start + views.window_shape
    assert (views.window_start >= 0).all() and (end <= shape).all() and (views.window_shape > 0).all()
    scale = shape / views.resized
    # The crop's edges in the source, from the definition; the triangle reaches max(1, scale) beyond.
    first, last = views.crop_start * scale, (views.crop_start + 224) * scale
    reach = np.maximum(scale, 1)
    assert (views.window_start <= np.maximum(first - reach, 0)).all()
    assert (end >= np.minimum(last + reach, shape)).all()
    np.testing.assert_allclose(views.window_start + views.roi_start, first, atol=1e-3)
    np.testing.assert_allclose(views.window_start + views.roi_end, last, atol=1e-3)


@settings(deadline=None)
@given(height=st.integers(1, 5000), width=st.integers(1, 5000), seed=st.integers(0, 1000))
def test_the_window_holds_the_area_crop_and_the_filters_reach(height: int, width: int, seed: int) -> None:
    views = draw(20, AugmentConfig(kind="area-crop"), seed, height, width)
    shape = np.array([height, width])
    size = np.rint(views.roi_end - views.roi_start).astype(int)
    np.testing.assert_allclose(views.roi_end - views.roi_start, size, atol=1e-3)  # whole pixels of the source
    first, last = views.crop_start, views.crop_start + size
    assert (first >= 0).all() and (last <= shape).all() and (size > 0).all()
    end, reach = views.window_start + views.window_shape, np.maximum(size / 224, 1)
    assert (views.window_start <= np.maximum(first - reach, 0)).all()
    assert (end >= np.minimum(last + reach, shape)).all() and (end <= shape).all()
    np.testing.assert_allclose(views.window_start + views.roi_start, first, atol=1e-3)


def test_what_is_added_leaves_the_other_draws_as_they_are() -> None:
    """A run with operations and erasing sees the crops, flips and colours of the run without them."""
    plain = draw(500, AugmentConfig(kind="area-crop"))
    varied = draw(500, EVERYTHING)
    assert varied.operations.shape == varied.magnitudes.shape == (500, 3) and (varied.erased[:, 2] > 0).any()
    for field in dataclasses.fields(Views):
        if field.name not in ("operations", "magnitudes", "erased"):
            np.testing.assert_array_equal(getattr(varied, field.name), getattr(plain, field.name))
    assert plain.operations.shape == (500, 0) and not plain.erased.any()
    paper = draw(500, AugmentConfig())
    np.testing.assert_array_equal(plain.mirror, paper.mirror)
    np.testing.assert_array_equal(plain.colour, paper.colour)


def test_none_is_the_centre_crop() -> None:
    views = draw(5, dataclasses.replace(EVERYTHING, kind="none"))
    assert views.operations.size == 0 and not views.erased.any()
    assert (views.resized == [256, 341]).all() and (views.crop_start == [16, 58]).all()
    assert not views.mirror.any() and not views.colour.any()


def test_pad_crop_reaches_every_offset() -> None:
    views = draw(20_000, AugmentConfig(kind="pad-crop", crop=32, short_side=(32, 32), colour=0), height=32, width=32)
    counts = np.bincount(views.crop_start[:, 0] * 9 + views.crop_start[:, 1], minlength=81)
    assert len(counts) == 81
    np.testing.assert_allclose(counts / len(views), 1 / 81, rtol=0.25)
    np.testing.assert_allclose(views.mirror.mean(), 0.5, atol=0.02)
    with pytest.raises(UserError, match="pad-crop needs images of 32 x 32 pixels, one is 32 x 33"):
        draw(3, AugmentConfig(kind="pad-crop", crop=32), height=32, width=33)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match="does not fit short_side"):
        AugmentConfig(short_side=(200, 480))
    with pytest.raises(UserError, match="minimum <= maximum"):
        AugmentConfig(short_side=(480, 256))
    with pytest.raises(UserError, match="must not be negative"):
        AugmentConfig(colour=-1)
    with pytest.raises(UserError, match="give each stage its short_side"):
        AugmentConfig(stages=(ResizeStage(until=5, crop=128),))
    assert AugmentConfig(kind="area-crop", crop=600, stages=(ResizeStage(until=5, crop=128),)).crop == 600
