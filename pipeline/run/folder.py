"""Contract 5: a run is a folder. Opening one starts it or continues it; where it cannot be continued, says why.

The folder's names stand in pipeline/base/layout.py. run.json holds `dataset_sha256`, the dataset's identity; `trajectory`,
the TRAJECTORY of the code that the run was started with (a run without one counts as 1); `starts_from`, where the run has an
`init` (starting_point.py); and `attempts`, each with its git commit, versions, hardware and how it computed. A run is
continued only with equal values, an equal dataset and code of an equal TRAJECTORY, and only where its config.yaml is there to
compare with.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TypeGuard

import torch

from pipeline.base.attempt import LAUNCHER_VARIABLE
from pipeline.base.command import UserError
from pipeline.base.entries import check_entries
from pipeline.base.files import sync_folder, write_text
from pipeline.base.json_text import parse_json
from pipeline.base.layout import CHECKPOINTS, CONFIG, LOST_METRICS, METRICS, RUN, checkpoints_in
from pipeline.base.lease import Lease
from pipeline.base.regular import read_regular
from pipeline.base.stopping import say
from pipeline.data.dataset import Dataset
from pipeline.process.world import World, on_main
from pipeline.run.config import TRAJECTORY, Config, changes, departures, to_yaml, trajectory
from pipeline.run.options import load
from pipeline.tracking.journal import read_metrics
from pipeline.training.checkpoint import UnsoundError, read_verified

# DALI's package is named after its CUDA version; one of the two is installed.
DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
STARTS_FROM = "starts_from"  # in run.json
PACKAGES = ("torch", "torchvision", *DALI, "numpy", "ray", "mlflow", "submitit", "webdataset")


@contextmanager
def open_run(
    config: Config, dataset: Dataset, world: World, threads: int, starts_from: Mapping[str, Any] | None = None
) -> Iterator[tuple[dict[str, Any], Callable[[], None]]]:
    """Start the run that `config` names or continue it, and hold it against other writers; (facts, check).

    starts_from: what run.json is to say of the weights that a run starts from which begins now.
    facts: what run.json holds. check: raises FencedError where this attempt must write no more.
    A collective: every rank calls it. Raises UserError, on every rank, where the folder belongs to a run with other values
    or data or of code that computed something else, where the run's files are lost or damaged, or another process is
    writing it.
    """
    lease: Lease | None = None

    def start() -> dict[str, Any]:
        nonlocal lease
        folder = config.run_folder
        folder.mkdir(parents=True, exist_ok=True)
        check_same(config, dataset)  # before the lease, so that a refusal writes nothing
        lease = Lease(folder)
        check_same(config, dataset)  # another process may have written the folder until now
        facts = read_facts(folder)
        if not (folder / CONFIG).exists():  # the run begins now, also where an attempt came no further than run.json
            facts |= {"dataset_sha256": dataset.sha256, "trajectory": TRAJECTORY}
            facts |= {STARTS_FROM: dict(starts_from)} if starts_from else {}
        facts = {"dataset_sha256": dataset.sha256, "attempts": [], **facts}
        facts["attempts"].append(_attempt(world, threads))
        if other_code(facts):  # the run is finished, and its record keeps the code that trained it
            return facts
        # run.json first: where config.yaml stands, what the run is made from stands too.
        _write_facts(folder, facts)
        write_text(folder / CONFIG, to_yaml(config))
        for place in (folder, folder.parent):
            sync_folder(place)
        return facts

    try:
        facts = on_main(world, start)
        yield facts, lease.check if lease else lambda: None
    finally:
        if lease is not None:
            lease.release()


def note_attempt(
    config: Config, world: World, facts: dict[str, Any], values: Mapping[str, Any], check: Callable[[], None]
) -> None:
    """Add `values` to the run's last attempt in `facts`, on every rank, and in run.json, on the main rank.

    check: as `open_run` gives it.
    """
    facts["attempts"][-1] |= values
    if world.is_main:
        check()
        _write_facts(config.run_folder, facts)


def _write_facts(folder: Path, facts: dict[str, Any]) -> None:
    write_text(folder / RUN, json.dumps(facts, indent=1) + "\n")


def check_same(config: Config, dataset: Dataset | None) -> None:
    """Raise UserError where the run folder of `config` holds a run of other values, data or code, which cannot go on here.

    `dataset`: None where it is not at hand; the data are not compared then.
    """
    folder = config.run_folder
    check_entries(folder)
    if sentence := lost_config(folder):
        raise UserError(sentence)
    if not (folder / CONFIG).exists():
        return
    changed = departures(load(folder / CONFIG), config)
    facts = read_facts(folder)
    if dataset is not None and facts.get("dataset_sha256", dataset.sha256) != dataset.sha256:
        changed.append(f"the dataset's content: {facts['dataset_sha256'][:12]} -> {dataset.sha256[:12]}")
    if changed:
        raise UserError(
            f"the run folder {folder} was started with other values ({'; '.join(changed)}): "
            "use the same values to continue it, or choose another --name"
        )
    if (other := other_code(facts)) and not is_finished(config):
        _, remedy = _last_code(facts)
        raise UserError(
            f"the run folder {folder} was started by code that computes something else ({other}): "
            f"{remedy} to continue it, or choose another --name"
        )


def origin_of(config: Config, dataset_sha256: str) -> dict[str, Any]:
    """What a checkpoint holds of the run that it belongs to: the values that decide what the run computes, and the data."""
    return {"values": trajectory(config), "dataset_sha256": dataset_sha256}


def foreign(state: Mapping[str, Any], config: Config, dataset_sha256: str | None) -> str | None:
    """Why a checkpoint's state is of another run than that of `config`, as a clause; None where nothing says that it is.

    dataset_sha256: None where it is not known. Values that only one of the two versions of the code has are not compared.
    """
    origin = state.get("origin")
    if not isinstance(origin, Mapping) or not isinstance(origin.get("values"), Mapping):
        return None  # of a version that did not record it
    differing = changes(origin["values"], trajectory(config))
    known = [f"{key}: {theirs} -> {ours}" for key, (theirs, ours) in differing.items() if None not in (theirs, ours)]
    if dataset_sha256 is not None and origin.get("dataset_sha256") != dataset_sha256:
        known.append("the dataset's content")
    return f"it is of another run ({'; '.join(known)})" if known else None


def lost_config(folder: Path) -> str | None:
    """The sentence for a run folder with checkpoints and no config.yaml: nothing says of which values they are. Else None."""
    if (folder / CONFIG).exists() or not checkpoints_in(folder / CHECKPOINTS):
        return None
    return (
        f"{folder / CONFIG} is missing, and the checkpoints of a run are there: "
        f"put the run's {CONFIG} back to continue it, or choose another --name"
    )


def check_metrics(folder: Path, logged: Mapping[str, int]) -> None:
    """Raise UserError where metrics.jsonl lacks lines that a run had written before its checkpoint.

    logged: the last iteration of each kind of line, as the checkpoint states it. The updates behind those lines are never
    computed again, so the lines would be lost for good: a warning is all where a file LOST_METRICS says that they are.
    """
    path, there = folder / METRICS, {(record.kind, record.iteration) for record in read_metrics(folder / METRICS)}
    lost = [
        f"{kind} of iteration {iteration:,}" for kind, iteration in logged.items() if (kind, iteration) not in there
    ]
    if not lost:
        return
    sentence = f"{path} lacks lines that stood there when the run's checkpoint was written ({', '.join(lost)})"
    if not (folder / LOST_METRICS).exists():
        raise UserError(
            f"{sentence}: put the file back, or, to go on without them for good, make a file {folder / LOST_METRICS}"
        )
    say(f"warning: {sentence}; {LOST_METRICS} is there: the run goes on without them")


def other_code(facts: dict[str, Any]) -> str | None:
    """How the TRAJECTORY of a run (its run.json is `facts`) differs from this code's; None where they are equal."""
    number = facts.get("trajectory", 1)  # runs from before it was recorded count as 1: nothing had changed
    if number == TRAJECTORY:
        return None
    version, _ = _last_code(facts)
    return f"TRAJECTORY: the run's {number} -> this code's {TRAJECTORY}; it was last trained by {version}"


def last_commit(folder: Path) -> str:
    """The git commit that last trained the run in `folder`; "unknown" where none is recorded."""
    attempts = read_facts(folder).get("attempts") or [{}]
    return str(attempts[-1].get("git_commit", "unknown"))


def _last_code(facts: dict[str, Any]) -> tuple[str, str]:
    """The code of a run's last attempt in words, and how to get that code again."""
    attempts = facts.get("attempts") or [{}]
    commit = attempts[-1].get("git_commit", "unknown")
    if commit == "unknown":
        return "a commit that is not recorded", "use the code that it was started with"
    if commit.endswith("-dirty"):
        changed = f"commit {commit.removesuffix('-dirty')} with uncommitted changes"
        return changed, "check out that commit and make the same changes"
    return f"commit {commit}", "check out that commit"


def is_finished(config: Config) -> bool:
    """Whether all is computed: a sound checkpoint of the last iteration is there. Reads that checkpoint."""
    checkpoints, data = checkpoints_in(config.run_folder / CHECKPOINTS), trained_on(config.run_folder)
    return any(iteration == config.iterations and is_own(path, config, data) for iteration, path in checkpoints)


def is_own(checkpoint: Path, config: Config, dataset_sha256: str | None) -> bool:
    """Whether a file is a sound checkpoint of the run of `config`. For the others as `foreign`."""
    try:
        return foreign(read_verified(checkpoint).state, config, dataset_sha256) is None
    except UnsoundError:
        return False


def read_facts(folder: Path) -> dict[str, Any]:
    """run.json, whose keys the module describes; {} where the run has not begun.

    Raises UserError where it is damaged.
    """
    path = folder / RUN
    try:
        facts = parse_json(read_regular(path)) if path.exists() else {}
    except ValueError:
        facts = None
    if not _are_facts(facts):
        raise UserError(
            f"{path} is damaged (it is not what a run wrote): put its copy back, or train under another --name"
        )
    return facts


def trained_on(folder: Path) -> str | None:
    """The SHA-256 of the dataset that a run was trained on; None where run.json does not say it. Raises as `read_facts`."""
    return read_facts(folder).get("dataset_sha256")


def _are_facts(found: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a run can have written this as run.json. Every key may be missing: older runs have fewer."""
    if not isinstance(found, dict):
        return False
    attempts = found.get("attempts", [])
    return (
        isinstance(found.get("dataset_sha256", ""), str)
        and type(found.get("trajectory", 1)) is int  # isinstance would take True for a number
        and isinstance(found.get(STARTS_FROM, {}), dict)
        and isinstance(attempts, list)
        and all(isinstance(one, dict) and isinstance(one.get("git_commit", ""), str) for one in attempts)
    )


def _attempt(world: World, threads: int) -> dict[str, Any]:
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
        "launcher": os.environ.get(LAUNCHER_VARIABLE, "none"),
        "world_size": world.size,
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
        "threads": threads,
        "python": platform.python_version(),
        "git_commit": git_commit(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The version of each package that decides what a run computes, or "not installed"; of DALI's, those installed."""
    installed = {package: [*metadata.distributions(name=package)] for package in PACKAGES}
    return {
        package: found[0].version if found else "not installed"
        for package, found in installed.items()
        if found or package not in DALI
    }


def git_commit() -> str:
    """The commit of this code, `-dirty` added where files differ from it; `unknown` outside a checkout."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        here = Path(__file__).resolve().parent
        return subprocess.run(
            command,
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
            encoding="utf-8",
            errors="replace",
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
