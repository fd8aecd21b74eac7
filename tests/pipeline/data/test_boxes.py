"""Random area crops: torchvision's RandomResizedCrop, drawn as data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.transforms import RandomResizedCrop

from pipeline.base.command import UserError
from pipeline.data.augment import AugmentConfig
from pipeline.data.boxes import area_boxes
from pipeline.data.draws import Draws

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
SAMPLES = 4000


def drawn(
    count: int,
    height: int,
    width: int,
    area: tuple[float, float] = AREA,
    ratio: tuple[float, float] = RATIO,
    seed: int = 1,
) -> NDArray[np.int64]:
    numbers = np.arange(count)
    return area_boxes(Draws(seed, numbers // 7, numbers), np.tile([height, width], (count, 1)), area, ratio)


def torchvisions(count: int, height: int, width: int, area: tuple[float, float] = AREA) -> NDArray[np.int64]:
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return np.array([RandomResizedCrop.get_params(image, list(area), list(RATIO)) for _ in range(count)])


@pytest.mark.parametrize(
    ("height", "width", "area"), [(375, 500, AREA), (500, 333, (0.35, 1.0)), (60, 400, AREA), (32, 32, (0.9, 1.0))]
)
def test_boxes_are_distributed_as_torchvisions(height: int, width: int, area: tuple[float, float]) -> None:
    """Area, ratio and place of the box; 60 x 400 needs several tries, and often the fallback in the centre."""
    from scipy.stats import ks_2samp

    ours, theirs = drawn(SAMPLES, height, width, area), torchvisions(SAMPLES, height, width, area)
    for boxes in (ours, theirs):
        assert (boxes[:, 2:] > 0).all()
    for name, of in {
        "area": lambda boxes: boxes[:, 2] * boxes[:, 3],
        "ratio": lambda boxes: boxes[:, 3] / boxes[:, 2],
        "top": lambda boxes: boxes[:, 0],
        "left": lambda boxes: boxes[:, 1],
        "bottom": lambda boxes: boxes[:, 0] + boxes[:, 2],
    }.items():
        assert ks_2samp(of(ours), of(theirs)).pvalue > 1e-3, name


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    area=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.05, 20), st.floats(0.05, 20)).map(sorted),
)
def test_a_box_lies_in_its_image(height: int, width: int, area: list[float], ratio: list[float]) -> None:
    boxes = drawn(30, height, width, (area[0], area[1]), (ratio[0], ratio[1]))
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= [height, width]).all()


@pytest.mark.parametrize(("height", "width"), [(10, 3000), (3000, 10), (1, 5000), (7, 7)])
def test_where_nothing_fits_the_box_is_torchvisions_in_the_centre(height: int, width: int) -> None:
    """Of such bounds no try fits an image: the largest box of the range is cut out of the middle."""
    area = (1.0, 1.0) if height != width else (0.99, 1.0)
    ratio = RATIO if height != width else (2.0, 2.0)
    expected = RandomResizedCrop.get_params(torch.empty(3, height, width), list(area), list(ratio))
    assert (drawn(20, height, width, area, ratio) == expected).all()


def test_bounds_that_cannot_work_are_refused() -> None:
    for area in ((0.0, 1.0), (0.5, 0.2), (0.5, 1.5), (float("nan"), 1.0)):
        with pytest.raises(UserError, match=r"augment\.area is .* such as \[0\.08, 1\.0\]"):
            AugmentConfig(kind="area-crop", area=area)
    for ratio in ((0.0, 1.0), (2.0, 1.0), (1.0, float("inf"))):
        with pytest.raises(UserError, match=r"augment\.ratio is .* between 1/1000 and 1000"):
            AugmentConfig(kind="area-crop", ratio=ratio)
