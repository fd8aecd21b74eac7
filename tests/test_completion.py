"""completion.sh is what the parsers say, and bash and zsh complete by it, on a terminal too."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.golden import completion
from tests.helpers import ROOT
from tests.patience import limit

PROMPT = "ready> "
SHELLS = {"bash": ["bash", "--norc", "-i"], "zsh": ["zsh", "-f", "-i"]}
# A line, and what it may become.
COMPLETED = {
    "python launch/local.py --arc": ["--arch"],
    "python launch/local.py --arch resnet15": ["resnet152"],
    "python launch/local.py --precision ": ["float32", "bf16"],
    "python launch/local.py --compile ": ["true", "false"],
    "python launch/local.py --print-config --bn": ["--bn-group"],
    "python launch/local.py --config configs/im": [
        "configs/imagenet.yaml",
        "configs/imagenet_a3.yaml",
        "configs/imagenet_fast.yaml",
    ],
    "python launch/local.py --data ": ["data/small"],
    "python launch/local.py --init ": ["runs/a", "runs/b"],
    "python launch/local.py --batch ": [],
    "./launch/slurm.py --parti": ["--partition"],
    ".venv/bin/python -u /some/where/launch/ray_train.py --work": ["--workers"],
    "torchrun --nproc-per-node 2 -m pipeline.train --optimizer.mo": ["--optimizer.momentum"],
    "python launch/local.py --procs 2 --evaluate ": ["runs/a", "runs/b"],
    "python launch/local.py --procs 2 --evaluate runs/a --proto": ["--protocol"],
    "python -m pipeline.ex": ["pipeline.experiment", "pipeline.export"],
    "python -m pipeline.evaluate runs/": ["runs/a", "runs/b"],
    "python -m pipeline.experiment table6": ["table6", "table6-45k"],
    "python -m pipeline.tracking ": ["open", "sync", "export"],
    "python -m pipeline.tracking export --format ": ["csv", "tensorboard"],
    "python data_prep/shard_imagenet.py --skip": ["--skip-corrupt"],
    "python other.py --arc": [],
}


def test_the_script_is_up_to_date() -> None:
    """Else: python -m tests.golden.completion"""
    assert completion.FILE.read_text() == completion.script()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with configs, a dataset and two runs."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for file in ("data/small/manifest.json", "runs/a/config.yaml", "runs/b/config.yaml", "runs/c/other"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    return tmp_path


def test_bash_completes(folder: Path) -> None:
    """The function that bash calls, with the words that bash makes of a line."""
    script = [f". {ROOT}/completion.sh"]
    for line in COMPLETED:
        words = line.split() + ([""] if line.endswith(" ") else [])
        quoted = " ".join(f"'{word}'" for word in words)
        script.append(f'COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _resnets; echo "${{COMPREPLY[*]}}"')
    done = subprocess.run(["bash", "-c", "\n".join(script)], cwd=folder, capture_output=True, text=True, check=True)
    found = dict(zip(COMPLETED, done.stdout.split("\n"), strict=False))
    assert not done.stderr
    assert {line: sorted(words.split()) for line, words in found.items()} == {
        line: sorted(words) for line, words in COMPLETED.items()
    }


@pytest.mark.parametrize("shell", list(SHELLS))
@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        ("python launch/local.py --arch resnet15", "python launch/local.py --arch resnet152"),
        ("python launch/slurm.py --precision=b", "python launch/slurm.py --precision=bf16"),
        ("launch/local.py --config configs/d", "launch/local.py --config configs/demo.yaml"),
        ("python runs/c/o", "python runs/c/other"),  # files, as before
    ],
)
def test_tab_on_a_terminal(folder: Path, shell: str, line: str, becomes: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "dumb", "COLUMNS": "200"}
        os.execvpe(shell, SHELLS[shell], environment)
    try:
        start = f"stty cols 200; . {ROOT}/completion.sh; PS1='{PROMPT}'; echo begin\n"
        said = said_until(terminal, start, f"begin\n{PROMPT}")
        assert "not found" not in said, said
        said_until(terminal, f"{line}\t", becomes)
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)
        os.close(terminal)


def said_until(terminal: int, typed: str, wanted: str) -> str:
    """What the shell has said when it has said `wanted`."""
    os.write(terminal, typed.encode())
    said, end = "", time.monotonic() + limit(20)
    while time.monotonic() < end:
        ready, _, _ = select.select([terminal], [], [], 0.2)
        if ready:
            said += os.read(terminal, 65536).decode(errors="replace")
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x07|\x1b[=>]|\r", "", said)
        if wanted in plain:
            return plain
    raise AssertionError(f"no {wanted!r} in {said!r}")
