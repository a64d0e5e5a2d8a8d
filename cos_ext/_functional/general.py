"""The general neuron as an operator: its arguments, and its gradient in plain torch.

What the neuron may be is in cos_ext/general.py; the arithmetic, in csrc/core/general.h. Public in
cos_ext/functional.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _ops
from .._ops import state_dtype
from ..general import Neuron
from ..surrogate import check_surrogate
from .arguments import (
    Check,
    check_apart,
    check_fused,
    check_no_gradient,
    check_parameter,
    check_watch,
    mark_written,
    prepared,
)
from .checks import (
    GENERAL_EMISSIONS,
    MAX_STEPS,
    check_calibration,
    check_choice,
    check_number,
    check_values,
    differentiates,
)
from .currents import composed
from .passes import Fused
from .results import COSResult

MOST_LEARNT = 1024  # levels in plain torch, each a step of the surrogate


def neuron_forward(
    x_seq: Tensor,
    v_threshold: float | Tensor,
    v_init: float | Tensor | None = None,
    *,
    neuron: Neuron,
    v_reset: float | None = None,
    rho: int = 0,
    iterations: int | None = 1,
    emission: str = "calibrated",
    inplace: bool = False,
    return_v: bool = False,
    return_count: bool = False,
    return_v_init: bool = False,
    return_offset: bool = False,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    surrogate: Callable[[Tensor], Tensor] | None = None,
    detach_reset: bool = False,
) -> COSResult:
    r"""Simulates neurons of any :class:`~cos_ext.Neuron` for T steps in one pass over memory.

    With rho >= 1 their offset spikes are calibrated first, as by
    :func:`~cos_ext.functional.cos_forward`. The count may then end at every number of levels that
    rho steps can send:

    .. math:: \psi = \mathrm{clip}(\lfloor r/\theta \rfloor,
              \max(n_\min, \rho s_\min) - N, \min(n_\max, \rho s_\max) - N)

    A shift of v(0) acts on the step that has the least to lose, or to gain, for one level. That
    extends the paper's proof to more levels; it is ours, not published.

    Args:
        x_seq, v_threshold, v_init, v_reset, inplace, return_v: as for
            :func:`~cos_ext.functional.if_forward`.
        scale, bias, residual, surrogate, detach_reset: as there, too.
        neuron: what it does in a step.
        rho, iterations, return_v_init, return_offset: as for
            :func:`~cos_ext.functional.cos_forward`; rho 0 is no calibration.
        emission: "calibrated", "even" or "front" as there; front sends as many levels as a step
            takes. "block" plans again in every rho steps: each block sends, evenly, what its own
            input and what was left before ask for.
        return_count: return the levels sent up or down, ``[*neurons]``, int32: of a ladder, the
            rungs.

    "calibrated" needs upper 1, no bounds of the count, and lower > 0 where strict is False; "block"
    needs no bounds, and has no v_init and no offset_spikes.

    Returns:
        COSResult(spikes, v, spike_count, v_init, offset_spikes, None).

    In float16 and bfloat16, what is sent is rounded, and a reset takes off what was sent. With
    ``emitted`` or prediction it takes off θ q.

    Where a gradient is needed, each level is a step of the surrogate, in plain torch, step by step.
    A ladder, and calibration, have none.

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`~cos_ext.functional.cos_forward`;
            ValueError also for settings of the neuron that do not go together with each other, with
            T or with rho.

    Example:
        >>> x_seq = torch.rand(2, 3, 5)
        >>> sent = neuron_forward(x_seq, 0.25, neuron=Neuron(levels=(0, 4))).spikes
    """
    if not isinstance(neuron, Neuron):
        raise TypeError(f"neuron must be a cos_ext.Neuron, got {type(neuron).__name__}")
    return neuron_pass(
        (x_seq, v_threshold, v_init),
        neuron,
        (neuron.emitted, neuron.step_bias),
        v_reset,
        (rho, iterations, emission),
        inplace,
        (return_v, return_count, return_v_init, return_offset),
        (scale, bias, residual),
        (surrogate, detach_reset),
        check_values,
    )


def neuron_pass(
    simulated: tuple[Tensor, float | Tensor, float | Tensor | None],
    neuron: Neuron,
    tensors: tuple[float | Tensor | None, Tensor | None],
    v_reset: float | None,
    calibration: tuple[int, int | None, str],
    inplace: bool,
    wanted: tuple[bool, bool, bool, bool],
    fused: Fused,
    learning: tuple[Callable[[Tensor], Tensor] | None, bool],
    check: Check | None,
) -> COSResult:
    """neuron_forward, as a node runs it, too.

    ``tensors`` are emitted and step_bias, instead of the neuron's own; ``wanted`` the results: v,
    the count, v_init, ψ; ``check`` as for :func:`~cos_ext._functional.arguments.prepared`.
    """
    x_seq, (rho, iterations, emission) = simulated[0], calibration
    reset = None if v_reset is None else check_number("v_reset", v_reset)
    rounds = _check_watching(x_seq, neuron, reset, rho, iterations, emission)
    _check_results(emission, wanted[0], wanted[2] or wanted[3])
    extra = _extra(x_seq, neuron, *tensors)
    if not rho and differentiates((*simulated, *extra[:2], *fused)):
        through = check_surrogate(learning[0]), learning[1]
        return _gradient(
            (*simulated, reset), neuron, extra, fused, through, (inplace, *wanted[:2]), check
        )
    given = prepared(*simulated, inplace, check)
    check_fused(x_seq, *fused, None, inplace, False)
    _check_extra(x_seq, extra, inplace)
    asked = (*wanted[:2], wanted[2] and rho > 0, wanted[3] and rho > 0)
    order = GENERAL_EMISSIONS.index(emission) if rho else 0
    own = (*as_operands(neuron), *extra)
    options = (reset, *own, rho, rounds, order, *asked, *fused)
    if not inplace:
        return COSResult(*_ops.ops.general_forward.default(*given, *options))
    results = _ops.ops.general_forward_.default(*given, *options)
    mark_written(x_seq)
    return COSResult(x_seq, *results)


def as_operands(neuron: Neuron) -> tuple[Any, ...]:
    """The numbers of a neuron as the operator's schema orders them."""
    fewest, most = neuron.count
    return (
        *neuron.levels,
        -math.inf if fewest is None else float(fewest),
        math.inf if most is None else float(most),
        neuron.upper,
        math.inf if neuron.lower is None else neuron.lower,
        neuron.strict,
        neuron.leak,
        neuron.silent,
        neuron.prediction,
        neuron.ladder or 0,
        neuron.ratio,
        neuron.gated,
    )


def _extra(
    x_seq: Tensor, neuron: Neuron, emitted: float | Tensor | None, step_bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """emitted, b ``[T, ...]`` and the scales ``[T]`` as the operator takes them."""
    if not isinstance(x_seq, Tensor) or x_seq.dim() == 0:
        return None, None, None  # prepared() refuses it
    steps, neurons, state = x_seq.shape[0], x_seq.shape[1:], state_dtype(x_seq.dtype)
    scales = None
    if isinstance(emitted, Tensor):
        check_parameter("emitted", emitted, x_seq)
    elif emitted is not None:
        emitted = x_seq.new_full((), emitted, dtype=state)
    if step_bias is not None:
        if step_bias.shape[0] != steps:
            raise ValueError(
                f"step_bias must have a value for each of the {steps} steps, got shape "
                f"{tuple(step_bias.shape)}"
            )
        own = step_bias.shape[1:]
        step_bias = step_bias.reshape(steps, *own, *[1] * (len(neurons) - 2 if own else 0))
        check_parameter("step_bias", step_bias[0], x_seq)
    if neuron.step_scale is not None:
        if len(neuron.step_scale) != steps:
            raise ValueError(
                f"step_scale must have a number for each of the {steps} steps, got "
                f"{len(neuron.step_scale)}"
            )
        scales = torch.tensor(neuron.step_scale, dtype=torch.float64, device=x_seq.device)
    return emitted, step_bias, scales


def _check_watching(
    x_seq: Tensor,
    neuron: Neuron,
    v_reset: float | None,
    rho: int,
    iterations: int | None,
    emission: str,
) -> int:
    """Validate what must fit together; the iterations as the operator takes them."""
    check_choice("emission", emission, GENERAL_EMISSIONS)
    if isinstance(x_seq, Tensor) and x_seq.dim():
        _check_levels(neuron, "steps", x_seq.shape[0])
    if neuron.prediction and v_reset is not None:
        raise ValueError("prediction needs soft reset, got a v_reset")
    if rho == 0:
        if emission != "calibrated":
            raise ValueError(f"emission {emission!r} needs rho >= 1, got 0")
        return 0
    rounds = check_calibration(rho, iterations)
    check_watch("rho", rho, x_seq)
    if reason := uncalibrated(neuron, v_reset, emission):
        raise ValueError(f"rho must be 0 with {reason}, got {rho}")
    return rounds


def _check_results(emission: str, return_v: bool, return_start: bool) -> None:
    """Validate that what is asked for is there."""
    if emission != "calibrated" and return_v:
        raise ValueError(
            f"return_v must be False with emission {emission!r}: only calibrated neurons have a "
            "potential"
        )
    if emission == "block" and return_start:
        raise ValueError(
            "return_v_init and return_offset must be False with emission 'block': it plans again "
            "in every rho steps"
        )


def _check_levels(neuron: Neuron, name: str, steps: int) -> None:
    """Validate that counts stay exact in float32."""
    if max(-neuron.levels[0], neuron.levels[1]) * steps > MAX_STEPS:
        raise ValueError(
            f"levels times {name} must be at most {MAX_STEPS}, got {neuron.levels} and {steps}"
        )


def _check_extra(
    x_seq: Tensor, extra: tuple[Tensor | None, Tensor | None, Tensor | None], inplace: bool
) -> None:
    """Validate what the neuron brings with it, as other operands are."""
    emitted, step_bias, _ = extra
    check_no_gradient(emitted, step_bias)
    for name, tensor in (("emitted", emitted), ("step_bias", step_bias)):
        if inplace and tensor is not None:
            check_apart(name, tensor, x_seq)


def uncalibrated(neuron: Neuron, v_reset: float | None, emission: str) -> str:
    """Why neurons cannot be calibrated, or nothing."""
    reasons = {
        "hard reset": v_reset is not None,
        "a ladder": neuron.ladder is not None,
        "prediction": neuron.prediction,
        "a leak": neuron.leak != 1,
        "silent steps": neuron.silent > 0,
        "step_scale": neuron.step_scale is not None,
        "emission 'calibrated' and an upper other than 1": emission == "calibrated"
        and neuron.upper != 1,
        # At a tie one shift by θ would move a neuron from 1 level to -1.
        "emission 'calibrated', lower 0 and strict False": emission == "calibrated"
        and neuron.lower == 0
        and not neuron.strict,
        f"emission {emission!r} and a bounded count": emission in ("calibrated", "block")
        and neuron.count != (None, None),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _gradient(
    simulated: tuple[Tensor, float | Tensor, float | Tensor | None, float | None],
    neuron: Neuron,
    extra: tuple[Tensor | None, Tensor | None, Tensor | None],
    fused: Fused,
    through: tuple[Callable[[Tensor], Tensor], bool],
    asked: tuple[bool, bool, bool],
    check: Check | None,
) -> COSResult:
    """The steps in plain torch, with a gradient."""
    x_seq, v_threshold, v_init, v_reset = simulated
    inplace, return_v, return_count = asked
    if inplace:
        raise RuntimeError("a gradient is needed, which needs x_seq: inplace must be False")
    if neuron.ladder is not None:
        raise RuntimeError("a ladder has no gradient: an input requires one and grad mode is on")
    if neuron.levels[1] - neuron.levels[0] > MOST_LEARNT:
        raise RuntimeError(
            f"more than {MOST_LEARNT} levels have no gradient, got {neuron.levels}: an input "
            "requires one and grad mode is on"
        )
    with torch.no_grad():
        prepared(x_seq, v_threshold, v_init, False, check)
        check_fused(x_seq, *fused, None, False, False)
    current = composed(x_seq, *fused)
    spikes, v, count = loop(current, v_threshold, v_init, v_reset, neuron, extra, through)
    return COSResult(spikes, v if return_v else None, count if return_count else None, None, None)


def loop(
    x_seq: Tensor,
    v_threshold: float | Tensor,
    v_init: float | Tensor | None,
    v_reset: float | None,
    neuron: Neuron,
    extra: tuple[Tensor | None, Tensor | None, Tensor | None],
    through: tuple[Callable[[Tensor], Tensor], bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Levels step by step in plain torch: what is sent, v(T), and the levels up or down."""
    surrogate, detach_reset = through
    emitted, step_bias, scales = extra
    state = state_dtype(x_seq.dtype)
    own = torch.as_tensor(v_threshold, dtype=state, device=x_seq.device)
    v = own / 2 if v_init is None else torch.as_tensor(v_init, dtype=state, device=x_seq.device)
    v = v.expand(x_seq.shape[1:])
    n, mean = torch.zeros_like(v), torch.zeros_like(v)
    count = torch.zeros_like(v, dtype=torch.int32)
    sent_at = []
    for t, x in enumerate(x_seq):
        theta = own if scales is None else own * scales[t].to(state)
        m = neuron.leak * v + x.to(state)
        m = m if step_bias is None else m + step_bias[t].to(state)
        if t < neuron.silent:
            v = m
            sent_at.append(torch.zeros_like(x))
            continue
        d = m - mean if neuron.prediction else m
        q = _levels(neuron, d, theta, n, surrogate)
        taken = q * theta
        sent = taken if emitted is None else q * emitted.to(state)
        if not neuron.prediction and emitted is None:
            taken = taken + (taken.to(x.dtype).to(state) - taken).detach()
        value = mean + sent if neuron.prediction else sent
        sent_at.append(value.to(x.dtype))
        left = d - (taken.detach() if detach_reset else taken)
        v = left if v_reset is None else torch.where(q.detach() != 0, v_reset, left)
        n = n + q.detach()
        mean = mean + sent / (t + 1) if neuron.prediction else mean
        count += q.detach().abs().to(torch.int32)
    return torch.stack(sent_at), v, count


def _levels(
    neuron: Neuron, d: Tensor, theta: Tensor, n: Tensor, surrogate: Callable[[Tensor], Tensor]
) -> Tensor:
    """q, each of whose levels is a step of the surrogate."""
    q = torch.zeros_like(d)
    low, high = neuron.levels
    fewest, most = neuron.count
    up = neuron.upper * theta
    for k in range(high):
        bound = up + k * theta
        q = q + _step(surrogate, (d - bound) / theta, d >= bound)
    for k in range(-low):
        bound = -(neuron.lower * theta + k * theta)  # type: ignore[operator]
        below = d < bound if neuron.strict else d <= bound
        q = q - _step(surrogate, (bound - d) / theta, below)
    # Not by minimum and maximum, whose gradient is halved where both are equal.
    if fewest is not None:
        q = torch.where(q < fewest - n, fewest - n, q)
    if most is not None:
        q = torch.where(q > most - n, most - n, q)
    return q


def _step(surrogate: Callable[[Tensor], Tensor], u: Tensor, reached: Tensor) -> Tensor:
    """Whether a bound is reached, as a number with the surrogate's gradient."""
    s = surrogate(u).to(u.dtype)
    return s + (reached.to(s.dtype) - s).detach()
