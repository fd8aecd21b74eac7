"""What command lines that cannot be read are answered."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from launch.on_slurm import ending
from pipeline.base.command import UserError
from pipeline.tracking import __main__ as tracking


@pytest.mark.parametrize(
    ("main", "words", "sentence"),
    [
        (tracking.main, "", "the following arguments are required: open|sync|export: see --help"),
        (tracking.main, "opne runs", "invalid choice: 'opne'"),
        (tracking.main, "sync", "the following arguments are required: RUN: see --help"),
        (tracking.main, "open runs --prot 5001", "--prot is not an option: did you mean '--port'"),
        (tracking.main, "sync runs/a --seconds long", "argument --seconds: invalid float value: 'long'"),
        (ending.run, "runs/a/slurm --code x --limit 3", "argument --code: invalid int value: 'x'"),
        (ending.run, "runs/a/slurm --code 1", "the following arguments are required: --limit"),
    ],
)
def test_mistakes_are_one_sentence(main: Callable[[list[str]], int], words: str, sentence: str) -> None:
    with pytest.raises(UserError) as mistake:
        main(words.split())
    assert sentence in str(mistake.value) and "\n" not in str(mistake.value)
