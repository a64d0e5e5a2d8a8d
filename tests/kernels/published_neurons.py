"""Neurons as their papers, or the authors' code, state them: in NumPy, float64, one step at a time.

Each is written from its equations, in its own form, and knows nothing of cos_ext. That the general
neuron is all of them: test_published_neurons.py. No tests here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def zeros(x: Array) -> Array:
    """A state of the neurons of x [T, ...]."""
    return np.zeros(x.shape[1:])


def group(x: Array, theta: float, members: int) -> Array:
    """Group neurons: members with thresholds θ/m, 2θ/m, ..., each with its own copy of v."""
    one = theta / members
    v = np.full((members, *x.shape[1:]), one / 2)
    thresholds = (np.arange(1, members + 1) * one).reshape(-1, *[1] * (x.ndim - 1))
    sent = []
    for now in x:
        v = v + now
        fired = (v - thresholds >= 0).sum(0)
        v = v - fired * one
        sent.append(fired * one)
    return np.stack(sent)


def lm_ht(x: Array, theta: float, levels: int, leak: float, start: float) -> Array:
    """LM-HT's multi-threshold LIF neuron; x has been mixed over time already."""
    v, sent = zeros(x) + start, []
    for now in x:
        v = leak * v + now
        level = sum((v >= k * theta).astype(float) for k in range(1, levels + 1))
        v = v - level * theta
        sent.append(level * theta)
    return np.stack(sent)


def ada_fire(x: Array, theta: float, most: int) -> Array:
    """AdaFire: v(0) = 0, and half a threshold spread over the steps."""
    v, sent = zeros(x), []
    for now in x:
        v = v + now + 0.5 * theta / len(x)
        level = np.clip(np.floor(v / theta), 0, most)
        v = v - level * theta
        sent.append(level * theta)
    return np.stack(sent)


def st_bif(x: Array, theta: float, fewest: int, most: int) -> Array:
    """ST-BIF: a ternary neuron with a tracer of what has been sent, within bounds."""
    q, tracer, sent = zeros(x) + 0.5, zeros(x), []
    for now in x:
        q = q + now / theta
        up, down = (q - 1 >= 0) & (tracer < most), (q < 0) & (tracer > fewest)
        spike = up * 1.0 - down * 1.0
        tracer, q = tracer + spike, q - spike
        sent.append(spike * theta)
    return np.stack(sent)


def if_with_neg(x: Array, theta: float) -> Array:
    """IF_with_neg: down at m <= 0, where at least one threshold has been sent."""
    v, total, sent = zeros(x) + 0.5 * theta, zeros(x), []
    for now in x:
        v = v + now
        spike = (v - theta >= 0) * theta - (-v >= 0) * ((total - theta) >= -1e-9) * theta
        total, v = total + spike, v - spike
        sent.append(spike)
    return np.stack(sent)


def signed_with_memory(x: Array, theta: float, most: int) -> Array:
    """The signed IF neuron with memory: down at m <= -θ, after spikes only."""
    v, memory, sent = zeros(x) + 0.5, zeros(x), []
    for now in x:
        v = v + now / theta
        spike = ((v - 1 >= 0) & (memory < most)) * 1.0 - ((-1 - v >= 0) & (memory >= 1)) * 1.0
        memory, v = memory + spike, v - spike
        sent.append(spike * theta)
    return np.stack(sent)


def multi_threshold(x: Array, theta: float, rungs: int, gated: bool) -> Array:
    """The MT neuron: each threshold's spike less those of the larger ones."""
    ladder = (theta / 2.0 ** np.arange(rungs)).reshape(-1, *[1] * (x.ndim - 1))
    v, total, sent = zeros(x), zeros(x), []
    for now in x:
        v = v + now
        spike = _rungs(v, ladder, total if gated else None)
        v, total = v - spike, total + spike
        sent.append(spike)
    return np.stack(sent)


def differential(x: Array, bias: Array, theta: float, rungs: int, gated: bool) -> Array:
    """The MT neuron under differential coding: x are differences, with the bias current."""
    ladder = (theta / 2.0 ** np.arange(rungs)).reshape(-1, *[1] * (x.ndim - 1))
    v, expected_in, expected_out = zeros(x), bias.copy(), zeros(x)
    total, sent = zeros(x), []
    for t, now in enumerate(x):
        v = v + now - bias + expected_in - expected_out
        total = total + expected_out
        spike = _rungs(v, ladder, total if gated else None)
        v, total = v - spike, total + spike
        expected_in = expected_in + (now - bias) / (t + 1)
        expected_out = expected_out + spike / (t + 1)
        sent.append(spike)
    return np.stack(sent)


def _rungs(v: Array, ladder: Array, memory: Array | None) -> Array:
    up, down = (v >= 0.75 * ladder) * 1.0, (v <= -0.75 * ladder) * 1.0
    if memory is not None:
        down = down * (memory >= ladder)
    plus, minus = up.copy(), down.copy()
    plus[1:] -= up[:-1]
    minus[1:] -= down[:-1]
    return (ladder * plus).sum(0) - (ladder * minus).sum(0)


def parallel(x: Array, before: float, after: float, bias: float) -> Array:
    """The parallel neuron: T steps from the mean current, with a threshold and an emitted value."""
    steps = len(x)
    t = np.arange(1, steps + 1).reshape(-1, *[1] * (x.ndim - 1))
    return ((steps / t * x.mean(0) + bias / t) >= before) * after


def basal(x: Array, theta: float, rungs: int) -> Array:
    """The basal neuron of H-MT: a cascade of thresholds, each taken off before the next."""
    ladder, sent = [theta / 2**i for i in range(rungs)], []
    v = zeros(x) + ladder[-1] / 2
    for now in x:
        v, spike = _cascade(v + now, ladder)
        sent.append(spike)
    return np.stack(sent)


def pair(x: Array, theta: float, rungs: int) -> Array:
    """H-MT's positive and negative neuron, which tell each other what they sent."""
    ladder, sent = [theta / 2**i for i in range(rungs)], []
    up = zeros(x) + ladder[-1] / 2
    down = up.copy()
    for now in x:
        up, plus = _cascade(up + now, ladder)
        down, minus = _cascade(down - now, ladder)
        up, down = up + minus, down + plus
        sent.append(plus - minus)
    return np.stack(sent)


def _cascade(m: Array, ladder: list[float]) -> tuple[Array, Array]:
    spike = np.zeros_like(m)
    for rung in ladder:
        fired = m >= rung
        spike, m = spike + fired * rung, m - fired * rung
    return m, spike


def gif(x: Array, levels: int, steps: int) -> Array:
    """SpikeLLM's GIF neuron on a quantised activation, sent in so many steps."""
    memory, sent = x.copy(), []
    for _ in range(steps):
        spike = np.where(memory >= levels, levels - 1, memory)
        sent.append(spike)
        memory = memory - spike
    return np.stack(sent)


def ternary_lif(x: Array, theta: float, leak: float) -> Array:
    """The ternary LIF neuron, with hard reset."""
    v, sent = zeros(x), []
    for now in x:
        v = v * leak + now
        spike = np.sign(v / theta)
        spike[np.abs(v / theta) < 0.5] = 0
        v = v * (1 - np.abs(spike))
        sent.append(spike)
    return np.stack(sent)


def ddti(x: Array, inner: float, outer: float) -> Array:
    """DDTI: fires at one threshold, sends and takes off another."""
    v, sent = zeros(x), []
    for now in x:
        m = v + now
        spike = (m >= inner) * outer
        v = m - spike
        sent.append(spike)
    return np.stack(sent)


def sta(x: Array, theta: float) -> Array:
    """STA's encoder: the residual is cut off towards zero."""
    left, sent = zeros(x), []
    for now in x:
        u = left + now
        spike = np.trunc(u / theta) * theta
        left = u - spike
        sent.append(spike)
    return np.stack(sent)


def bit_planes(x: Array, weight: float, bits: int) -> Array:
    """Bits of the quantised activation of x [...], the most significant first."""
    count = np.clip(np.floor(x / weight + 0.5), 0, 2**bits - 1).astype(int)
    places = range(bits - 1, -1, -1)
    return np.stack([((count >> place) & 1) * weight * 2.0**place for place in places])


def pascal(x: Array, theta: float, steps: int, settle: int) -> Array:
    """PASCAL: the count settles first, then leaves one by one."""
    v, n = zeros(x) + theta / 2, zeros(x)
    for now in x:
        fired = (v + now >= theta) * 1.0
        v, n = v + now - fired * theta, n + fired
    for _ in range(settle):
        spike = (v >= theta) * 1.0 - (v < 0) * 1.0
        v, n = v - spike * theta, n + spike
    sent = []
    for _ in range(steps):
        spike = (n >= 1) * 1.0
        n = n - spike
        sent.append(spike * theta)
    return np.stack(sent)
