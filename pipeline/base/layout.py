"""Contract 5: a run is a folder. Every name in that folder, and how names with parts are made and read, stand here.

What a file holds is described by the module that its comment names. Imports the standard library alone.
"""

from __future__ import annotations

import itertools
import os
import re
from contextlib import suppress
from pathlib import Path

# Written by a training (pipeline/run/folder.py), by rank 0 alone.
CONFIG = "config.yaml"  # the resolved config
RUN = "run.json"  # what the run is made from, and the attempts so far
CHECKPOINTS = "checkpoints"  # folder of ITERATION-DIGEST.pt (pipeline/training/checkpoint.py)
SET_ASIDE = ".damaged"  # behind the name of a checkpoint that was passed over; nothing reads it, its user may remove it
PROFILE = "profile"  # folder of the traces of `--profile`, named by `profile_trace` (pipeline/loop/profiling.py)
NONFINITE = "nonfinite.jsonl"  # updates whose loss or gradient was not a number (pipeline/loop/trainer.py)
LOCK = ".lock"  # held by the process that writes the run (pipeline/base/lease.py)
LEASE = ".lease"  # which attempt of which job that process is

# Metrics, and MLflow's copy of them (pipeline/tracking).
METRICS = "metrics.jsonl"  # every metric of the run: a line of JSON each
LOST_METRICS = "metrics.lost"  # made by a user: the run may go on without lines that are lost (pipeline/run/folder.py)
TRACKING = "tracking.json"  # what MLflow is to know of the run beside its metrics
DELIVERED = "mlflow.json"  # what MLflow knows of the run by now
SYSTEM = "system"  # folder of HOST-ATTEMPT.jsonl: how busy a machine was, and its energy (pipeline/meter)
MLFLOW_STORE, MLFLOW_ARTIFACTS = "mlflow.db", "mlartifacts"  # beside the run folders, where nothing else is configured

# What is made of a trained net (pipeline/evaluation).
SCORES = "scores"  # folder of score files, named by `score_path_in`
PARTIAL_SCORES = ".partial.npz"  # suffix beside a score file: an evaluation that was interrupted
SPEED = ".json"  # suffix beside a score file: how fast the file was made
MODEL = "model"  # folder: a finished run's net, its weights by reference (pipeline/handover/model_folder.py)
ML_MODEL, MODEL_FACTS = "MLmodel", "model.json"  # in that folder: MLflow's description of the model, and ours
MISTAKES = ".mistakes"  # suffix beside a score file: folder of what the net gets wrong (pipeline/mistakes.py)
RESPONSES, RESPONSES_FIGURE = "responses.json", "responses.svg"  # the layers' responses (pipeline/responses.py)
ENSEMBLE = "ensemble.json"  # the errors of an ensemble, which has a folder of its own (pipeline/ensemble.py)
EVALUATION = "evaluation"  # folder with the logs/ and slurm/ of an evaluation that a launcher started

# What the ranks and their launchers leave.
ACTIVITY = "activity"  # folder: what each rank did last (pipeline/process/watchdog.py)
LOGS = "logs"  # folder: the ranks' output, and why ranks failed (launch/ranks/failure.py)
FEEDER_LOG = f"{LOGS}/mlflow.log"  # what MLflow and its libraries have to say
SLURM = "slurm"  # folder: SLURM's scripts, pickles and logs, as submitit names them
JOB_FAILURES = ".failures"  # suffix behind a job in slurm/: a line for each crashed attempt (launch/on_slurm/ending.py)
RAY = "ray"  # folder: what Ray Train stores of each launch
RAY_STOP = "-stop"  # suffix behind a launch in logs/: the number of the signal that asks its workers to stop
RAY_OUTCOME = "-outcome"  # suffix behind a launch in logs/: the exit code of rank 0

# What a training makes under these names, and what every command on a run folder relies on (pipeline/base/entries.py).
FILES = (CONFIG, RUN, NONFINITE, LOCK, LEASE, METRICS, TRACKING, DELIVERED)
FOLDERS = (CHECKPOINTS, PROFILE, SYSTEM, SCORES, MODEL, EVALUATION, ACTIVITY, LOGS, SLURM, RAY)

_SYSTEM_FILE = re.compile(r"(.+)-(\d{4,})\.jsonl")
_CHECKPOINT = re.compile(r"(\d{8})-([0-9a-f]{16})\.pt")


def checkpoint_name(iteration: int, sha256: str) -> str:
    """The file of a checkpoint after `iteration` updates; `sha256` of its contents."""
    return f"{iteration:08d}-{sha256[:16]}.pt"


def checkpoint_parts(path: Path) -> tuple[int, str] | None:
    """(iteration, digest: the start of the contents' SHA-256) of a checkpoint's file; None for any other name."""
    match = _CHECKPOINT.fullmatch(path.name)
    return (int(match[1]), match[2]) if match else None


def checkpoints_in(folder: Path) -> list[tuple[int, Path]]:
    """(iteration, file) of every checkpoint in a run's checkpoints folder, oldest first, by name alone; [] without a folder.

    Raises OSError where the folder cannot be read: it may hold checkpoints.
    """
    names: list[str] = []
    with suppress(FileNotFoundError):
        names = os.listdir(folder)
    files = [(parts, path) for path in map(folder.joinpath, names) if (parts := checkpoint_parts(path))]
    return [(iteration, path) for (iteration, _), path in sorted(files)]


def newest_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """The last of `checkpoints_in`, by name alone; None where there is none, or the folder cannot be read."""
    try:
        return max(checkpoints_in(folder), default=None)
    except OSError:
        return None


def set_aside_name(checkpoint: Path) -> Path:
    """A free name beside a checkpoint that is not to be used: ITERATION-DIGEST.pt.damaged, or with a number behind it."""
    names = itertools.chain([SET_ASIDE], (f"{SET_ASIDE}-{number}" for number in itertools.count(2)))
    places = (checkpoint.with_name(checkpoint.name + name) for name in names)
    return next(place for place in places if not os.path.lexists(place))


def profile_trace(run: Path, first: int, last: int) -> Path:
    """The trace of the updates from iteration `first` up to `last`, without it."""
    return run / PROFILE / f"{first:08d}-{last:08d}.json.gz"


def weights_suffix(weights: str) -> str:
    """How file names and metrics show a net's weights: nothing for the final ones and for those from elsewhere."""
    return "" if weights in ("final", "file") else f"-{weights}"


def score_path_in(run: Path, protocol: str, split: str, iteration: int, weights: str, trial: str = "") -> Path:
    """Where a run's score file stands; without `trial` the canonical one."""
    return run / SCORES / f"{protocol}-{split}-{iteration:08d}{weights_suffix(weights)}{trial}.npz"


def score_files_in(run: Path, protocol: str, split: str, weights: str) -> list[tuple[int, Path]]:
    """(iteration, file) of every canonical score file of a run, oldest first."""
    name = re.compile(re.escape(f"{protocol}-{split}-") + r"(\d{8,})" + re.escape(weights_suffix(weights)) + r"\.npz")
    files = [(match, path) for path in (run / SCORES).glob("*.npz") if (match := name.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in files)


def is_score_file(path: Path) -> bool:
    """Whether a file in scores/ is whole, by its name."""
    return path.suffix == ".npz" and not path.name.endswith(PARTIAL_SCORES) and not path.name.startswith(".")


def plain_host(host: str) -> str:
    """A host's name with characters alone that a file's name may hold."""
    return re.sub(r"[^\w.-]", "_", host) or "_"


def system_file(folder: Path, host: str, attempt: int) -> Path:
    """Where the samples of a machine in one attempt (numbered from 1) stand."""
    return folder / SYSTEM / f"{plain_host(host)}-{attempt:04d}.jsonl"


def system_files(folder: Path) -> list[Path]:
    """The files of all machines and attempts, oldest attempt first."""
    files = [
        (match, path) for path in (folder / SYSTEM).glob("*.jsonl") if (match := _SYSTEM_FILE.fullmatch(path.name))
    ]
    return [path for _, _, path in sorted((int(match[2]), match[1], path) for match, path in files)]


def sampler_log(folder: Path, host: str) -> Path:
    """What the sampler of a machine has to say: what it cannot measure."""
    return folder / LOGS / f"system-{plain_host(host)}.log"


def activity_of(folder: Path, rank: int) -> Path:
    """The file that says what `rank` did last."""
    return folder / ACTIVITY / f"rank-{rank}.json"


def rank_log(folder: Path, rank: int) -> Path:
    """Where the output of `rank` goes (SLURM has logs of its own: `job_log`)."""
    return folder / LOGS / f"rank-{rank}.log"


def failure_note(logs: Path, attempt: str, rank: int) -> Path:
    """The file in logs/ that says why `rank` failed in `attempt`."""
    return logs / f"{attempt}-rank-{rank}.json"


def failure_notes(logs: Path, attempt: str = "*") -> list[tuple[str, Path]]:
    """(attempt, file) of every failure noted in logs/, or of those of one attempt."""
    return [(path.name.rpartition("-rank-")[0], path) for path in logs.glob(f"{attempt}-rank-*.json")]


def job_log(job: str, rank: int = 0) -> str:
    """The file in slurm/ that a rank of a job writes to, as submitit names it."""
    return f"{job}_{rank}_log.err"


def jobs_in(folder: Path) -> list[str]:
    """The ids of the jobs ever submitted for a run, by the scripts that submitit left in slurm/."""
    names = {path.name.partition("_")[0] for path in (folder / SLURM).glob(job_script(Path(), "*").name)}
    return sorted((name for name in names if name.isdecimal()), key=int)


def job_script(folder: Path, job: str) -> Path:
    """The script that submitit submitted as `job`. folder: submitit's."""
    return folder / f"{job}_submission.sh"
