"""What becomes of prints whose output is closed, full, gone, or never read; what of names is shown."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.base.output import printable, shown
from tests.helpers import wait_for
from tests.patience import limit

COMMAND = """
import os, sys, warnings
from pipeline.base import command, output
output.prepare()
def main():
    for number in range(1000):  # more than a buffer holds
        print("a result of some length", number)
        print("a message of some length", number, file=sys.stderr)
    warnings.warn("of a library")
    os.write(1, b"of machine code") if {machine} else None
    open("done", "w").close()
command.run(main, kept={kept})
"""


def _ended(program: str, redirections: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a Python program in a shell with these redirections; what reaches the shell's own output."""
    shell = f'"$PYTHON" -c "$PROGRAM" {redirections}'
    given = {**os.environ, "PYTHON": sys.executable, "PROGRAM": program, **environment}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell],
        cwd=folder,
        env=given,
        capture_output=True,
        timeout=limit(60),
        check=False,
    )


LOST = b"error: standard output could not be written ("


@pytest.mark.parametrize(
    ("redirections", "code", "said"),
    [
        (">/dev/full", 2, LOST + b"No space left on device"),
        (">&-", 2, LOST + b"it is closed"),
        ("| head -1", 0, b"a message"),
        ("| true", 0, b"a message"),
        ("2>/dev/full", 0, b""),
        ("2>&-", 0, b""),
        ("2>&1 | head -1", 0, b""),
        ("2> >(true)", 0, b""),
        (">&- 2>&- <&-", 2, b""),
        (">/dev/full 2>&1", 2, b""),
    ],
)
@pytest.mark.parametrize("kept", [False, True])
def test_no_output_ends_the_work(redirections: str, code: int, said: bytes, kept: bool, tmp_path: Path) -> None:
    done = _ended(COMMAND.format(kept=kept, machine=False), redirections, tmp_path)
    assert (tmp_path / "done").exists()
    assert done.returncode == (0 if kept else code), done.stderr
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
    assert said in done.stderr or (kept and LOST in said)


def test_all_arrives_where_all_can_be_written(tmp_path: Path) -> None:
    done = _ended(COMMAND.format(kept=False, machine=True), "", tmp_path)
    results = "".join(f"a result of some length {number}\n" for number in range(1000)).encode()
    assert done.returncode == 0 and done.stdout.replace(b"of machine code", b"") == results
    assert done.stderr.count(b"a message of some length") == 1000 and b"UserWarning: of a library" in done.stderr


def test_a_new_file_does_not_become_standard_output(tmp_path: Path) -> None:
    program = """
import os
from pipeline.base.output import prepare
prepare()
with open("checkpoint", "w") as file:
    assert file.fileno() > 2
    os.system("echo of a child; echo of a child >&2")
    os.write(1, b"of machine code")
    os.write(2, b"of machine code")
"""
    assert _ended(program, "<&- >&- 2>&-", tmp_path).returncode == 0
    assert (tmp_path / "checkpoint").read_bytes() == b""


UNREAD = """
import os, signal, sys
from pipeline.base import output
output.PATIENCE_SECONDS = 0.05
output.prepare()
signal.signal(signal.SIGALRM, lambda *_: print("of a signal's handler", file=sys.stderr))
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.3)
for number in range(30_000):
    print("a message of some length", number, file=sys.stderr)
signal.setitimer(signal.ITIMER_REAL, 0)
output.write_now("last words")
assert not output.is_read()
open("done", "w").close()
sys.stdin.read()
print("read again", file=sys.stderr)
"""


def _pipe() -> tuple[int, int]:
    return os.pipe()


def _terminal() -> tuple[int, int]:
    """A terminal that its user has stopped by Ctrl-S."""
    ours, theirs = pty.openpty()
    termios.tcflow(theirs, termios.TCOOFF)
    return ours, theirs


@pytest.mark.parametrize("made", [_pipe, _terminal])
def test_messages_that_nobody_reads_do_not_hold_up_the_work(
    made: Callable[[], tuple[int, int]], tmp_path: Path
) -> None:
    ours, theirs = made()
    process = subprocess.Popen([sys.executable, "-c", UNREAD], cwd=tmp_path, stdin=subprocess.PIPE, stderr=theirs)
    try:
        wait_for(lambda: (tmp_path / "done").exists(), "the end of the work")
        assert process.stdin
        if made is _terminal:
            termios.tcflow(theirs, termios.TCOON)
        os.close(theirs)
        os.set_blocking(ours, False)
        read = [b""]

        def reads(end: bytes) -> bool:
            with suppress(OSError):
                while part := os.read(ours, 1 << 16):
                    read[0] += part
            return end in read[0]

        if made is _pipe:  # a terminal has kept nothing
            wait_for(lambda: reads(b"a message of some length 0"), "what was written before")
        process.stdin.close()
        wait_for(lambda: reads(b"read again"), "the message after them")
        assert b"(some lines are missing here" in read[0] and b"Error" not in read[0]
        assert process.wait(limit(30)) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_results_wait_for_their_reader(tmp_path: Path) -> None:
    """`| less`: however late it reads, it gets all."""
    program = (
        "from pipeline.base import output\noutput.PATIENCE_SECONDS = 0.01\noutput.prepare()\nprint('x' * 1_000_000)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    assert process.stdout and len(process.stdout.read()) == 1_000_001 and process.wait(limit(30)) == 0


def test_a_terminal_that_is_gone(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    program = f"import sys; sys.stdin.readline()\n{COMMAND.format(kept=True, machine=False)}"
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.close(ours)
    process.communicate(b"go on\n", timeout=limit(60))
    assert process.returncode == 0 and (tmp_path / "done").exists()


def test_a_message_that_another_programs_terminal_mode_defers(tmp_path: Path) -> None:
    """Programs that share a terminal may make it non-blocking: Python's own streams then raise BlockingIOError."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    program = "from pipeline.base.output import prepare\nprepare()\nprint('x' * 1_000_000)"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        assert len(file.read()) == 1_000_001
    assert process.communicate(timeout=limit(30))[1] == "" and process.returncode == 0


NAME = "\\x1b[2J\\x1b]0;title\\x07\\rcat\\x9b2J\\u202e\\udcff \\xe4 \\u732b \\x1b[31mred\\x1b[0m"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PYTHONIOENCODING": "utf-8"}, "ä 猫"),
        ({"PYTHONIOENCODING": "latin-1"}, "ä \\u732b"),
        ({"PYTHONIOENCODING": "ascii"}, "\\xe4 \\u732b"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "\\xe4 \\u732b"),
    ],
)
def test_a_print_shows_what_the_encoding_lacks_and_does_not_steer_the_terminal(
    environment: Mapping[str, str], expected: str, tmp_path: Path
) -> None:
    program = f'from pipeline.base.output import prepare\nprepare()\nprint("{NAME}")'
    done = _ended(program, "", tmp_path, **environment)
    encoding = environment.get("PYTHONIOENCODING", "ascii")
    escaped = "\\x1b[2J\\x1b]0;title\\x07\\rcat\\x9b2J\\u202e\\udcff " + expected
    assert (done.returncode, done.stdout.decode(encoding)) == (0, f"{escaped} \x1b[31mred\x1b[0m\n"), done.stderr


def test_what_is_escaped() -> None:
    assert shown("a\nb\tc\r\x1b[1m") == r"a\nb\tc\r\x1b[1m"
    assert printable("a\nb\tc\r\n\rd\x1b[1m\x1b[1A") == "a\nb\tc\r\n\\rd\x1b[1m\\x1b[1A"
    for code in range(0x110000):  # every character with which Unicode controls something, and no letter
        character = chr(code)
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            assert len(shown(character)) > 1, hex(code)
        elif unicodedata.category(character)[0] in "LMNPS":
            assert shown(character) == printable(character) == character


UTF8 = """
import sys
from pipeline.base.starting import begin
begin("")
print(sys.getfilesystemencoding(), sys.flags.utf8_mode, sys.stdout.encoding, "ä")
open("läufe", "w").close()
"""


def test_file_names_are_utf8_in_any_locale(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(UTF8, encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    given = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}
    done = subprocess.run(
        [sys.executable, "program.py", "lä"],
        cwd=tmp_path,
        env={**given, **locale},
        capture_output=True,
        timeout=limit(60),
    )
    assert re.fullmatch(rb"utf-8 1 (ascii|ANSI_X3.4-1968) \\xe4\n", done.stdout), (done.stdout, done.stderr)
    assert (tmp_path / "läufe").exists()
