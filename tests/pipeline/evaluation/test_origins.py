"""Weights of other origins through pipeline.evaluate: torchvision's by name, files with their origin's convention."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision import transforms

from pipeline.data.conventions import CAFFE, CONVENTIONS, PYCLS, TORCHVISION
from pipeline.data.dataset import Dataset
from pipeline.evaluate import read_request
from pipeline.evaluation.foreign import WeightsFile, open_weights, read_weights
from pipeline.evaluation.nets import digest
from pipeline.evaluation.published import NETS, published, published_as
from pipeline.evaluation.scores import load, read_provenance
from pipeline.models.resnet import build
from tests.images import encode, photograph
from tests.pipeline.data.small_datasets import write_dataset
from tests.pipeline.evaluation.nets_and_images import Run, changed_copy, varied_resnet

CLASSES = 6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """24 images of several sizes, as PNG, whose longer side is no whole number of pixels at a short side of 36."""
    images = [encode(photograph(number, 45 + number, 70 + number % 5), "PNG") for number in range(24)]
    return write_dataset(tmp_path_factory.mktemp("odd") / "data", images, [n % CLASSES for n in range(24)])


def images_of(dataset: Dataset) -> list[Image.Image]:
    split = dataset.split("train")
    return [Image.open(io.BytesIO(split.read(sample))) for sample in range(len(split))]


def torchvisions(image: Image.Image, interpolation: str = "bilinear", short_side: int = 36) -> torch.Tensor:
    steps = [transforms.Resize(short_side, transforms.InterpolationMode(interpolation)), transforms.CenterCrop(32)]
    tensor: torch.Tensor = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])(image)
    return tensor[None]


@pytest.fixture(scope="module")
def net(odd: Dataset) -> nn.Module:
    """A net with torchvision's names whose scores differ between the images."""
    return varied_resnet("resnet8", CLASSES, torch.cat([torchvisions(image) for image in images_of(odd)]))


COMMON = ["--arch", "resnet8", "--split", "train", "--short-side", "36"]


def command(data: Dataset, file: Path, *further: object) -> list[object]:
    return ["--weights", file, "--data", data.folder, *COMMON, "--scores", file.with_suffix(".npz"), *further]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_scores_are_those_of_torchvisions_own_code(
    tmp_path: Path, odd: Dataset, net: nn.Module, run_evaluate: Run, interpolation: str
) -> None:
    torch.save(net.state_dict(), tmp_path / "net.pth")
    words = command(odd, tmp_path / "net.pth", "--preprocessing", "torchvision", "--interpolation", interpolation)
    code, _, errors = run_evaluate(*words)
    assert code == 0, errors
    with torch.no_grad():
        theirs = [net(torchvisions(image, interpolation)).softmax(dim=1).numpy() for image in images_of(odd)]
    scores = load(tmp_path / "net.npz")
    np.testing.assert_allclose(scores.scores.astype(np.float32), np.concatenate(theirs), atol=5e-4)
    stated = f"torchvision: pillow-{interpolation}, longer side floor, corner even, RGB, stem pool padded"
    assert scores.provenance.preprocessing == stated
    assert scores.provenance.normalization == "mean 123.675,116.28,103.53 std 58.395,57.12,57.375"


def test_our_own_pixels_are_other_ones(tmp_path: Path, odd: Dataset, net: nn.Module, run_evaluate: Run) -> None:
    """The two conventions differ visibly on these images: the test above can fail."""
    torch.save(net.state_dict(), tmp_path / "net.pth")
    mean, std = "123.675,116.28,103.53", "58.395,57.12,57.375"
    words = command(odd, tmp_path / "net.pth", "--preprocessing", "ours", "--mean", mean, "--std", std)
    assert run_evaluate(*words)[0] == 0
    with torch.no_grad():
        theirs = [net(torchvisions(image)).softmax(dim=1).numpy() for image in images_of(odd)]
    scores = load(tmp_path / "net.npz")
    assert scores.provenance.preprocessing == "" and "preprocessing" not in scores.provenance.stated
    assert np.abs(scores.scores.astype(np.float32) - np.concatenate(theirs)).max() > 0.01


@pytest.mark.parametrize("name", ["pycls", "caffe"])
def test_all_protocols_take_a_convention(
    tmp_path: Path, odd: Dataset, net: nn.Module, run_evaluate: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(net.state_dict(), "net.pth")
    words = ["--weights", "net.pth", "--data", odd.folder, *COMMON, "--preprocessing", name]
    code, _, errors = run_evaluate(*words, "--protocol", "center,ten-crop,multi-scale")
    assert code == 0, errors
    found = {path.name: read_provenance(path)[0] for path in tmp_path.glob("*.npz")}
    assert sorted(found) == [f"net-{protocol}-train.npz" for protocol in ("center", "multi-scale", "ten-crop")]
    assert all(one.preprocessing == CONVENTIONS[name].describe() for one in found.values())
    # The files are found again; those of another convention are not replaced.
    assert run_evaluate(*words)[0] == 0
    code, _, errors = run_evaluate(*words[:-1], "fb")
    assert code == 2 and "holds other scores already" in errors


def test_a_net_that_takes_bgr_gets_it(tmp_path: Path) -> None:
    theirs = torchvision.models.resnet18(num_classes=CLASSES).eval()
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    subject = open_weights(
        WeightsFile(file=tmp_path / "net.pth", arch="resnet18", convention=PYCLS, data=str(tmp_path))
    )
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(subject.net(images), theirs(images.flip(1)))
    assert subject.weights_sha256 == digest(theirs.state_dict())


def test_caffes_stem_pools_without_padding(tmp_path: Path) -> None:
    """At 224 the map is 56 x 56 either way, of other windows: 0..2 first, and the last one cut off."""
    torch.save(build("resnet18", classes=CLASSES).state_dict(), tmp_path / "net.pth")
    subject = open_weights(
        WeightsFile(file=tmp_path / "net.pth", arch="resnet18", convention=CAFFE, data=str(tmp_path))
    )
    maps = torch.randn(1, 2, 112, 112)
    pooled = subject.net.maxpool(maps)
    expected = torch.full((1, 2, 56, 56), -torch.inf)
    for y in range(56):
        for x in range(56):
            expected[..., y, x] = maps[..., 2 * y : 2 * y + 3, 2 * x : 2 * x + 3].amax(dim=(2, 3))
    assert torch.equal(pooled, expected)
    assert subject.stride == "paper"


def pycls_names(net: nn.Module) -> dict[str, torch.Tensor]:
    """A ResNet-50's weights by the names of pycls/models/resnet.py, told by its modules' structure."""
    named = {}
    for key, value in net.state_dict().items():
        parts = key.split(".")
        if parts[0] in ("conv1", "bn1"):
            name = f"stem.{parts[0][:-1]}.{parts[1]}"
        elif parts[0] == "fc":
            name = f"head.{key}"
        else:
            place = f"s{parts[0][-1]}.b{int(parts[1]) + 1}"
            if parts[2] == "downsample":
                name = f"{place}.{('proj', 'bn')[int(parts[3])]}.{parts[4]}"
            else:
                letter = "abc"[int(parts[2][-1]) - 1]
                name = f"{place}.f.{letter}{'_bn' if parts[2].startswith('bn') else ''}.{parts[3]}"
        named[name] = value
    return named


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"epoch": 99, "model_state": state}])
def test_files_of_pycls_are_read(tmp_path: Path, wrap) -> None:  # type: ignore[no-untyped-def]
    net = build("resnet50", classes=CLASSES, shortcut="B")
    torch.save(wrap(pycls_names(net)), tmp_path / "net.pyth")
    assert digest(read_weights(tmp_path / "net.pyth")) == digest(net.state_dict())


@pytest.mark.parametrize(("arch", "shortcut"), [("resnet18", "B"), ("resnet18", "C"), ("resnet18", "A"),
                                                ("resnet50", "B"), ("resnet20", "A"),
                                                ("resnet20", "B"), ("plain18", "default")])  # fmt: skip
def test_the_weights_show_their_shortcuts(tmp_path: Path, arch: str, shortcut: str) -> None:
    net = build(arch, classes=CLASSES, shortcut=shortcut)  # type: ignore[arg-type]
    torch.save(net.state_dict(), tmp_path / "net.pth")
    subject = open_weights(
        WeightsFile(file=tmp_path / "net.pth", arch=arch, convention=TORCHVISION, data=str(tmp_path))
    )
    assert digest(subject.net.state_dict()) == digest(net.state_dict())


def test_torchvisions_weights_have_their_own_sizes() -> None:
    """Of all that torchvision publishes for our nets, against its enums."""
    for net in NETS:
        for weights in torchvision.models.get_model_weights(net):
            one, preset = published(f"torchvision:{net}/{weights.name}"), weights.transforms()
            image = Image.fromarray(np.zeros((300, 431, 3), np.uint8))
            assert preset(image).shape == (3, one.convention.crop, one.convention.crop)
            assert preset.resize_size == [one.convention.short_side]
            assert one.convention.mean == pytest.approx([255 * value for value in preset.mean])
            assert one.url == weights.url and one.arch == net
            assert published_as(Path("elsewhere") / one.file.name) == one
    assert published("torchvision:resnet50").enum.name == "IMAGENET1K_V2"
    assert published_as(Path("resnet50.pth")) is None


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which torch.hub finds, instead of downloading, random weights of torchvision's ResNet-18."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=CLASSES).state_dict(), folder / "resnet18-f37072fd.pth")
    return folder


def test_torchvisions_weights_by_name_or_by_their_files_name(
    tmp_path: Path, odd: Dataset, run_evaluate: Run, hub: Path
) -> None:
    further = ["--data", odd.folder, "--split", "train", "--crop", 32, "--short-side", 36]
    code, _, errors = run_evaluate("--weights", "torchvision:resnet18", *further, "--scores", tmp_path / "a.npz")
    assert code == 0, errors
    file = ["--weights-file", hub / "resnet18-f37072fd.pth", "--arch", "resnet18", "--preprocessing", "torchvision"]
    code, _, errors = run_evaluate(*file, *further, "--scores", tmp_path / "b.npz")
    assert code == 0, errors
    assert load(tmp_path / "a.npz").provenance == load(tmp_path / "b.npz").provenance
    theirs = torchvision.models.resnet18(num_classes=CLASSES).eval()
    theirs.load_state_dict(torch.load(hub / "resnet18-f37072fd.pth", weights_only=True))
    with torch.no_grad():
        expected = torch.cat([theirs(torchvisions(image)).softmax(dim=1) for image in images_of(odd)])
    np.testing.assert_allclose(load(tmp_path / "a.npz").scores.astype(np.float32), expected, atol=1e-3)


def test_scores_of_published_weights_have_their_name(
    tmp_path: Path, odd: Dataset, run_evaluate: Run, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And lie in the working directory, not in torch.hub's folder of downloads."""
    monkeypatch.chdir(tmp_path)
    words = ["--data", odd.folder, "--split", "train", "--crop", 32, "--short-side", 36]
    code, _, errors = run_evaluate("--weights", "torchvision:resnet18", *words)
    assert code == 0, errors
    assert [one.name for one in tmp_path.glob("**/*.npz")] == ["resnet18-IMAGENET1K_V1-center-train.npz"]
    assert (tmp_path / "resnet18-IMAGENET1K_V1-center-train.npz").is_file()


def test_what_leaves_the_convention_open_is_refused(
    tmp_path: Path, odd: Dataset, net: nn.Module, run_evaluate: Run, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(net.state_dict(), tmp_path / "net.pth")
    big = hub / "resnet18-f37072fd.pth"
    data = ["--data", odd.folder, "--split", "train", "--scores", tmp_path / "out.npz"]
    small, large = ["--weights", tmp_path / "net.pth", "--arch", "resnet8"], ["--weights", big, "--arch", "resnet18"]
    mean, std = ["--mean", "124,116,104"], ["--std", "58,57,57"]
    unordered = changed_copy(odd, tmp_path / "unordered", lambda manifest: manifest["classes"].reverse())
    fewer = changed_copy(
        odd, tmp_path / "fewer", lambda manifest: manifest["classes"].append({**manifest["classes"][-1], "wnid": "z"})
    )

    thousand = changed_copy(
        odd,
        tmp_path / "thousand",
        lambda manifest: manifest["classes"].extend(
            {**manifest["classes"][-1], "wnid": f"z{number:03d}"} for number in range(1000 - CLASSES)
        ),
    )

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    cases: list[tuple[list[object], str]] = [
        ([*small, *data], "not known: give --preprocessing with one of torchvision, .*, or --mean and --std"),
        ([*small, *data, *mean], "not known: give --preprocessing"),
        ([*large, *data, *mean, *std], r"not known: give --preprocessing with one of .*ours$"),
        ([*small, *data, "--preprocessing", "keras"], "invalid choice: 'keras'"),
        ([*small, *data, "--preprocessing", "ours", *std], "--std needs --mean"),
        ([*large, *data, "--preprocessing", "timm"], "timm's nets differ .* --short-side"),
        ([*large, *data, "--preprocessing", "timm", "--short-side", 235], "timm's nets differ .* --interpolation"),
        ([*small, *data, "--preprocessing", "pycls", "--interpolation", "bicubic"], "does not go with pycls"),
        (["--weights", "torchvision:resnet99", *data], "there is no net of torchvision 'resnet99'"),
        (["--weights", "torchvision:resnet18/V7", *data], "there is no set of weights of torchvision:resnet18 .*'V7'"),
        (["--weights", "torchvision:resnet18", "--arch", "resnet34", *data], "is no resnet34"),
        (["--weights", "torchvision:resnet18", "--preprocessing", "fb", *data], "wants torchvision's preprocessing"),
        (["--weights", "torchvision:resnet34", *data], "torchvision:resnet34 has 1000 classes, but the dataset .* has 6"),
        (["--weights", "torchvision:resnet34", *data, "--data", thousand.folder],
         r"no route to host.* download https://\S+resnet34\S+pth .*checkpoints"),
        ([*large, *data, "--preprocessing", "torchvision", "--shortcut", "A"], "leave out --shortcut"),
        (["--weights", big, "--arch", "resnet34", *data, "--preprocessing", "torchvision"], "those of resnet34 .it lacks"),
        ([*small, *data, "--preprocessing", "torchvision", "--data", unordered.folder], "not in the order of their names"),
        ([*small, *data, "--preprocessing", "torchvision", "--data", fewer.folder], "has 6 classes, .* has 7"),
    ]  # fmt: skip
    for arguments, sentence in cases:
        code, _, errors = run_evaluate(*arguments)
        said = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(said) == 1 and "Traceback" not in errors, (arguments, errors)
        assert re.search(sentence, said[0]), (sentence, said[0])
        assert not (tmp_path / "out.npz").exists()


def test_a_request_holds_the_convention(tmp_path: Path, odd: Dataset, net: nn.Module) -> None:
    torch.save(net.state_dict(), tmp_path / "net.pth")
    words = ["--weights", tmp_path / "net.pth", "--data", odd.folder, "--arch", "resnet8", "--preprocessing", "caffe"]
    request = read_request([*map(str, words), "--std", "2,3,4"])
    assert isinstance(request.model, WeightsFile) and request.model.data == str(odd.folder)
    assert request.model.convention.mean == CAFFE.mean and request.model.convention.std == (2, 3, 4)
