"""Images, sample tables, statistics and manifests with flipped bits, through the loader.

A dataset of a round holds each damaged image, and behind it a sound one, which is its substitute. The damaged rows stand where
DALI crashed: in the last block of a batch of more than 4 (threads + 1) images, most often at its start.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch

from pipeline.base.command import UserError
from pipeline.data.augment import AugmentConfig
from pipeline.data.batch import LoaderConfig
from pipeline.data.dataset import STATISTICS, Dataset, Split
from pipeline.data.finishing import Finish
from pipeline.data.loader import Batch, BatchIterator
from pipeline.data.order import Presentations
from pipeline.data.plans import evaluation_plan, training_plan
from pipeline.data.producer import DaliProducer
from pipeline.data.views import TenCrop
from tests.attack.attack import Attack, Outcome
from tests.attack.isolated import Isolated
from tests.images import encode, photograph
from tests.pipeline.data.small_datasets import replace_table, statistics_of_size, write_dataset

CPU = torch.device("cpu")
ROUND = 100  # damaged images of one dataset
BATCH, THREADS = 48, 2
# The first of the rows whose headers DALI reads itself, not by its threads
LAST_BLOCK = BATCH * THREADS // (THREADS + 1)
TOGETHER = 3  # damaged images in some of the batches
IN_FLIGHT = 6  # batches that may be on the way when the process dies
HEADER = 700  # bytes: a JPEG's with its tables
AUGMENT, VIEW, STATISTICS_USED = (
    AugmentConfig(short_side=(36, 64), crop=32),
    TenCrop(short_side=40, crop=32),
    statistics_of_size(32),
)


@dataclass(frozen=True)
class Trial:
    """A batch: `damaged` samples at the `rows`, sound ones elsewhere."""

    ids: tuple[int, ...]
    rows: tuple[int, ...]


def attack(random: Random, tries: int, folder: Path, outcome: Outcome) -> None:
    small = tries // 10
    originals = _originals()
    with Isolated(decode, 60) as isolated:
        for number in range(0, tries - small, ROUND):
            count = min(ROUND, tries - small - number)
            mode = random.choices(["substitute", "stop", "ten-crop"], [6, 3, 1])[0]
            place = folder / f"{number}"
            what = _write_round(random, originals, count, place)
            _judge_round(isolated, place, mode, _trials(random, count), what, outcome)
            shutil.rmtree(place)
    _attack_small_files(random, small, folder, outcome)


def _originals() -> list[bytes]:
    """Small images of every sort that sharding accepts."""
    made = []
    for number in range(24):
        image = photograph(number, 40 + number % 21, 40 + 7 * number % 21)
        if number % 3 == 2:
            made.append(encode(image if number % 2 else image.convert("L"), "PNG"))
            continue
        image = image.convert("L") if number % 8 == 1 else image
        options = (
            {"progressive": True} if number % 4 == 3 else {"subsampling": number % 3} if image.mode == "RGB" else {}
        )
        made.append(encode(image, quality=85, **options))
    return made


def _write_round(random: Random, originals: Sequence[bytes], count: int, folder: Path) -> list[str]:
    """Write a dataset whose sample 2k is damaged and whose sample 2k + 1 is sound; what was done to each of the former."""
    chosen = [random.choice(originals) for _ in range(2 * count)]
    dataset = write_dataset(folder, chosen, [number % 10 for number in range(2 * count)], shard_size=2 * count)
    table, what = np.load(folder / "train.samples.npy"), []
    with open(folder / dataset.manifest.splits["train"].shards[0].file, "r+b") as shard:
        for number in range(count):
            row, image = table[2 * number], bytearray(chosen[2 * number])
            harm = random.choice(HARMS)
            what.append(f"{harm.__name__} {harm(random, image, row, random.choice(originals))}")
            assert len(image) == row["size"]
            shard.seek(int(row["offset"]))
            shard.write(image)
    replace_table(folder, "train", table)
    return what


def a_bit(random: Random, image: bytearray, row: np.void, other: bytes) -> str:
    place, bit = random.randrange(len(image)), random.randrange(8)
    image[place] ^= 1 << bit
    return f"{bit} of byte {place}"


def a_bit_of_the_header(random: Random, image: bytearray, row: np.void, other: bytes) -> str:
    place, bit = random.randrange(min(HEADER, len(image))), random.randrange(8)
    image[place] ^= 1 << bit
    return f"{bit} of byte {place}"


def a_byte_of_the_header(random: Random, image: bytearray, row: np.void, other: bytes) -> str:
    place, value = random.randrange(min(HEADER, len(image))), random.choice((0, 1, 0x7F, 0x80, 0xD8, 0xD9, 0xDA, 0xFF))
    image[place] = value
    return f"{place} = {value}"


def several_bits(random: Random, image: bytearray, row: np.void, other: bytes) -> str:
    return ", ".join(a_bit(random, image, row, other) for _ in range(random.randint(2, 8)))


def the_rest(random: Random, image: bytearray, row: np.void, other: bytes) -> str:
    place, value = random.randrange(len(image)), random.choice((0, 0xFF))
    image[place:] = bytes([value]) * (len(image) - place)
    return f"from byte {place} on = {value}"


def the_header_of_another(random: Random, image: bytearray, row: np.void, other: bytes) -> str:
    length = random.randrange(1, min(len(image), len(other)))
    image[:length] = other[:length]
    return f"{length} bytes of {other[:200].hex()}"


def a_byte_lost(random: Random, image: bytearray, row: np.void, other: bytes) -> str:
    place = random.randrange(len(image))
    del image[place]
    image.append(0)
    return str(place)


def the_size_in_the_table(random: Random, image: bytearray, row: np.void, other: bytes) -> str:
    side, bit = random.choice(("height", "width")), random.randrange(16)
    flipped = int(row[side]) ^ (1 << bit)
    row[side] = flipped or 1
    return f"{side} = {flipped or 1}"


HARMS: tuple[Callable[[Random, bytearray, np.void, bytes], str], ...] = (
    a_bit, a_bit_of_the_header, a_bit_of_the_header, a_byte_of_the_header, several_bits, the_rest, the_header_of_another,
    a_byte_lost, the_size_in_the_table,
)  # fmt: skip


def _trials(random: Random, count: int) -> list[Trial]:
    """Batches in which each damaged sample stands once, alone or with others, mostly among the last rows."""
    trials, damaged = [], list(range(0, 2 * count, 2))
    while damaged:
        together = damaged[: TOGETHER if random.random() < 0.1 else 1]
        damaged = damaged[len(together) :]
        ids = [2 * random.randrange(count) + 1 for _ in range(BATCH)]
        start = random.choice((LAST_BLOCK, LAST_BLOCK, LAST_BLOCK, random.randrange(BATCH - TOGETHER)))
        rows = range(start, start + len(together))
        for row, sample in zip(rows, together, strict=True):
            ids[row] = sample
        trials.append(Trial(tuple(ids), tuple(rows)))
    return trials


def _judge_round(
    isolated: Isolated, folder: Path, mode: str, trials: Sequence[Trial], what: Sequence[str], outcome: Outcome
) -> None:
    """Decode the batches; where the process dies, go on behind those that were on the way."""
    progress = folder / "progress"
    while trials:
        progress.write_text("0")
        ended = isolated(folder, mode, trials, progress)
        if ended.how == "returned":
            for trial, (wrong, said) in zip(trials, ended.value, strict=True):
                harm = "; ".join(what[trial.ids[row] // 2] for row in trial.rows)
                if wrong:
                    outcome.wrong(f"{mode}: {harm}: {said}")
                else:
                    outcome.right(said, len(trial.rows))
            return
        reached = int(progress.read_text() or 0)
        on_the_way = IN_FLIGHT if mode == "substitute" else 1
        lost = trials[reached : reached + on_the_way]
        harm = "; ".join(what[trial.ids[row] // 2] for trial in lost for row in trial.rows)
        outcome.wrong(f"{mode}: {ended.how} {ended.said}, after one of: {harm}")
        trials = trials[reached + on_the_way :]


def decode(folder: Path, mode: str, trials: Sequence[Trial], progress: Path) -> list[tuple[bool, str]]:
    """Decode the batches of a round; for each, whether it is wrong, and what came of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libpng and libjpeg complain of every damaged image
    split = Dataset(folder).split("train")
    sound = np.arange(1, len(split), 2)
    (reference,) = _batches(split, mode, [sound])
    expected = dict(zip(sound.tolist(), reference.images, strict=True))
    ended: list[tuple[bool, str]] = []
    if mode == "substitute":
        batches = _batches(split, mode, [np.array(trial.ids) for trial in trials])
        for number, trial in enumerate(trials):
            progress.write_text(str(number))
            ended.append(_seen(split, trial, next(batches), expected))
        return ended
    for number, trial in enumerate(trials):
        progress.write_text(str(number))
        try:
            (batch,) = _batches(split, mode, [np.array(trial.ids)])
        except UserError as error:
            named = [row for row in trial.rows if split.describe(trial.ids[row]) in str(error)]
            ended.append((not named, "refused by name" if named else str(error)))
        else:
            ended.append(_seen(split, trial, batch, expected))
    return ended


def _batches(split: Split, mode: str, blocks: Sequence[np.ndarray]) -> Iterator[Batch]:
    config = LoaderConfig(
        threads=THREADS, read_threads=2, read_ahead=1, decode_ahead=1, ready=1,
        on_decode_error="substitute" if mode == "substitute" else "stop",
    )  # fmt: skip
    if mode == "ten-crop":
        plan = evaluation_plan(split, VIEW, STATISTICS_USED, blocks)
    else:
        shown = [Presentations(np.zeros(len(block), np.int64), block) for block in blocks]
        plan = training_plan(split, 0, AUGMENT, STATISTICS_USED, max(map(len, blocks)), shown)
    finish = Finish(plan.normalization, CPU, torch.float32)
    with BatchIterator(DaliProducer(plan.stream, plan.graph(config, CPU), finish, config)) as batches:
        yield from batches


def _seen(split: Split, trial: Trial, batch: Batch, expected: dict[int, torch.Tensor]) -> tuple[bool, str]:
    """Whether a batch is other than the ledger says: its sound rows, and the substitutes of the damaged ones."""
    planned, substituted = np.array(trial.ids), np.flatnonzero(batch.ids != trial.ids)
    planned[substituted] += 1
    if not set(substituted.tolist()) <= set(trial.rows) or (batch.ids != planned).any():
        return True, f"samples {batch.ids.tolist()} instead of {list(trial.ids)}"
    if (batch.labels.numpy() != split.labels[batch.ids]).any():
        return True, f"labels {batch.labels.tolist()} of samples {batch.ids.tolist()}"
    for row, sample in enumerate(batch.ids.tolist()):
        if sample in expected and not torch.equal(batch.images[row], expected[sample]):
            return True, f"other pixels of the sound sample {sample} in row {row}"
    damaged = sorted(split.describe(trial.ids[row]) for row in substituted.tolist())
    if damaged != sorted(sentence.partition(" does not decode")[0] for sentence in batch.substitutions):
        return True, f"{len(substituted)} substitutions, but the batch tells of {batch.substitutions}"
    return False, "substituted and counted" if len(substituted) else "decoded, as the decoder takes it"


def _attack_small_files(random: Random, tries: int, folder: Path, outcome: Outcome) -> None:
    """Sample table, statistics, manifest and index, one bit, byte or cut at a time."""
    place = folder / "small"
    whole = _write_small(place)
    with Isolated(open_damaged, 60) as isolated:
        for number in range(0, tries, ROUND):
            damaged = [_damaged(random, whole) for _ in range(min(ROUND, tries - number))]
            ended = isolated(place, whole, [(name, data) for name, data, _ in damaged])
            if ended.how != "returned":
                outcome.wrong(f"{ended.how} {ended.said}, after one of: {[harm for *_, harm in damaged]}")
                continue
            for (name, _, harm), (wrong, said) in zip(damaged, ended.value, strict=True):
                if wrong:
                    outcome.wrong(f"{name}, {harm}: {said}")
                else:
                    outcome.right(said)


def _write_small(folder: Path) -> dict[str, bytes]:
    """A sound dataset with statistics and an index; the bytes of its small files."""
    dataset = write_dataset(folder, _originals(), [number % 10 for number in range(24)], statistics=STATISTICS_USED)
    shard = dataset.manifest.splits["train"].shards[0].file
    names = ("manifest.json", "train.samples.npy", STATISTICS, shard.removesuffix(".tar") + ".idx")
    (folder / names[-1]).write_text("v1.2 0\n")
    return {name: (folder / name).read_bytes() for name in names}


def _damaged(random: Random, whole: dict[str, bytes]) -> tuple[str, bytes, str]:
    name = random.choice([*whole])
    data, place = bytearray(whole[name]), random.randrange(len(whole[name]))
    match random.choice(("bit", "bit", "byte", "cut", "zeros")):
        case "bit":
            bit = random.randrange(8)
            data[place] ^= 1 << bit
            return name, bytes(data), f"bit {bit} of byte {place}"
        case "byte":
            data[place] = (data[place] + random.randrange(1, 256)) % 256
            return name, bytes(data), f"byte {place} = {data[place]}"
        case "cut":
            return name, bytes(data[:place]), f"cut at {place}"
    data[place : place + 64] = bytes(len(data[place : place + 64]))
    return name, bytes(data), f"zeros from byte {place} on"


def open_damaged(folder: Path, whole: dict[str, bytes], damaged: Sequence[tuple[str, bytes]]) -> list[tuple[bool, str]]:
    """Open the dataset with each damaged file, and read it whole; for each, whether it is wrong, and what came of it."""
    sound = Dataset(folder)
    table, expected = sound.split("train").samples, [sound.split("train").read(sample) for sample in range(24)]
    ended = []
    for name, data in damaged:
        (folder / name).write_bytes(data)
        try:
            ended.append(_as_it_was(folder, name, data != whole[name], sound, table, expected))
        except UserError as error:
            sentence = str(error)
            ended.append(("\n" in sentence or str(folder) not in sentence, "refused with a sentence"))
        (folder / name).write_bytes(whole[name])
    return ended


def _as_it_was(
    folder: Path, name: str, changed: bool, sound: Dataset, table: np.ndarray, expected: list[bytes]
) -> tuple[bool, str]:
    """Open it: a sample must be the same, and a changed manifest must be another identity."""
    dataset = Dataset(folder)
    split, statistics = dataset.split("train"), dataset.statistics
    same = split.samples.tobytes() == table.tobytes() and [split.read(sample) for sample in range(24)] == expected
    if not same or not np.array_equal(statistics.mean_image, STATISTICS_USED.mean_image):
        return True, "other samples or statistics were read"
    if name == "manifest.json" and changed and dataset.sha256 == sound.sha256:
        return True, "the identity is the old one"
    return False, "another identity" if name == "manifest.json" and changed else "nothing reads it"


IMAGES = Attack(
    name="images",
    what="images, sample table, statistics, manifest and index damaged, through the loader",
    run=attack,
    short=300,
    full=20_000,
)
