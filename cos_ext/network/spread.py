"""A potential that is handed out over the steps: the neurons that get it so.

Which networks do that is the business of the rooms methods and calibration.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..general import Neuron
from ..neuron import IFNode
from .settings import Configured


@torch.no_grad()
def spread_out(network: Configured, steps: int) -> None:
    """Let all neurons begin at 0, and get their v(0) over the steps; ValueError, and nothing has
    changed, where a v(0) is per neuron.
    """
    nodes = network.nodes()
    neurons = {site: spread(site, node, steps) for site, node in nodes.items()}
    layers = {site: {**network._layers.get(site, {}), "neuron": n} for site, n in neurons.items()}
    network._change(layers={**network._layers, **layers})
    for node in nodes.values():
        node.v_init.zero_()  # in place: it may be a parameter


def spread(site: str, node: IFNode, steps: int) -> Neuron:
    """The neuron of a node that gets its v(0) over the steps; ValueError where v(0) is per
    neuron.
    """
    start = node.v_init.double()
    if start.numel() > 1 and start.numel() != start.shape[0]:
        raise ValueError(
            "v(0) must be one number for a layer or channel to be spread, at "
            f"{site!r} it has shape {tuple(start.shape)}; convert anew"
        )
    share = (start.flatten() if start.numel() > 1 else start.reshape(())) / steps
    neuron, rows = node.neuron or Neuron(), node.timesteps
    assert rows is not None  # convert() sets it
    every = share.expand(rows, *share.shape)
    return replace(neuron, step_bias=_sum(neuron.step_bias, every).to(node.v_threshold.dtype))


def _sum(before: Tensor | None, added: Tensor) -> Tensor:
    """Two step biases, [T] or [T, C] each."""
    if before is None:
        return added
    dims = max(before.dim(), added.dim())
    wide = [each.double().unsqueeze(1) if each.dim() < dims else each for each in (before, added)]
    return wide[0] + wide[1]
