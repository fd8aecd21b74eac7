"""python -m pipeline.predict: which pictures it takes, in which order, and its CSV."""

from __future__ import annotations

import csv
import io
import os
import shutil
import sys
from pathlib import Path

import pytest

from data_prep.sources import list_folder
from pipeline import predict
from pipeline.handover.prediction import BLOCK
from tests.images import encode, photograph
from tests.pipeline.evaluation.nets_and_images import Run, figures


@pytest.fixture
def run(run_command: Run) -> Run:
    return lambda *arguments: run_command(predict.main, *arguments, "--device", "cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a.jpg, b.jpg, sub/c.jpg and sub/d.png, of different contents."""
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(("a.jpg", "b.jpg", "sub/c.jpg", "sub/d.png")):
        kind = "PNG" if name.endswith("png") else "JPEG"
        (tmp_path / name).write_bytes(encode(photograph(number, 40, 50 + number), kind))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def gives(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Standard input holds `content`."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def named(output: str) -> list[str]:
    return [picture["picture"] for picture in figures(output)["pictures"] if "classes" in picture]


@pytest.mark.usefixtures("folder")
def test_pictures_are_named_in_their_order_and_as_often_as_they_are_given(made_run: Path, run: Run) -> None:
    code, output, errors = run(made_run, "b.jpg", "sub", "a.jpg", "b.jpg", "--json")
    assert code == 0, errors
    assert named(output) == ["b.jpg", "sub/c.jpg", "sub/d.png", "a.jpg", "b.jpg"]
    first, *_, last = figures(output)["pictures"]
    assert first == last


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"b.jpg\na.jpg\n", ["b.jpg", "a.jpg"]),
        (b"\r\nsub\r\n\r\nb.jpg", ["sub/c.jpg", "sub/d.png", "b.jpg"]),
        (b"b.jpg\0sub/c.jpg\0", ["b.jpg", "sub/c.jpg"]),
        (b"two\nlines.jpg\0a.jpg\0", ["two\nlines.jpg", "a.jpg"]),
        (b" blanks .jpg\n", [" blanks .jpg"]),
        (b"\xff.jpg\na.jpg\n", ["\udcff.jpg", "a.jpg"]),
    ],
    ids=["lines", "folders-and-empty-lines", "nul", "nul-with-line-end", "blanks", "not-utf-8"],
)
def test_standard_input_names_pictures(
    made_run: Path, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, content: bytes, expected: list[str]
) -> None:
    for name in (b"two\nlines.jpg", b" blanks .jpg", b"\xff.jpg"):
        (folder / os.fsdecode(name)).write_bytes((folder / "a.jpg").read_bytes())
    gives(monkeypatch, content)
    code, output, errors = run(made_run, "-", "--json")
    assert code == 0, errors
    assert named(output) == expected


@pytest.mark.usefixtures("folder")
def test_standard_input_stands_between_other_pictures(
    made_run: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    gives(monkeypatch, b"b.jpg\n")
    assert named(run(made_run, "sub/c.jpg", "-", "a.jpg", "--json")[1]) == ["sub/c.jpg", "b.jpg", "a.jpg"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\0"])
def test_an_empty_standard_input_is_refused(
    made_run: Path, run: Run, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    gives(monkeypatch, content)
    code, output, errors = run(made_run, "-")
    assert code == 2 and not output
    assert "error: standard input names no picture: write their names to it, one a line" in errors


@pytest.mark.usefixtures("folder")
def test_what_is_no_file_is_refused_at_once(made_run: Path, run: Run) -> None:
    os.mkfifo("pipe.jpg")
    code, output, errors = run(made_run, "pipe.jpg", "a.jpg", "--json")
    assert code == 2 and named(output) == ["a.jpg"]
    assert "error: pipe.jpg cannot be read: it is a FIFO, not a file" in errors


def test_folders_are_read_by_the_rules_of_sharding(
    made_run: Path, folder: Path, run: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Hidden files are out, linked folders are in, once each; what is passed over is counted, as data_prep does."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("sub/._c.jpg", "sub/.hidden/x.jpg", "sub/x.heic", "sub/noext", "sub/more/y.HEIC"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no picture")
    (elsewhere / "e.jpg").write_bytes((folder / "a.jpg").read_bytes())
    (folder / "sub/linked").symlink_to(elsewhere)
    (folder / "sub/up").symlink_to(folder)
    code, output, errors = run(made_run, "sub", "--json")
    assert code == 0, errors
    assert named(output) == ["sub/c.jpg", "sub/d.png", "sub/linked/e.jpg"]
    heic = "2 .heic files, which are not read here: convert them to JPEG or PNG (sub/more/y.HEIC, sub/x.heic)"
    up, other = "1 leading to a folder that is taken already (sub/up)", "1 not named as a picture (sub/noext)"
    assert f"passed over: {heic}, {up}, {other}" in errors.splitlines()
    rows, passed_over = list_folder(folder / "sub", 0, 0)
    assert sorted(rows["name"].tolist()) == [b"c.jpg", b"d.png", b"linked/e.jpg"]
    assert sum(one.count for one in passed_over) == 4


@pytest.mark.usefixtures("folder")
def test_a_folder_is_read_from_inside(made_run: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("sub")
    for name in ("../sub", "."):
        code, output, errors = run(made_run, name, "--json")
        assert code == 0 and len(named(output)) == 2, errors
    code, output, errors = run(made_run, "..", "--json")
    assert named(output) == ["../a.jpg", "../b.jpg", "../sub/c.jpg", "../sub/d.png"]


def test_a_folder_without_pictures_is_refused(made_run: Path, folder: Path, run: Run) -> None:
    (folder / "raw").mkdir()
    assert "there is no picture (.jpg, .png, .webp ...) in the folder raw: give another" in run(made_run, "raw")[2]
    (folder / "raw/x.heic").touch()
    code, output, errors = run(made_run, "raw", "a.jpg")
    assert code == 2 and not output
    assert "in the folder raw; it holds 1 .heic files, which are not read here: convert them" in errors


# The CSV


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_the_csv_has_a_row_for_each_picture_and_rank(made_run: Path, folder: Path, run: Run) -> None:
    (folder / "text.jpg").write_text("no picture")
    (folder / 'with, "two".jpg').write_bytes((folder / "a.jpg").read_bytes())
    pictures = ["b.jpg", "text.jpg", 'with, "two".jpg']
    code, output, errors = run(made_run, *pictures, "--top", 3, "--csv", "out.csv", "--json")
    assert code == 2 and "error: text.jpg cannot be read: it is no picture of a kind that is read here" in errors
    assert output.splitlines()[0] == "out.csv names what 2 pictures show; 1 could not be read"
    assert figures(output) == {"net": "one", "arch": "resnet8", "csv": "out.csv", "read": 2, "unreadable": 1}
    rows = rows_of((folder / "out.csv").read_text())
    told = figures(run(made_run, *pictures, "--top", 3, "--json")[1])["pictures"]
    expected = [
        {"picture": one["picture"], "rank": str(rank), "class": answer["class"], "score": str(answer["score"]),
         "label": str(answer["label"]), "wnid": answer["wnid"], "error": ""}
        for one in told for rank, answer in enumerate(one.get("classes", ()), 1)
    ]  # fmt: skip
    bad = dict.fromkeys(rows[0], "") | {"picture": "text.jpg", "error": "it is no picture of a kind that is read here"}
    assert rows == [*expected[:3], bad, *expected[3:]]


def test_the_csv_goes_to_standard_output(made_run: Path, folder: Path, run: Run) -> None:
    code, output, _ = run(made_run, "b.jpg", "a.jpg", "--csv", "-")
    assert code == 0
    run(made_run, "b.jpg", "a.jpg", "--csv", "out.csv")
    assert output == (folder / "out.csv").read_text() and len(rows_of(output)) == 10


def test_names_keep_their_bytes_in_a_csv_file(made_run: Path, folder: Path, run: Run) -> None:
    name = os.fsdecode(b"\xff.jpg")
    (folder / name).write_bytes((folder / "a.jpg").read_bytes())
    assert run(made_run, name, "--top", 1, "--csv", "out.csv")[0] == 0
    assert (folder / "out.csv").read_bytes().splitlines()[1].startswith(b"\xff.jpg,1,")


@pytest.mark.usefixtures("folder")
def test_mistakes_get_one_sentence_and_leave_no_file(made_run: Path, run: Run) -> None:
    shutil.copy("a.jpg", "nameless")
    Path("linked").symlink_to("nameless")
    os.mkfifo("pipe")
    Path("node").symlink_to("/dev/null")  # a link, so that a mistake here costs the link
    before = {path: (path.lstat().st_ino, path.lstat().st_mode) for path in Path().rglob("*")}
    cases = [
        (["a.jpg", "--csv", "-", "--json"], "--csv - and --json both write to standard output: give --csv a file"),
        (["a.jpg", "--csv", "sub"], "sub is a folder: give another, such as answers.csv"),
        (["a.jpg", "--csv", "b.jpg"], "b.jpg is a picture's name: give another, such as answers.csv"),
        (["a.jpg", "--csv", "NEW.PNG"], "NEW.PNG is a picture's name"),
        (["a.jpg", "--csv", "new.heic"], "new.heic is a picture's name"),
        (["a.jpg", "nameless", "--csv", "nameless"], "nameless is one of the pictures"),
        (["a.jpg", "nameless", "--csv", "linked"], "linked is one of the pictures"),
        (["a.jpg", "--csv", "pipe"], "--csv pipe: it is a FIFO, not a file; --csv - writes to standard output"),
        (["a.jpg", "--csv", "node"], "--csv node: it is a device, not a file; --csv - writes to standard output"),
        (["absent.jpg", "--csv", "new/out.csv", "--weights", "ema"], "holds no moving average"),
        (["a.jpg", "--csv", "a.jpg/out.csv"], "a.jpg: it is a file, where a folder is expected"),
    ]
    for arguments, sentence in cases:
        code, _, errors = run(made_run, *arguments)
        assert code == 2 and sentence in errors and "Traceback" not in errors, (arguments, errors)
    assert {path: (path.lstat().st_ino, path.lstat().st_mode) for path in Path().rglob("*")} == before


@pytest.mark.usefixtures("folder")
def test_names_in_messages_are_one_line_and_steer_no_terminal(made_run: Path, run: Run) -> None:
    code, _, errors = run(made_run, "a\nerror: b\x1b[31m.jpg")
    assert code == 2
    assert errors.splitlines()[-1] == "error: a\\nerror: b\\x1b[31m.jpg cannot be read: there is no such file"


def test_an_interruption_leaves_no_csv_file(
    made_run: Path, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = sorted(folder.rglob("*"))
    monkeypatch.setattr("pipeline.handover.prediction.Predictor._scores", interrupted)
    code, output, errors = run(made_run, "a.jpg", "--csv", "out.csv")
    assert code == 130 and not output and "interrupted before the end" in errors
    assert sorted(folder.rglob("*")) == before


# Many pictures


@pytest.mark.usefixtures("folder")
def test_no_more_than_a_block_is_in_memory(made_run: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 150 pictures, the first table is printed before the last block is read."""
    from pipeline.handover import prediction

    read = prediction.read_pictures
    seen: list[tuple[int, int]] = []

    def watched(places: list[Path], *arguments: object) -> object:
        seen.append((len(places), sys.stdout.getvalue().count(" a.jpg ")))  # type: ignore[attr-defined]
        return read(places, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(prediction, "read_pictures", watched)
    gives(monkeypatch, b"a.jpg\n" * 150)
    printed = io.StringIO()
    monkeypatch.setattr(sys, "stdout", printed)
    code, _, errors = run(made_run, "-", "--top", 1)
    assert code == 0, errors
    assert seen == [(BLOCK, 0), (BLOCK, BLOCK), (150 - 2 * BLOCK, 2 * BLOCK)]
    assert printed.getvalue().count(" a.jpg ") == 150


@pytest.mark.usefixtures("folder")
def test_it_ends_where_nobody_reads_on(made_run: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`predict ... | head -1`: no more blocks are read."""
    from pipeline.handover import prediction

    read, blocks = prediction.read_pictures, []

    def counted(*arguments: object) -> object:
        blocks.append(arguments)
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(prediction, "read_pictures", counted)
    monkeypatch.setattr(predict, "reader_has_gone", lambda: len(blocks) == 2)
    gives(monkeypatch, b"a.jpg\n" * 500)
    code, _, errors = run(made_run, "-", "--csv", "-", "--top", "1")
    assert code == 0, errors
    assert len(blocks) == 2
    # A file has no reader: it is written to its end.
    gives(monkeypatch, b"a.jpg\n" * 200)
    assert run(made_run, "-", "--csv", "out.csv", "--top", "1")[0] == 0
    assert len(Path("out.csv").read_text().splitlines()) == 201
