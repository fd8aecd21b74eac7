"""docs/own-pictures.md: its five commands run as they are printed, on seven classes of pictures without a val folder."""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.data.dataset import Dataset
from tests.command_lines import checked
from tests.digit_reader import write_digit_reader
from tests.helpers import ROOT, wait_for
from tests.launch.launchers import environment
from tests.pages import read
from tests.patience import limit

SHAPES = ("circle", "cross", "ring", "square", "star", "stripes", "triangle")
OF_EACH = 24


def drawing(shape: str, number: int) -> Image.Image:
    """A dark shape on a light ground, in any colours, sizes and places."""
    random = np.random.default_rng((SHAPES.index(shape), number))
    image = Image.new("RGB", (96 + int(random.integers(0, 40)), 96), tuple(random.integers(120, 256, 3).tolist()))
    pen, ink = ImageDraw.Draw(image), tuple(random.integers(0, 90, 3).tolist())
    radius = int(random.integers(26, 40))
    x, y = image.width // 2 + int(random.integers(-6, 7)), 48 + int(random.integers(-6, 7))
    box = (x - radius, y - radius, x + radius, y + radius)
    match shape:
        case "circle":
            pen.ellipse(box, fill=ink)
        case "ring":
            pen.ellipse(box, outline=ink, width=8)
        case "square":
            pen.rectangle(box, fill=ink)
        case "triangle":
            pen.regular_polygon((x, y, radius), 3, fill=ink)
        case "star":
            sizes = [radius * (1 if point % 2 == 0 else 0.4) for point in range(10)]
            turns = [point * np.pi / 5 for point in range(10)]
            pen.polygon([(x + r * np.sin(a), y - r * np.cos(a)) for r, a in zip(sizes, turns, strict=True)], fill=ink)
        case "cross":
            pen.line((x - radius, y, x + radius, y), fill=ink, width=12)
            pen.line((x, y - radius, x, y + radius), fill=ink, width=12)
        case "stripes":
            for row in range(radius % 16, 96, 18):
                pen.line((0, row, image.width, row), fill=ink, width=7)
    return image


@pytest.fixture
def checkout(digits: Path, tmp_path: Path) -> Path:
    """A folder as `make demo` leaves the checkout, with the demo's run, and pictures."""
    for name in ("data_prep", "launch", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_digit_reader(tmp_path / "demo/runs", "resnet14-seed0", Dataset(digits), arch="resnet14")
    for shape in SHAPES:
        folder = tmp_path / "pictures" / shape
        folder.mkdir(parents=True)
        for number in range(OF_EACH):
            drawing(shape, number).save(folder / f"{number:02d}.{'webp' if number == 0 else 'jpg'}", quality=90)
    drawing("stripes", OF_EACH).save(tmp_path / "new-picture.webp")
    return tmp_path


def run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(line)
    assert words[0] == "python"
    command = [sys.executable, *words[1:]]
    done = subprocess.run(
        command, cwd=folder, env=surroundings(), capture_output=True, text=True, timeout=limit(500), check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done


def surroundings() -> dict[str, str]:
    return environment({"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""})


def commands_of_page() -> list[list[str]]:
    """The words of all commands, in the order of the page."""
    blocks = [block for language, block in read(ROOT / "docs/own-pictures.md").blocks if language == "sh"]
    return [shlex.split(line) for block in blocks for line in block.replace("\\\n", "").splitlines()]


def test_both_halves_of_the_page_can_follow_one_another() -> None:
    """A dataset folder is made once, a run trained once, and what a command reads was made before it."""
    folders: list[str] = []
    runs = ["demo/runs/resnet14-seed0"]
    lines = commands_of_page()
    for words in lines:
        options = dict(itertools.pairwise(words))
        match words[1:]:
            case ["data_prep/shard_imagenet.py", _, folder, *_]:
                assert folder not in folders, f"{folder} holds a dataset already"
                folders.append(folder)
            case ["launch/local.py", *_]:
                run = f"runs/{options['--name']}"
                assert run not in runs, f"{run} holds a run already"
                assert options["--data"] in folders and options["--init"] in (*runs, "torchvision:resnet50")
                runs.append(run)
            case ["-m", "pipeline.predict" | "pipeline.export", run, *_]:
                assert run == runs[-1]
    assert (len(lines), len(folders), len(runs)) == (10, 2, 3)
    text = "\n".join(" ".join(words) for words in lines)
    count, faults = checked([(line, False) for line in text.splitlines()])
    assert count == 10 and not list(faults), "each is parsed by its own parser"


@pytest.mark.slow
@pytest.mark.timeout(900)  # five programs start, two of them import MLflow
def test_the_five_commands_run_as_they_are_printed(checkout: Path, port: int) -> None:
    blocks = [block for language, block in read(ROOT / "docs/own-pictures.md").blocks if language == "sh"]
    prepare, train, predict, export, browse = blocks[0].replace("\\\n", " ").splitlines()
    prepared = run(prepare, checkout)
    assert re.search(r"\(\d+ JPEG, \d WebP\)", prepared.stderr)
    manifest = Dataset(checkout / "data/pictures").manifest
    assert [info.wnid for info in manifest.classes] == list(SHAPES)
    counts = {name: split.samples for name, split in manifest.splits.items()}
    assert counts == {"train": 7 * (OF_EACH - 2), "val": 7 * 2}

    trained = run(train, checkout)
    assert "fc.weight, fc.bias (10 classes there, 7 here)" in trained.stderr
    assert "pictures finished" in trained.stdout

    named = run(f"{predict} --json", checkout)
    assert "new-picture.webp" in named.stdout and all(
        shape in SHAPES for shape in re.findall(r'"wnid": "(\w+)"', named.stdout)
    )
    rows = list(csv.DictReader(io.StringIO(run(f"{predict} pictures --top 1 --csv -", checkout).stdout)))[1:]
    right = np.mean([row["class"] == Path(row["picture"]).parent.name for row in rows])
    assert len(rows) == 7 * OF_EACH and right > 0.4, f"{right:.2f}; by chance: 1 of 7"

    run(export, checkout)
    exported = checkout / "exported/pictures"
    assert (exported / "classes.txt").read_text().splitlines() == list(SHAPES)
    assert {"model.onnx", "model.pt2", "model.safetensors"} <= {
        path.name for path in (checkout / "exported/pictures").iterdir()
    }

    second, *_ = commands_of_page()[5:]
    run(shlex.join(second), checkout)
    assert len(Dataset(checkout / "data/pictures-224").statistics.mean_image) == 224

    browsed(f"{browse} --port {port}", checkout, port)


def browsed(line: str, folder: Path, port: int) -> None:
    """Start the server, ask for the page that it names, and end it with Ctrl-C."""
    log = folder / "server.log"
    command = [sys.executable, *shlex.split(line)[1:]]
    with log.open("w") as file:
        server = subprocess.Popen(
            command, cwd=folder, env=surroundings(), stdout=file, stderr=file, start_new_session=True
        )
    try:
        wait_for(lambda: server.poll() is not None or answers(f"http://127.0.0.1:{port}/health"), "the server", 250)
        (page,) = re.findall(r"^  pictures: (http://\S+)$", log.read_text(), re.MULTILINE)
        assert answers(page.partition("#")[0])
        os.killpg(server.pid, signal.SIGINT)  # as a terminal does
        server.wait(limit(60))
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    assert not answers(f"http://127.0.0.1:{port}/health")
    assert "Traceback" not in log.read_text(), log.read_text()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=limit(10)) as answer:
            return answer.status == 200
    except OSError:
        return False
