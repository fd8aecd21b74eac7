"""What a training starts, in one line, from the words of its command line: before the imports that take seconds.

Reads the values that the line shows and judges none of them: `pipeline.run.options` does, seconds later. Imports light modules
alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.base.checkout import DATA, RECIPE, configs
from pipeline.base.command import UserError
from pipeline.base.files import read_yaml
from pipeline.base.layout import CHECKPOINTS, newest_checkpoint
from pipeline.base.starting import with_targets
from pipeline.base.words import ALIASES

# The defaults of the keys that are shown (pipeline/run/config.py).
DEFAULTS = {"arch": "resnet50", "data": DATA, "name": None, "runs": "runs", "seed": 0, "device": "auto"}


def training_line(words: Sequence[str], start: str = "starting") -> str:
    """`START: resnet14 on demo/dataset (1,442 images, 10 classes), into demo/runs/resnet14-seed0`.

    Only `START` where the command line is not one of a training: what is wrong with it is said later.
    """
    try:
        values = _values(words)
        folder = Path(str(values["runs"])) / str(values["name"] or f"{values['arch']}-seed{values['seed']}")
        device = "" if values["device"] == "auto" else f" on {values['device']}"
        newest, _ = newest_checkpoint(folder / CHECKPOINTS) or (0, None)
        since = f", from iteration {newest:,}" if newest else ""
        epochs = f", {values['epochs']} epochs" if values.get("epochs") else ""
        return f"{start}{device}: {values['arch']} on {_dataset(str(values['data']))}{epochs}, into {folder}{since}"
    except (UserError, OSError, ValueError, TypeError, KeyError):
        return start


def launcher_line(words: Sequence[str], start: str = "starting") -> str:
    """`training_line` of a launcher that does not know yet how many processes it starts, or what it tests."""
    if "--evaluate" in words:
        return with_targets("testing", words[list(words).index("--evaluate") + 1 :], "a net")
    return training_line(words, start)


def _values(words: Sequence[str]) -> Mapping[str, Any]:
    """The shown keys' values: of the config files, and of the options, where the later one counts."""
    options = [word.partition("=")[::2] for word in words if "=" in word]
    options += [(word, after) for word, after in itertools.pairwise(words) if "=" not in word]
    files = [value for option, value in options if option == "--config"] or [str(configs() / RECIPE)]
    found: dict[str, Any] = dict(DEFAULTS)
    for file in files:
        found |= read_yaml(Path(file), "config file")
    keys = {ALIASES.get(option, option): value for option, value in options if option.startswith("--")}
    return found | {option.removeprefix("--"): value for option, value in keys.items()}


def _dataset(location: str) -> str:
    """The dataset with its number of training images and classes, where its manifest is at hand."""
    from pipeline.data.dataset import MANIFEST, Dataset  # imports NumPy, which --help does without

    if "://" in location or not (Path(location) / MANIFEST).is_file():
        return location
    manifest = Dataset(location).manifest
    splits = [manifest.splits[name].samples for name in ("train",) if name in manifest.splits]
    images = "".join(f"{samples:,} images, " for samples in splits)
    return f"{location} ({images}{len(manifest.classes):,} classes)"
