"""What a single setting or threshold may be, and the limits of the kernels.

Modules and converters use these checks when a value is set. How arguments fit an input is in
arguments.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor

from .._numbers import real, whole

FLOAT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
EMISSIONS = ("calibrated", "even", "front")  # by the operators' numbers (csrc/core/emission.h)
GENERAL_EMISSIONS = (*EMISSIONS, "block")  # of the general neuron
CALIBRATIONS = ("cos", "srp", "light", "none", "parallel")  # of IFNode and convert
UNFUSED = ("srp", "parallel")  # calibrations whose operators take nothing into the pass
WATCHING = ("cos", "srp", "parallel")  # those that watch a layer for rho steps first
MAX_STEPS = 2**24  # counts stay exact in float32
MAX_FUSED_STEPS = 4096  # csrc/job.h
MAX_STATISTICS_RHO = 256  # csrc/core/statistics.h
# A threshold must lie strictly between these, or it would be rounded to 0 or infinity in the
# spikes' dtype.
_THRESHOLD_RANGE = {
    torch.float16: (2.0**-25, 65520.0),
    torch.bfloat16: (2.0**-134, (2 - 2.0**-8) * 2.0**127),
    torch.float32: (2.0**-150, (2 - 2.0**-24) * 2.0**127),
    torch.float64: (0.0, math.inf),
}


def differentiates(values: Iterable[object]) -> bool:
    """Whether autograd, in reverse or in forward mode, would need a gradient of a tensor of these.

    What is no tensor plays no part.
    """
    grad, forward = torch.is_grad_enabled(), fwAD._current_level >= 0
    if not (grad or forward):
        return False
    tensors = [value for value in values if isinstance(value, Tensor)]
    if grad and any(tensor.requires_grad for tensor in tensors):
        return True
    return forward and any(fwAD.unpack_dual(tensor).tangent is not None for tensor in tensors)


def check_calibration(rho: int | torch.SymInt, iterations: int | None) -> int:
    """Validate ``rho >= 1`` and ``iterations >= 0``.

    Returns:
        The iterations as the operators take them, where -1 stands for None.

    Raises:
        TypeError: rho is not an int, or iterations is neither an int nor None.
        ValueError: rho < 1 or iterations < 0.
    """
    whole("rho", rho, 1, MAX_STEPS)
    if iterations is None:
        return -1
    return whole("iterations", iterations, 0, or_=" or None for until exact")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """Validate that an argument is one of some names, and return it.

    Raises:
        TypeError: value is not a str.
        ValueError: value is not in ``allowed``.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}")
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
    return value


def check_emission(emission: str) -> str:
    """Validate the name of an order of emission, one of ``EMISSIONS``, and return it.

    Raises:
        TypeError, ValueError: as for :func:`check_choice`.
    """
    return check_choice("emission", emission, EMISSIONS)


def check_method(calibration: str) -> str:
    """Validate the name of a calibration, one of ``CALIBRATIONS``, and return it.

    Raises:
        TypeError, ValueError: as for :func:`check_choice`.
    """
    return check_choice("calibration", calibration, CALIBRATIONS)


def check_number(name: str, value: object) -> float:
    """Validate a Python or NumPy real number, and return it as a float.

    Raises:
        TypeError: value has another type; bool counts as one.
        ValueError: value is NaN.
    """
    return real(name, value)


def check_threshold(v_threshold: object, dtype: torch.dtype) -> float:
    """Validate a threshold that is a number, and return it as a float.

    Raises:
        TypeError: it is not a real number.
        ValueError: it is not positive and finite when rounded to ``dtype``.
    """
    value = check_number("v_threshold", v_threshold)
    lowest, highest = _THRESHOLD_RANGE[dtype]
    if not lowest < value < highest:
        raise ValueError(f"v_threshold must be positive and finite in {dtype}, got {value}")
    return value


def check_values(name: str, value: Tensor, dtype: torch.dtype | None = None) -> None:
    """Validate every element of a threshold tensor. Synchronises with the device.

    Args:
        name: of the argument, for the message.
        value: the thresholds, any shape, in one of ``FLOAT_DTYPES``.
        dtype: what they will be rounded to; None is their own.

    Raises:
        TypeError: value has another dtype.
        ValueError: an element is not positive and finite when rounded to ``dtype``.
    """
    if value.dtype not in _THRESHOLD_RANGE:
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {value.dtype}")
    count = value.numel()
    if count:
        lowest, highest = _THRESHOLD_RANGE[dtype or value.dtype]
        # One value, as most layers have, is read in a fraction of the time.
        if count == 1:
            low = high = value.item()
        else:
            low, high = (end.item() for end in torch.aminmax(value.detach()))
        if not (low > lowest and high < highest):  # NaN fails both
            raise ValueError(
                f"{name} must be positive and finite in {dtype or value.dtype}, "
                f"got values in [{low}, {high}]"
            )


def check_not_nan(name: str, value: Tensor) -> None:
    """Validate that no element of a tensor is NaN. Synchronises with the device.

    Raises:
        ValueError: an element is NaN. Meta tensors have no values and pass.
    """
    if not value.is_meta and torch.isnan(value).any():
        raise ValueError(f"{name} must not be NaN")
