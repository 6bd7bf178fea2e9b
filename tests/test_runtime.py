from __future__ import annotations

import pytest
import torch

from fewshot_ad import runtime
from fewshot_ad.runtime import is_out_of_memory, resolve_runtime


@pytest.mark.parametrize(
    ("precision", "dtype", "lowered"),
    [
        ("float64", torch.float64, None),
        ("float32", torch.float32, None),
        ("bfloat16", torch.float32, torch.bfloat16),
        ("float16", torch.float32, torch.float16),
    ],
)
def test_precisions(precision, dtype, lowered):
    found = resolve_runtime("cpu", precision)
    assert (found.dtype, found.scoring_dtype, found.training_dtype) == (dtype, lowered, lowered)
    assert found.matching_dtype is lowered


@pytest.mark.parametrize("native", [True, False])
def test_auto_uses_bfloat16_only_where_it_is_native_and_runs_the_networks_in_float32_to_score(monkeypatch, native):
    monkeypatch.setattr(runtime, "_native_bfloat16", lambda device: native)
    found = resolve_runtime("cpu", "auto")
    assert found.scoring_dtype is None
    assert found.training_dtype == (torch.bfloat16 if native else None)
    assert found.matching_dtype == (torch.bfloat16 if native else torch.float32)


def test_auto_device(monkeypatch):
    assert resolve_runtime("auto", "auto").device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_unknown_device(device):
    with pytest.raises(ValueError, match=f"device='{device}' cannot be used here"):
        resolve_runtime(device, "auto")


def test_unknown_precision():
    with pytest.raises(ValueError, match="precision='int8' was given; accepted are 'auto'"):
        resolve_runtime("cpu", "int8")


def test_out_of_memory_is_recognised():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)
