"""What a source may hold beside plain image files: folders below classes, other files, links, devices, files that change."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys

import pytest
from torchvision.datasets import ImageFolder

from data_prep import reading, shard_imagenet
from data_prep.plan import order_split
from data_prep.reading import SourceImage, read_all
from data_prep.recognise import recognise, with_val
from data_prep.sources import WHOLE_FILE, class_folders, list_folder
from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset
from tests.data_prep.test_shard_errors import OPTIONS, SCRIPT, refused
from tests.helpers import ROOT
from tests.images import encode, photograph
from tests.patience import limit


@pytest.fixture
def source(tmp_path):
    """Two classes of two images, in train/ alone."""
    for number, name in enumerate(("cat/a.jpg", "cat/b.JPEG", "dog/a.jpg", "dog/b.png")):
        path = tmp_path / "source/train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(photograph(number, 40, 44), "PNG" if name.endswith("png") else "JPEG"))
    return tmp_path / "source"


def copy(source, name, to):
    path = source / "train" / to
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "train" / name, path)


def test_images_below_class_folders_are_those_of_image_folder(source):
    for to in ("cat/more/a.jpg", "cat/more/v1.2/deep.jpg", "dog/more/a.jpg", "cat/z.jpg"):
        copy(source, "cat/a.jpg", to)
    (source / "elsewhere").mkdir()
    shutil.copy(source / "train/dog/a.jpg", source / "elsewhere/linked.jpg")
    (source / "train/dog/link").symlink_to(source / "elsewhere")
    listing = class_folders(source / "train")
    ours = {
        (f"{listing.containers[container]}/{os.fsdecode(name)}", label)
        for container, label, name in listing.rows[["container", "label", "name"]].tolist()
    }
    reference = ImageFolder(str(source / "train"))
    assert ours == set(reference.samples) and len(listing) == len(reference) == 9
    order = order_split("val", listing, listing.classes, 0)  # not shuffled
    assert sorted(order.keys.tolist()) == sorted(set(order.keys.tolist())) and b"cat_more-v1-2-deep" in order.keys
    again = order_split("val", class_folders(source / "train"), listing.classes, 0)
    assert [order.image(sample) for sample in range(9)] == [again.image(sample) for sample in range(9)]


def test_a_dataset_of_images_below_class_folders(source, capsys):
    copy(source, "cat/a.jpg", "cat/more/a.jpg")
    shard_imagenet.main([str(source), str(source.parent / "dataset"), *map(str, OPTIONS)])
    split = Dataset(source.parent / "dataset").split("train")
    assert split.samples["key"].tolist().count(b"cat_more-a") == 1 and len(split) == 5
    assert {split.read(number) for number in range(5)} == {path.read_bytes() for path in source.rglob("*.*")}


def test_folders_that_are_linked_to_one_another_are_taken_once(source):
    folder = source / "train/cat"
    for name in ("1", "2", "3"):
        (folder / name).mkdir()
        (folder / name / "x.jpg").write_bytes(b"x")
    for name in ("1", "2", "3"):
        for other in {"1", "2", "3"} - {name}:
            (folder / name / f"to{other}").symlink_to(folder / other)
    rows, passed_over = list_folder(folder, 0, 0)
    below = sorted(name for name in rows["name"].tolist() if b"/" in name)
    # In the order of names and depth first: 2 and 3 are met as links in 1.
    assert below == [b"1/to2/to3/x.jpg", b"1/to2/x.jpg", b"1/x.jpg"]
    (loops,) = passed_over
    assert loops.count == 6


def test_a_class_whose_name_is_no_utf8(source, capsys):
    os.rename(source / "train/cat", os.fsencode(source / "train") + b"/b\xffd")
    shard_imagenet.main([str(source), str(source.parent / "dataset"), *map(str, OPTIONS)])
    assert os.fsdecode(b"b\xffd") in Dataset(source.parent / "dataset").class_names


def test_what_is_passed_over_is_counted_and_named(source, capsys):
    for name in (
        "cat/notes.txt",
        "dog/more/x.heic",
        "dog/more/y.HEIC",
        "cat/z.svg",
        "a.json",
        ".hidden.jpg",
        "cat/.hidden.jpg",
    ):
        path = source / "train" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"something")
    copy(source, "cat/a.jpg", "loose.jpg")
    (source / "train/cat/up").symlink_to(source / "train")
    shard_imagenet.main([str(source), str(source.parent / "dataset"), *map(str, OPTIONS)])
    printed = capsys.readouterr().err
    beside, loops = (
        "2 beside the class folders (a.json, loose.jpg)",
        "1 leading to a folder that is taken already (cat/up)",
    )
    heic = "2 .heic files, which are not read here: convert them to JPEG or PNG (dog/more/x.heic, dog/more/y.HEIC)"
    svg = "1 .svg files, which are not read here: convert them to JPEG or PNG (cat/z.svg)"
    assert f"passed over: {heic}, {svg}, {beside}, {loops}, 1 not named as a picture (cat/notes.txt)" in printed


@pytest.mark.parametrize("name", ["validation", "valid"])
def test_a_val_split_of_another_name(source, name, capsys):
    shutil.copytree(source / "train", source / name)
    listed = recognise(source).listings
    assert set(listed) == {"train", "val"} and listed["val"].kind == f"class folders {source / name}"
    shutil.copytree(source / "train", source / "val")
    assert recognise(source).listings["val"].kind == f"class folders {source / 'val'}"
    assert f"not looked at in {source}: {name}/" in capsys.readouterr().err


def test_two_val_splits_of_other_names(source):
    for name in ("validation", "valid"):
        shutil.copytree(source / "train", source / name)
    with pytest.raises(UserError, match="holds val twice"):
        recognise(source)


def test_no_val_split_is_said(source, capsys):
    (source / "testing").mkdir()
    with_val(source, recognise(source).listings, None, 0)
    printed = capsys.readouterr().err
    assert "there is no val split" in printed and f"not looked at in {source}: testing/" in printed


def test_odd_entries_of_a_class_folder_are_listed_as_unreadable(command, source, tmp_path):
    folder = source / "train/cat"
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "nowhere.jpg").symlink_to("missing")
    (folder / "memory.jpg").symlink_to("/proc/self/mem")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "fifo.jpg")
    with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as one:  # its path may be 107 bytes long
        one.bind("socket.jpg")
    with open(folder / "huge.jpg", "wb") as file:
        file.truncate(2**40)
    (source / "train/loop").symlink_to("loop")
    done = command(SCRIPT, source, tmp_path / "dataset", *OPTIONS)
    refused(done, "8 images do not decode")
    for name, reason in {
        "zero": "it is a device, not a file",
        "loop": "Too many levels of symbolic links",
        "nowhere": "No such file or directory",
        "memory": "Input/output error",
        "folder": "it is a folder, not a file",
        "fifo": "it is a FIFO, not a file",
        "socket": "it is a socket, not a file",
        "huge": "it has 1,099,511,627,776 bytes, more than any image that Pillow decodes",
    }.items():
        assert f"{folder}/{name}.jpg: {reason}" in done.stderr
    done = command(SCRIPT, source, tmp_path / "dataset", *OPTIONS, "--skip-corrupt")
    assert done.returncode == 0, done.stderr
    assert len(Dataset(tmp_path / "dataset").split("train")) == 4


def image_of(path, size):
    return SourceImage(str(path), WHOLE_FILE, size, 0, 0, "key", str(path))


def test_a_file_that_grows_shrinks_or_vanishes_after_it_was_listed(source):
    path = source / "train/cat/a.jpg"
    data = path.read_bytes()
    for listed, expected in ((len(data), data), (len(data) - 1, "has changed"), (len(data) + 1, "has changed")):
        ((_, read),) = read_all([image_of(path, listed)])
        assert read == expected if isinstance(expected, bytes) else expected in str(read)
    path.unlink()
    ((_, read),) = read_all([image_of(path, len(data))])
    assert read.strerror == "No such file or directory"


def test_a_fifo_put_in_the_place_of_a_file_does_not_block(source, monkeypatch):
    path = source / "train/cat/a.jpg"
    size = path.stat().st_size
    path.unlink()
    os.mkfifo(path)
    # The FIFO looks like the file that was there a moment before.
    monkeypatch.setattr(reading.os, "stat", lambda _: os.lstat(source / "train/cat/b.JPEG"))
    ((_, read),) = read_all([image_of(path, size)])
    assert "FIFO" in str(read)


AS_NOBODY = """
import os, sys
from data_prep.reading import SourceImage, read_all
os.setuid(65534)
print(*(read for _, read in read_all([SourceImage(sys.argv[1], -1, 3, 0, 0, "key", "name")])))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become a user who may not read")
def test_a_file_that_the_user_may_not_read(tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"abc")
    secret.chmod(0)
    command = [sys.executable, "-c", AS_NOBODY, str(secret)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit(60))
    assert "Permission denied" in ended.stdout, ended.stderr


def test_a_class_folder_that_vanishes_while_it_is_listed(source):
    shutil.rmtree(source / "train/dog")
    with pytest.raises(UserError, match=r"dog cannot be read \(No such file or directory\)"):
        list_folder(source / "train/dog", 0, 0)
