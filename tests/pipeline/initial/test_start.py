"""What a run starts from: which tensors, whose weights, and every refusal. Reference: the checkpoints and files themselves."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset
from pipeline.initial.start import settle
from pipeline.loop.trainer import Trainer
from pipeline.models.resnet import build
from pipeline.run.config import Config
from pipeline.training.checkpoint import publish
from pipeline.training.optimizer import OptimizerConfig
from tests.pipeline.initial.states import assert_equal, newest, without_counters
from tests.ranks import ALONE


@pytest.mark.parametrize(
    ("weights", "key"),
    [(None, "model"), ("final", "model"), ("ema", "model_ema"), ("recomputed-bn", "model_recomputed_bn")],
)
def test_the_weights_of_a_run(config: Config, source: Path, weights: str | None, key: str) -> None:
    iteration, state, path = newest(source)
    for place in (source, path):
        start = settle(replace(config, init=str(place), init_weights=weights), Dataset(config.data))
        assert_equal(start.weights, without_counters(state[key]))
        assert start.point is not None and start.point.iteration == iteration and not start.point.left_out
        assert Path(start.point.file).name == path.name


def test_other_classes_leave_the_classifier_out(config: Config, upper_digits: Path) -> None:
    start = settle(replace(config, data=str(upper_digits)), Dataset(upper_digits))
    assert start.weights is not None and start.point is not None
    assert start.point.left_out == dict.fromkeys(("fc.weight", "fc.bias"), "10 classes there, 5 here")
    assert str(start.point).endswith("at random: fc.weight, fc.bias (10 classes there, 5 here)")
    assert not {"fc.weight", "fc.bias"} & start.weights.keys() and "layer3.0.conv2.weight" in start.weights


@pytest.mark.parametrize("known_by", ["model folder", "dataset", "dataset beside a damaged model folder", "nobody"])
def test_as_many_other_classes_are_told_by_their_names(
    config: Config, source: Path, digits: Path, known_by: str
) -> None:
    """The same number of classes, in another dataset: whether it is the same classes, only their names say."""
    other = shutil.copytree(digits, Path(config.runs) / "letters")
    manifest = json.loads((other / "manifest.json").read_text())
    for number, one in enumerate(manifest["classes"]):
        one["wnid"] = one["name"] = chr(ord("a") + number)
    (other / "manifest.json").write_text(json.dumps(manifest))
    if known_by in ("dataset", "nobody"):
        shutil.rmtree(source / "model")
    elif known_by != "model folder":
        (source / "model" / "model.json").write_text("{")
    if known_by == "nobody":
        text = (source / "config.yaml").read_text()
        (source / "config.yaml").write_text(text.replace(str(digits), str(other.with_name("moved-away"))))
    start = settle(replace(config, data=str(other)), Dataset(other))
    assert start.point is not None
    unknown = "another dataset there, whose classes are not known"
    reason = unknown if known_by == "nobody" else "class 0 is '0' there, 'a' here"
    assert start.point.left_out == dict.fromkeys(("fc.weight", "fc.bias"), reason)


def test_the_trainer_takes_them_and_draws_the_rest(config: Config, source: Path, upper_digits: Path) -> None:
    """The classifier is the one that the seed draws where nothing is taken; the moving average begins as the net does."""
    config, dataset = replace(config, data=str(upper_digits), seed=3), Dataset(upper_digits)
    trainer = Trainer(config, dataset, ALONE, settle(config, dataset).weights)
    taken = without_counters(newest(source)[1]["model"])
    drawn = build("resnet8", classes=5, generator=torch.Generator().manual_seed(3)).state_dict()
    assert trainer.step.average is not None
    for net in (trainer.step.model, trainer.step.average.model):
        for name, value in without_counters(net.state_dict()).items():
            assert torch.equal(value, (drawn if name.startswith("fc.") else taken)[name]), name
    trainer.step.statistics.gather_into_model(0)
    assert torch.equal(trainer.step.model.bn1.running_mean, taken["bn1.running_mean"]), "of every group"
    trainer.close()


def test_what_is_excluded_starts_at_random(config: Config) -> None:
    start = settle(replace(config, init_exclude=("layer3", "*.bn2.bias", "fc")), Dataset(config.data))
    names = set(without_counters(build("resnet8", classes=10).state_dict()))
    out = {name for name in names if name.startswith(("layer3.", "fc.")) or name.endswith(".bn2.bias")}
    assert start.weights is not None and start.point is not None
    assert start.weights.keys() == names - out and start.point.left_out == dict.fromkeys(out, "init_exclude")
    assert (start.point.taken, start.point.of) == (len(names - out), len(names))


def test_half_precision_and_wrapped_files_are_read(config: Config, tmp_path: Path) -> None:
    net = build("resnet8", classes=10)
    state = {f"module.{name}": value.half() for name, value in without_counters(net.state_dict()).items()}
    torch.save({"state_dict": state}, tmp_path / "theirs.pth")
    given = replace(config, init=str(tmp_path / "theirs.pth"), init_preprocessing="ours")
    expected = {name: value.half().float() for name, value in without_counters(net.state_dict()).items()}
    assert_equal(settle(given, Dataset(config.data)).weights, expected)


def test_an_exported_file_tells_its_classes(config: Config, tmp_path: Path) -> None:
    net = build("resnet8", classes=10)
    state = {name: value.contiguous() for name, value in net.state_dict().items()}
    save_file(state, tmp_path / "ours.safetensors", {"classes": json.dumps(list("abcdefghij"))})
    given = replace(config, init=str(tmp_path / "ours.safetensors"), init_preprocessing="ours")
    point = settle(given, Dataset(config.data)).point
    assert point is not None and set(point.left_out.values()) == {"class 0 is 'a' there, '0' here"}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing there": ({"init": "no/such/run"}, r"init is 'no/such/run', and nothing is there: give a run folder"),
    "no such weights": ({"init_weights": "last"}, r"init_weights is 'last'"),
    "another net": (
        {"arch": "resnet14"},
        r"not those of resnet14 \(it lacks layer1\.1.*that run has --arch resnet8, which",
    ),
    "other shortcuts": ({"shortcut": "B"}, r"it lacks layer2\.0\.downsample.*that run has --shortcut default"),
    "a layer that no net has": (
        {"init_exclude": ("layer5",)},
        r"init_exclude 'layer5' matches no layer of the net: did you",
    ),
    "all of it": ({"init_exclude": ("*",)}, r"leaves nothing of"),
    "a run's images": ({"init_preprocessing": "timm"}, r"of a run of this pipeline.*leave init_preprocessing out"),
    "frozen at random": (
        {"init_exclude": ("layer3",), "freeze_bn": True},
        r"freeze_bn keeps .* and layer3\.0\.bn1\.weight is not taken of them \(init_exclude\): take it, or leave freeze_bn out",
    ),
    "pinned weights": ({"init_sha256": "0" * 64}, r"has the SHA-256 [0-9a-f]{64}, and init_sha256 is 0000"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_and_nothing_written(config: Config, case: str) -> None:
    values, sentence = REFUSED[case]
    with pytest.raises(UserError, match=sentence):
        settle(replace(config, **values), Dataset(config.data))
    assert not config.run_folder.exists()


def test_missing_weights_are_refused_in_the_words_of_a_training(config: Config, source: Path) -> None:
    iteration, state, path = newest(source)
    path.unlink()
    del state["model_ema"]
    publish(source / "checkpoints", iteration, state)
    with pytest.raises(UserError, match=r"no moving average.*use --init-weights final"):
        settle(replace(config, init_weights="ema"), Dataset(config.data))


def test_a_file_of_several_sets_is_refused_in_the_words_of_a_training(config: Config, tmp_path: Path) -> None:
    state = build("resnet8", classes=10).state_dict()
    torch.save({"weights": state, "use --weights ": state}, tmp_path / "two.pth")
    given = replace(config, init=str(tmp_path / "two.pth"), init_preprocessing="ours")
    with pytest.raises(
        UserError, match=r"sets of weights \('weights', 'use --weights '\): name one by --init-weights 'w"
    ):
        settle(given, Dataset(config.data))


def test_a_file_of_no_weights_is_refused(config: Config, source: Path) -> None:
    """YAML is among the files at whose first bytes torch's unpickler raises an IndexError."""
    given = replace(config, init=str(source / "config.yaml"), init_preprocessing="ours")
    with pytest.raises(
        UserError, match=r"config\.yaml cannot be read as weights \(it is damaged or of another format\)"
    ):
        settle(given, Dataset(config.data))


def test_files_of_another_origin(config: Config, tmp_path: Path) -> None:
    """Their preprocessing must be named; a bottleneck's stride, which shapes do not show, must be the origin's."""
    file = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), file)
    with pytest.raises(UserError, match="give --init-preprocessing, one of torchvision, timm"):
        settle(replace(config, init=str(file), arch="resnet18"), Dataset(config.data))
    named = replace(config, init=str(file), arch="resnet18", init_preprocessing="torchvision")
    with pytest.raises(UserError, match=r"it has layer2\.0\.downsample.*give --shortcut B"):
        settle(named, Dataset(config.data))
    start = settle(replace(named, shortcut="B"), Dataset(config.data))
    assert start.point is not None and start.point.iteration is None and not start.point.left_out
    with pytest.raises(UserError, match=r"stride of 'v1.5'.*give --stride v1.5"):
        settle(replace(named, arch="resnet50"), Dataset(config.data))


def test_torchvisions_bottlenecks_need_no_shortcut(config: Config, tmp_path: Path) -> None:
    """As the pages say: from 50 layers on, the paper's own option (B) is torchvision's."""
    file = tmp_path / "resnet50.pth"
    torch.save(torchvision.models.resnet50(num_classes=10).state_dict(), file)
    given = replace(config, init=str(file), arch="resnet50", stride="v1.5", init_preprocessing="torchvision")
    start = settle(given, Dataset(config.data))
    assert start.point is not None and not start.point.left_out


def export_of(arch: str, stride: str, **further: str) -> dict[str, str]:
    """The metadata of an exported net of ten digits."""
    names = json.dumps([str(digit) for digit in range(10)])
    net = {"arch": arch, "stride": stride, "shortcut": "default", "short_side": "36", "crop": "32"}
    hashes = {"subtract": "mean-image", "mean_sha256": "0" * 64, "dataset_sha256": "0" * 64}
    return {**net, **hashes, "classes": names, "wnids": names, **further}


def test_the_stride_of_an_export_is_compared(config: Config, tmp_path: Path) -> None:
    """Its shapes do not show it, and a net of another stride would compute something else with the same 267 tensors."""
    file, dataset = tmp_path / "model.safetensors", Dataset(config.data)
    state = {name: value.contiguous() for name, value in build("resnet50", classes=10).state_dict().items()}
    given = replace(config, init=str(file), arch="resnet50")
    save_file(state, file, export_of("resnet50", "v1.5"))
    with pytest.raises(UserError, match=r"stride of 'v1.5', this run's net has that of 'paper'.*give --stride v1.5"):
        settle(replace(given, init_preprocessing="ours"), dataset)
    point = settle(replace(given, stride="v1.5"), dataset).point
    assert point is not None and str(point).endswith("267 of 267 tensors")
    save_file(state, file)
    point = settle(replace(given, init_preprocessing="ours"), dataset).point
    assert point is not None and str(point).endswith(
        "267 of 267 tensors; the stride, which the file does not state, was not compared with 'paper'"
    )


def test_an_export_tells_its_class_folders_and_its_net(config: Config, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    state = {name: value.contiguous() for name, value in build("resnet8", classes=10).state_dict().items()}
    given = replace(config, init=str(file))
    save_file(state, file, export_of("resnet8", "paper", wnids=json.dumps(list("0123456798"))))
    point = settle(given, Dataset(config.data)).point
    assert point is not None and set(point.left_out.values()) == {"class 8 is '9' there, '8' here"}
    with pytest.raises(UserError, match="that run has --arch resnet8, which this one needs too"):
        settle(replace(given, arch="resnet14"), Dataset(config.data))
    with pytest.raises(UserError, match=r"is an export of this pipeline.*leave init_preprocessing out"):
        settle(replace(given, init_preprocessing="timm"), Dataset(config.data))


def test_classifiers_of_peoples_own(config: Config, tmp_path: Path) -> None:
    """One linear layer behind dropout is a classifier as any; of more layers the body alone is taken, and the line says so."""
    net: Any = torchvision.models.resnet18()
    given = replace(
        config, init=str(tmp_path / "net.pth"), init_preprocessing="torchvision", arch="resnet18", shortcut="B"
    )
    heads = {
        "": torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(512, 10)),
        "7 classes there, 10 here": torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(512, 7)),
        "the classifier there is not one layer but fc.0, fc.2": torch.nn.Sequential(
            torch.nn.Linear(512, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
        ),
    }
    for reason, net.fc in heads.items():
        torch.save(net.state_dict(), tmp_path / "net.pth")
        start = settle(given, Dataset(config.data))
        assert start.point is not None and start.weights is not None
        assert start.point.left_out == (dict.fromkeys(("fc.weight", "fc.bias"), reason) if reason else {})
        assert torch.equal(start.weights["layer4.1.conv2.weight"], net.layer4[1].conv2.weight)
        assert reason or torch.equal(start.weights["fc.weight"], net.fc[1].weight)


def test_published_weights_by_name(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that torchvision keeps in torch.hub's folder: by its convention, which folds them as a file's."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / Path(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url).name
    file.parent.mkdir()
    torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), file)
    named = replace(config, init="torchvision:resnet18", arch="resnet18", shortcut="B")
    by_file = replace(named, init=str(file), init_preprocessing="torchvision")
    one, other = (settle(each, Dataset(config.data)) for each in (named, by_file))
    assert one.weights is not None and one.config.init_sha256 == other.config.init_sha256
    with pytest.raises(UserError, match=r"init_preprocessing is 'timm', and that of torchvision:resnet18"):
        settle(replace(named, init_preprocessing="timm"), Dataset(config.data))
    with pytest.raises(UserError, match=r"init is 'ResNet18_Weights.DEFAULT': .* torchvision:resnet18 here"):
        settle(replace(named, init="ResNet18_Weights.DEFAULT"), Dataset(config.data))
    with pytest.raises(UserError, match=r"init is 'timm:resnet18': .*download the file .*--init-preprocessing timm"):
        settle(replace(named, init="timm:resnet18"), Dataset(config.data))
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported/model.safetensors").touch()
    with pytest.raises(UserError, match=r"is an exported net, .*--init .* take .*exported/model.safetensors"):
        settle(replace(named, init=str(tmp_path / "exported")), Dataset(config.data))
    with pytest.raises(UserError, match="resnet19"):
        settle(replace(named, init="torchvision:resnet19"), Dataset(config.data))


def test_a_run_does_not_start_from_itself(config: Config, source: Path) -> None:
    own = replace(config, runs=str(source.parent), name=source.name)
    for place in (source, newest(source)[2]):
        with pytest.raises(UserError, match="this run's own folder: leave init out to continue"):
            settle(replace(own, init=str(place)), Dataset(config.data))


@pytest.mark.parametrize("key", ["init_weights", "init_exclude", "init_preprocessing", "init_sha256", "freeze_bn"])
def test_keys_about_weights_need_weights(key: str) -> None:
    values: dict[str, Any] = {"init_exclude": ("fc",), "freeze_bn": True, "init_preprocessing": "timm"}
    with pytest.raises(UserError, match=f"{key} is about the weights that a run starts from"):
        Config(**{key: values.get(key, "0" * 64)})


def test_weights_that_are_not_finite_are_refused(config: Config, source: Path, tmp_path: Path) -> None:
    state = without_counters(newest(source)[1]["model"])
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(
        UserError, match=r"layer2\.0\.conv1\.weight of the weights in .*nan\.pt holds numbers that are not finite"
    ):
        settle(replace(config, init=str(tmp_path / "nan.pt"), init_preprocessing="ours"), Dataset(config.data))


def test_an_empty_init_names_nothing(config: Config) -> None:
    with pytest.raises(UserError, match="init is empty: name a run folder"):
        replace(config, init="")


def test_a_fork_with_another_rate_is_another_run(config: Config) -> None:
    """The rate is the fork's own; the weights are the source's."""
    fork = replace(config, optimizer=OptimizerConfig(lr=0.01))
    one, other = (settle(each, Dataset(config.data)) for each in (config, fork))
    assert one.weights is not None
    assert_equal(other.weights, one.weights)
    assert one.config.init_sha256 == other.config.init_sha256 and other.config.optimizer.lr == 0.01
