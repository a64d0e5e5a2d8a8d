"""The passes that emit spikes: arguments are checked, then the operator runs.

What they do is described where they are public, in cos_ext/functional.py. A neuron (cos_ext/neuron)
runs the same passes, and looks at the values of its threshold itself, when they change.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import _ops
from ..surrogate import check_surrogate
from .arguments import Check, check_fused, check_watch, mark_written, prepared
from .checks import (
    EMISSIONS,
    MAX_STATISTICS_RHO,
    check_calibration,
    check_emission,
    check_number,
    differentiates,
)
from .gradients import if_gradient
from .results import COSResult, IFResult

Fused = tuple[Tensor | None, Tensor | None, Tensor | None]  # scale, bias, residual
NOTHING: Fused = (None, None, None)


def if_pass(
    x_seq: Tensor,
    v_threshold: float | Tensor,
    v_init: float | Tensor | None,
    v_reset: float | None,
    inplace: bool,
    return_v: bool,
    return_count: bool,
    fused: Fused,
    pool: int | tuple[int, int] | None,
    surrogate: Callable[[Tensor], Tensor] | None,
    detach_reset: bool,
    check_values: Check | None,
) -> IFResult:
    """if_forward; ``check_values`` as for :func:`~cos_ext._functional.arguments.prepared`."""
    reset = None if v_reset is None else check_number("v_reset", v_reset)
    if differentiates((x_seq, v_threshold, v_init, *fused)):
        if inplace:
            raise RuntimeError("a gradient is needed, which needs x_seq: inplace must be False")
        if reset is not None and math.isinf(reset):
            raise ValueError(f"a gradient is needed: v_reset must be finite, got {reset}")
        with torch.no_grad():
            given = prepared(x_seq, v_threshold, v_init, False, check_values)
            taken = check_fused(x_seq, *fused, pool, False, return_v or return_count)
        through, want = (check_surrogate(surrogate), detach_reset), (return_v, return_count)
        return if_gradient(given, reset, *through, *want, *fused, taken[3:] or (0, 0))
    given = prepared(x_seq, v_threshold, v_init, inplace, check_values)
    taken = check_fused(x_seq, *fused, pool, inplace, return_v or return_count)
    options = (reset, return_v, return_count)
    if inplace:
        results = _ops.ops.if_forward_.default(*given, *options, *taken[:3])
        mark_written(x_seq)
        return IFResult(x_seq, *results)
    return IFResult(*_ops.ops.if_forward.default(*given, *options, *taken))


def cos_pass(
    x_seq: Tensor,
    v_threshold: float | Tensor,
    v_init: float | Tensor | None,
    rho: int,
    iterations: int | None,
    emission: str,
    inplace: bool,
    wanted: tuple[bool, bool, bool, bool],
    return_statistics: bool,
    fused: Fused,
    pool: int | tuple[int, int] | None,
    check_values: Check | None,
) -> COSResult:
    """cos_forward, ``wanted`` its results by neuron: v, the count, v_init, ψ."""
    given = prepared(x_seq, v_threshold, v_init, inplace, check_values)
    rounds = check_calibration(rho, iterations)
    check_watch("rho", rho, x_seq)
    order = EMISSIONS.index(check_emission(emission))
    if order and wanted[0]:
        raise ValueError(
            f"return_v must be False with emission {emission!r}: only calibrated neurons have a "
            "potential"
        )
    if return_statistics and rho > MAX_STATISTICS_RHO:
        raise ValueError(
            f"rho must be at most {MAX_STATISTICS_RHO} with return_statistics, got {rho}"
        )
    taken = check_fused(x_seq, *fused, pool, inplace, any(wanted))
    options = (rho, rounds, *wanted, order, return_statistics)
    if inplace:
        result = COSResult(x_seq, *_ops.ops.cos_forward_.default(*given, *options, *taken[:3]))
        mark_written(x_seq)
    else:
        result = COSResult(*_ops.ops.cos_forward.default(*given, *options, *taken))
    if result.statistics is None:
        return result
    return result._replace(statistics=result.statistics.sum(0))


def srp_pass(
    x_seq: Tensor,
    v_threshold: float | Tensor,
    v_init: float | Tensor | None,
    tau: int,
    inplace: bool,
    return_count: bool,
    check_values: Check | None,
) -> IFResult:
    """srp_forward."""
    prepared(x_seq, v_threshold, v_init, inplace, check_values)
    check_watch("tau", tau, x_seq)
    rest = (NOTHING, None, None, False, None)
    residual = if_pass(x_seq[:tau], v_threshold, v_init, None, False, True, False, *rest).v
    assert residual is not None  # it was asked for
    init = v_threshold if v_init is None else v_init
    # A number stays one: a tensor of it would be copied to the device, and waited for.
    init = init.to(residual.dtype) if isinstance(init, Tensor) else float(init)
    init = init / 2 if v_init is None else init
    start = torch.where(residual > 0, init, torch.full_like(residual, -math.inf))
    return if_pass(x_seq, v_threshold, start, None, inplace, False, return_count, *rest)


def parallel_pass(
    x_seq: Tensor,
    v_threshold: float | Tensor,
    v_init: float | Tensor | None,
    rho: int,
    inplace: bool,
    return_count: bool,
    check_values: Check | None,
) -> IFResult:
    """parallel_forward."""
    wanted = (False, return_count, False, False)
    given = (x_seq, v_threshold, v_init, rho, 0, "front", inplace, wanted, False)
    result = cos_pass(*given, NOTHING, None, check_values)
    return IFResult(result.spikes, None, result.spike_count)
