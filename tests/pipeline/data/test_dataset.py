"""A faulty dataset folder gets an error of one sentence; a sound one gives the bytes that its tars hold."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset
from tests.images import encode, photograph
from tests.pipeline.data.small_datasets import replace_table


@pytest.fixture
def copy(digits: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits, tmp_path / "copy"))


def test_samples_are_what_the_tars_hold(digits: Path) -> None:
    """Reference: Python's tarfile."""
    split = Dataset(digits).split("train")
    sample = 0
    for shard in split.info.shards:
        with tarfile.open(digits / shard.file) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for _ in range(shard.samples):
            key = split.samples[sample]["key"].decode()
            assert split.read(sample) == members[f"{key}.jpg"]
            assert split.labels[sample] == int(members[f"{key}.cls"])
            sample += 1
    assert sample == len(split) == 1442


def test_another_format_version(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"version": 2}))
    with pytest.raises(UserError, match=r"format version 2, this code reads version 1: .* again") as refused:
        Dataset(copy)
    assert str(copy) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"format": "other", "version": 1}', b"[" * 100_000], ids=range(6)
)
def test_a_file_that_is_no_manifest(copy: Path, damage: bytes) -> None:
    (copy / "manifest.json").write_bytes(damage)
    with pytest.raises(UserError, match=r"is not a dataset's manifest"):
        Dataset(copy)


def nested(depth: int) -> dict[str, Any]:
    return {"x": nested(depth - 1)} if depth else {}


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda manifest: manifest.update(classes=[]), r"is damaged \(it lists no classes\)"),
        (lambda manifest: manifest.update(classes="cat"), "classes"),
        (lambda manifest: manifest["classes"][0].update(wnid=3), "wnid"),
        (lambda manifest: manifest["classes"][0].update(color="red"), r"unknown key 'classes\[0\].color'"),
        (lambda manifest: manifest.update(seed="0"), "seed"),
        (lambda manifest: manifest.pop("splits"), "'splits' is missing"),
        (lambda manifest: manifest["splits"]["val"].update(samples=-1.5), "samples"),
        (lambda manifest: manifest["splits"]["val"].update(table=None), "table"),
        (lambda manifest: manifest["splits"]["val"].update(rows=3), r"unknown key 'splits.val.rows'"),
        (
            lambda manifest: manifest["splits"]["val"].update(table="../val.npy"),
            "'../val.npy' lies outside the dataset",
        ),
        (
            lambda manifest: manifest["splits"]["val"]["shards"][0].update(file="/etc/passwd"),
            "lies outside the dataset",
        ),
        (lambda manifest: manifest["splits"]["val"]["shards"][0].update(bytes="many"), "bytes"),
        (lambda manifest: manifest["splits"]["val"]["shards"][0].update(bytes=-1), "sizes that cannot be"),
        (lambda manifest: manifest["splits"]["val"]["shards"][0].update(bytes=2**64), "sizes that cannot be"),
        (lambda manifest: manifest["splits"]["val"].update(table="a\0b"), "is no file's name"),
        (lambda manifest: manifest.update(notes=nested(300)), "is nested too deeply"),
    ],
    ids=range(16),
)
def test_a_manifest_that_says_what_cannot_be(
    copy: Path, change: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as refused:
        Dataset(changed(copy, change))
    assert str(copy / "manifest.json") in str(refused.value) and "\n" not in str(refused.value)


def test_parts_that_are_missing(copy: Path) -> None:
    dataset = Dataset(copy)
    with pytest.raises(UserError, match=r"no split 'test' \(it has: train, val\)"):
        dataset.split("test")
    (copy / dataset.manifest.splits["val"].table).unlink()
    with pytest.raises(UserError, match=r"val.samples.npy cannot be read \(No such file"):
        dataset.split("val")
    (copy / "statistics.npz").unlink()
    with pytest.raises(UserError, match=r"statistics.npz cannot be read \(No such file"):
        _ = dataset.statistics
    shard = dataset.manifest.splits["train"].shards[0].file
    (copy / shard).unlink()
    with pytest.raises(UserError, match=r"shard .* cannot be opened"):
        dataset.split("train").read(0)
    with pytest.raises(UserError, match="has no statistics"):
        _ = Dataset(changed(copy, lambda manifest: manifest.update(statistics=None))).statistics


def test_pipes_are_not_waited_for(copy: Path, digits: Path) -> None:
    dataset = Dataset(copy)
    split = dataset.split("train")
    for name, what in (
        (split.info.shards[0].file, "cannot be opened"),
        (split.info.table, "cannot be read"),
        ("statistics.npz", "cannot be read"),
    ):
        (copy / name).unlink()
        os.mkfifo(copy / name)
        with pytest.raises(UserError, match=rf"{name} {what} \(it is a FIFO, not a file"):
            _ = split.read(0), dataset.split("train"), dataset.statistics
        (copy / name).unlink()
        shutil.copy(digits / name, copy / name)


@pytest.mark.parametrize("name", ["train.samples.npy", "statistics.npz"])
@pytest.mark.parametrize("damage", ["cut off", "one bit", "nothing"])
def test_a_small_file_that_is_not_the_manifests(copy: Path, name: str, damage: str) -> None:
    dataset, path = Dataset(copy), copy / name
    whole = path.read_bytes()
    place = len(whole) // 2
    one_bit = whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]
    path.write_bytes({"cut off": whole[:-100], "one bit": one_bit, "nothing": b""}[damage])
    with pytest.raises(UserError, match=rf"{name} does not match the SHA-256 in the manifest: .* again"):
        _ = dataset.statistics if name == "statistics.npz" else dataset.split("train")


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        (
            {"mean_image": np.zeros((5, 32, 3), np.float32)},
            r"mean_image is float32 \[5, 32, 3\], not float32 \[32, 32, 3\]",
        ),
        ({"mean_image": np.zeros((32, 32, 3))}, "mean_image is float64"),
        ({"mean_image": np.full((32, 32, 3), np.nan, np.float32)}, "mean_image holds values that are not finite"),
        ({"eigenvalues": np.float64(1)}, "eigenvalues is"),
        ({"eigenvectors": np.full((3, 3), np.inf)}, "eigenvectors holds values that are not finite"),
        ({"eigenvectors": np.array([{}], object)}, "pickle"),
        (None, "cannot be read"),
    ],
    ids=range(7),
)
def test_statistics_of_another_form(copy: Path, arrays: dict[str, Any] | None, sentence: str) -> None:
    with np.load(copy / "statistics.npz") as sound:
        held = dict(sound)
    with open(copy / "statistics.npz", "wb") as file:
        np.save(file, np.zeros(3)) if arrays is None else np.savez(file, **held | arrays)
    digest = hashlib.sha256((copy / "statistics.npz").read_bytes()).hexdigest()
    changed(copy, lambda manifest: manifest["statistics"].update(sha256=digest))
    with pytest.raises(UserError, match=sentence) as refused:
        _ = Dataset(copy).statistics
    assert "statistics.npz" in str(refused.value) and "\n" not in str(refused.value)


def with_rows(name: str, value: object) -> Callable[[np.ndarray], np.ndarray]:
    def change(table: np.ndarray) -> np.ndarray:
        table[name][7] = value
        return table

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (with_rows("shard", 1 << 20), "row 7 is of a shard that the manifest does not list"),
        (with_rows("offset", 0), "row 7 lies outside its shard"),
        (with_rows("offset", 2**64 - 1), "row 7 lies outside its shard"),
        (with_rows("size", 2**32 - 1), "row 7 lies outside its shard"),
        (with_rows("label", 10), "row 7 has a label outside the 10 classes"),
        (with_rows("label", -2), "row 7 has a label outside the 10 classes"),
        (with_rows("width", 0), "row 7 is of an image without pixels"),
        (with_rows("key", b"\xff"), "row 7 has a key that is not ASCII"),
        (lambda table: table[:-1], "it has 1,441 rows, the manifest says 1,442 samples"),
        (lambda table: table[["offset", "size"]], "its columns are not those of a sample table"),
        (lambda table: table["label"], "its columns are not those of a sample table"),
        (
            lambda table: table.astype([(name, "<i8") for name in table.dtype.names[:-1]] + [("key", "S9")]),
            "its columns",
        ),
        (lambda table: np.array([{}], object), "cannot be read"),
    ],
    ids=range(13),
)
def test_a_table_that_does_not_fit_the_manifest(
    copy: Path, change: Callable[[np.ndarray], np.ndarray], sentence: str
) -> None:
    replace_table(copy, "train", change(np.load(copy / "train.samples.npy")))
    with pytest.raises(UserError, match=sentence) as refused:
        Dataset(copy).split("train")
    assert str(copy / "train.samples.npy") in str(refused.value) and "\n" not in str(refused.value)


def test_a_table_that_is_cut_off_while_it_is_open_changes_nothing(copy: Path) -> None:
    """A mapped one would end the process by SIGBUS."""
    split = Dataset(copy).split("train")
    before = split.samples.copy()
    (copy / "train.samples.npy").write_bytes(b"")
    np.testing.assert_array_equal(split.samples, before)


def test_a_shard_that_was_cut_off_is_named(copy: Path) -> None:
    """Before it is opened and, with the sample, after that."""
    before, after = Dataset(copy).split("train"), Dataset(copy).split("train")
    shard = copy / before.info.shards[0].file
    last = before.info.shards[0].samples - 1
    after.read(last)
    with open(shard, "r+b") as file:
        file.truncate(int(before.samples[last]["offset"]) + 5)
    with pytest.raises(UserError, match=rf"the shard {shard} has [\d,]+ bytes, the manifest says [\d,]+"):
        before.read(last)
    key = before.samples[last]["key"].decode()
    with pytest.raises(UserError, match=rf"sample {key} \(bytes \d+ to \d+ of {shard}\) ends early"):
        after.read(last)


@pytest.mark.parametrize("when", ["before it is opened", "while it is open"])
def test_a_shard_that_was_replaced_by_one_of_its_size_is_named(make_dataset: Callable[..., Dataset], when: str) -> None:
    """By another one's content: what stands at a sample's place has another name."""
    images = [encode(photograph(number, 40, 50), "BMP") for number in range(8)]
    dataset = make_dataset(images, shard_size=4)
    split = dataset.split("train")
    first, second = (dataset.folder / shard.file for shard in split.info.shards)
    assert first.stat().st_size == second.stat().st_size
    if when == "while it is open":
        split.read(0)
    with open(first, "r+b") as file:
        file.write(second.read_bytes())
    with pytest.raises(UserError, match=rf"sample image0001 \(.* of {first}\) is not there: .*replaced or damaged"):
        split.read(1)
