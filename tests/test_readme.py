"""README's lines for ImageNet, typed in a folder that has nothing yet: one sentence says what is missing, and exit code 2.

That they fit their parsers is tested in tests/test_docs.py; `make demo` runs the lines beside them.
"""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from pipeline.base.command import UserError
from tests import commands
from tests.helpers import ROOT
from tests.images import encode, photograph

MISSING = {
    "shards": "no SOURCE was named, and there is no data/ilsvrc here: put ImageNet's files there",
    "train": "data/imagenet is not a dataset folder",
    "test": "runs/resnet152-seed0",
    "use": "runs/resnet152-seed0",
    "ensemble": "runs/resnet50-seed0",
    "mistakes": "runs/resnet152-seed0",
    "report": "there is no folder runs",
    "browse": "runs holds no run",
}


def lines() -> dict[str, str]:
    """The column `ImageNet` of README's table, by its rows."""
    text = (ROOT / "README.md").read_text()
    _, table = text.split("| | the demo | ImageNet |\n|---|---|---|\n")
    rows = re.findall(r"^\| (\w+) \| `[^`]+` \| `([^`]+)` \|$", table.split("\n\n")[0], re.MULTILINE)
    return dict(rows)


def test_every_line_is_tried() -> None:
    assert lines().keys() == MISSING.keys()


@pytest.mark.parametrize("row", MISSING)
def test_a_line_says_what_is_missing(row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = commands.find(shlex.split(lines()[row])[1:])
    assert found is not None
    module, words = found
    with pytest.raises(UserError) as caught:
        importlib.import_module(module).main(words)
    assert MISSING[row] in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["shard_imagenet", "shard_cifar10"])
def test_the_default_folders_are_those_of_the_recipes(name: str) -> None:
    from pipeline.run.options import load

    places = importlib.import_module(f"data_prep.{name}").PLACES
    recipe = {"shard_imagenet": "imagenet", "shard_cifar10": "cifar10"}[name]
    assert str(places.destination) == load(ROOT / "configs" / f"{recipe}.yaml").data
    assert places.source.parent == places.destination.parent


def test_default_folders_are_read_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A link does for SOURCE."""
    from data_prep import shard_imagenet, verify

    for number in range(4):
        file = tmp_path / "images" / "train" / f"class-{number % 2}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(photograph(number, 48, 64)))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ilsvrc").symlink_to(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    shard_imagenet.main(["--statistics-size", "32", "--statistics-short-side", "36", "--workers", "1"])
    assert "reading data/ilsvrc, making data/imagenet" in capsys.readouterr().err
    verify.main(["--workers", "1"])
    said = capsys.readouterr()
    assert "auditing data/imagenet" in said.err and "data/imagenet is whole: 4 images" in said.out
