"""Loads the compiled operators.

No validation here, and nothing that users call. What was built is in _build.py; what torch is told
of the operators' shapes, in _fakes.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

_FOLDER = Path(__file__).resolve().parent
_cuda_error: str | None = None


def _library(name: str) -> Path | None:
    return next(
        (path for suffix in ("*.so", "*.pyd") for path in sorted(_FOLDER.glob(f"{name}{suffix}"))),
        None,
    )


def _load() -> str | None:
    """Load _C, then _C_cuda if it is there and can be.

    Returns why CUDA is off, or None where it is on.
    """
    wanted = os.environ.get("COS_EXT_CPU_CAPABILITY", "avx512")
    if wanted not in ("baseline", "avx2", "avx512"):
        raise ImportError(
            f"COS_EXT_CPU_CAPABILITY must be baseline, avx2 or avx512, got {wanted!r}"
        )
    cpu = _library("_C.")
    if cpu is None:
        raise ImportError(
            f"cos_ext's operators are not built in {_FOLDER}; install it with: pip install ."
        )
    torch.ops.load_library(str(cpu))
    cuda = _library("_C_cuda.")
    if cuda is None:
        return core_facts()["cuda_off"] or "_C_cuda was not built"
    try:
        torch.ops.load_library(str(cuda))
    except OSError as error:
        return (
            f"{cuda.name} cannot be loaded by torch {torch.__version__}: {error.__cause__ or error}"
        )
    return None


def core_facts() -> dict[str, str]:
    """The build facts that the compiled module carries, by name."""
    return import_module("cos_ext._core").build_facts()


def cuda_unavailable() -> str | None:
    """Why no CUDA tensors can be served, or None. Of a device: _build.py."""
    return _cuda_error


# What follows the histogram in a row of sums (csrc/core/statistics.h).
TALLIES = ("spikes", "silent", "saturated", "clipping", "quantisation", "unbounded")
CUDA_SLOTS = 64  # rows of sums of a CUDA launch (csrc/cuda/kernels.cuh)

_cuda_error = _load()
ops = torch.ops.cos_ext


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of membrane potentials for inputs of a dtype: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def conv_size(
    size: Sequence[int],
    weight: Tensor,
    stride_h: int,
    stride_w: int,
    padding_h: int,
    padding_w: int,
    dilation_h: int,
    dilation_w: int,
) -> tuple[int, int]:
    """Height and width of the convolution by packed weights of what has these."""
    height, width = size
    _, kernel_w, kernel_h, _, _ = weight.shape
    return (
        (height + 2 * padding_h - dilation_h * (kernel_h - 1) - 1) // stride_h + 1,
        (width + 2 * padding_w - dilation_w * (kernel_w - 1) - 1) // stride_w + 1,
    )
