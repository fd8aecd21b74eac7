"""How the runner has things done: the doors of launch/ and the evaluation commands, as a user would type them.

They are started as processes because launch/ rests on pipeline/ and not the other way round.
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
from types import FrameType
from typing import Any, Literal

from paper.spec import Experiment, RunSpec, arguments, resolve
from pipeline.base.command import UserError
from pipeline.base.exits import EXIT_INTERRUPTED, EXIT_PREEMPTED
from pipeline.process.signals import SIGNALS
from pipeline.run.config import Config, differences, trajectory
from pipeline.run.options import key_names

Launcher = Literal["local", "slurm", "ray"]
MODULES = {"local": "launch.local", "slurm": "launch.slurm", "ray": "launch.ray_train"}
STOPPED = (EXIT_PREEMPTED, EXIT_INTERRUPTED)
SET_BY_THE_EXPERIMENT = frozenset(
    ("config", "json", "print_config", "dry_run", "name", "data", "runs", "procs", "workers", "scale_batch")
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command line says of where and how.

    data, runs: null for the base config's. surroundings: options of config keys that leave what a run computes as it is.
    options: those of the launcher itself.
    """

    launcher: Launcher = "local"
    data: str | None = None
    runs: Path | None = None
    scale: float = 1.0
    procs: int | None = None
    surroundings: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def split_options(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What stands behind `--` as (options of config keys, options of the launcher)."""
    surroundings: list[str] = []
    options: list[str] = []
    target = options
    for word in words:
        if word.startswith("--"):
            key = word[2:].partition("=")[0].replace("-", "_")
            if key in SET_BY_THE_EXPERIMENT:
                raise UserError(f"{word} may not stand behind '--': the experiment sets it (see --help)")
            target = surroundings if key in key_names() else options
        target.append(word)
    return tuple(surroundings), tuple(options)


def check_surroundings(experiment: Experiment, settings: Settings) -> None:
    """Raise UserError where an option behind `--` would change what the runs compute."""
    for spec in experiment.runs:
        bare = resolve(spec, settings.data, settings.runs, settings.scale)
        dressed = resolve(spec, settings.data, settings.runs, settings.scale, settings.surroundings)
        if changed := differences(trajectory(bare), trajectory(dressed)):
            raise UserError(
                f"the options behind '--' change what {bare.run_name} computes ({'; '.join(changed)}): write an experiment "
                "file of your own, with 'overrides' and a 'variant' that names them (docs/experiments.md)"
            )


def training(spec: RunSpec, settings: Settings) -> list[str]:
    """The command that trains a run, or goes on with it."""
    words = arguments(spec, settings.data, settings.runs, settings.scale, settings.surroundings)
    count = (
        [] if settings.procs is None else [f"--{'workers' if settings.launcher == 'ray' else 'procs'}={settings.procs}"]
    )
    return [sys.executable, "-m", MODULES[settings.launcher], *words, *count, *settings.options]


def evaluation(experiment: Experiment, config: Config, missing: Sequence[str], procs: int | None) -> list[str]:
    """The command that makes what a finished run still lacks: score files, or its layer responses."""
    if experiment.measure == "responses":
        module, what = "pipeline.responses", []
    else:
        module, what = "pipeline.evaluate", ["--protocol", ",".join(missing)]
    words = [module, str(config.run_folder), *what, "--split", experiment.split, "--weights", experiment.weights]
    words += [] if config.device == "auto" else ["--device", config.device]
    words += [] if config.threads is None else ["--threads", str(config.threads)]
    several = ["torch.distributed.run", "--standalone", f"--nproc-per-node={procs}", "-m"] if (procs or 1) > 1 else []
    return [sys.executable, "-m", *several, *words]


def averaging(experiment: Experiment, members: Sequence[Config], name: str) -> list[str]:
    """The command that averages the members' scores and gives the ensemble its run folder."""
    folders = [str(one.run_folder) for one in members]
    protocol = ["--protocol", experiment.protocols[0], "--split", experiment.split, "--weights", experiment.weights]
    return [sys.executable, "-m", "pipeline.ensemble", *folders, *protocol, "--name", name]


def shown(command: Sequence[str]) -> str:
    """A command as a user would type it in the working directory."""
    return shlex.join(["python", *(word.replace(f"{Path.cwd()}/", "") for word in command[1:])])


def call(command: Sequence[str]) -> int:
    """Run a command on this terminal and wait for it; its exit code (128 + N where signal N killed it).

    Ctrl-C reaches it from the terminal, a request to stop is passed on, so that it saves; this process waits until it has.
    """
    process: subprocess.Popen[bytes] | None = None
    missed: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            return  # a terminal sends it to all of its processes
        if process is None:
            missed.append(number)
        else:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, *SIGNALS)}
    try:
        process = subprocess.Popen(command)
        for number in missed:
            process.send_signal(number)
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def ask(command: Sequence[str], behind: Sequence[str] = ()) -> dict[str, Any]:
    """Run a command that ends with one line of JSON and return that. `behind`: what stands behind its `--`.

    Raises UserError with its own words where it fails.
    """
    words = [*command, "--json", *(["--", *behind] if behind else [])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it gave no reason"]
        raise UserError(f"'{shown(command)}' failed: {said[-1].removeprefix('error: ')}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
