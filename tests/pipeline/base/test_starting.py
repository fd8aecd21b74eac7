"""The first line of a command, for what people type."""

from __future__ import annotations

import runpy
import sys
from contextlib import suppress

import pytest

from data_prep.first_line import preparing_line
from pipeline.base.starting import with_targets

PICTURES = [f"{number}.jpg" for number in range(1, 13)]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["runs/a", "runs/b", "--json"], "averaging runs/a runs/b"),
        (["--by", "net", "runs/a"], "averaging nets"),
        (PICTURES, "averaging 1.jpg 2.jpg 3.jpg 4.jpg 5.jpg and 7 more"),
    ],
)
def test_the_line_names_the_first_words_and_is_whole_without_them(words: list[str], line: str) -> None:
    assert with_targets("averaging", words, "nets") == line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "preparing a dataset"),
        (["images", "--name", "digits"], "preparing a dataset from images"),
        (["images", "dataset", "--name", "digits"], "preparing dataset from images"),
    ],
)
def test_preparing_tells_the_source_from_what_is_made(words: list[str], line: str) -> None:
    assert preparing_line(words) == line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["runs/a", *PICTURES], "asking runs/a about 1.jpg 2.jpg 3.jpg 4.jpg 5.jpg and 7 more\n"),
        (
            ["runs/a", "--top", "3"],
            "asking runs/a about pictures\nerror: the following arguments are required: PICTURE: see --help\n",
        ),
        (["--top", "3", "runs/a", "1.jpg"], "asking a net\n"),
    ],
)
def test_prediction_tells_the_net_from_the_pictures(
    words: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.base import command

    monkeypatch.setattr(command, "run", lambda main: None)
    monkeypatch.setattr(sys, "argv", ["predict.py", *words])
    monkeypatch.delitem(sys.modules, "pipeline.predict", raising=False)  # runpy warns of a module that is there already
    with suppress(SystemExit):
        runpy.run_module("pipeline.predict", run_name="__main__")
    assert capsys.readouterr().err == line
