"""The sums of what general neurons did, those that csrc/core/statistics.h has for one level.

They are computed in plain torch, from a second pass over the steps watched. How sums are read is in
analysis/statistics.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._functional.currents import composed
from .._functional.general import neuron_pass, uncalibrated
from ..general import Neuron
from .settings import Settings, watch_steps

USUAL = Neuron()
# csrc/core/statistics.h
CLIPPED, CLIPPING_UNITS, QUANTISATION_UNITS = 4096, 2**20, 2**24
MOST_OFFSETS = 2**16  # elements of a histogram


def span(settings: Settings) -> int | None:
    """s_max - s_min, the most that ψ is of a step; None where ψ is not defined."""
    neuron = settings["neuron"] or USUAL
    if uncalibrated(neuron, settings["v_reset"], "front"):
        return None
    return neuron.levels[1] - neuron.levels[0]


@torch.no_grad()
def watched_sums(
    x_seq: Tensor,
    theta: Tensor,
    v_init: Tensor,
    settings: Settings,
    tensors: tuple[float | Tensor | None, Tensor | None],
    before: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor]:
    """Of the first rho steps, or of all where none are watched: how many neurons have each ψ, and
    the sums of clipping, quantisation and unbounded neurons. All int64. ``tensors`` are emitted and
    step_bias.

    Where ψ is not defined, the number of neurons and zeros.

    Raises:
        ValueError: ψ can have more than 2^16 values.
    """
    wide, rho = span(settings), watch_steps(settings) or len(x_seq)
    if wide is None:
        neurons = torch.tensor([x_seq[0].numel()], device=x_seq.device)
        return neurons, neurons.new_zeros(3)
    if 2 * wide * rho + 1 > MOST_OFFSETS:
        raise ValueError(
            f"statistics need at most {MOST_OFFSETS} values of ψ, levels of all steps, got {wide} "
            f"levels and rho = {rho}; set rho to fewer steps"
        )
    x, (scale, bias, residual) = x_seq[:rho], before
    residual = None if residual is None else residual[:rho]
    rows = None if tensors[1] is None else tensors[1][:rho]
    neuron = settings["neuron"] or USUAL
    value = None if tensors[0] is None else 1.0  # any value of a level, by which they are counted
    desired, psi = _counts(x, theta, v_init, neuron, (value, rows), (scale, bias, residual))
    u = _input(composed(x, scale, bias, residual), rows) / theta.double()
    fewest, most = _bounds(neuron, rho)
    bounded = u - most <= CLIPPED  # not so NaN
    clipped = torch.where(bounded, u - most, 0).clamp(min=0)
    quantised = torch.where(bounded, (u.clamp(fewest, most) - desired).abs(), 0)
    sums = (
        (clipped * CLIPPING_UNITS).long().sum(),
        (quantised * QUANTISATION_UNITS).long().sum(),
        (~bounded).sum(),
    )
    return torch.bincount(psi + wide * rho, minlength=2 * wide * rho + 1), torch.stack(sums)


def all_sums(watched: tuple[Tensor, Tensor], count: Tensor, steps: int, neuron: Neuron) -> Tensor:
    """The row of sums, with what was sent in all: ``count`` of levels by neuron."""
    most = 1 if neuron.ladder else max(-neuron.levels[0], neuron.levels[1])
    sent = (count.sum(), (count == 0).sum(), (count == most * steps).sum())
    histogram, errors = watched
    return torch.cat([histogram, torch.stack(sent), errors])


def _counts(
    x: Tensor,
    theta: Tensor,
    v_init: Tensor,
    neuron: Neuron,
    tensors: tuple[float | None, Tensor | None],
    before: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor]:
    """C* and ψ by neuron: emission "front" sends C* in rho steps."""
    result = neuron_pass(
        (x, theta, v_init),
        neuron,
        tensors,
        None,
        (len(x), 0, "front"),
        False,
        (False, False, False, True),
        before,
        (None, False),
        None,
    )
    assert result.offset_spikes is not None
    sent = result.spikes.double()
    levels = sent.round() if tensors[0] is not None else (sent / theta.double()).round()
    return levels.sum(0), result.offset_spikes.flatten().long()


def _input(current: Tensor, step_bias: Tensor | None) -> Tensor:
    """Σ x(t) + b(t), in float64, step by step: the same for any batch."""
    total = torch.zeros(current.shape[1:], dtype=torch.float64, device=current.device)
    for t, x in enumerate(current):
        total += x
        if step_bias is not None:
            b = step_bias[t].double()
            total += b.reshape(b.shape + (1,) * (x.dim() - 2)) if b.dim() else b
    return total


def _bounds(neuron: Neuron, rho: int) -> tuple[int, int]:
    """The fewest and the most levels of rho steps."""
    fewest, most = neuron.count
    low, high = rho * neuron.levels[0], rho * neuron.levels[1]
    return low if fewest is None else max(fewest, low), high if most is None else min(most, high)
