"""Train on a Ray cluster, by Ray Train: an existing cluster (--address), or one made here for the occasion.

python launch/ray_train.py --config configs/demo.yaml --workers 2
python launch/ray_train.py --workers 2 --evaluate demo/runs/resnet14-seed0 --protocol ten-crop
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from launch.local import gpus
from launch.on_ray.worker import train
from launch.ranks.failure import conclude, read_notes
from launch.ranks.follow import following
from launch.ranks.work import EVALUATE_HELP, Training, Work, check_readable, evaluation, split_arguments
from pipeline.base import command
from pipeline.base.command import CommandParser, UserError, print_json
from pipeline.base.exits import EXIT_FAILED, EXIT_USER_ERROR
from pipeline.base.layout import LOGS, RAY, RAY_OUTCOME, rank_log
from pipeline.process.watchdog import COLLECTIVE_GRACE_SECONDS
from pipeline.run.config import Config, to_yaml
from pipeline.run.options import parse, parser
from pipeline.run.summary import summary
from pipeline.training.batchnorm import plan_groups

EXAMPLE = "python launch/ray_train.py --config configs/demo.yaml --workers 2"
EVALUATION_EXAMPLE = "python launch/ray_train.py --workers 2 --evaluate demo/runs/resnet14-seed0 --protocol ten-crop"


def options() -> ArgumentParser:
    """The command line: the config's values and the workers."""
    made = parser("Trains one net by Ray Train, or goes on with its run.", EXAMPLE)
    _add_workers(made)
    made.add_argument("--json", action="store_true", help="end with one line of JSON")
    made.add_argument("--evaluate", type=str, metavar="RUN ...", help=EVALUATE_HELP)
    return made


def evaluation_options() -> CommandParser:
    """The command line before `--evaluate`."""
    made = CommandParser("Tests one net on Ray's workers.", EVALUATION_EXAMPLE)
    _add_workers(made)
    return made


def _add_workers(made: ArgumentParser | CommandParser) -> None:
    made.add_argument(
        "--workers", type=str, help="N, or MIN:MAX to follow a cluster that grows and shrinks (default: 1 per GPU)"
    )
    made.add_argument("--cpus-per-worker", type=int, default=1, help="cores that Ray reserves for each worker")
    made.add_argument(
        "--address", type=str, help="a running cluster: auto, or HOST:PORT; default: processes on this machine"
    )
    made.add_argument("--max-failures", type=int, default=3, help="restarts after a lost worker or node; -1: no limit")


def run(argv: Sequence[str] | None = None) -> int:
    """Train under Ray and wait for the end; the exit code."""
    words, testing = split_arguments(sys.argv[1:] if argv is None else argv)
    if testing is not None:
        return run_evaluation(words, testing)
    config, own = parse(options(), words)
    if own.print_config:
        print(to_yaml(config), end="")
        return 0
    workers = read_workers(own.workers, own.address)
    check_workers(config, workers)
    # Workers have another working directory, on other hosts perhaps.
    data = config.data if "://" in config.data else str(Path(config.data).absolute())
    config = replace(config, runs=str(Path(config.runs).absolute()), data=data)
    with ray_cluster(own.address, workers, own.cpus_per_worker) as devices:
        if own.address and not devices and config.device == "cuda":
            devices = 1  # asked for, so that a cluster that is scaled to none now may bring some
        elif own.address and not devices and config.device == "auto":
            print(
                "warning: the cluster has no GPU now: training on CPUs (--device cuda waits for GPUs)", file=sys.stderr
            )
        workers = workers or (devices or 1,) * 2
        check_workers(config, workers)
        code = fit(Training(config), workers, devices, own.cpus_per_worker, own.max_failures, config)
    if own.json:
        print_json(summary(config, code))
    return code


def run_evaluation(words: Sequence[str], testing: Sequence[str]) -> int:
    """`--evaluate`: the workers score one net."""
    own = evaluation_options().parse_args(list(words))
    workers = read_workers(own.workers, own.address)
    work = evaluation(testing)
    check_readable(work)
    with ray_cluster(own.address, workers, own.cpus_per_worker) as devices:
        return fit(work, workers or (devices or 1,) * 2, devices, own.cpus_per_worker, own.max_failures)


def read_workers(text: str | None, address: str | None) -> tuple[int, int] | None:
    """`N` or `MIN:MAX` as (min, max); without `text` one per GPU of this machine. Raises UserError.

    None without `text` but with the address of a cluster, whose GPUs can be counted once it answers.
    """
    if text is None:
        return None if address else (gpus() or 1,) * 2
    found = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high:
        raise UserError(f"--workers is '{text}': give a number of workers, or MIN:MAX with 1 <= MIN <= MAX")
    return low, high


def check_workers(config: Config, workers: tuple[int, int] | None) -> None:
    """Raise UserError where a number of workers between these does not divide the batch into its groups."""
    for size in range(workers[0], workers[1] + 1) if workers else ():
        plan_groups(config.batch, config.bn_group, 0, size)


@contextmanager
def ray_cluster(address: str | None, workers: tuple[int, int] | None, cpus: int) -> Iterator[int]:
    """Connect to Ray, or start it here for `workers` of `cpus` cores each, closed to whoever has not the token.

    Yields the number of GPUs that workers can have: this machine's, or the cluster's, whose head may have none itself.
    """
    quiet = {
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anyone
        # Needs ray[default]; without it Ray warns once a second.
        "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it logs what is printed a second time
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS": "0",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    if os.environ["RAY_AUTH_MODE"] == "token":
        protect_token(create=address is None)
    import ray

    try:
        if address is None:
            ray.init(
                num_cpus=max(workers[1] * cpus if workers else cpus, 1),
                include_dashboard=False,
                dashboard_host="127.0.0.1",
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(
            f"no Ray cluster answers at '{address or 'this machine'}' ({' '.join(str(error).split())[:300]}): "
            "check --address, RAY_AUTH_MODE and the token in ~/.ray/auth_token"
        ) from None
    try:
        yield int(ray.cluster_resources().get("GPU", 0)) if address else gpus()
    finally:
        ray.shutdown()


def protect_token(create: bool) -> None:
    """Make sure that the token exists and that only its owner can read it: who has it can run code on the cluster.

    Ray itself writes the file with mode 0644.
    """
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if path.exists():
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return
    if not create:
        raise UserError(f"there is no token in {path}: copy the cluster's there (mode 0600), or set RAY_AUTH_TOKEN")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


def fit(
    work: Work, workers: tuple[int, int], devices: int, cpus: int, max_failures: int, config: Config | None = None
) -> int:
    """One TorchTrainer around the workers' `train`; the exit code of pipeline.base.command's conventions.

    `devices`: the GPUs that the workers can have. `config`: for its device and timeout_seconds.
    """
    config = config or Config()
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    for name in ("ray", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    use_gpu = config.device != "cpu" and devices > 0
    launch = f"ray-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
    logs = work.folder / LOGS
    trainer = TorchTrainer(
        train,
        train_loop_config={"work": work, "attempt": launch},
        scaling_config=ScalingConfig(
            num_workers=workers[0] if workers[0] == workers[1] else workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if use_gpu else {})},
        ),
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo",
            timeout_s=int(config.timeout_seconds + COLLECTIVE_GRACE_SECONDS),
        ),
        run_config=RunConfig(
            name=launch,
            storage_path=str(work.folder / RAY),
            failure_config=FailureConfig(max_failures=max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),  # pointers; the run folder keeps the checkpoints
        ),
    )
    with following(rank_log(work.folder, 0)):
        error = _fit(trainer)
    if failures := [one for one in read_notes(logs, launch) if error or one.code == EXIT_USER_ERROR]:
        return conclude(failures)
    if error:
        print(f"error: Ray Train gave up: {error}", file=sys.stderr)
        return EXIT_FAILED
    return int((logs / f"{launch}{RAY_OUTCOME}").read_text())


def _fit(trainer: Any) -> Exception | None:
    try:
        trainer.fit()
    except Exception as error:  # Ray's own kinds of it, one for each place of failure
        return error
    return None


if __name__ == "__main__":
    command.run(run)
