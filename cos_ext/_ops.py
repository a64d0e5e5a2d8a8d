"""Loads the compiled operators and tells torch their shapes (fakes). No user-facing functions and no validation here."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_FOLDER = Path(__file__).resolve().parent
_cuda_error: str | None = None


def _library(name: str) -> Path | None:
    return next((path for suffix in ("*.so", "*.pyd") for path in sorted(_FOLDER.glob(f"{name}{suffix}"))), None)


def _load() -> str | None:
    """Load _C, then _C_cuda if it is there and can be; return why CUDA is off, or None where it is on."""
    wanted = os.environ.get("COS_EXT_CPU_CAPABILITY", "avx512")
    if wanted not in ("baseline", "avx2", "avx512"):
        raise ImportError(f"COS_EXT_CPU_CAPABILITY must be baseline, avx2 or avx512, got {wanted!r}")
    cpu = _library("_C.")
    if cpu is None:
        raise ImportError(f"cos_ext's operators are not built in {_FOLDER}; install it with: pip install .")
    torch.ops.load_library(str(cpu))
    cuda = _library("_C_cuda.")
    if cuda is None:
        return core_facts()["cuda_off"] or "_C_cuda was not built"
    try:
        torch.ops.load_library(str(cuda))
    except OSError as error:
        return f"{cuda.name} cannot be loaded by torch {torch.__version__}: {error.__cause__ or error}"
    return None


def core_facts() -> dict[str, str]:
    return import_module("cos_ext._core").build_facts()


def cuda_unavailable() -> str | None:
    """Why CUDA tensors cannot be served, or None."""
    return _cuda_error


def build_info() -> dict[str, Any]:
    """Versions and build facts, as a dict of plain values.

    Keys: cos_ext, torch (versions); compiler, built_with_torch, built_with_cuda, cuda_archs (of the build); cpu_capability
    (the instruction set chosen here: avx512, avx2 or baseline); cuda (whether CUDA tensors are served) and cuda_off (why
    not, or None).
    """
    facts = core_facts()
    facts.pop("cuda_off")
    try:
        own = version("cos_ext")
    except PackageNotFoundError:
        own = "not installed"
    return {"cos_ext": own, "torch": torch.__version__, **facts, "cuda": _cuda_error is None, "cuda_off": _cuda_error}


_cuda_error = _load()
ops = torch.ops.cos_ext


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which membrane potentials are kept: float64 for float64, float32 for the others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _result(x: Tensor, wanted: bool, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x.select(0, 0), dtype=dtype) if wanted else x.new_empty(0, dtype=dtype)


def _if_results(x: Tensor, return_v: bool, return_count: bool) -> tuple[Tensor, Tensor]:
    return _result(x, return_v, state_dtype(x.dtype)), _result(x, return_count, torch.int32)


def _cos_results(x: Tensor, v: bool, count: bool, v_init: bool, offset: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    state = state_dtype(x.dtype)
    return (_result(x, v, state), _result(x, count, torch.int32), _result(x, v_init, state),
            _result(x, offset, torch.int32))  # fmt: skip


@torch.library.register_fake("cos_ext::if_forward")
def _(x_seq, v_threshold, v_threshold_value, v_init, v_init_value, v_reset, return_v, return_count):
    return torch.empty_like(x_seq), *_if_results(x_seq, return_v, return_count)


@torch.library.register_fake("cos_ext::if_forward_")
def _(x_seq, v_threshold, v_threshold_value, v_init, v_init_value, v_reset, return_v, return_count):
    return _if_results(x_seq, return_v, return_count)


@torch.library.register_fake("cos_ext::cos_forward")
def _(x_seq, v_threshold, v_threshold_value, v_init, v_init_value, rho, iterations, return_v, return_count,
      return_v_init, return_offset, emission=0):  # fmt: skip
    return torch.empty_like(x_seq), *_cos_results(x_seq, return_v, return_count, return_v_init, return_offset)


@torch.library.register_fake("cos_ext::cos_forward_")
def _(x_seq, v_threshold, v_threshold_value, v_init, v_init_value, rho, iterations, return_v, return_count,
      return_v_init, return_offset, emission=0):  # fmt: skip
    return _cos_results(x_seq, return_v, return_count, return_v_init, return_offset)


@torch.library.register_fake("cos_ext::calibrate_v_init")
def _(x_seq, v_threshold, v_threshold_value, v_init, v_init_value, rho, iterations):
    state = state_dtype(x_seq.dtype)
    return _result(x_seq, True, state), _result(x_seq, True, torch.int32), _result(x_seq, True, torch.int32)
