"""Bad input gets one sentence with the place and the remedy, exit code 2, and no file under a final name."""

import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from data_prep import shard_imagenet
from data_prep.prepare import with_list
from data_prep.verify import verify
from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset
from tests.disks import small_disk

OPTIONS = ("--samples-per-shard", 4, "--statistics-size", 24, "--statistics-short-side", 32, "--workers", 1)
SCRIPT = "data_prep/shard_imagenet.py"


@pytest.fixture
def source(folders, tmp_path):
    return shutil.copytree(folders, tmp_path / "source")


def refused(done, *parts):
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    sentence = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    for part in parts:
        assert str(part) in done.stderr
    return sentence


def published(destination):
    """Names that a reader of the dataset folder would see."""
    return (
        [path.name for path in destination.iterdir() if not path.name.startswith(".")] if destination.exists() else []
    )


def test_missing_source(command, tmp_path):
    refused(command(SCRIPT, tmp_path / "nowhere", tmp_path / "dataset"), tmp_path / "nowhere", "does not exist")
    assert not (tmp_path / "dataset").exists()


def test_empty_source(command, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(command(SCRIPT, tmp_path / "empty", tmp_path / "dataset"), tmp_path / "empty", "is empty")
    assert not (tmp_path / "dataset").exists()


def test_source_that_is_a_file(command, tmp_path):
    (tmp_path / "images.zip").write_text("zip")
    refused(command(SCRIPT, tmp_path / "images.zip", tmp_path / "dataset"), "is a file")


def test_source_of_no_known_layout(command, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    refused(command(SCRIPT, tmp_path / "photos", tmp_path / "dataset"), "no training images", tmp_path / "photos")


def test_class_folder_without_images(command, source, tmp_path):
    (source / "train" / "n09999999").mkdir()
    refused(command(SCRIPT, source, tmp_path / "dataset"), source / "train" / "n09999999", "has no images")
    assert not (tmp_path / "dataset").exists()


def test_split_without_class_folders(command, source, tmp_path):
    shutil.rmtree(source / "val")
    (source / "val").mkdir()
    refused(command(SCRIPT, source, tmp_path / "dataset"), source / "val", "has no images")
    shutil.rmtree(source / "train")
    (source / "train").mkdir()
    refused(command(SCRIPT, source, tmp_path / "dataset"), source / "train", "no class folders")


def test_val_class_that_train_lacks(command, source, tmp_path):
    shutil.copytree(source / "val" / "n01440764", source / "val" / "n01440765")
    refused(command(SCRIPT, source, tmp_path / "dataset"), "'n01440765'", "the training split lacks")


def test_all_unreadable_images_are_listed(command, source, tmp_path):
    cut = source / "train" / "n01440764" / "n01440764_3.JPEG"
    cut.write_bytes(cut.read_bytes()[:-200])
    (source / "val" / "n01443537" / "ILSVRC2012_val_00000000.JPEG").write_bytes(b"")
    (source / "train" / "n02119789" / "n02119789_4.JPEG").write_text("<html>404</html>")
    (source / "train" / "n02119789" / "dangling.JPEG").symlink_to("nowhere")
    for number in range(20):
        (source / "val" / "n01443537" / f"bad{number}.JPEG").write_bytes(b"bad")
    done = command(SCRIPT, source, tmp_path / "dataset", *OPTIONS)
    refused(
        done, "24 images do not decode", "and 4 more", "truncated", "no picture of a kind that is read here", "no bytes"
    )
    listed = [line for line in done.stderr.splitlines() if line.startswith("  ")]
    assert len(listed) == 21
    assert published(tmp_path / "dataset") == []


def test_names_in_a_list_are_one_line_each_and_steer_no_terminal():
    text = with_list("2 images do not decode", ["a\nerror: b\x1b[31m.jpg: it has no bytes", "c.jpg: it has no bytes"])
    assert text.split("\n  ") == [
        "2 images do not decode", "a\\nerror: b\\x1b[31m.jpg: it has no bytes", "c.jpg: it has no bytes",
    ]  # fmt: skip


def test_corrupt_images_left_out_may_be_all_of_a_shard(source, tmp_path):
    broken = source / "val" / "n01443537" / "ILSVRC2012_val_00000000.JPEG"
    broken.write_bytes(b"")
    options = ["--samples-per-shard", "1", *map(str, OPTIONS[2:]), "--skip-corrupt"]
    shard_imagenet.main([str(source), str(tmp_path / "dataset"), *options])
    dataset = Dataset(tmp_path / "dataset")
    val = dataset.split("val")
    assert len(val) == len(val.info.shards) == 8
    left = {path for path in source.glob("val/*/*") if path != broken}
    assert {val.read(number) for number in range(len(val))} == {path.read_bytes() for path in left}
    assert dataset.manifest.notes["left_out"]["val"] == [
        {"key": "n01443537_ILSVRC2012_val_00000000", "reason": "it has no bytes"}
    ]
    assert verify(dataset.folder, fast=False, workers=2).problems == ()


def test_nothing_but_corrupt_images(tmp_path):
    folder = tmp_path / "source" / "train" / "a"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="no image of the train split decodes"):
        shard_imagenet.main([str(tmp_path / "source"), str(tmp_path / "dataset"), *map(str, OPTIONS), "--skip-corrupt"])
    assert published(tmp_path / "dataset") == []


def test_replacing_an_unreadable_image_lets_the_run_finish(command, source, folders, tmp_path, hashes):
    broken = source / "train" / "n01440764" / "n01440764_3.JPEG"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-200])
    refused(command(SCRIPT, source, tmp_path / "dataset", *OPTIONS), "1 image does not decode", broken)
    broken.write_bytes(whole)
    for origin, name in ((source, "dataset"), (folders, "untroubled")):
        done = command(SCRIPT, origin, tmp_path / name, *OPTIONS)
        assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "dataset") == hashes(tmp_path / "untroubled")


def test_destination_that_holds_another_dataset(command, source, tmp_path, hashes):
    assert command(SCRIPT, source, tmp_path / "dataset", *OPTIONS).returncode == 0
    before = hashes(tmp_path / "dataset")
    refused(command(SCRIPT, source, tmp_path / "dataset", *OPTIONS, "--seed", 9), "already holds a dataset", "seed")
    (source / "train" / "n01440764" / "n01440764_3.JPEG").unlink()
    refused(command(SCRIPT, source, tmp_path / "dataset", *OPTIONS), "already holds a dataset", "other images")
    assert hashes(tmp_path / "dataset") == before


def test_destination_that_holds_other_files(command, source, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("mine")
    refused(command(SCRIPT, source, tmp_path / "thesis"), tmp_path / "thesis", "'chapter1.tex'")
    assert published(tmp_path / "thesis") == ["chapter1.tex"]


def test_destination_that_is_a_file(command, source, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(command(SCRIPT, source, tmp_path / "file"), "is a file")


@pytest.mark.parametrize(
    ("option", "value", "part"),
    [
        ("--samples-per-shard", 0, "at least 1"),
        ("--workers", 0, "at least 1"),
        ("--name", "my dataset", "--name 'my dataset'"),
        ("--statistics-size", 300, "--statistics-short-side 256"),
        ("--statistics-images", 0, "--statistics-images"),
        ("--max-short-side", 0, "--max-short-side"),
    ],
)
def test_options_out_of_range(command, source, tmp_path, option, value, part):
    refused(command(SCRIPT, source, tmp_path / "dataset", option, value), part)
    assert not (tmp_path / "dataset").exists()


def test_option_that_is_no_number(command, source, tmp_path):
    done = command(SCRIPT, source, tmp_path / "dataset", "--statistics-images", "most")
    assert done.returncode == 2
    assert "'most' is neither a number of images nor 'all'" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def disk(tmp_path):
    """A file system of 1 MB."""
    with small_disk(tmp_path / "disk", 1) as disk:
        yield disk


def test_full_disk(command, disk, tmp_path, hashes):
    folder = tmp_path / "large" / "train" / "a"
    folder.mkdir(parents=True)
    for number in range(12):
        noise = np.random.default_rng(number).integers(0, 256, (200, 200, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    assert sum(path.stat().st_size for path in folder.iterdir()) > 1.2e6
    destination = disk / "dataset"
    refused(command(SCRIPT, folder.parents[1], destination, *OPTIONS), "the disk of", destination, "0.00 GB free")
    # With this option the size is not known beforehand.
    options = (*OPTIONS, "--max-short-side", 1000)
    refused(command(SCRIPT, folder.parents[1], destination, *options), "the disk is full", destination)
    assert published(destination) == []
    # With the disk enlarged, the same command goes on and ends as if nothing had happened.
    subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
    assert command(SCRIPT, folder.parents[1], destination, *options).returncode == 0
    assert command(SCRIPT, folder.parents[1], tmp_path / "roomy", *options).returncode == 0
    assert hashes(destination) == hashes(tmp_path / "roomy")
