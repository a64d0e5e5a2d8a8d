"""Which operator simulates a neuron with given settings, and what that operator can take in.

The operators are in cos_ext/functional.py. What a node keeps is in cos_ext/neuron.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import functional as F
from .._functional.checks import differentiates
from .._ops import TALLIES
from .continuing import run_on
from .runs import portion
from .settings import Settings, watch_steps

UNFUSED = ("srp", "parallel")  # calibrations whose operators take nothing into the pass


class Fused(NamedTuple):
    """What an operator takes into its pass; as for :func:`cos_ext.functional.if_forward`."""

    scale: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    pool: tuple[int, int] | None = None


class Emitted(NamedTuple):
    """The spikes of a pass; their number where it was asked for; the statistics likewise; in a
    portion of a simulation the potential after it.
    """

    spikes: Tensor
    total: Tensor | None
    statistics: Tensor | None
    v: Tensor | None = None


def fits_window(x_seq: Tensor, window: tuple[int, int]) -> bool:
    """Whether an operator can pool over windows of (rows, columns) in its pass: it gives no
    potential then.
    """
    rows, columns = window
    whole = x_seq.shape[-2] % rows == 0 and x_seq.shape[-1] % columns == 0
    served = x_seq.device.type != "cuda" or window == (2, 2)
    return whole and served and x_seq.shape[0] <= F.MAX_FUSED_STEPS and portion() is None


def simulate(
    x_seq: Tensor,
    theta: Tensor,
    v_init: Tensor,
    settings: Settings,
    fused: Fused,
    *,
    surrogate: Callable[[Tensor], Tensor],
    detach_reset: bool,
    inplace: bool,
    count: bool,
    keep_statistics: bool,
) -> Emitted:
    """Simulate neurons by their settings.

    Args:
        x_seq: ``[T, *neurons]``; theta and v_init broadcast to ``[*neurons]``.
        settings: of the neurons; ``timesteps``, ``step_mode`` and ``static_input`` play no part.
        fused: what the operator takes in; nothing for the calibrations in ``UNFUSED``.
        surrogate, detach_reset: as for :func:`cos_ext.functional.if_forward`.
        inplace: write the spikes over x_seq, where no gradient is needed.
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
    tensors = (x_seq, theta, v_init, fused.scale, fused.bias, fused.residual)
    inplace = inplace and not differentiates([t for t in tensors if t is not None])
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
            return_v=portion() is not None,
            return_count=by_neuron,
            scale=fused.scale,
            bias=fused.bias,
            residual=fused.residual,
            pool=fused.pool,
            surrogate=surrogate,
            detach_reset=detach_reset,
        )
    sums = result.statistics if isinstance(result, F.COSResult) else None
    total = None
    if result.spike_count is not None:
        total = result.spike_count.sum()
    elif count and sums is not None:
        total = sums[2 * rho + 1 + TALLIES.index("spikes")]
    return Emitted(result.spikes, total, sums if keep_statistics else None, result.v)


class GoneOn(NamedTuple):
    """What a pass emits that goes on from a kept potential, and the potentials."""

    emitted: Emitted
    v: Tensor
    v_seq: Tensor | None


def simulate_on(
    x_seq: Tensor,
    kept: Tensor | None,
    theta: Tensor,
    v_init: Tensor,
    settings: Settings,
    *,
    surrogate: Callable[[Tensor], Tensor],
    detach_reset: bool,
    inplace: bool,
    count: bool,
    keep_statistics: bool,
) -> GoneOn:
    """Simulate neurons that keep their potential, or show it after every step.

    Args:
        kept: the potential ``[*neurons]`` to go on from; None is v_init.
        otherwise as for :func:`simulate`; ``store_v_seq`` among the settings asks for ``v_seq``,
            ``[T, *neurons]``, and takes the steps one by one.

    Raises:
        ValueError: what was kept does not fit x_seq; statistics are asked for; and as for
            if_forward.
    """
    if keep_statistics:
        raise ValueError(
            "statistics need neurons that start anew at every call: set keep_state and store_v_seq "
            "to False"
        )
    start = v_init if kept is None else fitting(kept, x_seq, x_seq.shape[1:])
    how = (settings["v_reset"], surrogate, detach_reset)
    v_seq = None
    if settings["store_v_seq"] and x_seq.dim() and len(x_seq):  # without a step, if_forward's error
        sent, after = [], []
        for x in x_seq:
            spikes, start = run_on(x.unsqueeze(0), theta, start, *how)
            sent.append(spikes)
            after.append(start)
        spikes, v_seq = torch.cat(sent), torch.stack(after)
    else:
        spikes, start = run_on(x_seq, theta, start, *how, inplace)
    total = (spikes.detach() != 0).sum() if count else None
    return GoneOn(Emitted(spikes, total, None), start, v_seq)


def fitting(kept: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
    """A kept potential that fits neurons of this shape.

    Raises:
        ValueError: it does not.
    """
    fits = kept.shape == shape and kept.device == x.device
    if not fits or kept.dtype != F.state_dtype(x.dtype):
        raise ValueError(
            f"x must fit the kept potential {kept.dtype} {tuple(kept.shape)} on {kept.device}, got "
            f"{x.dtype} {tuple(shape)} on {x.device}; call reset() between inputs"
        )
    return kept


def single_step(
    x: Tensor,
    kept: Tensor | None,
    theta: Tensor,
    v_init: Tensor,
    v_reset: float | None,
    inplace: bool,
    surrogate: Callable[[Tensor], Tensor],
    detach_reset: bool,
) -> tuple[Tensor, Tensor]:
    """The spikes of one step, ``[*neurons]``, and the potential after it; from a kept one, or v(0).

    Raises:
        ValueError: what was kept does not fit x; and as for if_forward.
    """
    start = v_init if kept is None else fitting(kept, x, x.shape)
    spikes, v = run_on(x.unsqueeze(0), theta, start, v_reset, surrogate, detach_reset, inplace)
    return spikes[0], v
