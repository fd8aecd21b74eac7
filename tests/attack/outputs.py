"""Takes away what commands print to, in every way, and gives them names and encodings that no terminal likes.

Most tries are processes forked from one that has imported everything, whose descriptors are as a shell would leave them; some
are whole commands behind launch/local.py, started by a shell.
"""

from __future__ import annotations

import io
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from launch.local import rank_environment, reserve_port
from tests.attack.attack import Attack, Outcome
from tests.helpers import ROOT, without_gloo
from tests.patience import limit
from tests.ranks import CONTEXT, start_server

# What a descriptor may be. "breaks": the reader goes after some bytes; "unread": it never reads.
STATES = ("read", "closed", "full", "gone", "breaks", "unread")
ENCODINGS = ("utf-8", "ascii", "latin-1")
PARTS = (
    "[old]", "[bold]", ":dog:", "\n", "\x1b[2J", "\r", "\udcff", "猫", "كلب", "$a_b$", "%20", "<b>", "{x}", "x" * 60, "\u202e",
    "\x9b",
)  # fmt: skip
SECONDS = 120.0  # for one try, on a quiet machine
PATIENCE_SECONDS = 0.2  # of forked processes, for a reader that does not read
WHOLE_EVERY = 8  # one try of so many is a whole command
STATISTICS = ("--statistics-size", "32", "--statistics-short-side", "36", "--workers", "1")
CONFIG = """
arch: resnet8
data: data
iterations: 4
batch: 8
bn_group: 4
recompute_bn_images: 8
threads: 1
augment: {short_side: [33, 38], crop: 32}
schedule: {kind: steps, steps: [3]}
evaluation: {every: 4, short_side: 36}
checkpoint: {every: 2}
loader: {threads: 1}
tracking: {log_every: 1, mlflow: false}
"""


@dataclass(frozen=True)
class Try:
    """One command, and what it prints to."""

    command: str
    ranks: int
    out: str
    err: str
    encoding: str
    after: int  # bytes until a reader goes that breaks

    def __str__(self) -> str:
        return (
            f"{self.command} on {self.ranks}, output {self.out}, error {self.err}, {self.encoding}, {self.after} bytes"
        )


def drawn(draw: Random) -> Try:
    command = draw.choice(("train", "train", "evaluate", "shard", "predict"))
    return Try(
        command=command,
        ranks=draw.choice((1, 2)) if command == "train" else 1,
        out=draw.choice(STATES[:-1]),  # a result waits for its reader
        err=draw.choice(STATES),
        encoding=draw.choice(ENCODINGS),
        after=draw.choice((0, 1, 100, 1000)),
    )


def attack(draw: Random, tries: int, folder: Path, outcome: Outcome) -> None:
    start_server()
    write_images(folder / "src", draw)
    (folder / "c.yaml").write_text(CONFIG, encoding="utf-8")
    undisturbed = Try("shard", 1, "read", "read", "utf-8", 0)
    for prepared in (undisturbed, Try("train", 1, "read", "read", "utf-8", 0)):
        assert not (fault := forked(prepared, folder, folder / "first")), fault
    for number in range(tries):
        one = drawn(draw)
        place = folder / f"try-{number}"
        whole = number % WHOLE_EVERY == WHOLE_EVERY - 1 or number == tries - 1
        if whole:
            # Here nothing holds a pipe that nobody reads.
            out, err = ("gone" if state == "unread" else state for state in (one.out, one.err))
            one = Try("train", one.ranks, out, err, one.encoding, one.after)
        if fault := (by_a_shell if whole else forked)(one, folder, place):
            outcome.wrong(f"try {number}: {one}{' (whole command)' if whole else ''}: {fault}")
        else:
            outcome.right(f"{one.command} ended as it must")
        shutil.rmtree(place, ignore_errors=True)


def write_images(folder: Path, draw: Random) -> None:
    """Two classes of six and three images, with names that end in all that a terminal, markup or UTF-8 may not like."""
    pixels = np.random.default_rng(draw.randrange(1 << 32))
    names = [f"{k}" + "".join(draw.sample(PARTS, 4)) for k in range(2)]
    for split, count in (("train", 6), ("val", 3)):
        for name in names:
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(pixels.integers(0, 255, (40, 44, 3), dtype=np.uint8))
                image.save(folder / split / name / f"{number}{draw.choice(PARTS)}.JPEG")


def words_of(one: Try, folder: Path, place: Path) -> list[str]:
    finished = str(folder / "first" / "runs" / "run")
    return {
        "shard": [str(folder / "src"), "data", *STATISTICS],
        "train": ["--config", str(folder / "c.yaml"), "--data", str(folder / "first" / "data"), "--name", "run"],
        "evaluate": [str(place / "run"), "--protocol", "center", "--device", "cpu", "--threads", "1"],
        "predict": [finished, str(folder / "src" / "val"), "--device", "cpu"],
    }[one.command]


def fault_of(one: Try, codes: Sequence[int], said: str, folder: Path, place: Path) -> str:
    """What is wrong with how a try ended; "" where nothing is."""
    lost = one.out in ("closed", "full")
    wanted = 2 if one.command == "predict" and lost else 0
    if set(codes) != {wanted}:
        return f"exit codes {codes}, not {wanted}: {said[-1500:]}"
    for word in ("Traceback", "Exception ignored", "Fatal Python error", "\x1b[2J", "\x9b", "\u202e"):
        if word in said:
            return f"it printed {word!r}: {said[-1500:]}"
    first = folder / "first"
    if place == first:
        return ""
    if (
        one.command == "shard"
        and (place / "data/manifest.json").read_bytes() != (first / "data/manifest.json").read_bytes()
    ):
        return "it made another dataset"
    if one.command == "train" and _checkpoints(place / "runs/run") != _checkpoints(first / "runs/run"):
        return f"its checkpoints are {_checkpoints(place / 'runs/run')}, not {_checkpoints(first / 'runs/run')}"
    if one.command == "evaluate" and not [*(place / "run/scores").glob("*.npz")]:
        return "there is no score file"
    return ""


def _checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def forked(one: Try, folder: Path, place: Path) -> str:
    """Try it in processes forked from one that has imported everything; what is wrong."""
    place.mkdir(exist_ok=True)
    if one.command == "evaluate":
        shutil.copytree(folder / "first" / "runs" / "run", place / "run")
    processes: list[BaseProcess] = []
    with reserve_port() as port:
        for rank in range(one.ranks):
            environment = rank_environment(rank, one.ranks, port) if one.command == "train" else dict(os.environ)
            arguments = (one, rank, words_of(one, folder, place), place, environment)
            processes.append(CONTEXT.Process(target=_process, args=arguments, daemon=True))
            processes[-1].start()
        for process in processes:
            process.join(limit(SECONDS))
        hung = [process for process in processes if process.exitcode is None]
        for process in hung:
            process.kill()
            process.join()
    said = "".join(path.read_text(encoding=one.encoding, errors="replace") for path in sorted(place.glob("said-*")))
    if hung:
        return f"it still ran after {limit(SECONDS):.0f} s: {said[-1500:]}"
    return fault_of(one, [int(process.exitcode or 0) for process in processes], without_gloo(said), folder, place)


def by_a_shell(one: Try, folder: Path, place: Path) -> str:
    """Try it as a user types it, in a locale of C; what is wrong."""
    place.mkdir()
    command = [
        sys.executable,
        str(ROOT / "launch" / "local.py"),
        *words_of(one, folder, place),
        "--procs",
        str(one.ranks),
    ]
    redirections = {
        "read": "{0}> said-{0}", "closed": "{0}>&-", "full": "{0}> /dev/full", "gone": "{0}> >(true)",
        "breaks": "{0}> >(head -c {1} > said-{0})",
    }  # fmt: skip
    line = " ".join(
        [shlex.join(command), *(redirections[state].format(number, one.after) for number, state in _streams(one))]
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": one.encoding, **locale}
    try:
        done = subprocess.run(
            ["bash", "-c", line], cwd=place, env=environment, capture_output=True, timeout=limit(SECONDS), check=False
        )
    except subprocess.TimeoutExpired:
        return f"it still ran after {limit(SECONDS):.0f} s"
    said = b"".join([done.stdout, done.stderr, *(path.read_bytes() for path in sorted(place.glob("said-*")))])
    return fault_of(one, [done.returncode], said.decode(one.encoding, "replace"), folder, place)


def _streams(one: Try) -> tuple[tuple[int, str], tuple[int, str]]:
    return (1, one.out), (2, one.err)


def _process(one: Try, rank: int, words: Sequence[str], place: Path, environment: Mapping[str, str]) -> None:
    """Run the command here, its descriptors and Python's streams as they are when a shell starts it."""
    from pipeline.base import command, output

    os.chdir(place)
    os.environ.clear()
    os.environ.update(environment)
    for number, state in _streams(one):
        _make(number, "read" if rank else state, place / f"said-{rank}-{number}", one.after)
    for number, name in ((1, "stdout"), (2, "stderr")):
        setattr(sys, name, _as_python_makes_it(number, one.encoding))
    output.PATIENCE_SECONDS = PATIENCE_SECONDS
    output.prepare()
    command.run(lambda: _main_of(one.command)(words), kept=one.command != "predict")


def _main_of(name: str) -> Callable[[Sequence[str]], int | None]:
    from data_prep import shard_imagenet
    from pipeline import evaluate, predict, train

    return {"train": train.main, "evaluate": evaluate.main, "shard": shard_imagenet.main, "predict": predict.main}[name]


def _make(number: int, state: str, log: Path, after: int) -> None:
    """Make descriptor `number` what `state` says."""
    if state == "closed":
        os.close(number)
        return
    if state in ("read", "full"):
        place = log if state == "read" else "/dev/full"
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    else:
        reader, descriptor = os.pipe()
        if state == "gone":
            os.close(reader)
        elif state == "breaks":
            threading.Thread(target=_read, args=(reader, after), daemon=True).start()
        else:
            os.set_blocking(descriptor, False)
            with suppress(BlockingIOError):
                while True:
                    os.write(descriptor, b"x" * 4096)
            os.set_blocking(descriptor, True)
    os.dup2(descriptor, number)
    os.close(descriptor)


def _read(reader: int, after: int) -> None:
    while after > 0 and (read := os.read(reader, after)):
        after -= len(read)
    os.close(reader)


def _as_python_makes_it(number: int, encoding: str) -> io.TextIOWrapper | None:
    try:
        os.fstat(number)
    except OSError:
        return None
    raw = io.FileIO(number, "wb", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "strict", line_buffering=number == 2)


OUTPUTS = Attack(
    name="outputs",
    what="standard output and error closed, full, broken, unread; encodings; hostile names",
    run=attack,
    short=4,
    full=60,
)
