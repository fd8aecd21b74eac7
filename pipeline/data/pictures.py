"""Pictures from anywhere as a split, so that they go through the loader as the images of a dataset do, to the bit."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.base.command import UserError
from pipeline.base.cores import available_cores
from pipeline.base.regular import read_regular
from pipeline.data.batch import LoaderConfig
from pipeline.data.dataset import Split, SplitInfo
from pipeline.data.failures import failures, header_faults
from pipeline.data.graphs import Normalization
from pipeline.data.images import (
    LOSSLESS,
    LOSSLESS_ENOUGH,
    MAX_SIDE,
    UnreadableImageError,
    converted,
    decode,
    encode,
    grey_or_rgb,
)
from pipeline.data.loader import evaluation_batches
from pipeline.data.order import Presentations
from pipeline.data.plans import evaluation_plan
from pipeline.data.sample_table import UNLABELLED, sample_dtype
from pipeline.data.views import CenterCrop

_QUICKLY = {**LOSSLESS, "compress_level": 1}  # zlib's fastest: the bytes stay in memory
_ADDRESS = re.compile(r"\w+:/")  # of which a path has lost a slash
_LOADING = threading.Lock()
LOADER = LoaderConfig(threads=available_cores(), read_threads=1, decode_on="cpu")


@dataclass(frozen=True)
class Picture:
    """An encoded JPEG or PNG, and the height and width of its pixels (EXIF orientation ignored)."""

    encoded: bytes
    height: int
    width: int

    @staticmethod
    def of(encoded: bytes) -> Picture:
        """Decode an encoded picture once, to know that it is sound. Raises UnreadableImageError."""
        image = decode(encoded)
        if other := converted(image, encoded):
            image, _ = other
            encoded = encode(image, LOSSLESS)
        elif image.mode == "CMYK":  # as sharding does: DALI's decoders read its colours in other ways
            encoded = encode(image.convert("RGB"), LOSSLESS_ENOUGH)
        return Picture(encoded, image.height, image.width)

    @staticmethod
    def of_image(image: Image.Image) -> Picture:
        """Pillow's image, whose pixels stay as they are, as a PNG. Raises UnreadableImageError."""
        try:
            with _LOADING:  # an image may be in a list twice, and Pillow decodes it when its pixels are first asked for
                image.load()
        except MemoryError:
            raise
        except Exception as error:  # as `decode` of images.py; or the image was closed
            raise UnreadableImageError(str(error) or type(error).__name__) from None
        if not 0 < min(image.size) <= max(image.size) <= MAX_SIDE:
            raise UnreadableImageError(f"it is {image.width} x {image.height} pixels: give 1 to {MAX_SIDE:,} each")
        return Picture(encode(grey_or_rgb(image), _QUICKLY), image.height, image.width)


class Pictures(Split):
    """Pictures in memory as the samples of a split without labels."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.folder, self.name = Path(), "pictures"
        self.info = SplitInfo(samples=len(pictures), table="", table_sha256="", shards=())
        self.pictures = pictures
        self.samples = np.zeros(len(pictures), sample_dtype(1))
        self.samples["label"] = UNLABELLED
        self.samples["height"] = [picture.height for picture in pictures]
        self.samples["width"] = [picture.width for picture in pictures]

    def read(self, sample: int) -> bytes:
        return self.pictures[sample].encoded

    def describe(self, sample: int) -> str:
        return f"picture {sample}"

    def close(self) -> None:
        """Nothing is open."""


def read_pictures(
    places: Sequence[Path | bytes | Image.Image], view: CenterCrop, normalization: Normalization
) -> tuple[list[str | None], torch.Tensor]:
    """Read pictures, files, encoded or decoded ones: why each cannot be read, None for others; and the centre crops of these.

    The crops are normalized, in the order of `places`: float32 [pictures that can be read, crop, crop, 3], on the CPU.
    """
    with ThreadPoolExecutor(LOADER.queues.threads) as readers:  # Pillow decodes without the interpreter's lock
        read = list(readers.map(_read, places))
    try:
        crops = _centre_crops(_sound(read), view, normalization)
    except UserError:  # one of them is not to the loader's decoder, which does not say which
        if not (refused := _refused(_sound(read), view)):
            raise
        rows = [row for row, one in enumerate(read) if isinstance(one, Picture)]
        for place, reason in refused.items():
            read[rows[place]] = reason
        crops = _centre_crops(_sound(read), view, normalization)
    return [None if isinstance(one, Picture) else one for one in read], crops


def _sound(read: Sequence[Picture | str]) -> list[Picture]:
    return [one for one in read if isinstance(one, Picture)]


def _read(place: Path | bytes | Image.Image) -> Picture | str:
    try:
        if isinstance(place, Image.Image):
            return Picture.of_image(place)
        return Picture.of(place if isinstance(place, bytes) else read_regular(place))
    except FileNotFoundError:
        if _ADDRESS.match(str(place)):
            return "it is an address, and pictures are files: download it"
        return "there is no such file"
    except OSError as error:
        return error.strerror or str(error)
    except UnreadableImageError as error:
        return str(error)
    except MemoryError:
        return "it needs more memory than there is"


def _refused(pictures: Sequence[Picture], view: CenterCrop) -> dict[int, str]:
    """Those pictures, by their place, that the loader's decoder does not take, each with a reason."""
    split, ids = Pictures(pictures), np.arange(len(pictures))
    plan = evaluation_plan(split, view, Normalization(np.zeros(3, np.float32)))
    request = plan.stream.request(Presentations(np.zeros_like(ids), ids))
    cpu = torch.device("cpu")
    encoded = [picture.encoded for picture in pictures]
    faults = header_faults(split, ids, encoded, ids.tolist())
    others = [place for place in ids.tolist() if place not in faults]
    return faults | failures(plan.graph(LOADER, cpu), encoded, request.views, cpu, others)


def _centre_crops(pictures: Sequence[Picture], view: CenterCrop, normalization: Normalization) -> torch.Tensor:
    """Raises UserError where the loader's decoder does not take one of the pictures."""
    if not pictures:
        return torch.empty(0, view.crop, view.crop, 3)
    split, block = Pictures(pictures), np.arange(len(pictures))
    with evaluation_batches(split, view, normalization, [block], torch.device("cpu"), LOADER) as batches:
        return next(batches).images
