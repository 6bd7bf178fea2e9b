"""Where and how precisely the networks run: device, precision, and what to do when memory runs out."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

PRECISIONS = ("auto", "float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Runtime:
    """Device and number formats of one detector.

    Attributes
    ----------
    device : torch.device
    dtype : torch.dtype
        Of weights, features and evidence: float32 or float64.
    scoring_dtype, training_dtype : torch.dtype or None
        What autocast lowers the networks to; None leaves them in `dtype`.
    matching_dtype : torch.dtype or None
        What the support's patches are searched in, quickly; None compares them all, in `dtype`.
    """

    device: torch.device
    dtype: torch.dtype
    scoring_dtype: torch.dtype | None
    training_dtype: torch.dtype | None
    matching_dtype: torch.dtype | None

    def autocast(self, *, training: bool = False) -> AbstractContextManager[Any]:
        """Return the context that the networks (and nothing else) run in."""
        lowered = self.training_dtype if training else self.scoring_dtype
        return nullcontext() if lowered is None else torch.autocast(self.device.type, lowered)

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Move to the device in the working format."""
        return tensor.to(self.device, self.dtype)


def resolve_runtime(device: str | torch.device, precision: str) -> Runtime:
    """Turn the parameters `device` and `precision` into a `Runtime`.

    Parameters
    ----------
    device : str or torch.device
        "auto" is CUDA where there is one, else the CPU.
    precision : {"auto", "float64", "float32", "bfloat16", "float16"}
        "auto" runs the networks in float32 to score; on hardware that multiplies bfloat16 natively it trains, and
        searches the support's patches, in bfloat16, elsewhere in float32.

    Returns
    -------
    Runtime

    Raises
    ------
    ValueError
        Unknown precision, or a device that this machine does not have.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} was given; accepted are {', '.join(map(repr, PRECISIONS))}.")
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device!r} cannot be used here ({error}). Pass 'auto', 'cpu' or 'cuda'.") from error
    if precision == "auto":
        native = torch.bfloat16 if _native_bfloat16(resolved) else None
        return Runtime(resolved, torch.float32, None, native, native or torch.float32)
    if precision in ("float64", "float32"):
        return Runtime(resolved, getattr(torch, precision), None, None, None)
    lowered = getattr(torch, precision)
    return Runtime(resolved, torch.float32, lowered, lowered, lowered)


def _native_bfloat16(device: torch.device) -> bool:
    # Elsewhere bfloat16 is emulated, and many times slower than float32.
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception means that memory ran out, on the GPU or on the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )
