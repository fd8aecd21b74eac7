"""The dataset of class folders against its source, read by every reader that the format promises."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
import webdataset
from nvidia.dali import fn, pipeline_def
from PIL import Image

from pipeline.data.dataset import Dataset

OPTIONS = ("--samples-per-shard", 4, "--statistics-size", 24, "--statistics-short-side", 32, "--seed", 5)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, folders, command):
    destination = tmp_path_factory.mktemp("prepared") / "dataset"
    done = command("data_prep/shard_imagenet.py", folders, destination, *OPTIONS, "--workers", 3, "--json")
    assert done.returncode == 0, done.stderr
    return destination, done


@pytest.fixture(scope="module")
def dataset(prepared):
    return Dataset(prepared[0])


def key_of(path):
    stem = "line-drawing-v2" if path.suffix == ".png" else path.stem
    wnid = path.parent.name
    return stem if stem.startswith(f"{wnid}_") else f"{wnid}_{stem}"


def source_images(folders, split):
    """(bytes, label) of every image by key, straight from the folders."""
    wnids = sorted(path.name for path in (folders / "train").iterdir())
    paths = [path for path in (folders / split).glob("*/*") if path.suffix in (".JPEG", ".png")]
    return {key_of(path): (path.read_bytes(), wnids.index(path.parent.name)) for path in paths}


def tars(dataset, split):
    return [dataset.folder / shard.file for shard in dataset.manifest.splits[split].shards]


@pytest.mark.parametrize("split", ["train", "val"])
def test_sample_table_gives_every_image_once(dataset, folders, split):
    expected = source_images(folders, split)
    samples = dataset.split(split)
    assert len(samples) == len(expected) == len({row["key"] for row in samples.samples})
    for number, row in enumerate(samples.samples):
        data, label = expected[row["key"].decode()]
        assert samples.read(number) == data
        assert row["label"] == label
        # Pillow's array, EXIF orientation ignored.
        assert np.asarray(Image.open(io.BytesIO(data))).shape[:2] == (row["height"], row["width"])


@pytest.mark.parametrize("split", ["train", "val"])
def test_webdataset_reads_every_image_once(dataset, folders, split):
    urls = [str(path) for path in tars(dataset, split)]
    stream = webdataset.WebDataset(urls, shardshuffle=False, handler=webdataset.reraise_exception)
    found = {}
    for sample in stream:
        assert sample["__key__"] not in found
        found[sample["__key__"]] = (sample.get("jpg") or sample["png"], int(sample["cls"]))
    assert found == source_images(folders, split)


@pytest.mark.parametrize("split", ["train", "val"])
def test_dali_reads_every_image_once(dataset, folders, split):
    paths = [str(path) for path in tars(dataset, split)]
    indices = [path.removesuffix(".tar") + ".idx" for path in paths]

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipe():
        # "jpg;png": one output, of whichever component the sample has.
        return tuple(
            fn.readers.webdataset(
                paths=paths, index_paths=indices, ext=["jpg;png", "cls"], missing_component_behavior="error"
            )
        )

    reader = pipe()
    reader.build()
    rows = dataset.split(split).samples
    expected = source_images(folders, split)
    for row in rows:  # unshuffled, DALI reads in the order of the sample table
        image, label = (output.at(0).tobytes() for output in reader.run())
        assert (image, int(label)) == expected[row["key"].decode()]


def test_index_names_the_members_of_the_tar(dataset):
    for path in tars(dataset, "train"):
        with tarfile.open(path) as tar:
            members = {member.name: (member.offset_data, member.size) for member in tar}
        head, *lines = path.with_suffix(".idx").read_text().splitlines()
        assert head == f"v1.2 {len(lines)}"
        fields = [line.split(" ")[part : part + 4] for line in lines for part in (0, 4)]
        assert {name: (int(offset), int(size)) for _, offset, size, name in fields} == members
        assert all(name.endswith(f".{extension}") for extension, _, _, name in fields)


def test_manifest_holds_the_hash_of_every_file(prepared, dataset, hashes):
    manifest = dataset.manifest
    assert manifest.seed == 5
    assert [one.wnid for one in manifest.classes] == ["n01440764", "n01443537", "n02119789"]
    stated = {"statistics.npz": manifest.statistics["sha256"]}
    for split in manifest.splits.values():
        stated[split.table] = split.table_sha256
        for shard in split.shards:
            stated[shard.file] = shard.sha256
            stated[shard.file.replace(".tar", ".idx")] = shard.index_sha256
            assert (dataset.folder / shard.file).stat().st_size == shard.bytes
    have = hashes(dataset.folder)
    manifest_hash = have.pop("manifest.json")
    checksum = dataset.folder / "manifest.json.sha256"
    assert checksum.read_text() == f"{manifest_hash}  manifest.json\n"
    del have["manifest.json.sha256"]
    assert have == stated
    assert [len(split.shards) for split in manifest.splits.values()] == [7, 3]


def test_train_is_shuffled_over_the_whole_split_and_val_is_in_file_order(dataset):
    labels = dataset.split("train").labels
    assert (np.diff(labels) != 0).sum() > 6  # sorted, there would be 2 changes
    stems = [row["key"].decode().split("_", 1)[1] for row in dataset.split("val").samples]
    assert stems == sorted(stems)
    assert dataset.split("val").labels.tolist() == [0, 1, 2] * 3  # the same file names in each class


def test_statistics_are_those_of_the_source(dataset, folders):
    crops = []
    for data, _ in source_images(folders, "train").values():
        image = Image.open(io.BytesIO(data)).convert("RGB")
        scale = min(image.size) / 32
        size = (round(image.width / scale), round(image.height / scale))
        resized = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
        top, left = (round((side - 24) / 2) for side in resized.shape[:2])
        crops.append(resized[top : top + 24, left : left + 24])
    expected = np.mean(crops, axis=0, dtype=np.float64)
    assert np.abs(dataset.statistics.mean_image - expected).max() < 0.75
    covariance = np.cov(np.stack(crops).reshape(-1, 3).T / 255.0, bias=True)
    np.testing.assert_allclose(dataset.statistics.eigenvalues, np.linalg.eigvalsh(covariance)[::-1], rtol=5e-3)
    assert dataset.manifest.statistics["images"] == 28


def test_equal_bytes_for_any_number_of_workers(prepared, folders, command, hashes, tmp_path):
    done = command("data_prep/shard_imagenet.py", folders, tmp_path / "one", *OPTIONS, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "one") == hashes(prepared[0])


def test_another_seed_gives_another_order_of_the_same_images(dataset, folders, command, tmp_path):
    other = (*OPTIONS, "--seed", 6, "--statistics-images", 10)
    done = command("data_prep/shard_imagenet.py", folders, tmp_path / "six", *other)
    assert done.returncode == 0, done.stderr
    six = Dataset(tmp_path / "six")
    first, second = dataset.split("train").samples["key"].tolist(), six.split("train").samples["key"].tolist()
    assert first != second and sorted(first) == sorted(second)
    assert six.manifest.statistics["images"] == 10


def test_closing_json_says_what_was_made(prepared):
    figures = json.loads(prepared[1].stdout.splitlines()[-1])
    manifest = (prepared[0] / "manifest.json").read_bytes()
    assert figures["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()
    assert {name: split["samples"] for name, split in figures["splits"].items()} == {"train": 28, "val": 9}
    assert "train: 28 images" in prepared[1].stderr and "passed over: 1 not named as a picture" in prepared[1].stderr


def test_the_same_again_is_already_done(prepared, folders, command, hashes):
    before = hashes(prepared[0])
    done = command("data_prep/shard_imagenet.py", folders, prepared[0], *OPTIONS)
    assert done.returncode == 0
    assert "already done" in done.stdout
    assert hashes(prepared[0]) == before


def test_help_opens_with_a_sentence_and_an_example(command):
    lines = command("data_prep/shard_imagenet.py", "--help").stdout.splitlines()
    assert lines[0] == "usage: python data_prep/shard_imagenet.py [SOURCE] [DESTINATION] [options]"
    assert lines[2].startswith("Make a dataset folder") and lines[2].endswith(".")
    assert lines[4] == "example:" and "shard_imagenet.py" in lines[5]
