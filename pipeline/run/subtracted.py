"""Whether training images and val images get the same mean subtracted: the mean image, or else their mean colour."""

from __future__ import annotations

from pipeline.run.config import Config


def unlike_means(config: Config, side: int) -> str | None:
    """Say where the net is trained with one mean subtracted and tested with the other; side: of the mean image, in pixels.

    The training images of the last updates count, after all of `augment.stages`.
    """
    trained, tested = config.augment.crop, config.test_crop
    if config.subtract == "mean-colour" or (trained == side) == (tested == side):
        return None
    whole, other = ("training", "val") if trained == side else ("val", "training")
    return (
        f"training images have {trained} pixels and val images {tested}, and the dataset's mean image has {side}: it is "
        f"subtracted from {whole} images alone, and from {other} images their mean colour, so that the net is tested on "
        "images unlike those it is trained on: use --subtract mean-colour, or equal crops"
    )
