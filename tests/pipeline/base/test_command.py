"""How commands end: exit codes and sentences."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pipeline.base import command
from pipeline.base.command import UserError, describe_os_error, nearest


@pytest.mark.parametrize(
    ("raised", "code", "sentence"),
    [
        (UserError("the thing is wrong: mend it"), 2, "error: the thing is wrong: mend it"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), 2, "error: /data/x: the disk is full"),
    ],
)
def test_exit_codes(raised: BaseException, code: int, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise raised

    with pytest.raises(SystemExit) as ended:
        command.run(main)
    captured = capsys.readouterr()
    assert ended.value.code == code and sentence in captured.err and captured.err.count("\n") == 1
    assert captured.out == ""


def test_what_stands_in_the_way_of_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for act in (
        (tmp_path / "file" / "a").touch,
        (tmp_path / "file").mkdir,
        (tmp_path / ("a" * 300)).touch,
        tmp_path.read_bytes,
    ):
        with pytest.raises(OSError) as raised:
            act()
        assert (sentence := describe_os_error(raised.value)) and str(tmp_path) in sentence


def test_programming_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        command.run(lambda: 1 // 0)


def test_nearest_names() -> None:
    assert nearest("resnet5", ["resnet50", "plain18", "x"]) == "did you mean 'resnet50'?"
    assert nearest("zzz", ["b", "a"]) == "valid: a, b"
