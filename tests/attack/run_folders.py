"""Run folders: a small run is damaged in one drawn way, then a drawn command works on it, in a process of its own."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

from pipeline.base.command import UserError
from pipeline.base.files import file_sha256
from pipeline.base.layout import checkpoints_in
from pipeline.run.config import Config, to_yaml
from pipeline.training.checkpoint import CheckpointConfig
from tests.attack.attack import Attack, Outcome
from tests.attack.isolated import Isolated
from tests.digits import write_dataset
from tests.pipeline.small_runs import config_of, weights

SECONDS = 60.0  # for one command
REGULAR = ["deleted", "cut", "flipped", "nested", "not UTF-8", "of another run", "emptied"]
if os.getuid():  # root may read everything
    REGULAR.append("mode 0")
IRREGULAR = ("a folder", "a pipe", "a link to itself", "a link to nowhere", "/dev/full", "/proc/self/mem")
# What every attempt of a training may write; and what a run may lose without losing what it computed.
OF_AN_ATTEMPT = ("run.json", "config.yaml", ".lease", ".lock", "tracking.json", "mlflow.json")


def small(dataset: Path, runs: Path, seed: int) -> Config:
    config = config_of(dataset, runs, "run")
    return replace(
        config, iterations=20, seed=seed, recompute_bn_images=64, checkpoint=CheckpointConfig(every=5, keep_best=False)
    )  # fmt: skip


def train(config: Config) -> str:
    from pipeline import train

    code = train.train(config)
    if code:
        raise AssertionError(f"the training ended with {code}")
    return weights(config)


def evaluate(config: Config, target: Path | None = None) -> str:
    """The digest of the score file, behind the name of the checkpoint."""
    from pipeline import evaluate
    from pipeline.evaluation.scores import load

    place = Path(config.runs) / "scores.npz"
    place.unlink(missing_ok=True)
    evaluate.main([str(target or config.run_folder), "--threads", "1", "--device", "cpu", "--scores", str(place)])
    return f"{load(place).provenance.checkpoint} {file_sha256(place)}"


def export(config: Config) -> str:
    from pipeline import export

    out = Path(config.runs) / "exported"
    export.main([str(config.run_folder), "--format", "safetensors", "--out", str(out)])
    return file_sha256(next(out.glob("*.safetensors")))


def status(config: Config) -> str:
    from launch import status

    status.main([str(config.run_folder)])
    return ""


def report(config: Config) -> str:
    from paper import report

    page = Path(config.runs) / "report.html"
    report.main(["--runs", config.runs, "--experiments", "table6", "--no-tracking", "--out", str(page)])
    assert page.stat().st_size > 1000
    return ""


def read_tracking(config: Config) -> str:
    from pipeline.tracking import __main__ as tracking
    from pipeline.tracking.opening import elsewhere, tracked
    from pipeline.tracking.state import is_delivered

    for folder in tracked(Path(config.runs)):
        elsewhere(folder)
        is_delivered(folder)
    tracking.main(["export", str(config.run_folder), "--out", str(Path(config.runs) / "exported")])
    return ""


COMMANDS: dict[str, Callable[[Config], str]] = {
    "train": train, "evaluate": evaluate, "export": export, "status": status, "report": report,
    "tracking": read_tracking,
}  # fmt: skip


def call(command: str, config: Config) -> tuple[str, str]:
    """What a command came to, and what it said."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        return COMMANDS[command](config), said.getvalue()


def references(dataset: Path, place: Path) -> dict[str, str]:
    """Trains the run and another; the digest of what each command is to come to, by checkpoint where it is of one."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        mine, other = (small(dataset, place / name, seed) for name, seed in (("mine", 0), ("other", 1)))
        train(other)
        found = {"train": train(mine)}
        for _, path in checkpoints_in(mine.run_folder / "checkpoints"):
            found[f"evaluate {path.name}"] = evaluate(mine, path)
        evaluate_into_the_run(mine)
    return found


def evaluate_into_the_run(config: Config) -> None:
    from pipeline import evaluate

    evaluate.main([str(config.run_folder), "--threads", "1", "--device", "cpu"])


def damage(path: Path, way: str, other: Path, draw: Random) -> None:
    content = path.read_bytes() if path.is_file() else b""
    if way in IRREGULAR or way == "deleted":
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if way == "a folder":
        path.mkdir()
    elif way == "a pipe":
        os.mkfifo(path)
    elif way in IRREGULAR:
        path.symlink_to({"a link to itself": path.name, "a link to nowhere": "nowhere"}.get(way, way))
    elif way == "cut":
        os.truncate(path, draw.randrange(len(content) + 1))
    elif way == "flipped" and content:
        flipped = bytearray(content)
        for _ in range(draw.randrange(1, 4)):
            flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
    elif way == "nested":
        path.write_bytes(draw.choice([b"[", b'{"a":']) * 100_000 + b"\n")
    elif way == "not UTF-8":
        start = draw.randrange(len(content) + 1)
        path.write_bytes(content[:start] + b"\xff\xfe\n" + content[start:])
    elif way == "of another run" and other.is_file():
        shutil.copy(other, path)
    elif way == "emptied":
        path.write_bytes(b"")
    elif way == "mode 0":
        path.chmod(0)


def kept(folder: Path) -> dict[str, bytes]:
    """The files that a refusal must leave as they are."""
    places = [folder / "metrics.jsonl", *(folder / "checkpoints").glob("*.pt"), *(folder / "scores").glob("*.npz")]
    return {path.name: path.read_bytes() for path in places if path.is_file() and not path.is_symlink()}


@cache
def entries(folder: Path) -> list[Path]:
    """Files and folders of a run, the rarely damaged logs left out, in an order that does not depend on the disk."""
    names = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    return [name for name in names if name.parts[0] not in ("activity", "logs") or len(name.parts) == 1]


def judge(command: str, value: str, wanted: dict[str, str], what: Path, config: Config) -> str | None:
    """Why a result is wrong; None where it is right."""
    if command == "train" and value != wanted["train"]:
        return "other weights"
    if command == "evaluate":
        if what.name == "config.yaml" and (config.run_folder / what).read_text() != to_yaml(config):
            return None  # another config may ask for another test, and nothing says that it was damaged
        if value != wanted.get(f"evaluate {value.split()[0]}"):
            return "other scores"
    return None


def one_try(
    draw: Random, number: int, place: Path, isolated: Isolated, wanted: dict[str, str], outcome: Outcome
) -> None:
    dataset = place / "dataset"
    config = small(dataset, place / f"try-{number}", 0)
    mine, other = (small(dataset, place / name, 0).run_folder for name in ("mine", "other"))
    shutil.copytree(mine, config.run_folder)
    (config.run_folder / "config.yaml").write_text(to_yaml(config))
    finished = draw.random() < 0.5
    checkpoints = checkpoints_in(config.run_folder / "checkpoints")
    if not finished:
        checkpoints[-1][1].unlink()
        for left in ("model", "scores"):
            shutil.rmtree(config.run_folder / left)
    present = [name for name in entries(mine) if (config.run_folder / name).exists()]
    what = draw.choice(present)
    way = draw.choice(IRREGULAR if (config.run_folder / what).is_dir() else (*REGULAR, *IRREGULAR))
    if way == "a folder" and (config.run_folder / what).is_dir():
        way = "deleted"
    command = draw.choice(list(COMMANDS))
    damage(config.run_folder / what, way, other / what, draw)
    before = kept(config.run_folder)
    ended = isolated(command, config)
    told = f"try {number}: {command} of {'a finished' if finished else 'an unfinished'} run whose {what} is {way}"
    if ended.how == "refused":
        lost = [name for name, content in before.items() if kept(config.run_folder).get(name) != content]
        if lost or "\n" in ended.said:
            outcome.wrong(f"{told}: refused, but {', '.join(lost) or 'by more than a sentence'}: {ended.said}")
        else:
            outcome.right("a sentence")
    elif ended.how == "returned":
        value, said = ended.value
        if wrong := judge(command, value, wanted, what, config):
            outcome.wrong(f"{told}: {wrong} ({said.splitlines()[:3]})")
        else:
            outcome.right("the right result, with a warning" if "warning: " in said else "the right result")
    else:
        outcome.wrong(f"{told}: {ended.how}: {(ended.said.strip().splitlines() or [''])[-1]}")
    shutil.rmtree(config.runs)


def run(draw: Random, tries: int, folder: Path, outcome: Outcome) -> None:
    dataset = write_dataset(folder)
    with Isolated(references, 10 * SECONDS) as isolated:
        ended = isolated(dataset, folder)
        if ended.how != "returned":
            raise UserError(f"the run to be damaged was not made: {ended.said}")
    with Isolated(call, SECONDS) as isolated:
        for number in range(tries):
            one_try(draw, number, folder, isolated, ended.value, outcome)


RUN_FOLDERS = Attack(
    name="run-folders",
    what="one file or folder of a run damaged, then trained, tested, exported or shown",
    run=run,
    short=20,
    full=500,
)
