"""The audit finds every flipped byte, and contents that contradict each other under correct checksums."""

import dataclasses
import hashlib
import shutil

import numpy as np
import pytest

from data_prep import shard_imagenet
from data_prep.verify import check_manifest, main, shard_checks, verify
from data_prep.verify_shard import check_shard
from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset
from pipeline.data.images import decode

OPTIONS = ["--samples-per-shard", "12", "--statistics-size", "8", "--statistics-short-side", "16", "--workers", "1"]


@pytest.fixture(scope="module")
def sound(folders, tmp_path_factory):
    destination = tmp_path_factory.mktemp("sound") / "dataset"
    shard_imagenet.main([str(folders), str(destination), *OPTIONS])
    return destination


@pytest.fixture
def copy(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "copy")


def problems(folder, fast=True):
    return verify(folder, fast=fast, workers=1).problems


def flip(path, position, bit=0):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def test_a_sound_dataset(sound, command):
    done = command("data_prep/verify.py", sound, "--json", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert f"{sound} is whole: 37 images, each decoded" in done.stdout
    assert problems(sound) == ()


def test_a_flip_in_every_kind_of_file_is_found_by_the_command(sound, tmp_path, command):
    files = ["manifest.json", "manifest.json.sha256", "statistics.npz", "train.samples.npy"]
    files += ["train/imagenet-train-000001.tar", "val/imagenet-val-000000.idx"]
    for number, name in enumerate(files):
        folder = shutil.copytree(sound, tmp_path / str(number))
        path = folder / name
        flip(path, path.stat().st_size // 2, bit=number)
        if number == 4:
            done = command("data_prep/verify.py", folder, "--fast", "--workers", 1)
            assert done.returncode == 2
            assert f"{folder} is damaged" in done.stderr and str(path) in done.stderr
            assert "Traceback" not in done.stderr
        else:
            with pytest.raises(UserError, match="is damaged") as error:
                main([str(folder), "--fast", "--workers", "1"])
            assert path.name.removesuffix(".sha256") in str(error.value)


def test_every_flip_in_the_manifest_and_its_checksum_is_found(copy):
    for name in ("manifest.json", "manifest.json.sha256"):
        whole = (copy / name).read_bytes()
        for position in range(0, len(whole), 5 if name == "manifest.json" else 1):
            flip(copy / name, position, bit=position % 8)
            assert check_manifest(copy) is not None
            (copy / name).write_bytes(whole)
    assert check_manifest(copy) is None


def test_flips_anywhere_in_a_shard_and_its_index_are_found(copy):
    dataset = Dataset(copy)
    check = next(shard_checks(dataset, "train", dataset.manifest.splits["train"], fast=True))
    assert check_shard(check, lambda *_: None) == []
    generator = np.random.default_rng(0)
    for path in (check.path, check.path.with_suffix(".idx")):
        whole = path.read_bytes()
        for position in [0, len(whole) - 1, *generator.integers(0, len(whole), 40).tolist()]:
            flip(path, position, bit=position % 8)
            assert check_shard(check, lambda *_: None) != []
            path.write_bytes(whole)


def test_missing_cut_and_foreign_files_are_found(copy):
    (copy / "train" / "imagenet-train-000000.tar").unlink()
    cut = copy / "train" / "imagenet-train-000001.tar"
    cut.write_bytes(cut.read_bytes()[:-512])
    (copy / "val" / "imagenet-val-000000.idx").unlink()
    (copy / "train" / "imagenet-train-000009.tar").write_bytes(b"stray")
    found = "\n".join(problems(copy))
    assert "imagenet-train-000000.tar is missing" in found
    assert "imagenet-train-000001.tar has" in found
    assert "imagenet-val-000000.idx is missing" in found
    assert "imagenet-train-000009.tar is not in the manifest" in found


def test_a_folder_that_is_no_dataset(tmp_path, command):
    done = command("data_prep/verify.py", tmp_path)
    assert done.returncode == 2 and "is not a dataset folder" in done.stderr and "Traceback" not in done.stderr


def rewrite(folder, change):
    """Write a changed manifest and its new checksum, so that checksums do not reveal `change(manifest)`."""
    text = change(Dataset(folder).manifest).to_json()
    (folder / "manifest.json").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json.sha256").write_text(f"{digest}  manifest.json\n")


def with_split(manifest, name, **changes):
    splits = {**manifest.splits, name: dataclasses.replace(manifest.splits[name], **changes)}
    return dataclasses.replace(manifest, splits=splits)


def change_table(folder, change):
    path = folder / "train.samples.npy"
    table = np.load(path)
    change(table)
    np.save(path, table)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    rewrite(folder, lambda manifest: with_split(manifest, "train", table_sha256=digest))


def set_label(table):
    table["label"][3] = (table["label"][3] + 1) % 3


def set_label_out_of_range(table):
    table["label"][3] = 3


def set_offset(table):
    table["offset"][3] += 512


def set_key(table):
    table["key"][3] = table["key"][4]


def set_shard(table):
    table["shard"][0], table["shard"][-1] = table["shard"][-1], table["shard"][0]


def set_height(table):
    table["height"][3] += 1


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (set_label, "is not the sample table's label"),
        (set_label_out_of_range, "row 3 has a label outside the 3 classes"),
        (set_offset, "is not where the sample table says"),
        (set_key, "two samples have the same key"),
        (set_shard, "name another shard"),
        (set_height, "height and width"),
    ],
)
def test_a_table_that_does_not_fit_its_tars(copy, change, fault):
    change_table(copy, change)
    assert fault in "\n".join(problems(copy, fast=False))


def test_classes_in_another_order(copy):
    rewrite(copy, lambda manifest: dataclasses.replace(manifest, classes=manifest.classes[::-1]))
    assert "has the label of" in "\n".join(problems(copy))


def test_counts_that_do_not_add_up(copy):
    def one_less(manifest):
        shards = manifest.splits["train"].shards
        shards = (dataclasses.replace(shards[0], samples=shards[0].samples - 1), *shards[1:])
        return with_split(manifest, "train", shards=shards)

    rewrite(copy, one_less)
    assert "do not add up" in "\n".join(problems(copy))


def change_shard(folder, tar, index):
    """Put other bytes into the first training shard, with right checksums."""
    info = Dataset(folder).manifest.splits["train"].shards[0]
    path = folder / info.file
    path.write_bytes(tar(path.read_bytes()))
    path.with_suffix(".idx").write_bytes(index(path.with_suffix(".idx").read_bytes()))
    digests = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "index_sha256": hashlib.sha256(path.with_suffix(".idx").read_bytes()).hexdigest(),
    }
    rewrite(
        folder,
        lambda manifest: with_split(
            manifest,
            "train",
            shards=(dataclasses.replace(info, **digests), *manifest.splits["train"].shards[1:]),
        ),
    )


def test_an_index_that_does_not_fit_its_tar(copy):
    def shifted(index):
        lines = index.decode().splitlines()
        fields = lines[1].split(" ")
        fields[5] = str(int(fields[5]) - 1)
        return "\n".join([lines[0], " ".join(fields), *lines[2:], ""]).encode()

    change_shard(copy, lambda tar: tar, shifted)
    assert "is not the index of its tar" in "\n".join(problems(copy))


def test_an_image_that_does_not_decode(copy):
    row = Dataset(copy).split("train").samples[2]

    def spoiled(tar):
        start = int(row["offset"])
        return tar[:start] + bytes(int(row["size"])) + tar[start + int(row["size"]) :]

    change_shard(copy, spoiled, lambda index: index)
    assert problems(copy) == ()  # without decoding, an image is only bytes of the right checksum
    assert f"{row['key'].decode()} does not decode" in "\n".join(problems(copy, fast=False))


def test_an_image_that_pillow_reads_and_the_loader_does_not(copy):
    row = Dataset(copy).split("train").samples[2]
    place = int(row["offset"]) + 5

    def spoiled(tar):
        assert tar[place - 3 : place + 1] == b"\xff\xe0\0\x10"
        return tar[:place] + b"\x0e" + tar[place + 1 :]  # its first segment seems to be two bytes shorter

    change_shard(copy, spoiled, lambda index: index)
    decode(Dataset(copy).split("train").read(2))
    assert problems(copy) == ()
    (problem,) = problems(copy, fast=False)
    assert f"{row['key'].decode()} does not decode: DALI, with which training decodes" in problem


@pytest.mark.parametrize(
    "name", ["train.samples.npy", "statistics.npz", "manifest.json", "manifest.json.sha256", "a shard", "an index"]
)
def test_a_file_that_cannot_be_read(copy, name):
    shard = copy / Dataset(copy).manifest.splits["train"].shards[0].file
    path = {"a shard": shard, "an index": shard.with_suffix(".idx")}.get(name, copy / name)
    path.unlink()
    path.symlink_to("/proc/self/mem")  # reading it fails as a bad block does
    assert str(path) in "\n".join(problems(copy))


def test_a_manifest_that_lists_many_missing_shards(copy):
    def more(manifest):
        shards = manifest.splits["train"].shards
        missing = (dataclasses.replace(shards[0], file=f"train/no-{number}.tar", samples=0) for number in range(500))
        return with_split(manifest, "train", shards=(*shards, *missing))

    rewrite(copy, more)
    found = problems(copy)
    assert len(found) == 1000 and all("is missing" in problem for problem in found)
