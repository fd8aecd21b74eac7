"""The whole check on a GPU in a dry run: every stage does what it does on a GPU, with tiny sizes on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.images import NO_REAL_IMAGES, REAL_IMAGES
from tests.patience import limit


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not REAL_IMAGES.is_file(), reason=NO_REAL_IMAGES)
def test_no_part_fails(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.gpu", "--dry-run", "--out", str(tmp_path / "out"), "--work", str(tmp_path)]
    done = subprocess.run([*command, "--budget", str(limit(1400))], cwd=ROOT, capture_output=True, text=True)
    lines = [json.loads(text) for text in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert not [line for line in lines if "failed" in line], done.stdout[-4000:]
    assert done.returncode == 0
    reasons = {line["left_out"] for line in lines if "left_out" in line}
    assert reasons <= {"no GPU", "timm is not installed"}
