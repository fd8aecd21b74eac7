"""Commands on a real terminal: their first line, Ctrl-C in every phase, a terminal that is closed."""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.base.stopping import SAME_REQUEST_SECONDS
from tests.commands import commands
from tests.helpers import ROOT, wait_for
from tests.launch.launchers import environment, final_checkpoint, finish
from tests.patience import limit
from tests.terminal import Terminal

STOPPING = "stopping: saving at the next iteration; Ctrl-C again ends without saving"
ENDLESS = ("--iterations", "100000", "--checkpoint.every", "100000", "--evaluation.every", "100000")

# What is typed, and the first line.
IMPORTING = {
    "-m pipeline.train --data D --name N": "starting: resnet50 on D, into runs/N",
    "-m pipeline.evaluate RUN --split val": "testing RUN",
    "-m pipeline.ensemble A B": "averaging A B",
    "-m pipeline.export RUN --out X": "exporting RUN",
    "-m pipeline.mistakes RUN": "reading the mistakes of RUN",
    "-m pipeline.predict RUN P": "asking RUN about P",
    "-m pipeline.responses RUN": "measuring the responses of RUN",
    "-m pipeline.submit RUN --out X": "writing the submission of RUN",
    "-m pipeline.tune D": "tuning the loader for D",
    "-m pipeline.curves A B": "drawing the curves of A B",
    "-m pipeline.report": "writing the report",
    "-m pipeline.experiment table6": "reading the runs of table6",
    "launch/ray_train.py --data D --arch resnet18": "starting: resnet18 on D, into runs/resnet18-seed0",
    "launch/slurm.py --data D --arch resnet18": "submitting: resnet18 on D, into runs/resnet18-seed0",
    "launch/slurm.py --cluster local --evaluate RUN --split val": "testing RUN",
    "launch/local.py --procs 2 --data D --name N": "starting 2 processes: resnet50 on D, into runs/N",
    "launch/local.py --procs 1 --evaluate RUN --split val": "starting 1 process: testing RUN",
    "data_prep/digits.py F": "writing digits into F",
    "data_prep/shard_imagenet.py S D": "preparing D from S",
    "data_prep/shard_cifar10.py S D": "preparing D from S",
    "data_prep/verify.py D": "verifying D",
}


def typed(words: Sequence[str]) -> list[str]:
    return [sys.executable, *words]


# Python runs it before a program: the imports of which every command needs one, behind its first line, take for ever.
ENDLESS_IMPORT = """
import sys, time
class Endless:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "PIL"):
            time.sleep(1_000_000)
sys.meta_path.insert(0, Endless())
"""


@pytest.mark.parametrize("words", IMPORTING)
def test_ctrl_c_during_the_imports(words: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(ENDLESS_IMPORT)
    with Terminal(typed(words.split()), ROOT, environment({"PYTHONPATH": str(tmp_path)})) as terminal:
        terminal.expect(r"\n")
        assert terminal.lines()[0] == IMPORTING[words]
        terminal.press_ctrl_c()
        assert terminal.finish() == 130
        ends = ("interrupted before the work began", f"to go on: {shlex.join(typed(words.split()))}")
        assert terminal.lines()[-1].endswith(ends) and len(terminal.lines()) == 2, terminal.text


def test_every_command_begins_before_its_imports() -> None:
    """Ctrl-C in the imports that stand above `begin` would print a traceback."""
    late = []
    for module in commands():
        if module.split(".")[0] not in ("pipeline", "launch", "data_prep") or module == "launch.local":  # light itself
            continue
        nodes = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text()).body
        begun = [
            index for index, node in enumerate(nodes) if isinstance(node, ast.If) and "begin(" in ast.unparse(node)
        ]
        above = [node for node in nodes[: begun[0] if begun else None] if isinstance(node, ast.Import | ast.ImportFrom)]
        if not begun or any(imported not in LIGHT for node in above for imported in names_of(node)):
            late.append(module)
    assert not late


LIGHT = {
    "__future__", "sys", "pipeline.base.parsing", "pipeline.base.layout", "pipeline.base.starting", "pipeline.base.stopping",
    "pipeline.run.help", "pipeline.run.preview", "pipeline.command_lines.tuning", "pipeline.command_lines.evaluation",
    "pipeline.command_lines.handover", "launch.on_ray.command_line", "launch.on_slurm.command_line", "paper.command_lines",
    "data_prep.first_line",
}  # fmt: skip


def names_of(node: ast.Import | ast.ImportFrom) -> list[str]:
    return [str(node.module)] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]


READ_AT_ONCE = [module for module in commands() if module.startswith("pipeline.") and module != "pipeline.train"]


@pytest.mark.parametrize("module", READ_AT_ONCE)
@pytest.mark.parametrize(("words", "code", "said"), [("--help", 0, "usage: "), ("--nosuch x y --out z", 2, "error: ")])
def test_help_and_mistakes_need_no_slow_import(module: str, words: str, code: int, said: str) -> None:
    done = subprocess.run(
        typed(["-X", "importtime", "-m", module.removesuffix(".__main__"), *words.split()]),
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=limit(60),
    )  # fmt: skip
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "pipeline.base.parsing" in imported and not imported & {"torch", "numpy", "mlflow", "nvidia.dali"}
    told = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == code and any(line.startswith(said) for line in [*done.stdout.splitlines(), *told]), told


@pytest.mark.parametrize(
    ("words", "said"), [("RUN --help", ""), ("--print-config", ""), ("RUN --json", "testing RUN\n")]
)
def test_an_answer_has_no_first_line(words: str, said: str) -> None:
    program = "from pipeline.base.starting import begin; begin('testing')"
    done = subprocess.run(
        typed(["-c", program, *words.split()]),
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=True, timeout=limit(60),
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", said)


@pytest.mark.slow
@pytest.mark.parametrize(
    "start",
    ["launch/local.py --procs 2", "-m pipeline.train", "launch/slurm.py --cluster local --tasks-per-node 2",
     "launch/slurm.py --cluster debug"],
)  # fmt: skip
def test_ctrl_c_saves_and_the_last_line_goes_on(tmp_path: Path, tiny: Path, start: str) -> None:
    program, *options = start.split()
    program = str(ROOT / program) if program.endswith(".py") else program
    command = typed([program, *options, "--config", str(tiny), "--name", "run", *ENDLESS])
    metrics = tmp_path / "runs" / "run" / "metrics.jsonl"
    with Terminal(command, tmp_path, environment({"PYTHONPATH": str(ROOT)})) as terminal:
        wait_for(lambda: terminal.reading() and metrics.exists() and metrics.stat().st_size, "the first metrics", 120)
        before = len(terminal.text)
        terminal.press_ctrl_c()
        terminal.expect(STOPPING, 10, before)
        assert terminal.finish() == 130
        assert terminal.text.count(STOPPING) == 1 and "Traceback" not in terminal.text
        iteration = int(final_checkpoint(metrics.parent)[:8])
        assert iteration >= 4
        last = terminal.lines()[-1]
        assert last == f"saved at iteration {iteration:,} of 100,000; to go on: {shlex.join(command)}"
    going_on = shlex.split(last.partition("; to go on: ")[2])
    more = ["--print-config"]  # the command is whole: nothing of it was lost
    assert finish([*going_on, *more], tmp_path, extra={"PYTHONPATH": str(ROOT)}).returncode == 0


@pytest.mark.slow
def test_ctrl_c_at_the_submission_misses_no_process(tmp_path: Path, tiny: Path) -> None:
    """The tasks of submitit's local executor start a moment after the launcher has the job."""
    start = typed([str(ROOT / "launch" / "slurm.py"), "--cluster", "local", "--tasks-per-node", "2"])
    folder = tmp_path / "runs" / "run" / "slurm"
    with Terminal([*start, "--config", str(tiny), "--name", "run", *ENDLESS], tmp_path, environment()) as terminal:
        wait_for(lambda: terminal.reading() and folder.exists() and any(folder.iterdir()), "the submission", 120)
        terminal.press_ctrl_c()
        assert terminal.finish() == 130
        assert "stopped: nothing had to be saved yet; to go on: " in terminal.lines()[-1]
        assert "squeue" not in terminal.text and "Traceback" not in terminal.text


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, tiny: Path) -> None:
    command = typed(["-m", "pipeline.train", "--config", str(tiny), "--name", "run", *ENDLESS])
    held = tmp_path / "sitecustomize.py"  # the first update after the request takes for ever
    held.write_text(HELD.format(folder=str(tmp_path)))
    surroundings = environment({"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    with Terminal(command, tmp_path, surroundings) as terminal:
        wait_for(lambda: terminal.reading() and (tmp_path / "held").exists(), "the update", 120)
        terminal.press_ctrl_c()
        terminal.expect(STOPPING, 10)
        time.sleep(2 * SAME_REQUEST_SECONDS)
        terminal.press_ctrl_c()
        assert terminal.finish(10) == 130
        assert "ended at once: there is no checkpoint; to go on: " in terminal.lines()[-1]


HELD = """
import pathlib, sys, time
class Held:
    def find_spec(self, name, path=None, target=None):
        if name == "pipeline.process.stop":  # imported after the trainer
            from pipeline.loop.trainer import Trainer
            update = Trainer.update
            def held(trainer, *batch):
                if trainer.progress.iteration == 3:
                    pathlib.Path({folder!r}, "held").touch()
                    time.sleep(1_000_000)
                update(trainer, *batch)
            Trainer.update = held
sys.meta_path.insert(0, Held())
"""


@pytest.mark.slow
def test_a_closed_terminal_saves(tmp_path: Path, tiny: Path) -> None:
    command = typed(
        [str(ROOT / "launch" / "local.py"), "--procs", "2", "--config", str(tiny), "--name", "run", *ENDLESS]
    )
    metrics = tmp_path / "runs" / "run" / "metrics.jsonl"
    with Terminal(command, tmp_path, environment()) as terminal:
        wait_for(lambda: terminal.reading() and metrics.exists() and metrics.stat().st_size, "the first metrics", 120)
        terminal.hang_up()
        assert terminal.finish() == 75
    assert int(final_checkpoint(metrics.parent)[:8]) >= 4
