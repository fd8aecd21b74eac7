"""What the commands take that use trained nets. Imports nothing that takes seconds."""

from __future__ import annotations

from pathlib import Path

from pipeline.base.parsing import CommandParser, names_of, positive
from pipeline.command_lines.evaluation import add_member_options, add_net, add_weights_option
from pipeline.handover.names import FORMAT_NAMES


def predict_options() -> CommandParser:
    """What `python -m pipeline.predict` takes."""
    parser = CommandParser(
        "Names what pictures show: the classes with the highest scores of a trained net.",
        "python -m pipeline.predict runs/resnet50-seed0 picture.jpg",
    )
    add = parser.add_argument
    add_net(parser)
    text = "a file (JPEG, PNG, WebP ...); a folder: all below it; -: those that standard input names, one a line"
    add("pictures", nargs="+", metavar="PICTURE", help=text)
    add("--top", type=positive, default=5, metavar="K", help="so many classes of each picture (default %(default)s)")
    add_weights_option(parser)
    add_training_data(parser)
    text = "instead of the table, a row for each picture and class; - is standard output"
    add("--csv", metavar="FILE", help=text)
    parser.add_device_option()
    parser.add_json_option()
    return parser


def export_options() -> CommandParser:
    """What `python -m pipeline.export` takes."""
    parser = CommandParser(
        "Exports a trained net with a model card, and registers it in MLflow on request.",
        "python -m pipeline.export runs/resnet50-seed0 --out exported/resnet50 --register resnet50 --alias best",
    )
    add = parser.add_argument
    add_net(parser)
    add("--out", type=Path, metavar="FOLDER", help="where the files go (default: exported/NAME, of the run)")
    add_weights_option(parser)
    add_training_data(parser)
    text = f"of {', '.join(FORMAT_NAMES)} (default: all)"
    add("--format", type=names_of("format", FORMAT_NAMES), metavar="A,B", default=list(FORMAT_NAMES), help=text)
    add("--register", metavar="NAME", help="make it a version of this model in MLflow's registry")
    add("--alias", action="append", default=[], metavar="ALIAS", help="such as best, ensemble-member")
    parser.add_json_option()
    return parser


def mistakes_options() -> CommandParser:
    """What `python -m pipeline.mistakes` takes."""
    parser = CommandParser(
        "Shows what a net gets wrong: errors per class, confusions, confident mistakes.",
        "python -m pipeline.mistakes runs/resnet50-seed0 --protocol ten-crop",
    )
    parser.add_argument("target", metavar="RUN|SCORES", help="a run folder, a score file or an MLflow run id")
    add_member_options(parser, "of the score file (default: the first that the run has)")
    parser.add_argument("--data", metavar="DATASET", help="the dataset, a folder or URL (default: the run's)")
    parser.add_argument("--pictures", type=int, default=24, metavar="N", help="mistakes on the sheet (default 24)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: beside the score file")
    parser.add_json_option()
    return parser


def submit_options() -> CommandParser:
    """What `python -m pipeline.submit` takes."""
    parser = CommandParser(
        "Writes the ILSVRC submission of a net or an ensemble from its score files.",
        "python -m pipeline.submit runs/resnet101-seed0 runs/resnet152-seed0 --protocol multi-scale --out test.txt",
    )
    parser.add_argument("members", nargs="+", metavar="MEMBER", help="run folders, score files or MLflow run ids")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the submission")
    add_member_options(parser, "default: the one that all members have", split="test")
    parser.add_argument("--data", metavar="DATASET", help="the dataset, a folder or URL (default: the first run's)")
    parser.add_argument("--ground-truth", type=Path, metavar="FILE", help="the development kit's, to check val")
    parser.add_argument("--lines", type=int, metavar="N", help="images of the split, where it is not ILSVRC's whole")
    parser.add_json_option()
    return parser


def add_training_data(parser: CommandParser) -> None:
    """`--data`, for commands that need the mean image and the classes that the net was trained with."""
    text = "the training dataset, a folder or URL, where it is not where the run's config says"
    parser.add_argument("--data", metavar="DATASET", help=text)
