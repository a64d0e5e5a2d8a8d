"""When a network's outputs begin to mean something: an estimate of the first step to read from. How
answers are read is in readout.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .._batches import check_batches, device_of, model_inputs
from .._neuron.runs import Run, running
from ..network.network import SpikingNetwork
from ..network.settings import steady
from ..neuron import IFNode


@torch.no_grad()
def settling_step(network: SpikingNetwork, batches: Iterable[Any]) -> float:
    r"""The step t0 from which on outputs are worth reading, by the rule of local threshold
    balancing (Bu et al., CVPR 2025, arXiv 2409.03368).

    .. math:: t_0 = \sum_l \min_i \frac{\theta_i - v_i(0)}{\mathrm{mean}(\max(z_i, 0))}

    The sum is over layers, the minimum over the neurons i of one; z is the mean current of a
    neuron over the steps, its mean is over samples. It is when the most driven neuron of each layer
    first fires, one layer after the other. It needs no labels. Round it for ``first_step`` of
    :func:`cos_ext.evaluate`, and keep some steps behind it: it is meant for tens of steps.

    Args:
        network: put in eval mode; it runs ``network.timesteps`` steps.
        batches: an iterable of tensors [B, ...], or of tuples that begin with the network's inputs.

    Returns:
        A number >= 0; infinite where no neuron of a layer is driven at all.

    Raises:
        TypeError: network is not a SpikingNetwork, or batches yields something else.
        ValueError: batches yields no sample.
        RuntimeError: the network's settings are changed meanwhile.
    """
    if not isinstance(network, SpikingNetwork):
        raise TypeError(f"network must be a SpikingNetwork, got {type(network).__name__}")
    check_batches(batches)
    network.eval()
    currents, where = _Currents(), device_of(network)
    for batch in steady(network, batches):
        inputs = model_inputs(batch, network.inputs)
        with running(Run(recorder=currents)):
            network(*(x.to(where) for x in inputs))
    if not any(currents.samples.values()):
        raise ValueError("batches must yield at least one sample, it yielded none")
    total = 0.0
    for node, driven in currents.sums.items():
        mean = driven / currents.samples[node]
        missing = (node.v_threshold - node.v_init).double().clamp(min=0)
        total += float(torch.where(mean > 0, missing / mean, torch.inf).min())
    return total


class _Currents:
    """Adds up, by neuron, max(z, 0) of every sample, z the mean current over the steps."""

    def __init__(self) -> None:
        self.sums: dict[IFNode, Tensor] = {}
        self.samples: dict[IFNode, int] = {}

    def wants(self, node: nn.Module) -> bool:
        return isinstance(node, IFNode)

    def note(self, node: nn.Module, x_seq: Tensor, spikes: Tensor) -> None:
        assert isinstance(node, IFNode)  # wants() knows no others
        driven = x_seq.double().mean(0).clamp(min=0).sum(0)
        self.sums[node] = self.sums.get(node, torch.zeros_like(driven)) + driven
        self.samples[node] = self.samples.get(node, 0) + x_seq.shape[1]
