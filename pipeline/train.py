"""Train one net: the whole story on one page. A launcher in launch/ starts it, or you: python -m pipeline.train

A run is a pure function of (dataset, config, seed); the number and kind of processes only decide how fast it is computed.
A run is a folder: starting a run whose folder exists continues it from its newest sound checkpoint.

    main(argv)                the command
    train(config)             opens the world, the dataset, the run folder and its newest checkpoint; closes them
    update_to_the_end(...)    the loop: update, log, evaluate, save, until the last iteration or a request to stop
"""

from __future__ import annotations

from pipeline.base.layout import CHECKPOINTS, CONFIG, newest_checkpoint
from pipeline.base.starting import begin
from pipeline.base.stopping import going_on, say
from pipeline.run.help import TRAINING, print_short_help
from pipeline.run.preview import training_line

if __name__ == "__main__":  # before the imports below, which take seconds
    begin(training_line, saves=True)
    print_short_help(*TRAINING)

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from typing import Any

from pipeline.base import command
from pipeline.base.command import UserError, check_printed
from pipeline.base.progress import Progress
from pipeline.base.tables import print_json, print_table
from pipeline.data.dataset import Dataset
from pipeline.data.storage import open_dataset
from pipeline.evaluation.scoring import GivenUp
from pipeline.handover.model_folder import write_model
from pipeline.initial.start import start_of
from pipeline.loop.profiling import profiled
from pipeline.loop.progress import RECOMPUTED_BN
from pipeline.loop.trainer import Trainer
from pipeline.process.stop import StopRequest
from pipeline.process.watchdog import Hang, watching
from pipeline.process.world import World, on_main, open_world, set_threads
from pipeline.run.config import Config, to_plain, to_yaml
from pipeline.run.epochs import misfits
from pipeline.run.folder import note_attempt, open_run
from pipeline.run.metering import metered
from pipeline.run.options import parse, parser
from pipeline.run.starting_point import starting_point_in
from pipeline.run.subtracted import unlike_means
from pipeline.run.summary import summary
from pipeline.tracking import Tracker, is_concluded, open_tracker
from pipeline.tracking.description import STARTS_FROM
from pipeline.tracking.inputs import dataset_facts
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.kernels import chosen_kernels

ERRORS = {  # columns of the closing table
    "train_error": "train error",
    "val_top1": "val top-1 error",
    "val_top5": "val top-5 error",
    "val_top1_ema": "top-1, EMA",
    "val_top1_recomputed_bn": "top-1, BN recomputed",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command `python -m pipeline.train`: one rank, or one of several under torchrun."""
    options = parser(*TRAINING)
    options.add_argument("--json", action="store_true", help="end with one line of JSON (rank 0)")
    config, args = parse(options, sys.argv[1:] if argv is None else argv)
    if args.print_config:
        print(to_yaml(config), end="")
        check_printed()
        return 0
    code = train(config)
    if args.json and os.environ.get("RANK", "0") == "0":
        print_json(summary(config, code))
    return code


def train(
    config: Config,
    on_hang: Callable[[Hang], None] = lambda hang: None,
    on_save: Callable[[], None] = lambda: None,
    asked: Callable[[], int | None] | None = None,
) -> int:
    """Start the run that `config` describes, or continue it. Every rank calls this; the launcher has set the environment.

    on_save: called on every rank, at the same iteration, whenever the run folder may have a newer checkpoint. on_hang:
    called where a rank hangs, before the process ends with EXIT_HUNG. asked: the number of a signal that asks to stop by
    another way (`StopRequest`).
    Returns 0 for a finished run, for one that was asked to stop and is saved what `pipeline.base.stopping.exit_code` says.
    Raises UserError.
    """
    with (
        StopRequest(checkpoints=config.run_folder / CHECKPOINTS, elsewhere=asked) as stop,
        watching(config.timeout_seconds, on_hang) as watchdog,
        chosen_kernels(config.device, deterministic=config.deterministic, benchmark=config.cudnn_benchmark),
        open_world(config.device, config.timeout_seconds, watchdog) as world,
    ):
        stop.meet(world)
        threads = set_threads(world, config.threads)
        watchdog.note("opening the dataset")
        dataset = open_dataset(config.data)
        if world.is_main:
            warn_of_misfits(config, dataset)
        watchdog.note("reading the weights to start from")
        start = start_of(config, dataset, world)
        config, starts_from = start.config, start.point.as_fact() if start.point else None
        watchdog.note("building the net and opening the run folder")
        with (
            closing(Trainer(config, dataset, world, start.weights)) as trainer,
            open_run(config, dataset, world, threads, starts_from) as (facts, check),
        ):
            checkpoints = Checkpoints(config.run_folder / CHECKPOINTS, config.checkpoint, check, trainer.misfit)
            watchdog.publish(config.run_folder, world.rank, world.size)
            watchdog.note("restoring")
            trainer.restore(checkpoints)
            already = trainer.progress.iteration == config.iterations
            if already and on_main(world, lambda: is_concluded(config.run_folder)):
                return print_result(trainer, "was finished already", 0)
            if not already:
                decoding = trainer.choose_decoder(facts["attempts"])
                note_attempt(config, world, facts, {**trainer.computing, **decoding}, check)
            # Without system metrics where no update is left: there is nothing to measure.
            beside = nullcontext() if already else metered(config, world, len(facts["attempts"]))
            with tracker_of(config, dataset, facts, world) as tracker, beside:

                def before_publishing() -> None:
                    check()
                    tracker.fsync()  # no checkpoint without the metrics that led to it

                checkpoints.check = before_publishing
                with closing(checkpoints):
                    try:
                        finished = already or update_to_the_end(trainer, checkpoints, tracker, stop, check, on_save)
                    except Exception:
                        check()  # where a later attempt has the run, this attempt's failure is not the run's
                        raise
                    if world.is_main:
                        secure_last_checkpoint(trainer, checkpoints, tracker, finished)
                stop.all_is_saved(last_line(trainer))
                watchdog.note("closing", limited=False)  # MLflow may take its time (tracking.close_seconds)
                on_save()
            return print_result(trainer, "finished" if finished else "stopped on request", 0 if finished else stop.code)


def warn_of_misfits(config: Config, dataset: Dataset) -> None:
    """Warn of a recipe that was made for far more images than the dataset has, or for a mean image of another size."""
    # The manifest's word: statistics that cannot be read must fail on every rank alike, and this is one rank.
    side = (dataset.manifest.statistics or {}).get("size")
    sentences = [] if side is None else [unlike_means(config, side)]
    if train_split := dataset.manifest.splits.get("train"):
        sentences += misfits(config, train_split.samples)
    for sentence in filter(None, sentences):
        print(f"warning: {sentence}", file=sys.stderr)


def update_to_the_end(
    trainer: Trainer,
    checkpoints: Checkpoints,
    tracker: Tracker,
    stop: StopRequest,
    check: Callable[[], None],
    on_save: Callable[[], None],
) -> bool:
    """Update until the last iteration; False where a request to stop came before, with everything saved.

    check: raises FencedError where a later attempt has the run. on_save: as in `train`.
    """
    config, world, progress = trainer.config, trainer.world, trainer.progress
    note = world.watchdog.note

    def log(kind: str, values: dict[str, float]) -> None:
        check()
        tracker.log(kind, progress.iteration, values)
        progress.logged[kind] = progress.iteration

    def evaluate() -> bool:
        """Log the val errors that are due; False where a request to stop came before the last of them."""
        # A checkpoint of the last iteration says that the run is finished: what belongs to the end is never given up.
        last = progress.iteration == config.iterations
        try:
            for kind, errors in trainer.evaluations((lambda: False) if last else stop.agreed):
                log(kind, errors)
                stop.has_work()
        except GivenUp:
            trainer.save(checkpoints)
            return False
        return True

    copying = config.loader.stage_to is not None  # of shards to a local disk: it takes hours
    note("opening the loader", progress.iteration, limited=not copying)
    with stop.ending_at_once(copying):
        opened = trainer.batches()
    bar = Progress(config.iterations, config.run_name, "it", start=progress.iteration, enabled=world.is_main)
    with opened as batches, bar:
        if not evaluate():  # what an earlier request to stop left to be done
            return False
        for batch in profiled(batches, trainer):
            if stop.agreed():
                trainer.save(checkpoints)
                return False
            for sentence in batch.substitutions:
                print(f"warning: {sentence}", file=sys.stderr)
            trainer.update(batch.images, batch.labels, batch.mixed)
            stop.has_work()
            done, last = progress.iteration, progress.iteration == config.iterations
            if done % config.tracking.log_every == 0 or last:
                note("log point", done)
                log("train", trainer.take_interval(batches))
            if not evaluate():
                return False
            if last and config.recomputes_bn:
                note("recomputing BN statistics", done)
                log(RECOMPUTED_BN, trainer.recompute_statistics())
            best = config.checkpoint.keep_best and progress.best_iteration == done
            if done % config.checkpoint.every == 0 or last or best:
                trainer.save(checkpoints)
                on_save()  # the checkpoint before this one is written by now
            bar.advance(**trainer.figures)
            note("waiting for data", done)
    note("leaving")
    stop.drain()
    return True


def tracker_of(config: Config, dataset: Dataset, facts: dict[str, Any], world: World) -> Tracker:
    """The run's metrics.jsonl and MLflow run, on the main rank; a null tracker on the others."""
    attempt = facts["attempts"][-1]
    tags = {"arch": config.arch, "dataset_sha256": facts["dataset_sha256"]}
    of_the_start = ("git_commit", "launcher", "world_size", "device", "host", "threads")
    # Missing where the attempt had nothing to do.
    of_the_work = ("compiled", "decode_on", "hw_decoder_load", "nvimgcodec", "dali")
    tags |= {key: str(attempt[key]) for key in (*of_the_start, *of_the_work) if key in attempt}
    if point := starting_point_in(facts):
        tags[STARTS_FROM] = str(point)
    folder, name, params = config.run_folder, config.run_name, to_plain(config)
    data = dataset_facts(dataset.manifest, dataset.sha256, config.data)
    tracker = open_tracker(
        folder, config.tracking, name=name, params=params, tags=tags, dataset=data, enabled=world.is_main
    )
    if world.is_main:
        tracker.artifact(config.run_folder / CONFIG)
    return tracker


def secure_last_checkpoint(trainer: Trainer, checkpoints: Checkpoints, tracker: Tracker, finished: bool) -> None:
    """Wait until the last checkpoint is on the disk, describe a finished run's model, and tell MLflow how the run ended.

    Raises UserError where the last checkpoint of a finished run was not written. A run that was asked to stop goes on from
    the checkpoint before.
    """
    if not checkpoints.settle() and finished:
        raise UserError(
            f"the last checkpoint could not be written to {checkpoints.folder}: free some space and start the same command "
            "again, which goes on from the checkpoint before it"
        )
    if finished and (newest := checkpoints.newest()) is not None:
        tracker.artifact(newest.path, CHECKPOINTS)
        write_model(trainer.config.run_folder, trainer.config, trainer.dataset, newest)
    tracker.finish("FINISHED" if finished else "KILLED")


def print_result(trainer: Trainer, outcome: str, code: int) -> int:
    """Print the closing table on the main rank, and how to go on where the run is not finished; `code`, the exit code."""
    config, progress = trainer.config, trainer.progress
    if trainer.world.is_main:
        columns, row = closing_table(config, progress.iteration, progress.errors, trainer.dataset.classes)
        print_table(
            f"{config.run_folder} {outcome}", columns, [row]
        )  # in the title: a column of it would not fit a terminal
        if code:
            say(last_line(trainer))
    return code


def closing_table(
    config: Config, iteration: int, errors: Mapping[str, float], classes: int
) -> tuple[list[str], list[str]]:
    """(columns, row) of the closing table: 80 characters wide at most. errors: in percent, by the keys of ERRORS.

    Among five classes or fewer every answer is within the top five: no column says so.
    """
    shown = [key for key in ERRORS if key in errors and (classes > 5 or key != "val_top5")]
    columns = ["net", "iterations", *(f"{ERRORS[key]} %" for key in shown)]
    return columns, [
        config.arch,
        f"{iteration:,} of {config.iterations:,}",
        *(f"{errors[key]:.2f}" for key in shown),
    ]


def last_line(trainer: Trainer) -> str:
    """What was saved of the run, by its newest checkpoint, and the command that goes on."""
    config = trainer.config
    newest, _ = newest_checkpoint(config.run_folder / CHECKPOINTS) or (0, None)
    if newest == config.iterations:
        return going_on(f"finished and saved, at iteration {newest:,}; MLflow may lack the last lines")
    lost = trainer.progress.iteration - newest
    missing = f" ({lost:,} updates after it could not be saved)" if lost > 0 else ""
    return going_on(f"saved at iteration {newest:,} of {config.iterations:,}{missing}")


if __name__ == "__main__":
    command.run(main, kept=True)
