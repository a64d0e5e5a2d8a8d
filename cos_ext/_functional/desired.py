"""The operators that emit nothing: what neurons should emit, and from where they would do it.

Public in cos_ext/functional.py, where the operators that emit are.
"""

from __future__ import annotations

from torch import Tensor

from .. import _ops
from .arguments import check_fused, check_watch, mark_written, prepared
from .checks import check_calibration, check_values
from .results import Calibration


def rate_forward(
    x_mean: Tensor,
    v_threshold: float | Tensor,
    v_init: float | Tensor | None = None,
    *,
    rho: int,
    inplace: bool = False,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    r"""The mean of a calibrated neuron's spikes over rho steps, from its mean input.

    .. math:: \theta\, C^* / \rho, \quad
              C^* = \mathrm{clip}(\lfloor (\rho \bar x + v(0)) / \theta \rfloor, 0, \rho)

    The desired count C* (see :func:`~cos_ext.functional.cos_forward`) depends on the sum of the
    inputs alone. So a layer of convolutions and neurons can be evaluated on means, once, instead of
    rho times.

    Args:
        x_mean: the mean current over rho steps, ``[*neurons]``, without time; dtypes as for
            :func:`~cos_ext.functional.if_forward`.
        v_threshold, v_init, inplace, scale, bias: as for :func:`~cos_ext.functional.if_forward`.
        rho: steps, 1 <= rho <= 2^24.
        residual: as for :func:`~cos_ext.functional.if_forward`, in the shape of x_mean.

    Returns:
        The mean outputs, ``[*neurons]``, in x_mean's dtype and memory format. They are 0 where the
        potential is NaN.

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`~cos_ext.functional.if_forward`;
            ValueError also for rho outside 1..2^24.
    """
    if not isinstance(x_mean, Tensor):
        raise TypeError(f"x_mean must be a tensor, got {type(x_mean).__name__}")
    x_seq = x_mean.unsqueeze(0)
    given = prepared(x_seq, v_threshold, v_init, inplace, check_values)
    check_calibration(rho, 0)
    added = residual.unsqueeze(0) if isinstance(residual, Tensor) else residual
    taken = check_fused(x_seq, scale, bias, added, None, inplace, by_neuron=False)[:3]
    if inplace:
        _ops.ops.rate_forward_(*given, rho, *taken)
        mark_written(x_mean)
        return x_mean
    return _ops.ops.rate_forward(*given, rho, *taken).squeeze(0)


def calibrate_v_init(
    x_seq: Tensor,
    v_threshold: float | Tensor,
    v_init: float | Tensor | None = None,
    *,
    rho: int,
    iterations: int | None = 1,
) -> Calibration:
    """The calibration of :func:`~cos_ext.functional.cos_forward` alone.

    It reads the first rho steps and emits nothing.

    Args:
        x_seq: ``[T, *neurons]`` with T >= rho; steps after rho are not read.
        v_threshold, v_init, rho, iterations: as for :func:`~cos_ext.functional.cos_forward`.

    Returns:
        Calibration(v_init, offset_spikes, spike_count). ``v_init`` is the shifted v(0) in the state
        dtype. ψ and the count N of the first rho steps are those before calibration, int32. The
        desired count is spike_count + offset_spikes.

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`~cos_ext.functional.cos_forward`.
    """
    given = prepared(x_seq, v_threshold, v_init, False, check_values)
    rounds = check_calibration(rho, iterations)
    check_watch("rho", rho, x_seq)
    return Calibration(*_ops.ops.calibrate_v_init(*given, rho, rounds))
