"""python -m pipeline.predict: what pipeline.evaluate says of the same pictures, to the bit, and names instead of numbers."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import predict
from pipeline.data.dataset import Dataset
from pipeline.evaluation.scores import load
from tests.images import encode, photograph
from tests.pipeline.evaluation.nets_and_images import Run, figures, name_data, write_run


@pytest.fixture
def run(run_command: Run) -> Run:
    return lambda *arguments: run_command(predict.main, *arguments, "--device", "cpu")


@pytest.fixture
def pictures(ten_classes: Dataset, tmp_path: Path) -> Path:
    """The images of the dataset as files, whose names sort as the sample ids."""
    return written(ten_classes, tmp_path / "pictures")


def written(dataset: Dataset, folder: Path, split: str = "train") -> Path:
    samples = dataset.split(split)
    folder.mkdir()
    for sample in range(len(samples)):
        (folder / f"{sample:04d}.jpg").write_bytes(samples.read(sample))
    return folder


def scores_of(output: str, classes: int = 10) -> np.ndarray:
    """float16 [pictures, classes], of --json with all classes."""
    table = np.full((len(figures(output)["pictures"]), classes), np.nan, np.float16)
    for row, picture in enumerate(figures(output)["pictures"]):
        for answer in picture["classes"]:
            table[row, answer["label"]] = answer["score"]
    return table


def test_predictions_are_those_of_the_score_file(
    few_of_ten_classes: Dataset, tmp_path: Path, run: Run, run_evaluate: Run
) -> None:
    """67 pictures, which are two blocks; the scores of all ten classes."""
    made_run = write_run(tmp_path / "runs", "one", few_of_ten_classes)
    pictures = written(few_of_ten_classes, tmp_path / "pictures")
    assert run_evaluate(made_run, "--split", "train")[0] == 0
    expected = load(made_run / "scores/center-train-00000100.npz").scores
    torch.set_num_threads(1)
    code, output, errors = run(made_run, pictures, "--top", 10, "--json")
    assert code == 0, errors
    np.testing.assert_array_equal(scores_of(output), expected)
    # Another block changes the last bits at most, and here no answer.
    code, output, errors = run(made_run, *(pictures / f"{sample:04d}.jpg" for sample in (7, 3)), "--top", 10, "--json")
    assert code == 0, errors
    np.testing.assert_allclose(scores_of(output), expected[[7, 3]], atol=1e-3)
    answers = [[one["label"] for one in picture["classes"]] for picture in figures(output)["pictures"]]
    assert answers == np.argsort(-expected[[7, 3]].astype(np.float32), axis=1, kind="stable").tolist()


def test_real_images_get_the_scores_of_the_score_file(
    few_real_in_ten_classes: Dataset, tmp_path: Path, run: Run, run_evaluate: Run
) -> None:
    """Of many sizes, shapes and codings; among them one that is turned by EXIF and a grey one."""
    folder = write_run(tmp_path / "runs", "one", few_real_in_ten_classes)
    torch.set_num_threads(1)
    code, output, errors = run(folder, written(few_real_in_ten_classes, tmp_path / "real"), "--top", 10, "--json")
    assert code == 0, errors
    assert run_evaluate(folder, "--split", "train")[0] == 0
    np.testing.assert_array_equal(scores_of(output), load(folder / "scores/center-train-00000100.npz").scores)


def test_the_table_names_the_classes(made_run: Path, pictures: Path, run: Run, ten_classes: Dataset) -> None:
    code, output, _ = run(made_run, pictures / "0004.jpg", "--top", 2, "--json")
    assert code == 0
    (picture,) = figures(output)["pictures"]
    assert picture["picture"] == str(pictures / "0004.jpg") and len(picture["classes"]) == 2
    best, second = picture["classes"]
    assert best["score"] >= second["score"]
    assert best["wnid"] == best["class"] == f"n{best['label']:08d}", "a class without a name goes by its WordNet id"
    assert f"{best['class']}" in output and f"{100 * best['score']:.2f}" in output
    assert len(run(made_run, pictures / "0004.jpg")[1].splitlines()) - len(output.splitlines()) == 5 - 2 - 1


def test_png_and_cmyk_pictures_are_read(made_run: Path, tmp_path: Path, run: Run) -> None:
    """The same pixels as PNG and as RGB give the same answer; CMYK gives that of its RGB form."""
    image = photograph(1, 50, 70)
    jpeg = encode(image, quality=95)
    pixels = Image.open(io.BytesIO(jpeg)).convert("RGB")
    (tmp_path / "a.jpeg").write_bytes(jpeg)
    (tmp_path / "b.PNG").write_bytes(encode(pixels, "PNG"))
    (tmp_path / "c.png").write_bytes(encode(pixels.convert("RGBA"), "PNG"))
    cmyk = pixels.convert("CMYK")
    (tmp_path / "d.jpg").write_bytes(encode(cmyk, quality=95))
    shown = Image.open(tmp_path / "d.jpg").convert("RGB")
    (tmp_path / "e.png").write_bytes(encode(shown, "PNG"))
    code, output, errors = run(made_run, tmp_path, "--top", 10, "--json")
    assert code == 0, errors
    table = scores_of(output).astype(np.float32)
    np.testing.assert_allclose(table[1:3], table[[0, 0]], atol=0.01)
    np.testing.assert_allclose(table[3], table[4], atol=0.02)


def test_pictures_that_cannot_be_read_do_not_keep_the_others_from_their_names(
    made_run: Path, pictures: Path, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").touch()
    whole = (pictures / "0000.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    bad = [tmp_path / name for name in ("text.jpg", "missing.jpg", "empty.png", "cut.jpg")]
    code, output, errors = run(made_run, bad[0], pictures / "0001.jpg", *bad[1:], pictures / "0002.jpg", "--json")
    assert code == 2
    told = figures(output)["pictures"]
    named = [picture["picture"] for picture in told]
    assert named == [str(path) for path in (bad[0], pictures / "0001.jpg", *bad[1:], pictures / "0002.jpg")]
    assert [set(picture) - {"picture"} for picture in told] == [
        {"classes"} if path.parent == pictures else {"error"} for path in map(Path, named)
    ]
    assert told[2]["error"] == "there is no such file"
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 4 and all(f"error: {path} cannot be read: " in errors for path in bad), errors
    assert "missing.jpg cannot be read: there is no such file" in errors
    assert "text.jpg cannot be read: it is no picture of a kind that is read here" in errors
    assert "Traceback" not in errors
    code, output, errors = run(made_run, tmp_path / "text.jpg", "--json")
    assert code == 2 and [set(one) for one in figures(output)["pictures"]] == [{"picture", "error"}]


def test_a_run_with_its_model_folder_needs_no_dataset(
    made_run: Path, ten_classes: Dataset, pictures: Path, run: Run, tmp_path: Path
) -> None:
    from pipeline.evaluation.nets import find_checkpoint, open_checkpoint
    from pipeline.export import write_missing_model

    expected = figures(run(made_run, pictures / "0001.jpg", "--json")[1])
    trained = open_checkpoint(find_checkpoint(made_run), "final")
    assert trained is not None
    write_missing_model(trained, ten_classes)
    name_data(made_run, tmp_path / "gone")
    code, output, errors = run(made_run, pictures / "0001.jpg", "--json")
    assert code == 0, errors
    assert figures(output) == expected
    shutil.rmtree(made_run / "model")
    code, _, errors = run(made_run, pictures / "0001.jpg")
    assert code == 2 and "is not a dataset folder" in errors


def test_mistakes_get_one_sentence(made_run: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported/model.safetensors").touch()
    cases: list[tuple[list[Any], str]] = [
        ([tmp_path / "absent", tmp_path / "a.jpg"], "there is no run folder or checkpoint"),
        (
            ["torchvision:resnet50", tmp_path / "a.jpg"],
            "is no run: give runs/NAME; python -m pipeline.evaluate --weights tests",
        ),
        ([tmp_path / "exported", tmp_path / "a.jpg"], "is an exported net, not a run folder: give the run"),
        (
            [tmp_path / "exported/model.safetensors", tmp_path / "a.jpg"],
            "python -m pipeline.evaluate --weights tests weights",
        ),
        (
            [made_run, "https://example.org/a.jpg"],
            "cannot be read: it is an address, and pictures are files: download it",
        ),
        ([made_run, tmp_path / "empty"], "there is no picture (.jpg, .png, .webp ...) in the folder"),
        ([made_run], "required: PICTURE"),
        ([made_run, tmp_path / "a.jpg", "--top", 0], "'0' is not a whole number above 0"),
        ([made_run, tmp_path / "a.jpg", "--weights", "ema"], "holds no moving average"),
    ]
    for arguments, sentence in cases:
        code, _, errors = run(*arguments)
        assert code == 2 and sentence in errors and "Traceback" not in errors, (arguments, errors)


def test_json_is_the_last_line(made_run: Path, pictures: Path, run: Run) -> None:
    output = run(made_run, pictures / "0001.jpg", "--json")[1]
    assert set(json.loads(output.splitlines()[-1])) == {"net", "arch", "pictures"}
