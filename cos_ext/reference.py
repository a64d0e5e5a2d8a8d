"""The mathematics as a plain torch loop over time: to read beside the paper, and to test against.

Slow on purpose and complete: every formula of :mod:`cos_ext.functional`, in its order of
operations. No kernels and no validation here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .functional import Calibration, COSResult, IFResult, state_dtype

EPSILON = 1e-3


def if_forward(
    x_seq: Tensor,
    v_threshold: float | Tensor,
    v_init: float | Tensor | None = None,
    *,
    v_reset: float | None = None,
) -> IFResult:
    """Integrates and fires.

    Args:
        x_seq, v_threshold, v_init, v_reset: as for :func:`cos_ext.functional.if_forward`.

    Returns:
        IFResult(spikes, v, spike_count), all of it.
    """
    theta, v = _start(x_seq, v_threshold, v_init)
    spikes, count = torch.empty_like(x_seq), torch.zeros_like(v, dtype=torch.int32)
    for t in range(x_seq.shape[0]):
        m = v + x_seq[t].to(v.dtype)
        fired = m >= theta
        v = torch.where(fired, m - theta if v_reset is None else torch.full_like(m, v_reset), m)
        spikes[t] = torch.where(fired, theta, torch.zeros_like(theta)).to(x_seq.dtype)
        count += fired
    return IFResult(spikes, v, count)


def calibrate_v_init(
    x_seq: Tensor,
    v_threshold: float | Tensor,
    v_init: float | Tensor | None = None,
    *,
    rho: int,
    iterations: int | None = 1,
) -> Calibration:
    """Calibrates, and emits nothing.

    Args:
        x_seq, v_threshold, v_init, rho, iterations: as for
            :func:`cos_ext.functional.calibrate_v_init`.

    Returns:
        Calibration(v_init, offset_spikes, spike_count), the shifted v(0), ψ and N.
    """
    theta, start = _start(x_seq, v_threshold, v_init)
    residual, count, lowest, highest = _watch(x_seq, theta, start, rho)
    # In float64 the quotient of float32 numbers has the exact floor. For float64 itself see
    # csrc/core/calibration.h.
    quotient = torch.floor(residual.double() / theta.double())
    quotient = torch.where(torch.isnan(quotient), 0.0, quotient)
    psi = torch.minimum(torch.maximum(quotient, -count.double()), (rho - count).double()).to(
        torch.int32
    )
    v = start
    k = 0
    while (k < iterations if iterations is not None else True) and bool((psi.abs() > k).any()):
        if k > 0:
            _, _, lowest, highest = _watch(x_seq, theta, v, rho)
        less = v - torch.maximum(theta, lowest - theta * (1 - EPSILON))
        more = v + torch.maximum(theta, theta * (1 + EPSILON) - highest)
        v = torch.where(
            (psi < -k) & (lowest < torch.inf),
            less,
            torch.where((psi > k) & (highest > -torch.inf), more, v),
        )
        k += 1
    return Calibration(v, psi, count)


def cos_forward(
    x_seq: Tensor,
    v_threshold: float | Tensor,
    v_init: float | Tensor | None = None,
    *,
    rho: int,
    iterations: int | None = 1,
    emission: str = "calibrated",
) -> COSResult:
    """Calibrates, then simulates.

    Args:
        x_seq, v_threshold, v_init, rho, iterations, emission: as for
            :func:`cos_ext.functional.cos_forward`.

    Returns:
        COSResult(spikes, v, spike_count, v_init, offset_spikes, None). ``v`` is None where
        emission is not "calibrated".
    """
    if emission != "calibrated":
        return _planned(x_seq, v_threshold, v_init, rho, emission)
    shifted, psi, _ = calibrate_v_init(x_seq, v_threshold, v_init, rho=rho, iterations=iterations)
    theta, _ = _start(x_seq, v_threshold, v_init)
    spikes, v, count = if_forward(x_seq, theta, shifted)
    return COSResult(spikes, v, count, shifted, psi)


def _planned(
    x_seq: Tensor,
    v_threshold: float | Tensor,
    v_init: float | Tensor | None,
    rho: int,
    emission: str,
) -> COSResult:
    """C* spikes in every rho steps, spread evenly or first; no potential."""
    start, psi, count = calibrate_v_init(x_seq, v_threshold, v_init, rho=rho, iterations=0)
    theta, _ = _start(x_seq, v_threshold, v_init)
    desired = (count + psi).long()
    steps = torch.arange(1, x_seq.shape[0] + 1, device=x_seq.device).view(-1, *[1] * desired.dim())
    if emission == "even":
        by_now = (2 * desired * steps + rho) // (2 * rho)
        fired = by_now > (2 * desired * (steps - 1) + rho) // (2 * rho)
    else:
        fired = (steps - 1) % rho < desired
    spikes = torch.where(fired, theta, torch.zeros_like(theta)).to(x_seq.dtype)
    return COSResult(spikes, None, fired.sum(0).to(torch.int32), start, psi)


def _start(
    x_seq: Tensor, v_threshold: float | Tensor, v_init: float | Tensor | None
) -> tuple[Tensor, Tensor]:
    """θ and v(0), each ``[*neurons]`` in the state dtype."""
    state, neurons = state_dtype(x_seq.dtype), x_seq.shape[1:]
    theta = torch.as_tensor(v_threshold, dtype=state, device=x_seq.device).expand(neurons)
    v = (
        theta / 2
        if v_init is None
        else torch.as_tensor(v_init, dtype=state, device=x_seq.device).expand(neurons)
    )
    return theta, v.clone()


def _watch(
    x_seq: Tensor, theta: Tensor, v: Tensor, rho: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first rho steps with soft reset: v(rho), N, and what a shift needs of the trajectory.

    That is the minimum of m(t) where it fired, and the maximum of v(t) where it did not.
    """
    count = torch.zeros_like(v, dtype=torch.int32)
    lowest, highest = torch.full_like(v, torch.inf), torch.full_like(v, -torch.inf)
    for t in range(rho):
        m = v + x_seq[t].to(v.dtype)
        fired = m >= theta
        v = torch.where(fired, m - theta, m)
        lowest = torch.where(fired & (m < lowest), m, lowest)
        highest = torch.where(~fired & (v > highest), v, highest)
        count += fired
    return v, count, lowest, highest
