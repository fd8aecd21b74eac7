import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from data_prep.image_statistics import PixelSums, centre_crop
from tests.images import encode, smooth


@pytest.fixture(scope="module")
def pictures():
    generator = np.random.default_rng(3)
    shapes = [(375, 500), (500, 333), (300, 300), (90, 260), (257, 256)]
    return [Image.open(io.BytesIO(encode(smooth(generator, *shape)))) for shape in shapes]


def test_crop_equals_torchvisions_resize_and_centre_crop(pictures):
    for picture in pictures:
        # torchvision truncates the longer side, the pipeline rounds it: say the rounded size.
        scale = min(picture.size) / 256
        size = [round(picture.height / scale), round(picture.width / scale)]
        resized = F.resize(picture.convert("RGB"), size, InterpolationMode.BILINEAR)
        expected = np.asarray(F.center_crop(resized, [224, 224])).astype(int)
        difference = np.abs(centre_crop(picture, 224, 256).astype(int) - expected)
        # Resampling the crop alone rounds filter weights at other places: one grey level, where content is smooth.
        assert difference.max() <= 1
        assert difference.mean() < 0.1


def test_a_crop_as_large_as_the_resized_image():
    # Rounding must not put the window outside of the image, which Pillow refuses.
    for height in range(100, 130):
        image = Image.new("RGB", (100, height), (10, 20, 30))
        assert (centre_crop(image, 224, 224) == (10, 20, 30)).all()


def test_greyscale_is_expanded():
    assert centre_crop(Image.new("L", (50, 40), 77), 32, 32).tolist() == np.full((32, 32, 3), 77).tolist()


def test_statistics_equal_numpys():
    crops = np.random.default_rng(0).integers(0, 256, (7, 6, 6, 3), dtype=np.uint8)
    crops[..., 1] = crops[..., 0] // 2 + crops[..., 1] // 2  # correlated colours: distinct eigenvalues
    sums = PixelSums(6)
    for crop in crops:
        sums.add(crop)
    statistics = sums.statistics()
    assert statistics.mean_image.dtype == np.float32
    np.testing.assert_allclose(statistics.mean_image, crops.mean(axis=0, dtype=np.float64), rtol=1e-6)
    covariance = np.cov(crops.reshape(-1, 3).T / 255.0, bias=True)
    rebuilt = statistics.eigenvectors @ np.diag(statistics.eigenvalues) @ statistics.eigenvectors.T
    np.testing.assert_allclose(rebuilt, covariance, atol=1e-12)
    assert (np.diff(statistics.eigenvalues) < 0).all()
    largest = np.abs(statistics.eigenvectors).argmax(axis=0)
    assert (statistics.eigenvectors[largest, range(3)] > 0).all()
    torch_values = torch.linalg.eigvalsh(torch.tensor(covariance)).flip(0).numpy()
    np.testing.assert_allclose(statistics.eigenvalues, torch_values, atol=1e-12)


def test_sums_do_not_depend_on_how_they_were_gathered():
    crops = np.random.default_rng(0).integers(0, 256, (8, 5, 5, 3), dtype=np.uint8)
    whole, parts = PixelSums(5), PixelSums(5)
    for crop in crops:
        whole.add(crop)
    for part in (crops[5:], crops[:5]):
        sums = PixelSums(5)
        for crop in part[::-1]:
            sums.add(crop)
        parts.merge(sums.images, sums.pixels, sums.products)
    for field in ("mean_image", "eigenvalues", "eigenvectors"):
        assert getattr(whole.statistics(), field).tobytes() == getattr(parts.statistics(), field).tobytes()
