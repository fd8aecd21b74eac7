"""Exported files in processes that have nothing of this project: ONNX with onnxruntime and NumPy alone, and so on."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline import export
from pipeline.data.dataset import Dataset
from tests.digit_reader import pixels, write_digit_reader

DIGITS = (60, 100, 140)  # of the val split, which the net reads
# The digits in argv[2] are float32 [N, 32, 32, 3], 0..255; the answers are printed as JSON.
START = """
import importlib, json, os, sys
for name in {missing}:
    try:
        importlib.import_module(name)
    except ImportError:
        continue
    sys.exit(name + " can be imported")
folder, digits = sys.argv[1:]
os.chdir(folder)
"""
ONNX = """
import numpy, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
(scores,) = session.run(None, {"images": numpy.load(digits)})
print(json.dumps([classes[row.argmax()] for row in scores]))
"""
SAFETENSORS = """
from safetensors import safe_open
with safe_open("model.safetensors", "np") as file:
    print(json.dumps([json.loads(file.metadata()["classes"]), file.get_tensor("fc.weight").tolist()]))
"""
TORCH_EXPORT = """
import numpy, torch
extra = {"classes": ""}
net = torch.export.load("model.pt2", extra_files=extra).module()
classes = json.loads(extra["classes"])
with torch.inference_mode():
    print(json.dumps([classes[row.argmax()] for row in net(torch.from_numpy(numpy.load(digits)))]))
"""
# torch's own dependencies are many: this environment, without these.
REFUSING = """
import sys
sys.modules |= dict.fromkeys({missing})
"""


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digit_reader(tmp_path_factory.mktemp("runs"), "digits", Dataset(digits))


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """What `pipeline.export` writes of a net that reads digits."""
    out = run.parent / "exported"
    assert export.main([str(run), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def asked(digits: Path, run: Path) -> tuple[Path, list[str]]:
    """A file with digits, whose crops Pillow made, and their true names."""
    split, file = Dataset(digits).split("val"), run.parent / "digits.npy"
    images = pixels(split, np.zeros((32, 32, 3), np.float32)).permute(0, 2, 3, 1).numpy()[list(DIGITS)]
    np.save(file, np.ascontiguousarray(images))
    return file, [str(split.labels[sample]) for sample in DIGITS]


def bare(packages: Sequence[str], folder: Path) -> list[str]:
    """A Python that has its standard library and these packages, which are linked into `folder`."""
    folder.mkdir()
    for name in packages:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        package = Path(spec.origin).parent
        for place in (package, package.with_name(f"{name}.libs")):
            if place.exists():
                (folder / place.name).symlink_to(place)
    return [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(folder)!r})\n"]


def told(command: Sequence[str], code: str, *arguments: Path) -> object:
    *before, start = command
    done = subprocess.run([*before, start + code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_onnx_needs_onnxruntime_and_numpy(exported: Path, asked: tuple[Path, list[str]], tmp_path: Path) -> None:
    python = bare(["onnxruntime", "numpy"], tmp_path / "packages")
    start = START.format(missing=("torch", "onnx", "PIL", "pipeline"))
    assert told(python, start + ONNX, exported, asked[0]) == asked[1]


def test_safetensors_need_safetensors_and_numpy(exported: Path, asked: tuple[Path, list[str]], tmp_path: Path) -> None:
    python = bare(["safetensors", "numpy"], tmp_path / "packages")
    start = START.format(missing=("torch", "onnxruntime", "pipeline"))
    classes, weight = told(python, start + SAFETENSORS, exported, asked[0])  # type: ignore[misc]
    assert classes == list("0123456789") and np.array(weight).shape == (10, 64)


def test_torch_export_needs_torch(exported: Path, asked: tuple[Path, list[str]]) -> None:
    missing = ("pipeline", "torchvision", "onnx", "onnxscript", "onnxruntime", "safetensors", "PIL", "mlflow")
    python = [sys.executable, "-I", "-c", REFUSING.format(missing=missing)]
    assert told(python, START.format(missing=missing) + TORCH_EXPORT, exported, asked[0]) == asked[1]
