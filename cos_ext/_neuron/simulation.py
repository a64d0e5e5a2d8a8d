"""Which operator simulates a neuron with given settings, and what that operator can take in.

The operators are in cos_ext/functional.py. What a node keeps is in cos_ext/neuron.py.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .. import functional as F
from .._ops import TALLIES
from .settings import Settings, watch_steps

UNFUSED = ("srp", "parallel")  # calibrations whose operators take nothing into the pass


class Fused(NamedTuple):
    """What an operator takes into its pass; as for :func:`cos_ext.functional.if_forward`."""

    scale: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    pool: tuple[int, int] | None = None


class Emitted(NamedTuple):
    """The spikes of a pass; their number where it was asked for; the statistics likewise."""

    spikes: Tensor
    total: Tensor | None
    statistics: Tensor | None


def fits_window(x_seq: Tensor, window: tuple[int, int]) -> bool:
    """Whether an operator can pool over windows of (rows, columns) in its pass."""
    rows, columns = window
    whole = x_seq.shape[-2] % rows == 0 and x_seq.shape[-1] % columns == 0
    served = x_seq.device.type != "cuda" or window == (2, 2)
    return whole and served and x_seq.shape[0] <= F.MAX_FUSED_STEPS


def simulate(
    x_seq: Tensor,
    theta: Tensor,
    v_init: Tensor,
    settings: Settings,
    fused: Fused,
    *,
    inplace: bool,
    count: bool,
    keep_statistics: bool,
) -> Emitted:
    """Simulate neurons by their settings.

    Args:
        x_seq: ``[T, *neurons]``; theta and v_init broadcast to ``[*neurons]``.
        settings: of the neurons; ``timesteps``, ``step_mode`` and ``static_input`` play no part.
        fused: what the operator takes in; nothing for the calibrations in ``UNFUSED``.
        inplace: write the spikes over x_seq.
        count: sum up the spikes over neurons and steps.
        keep_statistics: return the sums of :mod:`cos_ext.analysis.statistics`.

    Raises:
        ValueError: statistics are asked for where there are none; and as for the operators.
    """
    v_reset, calibration = settings["v_reset"], settings["calibration"]
    if keep_statistics and (v_reset is not None or calibration in UNFUSED):
        raise ValueError(
            "statistics need soft reset, for which offset spikes are defined, and the kernels of "
            f"calibration 'cos', 'light' or 'none', got v_reset={v_reset} and "
            f"calibration={calibration!r}"
        )
    rho = watch_steps(settings)
    by_neuron = count and fused.pool is None  # pooled spikes are counted in the statistics
    result: F.IFResult | F.COSResult
    if calibration == "srp" and rho:
        result = F.srp_forward(
            x_seq, theta, v_init, tau=rho, inplace=inplace, return_count=by_neuron
        )
    elif calibration == "parallel" and rho:
        result = F.parallel_forward(
            x_seq, theta, v_init, rho=rho, inplace=inplace, return_count=by_neuron
        )
    elif rho or keep_statistics:
        # Without calibration: watched, and left as they are.
        result = F.cos_forward(
            x_seq,
            theta,
            v_init,
            rho=rho or x_seq.shape[0],
            iterations=settings["iterations"] if rho else 0,
            emission=settings["emission"] if rho else "calibrated",
            inplace=inplace,
            return_count=by_neuron,
            return_statistics=keep_statistics or (count and not by_neuron),
            scale=fused.scale,
            bias=fused.bias,
            residual=fused.residual,
            pool=fused.pool,
        )
    else:
        result = F.if_forward(
            x_seq,
            theta,
            v_init,
            v_reset=v_reset,
            inplace=inplace,
            return_count=by_neuron,
            scale=fused.scale,
            bias=fused.bias,
            residual=fused.residual,
            pool=fused.pool,
        )
    sums = result.statistics if isinstance(result, F.COSResult) else None
    total = None
    if result.spike_count is not None:
        total = result.spike_count.sum()
    elif count and sums is not None:
        total = sums[2 * rho + 1 + TALLIES.index("spikes")]
    return Emitted(result.spikes, total, sums if keep_statistics else None)
