"""The operators as functions: validation (exception types and messages) and thin calls into the
kernels.

Argument checks live here and nowhere else in Python; the arithmetic is in csrc/core.
"""

from __future__ import annotations

import math
import numbers
from typing import NamedTuple

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor

from . import _ops
from ._ops import state_dtype

FLOAT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
EMISSIONS = ("calibrated", "even", "front")  # by the operators' numbers (csrc/core/emission.h)
CALIBRATIONS = ("cos", "srp", "light", "none", "parallel")  # of IFNode and convert
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


class IFResult(NamedTuple):
    """spikes [T, *neurons]; v and spike_count [*neurons], None where they were not asked for."""

    spikes: Tensor
    v: Tensor | None
    spike_count: Tensor | None


class COSResult(NamedTuple):
    """spikes [T, *neurons]; v, spike_count, v_init and offset_spikes [*neurons], None where they
    were not asked for.

    statistics: int64 [2 rho + 6], see :mod:`cos_ext.analysis.statistics`.
    """

    spikes: Tensor
    v: Tensor | None
    spike_count: Tensor | None
    v_init: Tensor | None
    offset_spikes: Tensor | None
    statistics: Tensor | None = None


class Calibration(NamedTuple):
    """v_init, offset_spikes and spike_count, each [*neurons]; spike_count and offset_spikes are
    those before calibration.
    """

    v_init: Tensor
    offset_spikes: Tensor
    spike_count: Tensor


def if_forward(
    x_seq: Tensor,
    v_threshold: float | Tensor,
    v_init: float | Tensor | None = None,
    *,
    v_reset: float | None = None,
    inplace: bool = False,
    return_v: bool = False,
    return_count: bool = False,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    pool: int | tuple[int, int] | None = None,
) -> IFResult:
    r"""Simulates integrate-and-fire neurons for T steps in one pass over memory.

    .. math:: m(t) = v(t-1) + x(t), \quad s(t) = [m(t) \ge \theta], \quad v(t) = m(t) - \theta s(t)

    (soft reset), or :math:`v(t) = s(t) ? v_\text{reset} : m(t)` (hard reset). The output at t is θ
    s(t). Computed un-normalised, in exactly this order, in the state dtype: float64 for float64
    input, else float32.

    Args:
        x_seq: input currents [T, *neurons], T >= 1; float32, float64, float16 or bfloat16; any
            strides. A time dimension of stride 0 (``x.expand(T, ...)``) is read once per neuron. At
            most 16 neuron dimensions that are not neighbours in memory.
        v_threshold: θ > 0; a float, or a tensor that broadcasts to [*neurons] (per channel: [C, 1,
            1]) in x_seq's dtype or the state dtype.
        v_init: v(0), likewise; None is θ/2.
        v_reset: None for soft reset, or the potential after a spike.
        inplace: write the spikes over x_seq.
        return_v: return v(T), [*neurons], in the state dtype.
        return_count: return the number of spikes, [*neurons], int32.
        scale, bias: tensors that broadcast to [*neurons], in x_seq's dtype or the state dtype. The
            neurons' current is then x·scale + bias, as if a pass before this one had written it: a
            bias of a convolution, a BatchNorm.
        residual: a tensor like x_seq (any strides), added to that. Rounded to x_seq's dtype before
            and after, as separate passes would. With any of these three, or pool, T is at most
            4096.
        pool: (rows, columns), or one number for both: average pooling of the spikes over windows of
            the last two dimensions that do not overlap and divide them; the output is [T, ...,
            height/rows, width/columns]. Not with inplace, nor with results by neuron. On CUDA (2,
            2) alone.

    Returns:
        IFResult(spikes, v, spike_count); spikes have x_seq's dtype and memory format and are 0 or
            θ.

    NaN and infinity: a neuron whose potential is NaN does not fire and stays NaN; one at -inf never
    fires again; one that reaches +inf fires at every step from then on (soft reset) or goes to
    v_reset. The same on every device and path.

    Raises:
        TypeError: a tensor has another dtype, or an argument another type.
        ValueError: T = 0, a threshold that is not positive and finite (in x_seq's dtype), a tensor
            that does not broadcast or is elsewhere, inplace on elements that share memory. Values
            inside a CUDA threshold are not looked at.
        RuntimeError: autograd would need a gradient (this is an inference operator), or no kernel
            serves the device.

    Example:
        >>> spikes, v, count = if_forward(torch.rand(4, 2, 3), 1.0, return_v=True, return_count=True)
    """
    theta, theta_value, init, init_value = _checked(x_seq, v_threshold, v_init, inplace)
    reset = None if v_reset is None else check_number("v_reset", v_reset)
    windows = _check_fused(x_seq, scale, bias, residual, pool, inplace, return_v or return_count)
    given = (
        x_seq,
        theta,
        theta_value,
        init,
        init_value,
        reset,
        return_v,
        return_count,
        scale,
        bias,
        residual,
    )
    if inplace:
        v, count = _ops.ops.if_forward_(*given)
        _written(x_seq)
        spikes = x_seq
    else:
        spikes, v, count = _ops.ops.if_forward(*given, *windows)
    return IFResult(spikes, v if return_v else None, count if return_count else None)


def cos_forward(
    x_seq: Tensor,
    v_threshold: float | Tensor,
    v_init: float | Tensor | None = None,
    *,
    rho: int,
    iterations: int | None = 1,
    emission: str = "calibrated",
    inplace: bool = False,
    return_v: bool = False,
    return_count: bool = False,
    return_v_init: bool = False,
    return_offset: bool = False,
    return_statistics: bool = False,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    pool: int | tuple[int, int] | None = None,
) -> COSResult:
    r"""Calibrates offset spikes per neuron and simulates T steps from the shifted potential, in one
    pass over memory.

    The method of Hao et al., "Bridging the gap between ANNs and SNNs by calibrating offset spikes",
    ICLR 2023 (arXiv 2302.10685): watch the first rho steps, and let N be the spikes and r the
    residual membrane potential. The offset spike (desired minus actual count) is

    .. math:: \psi = \mathrm{clip}(\lfloor r/\theta \rfloor, -N, \rho - N)

    and each iteration k = 0, 1, ... touches exactly the neurons with ψ < -k or ψ > k and changes
    their count by one:

    .. math:: v(0) \mathrel{-}= \max(\theta, \min_{s(t)=1} m(t) - \theta(1-\varepsilon)), \quad
              v(0) \mathrel{+}= \max(\theta, \theta(1+\varepsilon) - \max_{s(t)=0} v(t)), \quad
              \varepsilon = 10^{-3}

    Then all T steps run from the shifted v(0) with soft reset. After k iterations exactly the
    neurons with abs(ψ) > k are still wrong over the first rho steps.

    Args:
        x_seq, v_threshold, v_init, inplace, return_v, return_count, scale, bias, residual, pool: as
            for :func:`if_forward`.
        rho: steps to watch, 1 <= rho <= T.
        iterations: how many shifts at most, >= 0; None: until no neuron is left (at most rho).
        emission: "calibrated": the paper's run from the shifted v(0). The others emit the desired
            count C* = N + ψ over every rho steps, exactly, in an order of their own, and read only
            the first rho inputs; `iterations` plays no part, v(0) is not shifted, and there is no
            v. "even": n(t) = floor(C* t/rho + 1/2) spikes by step t, as an IF neuron driven by the
            constant current C* θ/rho from θ/2. "front": the C* spikes first, in every rho steps.
        return_v_init: return the shifted v(0), [*neurons], state dtype.
        return_offset: return ψ before calibration, [*neurons], int32, signed: positive where spikes
            are missing.
        return_statistics: return sums over the neurons, from the same pass and without a tensor by
            neuron: :mod:`cos_ext.analysis.statistics` says which and reads them. rho is at most 256
            then.

    Returns:
        COSResult(spikes, v, spike_count, v_init, offset_spikes, statistics); spike_count counts the
            T emitted steps.

    NaN and infinity: a neuron whose residual is NaN has ψ = 0 and is not shifted; otherwise as for
    :func:`if_forward`. Where inputs exceed θ by more than the precision of the state dtype, a shift
    can have no spike to act on; it is then left out.

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`if_forward`; ValueError also for rho
            outside 1..T or iterations < 0.

    Example:
        >>> result = cos_forward(torch.rand(8, 2, 3), 1.0, rho=4, return_offset=True)
        >>> result.offset_spikes.shape
        torch.Size([2, 3])
    """
    theta, theta_value, init, init_value = _checked(x_seq, v_threshold, v_init, inplace)
    rounds = check_calibration(rho, iterations)
    _check_rho(rho, x_seq)
    order = EMISSIONS.index(check_emission(emission))
    if order and return_v:
        raise ValueError(
            f"return_v must be False with emission {emission!r}: only calibrated neurons have a "
            "potential"
        )
    if return_statistics and rho > MAX_STATISTICS_RHO:
        raise ValueError(
            f"rho must be at most {MAX_STATISTICS_RHO} with return_statistics, got {rho}"
        )
    wanted = (return_v, return_count, return_v_init, return_offset)
    windows = _check_fused(x_seq, scale, bias, residual, pool, inplace, any(wanted))
    given = (
        x_seq,
        theta,
        theta_value,
        init,
        init_value,
        rho,
        rounds,
        *wanted,
        order,
        return_statistics,
        scale,
        bias,
        residual,
    )
    if inplace:
        results = _ops.ops.cos_forward_(*given)
        _written(x_seq)
        spikes = x_seq
    else:
        spikes, *results = _ops.ops.cos_forward(*given, *windows)
    *by_neuron, sums = results
    v, count, shifted, offset = (
        result if asked else None for result, asked in zip(by_neuron, wanted)
    )
    return COSResult(spikes, v, count, shifted, offset, sums.sum(0) if return_statistics else None)


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
    r"""The mean of a calibrated neuron's spikes over rho steps, from the mean of its input over
    them.

    .. math:: \theta\, C^* / \rho, \quad C^* = \mathrm{clip}(\lfloor (\rho \bar x + v(0)) / \theta \rfloor, 0, \rho)

    The desired count depends on the sum of the inputs alone, so that a layer of convolutions and
    neurons can be evaluated on means, once, instead of rho times.

    Args:
        x_mean: the mean current over rho steps, [*neurons], no time; dtypes as for
            :func:`if_forward`.
        v_threshold, v_init, inplace, scale, bias, residual: as for :func:`if_forward`; residual is
            like x_mean.
        rho: 1 <= rho <= 2^24.

    Returns:
        The mean outputs, [*neurons], x_mean's dtype and memory format. 0 where the potential is
            NaN.

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`if_forward`.
    """
    if not isinstance(x_mean, Tensor):
        raise TypeError(f"x_mean must be a tensor, got {type(x_mean).__name__}")
    x_seq = x_mean.unsqueeze(0)
    theta, theta_value, init, init_value = _checked(x_seq, v_threshold, v_init, inplace)
    check_calibration(rho, 0)
    if rho > MAX_STEPS:
        raise ValueError(f"rho must be at most {MAX_STEPS}, got {rho}")
    added = residual.unsqueeze(0) if isinstance(residual, Tensor) else residual
    _check_fused(x_seq, scale, bias, added, None, inplace, False)
    given = (x_seq, theta, theta_value, init, init_value, rho, scale, bias, added)
    if inplace:
        _ops.ops.rate_forward_(*given)
        _written(x_mean)
        return x_mean
    return _ops.ops.rate_forward(*given).squeeze(0)


def calibrate_v_init(
    x_seq: Tensor,
    v_threshold: float | Tensor,
    v_init: float | Tensor | None = None,
    *,
    rho: int,
    iterations: int | None = 1,
) -> Calibration:
    """The calibration of :func:`cos_forward` alone: reads the first rho steps and emits nothing.

    Args:
        x_seq: [T, *neurons] with T >= rho; steps after rho are not read. The rest as for
            :func:`cos_forward`.

    Returns:
        Calibration(v_init, offset_spikes, spike_count): the shifted v(0) in the state dtype; ψ and
            the count N of the
        first rho steps, both before calibration, int32. The desired count is spike_count +
            offset_spikes.

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`cos_forward`.
    """
    theta, theta_value, init, init_value = _checked(x_seq, v_threshold, v_init, False)
    rounds = check_calibration(rho, iterations)
    _check_rho(rho, x_seq)
    return Calibration(
        *_ops.ops.calibrate_v_init(x_seq, theta, theta_value, init, init_value, rho, rounds)
    )


def srp_forward(
    x_seq: Tensor,
    v_threshold: float | Tensor,
    v_init: float | Tensor | None = None,
    *,
    tau: int,
    inplace: bool = False,
    return_count: bool = False,
) -> IFResult:
    r"""Mutes neurons by their residual membrane potential after tau steps, and simulates T steps of
    the others.

    The rival of Hao et al., "Reducing ANN-SNN conversion error through residual membrane potential"
    (SRP), AAAI 2023 (arXiv 2302.02091): a neuron that has fired although its ANN activation is zero
    is left with a residual below zero. So

    .. math:: v(\tau) = v(0) + \sum_{t=1}^{\tau} \big(x(t) - \theta s(t)\big), \quad
              s'(t) = s(t) \, [v(\tau) > 0], \quad t = 1, \ldots, T

    with soft reset, both runs from the same v(0), θ/2. Read in the authors' code
    (hzc1208/ANN2SNN_SRP, modules.py; of the paper only the abstract was to be had): there the
    residual must exceed 0.001 θ, and the whole network is stepped, so that a layer is watched on
    what the layers before emit while they are not muted yet. Here the bound is 0, and a layer is
    watched on the input that it then runs on, as by :func:`cos_forward`.

    Args:
        x_seq, v_threshold, v_init, inplace, return_count: as for :func:`if_forward`.
        tau: steps to watch, 1 <= tau <= T.

    Returns:
        IFResult(spikes, v, spike_count) of the T emitted steps, [T, *neurons] and [*neurons]; a
            muted neuron emits nothing.
        v is None: that of a muted neuron means nothing.

    NaN and infinity: a neuron whose residual is NaN is muted; a muted neuron starts from -inf, and
    never fires whatever comes.

    Two passes over memory, the first over tau steps only; its spikes and the potentials are
    temporaries.

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`if_forward`; ValueError also for tau
            outside 1..T.

    Example:
        >>> spikes, _, count = srp_forward(torch.rand(8, 2, 3), 1.0, tau=4, return_count=True)
    """
    _, _, init, init_value = _checked(x_seq, v_threshold, v_init, inplace)
    _check_watch("tau", tau, x_seq)
    residual = if_forward(x_seq[:tau], v_threshold, v_init, return_v=True).v
    if init is None and init_value is None:
        init = (
            v_threshold / 2
            if not isinstance(v_threshold, Tensor)
            else v_threshold.to(residual.dtype) / 2
        )
    elif init is None:
        init = init_value
    start = torch.full_like(residual, -math.inf)
    start = torch.where(
        residual > 0, torch.as_tensor(init, dtype=start.dtype, device=start.device), start
    )
    return if_forward(x_seq, v_threshold, start, inplace=inplace, return_count=return_count)


def parallel_forward(
    x_seq: Tensor,
    v_threshold: float | Tensor,
    v_init: float | Tensor | None = None,
    *,
    rho: int,
    inplace: bool = False,
    return_count: bool = False,
) -> IFResult:
    r"""Emits the desired count of the first rho steps as a sorted train, the spikes first.

    The rival of Hao et al., "Faster and stronger: when ANN-SNN conversion meets parallel spiking
    calculation", ICML 2025 (arXiv 2412.13610): all steps of a layer are computed at once from the
    mean of its input, here over rho steps (over T in the paper, rho = T):

    .. math:: s(t) = \Big[\frac{\rho}{t} \bar x + \frac{v(0)}{t} \ge \theta\Big]
                   = [t \le C^*], \quad t = 1, \ldots, \rho, \quad
              C^* = \mathrm{clip}\Big(\Big\lfloor \frac{\sum_{t \le \rho} x(t) + v(0)}{\theta}
              \Big\rfloor, 0, \rho\Big)

    and every further rho steps repeat these. Read in a public copy of the authors' code
    (bjourne/hao_s2025, modules.py, ParaInfNeuron), where the spikes come first; of the paper only
    the abstract was to be had, which says no more than that they are sorted. Its correction for
    other activations and levels (DA-QCFS: shifts of the input and of θ, learned per channel) is not
    part of this.

    A layer needs its whole input over rho steps before its first spike, so on a machine that runs
    step by step the answer at t comes after rho + t steps. The same as :func:`cos_forward` with
    emission="front".

    Args:
        x_seq, v_threshold, v_init, inplace, return_count: as for :func:`if_forward`; steps after
            rho are not read.
        rho: steps to sum, 1 <= rho <= T.

    Returns:
        IFResult(spikes, v, spike_count) of the T emitted steps, [T, *neurons] and [*neurons]; v is
            None: there is none.

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`cos_forward`.

    Example:
        >>> spikes, _, _ = parallel_forward(torch.rand(4, 2, 3), 1.0, rho=4)
    """
    result = cos_forward(
        x_seq,
        v_threshold,
        v_init,
        rho=rho,
        iterations=0,
        emission="front",
        inplace=inplace,
        return_count=return_count,
    )
    return IFResult(result.spikes, None, result.spike_count)


def check_calibration(rho: int, iterations: int | None) -> int:
    """Validate rho >= 1 and iterations; return iterations as the operators take it (-1 for
    None).
    """
    if isinstance(rho, bool) or not isinstance(rho, (int, torch.SymInt)):
        raise TypeError(f"rho must be an int, got {type(rho).__name__}")
    if rho < 1:
        raise ValueError(f"rho must be >= 1, got {rho}")
    if iterations is None:
        return -1
    if isinstance(iterations, bool) or not isinstance(iterations, int):
        raise TypeError(f"iterations must be an int or None, got {type(iterations).__name__}")
    if iterations < 0:
        raise ValueError(f"iterations must be >= 0, or None for until exact, got {iterations}")
    return iterations


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """Validate that an argument is one of some names, and return it."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}")
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
    return value


def check_emission(emission: str) -> str:
    """Validate emission and return it."""
    return check_choice("emission", emission, EMISSIONS)


def check_method(calibration: str) -> str:
    """Validate the name of a calibration and return it."""
    return check_choice("calibration", calibration, CALIBRATIONS)


def check_values(name: str, value: Tensor, dtype: torch.dtype | None = None) -> None:
    """ValueError unless every element of a threshold tensor is positive and finite, also when
    rounded to `dtype`.

    Synchronises with the device.
    """
    if value.dtype not in _THRESHOLD_RANGE:
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {value.dtype}")
    if value.numel():
        lowest, highest = _THRESHOLD_RANGE[dtype or value.dtype]
        low, high = torch.aminmax(value.detach())
        if not (low > lowest and high < highest):  # NaN fails both
            raise ValueError(
                f"{name} must be positive and finite in {dtype or value.dtype}, "
                f"got values in [{low.item()}, {high.item()}]"
            )


def _check_fused(
    x_seq: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    pool: int | tuple[int, int] | None,
    inplace: bool,
    by_neuron: bool,
) -> tuple[int, int]:
    """Validate what is fused into a pass; return the windows as the operators take them, (0, 0) for
    none.
    """
    given = [
        (name, t)
        for name, t in (("scale", scale), ("bias", bias), ("residual", residual))
        if t is not None
    ]
    for name, tensor in given:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor or None, got {type(tensor).__name__}")
        if name != "residual":
            _check_parameter(name, tensor, x_seq)
    if residual is not None:
        if residual.dtype != x_seq.dtype:
            raise TypeError(f"residual must have x_seq's dtype {x_seq.dtype}, got {residual.dtype}")
        if residual.device != x_seq.device:
            raise ValueError(
                f"residual must be on x_seq's device {x_seq.device}, got {residual.device}"
            )
        if residual.shape != x_seq.shape:
            raise ValueError(
                f"residual must have x_seq's shape {tuple(x_seq.shape)}, got "
                f"{tuple(residual.shape)}"
            )
    if (given or pool is not None) and x_seq.shape[0] > MAX_FUSED_STEPS:
        raise ValueError(
            f"scale, bias, residual and pool need T <= {MAX_FUSED_STEPS}, got {x_seq.shape[0]}"
        )
    if given and torch.is_grad_enabled() and any(tensor.requires_grad for _, tensor in given):
        raise RuntimeError(
            "cos_ext's operators are for inference and have no gradient: an input requires one and "
            "grad mode is on"
        )
    if inplace:
        for name, tensor in given:
            if not torch.compiler.is_compiling() and _overlap(tensor, x_seq):
                raise ValueError(f"{name} must not share memory with x_seq in place")
    if pool is None:
        return 0, 0
    windows = pool if isinstance(pool, (tuple, list)) else (pool, pool)
    if len(windows) != 2 or any(
        isinstance(size, bool) or not isinstance(size, int) for size in windows
    ):
        raise TypeError(f"pool must be an int, two of them or None, got {pool!r}")
    if inplace:
        raise ValueError("pool makes a smaller output, so inplace must be False")
    if by_neuron:
        raise ValueError(
            "with pool there are no results by neuron: leave out return_v, return_count, "
            "return_v_init and return_offset"
        )
    if (
        x_seq.dim() < 3
        or min(windows) < 1
        or x_seq.shape[-2] % windows[0]
        or x_seq.shape[-1] % windows[1]
    ):
        raise ValueError(
            f"pool must divide the last two dimensions of the neurons, got {tuple(windows)} for "
            f"shape {tuple(x_seq.shape)}"
        )
    if x_seq.device.type == "cuda" and tuple(windows) != (2, 2):
        raise ValueError(f"pool must be (2, 2) on CUDA, got {tuple(windows)}")
    return windows[0], windows[1]


def _check_watch(name: str, steps: int, x_seq: Tensor) -> None:
    if isinstance(steps, bool) or not isinstance(steps, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int, got {type(steps).__name__}")
    if not 1 <= steps <= x_seq.shape[0]:
        raise ValueError(f"{name} must lie in 1..T = {x_seq.shape[0]}, got {steps}")


def _check_rho(rho: int, x_seq: Tensor) -> None:
    if rho > x_seq.shape[0]:
        raise ValueError(f"rho must lie in 1..T = {x_seq.shape[0]}, got {rho}")


def check_number(name: str, value: float) -> float:
    """A Python or NumPy real number as a float: TypeError for another type, ValueError for NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float, numbers.Real)):
        raise TypeError(f"{name} must be a float, got {type(value).__name__}")
    if value != value:
        raise ValueError(f"{name} must not be NaN")
    return float(value)


def _checked(
    x_seq: Tensor, v_threshold: float | Tensor, v_init: float | Tensor | None, inplace: bool
) -> tuple[Tensor | None, float, Tensor | None, float | None]:
    """Validate what all operators share; return (θ tensor, θ value, v_init tensor, v_init value)
    for the schema.
    """
    if not isinstance(x_seq, Tensor):
        raise TypeError(f"x_seq must be a tensor, got {type(x_seq).__name__}")
    if x_seq.dtype not in FLOAT_DTYPES:
        raise TypeError(f"x_seq must be float32, float64, float16 or bfloat16, got {x_seq.dtype}")
    if x_seq.dim() < 1 or not 1 <= x_seq.shape[0] <= MAX_STEPS:
        raise ValueError(
            f"x_seq must be [T, *neurons] with 1 <= T <= {MAX_STEPS}, got shape "
            f"{tuple(x_seq.shape)}"
        )
    _check_device(x_seq)
    theta, theta_value = None, 0.0
    if isinstance(v_threshold, Tensor):
        theta = v_threshold
        _check_parameter("v_threshold", theta, x_seq)
        if theta.device.type == "cpu" and not torch.compiler.is_compiling() and not _is_fake(theta):
            check_values("v_threshold", theta, x_seq.dtype)
    else:
        theta_value = check_threshold(v_threshold, x_seq.dtype)
    init, init_value = None, None
    if isinstance(v_init, Tensor):
        init = v_init
        _check_parameter("v_init", init, x_seq)
    elif v_init is not None:
        init_value = check_number("v_init", v_init)
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x_seq, theta, init)
    ):
        raise RuntimeError(
            "cos_ext's operators are for inference and have no gradient: an input requires one and "
            "grad mode "
            "is on; call under torch.no_grad(), or train with cos_ext.QCFS"
        )
    if not torch.compiler.is_compiling() and fwAD._current_level >= 0:
        if any(
            t is not None and fwAD.unpack_dual(t).tangent is not None for t in (x_seq, theta, init)
        ):
            raise RuntimeError(
                "cos_ext's operators are for inference and have no gradient, forward mode included"
            )
    if inplace:
        _check_inplace(x_seq)
        for name, parameter in (("v_threshold", theta), ("v_init", init)):
            if (
                parameter is not None
                and not torch.compiler.is_compiling()
                and _overlap(parameter, x_seq)
            ):
                raise ValueError(f"{name} must not share memory with x_seq in place")
    return theta, theta_value, init, init_value


def check_threshold(v_threshold: float, dtype: torch.dtype) -> float:
    """A float threshold, validated: TypeError or ValueError unless it is positive and finite in
    `dtype`.
    """
    value = check_number("v_threshold", v_threshold)
    lowest, highest = _THRESHOLD_RANGE[dtype]
    if not lowest < value < highest:
        raise ValueError(f"v_threshold must be positive and finite in {dtype}, got {value}")
    return value


def _is_fake(tensor: Tensor) -> bool:
    return isinstance(
        tensor, torch._subclasses.FakeTensor
    ) or torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _check_device(x_seq: Tensor) -> None:
    kind = x_seq.device.type
    if kind == "cuda":
        reason = _ops.cuda_unavailable()
        if reason is not None:
            raise RuntimeError(
                f"x_seq is on {x_seq.device}, and this cos_ext has no CUDA kernels: {reason}"
            )
    elif kind not in ("cpu", "meta"):
        raise RuntimeError(f"x_seq is on {x_seq.device}; cos_ext has kernels for cpu and cuda")


def _check_parameter(name: str, parameter: Tensor, x_seq: Tensor) -> None:
    allowed = (x_seq.dtype, state_dtype(x_seq.dtype))
    if parameter.dtype not in allowed:
        raise TypeError(
            f"{name} must have x_seq's dtype {allowed[0]} or the state dtype {allowed[1]}, got "
            f"{parameter.dtype}"
        )
    if parameter.device != x_seq.device:
        raise ValueError(f"{name} must be on x_seq's device {x_seq.device}, got {parameter.device}")
    neurons, own = x_seq.shape[1:], parameter.shape
    fits = len(own) <= len(neurons)
    if not fits or any(a != b and a != 1 for a, b in zip(reversed(own), reversed(neurons))):
        raise ValueError(
            f"{name} must broadcast to the neurons {tuple(neurons)}, got shape {tuple(own)}"
        )


def _check_inplace(x_seq: Tensor) -> None:
    if x_seq.is_contiguous():
        return
    reach = 0
    for stride, size in sorted(
        (stride, size) for stride, size in zip(x_seq.stride(), x_seq.shape) if size > 1
    ):
        if stride <= reach:
            raise ValueError(
                "inplace needs an x_seq whose elements do not share memory, got strides "
                f"{x_seq.stride()} "
                f"for shape {tuple(x_seq.shape)}"
            )
        reach += (size - 1) * stride


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether the stretches of memory from the first to the last element of two tensors overlap."""
    if _is_fake(a) or _is_fake(b) or a.is_meta or a.numel() == 0 or b.numel() == 0:
        return False

    def extent(t: Tensor) -> tuple[int, int]:
        last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride()))
        return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()

    (first_a, end_a), (first_b, end_b) = extent(a), extent(b)
    return first_a < end_b and first_b < end_a


def _written(x_seq: Tensor) -> None:
    # Autograd must notice that a tensor it saved has changed; the stable ABI does not count
    # versions.
    if not torch.compiler.is_compiling() and not x_seq.is_inference():
        torch.autograd.graph.increment_version(x_seq)
