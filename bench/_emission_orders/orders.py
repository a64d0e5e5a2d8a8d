"""The orders: when a neuron emits its spikes, in plain torch. `ORDERS` has them by name.

Each one's docstring is what `emission_orders.py --list` says of it. Networks do not belong here,
and nothing for production.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cos_ext import functional as F

# An order: (x_seq [S, B, *neurons], θ, v(0), rho) -> who fires, bool [S, B, *neurons]. θ, v(0)
# broadcast to [*neurons].
Order = Callable[[Tensor, Tensor, Tensor, int], Tensor]
ORDERS: dict[str, Order] = {}
LEVELS = 8  # of the shipped checkpoint


def order(name: str) -> Callable[[Order], Order]:
    def enter(function: Order) -> Order:
        ORDERS[name] = function
        return function

    return enter


def made(name: str, says: str, function: Order) -> None:
    """Enters an order that has no docstring of its own."""
    function.__doc__ = says
    ORDERS[name] = function


def desired(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
    """C* over the first rho steps, [B, *neurons], int32: N + ψ, as the kernels have it."""
    result = F.calibrate_v_init(x_seq[:rho], theta, v_init, rho=rho, iterations=0)
    return result.spike_count + result.offset_spikes


def spread(rate: Tensor, phase: Tensor | float, steps: int) -> Tensor:
    """n(t) = floor(rate t + phase), s(t) = n(t) - n(t-1) for t = 1..steps, bool [steps, ...]; 0 <=
    rate <= 1.
    """
    time = torch.arange(steps + 1, dtype=rate.dtype).view(-1, *[1] * rate.dim())
    return (rate * time + phase).floor().diff(dim=0) > 0


def by_phase(
    x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int, phase: Tensor | float
) -> Tensor:
    return spread(desired(x_seq, theta, v_init, rho) / rho, phase, len(x_seq))


# Phases by neuron. They are steps of 1/4096, so that sums are exact.


def positions(x_seq: Tensor) -> Tensor:
    """The neurons of a sample numbered in logical order, [*neurons]."""
    shape = x_seq.shape[2:]
    return torch.arange(math.prod(shape)).view(shape)


def golden(x_seq: Tensor) -> Tensor:
    """A low-discrepancy phase by neuron, i / golden ratio modulo 1."""
    ratio = positions(x_seq).double() * 0.6180339887498949
    return ratio.frac().mul(4096).floor().div(4096).float()


def hashed(x_seq: Tensor) -> Tensor:
    """A pseudo-random phase by neuron (xorshift-multiply of its number)."""
    number = positions(x_seq) + 1
    for _ in range(2):
        number = ((number ^ (number >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return ((number ^ (number >> 16)) & 4095) / 4096


# Exact over rho, and the same again in the next rho steps


def _at_phase(phase: float) -> Order:
    def emit(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
        return by_phase(x_seq, theta, v_init, rho, phase)

    return emit


for _name, _phase in (
    ("floor", 0.0),
    ("phase 1/4", 0.25),
    ("even", 0.5),
    ("phase 3/4", 0.75),
    ("ceil", 1 - 2.0**-12),
):
    _says = f"n(t) = floor(C* t/rho + {_phase:.4g}); s(1) = [C* >= {1 - _phase:.4g} rho]"
    made(_name, _says, _at_phase(_phase))


@order("golden")
def _golden(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
    """n(t) = floor(C* t/rho + phase), the phase by neuron: its number / golden ratio, modulo 1"""
    return by_phase(x_seq, theta, v_init, rho, golden(x_seq))


@order("golden by channel")
def _golden_channel(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
    """the same, the phase by channel"""
    channels = torch.arange(x_seq.shape[2]).view(-1, *[1] * (x_seq.dim() - 3))
    phase = (channels * 0.6180339887498949).frac().mul(4096).floor() / 4096
    return by_phase(x_seq, theta, v_init, rho, phase)


@order("hashed")
def _hashed(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
    """the same, the phase pseudo-random by neuron"""
    return by_phase(x_seq, theta, v_init, rho, hashed(x_seq))


@order("remainder")
def _remainder(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
    """the same, the phase what C* leaves of the charge: (Σx + v(0))/θ modulo 1"""
    left = ((x_seq[:rho].sum(0) + v_init) / theta).frac()
    left = torch.where(left < 0, left + 1, left).mul(4096).floor().clamp(0, 4095) / 4096
    return by_phase(x_seq, theta, v_init, rho, left)


@order("front")
def _front(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
    """the C* spikes first, in every rho steps"""
    period = torch.arange(len(x_seq)).remainder(rho).view(-1, *[1] * (x_seq.dim() - 1))
    return period < desired(x_seq, theta, v_init, rho)


@order("mean")
def _mean(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
    """an IF neuron at the constant current mean(x(1..rho)) from v(0): n(t) = floor(r t + v(0)/θ), r
    not rounded
    """
    return spread((x_seq[:rho].mean(0) / theta).clamp(0, 1), v_init / theta, len(x_seq))


@order("mean, L levels")
def _mean_levels(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
    """the same with r rounded to the ANN's L levels; not exact over rho"""
    rate = x_seq[:rho].mean(0) / theta
    return spread((rate * LEVELS + v_init / theta).floor().div(LEVELS).clamp(0, 1), 0.5, len(x_seq))


# What listens on after rho steps


def _carry(x_seq: Tensor, theta: Tensor, v: Tensor, count: Tensor) -> Tensor:
    """The potential after the inputs x_seq and `count` spikes: nothing is lost."""
    return v + x_seq.sum(0) - theta * count


def _then_running(keep: bool = True) -> Order:
    def emit(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
        first = F.cos_forward(
            x_seq[:rho], theta, v_init, rho=rho, emission="even", return_count=True
        )
        if len(x_seq) == rho:
            return first.spikes > 0
        v = _carry(x_seq[:rho], theta, v_init, first.spike_count)
        if not keep:
            v = v.clamp(min=torch.zeros(()), max=theta)
        return torch.cat([first.spikes, F.if_forward(x_seq[rho:], theta, v).spikes]) > 0

    return emit


def _blocks(
    phase: Callable[[Tensor], Tensor] | None = None, limits: tuple[float, float] | None = None
) -> Order:
    def emit(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
        spikes, v = [], v_init.expand(x_seq.shape[1:])
        for block in x_seq.split(rho):
            if phase is None:
                result = F.cos_forward(
                    block, theta, v, rho=len(block), emission="even", return_count=True
                )
                fires, count = result.spikes > 0, result.spike_count
            else:
                count = desired(block, theta, v, len(block))
                fires = spread(count / len(block), phase(x_seq), len(block))
            spikes.append(fires)
            v = _carry(block, theta, v, count)
            if limits is not None:
                v = v.clamp(min=limits[0] * theta, max=limits[1] * theta)
        return torch.cat(spikes)

    return emit


made(
    "even, running",
    "even for rho steps, then an IF neuron on its input from v(0) + Σ x(1..rho) - θ C*",
    _then_running(),
)
made("even, running, fresh", "the same, that potential clipped to [0, θ]", _then_running(False))
made(
    "block",
    "plans again in every rho steps: C* of the block from v after the last one, emitted as even; "
    "v carried on",
    _blocks(),
)
made(
    "block, fresh",
    "the same, the carried potential clipped to [0, θ]",
    _blocks(limits=(0, 1)),
)
made(
    "block, bounded",
    "the same, the carried potential clipped to [-θ, 2θ]",
    _blocks(limits=(-1, 2)),
)
made("block, golden", "block, with the phases of golden in every block", _blocks(golden))
made("block, hashed", "block, with the phases of hashed in every block", _blocks(hashed))


# Not exact over rho in every case


@order("smoothed")
def _smoothed(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
    """an IF neuron whose input is replaced, in every rho steps, by its mean over them; exact where
    v stays in [0, θ)
    """
    means = [block.mean(0).expand(block.shape) for block in x_seq.split(rho)]
    return F.if_forward(torch.cat(means), theta, v_init).spikes > 0


@order("look-ahead")
def _look_ahead(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
    """s(t) = [n(t-1) + 1 <= t mean(x(1..t+rho-1))/θ + v(0)/θ]: a plan made again at every step; not
    exact over rho
    """
    total, count, spikes = x_seq.cumsum(0), torch.zeros(x_seq.shape[1:]), []
    for t in range(1, len(x_seq) + 1):
        seen = min(t + rho - 1, len(x_seq))
        fires = (count + 1) * theta <= total[seen - 1] * (t / seen) + v_init
        count = count + fires
        spikes.append(fires)
    return torch.stack(spikes)


EXACT = [name for name in ORDERS if name not in ("mean, L levels", "smoothed", "look-ahead")]


def counted(name: str, rho: int) -> tuple[int, int]:
    """On random float64 inputs: the neurons whose count over rho steps is not C*, and how many
    there are.
    """
    x_seq = torch.randn(
        3 * rho, 50, 16, 8, 8, generator=torch.manual_seed(0), dtype=torch.float64
    ).add_(0.3)
    theta = torch.tensor(1.0, dtype=torch.float64)
    spikes = ORDERS[name](x_seq, theta, theta / 2, rho)
    wrong = spikes[:rho].sum(0) != desired(x_seq, theta, theta / 2, rho)
    return int(wrong.sum()), wrong.numel()
