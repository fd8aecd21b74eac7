"""Export a trained model for use elsewhere: python -m pipeline.export runs/NAME --out exported/NAME"""

from __future__ import annotations

from pipeline.base.parsing import answer
from pipeline.base.starting import begin
from pipeline.command_lines.handover import export_options

if __name__ == "__main__":  # before the imports below, which take seconds
    begin("exporting", "a net")
    answer(export_options)

import re
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from pipeline.base import command
from pipeline.base.command import UserError
from pipeline.base.files import check_room, replacing, write_text
from pipeline.base.layout import CONFIG
from pipeline.base.tables import print_json, print_table
from pipeline.data.dataset import Dataset
from pipeline.data.graphs import Normalization
from pipeline.evaluation.exports import MEAN_FILE, ExportedNet, mean_sha256
from pipeline.evaluation.nets import TrainedNet, open_target
from pipeline.evaluation.scores import Scores
from pipeline.handover.exporting import Deployed, Exported, export
from pipeline.handover.model_card import known_scores, model_card, summary
from pipeline.handover.model_folder import CLASSES, class_lines, has_model, write_model
from pipeline.handover.registry import WEIGHTS_TAG, Entry, Registered, register
from pipeline.handover.training_data import TrainingData, training_dataset
from pipeline.process.world import open_world
from pipeline.run.folder import last_commit
from pipeline.run.options import load
from pipeline.tracking import is_delivered, log_evaluations, mlflow_run_id
from pipeline.training.checkpoint import UnsoundError, read_verified

ALIAS = re.compile(r"[A-Za-z0-9_-]{1,255}")  # this and RESERVED: MLflow's own rules (mlflow/utils/validation.py)
RESERVED = re.compile(r"latest|v\d+", re.IGNORECASE)  # these name versions
CARD = "README.md"  # of the exported folder


def main(argv: Sequence[str] | None = None) -> int:
    args = export_options().parse_args(argv)
    check_registration(args)
    with open_world("cpu") as world:
        trained = open_target(args.target, args.weights, args.data, world)
    assert trained.run is not None
    args.out = args.out or Path("exported") / trained.name
    check_room(args.out / CARD)
    dataset = training_dataset(trained)
    data = TrainingData.of(dataset, trained.crop, trained.subtracted)
    module = Deployed(trained.net, Normalization(data.mean), trained.crop, data.classes).eval()
    metadata = facts_of(trained, data).metadata()
    exported = [export(module, args.out, name, metadata) for name in args.format]
    with replacing(args.out / MEAN_FILE) as file:
        np.save(file, data.mean, allow_pickle=False)
    write_text(args.out / CLASSES, class_lines(data.classes))
    results = known_scores(trained)
    write_text(args.out / CARD, model_card(trained, data, exported, results))
    registered = None
    if args.register is not None:
        write_missing_model(trained, dataset)
        registered = register_net(trained, module, entry(trained, data, results, args))
    print_result(trained, exported, registered, args)
    return 0


def facts_of(trained: TrainedNet, data: TrainingData) -> ExportedNet:
    """What the weights do not show, and whoever tests them or starts from them must know."""
    assert trained.run is not None
    config = load(trained.run / CONFIG)
    return ExportedNet(
        arch=trained.arch,
        stride=config.stride,
        shortcut=config.shortcut,
        short_side=trained.short_side,
        crop=trained.crop,
        subtract=trained.subtracted,
        mean_sha256=mean_sha256(data.mean),
        dataset_sha256=data.sha256,
        classes=data.classes,
        wnids=data.wnids,
    )


def write_missing_model(trained: TrainedNet, dataset: Dataset) -> None:
    """Write the model folder of a run that finished before trainings wrote one."""
    assert trained.run is not None
    config = load(trained.run / CONFIG)
    if has_model(trained.run) or trained.iteration != config.iterations:
        return
    with suppress(UnsoundError):  # removed meanwhile
        write_model(trained.run, config, dataset, read_verified(trained.checkpoint))


def entry(trained: TrainedNet, data: TrainingData, results: Sequence[Scores], args: Namespace) -> Entry:
    """What the registry says of the net."""
    assert trained.run is not None
    origin = {
        WEIGHTS_TAG: trained.weights_sha256,
        "weights": trained.weights,
        "run": trained.name,
        "arch": trained.arch,
        "iteration": str(trained.iteration),
        "dataset": data.name,
        "dataset_sha256": data.sha256,
        "git_commit": last_commit(trained.run),
    }
    errors: dict[str, str] = {}
    for scores in results:
        kind = f"{scores.provenance.protocol}-{scores.provenance.split}"
        errors |= {f"{kind}.top1_error": f"{scores.errors(1):.2f}", f"{kind}.top5_error": f"{scores.errors(5):.2f}"}
    return Entry(
        name=args.register,
        about=f"Nets trained by this project on {data.name} ({len(data.classes):,} classes). A version's description is its "
        "model card, its tags are its errors and where it comes from.",
        description=summary(trained, data, results),
        tags=origin | errors,
        aliases=args.alias,
        files=[args.out / CARD, args.out / CLASSES],
        metadata={"classes": list(data.classes), **origin},
    )


def register_net(trained: TrainedNet, module: Deployed, entry: Entry) -> Registered:
    """Make the net a version of a model in the registry of the run's MLflow, which gets the run's model folder first."""
    assert trained.run is not None
    tracking = load(trained.run / CONFIG).tracking
    if mlflow_run_id(trained.run) is not None and not is_delivered(trained.run):
        log_evaluations(trained.run, tracking, trained.iteration or 0, {})
    return register(trained.run, tracking, module, entry, f"export/{trained.iteration}")


def check_registration(args: Namespace) -> None:
    """Raise UserError for a name or an alias that MLflow's registry cannot take."""
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


def print_result(
    trained: TrainedNet, exported: Sequence[Exported], registered: Registered | None, args: Namespace
) -> None:
    """Print where the model is registered and what was written."""
    if registered is not None:
        aliases = "".join(f", {alias}" for alias in args.alias)
        same = "" if registered.new else ": that version had these weights already, and has the card and tags of now"
        print(f"Registered in MLflow as {args.register}, version {registered.version}{aliases}{same}.")
    rows = [
        (file.format, file.path, f"{file.path.stat().st_size / 1e6:,.1f}", f"{file.difference:.1g}")
        for file in exported
    ]
    print_table(f"{trained.name} exported to {args.out}", ("format", "file", "MB", "difference when read back"), rows)
    if args.json:
        files = {file.format: {"file": str(file.path), "difference": file.difference} for file in exported}
        print_json({"net": trained.name, "formats": files, "version": registered.version if registered else None})


if __name__ == "__main__":
    command.run(main, kept=True)
