"""The 140 real ImageNet images: odd sizes, greyscale, EXIF orientations."""

import io
from pathlib import Path

import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def
from PIL import Image

from data_prep import shard_imagenet
from data_prep.verify import verify
from pipeline.data.dataset import Dataset
from tests.images import real_images


@pytest.fixture(scope="module")
def images():
    """(bytes, class) by file stem, straight from the tar."""
    return {Path(name).stem: (data, Path(name).parent.name) for name, data in real_images()}


@pytest.fixture(scope="module")
def dataset(images, tmp_path_factory):
    root = tmp_path_factory.mktemp("real")
    for stem, (data, wnid) in images.items():
        folder = root / "source" / "train" / wnid
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.JPEG").write_bytes(data)
    shard_imagenet.main([str(root / "source"), str(root / "dataset"), "--samples-per-shard", "50", "--workers", "1"])
    return Dataset(root / "dataset")


def test_every_image_untouched_with_its_class(dataset, images):
    split = dataset.split("train")
    wnids = [one.wnid for one in dataset.manifest.classes]
    found = {row["key"].decode(): (split.read(number), wnids[row["label"]]) for number, row in enumerate(split.samples)}
    assert found == images
    assert verify(dataset.folder, fast=False, workers=1).problems == ()


def test_heights_and_widths_are_dalis(dataset):
    @pipeline_def(batch_size=1, num_threads=2, device_id=None)
    def pipe():
        shards = [dataset.folder / shard.file for shard in dataset.manifest.splits["train"].shards]
        indices = [str(path.with_suffix(".idx")) for path in shards]
        jpeg = fn.readers.webdataset(paths=[str(path) for path in shards], index_paths=indices, ext=["jpg"])
        return fn.decoders.image(jpeg, adjust_orientation=False)

    pipeline = pipe()
    pipeline.build()
    for row in dataset.split("train").samples:
        assert pipeline.run()[0].at(0).shape == (row["height"], row["width"], 3)


def test_mean_image_and_covariance_are_those_of_the_paper_in_kind(dataset, images):
    crops = []
    for data, _ in images.values():
        image = Image.open(io.BytesIO(data)).convert("RGB")
        scale = min(image.size) / 256
        resized = image.resize((round(image.width / scale), round(image.height / scale)), Image.Resampling.BILINEAR)
        left, top = (round((side - 224) / 2) for side in resized.size)
        crops.append(np.asarray(resized.crop((left, top, left + 224, top + 224))))
    expected = np.mean(crops, axis=0, dtype=np.float64)
    assert np.abs(dataset.statistics.mean_image - expected).max() < 0.2
    # Published for all of ImageNet: mean (123.7, 116.3, 103.5), eigenvalues 0.2175, 0.0188, 0.0045.
    assert np.abs(dataset.statistics.mean_colour - (123.7, 116.3, 103.5)).max() < 12
    ratio = dataset.statistics.eigenvalues / (0.2175, 0.0188, 0.0045)
    assert (ratio > 0.3).all() and (ratio < 1.7).all()
