"""Export a trained net for use elsewhere: python -m pipeline.export runs/NAME --out exported/NAME"""

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
    made = CommandParser("Exports a trained net with a model card, and registers it in MLflow on request.", EXAMPLE)
    made.add_argument("target", type=Path, metavar="RUN|CHECKPOINT", help="a run folder, or a file in its checkpoints/")
    made.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the files go")
    add_weights_option(made)
    made.add_argument(
        "--data",
        metavar="DATASET",
        help="the training dataset, a folder or URL, where it is not where the run's config says",
    )
    made.add_argument(
        "--format", metavar="A,B", default=",".join(FORMATS), help=f"of {', '.join(FORMATS)} (default: all)"
    )
    made.add_argument("--register", metavar="NAME", help="make it a version of this model in MLflow's registry")
    made.add_argument("--alias", action="append", default=[], metavar="ALIAS", help="such as best, ensemble-member")
    made.add_json_option()
    return made


def main(argv: Sequence[str] | None = None) -> int:
    own = options().parse_args(argv)
    names = formats(own)
    with open_world("cpu") as world:
        subject = open_target(own.target, own.weights, own.data, world)
    assert subject.run is not None
    dataset = training_dataset(subject)
    normalization = Normalization.of(dataset.statistics, subject.crop)
    module = Deployed(subject.net, normalization, subject.crop).eval()
    exported = [export(module, own.out, name) for name in names]
    with replacing(own.out / "mean.npy") as file:
        np.save(file, normalization.mean, allow_pickle=False)
    card = model_card(subject, dataset.sha256, exported, known_scores(subject))
    write_text(own.out / "README.md", card)
    version = None
    if own.register is not None:
        from pipeline.handover.registry import register  # imports MLflow: seconds

        tracking = load(subject.run / CONFIG).tracking
        version = register(subject.run, tracking, module, own.register, own.alias, f"export/{subject.iteration}")
    report(subject, exported, version, own)
    return 0


def training_dataset(subject: TrainedNet) -> Dataset:
    """The dataset whose mean the net is exported with. Raises UserError where `--data`, or what lies there now, is another."""
    dataset = open_dataset(subject.data)
    if not on_training_data(subject, dataset):
        raise UserError(
            f"{subject.data} is not the dataset that {subject.name} was trained on (its manifest differs): "
            "give that one with --data"
        )
    return dataset


def formats(own: Namespace) -> list[str]:
    """The formats asked for. Raises UserError for options that do not fit."""
    if own.alias and own.register is None:
        raise UserError("--alias goes with --register: say which model the alias belongs to")
    if own.register is not None and not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", own.register):
        raise UserError(
            f"'{own.register}' cannot be a name in MLflow's registry: use letters, digits, '.', '_' and '-'"
        )
    for alias in own.alias:
        if not ALIAS.fullmatch(alias):
            raise UserError(f"'{alias}' cannot be an alias in MLflow's registry: use letters, digits, '_' and '-'")
        if RESERVED.fullmatch(alias):
            raise UserError(
                f"'{alias}' cannot be an alias, it names a version to MLflow itself: take another, such as best"
            )
    names = [name for name in own.format.split(",") if name]
    for name in names:
        if name not in FORMATS:
            raise UserError(f"there is no format '{name}': {nearest(name, FORMATS)}")
    return names


def report(subject: TrainedNet, exported: Sequence[Exported], version: str | None, own: Namespace) -> None:
    """Print where the net is registered and what was written."""
    if version is not None:
        aliases = "".join(f", {alias}" for alias in own.alias)
        print(f"Registered in MLflow as {own.register}, version {version}{aliases}.")
    rows = [
        (one.format, one.path, f"{one.path.stat().st_size / 1e6:,.1f}", f"{one.difference:.1g}") for one in exported
    ]
    print_table(f"{subject.name} exported to {own.out}", ("format", "file", "MB", "difference when read back"), rows)
    if own.json:
        files = {one.format: {"file": str(one.path), "difference": one.difference} for one in exported}
        print_json({"net": subject.name, "formats": files, "version": version})


if __name__ == "__main__":
    command.run(main)
