"""CIFAR-10 from a synthetic archive of the official layout, read by torchvision's reader, and from PNG folders."""

import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from data_prep import shard_cifar10
from data_prep.verify import verify
from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
OPTIONS = ["--samples-per-shard", "64", "--workers", "1", "--seed", "1"]
PER_BATCH = 40


@pytest.fixture(scope="module")
def batches():
    """The pickled files of the archive: data [N, 3072] uint8, channel by channel, and labels."""
    generator = np.random.default_rng(10)
    files = {}
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        data = generator.integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8)
        labels = [*range(10), *generator.integers(0, 10, PER_BATCH - 10).tolist()]
        files[name] = {"data": data, "labels": labels, "filenames": [f"x_s_{one:06d}.png" for one in range(PER_BATCH)]}
    files["batches.meta"] = {"label_names": NAMES, "num_cases_per_batch": PER_BATCH, "num_vis": 3072}
    return files


@pytest.fixture
def archive(batches, tmp_path, monkeypatch):
    path = tmp_path / "cifar-10-python.tar.gz"
    digests = {}
    with tarfile.open(path, "w:gz") as tar:
        for name, content in batches.items():
            data = pickle.dumps(content, protocol=2)
            digests[name] = hashlib.md5(data).hexdigest()
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    # The reader checks MD5 sums before it unpickles: tell it the synthetic files'.
    monkeypatch.setattr(
        CIFAR10, "train_list", [[f"data_batch_{one}", digests[f"data_batch_{one}"]] for one in range(1, 6)]
    )
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", digests["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": digests["batches.meta"]})
    return path


def images(batches, split):
    """(uint8 [32, 32, 3], label) in CIFAR's order, straight from the batches' documented layout."""
    names = [f"data_batch_{number}" for number in range(1, 6)] if split == "train" else ["test_batch"]
    for name in names:
        for row, label in zip(batches[name]["data"], batches[name]["labels"], strict=True):
            red, green, blue = row.reshape(3, 32, 32)
            yield np.stack([red, green, blue], axis=-1), label


@pytest.fixture
def png_folders(batches, tmp_path):
    root = tmp_path / "pngs"
    for split, folder in (("train", "train"), ("val", "test")):
        for position, (pixels, label) in enumerate(images(batches, split)):
            path = root / folder / NAMES[label] / f"{position:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


def test_both_sources_give_every_pixel_and_the_same_bytes(archive, png_folders, batches, tmp_path, hashes):
    for source, name in ((archive, "archive"), (png_folders, "folders")):
        shard_cifar10.main([str(source), str(tmp_path / name), *OPTIONS])
    dataset = Dataset(tmp_path / "archive")
    assert [one.wnid for one in dataset.manifest.classes] == NAMES
    for name in ("train", "val"):
        split, expected = dataset.split(name), list(images(batches, name))
        assert len(split) == len(expected)
        for number, row in enumerate(split.samples):
            position = int(row["key"].decode().split("_")[1])
            pixels, label = expected[position]
            image = Image.open(io.BytesIO(split.read(number)))
            assert image.format == "PNG"
            np.testing.assert_array_equal(np.asarray(image), pixels)
            assert row["label"] == label
        if name == "val":  # not shuffled
            assert [int(key.decode().split("_")[1]) for key in split.samples["key"]] == list(range(PER_BATCH))
    pixels = np.stack([one for one, _ in images(batches, "train")])
    np.testing.assert_allclose(dataset.statistics.mean_image, pixels.mean(axis=0, dtype=np.float64), rtol=1e-6)
    assert dataset.manifest.statistics["images"] == 5 * PER_BATCH
    assert hashes(tmp_path / "folders") == hashes(tmp_path / "archive")
    assert verify(dataset.folder, fast=False, workers=1).problems == ()


def test_archive_in_a_folder_and_unpacked(archive, tmp_path, hashes):
    (tmp_path / "in").mkdir()
    archive.rename(tmp_path / "in" / archive.name)
    shard_cifar10.main([str(tmp_path / "in"), str(tmp_path / "packed"), *OPTIONS])
    with tarfile.open(tmp_path / "in" / archive.name) as tar:
        tar.extractall(tmp_path / "out")
    shard_cifar10.main([str(tmp_path / "out"), str(tmp_path / "unpacked"), *OPTIONS])
    assert hashes(tmp_path / "packed") == hashes(tmp_path / "unpacked")


def test_held_out_images(archive, png_folders, batches, tmp_path, hashes):
    """Section 4.2's 45k/5k split, in small: every training image is in train or val, CIFAR's test images are test."""
    for source, name in ((archive, "archive"), (png_folders, "folders")):
        shard_cifar10.main([str(source), str(tmp_path / name), *OPTIONS, "--hold-out", "20"])
    assert hashes(tmp_path / "folders") == hashes(tmp_path / "archive")
    dataset = Dataset(tmp_path / "archive")
    positions = {}
    for name in ("train", "val", "test"):
        split, expected = dataset.split(name), list(images(batches, "val" if name == "test" else "train"))
        positions[name] = [int(row["key"].decode().split("_")[1]) for row in split.samples]
        for number, position in enumerate(positions[name]):
            pixels, label = expected[position]
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(split.read(number)))), pixels)
            assert split.labels[number] == label
    assert sorted(positions["train"] + positions["val"]) == list(range(5 * PER_BATCH))
    assert (len(positions["val"]), positions["test"]) == (20, list(range(PER_BATCH)))
    assert positions["val"] != list(range(positions["val"][0], positions["val"][0] + 20))  # drawn, not cut off
    kept = np.stack(
        [pixels for number, (pixels, _) in enumerate(images(batches, "train")) if number in positions["train"]]
    )
    np.testing.assert_allclose(dataset.statistics.mean_image, kept.mean(axis=0, dtype=np.float64), rtol=1e-6)
    assert verify(dataset.folder, fast=False, workers=1).problems == ()
    refused(
        archive, tmp_path, "--hold-out must be from 1 to 199 training images (got 200", options=["--hold-out", "200"]
    )


def test_a_share_of_every_class_is_held_out(png_folders, tmp_path):
    shard_cifar10.main([str(png_folders), str(tmp_path / "dataset"), *OPTIONS, "--hold-out", "0.2"])
    dataset = Dataset(tmp_path / "dataset")
    counts = {name: np.bincount(dataset.split(name).labels, minlength=10) for name in ("train", "val", "test")}
    whole = counts["train"] + counts["val"]
    assert whole.sum() == 5 * PER_BATCH and counts["test"].sum() == PER_BATCH
    np.testing.assert_array_equal(counts["val"], np.floor(whole / 5 + 0.5))
    held_out = dataset.manifest.notes["preparation"]["held_out"]["val"]
    assert held_out == {"split": "train", "of": 200, "drawn": counts["val"].sum(), "share": 0.2}


def refused(source, tmp_path, *parts, options=()):
    with pytest.raises(UserError) as error:
        shard_cifar10.main([str(source), str(tmp_path / "refused"), *OPTIONS, *options])
    for part in parts:
        assert part in str(error.value)
    assert not (tmp_path / "refused" / "manifest.json").exists()


def test_archives_that_are_not_the_official_one(archive, tmp_path, monkeypatch):
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    refused(archive, tmp_path, "is not CIFAR-10's Python archive")
    archive.write_bytes(b"<html>404</html>")
    refused(archive, tmp_path, "is not CIFAR-10's Python archive")
    archive.write_bytes(whole)
    # Unpickling runs code: files that are not the official ones must not get that far.
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", "0" * 32]])
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled unchecked files"))
    refused(archive, tmp_path, "do not have their official checksums")


def test_folders_that_are_not_cifar10(png_folders, tmp_path):
    refused(tmp_path / "nowhere", tmp_path, "does not exist")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path, "is no source of CIFAR-10")
    Image.new("RGB", (31, 32)).save(png_folders / "train" / "cat" / "odd.png")
    refused(png_folders, tmp_path, "odd.png: it is 31 x 32 pixels where 32 x 32 are needed")
    (png_folders / "train" / "cat").rename(png_folders / "train" / "kitten")
    refused(png_folders, tmp_path, "are not CIFAR-10's", "airplane, automobile")
