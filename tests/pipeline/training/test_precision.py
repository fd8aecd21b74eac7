"""What precision bf16 means on a GPU and on a CPU, with the units and without."""

from __future__ import annotations

import pytest
import torch

from pipeline.base.command import UserError
from pipeline.training.precision import check_precision, images_dtype

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_images_are_bfloat16_on_a_gpu_in_bf16_alone() -> None:
    found = {(p, d.type): images_dtype(p, d) for p in ("float32", "bf16") for d in (CPU, GPU)}  # type: ignore[arg-type]
    assert [key for key, dtype in found.items() if dtype == torch.bfloat16] == [("bf16", "cuda")]
    assert set(found.values()) == {torch.bfloat16, torch.float32}


def test_a_gpu_without_bf16_units_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation  # as on a V100

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100-SXM2-16GB")
    with pytest.raises(UserError, match=r"the GPU Tesla V100-SXM2-16GB has no units for it: add --precision float32"):
        check_precision("bf16", GPU, warns=True)
    check_precision("float32", GPU, warns=True)


@pytest.mark.parametrize(("warns", "units", "said"), [(True, False, 1), (False, False, 0), (True, True, 0)])
def test_a_cpu_without_bf16_units_trains_and_says_that_it_is_slow(
    warns: bool, units: bool, said: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: units)
    check_precision("bf16", CPU, warns)
    assert capsys.readouterr().err.count("warning: this CPU has no bf16 units") == said
