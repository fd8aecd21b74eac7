"""Every layout in which ILSVRC 2012 is distributed gives the same dataset; incomplete sources are refused."""

import json
import shutil
import tarfile

import numpy as np
import pytest

from data_prep import shard_imagenet
from data_prep.recognise import recognise
from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset
from tests.data_prep.ilsvrc import (
    CLASSES,
    TEST,
    Synthetic,
    add,
    write_class_folders,
    write_files,
    write_kaggle,
    write_tars,
)

SETTINGS = ["--samples-per-shard", "400", "--statistics-size", "16", "--statistics-short-side", "20", "--workers", "1"]


@pytest.fixture(scope="module")
def synthetic():
    return Synthetic()


@pytest.fixture(scope="module")
def tars(tmp_path_factory, synthetic):
    return write_tars(tmp_path_factory.mktemp("tars"), synthetic)


@pytest.fixture(scope="module")
def class_folders(tmp_path_factory, synthetic):
    return write_class_folders(tmp_path_factory.mktemp("folders"), synthetic)


@pytest.fixture(scope="module")
def kaggle(tmp_path_factory, synthetic):
    return write_kaggle(tmp_path_factory.mktemp("kaggle"), synthetic)


def prepare(source, destination, *options):
    shard_imagenet.main([str(source), str(destination), *SETTINGS, *options])
    return Dataset(destination)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tars):
    return prepare(tars, tmp_path_factory.mktemp("prepared") / "tars", "--skip-corrupt", "--workers", "2")


def test_labels_are_sorted_wnids_with_names_and_ids_of_the_devkit(dataset, synthetic):
    assert [one.wnid for one in dataset.manifest.classes] == sorted(synthetic.wnids)
    for one in dataset.manifest.classes:
        assert one.ilsvrc2012_id == synthetic.wnids.index(one.wnid) + 1
        assert one.name == synthetic.words[one.wnid]


def test_every_image_of_the_tars_is_there_with_its_class(dataset, synthetic):
    wnids = [one.wnid for one in dataset.manifest.classes]
    expected = {
        "train": {name[:-5]: (data, wnid) for wnid, files in synthetic.train.items() for name, data in files.items()},
        "val": {
            f"{synthetic.val_wnid(name)}_{name[:-5]}": (data, synthetic.val_wnid(name))
            for name, data in synthetic.val.items()
        },
        "test": {name[:-5]: (data, None) for name, data in synthetic.test.items()},
    }
    for name, images in expected.items():
        split = dataset.split(name)
        found = {}
        for number, row in enumerate(split.samples):
            key, label = row["key"].decode(), int(row["label"])
            data = images[key][0] if key in synthetic.changed else split.read(number)
            found[key] = (data, wnids[label] if label >= 0 else None)
        for key in synthetic.left_out.get(name, {}):
            del images[key]
        assert found == images


def test_val_is_in_the_order_of_the_ground_truth_and_test_in_file_order(dataset, synthetic):
    ids = [dataset.manifest.classes[label].ilsvrc2012_id for label in dataset.split("val").labels]
    assert ids == synthetic.val_ids[:41] + synthetic.val_ids[42:]
    assert [row["key"].decode() for row in dataset.split("test").samples] == [name[:-5] for name in synthetic.test]
    assert set(dataset.split("test").labels.tolist()) == {-1}


def test_changed_and_left_out_images_are_in_the_manifest(dataset, synthetic):
    notes = dataset.manifest.notes
    changed = {one["key"]: one["change"] for one in notes["changed"]["train"]}
    assert changed.keys() == synthetic.changed.keys()
    assert all(what in changed[key] for key, what in synthetic.changed.items())
    for split, images in synthetic.left_out.items():
        left_out = {one["key"]: one["reason"] for one in notes["left_out"][split]}
        assert left_out.keys() == images.keys()
        assert all(why in left_out[key] for key, why in images.items())


def test_class_folders_give_the_same_bytes(dataset, class_folders, hashes, tmp_path):
    other = prepare(class_folders, tmp_path / "folders", "--skip-corrupt")
    assert hashes(other.folder) == hashes(dataset.folder)


def test_kaggles_layout_gives_the_same_bytes(dataset, kaggle, tars, hashes, tmp_path, capsys):
    # The development kit beside it says the ids, which Kaggle's files do not know.
    shutil.copy(tars / "ILSVRC2012_devkit_t12.tar.gz", kaggle)
    try:
        other = prepare(kaggle, tmp_path / "kaggle", "--skip-corrupt")
    finally:
        (kaggle / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    assert hashes(other.folder) == hashes(dataset.folder)
    said = capsys.readouterr().err
    assert f"train: {2 * CLASSES:,} images, class folders {kaggle}/ILSVRC/Data/CLS-LOC/train" in said
    assert f"test: {TEST:,} images, images without classes" in said


def test_kaggles_own_labels_and_names(dataset, kaggle):
    source = recognise(kaggle)
    assert [(one.wnid, one.name, one.ilsvrc2012_id) for one in source.classes] == [
        (one.wnid, one.name, None) for one in dataset.manifest.classes
    ]
    val = source.listings["val"]
    labels = {
        name.decode(): val.classes[label] for name, label in zip(val.rows["name"], val.rows["label"], strict=True)
    }
    table = dataset.split("val")
    expected = {
        row["key"].decode()[10:] + ".JPEG": dataset.manifest.classes[row["label"]].wnid for row in table.samples
    }
    assert {name: wnid for name, wnid in labels.items() if name in expected} == expected


def test_corrupt_images_stop_the_run_and_are_listed(tars, tmp_path, synthetic):
    with pytest.raises(UserError) as error:
        prepare(tars, tmp_path / "dataset")
    message = str(error.value)
    (train_key,) = synthetic.left_out["train"]
    assert "2 images do not decode" in message and "--skip-corrupt" in message
    assert f"ILSVRC2012_img_train.tar/{train_key}.JPEG: " in message
    assert "ILSVRC2012_img_val.tar/ILSVRC2012_val_00000042.JPEG: it has no bytes" in message
    assert not (tmp_path / "dataset" / "manifest.json").exists()


def test_a_dataset_without_the_devkits_ids_is_not_the_same(kaggle, dataset):
    with pytest.raises(UserError, match="already holds a dataset, with other classes, class names or ids"):
        prepare(kaggle, dataset.folder, "--skip-corrupt")


def copied(tars, tmp_path, *names):
    folder = tmp_path / "source"
    folder.mkdir()
    for path in tars.iterdir():
        if path.name not in names:
            (folder / path.name).symlink_to(path)
    return folder


def refused(source, *parts):
    with pytest.raises(UserError) as error:
        recognise(source)
    for part in parts:
        assert part in str(error.value)


def test_cut_off_tars_are_refused(tars, tmp_path):
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_img_test_v10102019.tar"):
        shutil.rmtree(tmp_path / "source", ignore_errors=True)
        source = copied(tars, tmp_path, name)
        data = (tars / name).read_bytes()
        (source / name).write_bytes(data[: len(data) // 2 // 512 * 512])
        refused(source, name, "cut off or damaged")


def test_val_that_lacks_an_image_of_the_ground_truth(tars, tmp_path, synthetic):
    source = copied(tars, tmp_path, "ILSVRC2012_img_val.tar")
    with tarfile.open(source / "ILSVRC2012_img_val.tar", "w") as tar:
        for name, data in list(synthetic.val.items())[:-1]:
            add(tar, name, data)
    refused(source, "lacks 1 of the 1,500 images", "ILSVRC2012_val_00001500")


def test_val_with_an_image_that_the_ground_truth_does_not_know(tars, tmp_path, synthetic):
    source = copied(tars, tmp_path, "ILSVRC2012_img_val.tar")
    with tarfile.open(source / "ILSVRC2012_img_val.tar", "w") as tar:
        for name, data in {**synthetic.val, "ILSVRC2012_val_00001501.JPEG": b""}.items():
            add(tar, name, data)
    refused(source, "does not list", "ILSVRC2012_val_00001501")


def test_val_tar_without_labels(tars, tmp_path):
    refused(copied(tars, tmp_path, "ILSVRC2012_devkit_t12.tar.gz"), "has no classes", "ILSVRC2012_devkit_t12.tar.gz")


def test_damaged_devkit(tars, tmp_path):
    source = copied(tars, tmp_path, "ILSVRC2012_devkit_t12.tar.gz")
    whole = (tars / "ILSVRC2012_devkit_t12.tar.gz").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"<html>404</html>", b""):
        (source / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(damaged)
        refused(source, "development kit", "cannot be read")


def test_a_split_that_is_there_twice(tars, tmp_path):
    source = copied(tars, tmp_path)
    (source / "train").mkdir()
    refused(source, "holds train twice", "ILSVRC2012_img_train.tar")


def test_train_tar_that_is_no_tar_of_tars(tars, tmp_path):
    source = copied(tars, tmp_path, "ILSVRC2012_img_train.tar")
    (source / "ILSVRC2012_img_train.tar").symlink_to(tars / "ILSVRC2012_img_val.tar")
    refused(source, "is not the training tar")


def test_val_folders_sorted_wrongly(class_folders, tmp_path, synthetic):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("ILSVRC2012_devkit_t12", "train"):
        (source / name).symlink_to(class_folders / name)
    ranked = sorted(synthetic.wnids)
    for name, data in synthetic.val.items():
        write_files(source / "val" / ranked[synthetic.val_ids[int(name[15:23]) - 1] - 1], {name: data})
    refused(source, "lie in another class's folder", f"is of {synthetic.wnids[0][:2]}")


def test_missing_training_images_are_said(class_folders, tmp_path, synthetic, capsys):
    source = tmp_path / "source"
    source.mkdir()
    (source / "ILSVRC2012_devkit_t12").symlink_to(class_folders / "ILSVRC2012_devkit_t12")
    shutil.copytree(class_folders / "train", source / "train")
    wnid = synthetic.wnids[3]
    (source / "train" / wnid / f"{wnid}_7.JPEG").unlink()
    recognise(source)
    assert f"train lacks 1 images in 1 classes by the development kit's count ({wnid}: 1)" in capsys.readouterr().err


def test_max_short_side_is_recorded(class_folders, tmp_path, capsys):
    dataset = prepare(class_folders, tmp_path / "small", "--skip-corrupt", "--max-short-side", "18", "--json")
    rows = np.concatenate([dataset.split(split).samples for split in ("train", "val", "test")])
    assert np.minimum(rows["height"], rows["width"]).max() == 18
    assert dataset.manifest.notes["preparation"]["rules"]["max_short_side"] == 18
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["shrunk"] == sum(dataset.manifest.notes["shrunk"].values()) > 1000
