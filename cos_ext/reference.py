"""The mathematics as a plain torch loop over time: to read beside the paper, and to test against.

Slow on purpose and complete: every formula of :mod:`cos_ext.functional`, in its order of
operations. No kernels and no validation here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from .functional import Calibration, COSResult, IFResult, state_dtype
from .general import Neuron

EPSILON = 1e-3


class Watched(NamedTuple):
    """What a calibration needs of the steps it watched.

    ``levels`` is N, their sum. ``lowest`` and ``highest`` tell how near a step came to one level
    less, and to one more: see csrc/core/calibration.h.
    """

    v: Tensor
    levels: Tensor
    lowest: Tensor
    highest: Tensor


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
    spikes, count = [], torch.zeros_like(v, dtype=torch.int32)
    for t in range(x_seq.shape[0]):
        m = v + x_seq[t].to(v.dtype)
        fired = m >= theta
        v = torch.where(fired, m - theta if v_reset is None else torch.full_like(m, v_reset), m)
        spikes.append(torch.where(fired, theta, torch.zeros_like(theta)).to(x_seq.dtype))
        count = count + fired
    return IFResult(torch.stack(spikes), v, count)


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
    return _calibrated(lambda v: _watch(x_seq, theta, v, rho), theta, start, (0, rho), iterations)


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
) -> COSResult:
    """Simulates any neuron, after a calibration where rho >= 1.

    Args:
        x_seq, v_threshold, v_init, neuron, v_reset, rho, iterations, emission: as for
            :func:`cos_ext.functional.neuron_forward`.

    Returns:
        COSResult(spikes, v, spike_count, v_init, offset_spikes, None). ``v`` is None where emission
        is not "calibrated"; ``v_init`` and ``offset_spikes`` where rho is 0 or emission is "block".
    """
    theta, start = _start(x_seq, v_threshold, v_init)
    if rho == 0:
        spikes, count, watched = _levelled(x_seq, theta, start, neuron, v_reset)
        return COSResult(spikes, watched.v, count, None, None)
    if emission == "block":
        planned = _blocks(x_seq, theta, start, neuron, rho)
        return COSResult(*_valued(planned, x_seq.dtype, theta, neuron), None, None)

    def look(v: Tensor) -> Watched:
        return _levelled(x_seq[:rho], theta, v, neuron, None)[2]

    rounds = iterations if emission == "calibrated" else 0
    shifted, psi, n = _calibrated(look, theta, start, _counts(neuron, rho), rounds)
    if emission != "calibrated":
        levels = _plan(n + psi, x_seq.shape[0], rho, emission, neuron.levels)
        return COSResult(*_valued(levels, x_seq.dtype, theta, neuron), shifted, psi)
    spikes, count, watched = _levelled(x_seq, theta, shifted, neuron, None)
    return COSResult(spikes, watched.v, count, shifted, psi)


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
    levels = _plan(count + psi, x_seq.shape[0], rho, emission, (0, 1))
    return COSResult(
        (levels * theta).to(x_seq.dtype), None, levels.sum(0).to(torch.int32), start, psi
    )


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


def _watch(x_seq: Tensor, theta: Tensor, v: Tensor, rho: int) -> Watched:
    """The first rho steps with soft reset.

    A shift needs the minimum of m(t) where it fired, and the maximum of v(t) where it did not.
    """
    count = torch.zeros_like(v, dtype=torch.int32)
    lowest, highest = torch.full_like(v, torch.inf), torch.full_like(v, -torch.inf)
    for t in range(rho):
        m = v + x_seq[t].to(v.dtype)
        fired = m >= theta
        v = torch.where(fired, m - theta, m)
        lowest = torch.where(fired & (m < lowest), m, lowest)
        highest = torch.where(~fired & (v > highest), v, highest)
        count = count + fired
    return Watched(v, count, lowest, highest)


def _calibrated(
    look: Callable[[Tensor], Watched],
    theta: Tensor,
    start: Tensor,
    ends: tuple[int, int],
    iterations: int | None,
) -> Calibration:
    """The shifted v(0), ψ and N, of neurons whose count may end at ends[0]..ends[1]."""
    watched = look(start)
    count = watched.levels
    psi = _offset(watched.v, theta, count, ends)
    v = start
    for k in range(ends[1] - ends[0] if iterations is None else iterations):
        # An exported program has every round: none is left out for what the values are.
        if not torch.compiler.is_exporting() and not (psi.abs() > k).any():
            break
        if k > 0:
            watched = look(v)
        less = v - torch.maximum(theta, watched.lowest - theta * (1 - EPSILON))
        more = v + torch.maximum(theta, theta * (1 + EPSILON) - watched.highest)
        v = torch.where(
            (psi < -k) & (watched.lowest < torch.inf),
            less,
            torch.where((psi > k) & (watched.highest > -torch.inf), more, v),
        )
    return Calibration(v, psi, count)


def _offset(residual: Tensor, theta: Tensor, count: Tensor, ends: tuple[int, int]) -> Tensor:
    """ψ = clip(floor(r/θ), ends - N), int32; 0 where r is NaN."""
    quotient = _exact_floor(residual.double(), theta.double())
    quotient = torch.where(torch.isnan(quotient), 0.0, quotient)
    low, high = ((end - count).double() for end in ends)
    return torch.minimum(torch.maximum(quotient, low), high).to(torch.int32)


def _exact_floor(r: Tensor, theta: Tensor) -> Tensor:
    """floor(r/θ) in float64, where a division may round up to the next integer."""
    quotient = torch.floor(r / theta)
    if torch.compiler.is_exporting():
        return (
            quotient  # of float32 numbers: no float64 quotient below 2^28 rounds up to an integer
        )
    near = torch.isfinite(quotient) & (quotient * theta >= r)
    for at in near.nonzero().tolist():
        place = tuple(at)
        q, one, whole = (Fraction(each[place].item()) for each in (quotient, theta, r))
        if q * one > whole:
            quotient[place] -= 1
    return quotient


def _plan(desired: Tensor, steps: int, rho: int, emission: str, levels: tuple[int, int]) -> Tensor:
    """C* levels in every rho steps, spread evenly or first, ``[steps, *neurons]``."""
    t = torch.arange(1, steps + 1, device=desired.device).view(-1, *[1] * desired.dim())
    desired = desired.long()
    if emission == "even":

        def by(t: Tensor) -> Tensor:
            return (2 * desired * t + rho) // (2 * rho)

        return by(t) - by(t - 1)
    left = (t - 1) % rho  # steps of this round before t

    def sent(steps: Tensor) -> Tensor:
        low, high = levels
        return torch.minimum(torch.maximum(desired, low * steps), high * steps)

    return sent(left + 1) - sent(left)


def _blocks(x_seq: Tensor, theta: Tensor, v: Tensor, neuron: Neuron, rho: int) -> Tensor:
    """Levels planned again in every rho steps, from what was left before."""
    planned = []
    biases = None if neuron.step_bias is None else neuron.step_bias.split(rho)
    for i, block in enumerate(x_seq.split(rho)):
        steps = block.shape[0]
        own = neuron if biases is None else replace(neuron, step_bias=biases[i])
        watched = _levelled(block, theta, v, own, None)[2]
        psi = _offset(watched.v, theta, watched.levels, _counts(neuron, steps))
        v = watched.v - psi * theta
        planned.append(_plan(watched.levels + psi, steps, steps, "even", neuron.levels))
    return torch.cat(planned)


def _counts(neuron: Neuron, steps: int) -> tuple[int, int]:
    """The fewest and the most levels that a neuron can send in so many steps."""
    (low, high), (fewest, most) = neuron.levels, neuron.count
    low, high = low * steps, high * steps
    return (
        low if fewest is None else max(fewest, low),
        high if most is None else min(most, high),
    )


def _valued(
    levels: Tensor, dtype: torch.dtype, theta: Tensor, neuron: Neuron
) -> tuple[Tensor, None, Tensor]:
    """Planned levels as spikes, no potential, and how many levels went up or down."""
    one = theta if neuron.emitted is None else torch.as_tensor(neuron.emitted, dtype=theta.dtype)
    return (levels * one).to(dtype), None, levels.abs().sum(0).to(torch.int32)


def _levelled(
    x_seq: Tensor, theta: Tensor, v: Tensor, neuron: Neuron, v_reset: float | None
) -> tuple[Tensor, Tensor, Watched]:
    """All steps of any neuron: what is sent, the levels up or down, and what a watch leaves."""
    state, own = v.dtype, neuron.emitted is not None
    n, mean, total = (torch.zeros_like(v) for _ in range(3))
    count = torch.zeros_like(v, dtype=torch.int32)
    lowest, highest = torch.full_like(v, torch.inf), torch.full_like(v, -torch.inf)
    sent = []
    for t in range(x_seq.shape[0]):
        scale = 1.0 if neuron.step_scale is None else neuron.step_scale[t]
        now = theta * torch.tensor(scale, dtype=state)
        m = neuron.leak * v + x_seq[t].to(state) + _step_bias(neuron, t, v)
        if t < neuron.silent:
            v = m
            sent.append(torch.zeros_like(x_seq[t]))
            continue
        d = m - mean if neuron.prediction else m
        if neuron.ladder is None:
            q = _quantised(neuron, d, now, n)
            taken = q * now
        else:
            before = total + mean if neuron.prediction else n
            q = taken = _rung(neuron, d, now, before)
        value = q * torch.as_tensor(neuron.emitted, dtype=state) if own else taken
        if not own and not neuron.prediction:
            taken = taken.to(x_seq.dtype).to(state)  # a reset takes off what was sent
        left = d - taken
        v = left if v_reset is None else torch.where(q != 0, v_reset, left)
        n = n + q
        count = count + (q.abs() if neuron.ladder is None else q != 0).to(torch.int32)
        if neuron.prediction:
            total = total + mean + value
            value, mean = mean + value, mean + value / (t + 1)
        sent.append(value.to(x_seq.dtype))
        low, high = _slack(neuron, m, q, now)
        lowest = torch.where(low < lowest, low, lowest)
        highest = torch.where(high > highest, high, highest)
    return torch.stack(sent), count, Watched(v, n.to(torch.int32), lowest, highest)


def _step_bias(neuron: Neuron, t: int, v: Tensor) -> Tensor:
    """b(t) of neurons ``[B, C, ...]``, in the state dtype."""
    if neuron.step_bias is None:
        return torch.zeros((), dtype=v.dtype)
    now = neuron.step_bias[t].to(v.dtype)
    return now.view(-1, *[1] * (v.dim() - 2)) if now.dim() else now


def _quantised(neuron: Neuron, d: Tensor, theta: Tensor, n: Tensor) -> Tensor:
    """How many levels are sent in a step."""
    (low, high), (fewest, most) = neuron.levels, neuron.count
    q = _reached(d, neuron.upper * theta, theta, high, beyond=False)
    if neuron.lower is not None:
        down = _reached(-d, neuron.lower * theta, theta, -low, beyond=neuron.strict)
        q = torch.where(q > 0, q, -down)
    q = torch.maximum(q, torch.clamp((-math.inf if fewest is None else fewest) - n, min=low))
    return torch.minimum(q, torch.clamp((math.inf if most is None else most) - n, max=high))


def _reached(m: Tensor, first: Tensor, theta: Tensor, most: int, *, beyond: bool) -> Tensor:
    """The largest k in 1..most with m >= first + (k-1) θ, or >; 0 where there is none."""
    k = torch.zeros_like(m)
    for size in (2**bit for bit in reversed(range(most.bit_length()))):
        bound = first + (k + (size - 1)) * theta
        fits = (m > bound if beyond else m >= bound) & (k + size <= most)
        k = torch.where(fits, k + size, k)
    return k


def _rung(neuron: Neuron, d: Tensor, theta: Tensor, sent: Tensor) -> Tensor:
    """The largest rung that d reaches, with its sign; gated, a negative one only up to ``sent``."""
    found = torch.zeros_like(d)
    for i in reversed(range(neuron.ladder or 0)):
        rung = theta * 2.0**-i
        takes = d.abs() >= neuron.ratio * rung
        if neuron.gated:
            takes = takes & ((d >= 0) | (sent >= rung))
        found = torch.where(takes, rung, found)
    return torch.where(d < 0, -found, found)


def _slack(neuron: Neuron, m: Tensor, q: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """What decides of one level less and of one more; infinite where a step can send none."""
    low, high = neuron.levels
    down = math.inf if neuron.lower is None else neuron.lower * theta
    above, within = m - (q - 1) * theta, m - q * theta
    lowest = torch.where(q > 0, above, above + down)
    highest = torch.where(q < 0, within + down, within)
    return (
        torch.where(q > low, lowest, torch.inf),
        torch.where(q < high, highest, -torch.inf),
    )
