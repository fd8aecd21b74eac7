"""The commands that the runner executes: launchers and evaluation commands, as a user would type them.

Each is a process of its own: signals, exit code and memory belong to one run.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, get_args

from launch import local, ray_train, slurm
from paper.names import Launcher
from paper.spec import Experiment, RunSpec, arguments, resolve
from pipeline import ensemble, evaluate
from pipeline.base.command import UserError
from pipeline.base.exits import EXIT_INTERRUPTED, EXIT_PREEMPTED
from pipeline.base.stopping import Requests, exit_code, heeded
from pipeline.run.config import Config, differences, trajectory
from pipeline.run.options import key_names

LAUNCHERS: dict[Launcher, ModuleType] = {"local": local, "slurm": slurm, "ray": ray_train}
assert tuple(LAUNCHERS) == get_args(Launcher), "paper/names.py must name each launcher, in this order"
STOPPED = (EXIT_PREEMPTED, EXIT_INTERRUPTED)
# Options that the experiment sets.
RESERVED = {
    "config",
    "json",
    "print_config",
    "dry_run",
    "name",
    "data",
    "runs",
    "procs",
    "workers",
    "scale_batch",
    "epochs",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The command line, but for the experiment and its rows.

    data, runs: None for the base config's. surroundings: options of config keys that do not change what a run computes.
    options: the launcher's.
    """

    launcher: Launcher = "local"
    data: str | None = None
    runs: Path | None = None
    scale: float = 1.0
    procs: int | None = None
    surroundings: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def split_options(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words behind `--` as (options of config keys, options of the launcher)."""
    surroundings: list[str] = []
    options: list[str] = []
    target = options
    for word in words:
        if word.startswith("--"):
            key = word[2:].partition("=")[0].replace("-", "_")
            if key in RESERVED:
                raise UserError(f"{word} must not stand behind '--': the experiment sets it (see --help)")
            target = surroundings if key in key_names() else options
        target.append(word)
    return tuple(surroundings), tuple(options)


def check_surroundings(experiment: Experiment, settings: Settings) -> None:
    """Raise UserError where an option behind `--` would change what the runs compute."""
    for spec in experiment.runs:
        wanted = resolve(spec, settings.data, settings.runs, settings.scale)
        given = resolve(spec, settings.data, settings.runs, settings.scale, settings.surroundings)
        if changed := differences(trajectory(wanted), trajectory(given)):
            raise UserError(
                f"the options behind '--' change what {wanted.run_name} computes ({'; '.join(changed)}): write an experiment "
                "file of your own, with 'overrides' and a 'variant' that names them (docs/experiments.md)"
            )


def training(spec: RunSpec, settings: Settings) -> list[str]:
    """The command that trains a run, or resumes it."""
    words = arguments(spec, settings.data, settings.runs, settings.scale, settings.surroundings)
    count = "--workers" if settings.launcher == "ray" else "--procs"
    words += [] if settings.procs is None else [f"{count}={settings.procs}"]
    return [sys.executable, "-m", LAUNCHERS[settings.launcher].__name__, *words, *settings.options]


def evaluation(experiment: Experiment, config: Config, missing: Sequence[str], procs: int | None) -> list[str]:
    """The command for the tests that a finished run still lacks: score files, or its layer responses."""
    words = [evaluate.__name__, str(config.run_folder), "--protocol", ",".join(missing)]
    if experiment.measure == "responses":
        from pipeline import responses  # here: it draws, and so imports matplotlib

        words = [responses.__name__, str(config.run_folder)]
    words += ["--split", experiment.split, "--weights", experiment.weights]
    words += [] if config.device == "auto" else ["--device", config.device]
    words += [] if config.threads is None else ["--threads", str(config.threads)]
    several = ["torch.distributed.run", "--standalone", f"--nproc-per-node={procs}", "-m"] if (procs or 1) > 1 else []
    return [sys.executable, "-m", *several, *words]


def averaging(experiment: Experiment, members: Sequence[Config], name: str) -> list[str]:
    """The command that averages the members' scores and makes the ensemble's run folder."""
    folders = [str(config.run_folder) for config in members]
    protocol = ["--protocol", experiment.protocols[0], "--split", experiment.split, "--weights", experiment.weights]
    return [sys.executable, "-m", ensemble.__name__, *folders, *protocol, "--name", name]


def text_of(command: Sequence[str]) -> str:
    """A command as a user would type it in the working directory."""
    return shlex.join(["python", *(word.replace(f"{Path.cwd()}/", "") for word in command[1:])])


def call(command: Sequence[str]) -> int:
    """Run a command on this terminal and wait for its end; its exit code (128 + N where signal N killed it).

    A request to stop is passed on, and this process waits until the command has saved and ended. Ctrl-C comes to the command
    from the terminal, too, and counts once (`Requests`). Where the command was finished all the same, the code is that of a
    stop: nothing is to follow it.
    """
    process: subprocess.Popen[bytes] | None = None
    missed: list[int] = []
    requests = Requests()

    def pass_on(number: int, frame: FrameType | None) -> None:
        requests.note(number)
        if process is None:
            missed.append(number)
        else:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in heeded()}
    try:
        process = subprocess.Popen(command)
        for number in missed:
            process.send_signal(number)
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code == 0 and requests.first is not None:
        return exit_code(requests.first)
    return code if code >= 0 else 128 - code


def ask(command: Sequence[str]) -> dict[str, Any]:
    """Run a command with --json; its JSON. Raises UserError with the command's last message where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8", errors="replace")
    if done.returncode:
        messages = done.stderr.strip().splitlines() or ["it gave no reason"]
        raise UserError(f"'{text_of(command)}' failed: {messages[-1].removeprefix('error: ')}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
