"""Which operator simulates a neuron with given settings, and what that operator can take in.

The operators are in cos_ext/functional.py. What a node keeps is in cos_ext/neuron.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from .. import functional as F
from .._functional.checks import UNFUSED, differentiates
from .._functional.passes import cos_pass, if_pass, parallel_pass, srp_pass
from .._ops import TALLIES
from .continuing import fitting, run_on
from .general import Emitted, Fused, simulate_general
from .layer import sizes_of
from .runs import Watch
from .settings import Settings, is_general, watch_steps


def now(settings: Settings, watched: Watch) -> Settings:
    """Settings with the steps of the portion that is run; an input over time is not static."""
    if watched.frames is not None:
        settings = cast(Settings, {**settings, "static_input": False})
    if watched.steps is None or settings["timesteps"] is None:
        return settings
    return cast(Settings, {**settings, "timesteps": watched.steps})


def over_time(x: Tensor, settings: Settings) -> Tensor:
    """``[T, B, ...]`` of an input with time in its batch or first, or the same at every step.

    Raises:
        ValueError: it has not T steps, or its batch is not T times another.
    """
    steps, shape = settings["timesteps"], x.shape
    if steps is None:
        return x
    if settings["time"] == "first":
        if shape[:1] != (steps,):
            raise ValueError(
                f"the first dimension must be timesteps = {steps}, got shape {tuple(shape)}"
            )
        return x
    if not shape:
        raise ValueError("x must have a batch dimension, got a tensor without dimensions")
    if settings["static_input"]:
        return x.unsqueeze(0).expand(steps, *shape)
    if shape[0] % steps:
        raise ValueError(
            f"the batch must be divisible by timesteps = {steps} (time is folded into it), "
            f"got shape {tuple(shape)}"
        )
    return torch.unflatten(x, 0, (steps, shape[0] // steps))  # faster than the method


def window_of(
    x_seq: Tensor, pool: tuple[int, int] | None, settings: Settings, counts: bool
) -> tuple[int, int] | None:
    """The windows that the kernel pools the spikes over; None where there are none, or it cannot.

    counts: the spikes are counted.
    """
    if pool is None or settings["calibration"] in UNFUSED or x_seq.dim() < 4:
        return None
    rows, columns = window = sizes_of(x_seq.shape, pool)
    whole = x_seq.shape[-2] % rows == 0 and x_seq.shape[-1] % columns == 0
    served = x_seq.device.type != "cuda" or window == (2, 2)
    counted = not counts or 0 < watch_steps(settings) <= F.MAX_STATISTICS_RHO
    fits = whole and served and x_seq.shape[0] <= F.MAX_FUSED_STEPS
    return window if fits and counted and not is_general(settings) else None


def simulate(
    x_seq: Tensor,
    theta: Tensor,
    v_init: Tensor,
    settings: Settings,
    fused: Fused,
    surrogate: Callable[[Tensor], Tensor],
    detach_reset: bool,
    inplace: bool,
    count: bool,
    keep_statistics: bool,
    keep_v: bool,
) -> Emitted:
    """Simulate neurons by their settings.

    Args:
        x_seq: ``[T, *neurons]``; theta, whose values were looked at, and v_init broadcast to
            ``[*neurons]``.
        settings: of the neurons; ``timesteps``, ``step_mode`` and ``static_input`` play no part.
        fused: what the operator takes in; nothing for the calibrations in ``UNFUSED``.
        surrogate, detach_reset: as for :func:`cos_ext.functional.if_forward`.
        inplace: write the spikes over x_seq, where no gradient is needed.
        count: sum up the spikes over neurons and steps.
        keep_statistics: return the sums of :mod:`cos_ext.analysis.statistics`.
        keep_v: return the potential after the last step, of neurons that do not watch.

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
    if is_general(settings):
        asked = (surrogate, detach_reset, inplace, count, keep_statistics, keep_v)
        return simulate_general(x_seq, theta, v_init, settings, fused, *asked)
    rho = watch_steps(settings)
    if inplace:
        inplace = not differentiates((x_seq, theta, v_init, *fused))
    by_neuron = count and fused.pool is None  # pooled spikes are counted in the statistics
    given = (x_seq, theta, v_init)
    taken = (fused.scale, fused.bias, fused.residual)
    result: F.IFResult | F.COSResult
    if calibration == "srp" and rho:
        result = srp_pass(*given, rho, inplace, by_neuron, None)
    elif calibration == "parallel" and rho:
        result = parallel_pass(*given, rho, inplace, by_neuron, None)
    elif rho or keep_statistics:
        # Without calibration: watched, and left as they are.
        rounds, emission = settings["iterations"], settings["emission"]
        how = (rho, rounds, emission) if rho else (x_seq.shape[0], 0, "calibrated")
        wanted = (False, by_neuron, False, False)
        statistics = keep_statistics or (count and not by_neuron)
        result = cos_pass(*given, *how, inplace, wanted, statistics, taken, fused.pool, None)
    else:
        learning = (surrogate, detach_reset)
        result = if_pass(
            *given, v_reset, inplace, keep_v, by_neuron, taken, fused.pool, *learning, None
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
            spikes, start = run_on(x.unsqueeze(0), theta, start, *how, check=None)
            sent.append(spikes)
            after.append(start)
        spikes, v_seq = torch.cat(sent), torch.stack(after)
    else:
        spikes, start = run_on(x_seq, theta, start, *how, inplace, None)
    total = (spikes.detach() != 0).sum() if count else None
    return GoneOn(Emitted(spikes, total, None), start, v_seq)


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
    how = (v_reset, surrogate, detach_reset, inplace, None)
    spikes, v = run_on(x.unsqueeze(0), theta, start, *how)
    return spikes[0], v
