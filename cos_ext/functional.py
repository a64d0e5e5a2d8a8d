"""The operators as functions: what each one takes, does and returns.

The operators that emit spikes are described here, and run in _functional/passes.py. Those that
emit none, the checks and the results are in _functional/ and public here. The arithmetic is in
csrc/core.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ._functional.checks import (
    CALIBRATIONS,
    EMISSIONS,
    FLOAT_DTYPES,
    MAX_FUSED_STEPS,
    MAX_STATISTICS_RHO,
    MAX_STEPS,
    WATCHING,
    check_calibration,
    check_choice,
    check_emission,
    check_method,
    check_number,
    check_threshold,
    check_values,
)
from ._functional.desired import calibrate_v_init, rate_forward
from ._functional.events import spike_conv2d, spike_linear
from ._functional.general import neuron_forward
from ._functional.passes import cos_pass, if_pass, parallel_pass, srp_pass
from ._functional.results import Calibration, COSResult, IFResult
from ._ops import state_dtype

__all__ = [
    "CALIBRATIONS",
    "EMISSIONS",
    "FLOAT_DTYPES",
    "MAX_FUSED_STEPS",
    "MAX_STATISTICS_RHO",
    "MAX_STEPS",
    "WATCHING",
    "COSResult",
    "Calibration",
    "IFResult",
    "calibrate_v_init",
    "check_calibration",
    "check_choice",
    "check_emission",
    "check_method",
    "check_number",
    "check_threshold",
    "check_values",
    "cos_forward",
    "if_forward",
    "neuron_forward",
    "parallel_forward",
    "rate_forward",
    "spike_conv2d",
    "spike_linear",
    "srp_forward",
    "state_dtype",
]


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
    surrogate: Callable[[Tensor], Tensor] | None = None,
    detach_reset: bool = False,
) -> IFResult:
    r"""Simulates integrate-and-fire neurons for T steps in one pass over memory.

    .. math:: m(t) = v(t-1) + x(t), \quad s(t) = [m(t) \ge \theta], \quad v(t) = m(t) - \theta s(t)

    This is soft reset; with hard reset :math:`v(t) = s(t) ? v_\text{reset} : m(t)`. The output at t
    is θ s(t). It is computed un-normalised, in exactly this order, in the state dtype: float64 for
    float64 input, else float32.

    Args:
        x_seq: input currents ``[T, *neurons]``, T >= 1; float32, float64, float16 or bfloat16; any
            strides. A time dimension of stride 0 (``x.expand(T, ...)``) is read once per neuron. Of
            the neuron dimensions at most 16 may lie apart in memory.
        v_threshold: θ > 0. A float, or a tensor that broadcasts to ``[*neurons]`` (per channel:
            ``[C, 1, 1]``) in x_seq's dtype or the state dtype.
        v_init: v(0), likewise; None is θ/2.
        v_reset: None for soft reset, or the potential after a spike.
        inplace: write the spikes over x_seq.
        return_v: return v(T), ``[*neurons]``, in the state dtype.
        return_count: return the number of spikes, ``[*neurons]``, int32.
        scale, bias: tensors that broadcast to ``[*neurons]``, in x_seq's dtype or the state dtype.
            The neurons' current is then x·scale + bias, as if a pass before this one had written
            it: a bias of a convolution, a BatchNorm.
        residual: a tensor like x_seq (any strides), added to x·scale + bias. The current is rounded
            to x_seq's dtype before and after, as separate passes would round it.
        pool: (rows, columns), or one number for both: average pooling of the spikes. Its windows
            lie in the last two dimensions, do not overlap, and divide them. The output is
            ``[T, ..., height/rows, width/columns]``. Not with inplace, nor with results by neuron.
            On CUDA (2, 2) alone.
        surrogate: where a gradient is needed, what stands for the step function and its derivative:
            one of :mod:`cos_ext.surrogate`, or any function of (m - θ)/θ. Of its values only the
            gradient is used. None is ATan(2).
        detach_reset: no gradient through the spikes of the reset.

    With scale, bias, residual or pool, T is at most 4096.

    Returns:
        IFResult(spikes, v, spike_count). The spikes have x_seq's dtype and memory format and are 0
        or θ.

    All tensors may require a gradient: backpropagation through time keeps x_seq, and a residual,
    and computes the potentials again. That is one pass over memory for the surrogates of cos_ext;
    with others, and with return_v, it is plain torch, step by step. There is no second derivative.

    NaN and infinity are the same on every device and path. A neuron whose potential is NaN does not
    fire and stays NaN. One at -inf never fires again. One that reaches +inf fires at every step
    from then on (soft reset) or goes to v_reset.

    Raises:
        TypeError: a tensor has another dtype, or an argument another type.
        ValueError: T = 0; a threshold that is not positive and finite in x_seq's dtype; a tensor
            that does not broadcast or is elsewhere; inplace on elements that share memory. Values
            inside a CUDA threshold are not looked at.
        RuntimeError: a gradient is needed and inplace would overwrite what it needs; or no kernel
            serves the device.

    Example:
        >>> x_seq = torch.rand(4, 2, 3)
        >>> spikes, v, count = if_forward(x_seq, 1.0, return_v=True, return_count=True)
    """
    return if_pass(
        x_seq,
        v_threshold,
        v_init,
        v_reset,
        inplace,
        return_v,
        return_count,
        (scale, bias, residual),
        pool,
        surrogate,
        detach_reset,
        check_values,
    )


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
    r"""Calibrates offset spikes per neuron, then simulates T steps, in one pass over memory.

    The method of Hao et al., "Bridging the gap between ANNs and SNNs by calibrating offset spikes",
    ICLR 2023 (arXiv 2302.10685). It watches the first rho steps. Let N be the spikes and r the
    residual membrane potential. The offset spike ψ (desired minus actual count) is

    .. math:: \psi = \mathrm{clip}(\lfloor r/\theta \rfloor, -N, \rho - N)

    Each iteration k = 0, 1, ... touches exactly the neurons with ψ < -k or ψ > k. It changes their
    count by one, down or up:

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
        emission: the order of the spikes in time, see below.
        return_v_init: return the shifted v(0), ``[*neurons]``, in the state dtype.
        return_offset: return ψ before calibration, ``[*neurons]``, int32, signed: positive where
            spikes are missing.
        return_statistics: return sums over the neurons, from the same pass and without a tensor by
            neuron; :mod:`cos_ext.analysis.statistics` says which and reads them. rho is at most 256
            then.

    Emission "calibrated" is the paper's run from the shifted v(0). The others emit the desired
    count C* = N + ψ over every rho steps, exactly, in an order of their own. They read only the
    first rho inputs, take no notice of ``iterations``, do not shift v(0), and have no v.

    * "even": n(t) = floor(C* t/rho + 1/2) spikes by step t, as from an IF neuron that the constant
      current C* θ/rho drives from θ/2.
    * "front": the C* spikes first, in every rho steps.

    Returns:
        COSResult(spikes, v, spike_count, v_init, offset_spikes, statistics). ``spike_count`` counts
        the T emitted steps.

    NaN and infinity: a neuron whose residual is NaN has ψ = 0 and is not shifted; otherwise as for
    :func:`if_forward`. Where inputs exceed θ by more than the precision of the state dtype, a shift
    can have no spike to act on. It is then left out.

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`if_forward`; ValueError also for rho
            outside 1..T or iterations < 0.

    Example:
        >>> result = cos_forward(torch.rand(8, 2, 3), 1.0, rho=4, return_offset=True)
        >>> result.offset_spikes.shape
        torch.Size([2, 3])
    """
    return cos_pass(
        x_seq,
        v_threshold,
        v_init,
        rho,
        iterations,
        emission,
        inplace,
        (return_v, return_count, return_v_init, return_offset),
        return_statistics,
        (scale, bias, residual),
        pool,
        check_values,
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
    r"""Mutes neurons by their residual potential after tau steps, then simulates T steps.

    The rival of Hao et al., "Reducing ANN-SNN conversion error through residual membrane potential"
    (SRP), AAAI 2023 (arXiv 2302.02091). A neuron that has fired although its ANN activation is zero
    is left with a residual below zero. So

    .. math:: v(\tau) = v(0) + \sum_{t=1}^{\tau} \big(x(t) - \theta s(t)\big), \quad
              s'(t) = s(t) \, [v(\tau) > 0], \quad t = 1, \ldots, T

    with soft reset, both runs from the same v(0), θ/2.

    Read in the authors' code (hzc1208/ANN2SNN_SRP, modules.py); of the paper only the abstract was
    to be had. There the residual must exceed 0.001 θ; here the bound is 0. There the whole network
    is stepped, so that a layer is watched on what the layers before emit while they are not muted
    yet. Here a layer is watched on the input that it then runs on, as by :func:`cos_forward`.

    This takes two passes over memory, the first over tau steps only. Its spikes and the potentials
    are temporaries.

    Args:
        x_seq, v_threshold, v_init, inplace, return_count: as for :func:`if_forward`.
        tau: steps to watch, 1 <= tau <= T.

    Returns:
        IFResult(spikes, v, spike_count) of the T emitted steps, ``[T, *neurons]`` and
        ``[*neurons]``. A muted neuron emits nothing. ``v`` is None: that of a muted neuron means
        nothing.

    NaN and infinity: a neuron whose residual is NaN is muted. A muted neuron starts from -inf, and
    never fires whatever comes.

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`if_forward`; ValueError also for tau
            outside 1..T.

    Example:
        >>> spikes, _, count = srp_forward(torch.rand(8, 2, 3), 1.0, tau=4, return_count=True)
    """
    return srp_pass(x_seq, v_threshold, v_init, tau, inplace, return_count, check_values)


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
    calculation", ICML 2025 (arXiv 2412.13610). All steps of a layer are computed at once from the
    mean of its input, here over rho steps (over T in the paper, rho = T):

    .. math:: s(t) = \Big[\frac{\rho}{t} \bar x + \frac{v(0)}{t} \ge \theta\Big]
                   = [t \le C^*], \quad t = 1, \ldots, \rho, \quad
              C^* = \mathrm{clip}\Big(\Big\lfloor \frac{\sum_{t \le \rho} x(t) + v(0)}{\theta}
              \Big\rfloor, 0, \rho\Big)

    and every further rho steps repeat these.

    Read in a public copy of the authors' code (bjourne/hao_s2025, modules.py, ParaInfNeuron), where
    the spikes come first. Of the paper only the abstract was to be had, which says no more than
    that they are sorted. The paper's correction for other activations and levels (DA-QCFS: shifts
    of the input and of θ, learned per channel) is not part of this.

    A layer needs its whole input over rho steps before its first spike. So on a machine that runs
    step by step the answer at t comes after rho + t steps. The same as :func:`cos_forward` with
    emission="front".

    Args:
        x_seq: as for :func:`if_forward`; steps after rho are not read.
        v_threshold, v_init, inplace, return_count: as for :func:`if_forward`.
        rho: steps to sum, 1 <= rho <= T.

    Returns:
        IFResult(spikes, v, spike_count) of the T emitted steps, ``[T, *neurons]`` and
        ``[*neurons]``. ``v`` is None: there is none.

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`cos_forward`.

    Example:
        >>> spikes, _, _ = parallel_forward(torch.rand(4, 2, 3), 1.0, rho=4)
    """
    return parallel_pass(x_seq, v_threshold, v_init, rho, inplace, return_count, check_values)
