from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import functional

from pipeline.base.command import UserError
from pipeline.data.views import (
    CenterCrop,
    TenCrop,
    WholeImage,
    centre_views,
    five_crop_starts,
    resized_shapes,
    shape_blocks,
)


@pytest.mark.parametrize("shape", [(256, 341), (300, 256), (257, 256), (224, 224), (231, 500)])
def test_five_crops_are_torchvisions(shape: tuple[int, int]) -> None:
    import torch

    height, width = shape
    places = torch.arange(height * width).reshape(1, height, width)
    corners = [int(crop[0, 0, 0]) for crop in functional.five_crop(places, [224, 224])]
    starts = five_crop_starts(np.array([shape]), 224)[0]
    assert [int(y * width + x) for y, x in starts] == corners


def test_shorter_sides() -> None:
    shapes = np.array([[375, 500], [500, 375], [100, 100], [56, 75], [2000, 1]])
    resized = resized_shapes(shapes, np.array([256, 256, 256, 480, 300]))
    assert resized.tolist() == [[256, 341], [341, 256], [256, 256], [480, 643], [600000, 300]]
    assert centre_views(shapes[:1], 256, 224).crop_start.tolist() == [[16, 58]]


@settings(deadline=None, max_examples=50)
@given(
    shapes=st.lists(st.tuples(st.sampled_from([300, 375, 500]), st.integers(330, 340)), min_size=1, max_size=80),
    short_sides=st.lists(st.sampled_from([224, 256, 640]), min_size=1, max_size=3),
    size=st.integers(1, 9),
)
def test_shape_blocks(shapes: list[tuple[int, int]], short_sides: list[int], size: int) -> None:
    """Every sample once; a block's images have one shape at every scale; no two blocks could have been one."""
    table = np.array(shapes, np.int64)
    blocks = shape_blocks(table, short_sides, size)
    assert sorted(np.concatenate(blocks).tolist()) == list(range(len(shapes)))
    kinds = []
    for block in blocks:
        assert 0 < len(block) <= size
        kind = {
            tuple(tuple(resized_shapes(table[[sample]], np.array([side]))[0]) for side in short_sides)
            for sample in block
        }
        assert len(kind) == 1
        kinds.append((kind.pop(), len(block)))
    short = [kind for kind, length in kinds if length < size]
    assert len(short) == len(set(short))


def test_views_that_cannot_be_are_refused() -> None:
    for view in (CenterCrop, TenCrop):
        with pytest.raises(UserError, match="does not fit"):
            view(short_side=200, crop=224)
    with pytest.raises(UserError, match="give at least 1"):
        WholeImage(short_side=0)
