"""Train on a Ray cluster, by Ray Train: one that runs already (--address), or one that is started here and ends with the work.

python launch/ray_train.py --config configs/demo.yaml --workers 2
python launch/ray_train.py --workers 2 --evaluate demo/runs/resnet14-seed0 --protocol ten-crop
"""

from __future__ import annotations

from launch.on_ray.command_line import COMMAND_LINE
from pipeline.base.starting import begin
from pipeline.run.preview import launcher_line

if __name__ == "__main__":  # before the imports below, which take seconds
    begin(launcher_line, saves=True)
    COMMAND_LINE.answer_help()

import logging
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from launch.local import gpus
from launch.on_ray.worker import train
from launch.ranks.command_line import read_work
from launch.ranks.failure import print_cause, read_notes
from launch.ranks.follow import following
from launch.ranks.stopping import passing_on
from launch.ranks.work import Evaluation, Training
from pipeline.base import command
from pipeline.base.command import UserError
from pipeline.base.exits import EXIT_FAILED, EXIT_USER_ERROR
from pipeline.base.layout import CHECKPOINTS, LOGS, RAY, RAY_OUTCOME, RAY_STOP, rank_log
from pipeline.base.lock import NoLocksError, lock
from pipeline.base.stopping import NOTHING_TO_SAVE, end_now, ended_at_once, exit_code, going_on, say, typed_command
from pipeline.base.temporary import short_temporary_folder

SESSION, SESSION_LOCK = "resnet-ray-", "launcher"
SESSION_ROOM = 98  # bytes: /resnet-ray-XXXXXXXX/session_YYYY-MM-DD_HH-MM-SS_XXXXXX_PROCESS/sockets/plasma_store


def main(argv: Sequence[str] | None = None) -> int:
    """Do the work on Ray's workers and wait for the end; the exit code."""
    asked = read_work(argv, COMMAND_LINE)
    if asked is None:
        return 0
    work, args = asked
    workers = read_workers(args.workers, args.address)
    check_workers(work, workers)
    if isinstance(work, Training):
        work.check_start()
        work = work.absolute()  # workers have another working directory, perhaps on other hosts
    else:
        work.check_inputs()
    with ray_cluster(args.address, workers, args.cpus_per_worker) as devices:
        if args.address and not devices and work.device == "cuda":
            devices = 1  # asked for, so that a cluster that is scaled to none now may bring some
        elif args.address and not devices and work.device == "auto":
            print("warning: the cluster has no GPU: working on CPUs (--device cuda waits for GPUs)", file=sys.stderr)
            work = work.settled("cpu")
        workers = workers or (devices or 1,) * 2
        check_workers(work, workers)
        code = fit(work, workers, devices, args.cpus_per_worker, args.max_failures)
    if isinstance(work, Training) and args.json:  # pipeline.evaluate has a --json of its own
        work.print_summary(code)
    return code


def read_workers(text: str | None, address: str | None) -> tuple[int, int] | None:
    """`N` or `MIN:MAX` as (min, max); without `text` one worker per GPU of this machine. Raises UserError.

    None where there is no `text` but the address of a cluster: its GPUs are counted once the cluster answers.
    """
    if text is None:
        return None if address else (gpus() or 1,) * 2
    found = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high:
        raise UserError(f"--workers is '{text}': give a number of workers, or MIN:MAX with 1 <= MIN <= MAX")
    return low, high


def check_workers(work: Training | Evaluation, workers: tuple[int, int] | None) -> None:
    """Raise UserError where a training's batch cannot be divided among a number of workers between these two."""
    if isinstance(work, Training) and workers:
        for size in range(workers[0], workers[1] + 1):
            work.check_ranks(size)


@contextmanager
def ray_cluster(address: str | None, workers: tuple[int, int] | None, cpus: int) -> Iterator[int]:
    """Connect to Ray, or start it here for `workers` of `cpus` cores each; only processes with the token can connect to it.

    Yields the number of GPUs that workers can have: this machine's, or the cluster's (its head may have none itself).
    """
    quiet = {
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anyone
        # Needs ray[default]; without it Ray warns once a second.
        "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it logs what is printed, a second time
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS": "0",
    }
    if address is None:
        # Its servers listen at the loopback address alone. (Ray named the variable after the systems where it is the default.)
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    if os.environ["RAY_AUTH_MODE"] == "token":
        protect_token(create=address is None)
    import ray

    devices = 0 if address else gpus()
    quietly: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with ExitStack() as folders:
        try:
            if address is None:
                assert workers, "read_workers counts this machine's GPUs"
                # Workers and their GPUs by one count, torch's: Ray's own, by NVML, differs from it for slices of a GPU (MIG).
                here = {"num_cpus": max(workers[1] * cpus, 1), "num_gpus": devices}
                folder = folders.enter_context(session_folder())
                ray.init(**here, **quietly, include_dashboard=False, _temp_dir=folder)
            else:
                ray.init(**quietly, address=address)
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            raise UserError(
                f"no Ray cluster answers at '{address or 'this machine'}' ({' '.join(str(error).split())[:300]}): "
                "check --address, RAY_AUTH_MODE and the token in ~/.ray/auth_token"
            ) from None
        try:
            yield int(ray.cluster_resources().get("GPU", 0)) if address else devices
        finally:
            ray.shutdown()


@contextmanager
def session_folder() -> Iterator[str]:
    """A folder for the sockets and logs of the Ray that is started here. Those of launchers that were killed are removed."""
    place = short_temporary_folder(SESSION_ROOM)
    for old in place.glob(f"{SESSION}*/{SESSION_LOCK}"):
        with suppress(OSError, NoLocksError), open(old, "a", encoding="utf-8") as file:  # OSError: another user's
            if lock(file):
                shutil.rmtree(old.parent, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=SESSION, dir=place)
    with open(Path(folder, f"{SESSION_LOCK}.new"), "a", encoding="utf-8") as held:
        with suppress(NoLocksError):
            lock(held)
        os.replace(held.name, Path(folder, SESSION_LOCK))  # under this name another launcher finds it locked
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def protect_token(create: bool) -> None:
    """Make sure that there is a token and that only its owner can read it: its reader can run code on the cluster.

    Ray itself writes the file with mode 0644. Where no file can be written (a home folder that is read-only), a token that is
    to be created lasts as long as this process.
    """
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path("~/.ray/auth_token").expanduser())
    if path.exists():
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    elif create:
        token = secrets.token_hex(32)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                file.write(token)
        except OSError:
            os.environ["RAY_AUTH_TOKEN"] = token
    else:
        raise UserError(f"there is no token in {path}: copy the cluster's there (mode 0600), or set RAY_AUTH_TOKEN")


def fit(work: Training | Evaluation, workers: tuple[int, int], devices: int, cpus: int, max_failures: int) -> int:
    """Run one TorchTrainer around the workers' `train`; the exit code. `devices`: the GPUs that the workers can have."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from launch.on_ray.group import GroupConfig

    for name in ("ray", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    use_gpu = work.device != "cpu" and devices > 0
    if use_gpu:
        work = work.settled("cuda")  # workers that Ray gave a GPU do not fall back to the CPU
    launch = f"ray-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
    count = workers[0] if workers[0] == workers[1] else workers
    trainer = TorchTrainer(
        train,
        train_loop_config={"work": work, "attempt": launch, "command": typed_command()},
        scaling_config=ScalingConfig(num_workers=count, use_gpu=use_gpu, resources_per_worker={"CPU": cpus}),
        torch_config=GroupConfig(),
        run_config=RunConfig(
            name=launch,
            storage_path=str(work.folder / RAY),
            failure_config=FailureConfig(max_failures=max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),  # pointers; the run folder keeps the checkpoints
        ),
    )
    logs, error = work.folder / LOGS, None
    stop = logs / f"{launch}{RAY_STOP}"

    def ask(number: signal.Signals) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        stop.write_text(f"{int(number)}\n", encoding="utf-8")

    def end() -> NoReturn:
        end_now(signal.SIGINT, ended_at_once(work.folder / CHECKPOINTS))

    with passing_on(work.saving, ask, end) as requests, following(rank_log(work.folder, 0)):
        try:
            in_a_thread(trainer.fit)
        except Exception as failure:  # Ray has a class for each place of failure
            error = failure
    if failures := [failure for failure in read_notes(logs, launch) if error or failure.code == EXIT_USER_ERROR]:
        return print_cause(failures)
    if error:
        print(f"error: Ray Train gave up: {error}", file=sys.stderr)
        return EXIT_FAILED
    outcome = logs / f"{launch}{RAY_OUTCOME}"
    if requests.first is not None and not outcome.exists():
        say(going_on(NOTHING_TO_SAVE))
        return exit_code(requests.first)
    return int(outcome.read_text(encoding="utf-8"))


def in_a_thread(call: Callable[[], object]) -> None:
    """Call in another thread and raise what it raises: in the main thread Ray has a way of its own with Ctrl-C, which saves
    nothing.
    """
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(call)
        while not future.done():
            wait([future], 0.2)  # signals are answered between
        future.result()


if __name__ == "__main__":
    command.run(main, kept=True)
