"""Random erasing: torchvision's RandomErasing with value 0, drawn as data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms import RandomErasing
from torchvision.transforms.functional import erase as torchvisions_erase

from pipeline.base.command import UserError
from pipeline.data.draws import Draws
from pipeline.data.erasing import EraseConfig, draw_erased, erase

SAMPLES = 4000


def drawn(count: int, side: int, config: EraseConfig, seed: int = 1) -> NDArray[np.int64]:
    numbers = np.arange(count)
    return draw_erased(Draws(seed, numbers // 7, numbers), side, config)


@pytest.mark.parametrize(
    ("side", "area", "ratio"),
    [(224, (0.02, 0.33), (0.3, 3.3)), (32, (0.02, 1 / 3), (0.3, 3.3)), (96, (0.5, 1.0), (0.2, 5))],
)
def test_boxes_are_distributed_as_torchvisions(
    side: int, area: tuple[float, float], ratio: tuple[float, float]
) -> None:
    """Large boxes fit seldom: they need several tries, and some images stay whole."""
    from scipy.stats import ks_2samp

    image, theirs = torch.zeros(3, side, side), []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(SAMPLES):
            *box, _ = RandomErasing.get_params(image, area, ratio, value=[0.0])
            theirs.append(box if box != [0, 0, side, side] else [0, 0, 0, 0])  # how it says that it erases nothing
    ours, reference = drawn(SAMPLES, side, EraseConfig(probability=1.0, area=area, ratio=ratio)), np.array(theirs)
    for name, of in {
        "area": lambda boxes: boxes[:, 2] * boxes[:, 3],
        "ratio": lambda boxes: boxes[:, 2] / np.maximum(boxes[:, 3], 1),
        "top": lambda boxes: boxes[:, 0],
        "right": lambda boxes: boxes[:, 1] + boxes[:, 3],
    }.items():
        assert ks_2samp(of(ours), of(reference)).pvalue > 1e-3, name


def test_the_share_of_images_that_lose_a_box() -> None:
    for probability in (0.25, 0.9):
        boxes = drawn(20_000, 224, EraseConfig(probability=probability))
        assert abs((boxes[:, 2] > 0).mean() - probability) < 0.015
        assert not boxes[boxes[:, 2] == 0].any()


def test_pixels_are_torchvisions() -> None:
    images = torch.randn(16, 40, 40, 3, generator=torch.Generator().manual_seed(0))
    boxes = drawn(16, 40, EraseConfig(probability=0.6))
    expected = [
        torchvisions_erase(image.permute(2, 0, 1), *box, torch.tensor(0.0)).permute(1, 2, 0) if box[2] else image
        for image, box in zip(images.clone(), boxes.tolist(), strict=True)
    ]
    before = images.clone()
    erase(images, boxes)
    assert torch.equal(images, torch.stack(expected)) and not torch.equal(images, before)


def test_bounds_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match=r"augment\.erase\.probability is 1\.5"):
        EraseConfig(probability=1.5)
    with pytest.raises(UserError, match=r"augment\.erase\.area is \[0, 0\.3\]"):
        EraseConfig(area=(0, 0.3))
    with pytest.raises(UserError, match=r"augment\.erase\.ratio is \[3, 0\.3\]"):
        EraseConfig(ratio=(3, 0.3))
