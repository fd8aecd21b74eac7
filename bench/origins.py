"""How other origins prepare an image for a centre crop, told by their own libraries: the reference of our conventions.

Nothing here uses pipeline.data: each function follows the origin's source, which `pipeline.data.conventions` names.
"""

from __future__ import annotations

import io
import math
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE_MEAN_BGR = (103.062623801, 115.902882574, 123.151630838)
MEAN32, STD32, CAFFE_MEAN32 = (np.array(values, np.float32) for values in (MEAN, STD, CAFFE_MEAN_BGR))
Float = NDArray[np.float32]


def opencv() -> ModuleType | None:
    """OpenCV, of this project's development packages; None where a bench runs without them."""
    try:
        import cv2
    except ImportError:
        return None
    module: ModuleType = cv2
    return module


def torchvision_crop(encoded: bytes, short_side: int = 256, crop: int = 224, interpolation: str = "bilinear") -> Tensor:
    """[3, crop, crop]: torchvision's transforms on a Pillow image, as its references and timm compose them."""
    mode = transforms.InterpolationMode(interpolation)
    steps = [transforms.Resize(short_side, mode), transforms.CenterCrop(crop), transforms.ToTensor()]
    tensor: Tensor = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])(_rgb(encoded))
    return tensor


def pycls_crop(encoded: bytes, short_side: int = 256, crop: int = 224) -> Tensor:
    """[3, crop, crop], in RGB: scale_and_center_crop and color_norm of pycls, with OpenCV."""
    cv2 = _opencv()
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1].astype(np.float32) / 255
    h, w = image.shape[:2]
    if w < h:
        w, h = short_side, int(h / w * short_side)
    else:
        w, h = int(w / h * short_side), short_side
    image = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
    x, y = math.ceil((w - crop) / 2), math.ceil((h - crop) / 2)
    return _planes((image[y : y + crop, x : x + crop] - MEAN32) / STD32)


def caffe_crop(encoded: bytes, short_side: int = 256, crop: int = 224) -> Tensor:
    """[3, crop, crop], in BGR: a bilinear resize of float pixels without antialiasing (Matlab's imresize, here OpenCV's), sides
    rounded, Caffe's corner, the mean subtracted. Matlab's imread does not turn images."""
    cv2 = _opencv()
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags).astype(np.float32)
    h, w = image.shape[:2]
    scale = short_side / min(h, w)
    h, w = int(h * scale + 0.5), int(w * scale + 0.5)
    image = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
    y, x = (h - crop) // 2, (w - crop) // 2
    return _planes(image[y : y + crop, x : x + crop] - CAFFE_MEAN32)


def fb_crop(encoded: bytes, short_side: int = 256, crop: int = 224) -> Tensor:
    """[3, crop, crop]: t.Scale, t.ColorNormalize and t.CenterCrop of fb.resnet.torch."""
    image: Float = np.asarray(_rgb(encoded), np.float32) / np.float32(255)
    h, w = image.shape[:2]
    if min(h, w) != short_side:
        if w < h:
            image = torch7_bicubic(image, short_side, int(h / w * short_side))
        else:
            image = torch7_bicubic(image, int(w / h * short_side), short_side)
    h, w = image.shape[:2]
    image = (image - MEAN32) / STD32
    y, x = math.ceil((h - crop) / 2), math.ceil((w - crop) / 2)
    return _planes(image[y : y + crop, x : x + crop])


def torch7_bicubic(image: Float, width: int, height: int) -> Float:
    """image.scale(..., 'bicubic') of torch7: rows first, then columns, each as Main_scaleCubic_rowcol has it."""
    rows = _cubic(image.transpose(1, 0, 2), width).transpose(1, 0, 2)
    return _cubic(rows, height)


def _cubic(source: Float, size: int) -> Float:
    """Resize the first axis, one place after the other."""
    length = len(source)
    if size == length:
        return source
    result = np.empty((size, *source.shape[1:]), np.float32)
    scale = np.float32(length - 1) / np.float32(size - 1)
    for place in range(size - 1):
        at = np.float32(place) * scale
        left = int(at)
        x = np.float32(at - left)
        p1, p2 = source[left], source[left + 1]
        p0 = source[left - 1] if left > 0 else 2 * p1 - p2
        p3 = source[left + 2] if left + 2 < length else 2 * p2 - p1
        inner = p2 - p0 + x * (2 * p0 - 5 * p1 + 4 * p2 - p3 + x * (3 * (p1 - p2) + p3 - p0))
        result[place] = p1 + np.float32(0.5) * x * inner
    result[size - 1] = source[length - 1]
    return result


def _opencv() -> Any:
    cv2 = opencv()
    assert cv2 is not None, "pip install opencv-python-headless"
    return cv2


def _rgb(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded)).convert("RGB")


def _planes(image: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), np.float32))
