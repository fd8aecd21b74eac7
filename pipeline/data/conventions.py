"""How nets of other origins want their images: a convention belongs to the weights' origin, and decides each pixel.

Looked up in the sources, which the conventions below name. Imports nothing that takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

# Whose nets they are, as users name them; CONVENTIONS has one for each.
Origin = Literal["torchvision", "timm", "pycls", "fb", "caffe", "ours"]
Channels = tuple[float, float, float]  # red, green, blue on the 0..255 scale, whatever order the net takes

# How the longer side is rounded: to the nearest pixel, or cut off: the exact quotient (`floor`), or the rounded float64
# long / short * short_side, which may lie just below a whole number (`floor-ratio`).
SideRounding = Literal["round", "floor", "floor-ratio"]
# How half a pixel of (H - crop) / 2 is rounded; `even` is Python's and NumPy's round.
CornerRounding = Literal["even", "ceil", "floor"]
# pillow-*: widened when shrinking (antialias), uint8 after each pass. opencv-bilinear: two source pixels a side, float32.
# torch7-bicubic: four source pixels a side, between the first and the last pixel's centre, float32.
Resampling = Literal["pillow-bilinear", "pillow-bicubic", "opencv-bilinear", "torch7-bicubic"]
PILLOW: dict[str, Resampling] = {"bilinear": "pillow-bilinear", "bicubic": "pillow-bicubic"}  # by `--interpolation`


@dataclass(frozen=True, kw_only=True)
class Resizing:
    """How an image of H x W becomes one with a given shorter side, and where its centre crop lies.

    exif: whether crops are taken of the image turned as its EXIF orientation says.
    """

    longer_side: SideRounding
    corner: CornerRounding
    resampling: Resampling
    exif: bool = False

    def __str__(self) -> str:
        turned = ", turned by EXIF" if self.exif else ""
        return f"{self.resampling}, longer side {self.longer_side}, corner {self.corner}{turned}"


@dataclass(frozen=True, kw_only=True)
class Convention:
    """What an origin's nets take for granted, and their weights do not show (they show the option of the shortcuts).

    Attributes:
        name: as `--preprocessing` takes it.
        source: the files and functions in which the values were looked up.
        resizing: None: as this pipeline's own nets are trained and tested, by DALI.
        mean: subtracted from pixels of 0..255; None: the per-pixel mean of the dataset.
        std: what they are divided by then; None: nothing.
        colour_order: of the channels that the net's first convolution takes.
        short_side: pixels of the resized image; None: each net has its own, so it must be stated.
        crop: side of the centre crop in pixels.
        class_order: of the scores: wnid: classes by their WNIDs, in the order of their letters; data: of the dataset.
        stride: the layer of a bottleneck that strides ("paper": the first 1x1, "v1.5": the 3x3).
        stem_pool: the 3x3 max pooling: padded by one pixel (padded), or without, the last window cut off (ceil).
    """

    name: Origin
    source: str
    resizing: Resizing | None
    mean: Channels | None
    std: Channels | None
    colour_order: Literal["RGB", "BGR"] = "RGB"
    short_side: int | None = 256
    crop: int = 224
    class_order: Literal["wnid", "data"] = "wnid"
    stride: Literal["paper", "v1.5"] = "v1.5"
    stem_pool: Literal["padded", "ceil"] = "padded"

    def describe(self) -> str:
        """What decides scores beside the weights, the sizes, mean and std, for the score file; "" for this pipeline's own."""
        return f"{self.name}: {self.resizing}, {self.colour_order}, stem pool {self.stem_pool}" if self.resizing else ""


IMAGENET_MEAN: Channels = (123.675, 116.28, 103.53)  # 255 * (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (58.395, 57.12, 57.375)  # 255 * (0.229, 0.224, 0.225)

TORCHVISION = Convention(
    name="torchvision",
    source=(
        "torchvision: transforms/_presets.py ImageClassification, transforms/functional.py _compute_resized_output_size "
        "and center_crop, datasets/folder.py pil_loader and find_classes, models/resnet.py"
    ),
    resizing=Resizing(longer_side="floor", corner="even", resampling="pillow-bilinear"),
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
TIMM = replace(
    TORCHVISION,
    name="timm",
    source=(
        "pytorch-image-models: timm/data/transforms_factory.py transforms_imagenet_eval (torchvision's Resize and "
        "CenterCrop; short side floor(crop / crop_pct)), timm/data/config.py resolve_data_config (bicubic where a net "
        "states nothing), timm/models/resnet.py"
    ),
    resizing=Resizing(longer_side="floor", corner="even", resampling="pillow-bicubic"),
    short_side=None,  # 256 (crop_pct 0.875) and 235 (0.95) are both common among its ResNets
)
PYCLS = Convention(
    name="pycls",
    source=(
        "pycls: pycls/datasets/transforms.py scale_and_center_crop (cv2.resize INTER_LINEAR of float32), "
        "pycls/datasets/imagenet.py __getitem__ (cv2.imread, which turns images) and _prepare_im (mean and std in RGB, then "
        "BGR), configs/archive/imagenet/resnet "
        "(STRIDE_1X1: False), pycls/models/blocks.py pool2d"
    ),
    resizing=Resizing(longer_side="floor-ratio", corner="ceil", resampling="opencv-bilinear", exif=True),
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    colour_order="BGR",
)
FB = Convention(
    name="fb",
    source=(
        "fb.resnet.torch: datasets/transforms.lua Scale (bicubic, h / w * size) and CenterCrop (math.ceil), "
        "datasets/imagenet.lua preprocess, datasets/imagenet-gen.lua findClasses, models/resnet.lua bottleneck; torch/image: "
        "generic/image.c Main_scaleCubic_rowcol, init.lua scale"
    ),
    resizing=Resizing(longer_side="floor-ratio", corner="ceil", resampling="torch7-bicubic"),
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
# The repository has nets, no code for images. Matlab code of the same authors in the same year resizes so, and Caffe crops
# so. The mean is that of ResNet_mean.binaryproto, a per-pixel mean, over all pixels: converters of these nets use it.
CAFFE = Convention(
    name="caffe",
    source=(
        "deep-residual-networks: README.md (short side, crop), prototxt/ResNet-50-deploy.prototxt (stride, pooling); "
        "faster_rcnn: utils/prep_im_for_blob.m (imresize bilinear without antialiasing, of single; sides rounded); caffe: "
        "src/caffe/data_transformer.cpp Transform (corner, BGR), include/caffe/layers/pooling_layer.hpp (ceil); "
        "tensorflow-resnet: resnet.py IMAGENET_MEAN_BGR, ResNet_mean.binaryproto"
    ),
    resizing=Resizing(longer_side="round", corner="floor", resampling="opencv-bilinear"),
    mean=(123.151630838, 115.902882574, 103.062623801),
    std=None,
    colour_order="BGR",
    stride="paper",
    stem_pool="ceil",
)
OURS = Convention(
    name="ours",
    source="this pipeline: pipeline/data/graphs.py",
    resizing=None,
    mean=None,
    std=None,
    class_order="data",
    stride="paper",
)

CONVENTIONS: dict[str, Convention] = {one.name: one for one in (TORCHVISION, TIMM, PYCLS, FB, CAFFE, OURS)}
assert tuple(CONVENTIONS) == get_args(Origin), "Origin must name each convention, in this order"
