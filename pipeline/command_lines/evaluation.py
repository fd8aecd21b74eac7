"""What the commands take that test nets. Imports nothing that takes seconds."""

from __future__ import annotations

import argparse
import math
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pipeline.base.parsing import CommandParser, names_of, positive
from pipeline.data.conventions import CONVENTIONS, PILLOW
from pipeline.evaluation.names import PROTOCOL_NAMES, STATE_KEYS


def evaluate_options() -> CommandParser:
    """What `python -m pipeline.evaluate` takes."""
    parser = CommandParser(
        "Tests one net on a split of a dataset and writes its score files.",
        "python -m pipeline.evaluate runs/resnet50-seed0 --protocol center,ten-crop --split val",
    )
    add = parser.add_argument
    add_net(parser, nargs="?")
    add_protocol_option(parser, f"{', '.join(PROTOCOL_NAMES)}; repeated or a,b (default center)")
    add("--split", default="val", help="of the dataset (default val)")
    add(
        "--weights",
        metavar="WEIGHTS",
        help=f"of a run: {', '.join(STATE_KEYS)} (default final); from elsewhere: see below",
    )
    add("--data", metavar="DATASET", help="the dataset, a folder or URL (default: the run's)")
    add("--mean", type=three_numbers, metavar="R,G,B", help="subtracted, 0..255 (default: the dataset's, the origin's)")
    add("--std", type=three_positive_numbers, metavar="R,G,B", help="divided by, 0..255 (default: none, the origin's)")
    add(
        "--short-side",
        type=positive,
        metavar="PIXELS",
        help="of center and ten-crop (default: the run's, the origin's)",
    )
    add("--precision", choices=["float32", "bf16"], default="float32", help="of the net (default float32)")
    where = "in the run folder; of weights from elsewhere: beside the file"
    add("--scores", type=Path, metavar="OUT.npz", help=f"the score file (default: {where})")
    add("--again", action="store_true", help="score anew where a score file exists already")
    parser.add_device_option()
    add("--threads", type=positive, help="CPU threads per rank (default: the cores divided among the ranks)")
    add_elsewhere_options(parser)
    parser.add_json_option()
    return parser


def add_elsewhere_options(parser: argparse.ArgumentParser) -> None:
    """What weights from elsewhere take, which stand in place of a run."""
    group = parser.add_argument_group(
        "weights from elsewhere, instead of RUN|CHECKPOINT",
        "--weights torchvision:NET, such as torchvision:resnet50/IMAGENET1K_V1, takes\n--data alone; --weights FILE, a state "
        "dict in torchvision's or pycls's naming\n(.pt, .pth, .ckpt, .safetensors ...), --arch and --preprocessing too",
    )
    add = group.add_argument
    add("--preprocessing", choices=list(CONVENTIONS), help="how the weights' origin prepares images, and their net")
    add("--arch", help="the net, such as resnet50")
    add("--weights-key", metavar="NAME", help="which of a file's weights, where it holds several, such as model_ema")
    add(
        "--interpolation",
        choices=list(PILLOW),
        help="of torchvision's and timm's resize (default: the origin's)",
    )
    add("--crop", type=positive, metavar="PIXELS", help="the net's input (default: 224, CIFAR nets 32)")
    add("--stride", choices=["paper", "v1.5"], help="of bottlenecks; v1.5 is torchvision's (default: the origin's)")
    add("--shortcut", choices=["A", "B", "C"], help="(default: as the weights show)")
    add("--weights-file", type=Path, metavar="FILE", help="the same as --weights FILE")


def ensemble_options() -> CommandParser:
    """What `python -m pipeline.ensemble` takes."""
    parser = CommandParser(
        "Averages the softmax scores of several nets and gives the errors of each and of all.",
        "python -m pipeline.ensemble runs/resnet34-seed0 runs/resnet50-seed0 runs/resnet152-seed0",
    )
    parser.add_argument("members", nargs="+", metavar="MEMBER", help="run folders, score files or MLflow run ids")
    add_member_options(parser, "repeated or a,b (default: every one that all members have)")
    parser.add_argument("--search", type=int, metavar="K", help="keep the K members whose average has the lowest error")
    parser.add_argument("--by", choices=["top-1", "top-5"], default="top-1", help="the error that --search lowers")
    parser.add_argument("--name", help="of the ensemble's run folder and MLflow run (default: made of its members)")
    parser.add_argument("--no-tracking", action="store_true", help="write no run folder and no MLflow run")
    parser.add_json_option()
    return parser


def responses_options() -> CommandParser:
    """What `python -m pipeline.responses` takes."""
    parser = CommandParser(
        "Measures the standard deviation of each 3x3 layer's output, after BN and before ReLU and addition (Fig. 7).",
        "python -m pipeline.responses runs/resnet56-seed0",
    )
    add = parser.add_argument
    add_net(parser)
    add("--split", default="val", help="of the dataset (default val)")
    add_weights_option(parser)
    add("--data", metavar="DATASET", help="the dataset, a folder or URL (default: the run's)")
    parser.add_device_option()
    add("--threads", type=int, help="CPU threads per rank (default: the cores divided among the ranks)")
    parser.add_json_option()
    return parser


def add_net(parser: argparse.ArgumentParser, nargs: Literal["?"] | None = None) -> None:
    """The trained net that a command is about."""
    text = "a run folder, or a file in its checkpoints/"
    parser.add_argument("target", type=Path, nargs=nargs, metavar="RUN|CHECKPOINT", help=text)


def add_weights_option(parser: argparse.ArgumentParser, help: str = "which of the checkpoint's weights") -> None:
    """`--weights`: final, or another of a checkpoint's sets."""
    parser.add_argument("--weights", choices=list(STATE_KEYS), default="final", help=help)


def add_member_options(parser: argparse.ArgumentParser, protocol: str, split: str = "val") -> None:
    """What chooses the score files of members. protocol: help text; split: the default."""
    add_protocol_option(parser, protocol)
    parser.add_argument("--split", default=split, help=f"of the score files (default {split})")
    add_weights_option(parser, "of the score files")
    help = "where MLflow run ids are looked up (default runs)"
    parser.add_argument("--runs", type=Path, default=Path("runs"), help=help)


def add_protocol_option(parser: argparse.ArgumentParser, help: str) -> None:
    """`--protocol`: the names in all of its uses together, or None."""
    known = names_of("protocol", PROTOCOL_NAMES)
    parser.add_argument("--protocol", type=known, action="extend", metavar="NAME", help=help)


def three_numbers(text: str) -> tuple[float, float, float]:
    """`123.675,116.28,103.53`: one finite number per channel."""
    with suppress(ValueError):
        red, green, blue = map(float, text.split(","))
        if all(map(math.isfinite, (red, green, blue))):
            return red, green, blue
    raise argparse.ArgumentTypeError(f"'{text}' is not three numbers R,G,B")


def three_positive_numbers(text: str) -> tuple[float, float, float]:
    """Three numbers that can be divided by."""
    numbers = three_numbers(text)
    if min(numbers) <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not three numbers above 0: pixels are divided by them")
    return numbers
