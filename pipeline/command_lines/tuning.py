"""What `python -m pipeline.tune` takes. Imports nothing that takes seconds."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.base.checkout import DATA
from pipeline.base.parsing import CommandParser, positive

SECONDS = 60


def tune_options() -> CommandParser:
    """What `python -m pipeline.tune` takes."""
    parser = CommandParser(
        "Finds the loader's fastest settings for this machine, and stores them for it.",
        "python -m pipeline.tune data/imagenet",
    )
    add = parser.add_argument
    help = f"the dataset, a folder or URL: its training images are read (default: {DATA})"
    add("dataset", nargs="?", default=DATA, metavar="DATASET", help=help)
    add("--config", type=Path, metavar="FILE", help="the recipe: its images and batch (default: configs/imagenet.yaml)")
    add("--seconds", type=seconds, default=SECONDS, help=f"to measure in, once decoders were tried (default {SECONDS})")
    add("--ranks", type=positive, metavar="N", help="ranks that share the cores (default: one per GPU, or one)")
    add("--batch", type=positive, metavar="N", help="images of a rank's batch (default: the recipe's; less on a CPU)")
    parser.add_device_option()
    parser.add_json_option()
    return parser


def seconds(text: str) -> float:
    """A number above 0."""
    try:
        if (number := float(text)) > 0:
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds above 0")
