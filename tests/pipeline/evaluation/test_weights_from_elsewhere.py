"""State dicts of other programs: torchvision's nets as the reference, in every wrapping they come in."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms import v2 as transforms

from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset
from pipeline.evaluation.foreign import WeightsFile, open_weights, read_weights
from pipeline.evaluation.nets import digest
from pipeline.evaluation.scores import load
from tests.images import encode, photograph
from tests.pipeline.data.small_datasets import write_dataset
from tests.pipeline.evaluation.nets_and_images import Run, decoded, varied_resnet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """80 PNG images of 32 x 32 in 6 classes, as CIFAR's: nothing is resized, so every pixel is known."""
    images = [encode(photograph(number, 32, 32), "PNG") for number in range(80)]
    labels = [number % CLASSES for number in range(80)]
    return write_dataset(tmp_path_factory.mktemp("tiny") / "data", images, labels)


def normalized(image: Image.Image) -> torch.Tensor:
    """As torchvision's scripts do it: ToTensor and Normalize on the 0..1 scale."""
    steps = [transforms.ToImage(), transforms.ToDtype(torch.float32, scale=True), transforms.Normalize(MEAN, STD)]
    return transforms.Compose(steps)(image)[None]


@pytest.fixture(scope="module")
def published(tiny: Dataset) -> torch.nn.Module:
    return varied_resnet("resnet8", CLASSES, torch.cat([normalized(image) for image in decoded(tiny)]))


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The naming of the public CIFAR reproductions, trained under DataParallel."""
    return {"module." + key.replace("fc.", "linear."): value for key, value in state.items()}


def wrapped(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "plain": state,
        "module.": {f"module.{key}": value for key, value in state.items()},
        "nested": {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}},
        "compiled": {"model": {f"_orig_mod.{key}": value for key, value in state.items()}},
        "linear": {"state_dict": renamed(state), "best_prec1": 91.7},
        "without counters": {key: value for key, value in state.items() if "num_batches" not in key},
    }


@pytest.mark.parametrize("wrapping", ["plain", "module.", "nested", "compiled", "linear", "without counters"])
def test_every_wrapping_gives_the_same_weights(tmp_path: Path, published: torch.nn.Module, wrapping: str) -> None:
    state = published.state_dict()
    torch.save(wrapped(state)[wrapping], tmp_path / "net.pth")
    subject = open_weights(WeightsFile(file=tmp_path / "net.pth", arch="resnet8"), tmp_path)
    assert subject.weights_sha256 == digest(state)
    assert (subject.classes, subject.crop, subject.short_side, subject.run) == (CLASSES, 32, 32, None)


def test_safetensors_are_read(tmp_path: Path, published: torch.nn.Module) -> None:
    state = {key: value.contiguous() for key, value in published.state_dict().items()}
    save_file(state, tmp_path / "net.safetensors")
    assert digest(read_weights(tmp_path / "net.safetensors")) == digest(state)
    (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(UserError, match="is not a safetensors file"):
        read_weights(tmp_path / "bad.safetensors")


def test_torchvisions_weights_give_torchvisions_answers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(num_classes=11).eval()
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    subject = open_weights(WeightsFile(file=tmp_path / "net.pth", arch="resnet50", stride="v1.5"), tmp_path)
    assert (subject.short_side, subject.crop) == (256, 224)
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(subject.net.eval()(images), theirs(images))


def test_a_published_net_is_scored_without_a_run(
    tmp_path: Path, tiny: Dataset, published: torch.nn.Module, run_evaluate: Run
) -> None:
    torch.save({"state_dict": renamed(published.state_dict())}, tmp_path / "net.th")
    numbers = [",".join(f"{255 * value:.6g}" for value in values) for values in (MEAN, STD)]
    arguments = ["--data", tiny.folder, "--arch", "resnet8", "--weights-file", tmp_path / "net.th", "--split", "train"]
    code, output, errors = run_evaluate(
        *arguments, "--mean", numbers[0], "--std", numbers[1], "--scores", tmp_path / "out.npz", "--json"
    )
    assert code == 0, errors
    with torch.no_grad():
        theirs = torch.cat([published(normalized(image)).softmax(dim=1) for image in decoded(tiny)]).numpy()
    scores = load(tmp_path / "out.npz")
    np.testing.assert_allclose(scores.scores.astype(np.float32), theirs, atol=1e-3)
    wrong = 100 * np.mean(theirs.argmax(axis=1) != scores.labels)
    (result,) = json.loads(output.splitlines()[-1])["results"]
    assert result["top1_error"] == pytest.approx(wrong) and 0 < wrong < 100
    assert scores.provenance.normalization == "mean 123.675,116.28,103.53 std 58.395,57.12,57.375"


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not be executed",))


def test_mistakes_get_one_sentence(
    tmp_path: Path, tiny: Dataset, published: torch.nn.Module, run_evaluate: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    good, other = tmp_path / "good.pt", tmp_path / "other.pt"
    torch.save(published.state_dict(), good)
    torch.save(torchvision.models.resnet18().state_dict(), other)
    (tmp_path / "cut.pt").write_bytes(good.read_bytes()[:5000])
    (tmp_path / "text.pt").write_text("weights")
    (tmp_path / "page.pt").write_text("<!DOCTYPE html>\n<html><body>Not found</body></html>\n")
    torch.save({0: torch.zeros(3), "fc.bias": torch.zeros(3)}, tmp_path / "numbered.pt")
    (tmp_path / "code.pt").write_bytes(pickle.dumps(Malicious(), protocol=2))
    torch.save({"state_dict": {"fc.bias": [1, 2]}}, tmp_path / "lists.pt")
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "no-fc.pt")
    seven = tmp_path / "seven.pt"
    torch.save(varied_resnet("resnet8", 7, torch.randn(4, 3, 32, 32)).state_dict(), seven)
    common = ["--data", tiny.folder, "--arch", "resnet8", "--split", "train", "--scores", tmp_path / "out.npz"]
    cases: list[tuple[list[object], str]] = [
        (["--weights-file", tmp_path / "absent.pt", *common], "there is no weights file"),
        (["--weights-file", tmp_path / "cut.pt", *common], "cut.pt cannot be read as weights"),
        (["--weights-file", tmp_path / "text.pt", *common], "text.pt cannot be read as weights"),
        (
            ["--weights-file", tmp_path / "code.pt", *common],
            "code.pt cannot be read as weights \\(it holds more than weights",
        ),
        (["--weights-file", tmp_path / "page.pt", *common], "page.pt .* \\(it is damaged or of another format"),
        (["--weights-file", tmp_path / "numbered.pt", *common], "numbered.pt holds no state dict"),
        (["--weights-file", good, *common, "--weights", "ema"], "--weights goes with a run"),
        (["--weights-file", tmp_path / "lists.pt", *common], "holds no state dict"),
        (["--weights-file", tmp_path / "no-fc.pt", *common], "have no fc.bias"),
        (["--weights-file", other, *common], "are not those of resnet8 \\(it has layer1"),
        (["--weights-file", good, *common, "--arch", "resnet14"], "are not those of resnet14 \\(it lacks layer1.1"),
        (["--weights-file", good, *common, "--arch", "resnet21"], "there is no net named 'resnet21'"),
        (["--weights-file", seven, *common, "--mean", "0,0,0"], "has 7 classes, .* has 6"),
        (["--weights-file", good], "needs --arch and --data"),
        (["--weights-file", good, tmp_path], "either a run folder .* or a --weights-file"),
        ([], "either a run folder .* or a --weights-file"),
        (["--weights-file", good, *common, "--std", "1,1,1"], "--std needs --mean"),
        (["--weights-file", good, *common, "--mean", "1,2"], "'1,2' is not three numbers"),
        (["--weights-file", good, *common, "--mean", "1,2,x"], "'1,2,x' is not three numbers"),
        (
            ["--weights-file", good, *common, "--mean", "0,0,0", "--std", "0,1,1"],
            "'0,1,1' is not three numbers above 0",
        ),
        (["--weights-file", good, *common, "--mean", "0,0,0", "--std=-1,1,1"], "'-1,1,1' is not three numbers above 0"),
        (["--weights-file", good, *common, "--crop", "0"], "--crop: '0' is not a whole number above 0"),
        (["--weights-file", good, *common, "--short-side", "0"], "--short-side: '0' is not a whole number above 0"),
        (["--weights-file", good, *common, "--scores", good / "out.npz"], "good.pt stands there"),
        (["--weights-file", good, *common, "--protocol", "center,ten-crop"], "give it with one --protocol"),
        (["--weights-file", good, *common, "--mean", "0,0,0", "--crop", "40", "--short-side", "36"], "crop of 40"),
        ([tmp_path, "--arch", "resnet8"], "go with --weights-file"),
    ]
    for arguments, sentence in cases:
        code, output, errors = run_evaluate(*arguments)
        said = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(said) == 1 and "Traceback" not in errors, (arguments, errors)
        assert re.search(sentence, said[0]), (sentence, said[0])
        assert "this must not be executed" not in output
        assert not (tmp_path / "out.npz").exists()


def test_the_stride_is_told_apart(
    tmp_path: Path, tiny: Dataset, run_evaluate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bottlenecks have the same weights either way: the default score file may not be taken for the other's."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet50(num_classes=CLASSES).state_dict(), "net.pth")
    command = ["--weights-file", "net.pth", "--arch", "resnet50", "--data", tiny.folder, "--split", "train"]
    command += ["--crop", 32, "--short-side", 32, "--mean", "120,120,120", "--std", "60,60,60"]
    code, _, errors = run_evaluate(*command)
    assert code == 0, errors
    paper = load(tmp_path / "net-center-train.npz").provenance
    code, _, errors = run_evaluate(*command, "--stride", "v1.5")
    assert code == 2 and "net-center-train.npz holds other scores already" in errors and "Traceback" not in errors
    assert run_evaluate(*command, "--stride", "v1.5", "--again")[0] == 0
    other = load(tmp_path / "net-center-train.npz").provenance
    assert (paper.stride, other.stride) == ("paper", "v1.5") and paper.weights_sha256 == other.weights_sha256
