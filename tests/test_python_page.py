"""docs/python.md: its code runs as it is printed, from top to bottom, in a folder as `make demo` leaves it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.data.dataset import Dataset
from tests.digit_reader import write_digit_reader
from tests.helpers import ROOT
from tests.pages import read


@pytest.fixture
def _after_the_demo(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The working directory has configs/ and demo/ with images, dataset, and a run whose net reads digits."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    Path("configs").symlink_to(ROOT / "configs")
    for name in ("images", "dataset"):
        Path("demo", name).symlink_to(digits.parent / name)
    write_digit_reader(Path("demo/runs"), "resnet14-seed0", Dataset(Path("demo/dataset")))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_after_the_demo")
def test_the_page_runs_from_top_to_bottom(capsys: pytest.CaptureFixture[str]) -> None:
    snippets = [block for language, block in read(ROOT / "docs/python.md").blocks if language == "python"]
    assert len(snippets) == 4
    names: dict[str, Any] = {}
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for snippet in snippets:
        exec(snippet, names)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    printed = capsys.readouterr().out
    assert printed.split()[0] == "3" and printed.count("%\n") == 5
    assert names["names"] == ["3", "7"] and tuple(names["scores"].shape) == (2, 10)
    assert names["seen"] == 640 and tuple(names["batch"].images.shape) == (64, 32, 32, 3)
    assert names["code"] == 0 and "from-python finished" in printed
    assert [iteration for iteration, _ in names["errors"]] == [5, 10, 15, 20]
    assert [axis.get_title() for axis in names["axes"]] == ["3"] * 3
    assert sorted(path.name for path in Path().iterdir()) == ["configs", "demo"]
