"""A synthetic ILSVRC 2012 in every layout in which it is distributed: 1,000 classes, tiny images, the known oddities."""

from __future__ import annotations

import csv
import io
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import scipy.io  # type: ignore[import-untyped]
from PIL import Image

from tests.images import encode

CLASSES, VAL, TEST = 1000, 1500, 200


class Synthetic:
    """wnids in ILSVRC2012_ID order, the files of every split, and what is wrong with some of them."""

    def __init__(self) -> None:
        generator = np.random.default_rng(2012)
        numbers = generator.choice(np.arange(1_440_764, 15_075_141), CLASSES, replace=False)
        self.wnids = [f"n{number:08d}" for number in numbers]  # in random order: the id is not the sorted rank
        self.words = {wnid: f"thing {place}, Res parva {place}" for place, wnid in enumerate(self.wnids)}
        # A few hundred different pictures, told apart in every file by a JPEG comment.
        pool = [Image.fromarray(generator.integers(0, 256, (3, 4, 3), dtype=np.uint8)) for _ in range(300)]
        shapes = generator.integers(14, 30, (300, 2)).tolist()
        pool = [one.resize(shape, Image.Resampling.BICUBIC) for one, shape in zip(pool, shapes, strict=True)]

        def jpeg(name: str) -> bytes:
            return encode(pool[int(generator.integers(300))], quality=90, comment=name)

        self.train = {
            wnid: {f"{wnid}_{number}.JPEG": jpeg(f"{wnid}{number}") for number in (7, 11)} for wnid in self.wnids
        }
        self.val_ids = [int(one) + 1 for one in generator.integers(0, CLASSES, VAL)]
        self.val = {f"ILSVRC2012_val_{number:08d}.JPEG": jpeg(f"val {number}") for number in range(1, VAL + 1)}
        self.test = {f"ILSVRC2012_test_{number:08d}.JPEG": jpeg(f"test {number}") for number in range(1, TEST + 1)}
        self.spoil()

    def val_wnid(self, name: str) -> str:
        return self.wnids[self.val_ids[int(name[15:23]) - 1] - 1]

    def spoil(self) -> None:
        """The oddities: changed ones are (split, name); corrupt ones too."""
        first, second, third = self.wnids[5], self.wnids[500], self.wnids[999]
        picture = Image.open(io.BytesIO(self.train[first][f"{first}_7.JPEG"]))
        self.train[first][f"{first}_7.JPEG"] = encode(picture.convert("CMYK"), quality=95)
        self.train[second][f"{second}_11.JPEG"] = encode(picture, "PNG")
        self.train[third][f"{third}_7.JPEG"] = self.train[third][f"{third}_7.JPEG"][:-100]
        self.val["ILSVRC2012_val_00000042.JPEG"] = b""
        self.changed = {f"{first}_7": "CMYK", f"{second}_11": "PNG called JPEG"}
        self.left_out = {
            "train": {f"{third}_7": "truncated"},
            "val": {f"{self.val_wnid('ILSVRC2012_val_00000042.JPEG')}_ILSVRC2012_val_00000042": "no bytes"},
        }


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(data), 1_339_000_000
    tar.addfile(info, io.BytesIO(data))


def write_devkit(folder: Path, synthetic: Synthetic) -> None:
    """data/meta.mat and the ground truth as the development kit has them: inner nodes of the hierarchy included."""
    data = folder / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss"]
    fields += ["num_children", "children", "wordnet_height", "num_train_images"]
    synsets = np.empty((CLASSES + 3, 1), dtype=[(name, object) for name in fields])
    for place in range(CLASSES + 3):
        leaf = place < CLASSES
        wnid = synthetic.wnids[place] if leaf else f"n0000{place}"
        children = np.zeros((1, 0), np.uint8) if leaf else np.array([[1, 2]], np.uint16)
        words = synthetic.words[wnid] if leaf else "entity"
        count = len(synthetic.train[wnid]) if leaf else 0
        values = (float(place + 1), wnid, words, "a gloss", float(children.size), children, 0.0, float(count))
        synsets[place, 0] = values
    scipy.io.savemat(data / "meta.mat", {"synsets": synsets}, do_compression=True)
    lines = "".join(f"{one}\n" for one in synthetic.val_ids)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)
    (folder / "ILSVRC2012_devkit_t12" / "readme.txt").write_text("readme")


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def write_tars(root: Path, synthetic: Synthetic) -> Path:
    """Write it as image-net.org distributes it."""
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w", format=tarfile.GNU_FORMAT) as outer:
        for wnid in sorted(synthetic.wnids):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w", format=tarfile.GNU_FORMAT) as tar:
                for name, data in synthetic.train[wnid].items():
                    add(tar, name, data)
            add(outer, f"{wnid}.tar", inner.getvalue())
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in reversed(synthetic.val.items()):  # the order in the tar must not matter
            add(tar, name, data)
    with tarfile.open(root / "ILSVRC2012_img_test_v10102019.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        folder = tarfile.TarInfo("test")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in synthetic.test.items():
            add(tar, f"test/{name}", data)
    write_devkit(root, synthetic)
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        tar.add(root / "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")
    shutil.rmtree(root / "ILSVRC2012_devkit_t12")
    return root


def write_class_folders(root: Path, synthetic: Synthetic) -> Path:
    for wnid, files in synthetic.train.items():
        write_files(root / "train" / wnid, files)
    for name, data in synthetic.val.items():
        write_files(root / "val" / synthetic.val_wnid(name), {name: data})
    write_files(root / "test", synthetic.test)
    write_devkit(root, synthetic)
    return root


def write_kaggle(root: Path, synthetic: Synthetic) -> Path:
    images = root / "ILSVRC" / "Data" / "CLS-LOC"
    for wnid, files in synthetic.train.items():
        write_files(images / "train" / wnid, files)
    write_files(images / "val", synthetic.val)
    write_files(images / "test", synthetic.test)
    with open(root / "LOC_val_solution.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageId", "PredictionString"])
        for name in np.random.default_rng(0).permutation(list(synthetic.val)).tolist():
            wnid = synthetic.val_wnid(name)
            writer.writerow([name.removesuffix(".JPEG"), f"{wnid} 85 1 499 272 {wnid} 1 2 3 4 "])
    lines = [f"{wnid} {synthetic.words[wnid]}\n" for wnid in sorted(synthetic.wnids)]
    (root / "LOC_synset_mapping.txt").write_text("".join(lines))
    return root
