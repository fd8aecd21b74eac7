"""State dicts of other programs: torchvision's nets as the reference, in every wrapping they come in."""

from __future__ import annotations

import argparse
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision.transforms import v2 as transforms

from pipeline.base.command import UserError
from pipeline.data.conventions import OURS, TORCHVISION
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
    subject = open_weights(WeightsFile(file=tmp_path / "net.pth", arch="resnet8", convention=OURS, data=str(tmp_path)))
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
    subject = open_weights(
        WeightsFile(file=tmp_path / "net.pth", arch="resnet50", convention=TORCHVISION, data=str(tmp_path))
    )
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


def torchvisions() -> torch.nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=5).eval()


def prefixed(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


def momentum(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of each parameter, by its name."""
    return {key: value + 1 for key, value in state.items() if "running" not in key and "num_batches" not in key}


WRAPPED = {
    # By what wraps nets itself.
    "DataParallel": lambda net: nn.DataParallel(net).state_dict(),
    "AveragedModel": lambda net: AveragedModel(net).state_dict(),
    "compile": lambda net: torch.compile(net).state_dict(),
    "compiled in DataParallel": lambda net: nn.DataParallel(torch.compile(nn.DataParallel(net))).state_dict(),
    "a module's attribute": lambda net: nn.ModuleDict({"backbone": net}).state_dict(),
    "AveragedModel of DataParallel": lambda net: {"swa": AveragedModel(nn.DataParallel(net)).state_dict(), "epoch": 1},
    # As programs save them.
    "Lightning": lambda net: {
        "epoch": 1,
        "state_dict": prefixed("model.", net.state_dict()),
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}],
        "hyper_parameters": {"lr": 0.1},
    },
    "timm": lambda net: {
        "state_dict": net.state_dict(),
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}},
        "args": argparse.Namespace(model="resnet18", lr=0.1),
        "metric": np.float64(70.0),
    },
    "Composer": lambda net: {
        "state": {
            "model": prefixed("module.", net.state_dict()),
            "optimizers": {"SGD": {"state": {key: {"momentum_buffer": torch.ones(3)} for key in net.state_dict()}}},
        }
    },
    "torchvision": lambda net: {"model": net.state_dict(), "best_acc1": torch.tensor(70.0), "epoch": 89},
    "net": lambda net: {"net": prefixed("module.", net.state_dict()), "acc": 91.2},
    "an average alone": lambda net: {"state_dict_ema": net.state_dict()},
    "momentum by name": lambda net: {"model": net.state_dict(), "momentum": momentum(net.state_dict())},
    "in a list": lambda net: {"models": [net.state_dict()]},
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_a_wrapped_net_answers_as_the_net_does(tmp_path: Path, wrapping: str) -> None:
    net = torchvisions()
    torch.save(WRAPPED[wrapping](net), tmp_path / "net.pth")
    file = WeightsFile(file=tmp_path / "net.pth", arch="resnet18", convention=TORCHVISION, data=str(tmp_path))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(open_weights(file).net(images), net(images))


SEVERAL = {
    "beside": (lambda net, other: {"state_dict": net, "state_dict_ema": other}, "state_dict_ema"),
    "in one": (lambda net, other: {**prefixed("model.", net), **prefixed("ema.module.", other)}, "ema.module"),
    "one in the other": (lambda net, other: {**net, **prefixed("teacher.", other)}, "teacher"),
    "with more": (lambda net, other: {**prefixed("model.", other), "loss.weight": torch.ones(5)}, "model"),
    "in lists": (lambda net, other: {"models": [net, other]}, "models.1"),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_of_several_sets_one_is_named(tmp_path: Path, kind: str) -> None:
    make, key = SEVERAL[kind]
    wanted = torchvision.models.resnet18(num_classes=5).state_dict()
    torch.save(make(torchvisions().state_dict(), wanted), tmp_path / "net.pth")
    with pytest.raises(UserError, match="--weights-key") as caught:
        read_weights(tmp_path / "net.pth")
    assert f"'{key}'" in str(caught.value)
    assert digest(read_weights(tmp_path / "net.pth", key)) == digest(wanted)
    with pytest.raises(UserError, match="holds no weights 'nothing'.*" + re.escape(key)):
        read_weights(tmp_path / "net.pth", "nothing")


def changed(name: str, other: str, value: Any = None) -> dict[str, Any]:
    """A net's state dict with another name, or another value, in place of one."""
    state = torchvisions().state_dict()
    before = state.pop(name)
    return {**state, other: before if value is None else value}


def two_layers(net: Any) -> Any:
    net.fc = nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 5))
    return net


@pytest.mark.parametrize("place", ["alone", "in DataParallel"])
def test_a_linear_layer_behind_dropout_is_the_classifier(tmp_path: Path, place: str) -> None:
    """As people save nets with a last layer of their own: Sequential(Dropout, Linear)."""
    net: Any = torchvisions()
    net.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(512, 7))
    torch.save((net if place == "alone" else nn.DataParallel(net)).state_dict(), tmp_path / "net.pth")
    file = WeightsFile(file=tmp_path / "net.pth", arch="resnet18", convention=TORCHVISION, data=str(tmp_path))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(open_weights(file).net(images), net.eval()(images))


REFUSED = {
    "of another family": (
        lambda: changed("fc.weight", "layer1.0.se.weight"),
        "nor of another net here .it has layer1.0.se",
    ),
    "pruned": (
        lambda: changed("conv1.weight", "conv1.weight_orig"),
        "nor of another net here .it has conv1.weight_orig",
    ),
    "of another classifier": (
        lambda: changed("fc.bias", "fc.1.bias"),
        "not one linear layer with a bias .it has fc.1.,",
    ),
    "of a classifier of two layers": (
        lambda: two_layers(torchvisions()).state_dict(),
        r"the classifier in .* is not one linear layer with a bias .it has fc\.0, fc\.2., as",
    ),
    "of whole numbers": (
        lambda: changed("conv1.weight", "conv1.weight", torch.ones(64, 3, 7, 7).char()),
        "whole numbers",
    ),
    "of another shape": (
        lambda: changed("conv1.weight", "conv1.weight", torch.ones(64, 3, 3, 3)),
        "is .64, 3, 3, 3. but",
    ),
    "deeper than it is looked for": (
        lambda: {"a": {"b": {"c": {"d": {"e": changed("fc.bias", "fc.bias")}}}}},
        "no state dict",
    ),
    "a module": (torchvisions, "objects of torchvision.models.resnet.ResNet"),
    "with a path": (lambda: {"model": {}, "folder": Path("x")}, "it holds more than weights: objects of pathlib"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_says_why(tmp_path: Path, kind: str) -> None:
    make, sentence = REFUSED[kind]
    torch.save(make(), tmp_path / "net.pth")
    with pytest.raises(UserError, match=sentence):
        open_weights(
            WeightsFile(file=tmp_path / "net.pth", arch="resnet18", convention=TORCHVISION, data=str(tmp_path))
        )


@pytest.mark.filterwarnings("ignore")  # pickle looks through all modules for what a quantised tensor names
def test_programs_and_quantised_nets_are_refused(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    torch.jit.script(net).save(str(tmp_path / "script.pt"))
    with pytest.raises(UserError, match="it is a TorchScript program"):
        read_weights(tmp_path / "script.pt")
    weights = torch.quantize_per_tensor(torch.randn(4, 3, 3, 3), 0.1, 0, torch.qint8)
    torch.save(
        {"conv1.weight": weights, "fc.weight": torch.ones(2, 4), "bn1.running_mean": torch.ones(4)}, tmp_path / "q.pt"
    )
    with pytest.raises(UserError, match=r"a quantised net .conv1.weight"):
        read_weights(tmp_path / "q.pt")


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
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("arch: resnet8\ndata: data\n")
    seven = tmp_path / "seven.pt"
    torch.save(varied_resnet("resnet8", 7, torch.randn(4, 3, 32, 32)).state_dict(), seven)
    common = ["--data", tiny.folder, "--arch", "resnet8", "--split", "train", "--scores", tmp_path / "out.npz"]
    common += ["--preprocessing", "ours"]
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
        (["--weights", run, *common], "run is a run folder, .* give it without --weights"),
        (["--weights", run / "config.yaml", *common], "config.yaml cannot be read as weights"),
        (["--weights", tmp_path, *common], "is a folder: give the file"),
        (["--weights-file", good, *common, "--weights", "ema"], "--weights ema goes with a run"),
        ([*common, "--weights", "ema"], "--weights ema goes with a run"),
        ([tmp_path, "--weights", good], "and not both"),
        ([tmp_path, "--weights", "torchvision:resnet18"], "and not both"),
        ([tmp_path, "--weights", "emma"], "there is no set of a run's weights 'emma'"),
        (["--weights-file", tmp_path / "lists.pt", *common], "holds no state dict"),
        (["--weights-file", tmp_path / "no-fc.pt", *common], "have no fc.bias"),
        (["--weights-file", other, *common], "are not those of resnet8 \\(it has layer1"),
        (["--weights-file", good, *common, "--arch", "resnet14"], "are not those of resnet14 \\(it lacks layer1.1"),
        (["--weights-file", good, *common, "--arch", "resnet21"], "there is no net named 'resnet21'"),
        (["--weights-file", seven, *common, "--mean", "0,0,0"], "has 7 classes, .* has 6"),
        (["--weights-file", good], "need --data"),
        (["--weights-file", good, "--data", tiny.folder], "needs --arch"),
        (["--weights-file", good, tmp_path], "either a run folder .* or weights from elsewhere"),
        ([], "either a run folder .* or weights from elsewhere"),
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
        ([tmp_path, "--arch", "resnet8"], "go with weights from elsewhere"),
        ([tmp_path, "--weights-key", "model"], "--weights-key goes with weights from elsewhere"),
        (["--weights-file", good, *common, "--weights-key", "ema"], "good.pt holds no weights 'ema'"),
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
    command += ["--crop", 32, "--short-side", 32, "--preprocessing", "torchvision", "--stride", "paper"]
    code, _, errors = run_evaluate(*command)
    assert code == 0, errors
    paper = load(tmp_path / "net-center-train.npz").provenance
    code, _, errors = run_evaluate(*command[:-2])
    assert code == 2 and "net-center-train.npz holds other scores already" in errors and "Traceback" not in errors
    assert run_evaluate(*command[:-2], "--again")[0] == 0
    other = load(tmp_path / "net-center-train.npz").provenance
    assert (paper.stride, other.stride) == ("paper", "v1.5") and paper.weights_sha256 == other.weights_sha256
