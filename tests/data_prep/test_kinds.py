"""Pictures of other kinds than JPEG and PNG: taken with the pixels that Pillow reads, said, and the same for a prediction."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from data_prep import shard_imagenet
from data_prep.images import ImageRules, prepare_image
from data_prep.verify import verify
from pipeline.base.command import UserError
from pipeline.data import images
from pipeline.data.dataset import Dataset
from pipeline.data.images import UnreadableImageError
from pipeline.data.pictures import Picture
from tests.data_prep.test_images import GENERATOR, dali_decode, picture, transparent
from tests.images import encode

OPTIONS = ["--samples-per-shard", "4", "--statistics-size", "32", "--statistics-short-side", "32", "--workers", "1"]
MOVING = {"save_all": True, "append_images": [picture(), picture()]}
SIXTEEN = Image.fromarray(GENERATOR.integers(0, 65536, (60, 80), dtype=np.uint16))
LAYERS = Image.fromarray(np.stack([np.asarray(SIXTEEN) >> 8] * 3, axis=-1).astype(np.uint8))


@pytest.mark.parametrize(
    ("data", "name", "change"),
    [
        (encode(picture(), "WEBP", lossless=True), "a.webp", "WebP re-encoded as PNG"),
        (encode(picture(), "WEBP", quality=80), "a.WEBP", "WebP re-encoded as PNG"),
        (encode(picture(), "WEBP"), "from the web.jpg", "WebP re-encoded as PNG"),  # by its content
        (encode(transparent(picture()), "WEBP", lossless=True), "b.webp", "WebP re-encoded as PNG, without its transparency"),
        (encode(picture(), "WEBP", **MOVING), "moving.webp", "WebP re-encoded as PNG, its first frame alone"),
        (encode(picture().convert("RGBA"), "WEBP", lossless=True), "opaque.webp", "WebP re-encoded as PNG"),
        (encode(picture(), "BMP"), "a.bmp", "BMP re-encoded as PNG"),
        (encode(picture().convert("1"), "BMP"), "black.bmp", "BMP re-encoded as PNG"),
        (encode(picture(), "GIF"), "a.gif", "GIF re-encoded as PNG"),
        (encode(picture(), "GIF", **MOVING), "moving.gif", "GIF re-encoded as PNG, its first frame alone"),
        (encode(picture(), "TIFF", compression="tiff_lzw"), "a.tif", "TIFF re-encoded as PNG"),
        (encode(picture().convert("L"), "TIFF"), "grey.tiff", "TIFF re-encoded as PNG"),
        (encode(picture().convert("CMYK"), "TIFF"), "print.tiff", "TIFF re-encoded as PNG, CMYK as RGB"),
        (encode(picture(), "TIFF", **MOVING), "pages.tiff", "TIFF re-encoded as PNG, its first frame alone"),
        (encode(picture(), "AVIF"), "a.avif", "AVIF re-encoded as PNG"),
        (encode(picture(), "JPEG2000"), "a.jp2", "JPEG 2000 re-encoded as PNG"),
        (encode(picture(), "PPM"), "a.ppm", "PPM re-encoded as PNG"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_pixels_are_those_that_pillow_reads(data, name, change):
    """Its first frame, as RGB, without transparency; a prediction reads the same file with the same pixels."""
    prepared = prepare_image(data, name, ImageRules())
    assert (prepared.change, prepared.extension) == (change, "png")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(dali_decode(prepared.data), expected)
    predicted = Picture.of(data)
    assert (predicted.height, predicted.width) == expected.shape[:2]
    np.testing.assert_array_equal(dali_decode(predicted.encoded), expected)


@pytest.mark.parametrize("name", ["a.jpe", "a.JFIF", "a.webp"])
def test_a_jpeg_keeps_its_bytes_under_any_name(name):
    data = encode(picture(), quality=85)
    assert prepare_image(data, name, ImageRules()).data == data == Picture.of(data).encoded
    png = encode(picture(), "PNG")
    assert prepare_image(png, "a.webp", ImageRules()).data == png


def test_sixteen_bits_are_scaled_as_those_of_a_png_are():
    """By the value, 65535 to 255; Pillow alone would clip all above 255."""
    prepared = prepare_image(encode(SIXTEEN, "TIFF"), "a.tif", ImageRules())
    assert prepared.change == "TIFF re-encoded as PNG, 16 bits as 8"
    expected = np.asarray(SIXTEEN).astype(float) * 255 / 65535
    assert np.abs(dali_decode(prepared.data)[..., 0] - expected).max() < 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encode(Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF"), "its pixels have 32 bits"),
        (encode(Image.fromarray(np.full((8, 8), 70_000, np.int32)), "TIFF"), "its pixels have 32 bits"),
        (encode(picture(), "WEBP")[:-60], None),
        (encode(picture(), "GIF")[:100], None),
        (encode(picture(), "TIFF")[:400], None),
        (encode(picture(), "AVIF")[:-60], None),
        (encode(picture(), "BMP")[:-60], None),
    ],
    ids=["float", "int32", "webp", "gif", "tiff", "avif", "bmp"],
)
def test_what_is_damaged_or_of_no_8_bits_is_unreadable(data, reason):
    for read in (lambda: prepare_image(data, "a.tif", ImageRules()), lambda: Picture.of(data)):
        with pytest.raises(UnreadableImageError, match=reason):
            read()


def test_max_short_side_keeps_a_shrunk_picture_a_png():
    prepared = prepare_image(encode(picture(), "WEBP"), "a.webp", ImageRules(max_short_side=30))
    assert (
        prepared.shrunk and Image.open(io.BytesIO(prepared.data)).format == "PNG" and prepared.pixels.size == (40, 30)
    )


def test_every_suffix_is_of_a_kind_that_pillow_reads():
    Image.init()
    known = Image.registered_extensions()
    for kind, suffixes in images.KINDS.items():
        assert {known[suffix] for suffix in suffixes} <= {kind, "DIB"} and kind in Image.OPEN
    assert not set(images.UNREAD_SUFFIXES) & set(images.SUFFIXES)


@pytest.fixture
def source(tmp_path):
    """Pictures of many kinds in class folders; `thing` has one of a kind that is not read."""
    kinds = ("JPEG", "WEBP", "GIF", "TIFF", "BMP", "PNG")
    for number, kind in enumerate(kinds * 2):
        path = tmp_path / "source/train" / ("größe 1", "thing")[number // 6] / f"{number}.{kind.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(), kind))
    (tmp_path / "source/train/thing/phone.HEIC").write_bytes(b"heic")
    return tmp_path / "source"


def test_a_dataset_of_many_kinds(source, tmp_path, capsys):
    shard_imagenet.main([str(source), str(tmp_path / "dataset"), *OPTIONS])
    printed = capsys.readouterr()
    counts = "2 BMP, 2 GIF, 2 JPEG, 2 PNG, 2 TIFF, 2 WebP"
    line = next(line for line in printed.err.splitlines() if line.startswith("train: "))
    assert line.startswith("train: 12 images (") and sorted(
        line.split("(")[1].split(")")[0].split(", ")
    ) == counts.split(", ")
    assert "passed over: 1 .heic files, which are not read here: convert them to JPEG or PNG (thing/phone.HEIC)" in line
    assert "8 images were re-encoded (2 " in printed.out and "2 WebP re-encoded as PNG" in printed.out
    dataset = Dataset(tmp_path / "dataset")
    assert dataset.class_names == ("größe 1", "thing") and len(dataset.manifest.notes["changed"]["train"]) == 8
    split = dataset.split("train")
    for number, row in enumerate(split.samples):
        (path,) = (source / "train").glob(f"*/{row['key'].decode().split('_')[1]}.*")
        expected = np.asarray(Image.open(path).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(split.read(number))).convert("RGB")), expected)
    assert verify(dataset.folder, fast=False, workers=1).problems == ()


def test_a_class_of_pictures_that_are_not_read(source, tmp_path):
    for path in (source / "train/thing").iterdir():
        if path.suffix != ".HEIC":
            path.unlink()
    with pytest.raises(UserError, match=r"has no images in it, but 1 \.heic files, which are not read here"):
        shard_imagenet.main([str(source), str(tmp_path / "dataset"), *OPTIONS])
    assert not os.path.exists(tmp_path / "dataset")
