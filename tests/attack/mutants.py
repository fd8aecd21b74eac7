"""Damaged and odd images: what sharding takes is whole for verify.py and decodes in the loader, one by one, in isolation."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data_prep.verify import verify
from pipeline.data.augment import AugmentConfig, training_views
from pipeline.data.dataset import Dataset, Statistics
from pipeline.data.failures import failures
from pipeline.data.graphs import Graph
from pipeline.data.headers import header_fault
from tests.attack.attack import Attack, Outcome
from tests.attack.isolated import Isolated
from tests.helpers import ROOT
from tests.images import encode, photograph
from tests.patience import limit

_WINDOWS = 4  # of each image, as a training would decode them
_SOUND = 3  # images that nothing was done to, so that the dataset is never empty


def _rgba(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(image.convert("L"))
    return image


def _deep(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


# Each makes an encoded image of one kind.
KINDS: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG": lambda image: encode(image, quality=90),
    "JPEG 4:4:4": lambda image: encode(image, quality=95, subsampling=0),
    "progressive JPEG": lambda image: encode(image, quality=85, progressive=True),
    "JPEG with restart markers": lambda image: encode(image, quality=85, restart_marker_blocks=4),
    "grey JPEG": lambda image: encode(image.convert("L"), quality=90),
    "CMYK JPEG": lambda image: encode(image.convert("CMYK"), quality=90),
    "two JPEGs in one": lambda image: encode(image, "MPO", save_all=True, append_images=[image]),
    "PNG": lambda image: encode(image, "PNG"),
    "grey PNG": lambda image: encode(image.convert("L"), "PNG"),
    "grey PNG with alpha": lambda image: encode(image.convert("LA"), "PNG"),
    "16-bit PNG": lambda image: encode(_deep(image), "PNG"),
    "transparent PNG": lambda image: encode(_rgba(image), "PNG"),
    "palette PNG": lambda image: encode(image.quantize(60), "PNG"),
    "palette PNG with transparency": lambda image: encode(image.quantize(60), "PNG", transparency=3),
    "PNG of one bit": lambda image: encode(image.convert("1"), "PNG"),
    "16-bit colour PNG": lambda image: png(np.asarray(image).astype(np.uint16) * 257),
    "interlaced PNG": lambda image: png(np.asarray(image), interlaced=True),
}


def png(pixels: NDArray[Any], interlaced: bool = False) -> bytes:
    """Encode RGB pixels [H, W, 3], uint8 or uint16, as Pillow cannot: with 16 bits, or in the seven passes of Adam7."""
    height, width, _ = pixels.shape
    depth = 8 * pixels.dtype.itemsize
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = []
    for top, left, down, right in passes:
        part = pixels[top::down, left::right].astype(pixels.dtype.newbyteorder(">"))
        rows += [b"\0" + row.tobytes() for row in part if row.size]
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, int(interlaced))
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in chunks)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _flip(random: Random, data: bytes, _: bytes) -> bytes:
    changed = bytearray(data)
    for _time in range(random.choice((1, 1, 1, 4, 30))):
        changed[_place(random, data)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _set(random: Random, data: bytes, _: bytes) -> bytes:
    changed = bytearray(data)
    for _time in range(random.choice((1, 2, 8))):
        changed[_place(random, data)] = random.choice((0, 1, 0x7F, 0x80, 0xD8, 0xD9, 0xDA, 0xFE, 0xFF))
    return bytes(changed)


def _truncate(random: Random, data: bytes, _: bytes) -> bytes:
    return data[: random.choice((random.randrange(len(data)), len(data) - random.randrange(1, 20)))]


def _zero(random: Random, data: bytes, _: bytes) -> bytes:
    start, size = _place(random, data), random.randrange(1, 200)
    return data[:start] + bytes(size) + data[start + size :]


def _duplicate(random: Random, data: bytes, _: bytes) -> bytes:
    start, size = _place(random, data), random.randrange(1, 200)
    return data[: start + size] + data[start:]


def _delete(random: Random, data: bytes, _: bytes) -> bytes:
    start, size = _place(random, data), random.choice((1, 2, random.randrange(1, 200)))
    return data[:start] + data[start + size :]


def _insert(random: Random, data: bytes, _: bytes) -> bytes:
    start = _place(random, data)
    return data[:start] + random.randbytes(random.choice((1, 2, random.randrange(1, 200)))) + data[start:]


def _splice(random: Random, data: bytes, other: bytes) -> bytes:
    return data[: _place(random, data)] + other[_place(random, other) :]


def _append(random: Random, data: bytes, other: bytes) -> bytes:
    return data + random.choice((other, bytes(random.randrange(1, 5000)), b"PK\3\4 and a zip", b"<html></html>"))


def _prepend(random: Random, data: bytes, other: bytes) -> bytes:
    return random.choice((other, b"\0", b"\xff", b"GIF89a", b"%PDF-1.4\n", b"\xff\xd8", b"\x89PNG\r\n\x1a\n")) + data


def _claim_size(random: Random, data: bytes, _: bytes) -> bytes:
    """Change the size in the header, a PNG's with a right checksum."""
    changed, side = bytearray(data), random.choice((0, 1, 15, 16, 17, 64, 255, 4000, 65535, random.randrange(1, 120)))
    if data.startswith(b"\x89PNG"):
        struct.pack_into(">I", changed, random.choice((16, 20)), side)
        struct.pack_into(">I", changed, 29, zlib.crc32(changed[12:29]))
        return bytes(changed)
    place = _frame(data)
    if place is not None:
        struct.pack_into(">H", changed, place + random.choice((5, 7)), side)
    return bytes(changed)


def _change_header(random: Random, data: bytes, _: bytes) -> bytes:
    """Change one byte of a PNG's header, with a right checksum, or of a JPEG's frame header, often the kind of coding."""
    changed = bytearray(data)
    if data.startswith(b"\x89PNG"):
        changed[random.randrange(24, 29)] = random.choice((0, 1, 2, 3, 4, 6, 8, 16))
        struct.pack_into(">I", changed, 29, zlib.crc32(changed[12:29]))
        return bytes(changed)
    place = _frame(data)
    if place is not None:
        if random.random() < 0.3:
            changed[place + 1] = random.randrange(0xC0, 0xD0)
        else:
            values = (0, 1, 2, 3, 4, 8, 12, 16, 0x11, 0x21, 0x22, 0x41, 0x44, 0xFF)
            changed[place + random.randrange(2, 19)] = random.choice(values)
    return bytes(changed)


def _frame(data: bytes) -> int | None:
    """Where a JPEG's frame header begins; None where none is found."""
    places = range(2, len(data) - 20)
    return next((at for at in places if data[at] == 0xFF and data[at + 1] in (0xC0, 0xC1, 0xC2)), None)


def _other_chunk(random: Random, data: bytes, _: bytes) -> bytes:
    """Put a further chunk, or a further segment, behind the header."""
    kind = random.choice((b"tEXt", b"iCCP", b"gAMA", b"eXIf", b"acTL", b"IDAT", b"PLTE", b"tRNS", b"ABCD"))
    body = random.randbytes(random.randrange(0, 60))
    if data.startswith(b"\x89PNG"):
        return data[:33] + chunk(kind, body) + data[33:]
    marker = random.choice((0xE0, 0xE1, 0xE2, 0xEE, 0xFE, 0xDB, 0xC4, 0xDD))
    return data[:2] + b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body + data[2:]


def _nothing(random: Random, data: bytes, _: bytes) -> bytes:
    return data


CHANGES: dict[str, Callable[[Random, bytes, bytes], bytes]] = {
    "bits flipped": _flip,
    "bytes set": _set,
    "cut off": _truncate,
    "a block of zeros": _zero,
    "a block twice": _duplicate,
    "a block missing": _delete,
    "bytes between": _insert,
    "the end of another": _splice,
    "something behind": _append,
    "something before": _prepend,
    "another size claimed": _claim_size,
    "another header": _change_header,
    "a further chunk": _other_chunk,
    "nothing": _nothing,
}


def _place(random: Random, data: bytes) -> int:
    """A place in the file: half of the time in its first 700 bytes, where the headers are."""
    return random.randrange(min(len(data), random.choice((700, len(data))))) if data else 0


def mutant(random: Random) -> tuple[str, bytes]:
    """Draw an image file and what was done to it: "KIND, CHANGE (, CHANGE)"."""
    side = random.choice((24, 48, 90))
    image = photograph(random.randrange(1000), side, side + random.randrange(12))
    kind, other = random.choice(sorted(KINDS)), random.choice(sorted(KINDS))
    data, other_data = KINDS[kind](image), KINDS[other](image)
    changes = random.choices(sorted(CHANGES), k=random.choice((1, 1, 1, 2)))
    for change in changes:
        if data:
            data = CHANGES[change](random, data, other_data)
    return ", ".join([kind, *changes]), data


def _mutants_in_class_folders(random: Random, tries: int, folder: Path, outcome: Outcome) -> None:
    """Shard `tries` mutants with --skip-corrupt; each that was taken must be whole for verify.py and pass the loader."""
    images, done = folder / "source/train/one", {}
    images.mkdir(parents=True)
    for number in range(_SOUND):
        (images / f"sound{number}.jpg").write_bytes(encode(photograph(number, 40, 44)))
    for number in range(tries):
        done[f"one_{number}"], data = mutant(random)
        suffixes = [".png", ".jpg"] if "PNG" in done[f"one_{number}"] else [".jpg", ".png"]
        (images / f"{number}{suffixes[random.random() < 0.1]}").write_bytes(data)  # some have the other's name
    if (failure := _sharded(folder)) is not None:
        outcome.wrong(failure)
        return
    dataset = Dataset(folder / "dataset")
    for left in dataset.manifest.notes["left_out"]["train"]:
        outcome.right("left out")
        if not left["reason"]:
            outcome.wrong(f"{left['key']} ({done[left['key']]}) was left out without a reason")
    with Isolated(_problems, 60 + tries / 10) as audit:
        if (audited := audit(dataset.folder)).how != "returned" or audited.value:
            outcome.wrong(f"verify.py after sharding: {audited.how} {audited.value} {audited.said}")
    split = dataset.split("train")
    with Isolated(_reasons, 20) as loader:
        for sample, row in enumerate(split.samples):
            if (key := row["key"].decode()) not in done:
                continue
            ended = loader(split.read(sample), int(row["height"]), int(row["width"]), sample)
            if ended.how == "returned" and not ended.value:
                outcome.right("taken and decoded")
            else:
                outcome.wrong(
                    f"{key} ({done[key]}) was taken, and in the loader: {ended.how} {ended.value} {ended.said}"
                )


def _sharded(folder: Path) -> str | None:
    """Run shard_imagenet.py; what went wrong."""
    script = [
        sys.executable,
        str(ROOT / "data_prep/shard_imagenet.py"),
        str(folder / "source"),
        str(folder / "dataset"),
    ]
    options = ["--skip-corrupt", "--samples-per-shard", "50", "--workers", "2"]
    statistics = ["--statistics-size", "24", "--statistics-short-side", "32"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        ended = subprocess.run(
            [*script, *options, *statistics], env=environment, capture_output=True, text=True, timeout=limit(300)
        )
    except subprocess.TimeoutExpired:
        return "sharding hung"
    return None if ended.returncode == 0 else f"sharding ended with {ended.returncode}: {ended.stderr[-500:]}"


def _problems(dataset: Path) -> tuple[str, ...]:
    return verify(dataset, fast=False, workers=1).problems


def _reasons(encoded: bytes, height: int, width: int, sample: int) -> dict[int, str]:
    """Why the image does not pass through the loader's graphs, whole and in windows of a training, one by one."""
    if fault := header_fault(encoded, height, width):
        return {0: fault}
    rows, cpu = np.arange(_WINDOWS), torch.device("cpu")
    heights, widths, ids = (np.full(_WINDOWS, number) for number in (height, width, sample))
    statistics = Statistics(mean_image=np.zeros((8, 8, 3), np.float32), eigenvalues=np.zeros(3), eigenvectors=np.eye(3))
    views = training_views(0, rows, ids, heights, widths, AugmentConfig(crop=24, short_side=(32, 40)), statistics)
    images = [encoded] * _WINDOWS
    return failures(Graph("source", 24), images, views, cpu, [0]) or failures(
        Graph("crop", 24), images, views, cpu, range(_WINDOWS)
    )


MUTANTS = Attack(
    name="mutants",
    what="damaged and odd JPEG and PNG files through sharding with --skip-corrupt",
    run=_mutants_in_class_folders,
    short=60,
    full=2_000,
)
