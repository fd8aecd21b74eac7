"""Writes scikit-learn's 1,797 handwritten digits as JPEG files in class folders: a small "ImageNet" of real images."""

from __future__ import annotations

from pipeline.base.starting import begin

if __name__ == "__main__":  # before the imports below, which take longer
    begin("writing digits into")

import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.base.command import UserError, run
from pipeline.base.parsing import CommandParser
from pipeline.base.tables import print_json, print_table

SIDE = 48  # pixels; the digits are 8 x 8
LEVELS = 16  # the digits' grey levels are 0..16
QUALITY = 95
VAL_EVERY = 5  # every fifth digit of each class is held out


def write_digits(folder: Path) -> None:
    """Write FOLDER/train/DIGIT/NNNN.jpg and FOLDER/val/DIGIT/NNNN.jpg (NNNN: position in scikit-learn's set).

    The files are 48 x 48 greyscale JPEGs, the same bytes on every call. The folder appears when complete, and is kept if it
    exists already. Raises UserError if the folder holds anything else.
    """
    if (folder / "train").is_dir() and (folder / "val").is_dir():
        return
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds other files: give an empty or a new folder")
    from sklearn.datasets import load_digits  # takes seconds, so only if the digits do not exist yet

    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    digits = load_digits()
    seen = dict.fromkeys(digits.target_names.tolist(), 0)
    for position, (levels, label) in enumerate(zip(digits.images, digits.target.tolist(), strict=True)):
        seen[label] += 1
        split = "val" if seen[label] % VAL_EVERY == 0 else "train"
        path = temporary / split / str(label) / f"{position:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray(np.round(levels * (255 / LEVELS)).astype(np.uint8))
        grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, quality=QUALITY)
    folder.parent.mkdir(parents=True, exist_ok=True)
    os.replace(temporary, folder)


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(
        "Write scikit-learn's 1,797 handwritten digits as JPEG files in class folders train/ and val/.",
        "python data_prep/digits.py demo/digits",
    )
    parser.add_argument("destination", type=Path, help="the folder to make")
    parser.add_json_option()
    options = parser.parse_args(arguments)
    write_digits(options.destination)
    counts = {split: len(list((options.destination / split).glob("*/*.jpg"))) for split in ("train", "val")}
    print_table(f"digits in {options.destination}", ("split", "images"), counts.items())
    if options.json:
        print_json({"destination": str(options.destination), **counts})


if __name__ == "__main__":
    run(main, kept=True)
