"""`pipeline.load`: the obvious use of a trained net is right."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pipeline
from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset
from tests.digit_reader import pixels, write_digit_reader
from tests.helpers import ROOT
from tests.images import encode, photograph


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digit_reader(tmp_path_factory.mktemp("runs"), "digits", Dataset(digits))


@pytest.fixture
def picture(digits: Path, tmp_path: Path) -> tuple[Path, str]:
    """A digit of the val split, and its name."""
    split = Dataset(digits).split("val")
    (tmp_path / "digit.jpg").write_bytes(split.read(60))
    return tmp_path / "digit.jpg", str(split.labels[60])


def test_a_digit_is_named(run: Path, picture: tuple[Path, str]) -> None:
    model = pipeline.load(str(run), device="cpu")
    path, digit = picture
    answers = model.predict(str(path))
    assert len(answers) == 5 and answers[0].name == digit and answers[0].score > 0.5
    assert [one.score for one in answers] == sorted((one.score for one in answers), reverse=True)
    assert answers == model.predict(path) == model.predict(path.read_bytes())
    assert model.predict(path, top=2) == answers[:2]
    assert len(model.predict(path, top=99)) == 10
    assert model.classes == tuple("0123456789")
    assert "resnet8" in repr(model) and "10 classes of digits" in repr(model)


def test_scores_are_those_of_the_net_that_torch_runs(run: Path, digits: Path) -> None:
    """Against the plain net in evaluation mode, on pixels that Pillow made."""
    model, split = pipeline.load(run, device="cpu"), Dataset(digits).split("val")
    expected_images = pixels(split, Dataset(digits).statistics.mean_image)[:20]
    images = model.preprocess([split.read(sample) for sample in range(20)])
    assert images.shape == (20, 3, 32, 32) and images.dtype == torch.float32
    assert (images - expected_images).abs().mean() < 1, "DALI's pixels are not quite Pillow's"
    assert not model.net.training
    scores = model(images)
    with torch.no_grad():
        expected = model.net(images).softmax(dim=1)
    np.testing.assert_allclose(scores.numpy(), expected.numpy(), atol=1e-5)
    predicted = [prediction.answers[0].label for prediction in model.predict_all(split.read(k) for k in range(20))]
    assert predicted == scores.argmax(dim=1).tolist()
    assert np.mean(np.array(predicted) == split.labels[:20]) >= 0.8


def test_a_checkpoint_is_a_target_too(run: Path, picture: tuple[Path, str]) -> None:
    (checkpoint,) = (run / "checkpoints").iterdir()
    expected = pipeline.load(run, device="cpu").predict(picture[0])
    assert pipeline.load(checkpoint, device="cpu").predict(picture[0]) == expected


def test_training_mode_and_changed_weights_are_heeded(run: Path, picture: tuple[Path, str]) -> None:
    """Predictions never use batch statistics, and follow the weights of `net`."""
    model = pipeline.load(run, device="cpu")
    before = model.predict(picture[0])
    model.net.train()
    assert model.predict(picture[0]) == before
    with torch.no_grad():
        model.net.fc.weight.zero_()
        model.net.fc.bias.zero_()
    assert {answer.score for answer in model.predict(picture[0], top=10)} == {float(torch.tensor(0.1).half())}
    other = torch.nn.Linear(model.net.fc.in_features, 10)
    torch.nn.init.zeros_(other.weight)
    with torch.no_grad():
        other.bias.copy_(torch.arange(10) * 9.0)
    model.net.fc = other
    assert model.predict(picture[0])[0].label == 9


def test_it_opens_within_inference_mode(run: Path, picture: tuple[Path, str]) -> None:
    with torch.inference_mode():
        model = pipeline.load(run, device="cpu")
        assert model.predict(picture[0])[0].name == picture[1]


def test_settings_of_the_process_stay(run: Path, picture: tuple[Path, str]) -> None:
    before = torch.backends.cudnn.allow_tf32, torch.is_grad_enabled(), torch.get_num_threads()
    pipeline.load(run, device="cpu").predict(picture[0])
    assert (torch.backends.cudnn.allow_tf32, torch.is_grad_enabled(), torch.get_num_threads()) == before


def test_mistakes_get_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run folder or checkpoint"):
        pipeline.load(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no moving average"):
        pipeline.load(run, weights="ema", device="cpu")
    model = pipeline.load(run, device="cpu")
    with pytest.raises(UserError, match=r"absent.jpg cannot be read \(there is no such file\): give another"):
        model.predict(tmp_path / "absent.jpg")
    with pytest.raises(
        UserError, match=r"a picture cannot be read \(it is no picture of a kind that is read here\): give another"
    ):
        model.preprocess([b"no picture"])
    (prediction,) = model.predict_all([b"no picture"])
    assert not prediction.answers and prediction.reason == "it is no picture of a kind that is read here"


def test_images_of_pillow_and_arrays_are_pictures(run: Path, tmp_path: Path) -> None:
    """Each gets what a PNG of the same pixels gets, which goes through the decoder of every other file."""
    model = pipeline.load(run, device="cpu")
    for number, mode in enumerate(("RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16")):
        shown = photograph(number, 41, 57)
        made = (
            Image.fromarray(np.asarray(shown.convert("L")).astype(np.uint16) * 257)
            if mode == "I;16"
            else shown.convert(mode)
        )
        seen = shown.convert("L") if mode == "I;16" else made.convert("L" if mode in ("1", "LA") else "RGB")
        seen.save(tmp_path / f"{number}.png")
        given: list[Any] = [made, np.asarray(seen.convert("RGB")), tmp_path / f"{number}.png"]
        assert len({model.predict(picture) for picture in given}) == 1, mode
        images = model.preprocess(given)
        assert torch.equal(images[0], images[2]) and torch.equal(images[1], images[2]), mode


def test_an_image_that_pillow_has_only_opened_is_a_picture(run: Path, picture: tuple[Path, str]) -> None:
    model = pipeline.load(run, device="cpu")
    opened = Image.open(picture[0])
    predictions = list(model.predict_all([opened] * 70))
    assert {prediction.answers[0].name for prediction in predictions} == {picture[1]}
    assert predictions[0].name == "a picture" and predictions[0].picture is opened
    flipped = np.asarray(Image.open(picture[0]).convert("RGB"))[:, ::-1]  # a view with negative strides
    assert torch.equal(model.preprocess([flipped]), model.preprocess([np.ascontiguousarray(flipped)]))


def test_images_that_cannot_be_read_keep_the_others(run: Path, picture: tuple[Path, str], tmp_path: Path) -> None:
    whole = encode(photograph(1, 60, 60), quality=95)
    cut, closed = Image.open(io.BytesIO(whole[: len(whole) // 2])), Image.open(picture[0])
    closed.close()
    predictions = list(pipeline.load(run, device="cpu").predict_all([cut, closed, Image.new("F", (4, 4)), picture[0]]))
    assert [bool(one.reason) for one in predictions] == [True, True, True, False]
    assert "truncated" in predictions[0].reason and "32 bits" in predictions[2].reason


def test_what_is_no_picture_gets_one_sentence(run: Path, picture: tuple[Path, str]) -> None:
    load: Any = pipeline.load  # all of these are refused by the types, too
    model, path = load(run, device="cpu"), picture[0]
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: model.predict([path]), "a list is no picture: give a path, .*; predict_all takes many"),
        (lambda: model.predict(np.zeros((3, 32, 32), np.uint8)), r"a uint8 array \[3, 32, 32\] is no picture"),
        (lambda: model.predict(np.zeros((32, 32), np.uint8)), r"a uint8 array \[32, 32\] is no picture"),
        (lambda: model.predict(np.zeros((32, 32, 3))), r"a float64 array \[32, 32, 3\] is no picture"),
        (lambda: model.predict(np.zeros((0, 32, 3), np.uint8)), r"a uint8 array \[0, 32, 3\] is no picture"),
        (lambda: model.predict(torch.zeros(3, 32, 32)), r"a float32 tensor \[3, 32, 32\] is no picture"),
        (lambda: model.predict(None), "a NoneType is no picture"),
        (lambda: model.predict(path, -1), "top is -1: give how many"),
        (lambda: model.predict(path, top=0), "top is 0: give how many"),
        (lambda: next(model.predict_all(str(path))), r"write model\.predict\(picture\)"),
        (lambda: model.preprocess("a.webp"), r"write model\.preprocess\(\[picture\]\)"),
        (lambda: model.preprocess(path), r"write model\.preprocess\(\[picture\]\)"),
        (lambda: model.preprocess([]), "a list of one picture or more"),
        (
            lambda: model(torch.zeros(3, 32, 32)),
            r"float32 \[N, 3, 32, 32\], and this is a float32 tensor \[3, 32, 32\]",
        ),
        (lambda: model(torch.zeros(1, 32, 32, 3)), r"this is a float32 tensor \[1, 32, 32, 3\]"),
        (lambda: model(torch.zeros(1, 3, 32, 32, dtype=torch.int64)), "this is an int64 tensor"),
        (lambda: model([path]), "this is a list: write model"),
        (
            lambda: load(run, weights="foo"),
            "there is no set of weights 'foo': valid: ema, final, recomputed-bn",
        ),
        (lambda: load(run, device="tpu"), "there is no device 'tpu': "),
    ]
    for call, sentence in calls:
        with pytest.raises(UserError, match=sentence):
            call()


def test_importing_the_package_is_quick() -> None:
    """Every module imports it, also those that answer --help before torch has come."""
    code = "import pipeline, sys; assert callable(pipeline.load); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "nvidia"} & set(done.stdout.split())
