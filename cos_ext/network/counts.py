"""Counts first: a network whose spikes follow from desired counts. When that holds, and what a
neuron then does. The graph that is run is made in worlds.py.

With a planned emission ("even", "front") the spikes of a layer follow from its desired counts C*
over rho steps alone, and

    C* = clip(floor((Σ x(t) + v(0)) / θ), 0, rho) = clip(floor((rho x̄ + v(0)) / θ), 0, rho)

from the mean x̄ of its input over the first rho steps (Hao et al., ICLR 2023, arXiv 2302.10685, for
the count). What convert() keeps between neurons is affine, sample by sample, and so commutes with
the mean, biases included.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .. import functional as F
from .._neuron.runs import active
from ..neuron import IFNode

EXECUTIONS = ("steps", "counts")
PLANNED = ("even", "front")  # emissions for which the desired count decides who fires when


def check_execution(execution: str) -> str:
    """ValueError unless there is such an execution mode."""
    if execution not in EXECUTIONS:
        raise ValueError(f"execution must be one of {EXECUTIONS}, got {execution!r}")
    return execution


def check_settings(
    layers: Mapping[str, tuple[int, str, str, object]], *, static: bool = False
) -> int:
    """The rho of all layers; ValueError with the reason where their counts do not decide their
    spikes.

    Args:
        layers: (rho, emission, calibration, neuron) by call site.
        static: whether the network's potentials were calibrated beforehand, on other images.
    """
    needs = "execution='counts' needs"
    if static:
        raise ValueError(
            f"{needs} spikes that follow from the counts; with static calibration they follow from "
            "the potentials"
        )
    general = [site for site, (*_, neuron) in layers.items() if neuron is not None]
    if general:
        raise ValueError(f"{needs} neurons of one level, got a neuron at {general}")
    others = {
        site: calibration for site, (*_, calibration, _) in layers.items() if calibration != "cos"
    }
    if others:
        raise ValueError(f"{needs} calibration 'cos' in every layer, got {others}")
    free = {site: emission for site, (_, emission, *_) in layers.items() if emission not in PLANNED}
    if free:
        raise ValueError(
            f"{needs} emission to be one of {PLANNED} in every layer (otherwise the spikes depend "
            "on when the input "
            f"comes, not on its sum alone), got {free}"
        )
    if any(rho == 0 for rho, *_ in layers.values()):
        raise ValueError(
            f"{needs} rho >= 1 (without calibration spikes depend on when the input comes), got "
            "rho = 0 for "
            f"{[site for site, (rho, *_) in layers.items() if rho == 0]}"
        )
    rhos = {site: rho for site, (rho, *_) in layers.items()}
    if len(set(rhos.values())) > 1:
        raise ValueError(
            f"{needs} one rho for all layers (a count over rho steps does not give that over "
            "another number of "
            f"them), got {rhos}"
        )
    return next(iter(rhos.values()))


def desired_count(
    x_mean: Tensor, v_threshold: Tensor, v_init: Tensor, rho: int, *, inplace: bool = False
) -> Tensor:
    """C* = clip(floor((rho x̄ + v(0)) / θ), 0, rho); a NaN input counts none.

    Args:
        x_mean: x̄, [B, ...], the mean input over rho steps; float32, float64, float16 or bfloat16.
        v_threshold, v_init: θ and v(0), tensors that broadcast to the neurons.
        inplace: may write over x_mean, where its dtype is the result's.

    Returns:
        Whole numbers in the state dtype (float64 for float64, else float32), [B, ...].
    """
    state = F.state_dtype(x_mean.dtype)
    wide = x_mean.to(state)
    count = wide.mul_(rho) if inplace or wide is not x_mean else wide * rho
    return (
        count.add_(v_init.to(state))
        .div_(v_threshold.to(state))
        .nan_to_num_(nan=0.0)
        .floor_()
        .clamp_(0, rho)
    )


def rates(count: Tensor, v_threshold: Tensor, rho: int) -> Tensor:
    """θ C* / rho, the mean of the spikes over rho steps, written over `count`."""
    return count.mul_(v_threshold.to(count.dtype)).div_(rho)


def spikes_within(count: Tensor, steps: int, rho: int, emission: str) -> Tensor:
    """How many of its spikes a neuron with C* = count has emitted by step `steps`, as whole numbers
    in float64.

    "even": floor(C* t / rho + 1/2); "front": the first C* of every rho steps
    (csrc/core/emission.h).
    """
    count, (whole, rest) = count.double(), divmod(steps, rho)
    part = (
        (count * (2 * rest) + rho).div_(2 * rho).floor_()
        if emission == "even"
        else count.clamp(max=rest)
    )
    return part.add_(count, alpha=whole)


def train(
    count: Tensor, v_threshold: Tensor, *, steps: int, rho: int, emission: str, dtype: torch.dtype
) -> Tensor:
    """The spikes [T, B, ...], 0 or θ in `dtype`, of neurons with C* = count [B, ...] (in a state
    dtype; it is written over).
    """
    theta = v_threshold.to(count.dtype)
    # The current θ C*/rho from θ/2 asks for C* with half a spike to spare on both sides, so that
    # rounding plays no part.
    current = rates(count, theta, rho)
    run = max(steps, rho)
    spikes = F.cos_forward(
        current.expand(run, *current.shape), theta, rho=rho, iterations=0, emission=emission
    ).spikes
    return spikes[:steps].to(dtype)


# What the generated functions call. `rho` is that of the plan; node's own settings are the
# network's to keep.


def _check(node: IFNode, rho: int) -> None:
    if node.rho != rho or node.emission not in PLANNED or node._settings["neuron"] is not None:
        raise RuntimeError(
            f"a layer's rho = {node.rho}, emission {node.emission!r} or neuron was changed past "
            "the network, which "
            f"runs by counts over rho = {rho}; use SpikingNetwork.set_layer"
        )


def _count(
    node: IFNode, x: Tensor, residual: Tensor | None, rho: int, tally: bool
) -> tuple[Tensor, Tensor]:
    _check(node, rho)
    before, x = x, node._currents(x, residual)[0]
    theta, v_init = node._parameters_for(x)
    count = desired_count(x, theta, v_init, rho, inplace=x is not before)
    tallies = [run for run in active() if tally and run.counts]
    if tallies:
        steps = node.timesteps
        if steps % rho:
            now = spikes_within(count, steps, rho, node.emission).sum()
        else:
            now = count.sum(dtype=torch.float64) * (steps // rho)  # exact: whole numbers below 2^53
        for run in tallies:
            run.add_spikes(node, now, count.numel() * steps)
    return count, theta


def rate_of(
    node: IFNode, x: Tensor, residual: Tensor | None, rho: int, inplace: bool, tally: bool
) -> Tensor:
    """θ C* / rho of a node from the means x; `tally` adds its spikes to the node's count."""
    tallied = tally and any(run.counts for run in active())
    if tallied or not node._fuses(x, residual):
        count, theta = _count(node, x, residual, rho, tally)
        return rates(count, theta, rho).to(x.dtype)
    _check(node, rho)
    theta, v_init = node._parameters_for(x)
    return F.rate_forward(
        x, theta, v_init, rho=rho, inplace=inplace, residual=residual, **node._operands(x)
    )


def train_of(
    node: IFNode, x: Tensor, residual: Tensor | None, timesteps: int, rho: int, tally: bool
) -> Tensor:
    """The spikes [T*B, ...] of a node from the means x [B, ...]."""
    count, theta = _count(node, x, residual, rho, tally)
    return train(
        count, theta, steps=timesteps, rho=rho, emission=node.emission, dtype=x.dtype
    ).flatten(0, 1)


def whole_count(node: IFNode, x: Tensor, residual: Tensor | None, rho: int) -> Tensor:
    """C* of a node from the means x, int32."""
    return _count(node, x, residual, rho, False)[0].to(torch.int32)
