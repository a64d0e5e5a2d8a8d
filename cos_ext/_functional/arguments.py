"""How the arguments of an operator must fit its input, and what its schema then takes.

What a setting may be by itself is in checks.py; the operators are in cos_ext/functional.py and
desired.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses import FakeTensor

from .._build import unserved
from .._numbers import whole
from .._ops import state_dtype
from .checks import FLOAT_DTYPES, MAX_FUSED_STEPS, MAX_STEPS, check_number, check_threshold

CPU = torch.device("cpu")


class Arguments(NamedTuple):
    """The first arguments of every operator, as the schemas order them.

    θ is ``theta``, or ``theta_value`` where that is None. v(0) is ``init``, or ``init_value`` where
    that is None, or θ/2 where both are.
    """

    x_seq: Tensor
    theta: Tensor | None
    theta_value: float
    init: Tensor | None
    init_value: float | None


# Looks at the values of a threshold: name, tensor, the dtype that they will be rounded to.
Check = Callable[[str, Tensor, torch.dtype], None]


def prepared(
    x_seq: Tensor,
    v_threshold: float | Tensor,
    v_init: float | Tensor | None,
    inplace: bool,
    check_values: Check | None,
) -> Arguments:
    """Validate what all operators share.

    ``check_values`` looks at the values of a threshold on a CPU; None: whoever calls did. All other
    checks read no value of a tensor.
    """
    _check_input(x_seq, inplace)
    theta, theta_value = None, 0.0
    if isinstance(v_threshold, Tensor):
        theta = v_threshold
        check_parameter("v_threshold", theta, x_seq)
        if check_values is not None and has_values(theta):
            check_values("v_threshold", theta, x_seq.dtype)
    else:
        theta_value = check_threshold(v_threshold, x_seq.dtype)
    init, init_value = None, None
    if isinstance(v_init, Tensor):
        init = v_init
        check_parameter("v_init", init, x_seq)
    elif v_init is not None:
        init_value = check_number("v_init", v_init)
    check_no_gradient(x_seq, theta, init)
    if inplace:
        _check_inplace(x_seq)
        for name, parameter in (("v_threshold", theta), ("v_init", init)):
            if parameter is not None:
                check_apart(name, parameter, x_seq)
    return Arguments(x_seq, theta, theta_value, init, init_value)


def has_values(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be looked at, and without waiting for a device."""
    return tensor.is_cpu and is_real(tensor)


def is_real(tensor: Tensor) -> bool:
    """Whether a tensor has values now: nothing is traced, and no transform wraps it."""
    return not torch.compiler.is_compiling() and not _is_fake(tensor)


def check_fused(
    x_seq: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    pool: int | tuple[int, int] | None,
    inplace: bool,
    by_neuron: bool,
) -> tuple[Any, ...]:
    """Validate what is fused into a pass.

    Args:
        x_seq, scale, bias, residual, pool, inplace: those of the operator.
        by_neuron: whether a result by neuron is asked for.

    Returns:
        The last arguments of the operators: scale, bias, residual, and the rows and columns of the
        windows, 0 for no pooling. Where there is nothing, no arguments: each one costs time.
    """
    if scale is bias is residual is pool is None:
        return ()
    operands = {"scale": scale, "bias": bias, "residual": residual}
    given = {name: tensor for name, tensor in operands.items() if tensor is not None}
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor or None, got {type(tensor).__name__}")
        if name != "residual":
            check_parameter(name, tensor, x_seq)
    if residual is not None:
        _check_residual(residual, x_seq)
    if (given or pool is not None) and x_seq.shape[0] > MAX_FUSED_STEPS:
        raise ValueError(
            f"scale, bias, residual and pool need T <= {MAX_FUSED_STEPS}, got {x_seq.shape[0]}"
        )
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given.values()):
        raise RuntimeError(
            "cos_ext's operators are for inference and have no gradient: an input requires one and "
            "grad mode is on"
        )
    if inplace:
        for name, tensor in given.items():
            check_apart(name, tensor, x_seq)
    windows = (0, 0) if pool is None else _windows(x_seq, pool, inplace, by_neuron)
    return scale, bias, residual, *windows


def fits_neurons(own: Sequence[int], neurons: Sequence[int]) -> bool:
    """Whether a parameter broadcasts to the neurons, by their shapes."""
    missing = len(neurons) - len(own)
    if missing < 0:
        return False
    last = neurons[missing:]
    return own == last or all(size in (1, wanted) for size, wanted in zip(own, last))


def check_watch(name: str, steps: int | torch.SymInt, x_seq: Tensor) -> None:
    """Validate a number of steps to watch: an int in 1..T."""
    if not 1 <= whole(name, steps) <= x_seq.shape[0]:
        raise ValueError(f"{name} must lie in 1..T = {x_seq.shape[0]}, got {steps}")


def mark_written(x_seq: Tensor) -> None:
    """Tell autograd that a tensor was written over."""
    # It must notice where it saved the tensor; the stable ABI does not count versions.
    if not torch.compiler.is_compiling() and not x_seq.is_inference():
        torch.autograd.graph.increment_version(x_seq)


def _check_input(x_seq: Tensor, inplace: bool) -> None:
    if not isinstance(x_seq, Tensor):
        raise TypeError(f"x_seq must be a tensor, got {type(x_seq).__name__}")
    if x_seq.dtype not in FLOAT_DTYPES:
        raise TypeError(f"x_seq must be float32, float64, float16 or bfloat16, got {x_seq.dtype}")
    shape = x_seq.shape
    if not shape or not 1 <= shape[0] <= MAX_STEPS:
        raise ValueError(
            f"x_seq must be [T, *neurons] with 1 <= T <= {MAX_STEPS}, got shape {tuple(shape)}"
        )
    if inplace and not torch.compiler.is_compiling() and x_seq.is_neg():
        raise ValueError(
            "x_seq must not be a negative-bit view with inplace, such as the imaginary part of a "
            "conjugate; give x_seq.resolve_neg()"
        )
    if x_seq.device != CPU:
        _check_served(x_seq.device)


def _check_served(device: torch.device) -> None:
    if device.type == "cuda":
        reason = unserved(device)
        if reason is not None:
            raise RuntimeError(
                f"x_seq is on {device}, and this cos_ext has no CUDA kernels for it: {reason}"
            )
    elif device.type not in ("cpu", "meta"):
        raise RuntimeError(f"x_seq is on {device}; cos_ext has kernels for cpu and cuda")


def check_parameter(name: str, parameter: Tensor, x_seq: Tensor) -> None:
    """Validate a tensor that broadcasts to the neurons: dtype, device and shape."""
    dtype, own = parameter.dtype, parameter.shape
    if dtype != x_seq.dtype and dtype != state_dtype(x_seq.dtype):
        raise TypeError(
            f"{name} must have x_seq's dtype {x_seq.dtype} or the state dtype "
            f"{state_dtype(x_seq.dtype)}, got {dtype}"
        )
    if parameter.device != x_seq.device:
        raise ValueError(f"{name} must be on x_seq's device {x_seq.device}, got {parameter.device}")
    if own and not fits_neurons(own, x_seq.shape[1:]):
        raise ValueError(
            f"{name} must broadcast to the neurons {tuple(x_seq.shape[1:])}, got shape {tuple(own)}"
        )


def _check_residual(residual: Tensor, x_seq: Tensor) -> None:
    if residual.dtype != x_seq.dtype:
        raise TypeError(f"residual must have x_seq's dtype {x_seq.dtype}, got {residual.dtype}")
    if residual.device != x_seq.device:
        raise ValueError(
            f"residual must be on x_seq's device {x_seq.device}, got {residual.device}"
        )
    if residual.shape != x_seq.shape:
        raise ValueError(
            f"residual must have x_seq's shape {tuple(x_seq.shape)}, got {tuple(residual.shape)}"
        )


def check_no_gradient(*given: Tensor | None) -> None:
    grad, forward = torch.is_grad_enabled(), fwAD._current_level >= 0
    if not (grad or forward):
        return
    tensors = [tensor for tensor in given if tensor is not None]
    if grad and any(tensor.requires_grad for tensor in tensors):
        raise RuntimeError(
            "calibration has no gradient: an input requires one and grad mode is on; call under "
            "torch.no_grad(), train with cos_ext.QCFS, or with neurons that are not calibrated "
            "(if_forward; rho = 0)"
        )
    if not forward or torch.compiler.is_compiling():
        return
    if any(fwAD.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError("cos_ext's operators have no gradient in forward mode")


def _windows(
    x_seq: Tensor, pool: int | tuple[int, int], inplace: bool, by_neuron: bool
) -> tuple[int, int]:
    windows = pool if isinstance(pool, (tuple, list)) else (pool, pool)
    if len(windows) != 2:
        raise TypeError(f"pool must be an int, two of them or None, got {pool!r}")
    rows, columns = (whole("pool", size, or_=", two of them or None") for size in windows)
    if inplace:
        raise ValueError("pool makes a smaller output, so inplace must be False")
    if by_neuron:
        raise ValueError(
            "with pool there are no results by neuron: leave out return_v, return_count, "
            "return_v_init and return_offset"
        )
    fits = x_seq.dim() >= 3 and min(rows, columns) >= 1
    if not fits or x_seq.shape[-2] % rows or x_seq.shape[-1] % columns:
        raise ValueError(
            f"pool must divide the last two dimensions of the neurons, got {tuple(windows)} for "
            f"shape {tuple(x_seq.shape)}"
        )
    if x_seq.device.type == "cuda" and (rows, columns) != (2, 2):
        raise ValueError(f"pool must be (2, 2) on CUDA, got {tuple(windows)}")
    return rows, columns


def _check_inplace(x_seq: Tensor) -> None:
    # The compiler does not sort sizes that may change; the operator looks again when it runs.
    if torch.compiler.is_compiling() or x_seq.is_contiguous():
        return
    reach = 0
    for stride, size in sorted(
        (stride, size) for stride, size in zip(x_seq.stride(), x_seq.shape) if size > 1
    ):
        if stride <= reach:
            raise ValueError(
                "inplace needs an x_seq whose elements do not share memory, got strides "
                f"{x_seq.stride()} for shape {tuple(x_seq.shape)}"
            )
        reach += (size - 1) * stride


def check_apart(name: str, parameter: Tensor, x_seq: Tensor) -> None:
    if not torch.compiler.is_compiling() and _overlap(parameter, x_seq):
        raise ValueError(f"{name} must not share memory with x_seq in place")


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether the stretches of memory from the first to the last element of two tensors overlap."""
    if _is_fake(a) or _is_fake(b) or a.is_meta or a.numel() == 0 or b.numel() == 0:
        return False

    def extent(t: Tensor) -> tuple[int, int]:
        last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride()))
        return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()

    (first_a, end_a), (first_b, end_b) = extent(a), extent(b)
    return first_a < end_b and first_b < end_a


def _is_fake(tensor: Tensor) -> bool:
    return isinstance(tensor, FakeTensor) or is_functorch_wrapped_tensor(tensor)
