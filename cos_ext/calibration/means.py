"""Mean outputs, of an ANN's activations and of the neurons in their place, for fits that compare
them layer by layer. What is made of a difference is the fits' business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..conversion.counterparts import Counterpart
from ..conversion.tracing import Traced
from ..network.network import SpikingNetwork
from ..neuron import IFNode
from .pairs import watched


class _Reached(Exception):
    """The layer that is measured has emitted its spikes; what comes after it need not run."""


class Mean:
    """A running mean in float64: by "channel" over everything but dimension 1 (over everything
    where there is no such dimension), or by "neuron" over dimension 0.
    """

    def __init__(self, site: str, per: str) -> None:
        self.site, self.per = site, per
        self.total: Tensor | None = None
        self.count = 0

    def add(self, x: Tensor) -> None:
        """Take in ``[B, ...]``."""
        if self.per == "neuron":
            total, each = x.sum(0, dtype=torch.float64), x.shape[0]
        else:
            dims = [dim for dim in range(x.dim()) if dim != 1]
            channels = x.shape[1] if x.dim() > 1 else 1
            # [C, 1, ...], which broadcasts to [B, C, ...]; a number where there are no channels.
            shape = (channels, *[1] * (x.dim() - 2)) if x.dim() > 1 else ()
            total, each = x.sum(dims, dtype=torch.float64).reshape(shape), x.numel() // channels
        if self.total is not None and self.total.shape != total.shape:
            raise ValueError(
                f"batches must give the same {self.per}s every time: {self.site!r} has "
                f"{tuple(total.shape)} after {tuple(self.total.shape)}"
            )
        self.total = total if self.total is None else self.total + total
        self.count += each

    def result(self) -> Tensor:
        """The mean of what was taken in."""
        assert self.total is not None  # data without a sample are refused before
        return self.total / self.count


def ann_means(
    traced: Traced, known: Mapping[str, Counterpart], data: Iterable[list[Tensor]], *, per: str
) -> dict[str, Tensor]:
    """The mean of the ANN's activation for each site of neurons, pooled where they are."""
    means = {site: Mean(site, per) for site in known}
    with watched(traced, known, activations=lambda site, a: means[site].add(a)):
        for inputs in data:
            traced.inputs.call(traced.module, inputs)
    return {site: mean.result() for site, mean in means.items()}


def emitted_mean(
    network: SpikingNetwork, site: str, data: Iterable[list[Tensor]], *, per: str
) -> Tensor:
    """The mean over time and samples of what the neurons of a site emit in the running network.
    What follows them does not run.
    """
    node, timesteps = network.nodes()[site], network.timesteps
    mean = Mean(site, per)

    def note(neurons: IFNode, args: tuple[Any, ...], spikes: Tensor) -> None:
        # With layers of another calibration, hidden layers may run more steps than the network
        # answers at.
        mean.add(spikes.unflatten(0, (neurons.timesteps, -1))[:timesteps].flatten(0, 1))
        raise _Reached

    handle = node.register_forward_hook(note)
    try:
        for inputs in data:
            try:
                # Not by calling it: a GraphModule's call reports every exception on stderr.
                with network._by_steps():
                    module: nn.Module = network.module
                    module.forward(*inputs)
            except _Reached:
                pass
    finally:
        handle.remove()
    return mean.result()


def missing(site: str, desired: Tensor, emitted: Tensor) -> Tensor:
    """What is missing in a mean, in float64.

    Raises:
        ValueError: the shapes differ, or it is not finite.
    """
    if emitted.shape != desired.shape:
        raise ValueError(
            "ann must be the model that the network was converted from: its activation at "
            f"{site!r} has means {tuple(desired.shape)}, the neurons {tuple(emitted.shape)}"
        )
    difference = desired - emitted
    if not torch.isfinite(difference).all():
        raise ValueError(
            f"batches must give finite activations, those at {site!r} have a mean that is not"
        )
    return difference
