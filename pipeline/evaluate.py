"""Test one model on a split: python -m pipeline.evaluate runs/NAME --protocol center,ten-crop

Alone, or as one rank of several (torchrun and any other launcher): the score files are the same.
"""

from __future__ import annotations

from pipeline.base.parsing import answer
from pipeline.base.starting import begin
from pipeline.base.stopping import KEEPING_SCORES, going_on, say
from pipeline.command_lines.evaluation import evaluate_options

if __name__ == "__main__":  # before the imports below, which take seconds
    begin("testing", "a net", saves=True)
    answer(evaluate_options)

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pipeline.base import command
from pipeline.base.command import UserError, check_known
from pipeline.base.layout import CONFIG
from pipeline.base.tables import print_json, print_table
from pipeline.data.dataset import Statistics
from pipeline.data.graphs import Normalization
from pipeline.data.tuned import with_queues
from pipeline.evaluation.cells import errors_cells, rate_cell
from pipeline.evaluation.datasets import Datasets, open_datasets
from pipeline.evaluation.elsewhere import weights_from_elsewhere
from pipeline.evaluation.foreign import WeightsFile, open_weights
from pipeline.evaluation.names import STATE_KEYS
from pipeline.evaluation.nets import TrainedNet, open_target
from pipeline.evaluation.protocols import find, protocol_names
from pipeline.evaluation.published import is_published
from pipeline.evaluation.request import EvaluationRequest, TestedRun
from pipeline.evaluation.score_files import ScoreFile, make, metric_kind, score_path, trial_suffix
from pipeline.evaluation.scoring import EvaluationSettings, GivenUp
from pipeline.process.stop import StopRequest
from pipeline.process.world import World, on_main, open_world, set_threads
from pipeline.run.options import load
from pipeline.tracking import is_delivered, log_evaluations

# Options of weights from elsewhere.
ELSEWHERE = ("arch", "preprocessing", "interpolation", "shortcut", "stride", "crop")


def main(argv: Sequence[str] | None = None) -> int:
    return evaluate(read_request(argv))


def read_request(argv: Sequence[str] | None = None) -> EvaluationRequest:
    """What a command line asks for. Raises UserError for options that do not go together."""
    args = evaluate_options().parse_args(argv)
    if args.scores is not None:
        check_writable(args.scores)
    return EvaluationRequest(
        model=model_of(args),
        directory=Path.cwd(),
        protocols=tuple(protocol_names(["center"] if args.protocol is None else args.protocol)),
        split=args.split,
        precision=args.precision,
        scores=args.scores,
        again=args.again,
        device=args.device,
        threads=args.threads,
        json=args.json,
    )


def model_of(args: Namespace) -> TestedRun | WeightsFile:
    """The model that is named: a run, or weights from elsewhere."""
    if args.target is None:
        return _from_elsewhere(args)
    _check_about_run(args)
    return TestedRun(
        target=args.target,
        weights=args.weights or "final",
        data=args.data,
        mean=args.mean,
        std=args.std,
        short_side=args.short_side,
    )


def _from_elsewhere(args: Namespace) -> WeightsFile:
    place = args.weights if args.weights_file is None else args.weights_file
    if place is None:
        raise UserError(
            "name either a run folder (or checkpoint) or weights from elsewhere, --weights FILE: see --help"
        )
    if place in STATE_KEYS or None not in (args.weights, args.weights_file):
        raise UserError(
            f"--weights {args.weights} goes with a run: of weights from elsewhere give the file, and --weights-key where "
            "it holds several sets"
        )
    return weights_from_elsewhere(str(place), args)


def _check_about_run(args: Namespace) -> None:
    """Raise UserError where a run is named, and options that go with weights from elsewhere."""
    if args.weights not in (None, *STATE_KEYS) or args.weights_file is not None:
        if args.weights_file is None and not (is_published(args.weights) or Path(args.weights).exists()):
            check_known("set of a run's weights", args.weights, STATE_KEYS)
        raise UserError("name either a run folder (or checkpoint) or weights from elsewhere, and not both")
    if args.weights_key is not None:
        raise UserError("--weights-key goes with weights from elsewhere: of a run, --weights chooses the weights")
    if any(getattr(args, name) is not None for name in ELSEWHERE):
        options = ", ".join(f"--{name}" for name in ELSEWHERE)
        raise UserError(f"{options} go with weights from elsewhere: a run's config knows them")


def check_writable(scores: Path) -> None:
    """Raise UserError where a file or folder stands in the way of the score file."""
    standing = next(folder for folder in scores.absolute().parents if folder.exists())
    if not standing.is_dir() or scores.is_dir():
        where = scores if scores.is_dir() else standing
        raise UserError(f"--scores {scores} cannot be written ({where} stands there): name another file")


def evaluate(request: EvaluationRequest, asked: Callable[[], int | None] | None = None) -> int:
    """Make the score files and print the errors; the exit code. A collective: every rank calls it.

    asked: the number of a signal that asks to stop by another way (`StopRequest`). The scores so far are kept then.
    """
    with StopRequest(KEEPING_SCORES, elsewhere=asked) as stop:
        with open_world(request.device) as world:
            stop.meet(world)
            set_threads(world, request.threads)
            trained = open_model(request, world)

            def give_up() -> bool:
                stop.has_work()
                return stop.agreed()

            try:
                results = score(trained, request, world, give_up)
            except GivenUp:
                say(going_on("stopped: the scores so far are kept"))
                return stop.code
            stop.drain()
        stop.all_is_saved(going_on("the scores are saved, but MLflow may lack them"))
        if world.is_main:
            print_result(trained, results, request.json)
            tell_mlflow(trained)
    return 0


def open_model(request: EvaluationRequest, world: World) -> TrainedNet:
    """The model that is to be tested, the same on every rank. A collective: every rank calls it."""
    model, base = request.model, request.base
    if isinstance(model, WeightsFile):
        return open_weights(model, base)
    return open_target(base / model.target, model.weights, model.data, world, base)


def score(
    trained: TrainedNet, request: EvaluationRequest, world: World, give_up: Callable[[], bool] = lambda: False
) -> list[ScoreFile]:
    """The score file of each protocol, made or found, and recorded; none on ranks other than 0. give_up: as in `score_split`.

    A collective: every rank calls it.
    """
    datasets = open_datasets(trained)
    dataset, split = datasets.tested, datasets.tested.split(request.split)
    settings = EvaluationSettings(
        short_side=request.model.short_side or trained.short_side,
        crop=trained.crop,
        normalization=normalization(datasets, request.model),
        loader=with_queues(trained.loader, world),
        precision=request.precision,
        resizing=trained.convention.resizing if trained.convention else None,
    )
    # float32 is float32: on the GPU, convolutions would otherwise round their inputs to TF32's 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    trained.net.to(world.device).to(memory_format=torch.channels_last)
    guarded = request.scores is not None or trained.run is None  # nothing in such a name tells two evaluations apart
    results = []
    for protocol in map(find, request.protocols):
        trial = trial_suffix(trained, dataset, protocol, settings)
        path = request.base / (request.scores or score_path(trained, protocol.name, split.name, trial))
        result = make(
            trained,
            split,
            dataset,
            protocol,
            settings,
            path,
            world=world,
            again=request.again,
            guarded=guarded,
            give_up=give_up,
        )
        on_main(world, partial(record, trained, result, trial))
        results.append(result)
    return [result for result in results if result is not None]


def normalization(datasets: Datasets, model: TestedRun | WeightsFile) -> Statistics | Normalization:
    """That of the weights' origin, or `--mean` and `--std`, else the statistics of the model's training dataset."""
    if model.mean is None:
        return datasets.statistics
    std = None if model.std is None else np.array(model.std, np.float32)
    return Normalization(np.array(model.mean, np.float32), std)


def record(trained: TrainedNet, result: ScoreFile | None, trial: str) -> None:
    """Add a score file's errors to the run's metrics.jsonl and note there, with the file, what `tell_mlflow` sends.

    A file that was found is added too: an attempt that was interrupted may not have come to that.
    """
    if trained.run is None or result is None:
        return
    provenance = result.scores.provenance
    evaluations: dict[str, dict[str, float]] = {}
    top1, top5 = result.scores.errors(1), result.scores.errors(5)
    if top1 is not None and top5 is not None:
        kind = metric_kind(provenance.protocol, provenance.split, trained.weights, trial)
        evaluations[kind] = {"top1_error": top1, "top5_error": top5}
    quiet = replace(load(trained.run / CONFIG).tracking, mlflow=False)  # the other ranks wait for this
    log_evaluations(trained.run, quiet, trained.iteration or 0, evaluations, [(result.path, "scores")])


def tell_mlflow(trained: TrainedNet) -> None:
    """Deliver to MLflow what was recorded, now or by an attempt that was interrupted before it delivered."""
    if trained.run is not None and not is_delivered(trained.run):
        log_evaluations(trained.run, load(trained.run / CONFIG).tracking, trained.iteration or 0, {})


def print_result(trained: TrainedNet, results: Sequence[ScoreFile], as_json: bool) -> None:
    """Print the table and, with `as_json`, the figures."""
    rows, figures = [], []
    for result in results:
        provenance, errors = result.scores.provenance, (result.scores.errors(1), result.scores.errors(5))
        rows.append((trained.name, provenance.protocol, *errors_cells(*errors), rate_cell(result.images_per_second)))
        figures.append(
            {
                "protocol": provenance.protocol,
                "top1_error": errors[0],
                "top5_error": errors[1],
                "images": len(result.scores),
                "images_per_second": result.images_per_second,
                "scores": str(result.path),
            }
        )
    split = results[0].scores.provenance.split
    title = f"{trained.arch} ({trained.checkpoint.name}) on {len(results[0].scores):,} images of {split}"
    print_table(title, ("net", "protocol", "top-1 error %", "top-5 error %", "images/s"), rows)
    if as_json:
        print_json({"net": trained.name, "arch": trained.arch, "split": split, "results": figures})


if __name__ == "__main__":
    command.run(main, kept=True)
