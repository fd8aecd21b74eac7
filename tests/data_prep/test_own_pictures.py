"""Pictures as people have them: a folder for each class, without train/; and folders of which that cannot be told."""

import os
import shutil

import pytest
from torchvision.datasets import ImageFolder

from data_prep import shard_imagenet
from data_prep.recognise import recognise
from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset
from tests.data_prep.test_hold_out import OPTIONS
from tests.images import encode, photograph

CLASSES = ("Bär 2", "cat", "dog")


@pytest.fixture
def source(tmp_path):
    for number, name in enumerate(CLASSES):
        for picture in range(4):
            path = tmp_path / "mine" / name / ("more" if picture == 3 else "") / f"IMG_{picture}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(photograph(10 * number + picture, 40, 44)))
    (tmp_path / "mine/.thumbnails").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    return tmp_path / "mine"


def test_folders_of_pictures_are_the_classes(source, tmp_path, hashes, capsys):
    """As torchvision's ImageFolder has them, and the same dataset as from train/CLASS/."""
    shard_imagenet.main([str(source), str(tmp_path / "dataset"), "--hold-out", "0.25", *OPTIONS])
    printed = capsys.readouterr().err
    assert f"there is no train/ in {source}: reading its 3 folders as classes" in printed
    assert "passed over: 1 beside the class folders (notes.txt)" in printed
    dataset = Dataset(tmp_path / "dataset")
    shutil.rmtree(source / ".thumbnails")
    reference = ImageFolder(str(source))
    assert dataset.class_names == tuple(reference.classes) == CLASSES
    assert [len(dataset.split(name)) for name in ("train", "val")] == [9, 3]
    listing = recognise(source).listings["train"]
    assert {
        (os.path.join(listing.containers[container], os.fsdecode(name)), label)
        for container, label, name in listing.rows[["container", "label", "name"]].tolist()
    } == set(reference.samples)
    (source / "notes.txt").unlink()
    shutil.move(source, tmp_path / "inside/train")
    shard_imagenet.main([str(tmp_path / "inside"), str(tmp_path / "again"), "--hold-out", "0.25", *OPTIONS])
    assert hashes(tmp_path / "again") == hashes(tmp_path / "dataset")


def refused(source, sentence):
    with pytest.raises(UserError, match=sentence):
        recognise(source, source.parent / "dataset")


def test_what_may_be_no_classes_is_refused(source, tmp_path):
    refused(tmp_path, r"has no training images: looked for train/CLASS/")  # the folder above
    (source / "empty").mkdir()
    refused(source, r"not all of its folders can be classes: empty/ has no pictures")
    (source / "empty").rmdir()
    for name in ("val", "Test", "ILSVRC", "ILSVRC2012_devkit_t12"):
        shutil.copytree(source / "cat", source / name)
        refused(source, "has no training images: looked for train/CLASS/")
        shutil.rmtree(source / name)
    with pytest.raises(UserError, match="lies among the classes"):
        recognise(source, source / "dataset")
    for name in CLASSES[:2]:
        shutil.rmtree(source / name)
    refused(source, "one folder of pictures alone, dog/: give the folder whose folders are the classes")
    refused(source / "dog/more", r"\(its 1 pictures lie in no folder that would be their class\)")
