"""Compares our evaluation with the loop that torchvision's users write: same net, images and cores; times ensembling.

Both sides use only `--threads` cores: the loop has as many DataLoader workers and as many threads for its net, ours has as
many threads for decoding and as many for the net. Images per CPU second are given too, because a busy machine stretches
the wall-clock time, not the work. (With several threads, waiting threads count as work.)
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import statistics as averages
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.base.command import UserError, run  # noqa: E402
from pipeline.base.cores import available_cores  # noqa: E402
from pipeline.base.progress import Progress  # noqa: E402
from pipeline.base.tables import print_json, print_table  # noqa: E402
from pipeline.data.dataset import Dataset  # noqa: E402
from pipeline.data.graphs import Normalization  # noqa: E402
from pipeline.data.loader import LoaderConfig  # noqa: E402
from pipeline.evaluation.protocols import SCALES, find  # noqa: E402
from pipeline.evaluation.scores import Provenance, Scores, save  # noqa: E402
from pipeline.evaluation.scoring import EvaluationSettings, score_split  # noqa: E402
from pipeline.models.resnet import build  # noqa: E402
from pipeline.process import gpus  # noqa: E402
from pipeline.process.world import World  # noqa: E402

SAMPLES = ROOT.parent / "shared/data/imagenet-samples.tar"
CLASSES = 1000
IMAGES = {"center": 140, "ten-crop": 28, "multi-scale": 7}  # a round of each takes about as long
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Files(torch.utils.data.Dataset[Any]):
    """Image files with a transform, as torchvision's ImageFolder."""

    def __init__(self, paths: list[Path], transform: Callable[[Image.Image], Any]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        with Image.open(io.BytesIO(self.paths[index].read_bytes())) as image:
            return self.transform(image.convert("RGB"))


def plain_loop(net: nn.Module, paths: list[Path], protocol: str, device: torch.device, workers: int) -> np.ndarray:
    """Return softmax scores [N, classes] made as torchvision's reference and the usual scripts do: float32, NCHW."""
    to_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    crops = {
        "center": [transforms.Resize(256), transforms.CenterCrop(224), to_tensor],
        "ten-crop": [
            transforms.Resize(256),
            transforms.TenCrop(224),
            transforms.Lambda(lambda ten: torch.stack([to_tensor(crop) for crop in ten])),
        ],
        "multi-scale": [
            transforms.Lambda(lambda image: [to_tensor(transforms.Resize(scale)(image)) for scale in SCALES])
        ],
    }
    batch = {"center": 64, "ten-crop": 16, "multi-scale": 1}[protocol]
    data = Files(paths, transforms.Compose(crops[protocol]))
    collate = (lambda items: items[0]) if protocol == "multi-scale" else None
    results = []
    with torch.inference_mode():
        for images in DataLoader(data, batch, num_workers=workers, collate_fn=collate):
            if protocol == "multi-scale":
                results.append(convolutional_scores(net, [image[None].to(device) for image in images]))
            elif protocol == "ten-crop":
                scores = net(images.flatten(0, 1).to(device)).softmax(1)
                results.append(scores.view(len(images), 10, -1).mean(1))
            else:
                results.append(net(images.to(device)).softmax(1))
        return torch.cat(results).cpu().numpy()


def convolutional_scores(net: nn.Module, scales: list[Tensor]) -> Tensor:
    """Return a torchvision net's mean softmax, [1, classes], of one image and its flip at every scale."""
    averages_of_scales = []
    body, linear = nn.Sequential(*list(net.children())[:-2]), net.fc
    assert isinstance(linear, nn.Linear)
    for image in scales:
        for view in (image, image.flip(3)):
            pooled = F.avg_pool2d(body(view), 7, stride=1)
            averages_of_scales.append(
                F.conv2d(pooled, linear.weight[:, :, None, None], linear.bias).softmax(1).mean(dim=(2, 3))
            )
    return torch.stack(averages_of_scales).mean(0)


def our_scores(
    net: nn.Module, data: Path, protocol: str, device: torch.device, threads: int, precision: Any
) -> np.ndarray:
    """Return softmax scores [N, classes] made by pipeline.evaluation."""
    dataset = Dataset(data)
    normalization = Normalization(*(255 * np.array(values, np.float32) for values in (MEAN, STD)))
    settings = EvaluationSettings(
        short_side=256, crop=224, normalization=normalization, loader=LoaderConfig(threads=threads), precision=precision
    )
    world = World(rank=0, size=1, local_rank=0, local_size=1, device=device)
    scored = score_split(
        net,
        dataset.split("train"),
        find(protocol),
        settings,
        world=world,
        classes=CLASSES,
        provenance=provenance("bench"),
    )
    assert scored is not None
    return scored.scores.scores


def provenance(weights: str) -> Provenance:
    return Provenance(
        arch="bench", stride="v1.5", checkpoint="bench", iteration=0, weights="final", weights_sha256=weights,
        dataset_sha256="", split="val", protocol="multi-scale", short_sides=SCALES, crop=224, normalization="",
        precision="float32",
    )  # fmt: skip


def prepare(folder: Path, count: int) -> tuple[Path, list[Path]]:
    """Return the dataset folder and the image files of `count` of the 140 sample images, evenly spaced."""
    source = folder / f"source-{count}"
    with tarfile.open(SAMPLES) as tar:
        members = sorted((member for member in tar if member.isfile()), key=lambda member: member.name)
        for member in members[:: len(members) // count][:count]:
            member.name = f"train/{Path(member.name).parent.name}/{Path(member.name).name}"
            tar.extract(member, source)
    data = folder / f"dataset-{count}"
    command = [sys.executable, str(ROOT / "data_prep/shard_imagenet.py"), str(source), str(data)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return data, sorted(source.rglob("*.JPEG"))


def nets(arch: str, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """Return torchvision's net and ours, with the same random weights."""
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(arch, weights=None).eval()
    ours = build(arch, classes=CLASSES, shortcut="B", stride="v1.5")
    ours.load_state_dict(theirs.state_dict())
    return theirs.to(device), ours.to(device).to(memory_format=torch.channels_last)


def cpu_seconds() -> float:
    """Return the CPU seconds, user and system, of this process and of the workers that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


Rates = dict[str, dict[str, list[tuple[float, float]]]]  # by protocol and way, one value per round


def measure(options: argparse.Namespace, folder: Path, device: torch.device) -> Rates:
    """Return (images/s, images per CPU second) of each way under each protocol; the ways take turns in a round."""
    theirs, ours = nets(options.arch, device)
    cores = options.threads
    rates: Rates = {}
    with Progress(options.rounds * len(options.protocols) * 3, "rounds", "runs") as progress:
        for protocol in options.protocols:
            data, files = prepare(folder, min(140, IMAGES[protocol] * options.scale))
            ways: dict[str, Callable[[], Any]] = {
                "torchvision": partial(plain_loop, theirs, files, protocol, device, cores),
                "ours": partial(our_scores, ours, data, protocol, device, cores, "float32"),
                "ours bf16": partial(our_scores, ours, data, protocol, device, cores, "bf16"),
            }
            rates[protocol] = {way: [] for way in ways}
            for _ in range(options.rounds):
                for way, call in ways.items():
                    started, spent = time.perf_counter(), cpu_seconds()
                    scores = call()
                    assert scores.shape == (len(files), CLASSES)
                    rate = len(files) / (time.perf_counter() - started)
                    rates[protocol][way].append((rate, len(files) / (cpu_seconds() - spent)))
                    progress.advance(now=f"{protocol} {way}: {rate:.1f} images/s")
    return rates


def time_ensemble(folder: Path, images: int, members: int) -> tuple[float, float]:
    """Return seconds and peak memory in GB of `python -m pipeline.ensemble` over score files of `images` x 1000."""
    files = list(write_scores(folder, images, members))
    # The child reads its own peak, because getrusage would count this process's memory from before the child's exec.
    script = "import sys; from pipeline import ensemble; ensemble.main(sys.argv[1:]); print(open('/proc/self/status').read())"
    started = time.perf_counter()
    command = [sys.executable, "-c", script, *map(str, files), "--no-tracking"]
    output = subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8", errors="replace"
    ).stdout
    seconds = time.perf_counter() - started
    (kilobytes,) = (line.split()[1] for line in output.splitlines() if line.startswith("VmHWM:"))
    return seconds, int(kilobytes) / 1e6


def write_scores(folder: Path, images: int, members: int) -> Iterator[Path]:
    """Write score files like those of good ImageNet nets: about 17% top-1 error, mistakes largely in common."""
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, images)
    common = random.normal(0, 1.3, (images, CLASSES)).astype(np.float32)
    common[np.arange(images), labels] += random.normal(7.6, 2.0, images).astype(np.float32)
    for member in range(members):
        logits = common + np.random.default_rng(member + 1).normal(0, 0.9, common.shape).astype(np.float32)
        powers = np.exp(1.6 * (logits - logits.max(axis=1, keepdims=True)))
        table = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float16)
        scores = Scores(scores=table, ids=np.arange(images), labels=labels, provenance=provenance(f"{member}"))
        save(scores, folder / f"{member}.npz")
        yield folder / f"{member}.npz"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python bench/evaluate.py\n  python bench/evaluate.py --arch resnet50 --protocols center --scale 20",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--arch", default="resnet18", help="default resnet18")
    parser.add_argument("--protocols", nargs="+", choices=list(IMAGES), default=list(IMAGES), metavar="PROTOCOL")
    parser.add_argument("--threads", type=int, default=available_cores(), help="default: one per available core")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=int, default=1, help="multiplies the numbers of images (140 at most)")
    parser.add_argument("--ensemble-images", type=int, default=50_000, help="rows of the six score files; 0: skip them")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    return parser.parse_args(arguments)


COLUMNS = ("protocol", "images/s, median", "/ torchvision loop", "images per CPU second", "/ torchvision loop")


def tabulate(rates: Rates) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    """Return the rows of COLUMNS, and each ratio by name."""
    rows, ratios = [], {}
    for protocol, ways in rates.items():
        for way, rounds in ways.items():
            cells = []
            for column, measured in enumerate(("images/s", "images per CPU second")):
                values, loop = ([turn[column] for turn in turns] for turns in (rounds, ways["torchvision"]))
                # The median over rounds of the ratio within a round, because a busy machine slows neighbours alike.
                ratio = averages.median(a / b for a, b in zip(values, loop, strict=True))
                cells += [f"{averages.median(values):,.2f}", f"{ratio:.2f}"]
                if way != "torchvision":
                    ratios[f"{measured}, {way}/torchvision {protocol}"] = round(ratio, 3)
            rows.append((f"{protocol}, {way}", *cells))
    return rows, ratios


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if not SAMPLES.is_file():
        raise UserError(f"{SAMPLES} does not exist: this bench needs the sample images")
    device = gpus.take(options.device, 0)
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32 on both sides, as in pipeline.evaluate
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    with tempfile.TemporaryDirectory(prefix="bench-evaluate-") as folder:
        rates = measure(options, Path(folder), device)
        ensemble = time_ensemble(Path(folder), options.ensemble_images, 6) if options.ensemble_images else None
    rows, ratios = tabulate(rates)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{options.threads} CPU threads"
    title = f"{options.arch}, {where}, {options.rounds} rounds"
    print_table(title, COLUMNS, rows)
    if ensemble is not None:
        print(f"six score files of {options.ensemble_images:,} x 1000: {ensemble[0]:.1f} s, {ensemble[1]:.2f} GB")
    if options.json:
        medians = {
            protocol: {way: averages.median(rate for rate, _ in rounds) for way, rounds in ways.items()}
            for protocol, ways in rates.items()
        }
        figures = {"images_per_second": medians, "cores": os.cpu_count(), "threads": options.threads}
        print_json({"ratios": ratios, **figures, "ensemble_seconds_gb": ensemble})


if __name__ == "__main__":
    run(main)
