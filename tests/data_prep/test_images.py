import io
import zlib

import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def
from PIL import Image

from data_prep.images import ImageRules, eight_bit, prepare_image
from pipeline.data.images import UnreadableImageError, decode
from tests.images import encode, smooth

GENERATOR = np.random.default_rng(4)
UNCHANGED = ImageRules()


def picture(height=60, width=80):
    return smooth(GENERATOR, height, width)


def psnr(first, second):
    difference = np.asarray(first, float) - np.asarray(second, float)
    return 10 * np.log10(255**2 / max((difference**2).mean(), 1e-12))


def dali_decode(data):
    """Decode an image with DALI, EXIF orientation ignored: uint8 [H, W, 3]."""

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipe():
        image = fn.external_source(source=lambda _: [np.frombuffer(data, np.uint8)], batch=True)
        return fn.decoders.image(image, adjust_orientation=False)

    pipeline = pipe()
    pipeline.build()
    return np.asarray(pipeline.run()[0].at(0))


def transparent(image):
    image = image.convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, image.width, dtype=np.uint8), (image.height, 1))))
    return image


EXIF = Image.Exif()
EXIF[0x0112] = 6


@pytest.mark.parametrize(
    ("data", "name", "extension"),
    [
        (encode(picture(), quality=90), "a.JPEG", "jpg"),
        (encode(picture(), quality=90, exif=EXIF), "rotated.jpg", "jpg"),
        (encode(picture(), quality=90, progressive=True), "a.jpg", "jpg"),
        (encode(picture().convert("L"), "JPEG", quality=90), "grey.jpg", "jpg"),
        (encode(picture(), quality=90), "jpeg called.png", "jpg"),
        (encode(picture(), "MPO", save_all=True, append_images=[picture()]), "two.jpg", "jpg"),
        (encode(picture(), "PNG"), "a.PNG", "png"),
        (encode(picture().convert("L"), "PNG"), "grey.png", "png"),
        (encode(picture().quantize(60), "PNG"), "palette.png", "png"),
        (encode(transparent(picture()), "PNG"), "transparent.png", "png"),
    ],
)
def test_bytes_stay_as_they_are_and_dali_reads_them_as_pillow_does(data, name, extension):
    prepared = prepare_image(data, name, UNCHANGED)
    assert prepared.data == data and prepared.extension == extension and prepared.change is None
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert expected.shape == (prepared.pixels.height, prepared.pixels.width, 3)
    np.testing.assert_array_equal(dali_decode(prepared.data), expected)


@pytest.mark.parametrize(
    ("data", "name", "change"),
    [
        (encode(picture().convert("CMYK"), "JPEG", quality=95), "cmyk.JPEG", "CMYK"),
        (encode(picture(), "PNG"), "n02105855_2933.JPEG", "PNG called JPEG"),
        (encode(transparent(picture()), "PNG"), "transparent.jpg", "PNG called JPEG"),
    ],
)
def test_what_decoders_cannot_read_is_reencoded_without_a_visible_change(data, name, change):
    prepared = prepare_image(data, name, UNCHANGED)
    assert change in prepared.change and prepared.extension == "jpg"
    result = Image.open(io.BytesIO(prepared.data))
    assert (result.format, result.mode) == ("JPEG", "RGB")
    assert [component[1:3] for component in result.layer] == [(1, 1)] * 3  # 4:4:4
    assert all(max(table) == 1 for table in result.quantization.values())  # quality 100
    assert psnr(result, Image.open(io.BytesIO(data)).convert("RGB")) > 45
    np.testing.assert_array_equal(dali_decode(prepared.data), np.asarray(result))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no bytes"),
        (b"<html>404</html>", "no picture of a kind that is read here"),
        (encode(picture(), "ICO"), "no picture of a kind that is read here"),
        (encode(picture())[:-40], "truncated"),
        (encode(picture())[:-2], "truncated"),
        (encode(picture())[:100], None),
        (encode(picture(), "PNG")[:-200], "truncated"),
        (encode(picture(), "PNG")[:-12], "cut off"),
        (encode(picture(), "PNG")[:-4], "cut off"),
        (encode(Image.new("1", (70_000, 1)), "PNG"), "larger than"),
    ],
)
def test_unreadable_images(data, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        decode(data)


def test_what_cannot_be_encoded_again_is_unreadable():
    """A PNG called JPEG, one pixel wider than JPEGs can be."""
    with pytest.raises(UnreadableImageError, match="cannot be encoded again"):
        prepare_image(encode(Image.new("RGB", (65_501, 1)), "PNG"), "a.jpg", ImageRules())


def with_bytes_between_segments(jpeg):
    """The JPEG, whose first segment says that it is two bytes shorter than it is: its last two belong to none."""
    assert jpeg[2:6] == b"\xff\xe0\0\x10"
    return jpeg[:5] + b"\x0e" + jpeg[6:]


def with_unknown_chunk(png):
    """The PNG with a chunk of an unknown kind, which is marked as one that a decoder must know."""
    return png[:33] + bytes(4) + b"ABCD" + zlib.crc32(b"ABCD").to_bytes(4, "big") + png[33:]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (with_bytes_between_segments(encode(picture())), "a.jpg"),
        (with_bytes_between_segments(encode(picture().convert("L"), "JPEG", progressive=True)), "grey.jpg"),
        (with_unknown_chunk(encode(picture(), "PNG")), "a.png"),
    ],
)
def test_what_pillow_reads_and_dali_does_not_is_unreadable(data, name, capfd):
    decode(data)
    with pytest.raises(RuntimeError):
        dali_decode(data)
    capfd.readouterr()
    for _ in range(2):  # the decoder is of use after an error
        with pytest.raises(UnreadableImageError, match="DALI, with which training decodes, does not take it"):
            prepare_image(data, name, UNCHANGED)
        prepare_image(encode(picture(), "PNG"), "sound.png", UNCHANGED)
        prepare_image(encode(picture()), "sound.jpg", UNCHANGED)
    assert capfd.readouterr().err == ""  # libraries' lines would spoil the progress line


def test_what_is_written_must_decode_and_not_what_was_read():
    shrunk = prepare_image(with_bytes_between_segments(encode(picture())), "a.jpg", ImageRules(max_short_side=30))
    assert dali_decode(shrunk.data).shape == (30, 40, 3)
    called_jpeg = prepare_image(with_unknown_chunk(encode(picture(), "PNG")), "a.jpg", UNCHANGED)
    assert dali_decode(called_jpeg.data).shape == (60, 80, 3)


def test_sixteen_bit_greyscale_is_scaled():
    ramp = np.linspace(0, 65535, 80).astype(np.uint16)[None].repeat(10, 0)
    data = encode(Image.fromarray(ramp), "PNG")
    prepared = prepare_image(data, "deep.png", UNCHANGED)
    assert prepared.data == data
    assert np.abs(np.asarray(eight_bit(prepared.pixels)).astype(int) - ramp / 257).max() <= 1
    assert np.abs(dali_decode(data)[..., 0].astype(int) - np.asarray(prepared.pixels).astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("mode", "name", "form"), [("RGB", "a.jpg", "JPEG"), ("L", "a.jpg", "JPEG"), ("RGB", "a.png", "PNG")]
)
def test_max_short_side_shrinks_larger_images_only(mode, name, form):
    rules = ImageRules(max_short_side=48)
    data = encode(picture(100, 150).convert(mode), form)
    prepared = prepare_image(data, name, rules)
    assert prepared.shrunk and prepared.change is None
    result = Image.open(io.BytesIO(prepared.data))
    assert (result.format, result.mode, result.size) == (form, mode, (72, 48)) == (form, mode, prepared.pixels.size)
    reference = Image.open(io.BytesIO(data)).resize((72, 48), Image.Resampling.BOX)
    assert psnr(result, reference) > 30
    small = encode(picture(48, 150))
    untouched = prepare_image(small, "small.jpg", rules)
    assert untouched.data == small and not untouched.shrunk


def test_exact_side():
    rules = ImageRules(exact_side=32)
    assert prepare_image(encode(picture(32, 32), "PNG"), "a.png", rules).pixels.height == 32
    with pytest.raises(UnreadableImageError, match="32 x 32 are needed"):
        prepare_image(encode(picture(32, 31), "PNG"), "a.png", rules)
