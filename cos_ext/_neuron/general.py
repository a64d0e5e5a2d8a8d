"""General neurons of a node: the tensors that it keeps for them, and their pass.

What a neuron may be is in cos_ext/general.py, the operator in _functional/general.py. Neurons of
one level are simulation.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from .. import functional as F
from .._functional.checks import differentiates
from .._functional.general import neuron_pass
from ..general import TENSORS, Neuron
from .general_sums import USUAL, all_sums, watched_sums
from .parameters import own, parameter
from .settings import Settings, watch_steps


class Fused(NamedTuple):
    """What an operator takes into its pass; as for :func:`cos_ext.functional.if_forward`."""

    scale: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    pool: tuple[int, int] | None = None
    emitted: Tensor | None = None  # these two of general neurons, instead of their own
    step_bias: Tensor | None = None


class Emitted(NamedTuple):
    """The spikes of a pass; their number, the statistics and the potential after it, each where it
    was asked for.
    """

    spikes: Tensor
    total: Tensor | None
    statistics: Tensor | None
    v: Tensor | None = None


def keep_tensors(node: nn.Module, neuron: Neuron | None) -> Neuron | None:
    """Make a neuron's tensors buffers of a node, which go where it goes; the rest is returned."""
    theta: Tensor = own(node, "v_threshold")
    for name in TENSORS:
        value = None if neuron is None else getattr(neuron, name)
        if isinstance(value, Tensor) and not value.is_meta and not value.isfinite().all():
            raise ValueError(f"the neuron's {name} must be finite")
    for name in TENSORS:
        value = None if neuron is None else getattr(neuron, name)
        if isinstance(value, Tensor):
            value = parameter(name, value).to(theta.device)
            setattr(node, name, value.to(theta.dtype))
        else:
            setattr(node, name, None)
    return bare(neuron)


def bare(neuron: Neuron | None) -> Neuron | None:
    """A neuron without its tensors."""
    if neuron is None:
        return None
    emitted = None if isinstance(neuron.emitted, Tensor) else neuron.emitted
    return neuron.with_tensors(emitted, None)


def tensors_of(node: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """emitted and step_bias as the node keeps them."""
    return own(node, "emitted"), own(node, "step_bias")


def neuron_of(node: nn.Module, settings: Settings) -> Neuron | None:
    """A node's neuron, with the tensors that the node keeps for it."""
    neuron = settings["neuron"]
    if neuron is None:
        return None
    emitted, step_bias = tensors_of(node)
    return neuron.with_tensors(neuron.emitted if emitted is None else emitted, step_bias)


def simulate_general(
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
    """Simulate general neurons; arguments as for :func:`cos_ext._neuron.simulation.simulate`.

    Raises:
        ValueError: ψ can have too many values for statistics; and as for the operator.
    """
    neuron, state = settings["neuron"] or USUAL, F.state_dtype(x_seq.dtype)
    scale, bias, residual, _, emitted, step_bias = fused
    tensors = (
        neuron.emitted if emitted is None else emitted.to(state),
        None if step_bias is None else step_bias.to(state),
    )
    before = (scale, bias, residual)
    watched = None
    if keep_statistics:  # before the spikes are written over what they are of
        watched = watched_sums(x_seq, theta, v_init, settings, tensors, before)
    rho = watch_steps(settings)
    calibration = (rho, settings["iterations"], settings["emission"] if rho else "calibrated")
    result = neuron_pass(
        (x_seq, theta, v_init),
        neuron,
        tensors,
        settings["v_reset"],
        calibration,
        inplace and not differentiates((x_seq, theta, v_init, *fused)),
        (keep_v, count or keep_statistics, False, False),
        before,
        (surrogate, detach_reset),
        None,
    )
    levels, sums = result.spike_count, None
    if watched is not None and levels is not None:
        sums = all_sums(watched, levels, len(x_seq), neuron)
    total = levels.sum() if count and levels is not None else None
    return Emitted(result.spikes, total, sums, result.v)
