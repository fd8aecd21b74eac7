"""Weights of other origins, in our net on our images. Reference: torchvision's net on images as its origin prepares them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision

from pipeline.data.conventions import CONVENTIONS
from pipeline.initial.folding import folded
from pipeline.models.resnet import build

# As torchvision, timm and pycls state them, for RGB in [0, 1].
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
CAFFE_MEAN = np.array([123.151630838, 115.902882574, 103.062623801])  # RGB, 0..255


def of_torchvision(pixels: np.ndarray) -> np.ndarray:
    return (pixels / 255 - MEAN) / STD


PREPARED = {  # what each origin's code makes of pixels [N, H, W, 3], RGB, 0..255
    "torchvision": of_torchvision,
    "timm": of_torchvision,
    "fb": of_torchvision,
    "pycls": lambda pixels: of_torchvision(pixels)[..., ::-1],
    "caffe": lambda pixels: (pixels - CAFFE_MEAN)[..., ::-1],
    "ours": lambda pixels: pixels - 255 * MEAN,
}


@pytest.mark.parametrize("origin", PREPARED)
def test_our_net_on_our_images_computes_what_theirs_does_on_theirs(origin: str) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(2, 64, 64, 3)).astype(np.float64)
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=7).double().eval()
    ours = build("resnet18", classes=7, shortcut="B", stride="v1.5").double().eval()
    ours.load_state_dict(folded(theirs.state_dict(), CONVENTIONS[origin]))
    mean = CAFFE_MEAN if origin == "caffe" else 255 * MEAN
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(PREPARED[origin](pixels).copy()).permute(0, 3, 1, 2))
        found = ours(torch.from_numpy(pixels - mean).permute(0, 3, 1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert set(PREPARED) == set(CONVENTIONS)
