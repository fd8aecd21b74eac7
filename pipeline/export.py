"""Export a trained model for use elsewhere: python -m pipeline.export runs/NAME --out exported/NAME"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.base import command
from pipeline.base.command import CommandParser, UserError, nearest, print_json, print_table
from pipeline.base.files import replacing, write_text
from pipeline.base.layout import CONFIG
from pipeline.data.dataset import Dataset
from pipeline.data.graphs import Normalization
from pipeline.data.storage import open_dataset
from pipeline.evaluation.datasets import on_training_data
from pipeline.evaluation.nets import TrainedNet, open_target
from pipeline.evaluation.options import add_weights_option
from pipeline.handover.exporting import FORMATS, Deployed, Exported, export
from pipeline.handover.model_card import known_scores, model_card
from pipeline.process.world import open_world
from pipeline.run.options import load

EXAMPLE = "python -m pipeline.export runs/resnet50-seed0 --out exported/resnet50 --register resnet50 --alias best"
ALIAS = re.compile(r"[A-Za-z0-9_-]{1,255}")  # this and RESERVED: MLflow's own rules (mlflow/utils/validation.py)
RESERVED = re.compile(r"latest|v\d+", re.IGNORECASE)  # these name versions


def options() -> CommandParser:
    parser = CommandParser("Exports a trained net with a model card, and registers it in MLflow on request.", EXAMPLE)
    add = parser.add_argument
    add("target", type=Path, metavar="RUN|CHECKPOINT", help="a run folder, or a file in its checkpoints/")
    add("--out", type=Path, metavar="FOLDER", help="where the files go (default: exported/NAME, of the run)")
    add_weights_option(parser)
    help = "the training dataset, a folder or URL, where it is not where the run's config says"
    add("--data", metavar="DATASET", help=help)
    add("--format", metavar="A,B", default=",".join(FORMATS), help=f"of {', '.join(FORMATS)} (default: all)")
    add("--register", metavar="NAME", help="make it a version of this model in MLflow's registry")
    add("--alias", action="append", default=[], metavar="ALIAS", help="such as best, ensemble-member")
    parser.add_json_option()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = options().parse_args(argv)
    names = formats(args)
    with open_world("cpu") as world:
        trained = open_target(args.target, args.weights, args.data, world)
    assert trained.run is not None
    args.out = args.out or Path("exported") / trained.name
    dataset = training_dataset(trained)
    normalization = Normalization.of(dataset.statistics, trained.crop)
    module = Deployed(trained.net, normalization, trained.crop).eval()
    exported = [export(module, args.out, name) for name in names]
    with replacing(args.out / "mean.npy") as file:
        np.save(file, normalization.mean, allow_pickle=False)
    card = model_card(trained, dataset.sha256, exported, known_scores(trained))
    write_text(args.out / "README.md", card)
    version = None
    if args.register is not None:
        from pipeline.handover.registry import register  # imports MLflow: seconds

        tracking = load(trained.run / CONFIG).tracking
        version = register(trained.run, tracking, module, args.register, args.alias, f"export/{trained.iteration}")
    print_result(trained, exported, version, args)
    return 0


def training_dataset(trained: TrainedNet) -> Dataset:
    """The dataset whose mean is exported with the model. Raises UserError where the model was trained on another dataset."""
    dataset = open_dataset(trained.data)
    if not on_training_data(trained, dataset):
        raise UserError(
            f"{trained.data} is not the dataset that {trained.name} was trained on (its manifest differs): "
            "give that one with --data"
        )
    return dataset


def formats(args: Namespace) -> list[str]:
    """The formats asked for. Raises UserError for options that do not fit."""
    if args.alias and args.register is None:
        raise UserError("--alias goes with --register: say which model the alias belongs to")
    if args.register is not None and not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", args.register):
        raise UserError(
            f"'{args.register}' cannot be a name in MLflow's registry: use letters, digits, '.', '_' and '-'"
        )
    for alias in args.alias:
        if not ALIAS.fullmatch(alias):
            raise UserError(f"'{alias}' cannot be an alias in MLflow's registry: use letters, digits, '_' and '-'")
        if RESERVED.fullmatch(alias):
            raise UserError(
                f"'{alias}' cannot be an alias, because it names a version in MLflow: take one such as best"
            )
    names = [name for name in args.format.split(",") if name]
    for name in names:
        if name not in FORMATS:
            raise UserError(f"there is no format '{name}': {nearest(name, FORMATS)}")
    return names


def print_result(trained: TrainedNet, exported: Sequence[Exported], version: str | None, args: Namespace) -> None:
    """Print where the model is registered and what was written."""
    if version is not None:
        aliases = "".join(f", {alias}" for alias in args.alias)
        print(f"Registered in MLflow as {args.register}, version {version}{aliases}.")
    rows = [
        (file.format, file.path, f"{file.path.stat().st_size / 1e6:,.1f}", f"{file.difference:.1g}")
        for file in exported
    ]
    print_table(f"{trained.name} exported to {args.out}", ("format", "file", "MB", "difference when read back"), rows)
    if args.json:
        files = {file.format: {"file": str(file.path), "difference": file.difference} for file in exported}
        print_json({"net": trained.name, "formats": files, "version": version})


if __name__ == "__main__":
    command.run(main)
