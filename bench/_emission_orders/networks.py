"""A converted network whose neurons emit in an order of our own, and what it then predicts.

The orders themselves are in orders.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cos_ext import SpikingNetwork, convert, data
from cos_ext.neuron import IFNode

from .orders import ORDERS

KERNELS = ("calibrated", "exact")  # orders that the kernels have


def network_of(
    model: nn.Module, timesteps: int, rho: int, theta: float, v0: float
) -> SpikingNetwork:
    """The converted network: thresholds times `theta`, v(0) in units of the threshold.

    Nothing is fused, so that a node's input is the whole current.
    """
    network = convert(model, timesteps=timesteps, rho=rho, fuse=False)
    for node in network.nodes().values():
        node.v_threshold.mul_(theta)
        node.v_init = node.v_threshold * v0
    return network


def emit(node: IFNode, spikes: Callable[[Tensor], Tensor]) -> None:
    """Have a node emit spikes(x_seq) instead of what its kernel gives."""

    def sent(x_seq: Tensor, owned: bool, residual: object, operands: object, *_: object) -> Tensor:
        assert residual is None and not operands, "convert with fuse=False"
        return spikes(x_seq)

    assert hasattr(node, "_emit"), "what a node calls to emit has another name"
    node._emit = sent  # type: ignore[method-assign]


def install(network: SpikingNetwork, name: str) -> None:
    """Have every node emit in that order; one of KERNELS leaves the nodes to them."""
    for node in network.nodes().values():
        node.__dict__.pop("_emit", None)
    network.emission, network.iterations = "calibrated", 1 if name == "calibrated" else None
    if name in KERNELS:
        return

    def attach(node: IFNode) -> None:
        emit(
            node,
            lambda x_seq: (
                ORDERS[name](x_seq, node.v_threshold, node.v_init, node.rho) * node.v_threshold
            ),
        )

    for node in network.nodes().values():
        attach(node)


@torch.no_grad()
def first_steps(network: SpikingNetwork, names: list[str], batches: data.Batches) -> list[Tensor]:
    """The predictions [T, images] of orders that are exact over rho, for T <= rho, in one pass.

    What every layer but the last reads of another is a sum over rho steps, so that only the last
    layer's order matters.
    """
    install(network, "even")
    *_, last = network.nodes().values()

    def all_orders(x_seq: Tensor) -> Tensor:
        theta, v_init, rho = last.v_threshold, last.v_init, last.rho
        return torch.cat([ORDERS[name](x_seq, theta, v_init, rho) for name in names], 1) * theta

    emit(last, all_orders)
    steps = max(network.timesteps, network.rho)
    found = []
    for inputs, _ in batches:
        (outputs,) = network.module(inputs)
        outputs = outputs.unflatten(0, (steps, len(names), len(inputs)))
        found.append(outputs[: network.timesteps].cumsum(0).argmax(-1).transpose(0, 1))
    return list(torch.cat(found, 2))


@torch.no_grad()
def match_means(ann: nn.Module, network: SpikingNetwork, images: Tensor) -> None:
    """v(0) by channel, layer after layer, so that the mean of θ C*/rho over `images` is the ANN's
    mean activation.

    The idea of matching means, with the bias instead of v(0): Li et al., "A free lunch from ANN",
    ICML 2021.
    """
    means: dict[str, Tensor] = {}

    def note(site: str) -> Callable:
        return lambda module, args, output: means.update({site: by_channel(output)})

    nodes = network.nodes()
    hooks = [ann.get_submodule(site).register_forward_hook(note(site)) for site in nodes]
    ann(images)
    for hook in hooks:
        hook.remove()

    def attach(site: str, node: IFNode) -> None:
        def spikes(x_seq: Tensor) -> Tensor:
            theta, rho = node.v_threshold, node.rho
            node.v_init = matched(x_seq[:rho].sum(0), theta, rho, means[site]) * theta
            return ORDERS["even"](x_seq, theta, node.v_init, rho) * theta

        emit(node, spikes)

    for site, node in nodes.items():
        attach(site, node)
    network(images)


def by_channel(activations: Tensor) -> Tensor:
    return activations.mean([0, *range(2, activations.dim())])


def matched(charge: Tensor, theta: Tensor, rho: int, wanted: Tensor) -> Tensor:
    """v(0)/θ by channel, by bisection, so that the mean of θ C*/rho is `wanted`; charge: Σx."""
    shape = (-1, *[1] * (charge.dim() - 2))
    low = torch.zeros(charge.shape[1]).view(shape)
    high = torch.ones(charge.shape[1]).view(shape)
    for _ in range(10):
        middle = (low + high) / 2
        mean = by_channel((charge / theta + middle).floor().clamp(0, rho)) * theta / rho
        less = (mean < wanted).view(shape)
        low, high = torch.where(less, middle, low), torch.where(less, high, middle)
    return (low + high) / 2


@torch.no_grad()
def predictions(network: SpikingNetwork, batches: data.Batches) -> Tensor:
    """The class by the running sum of the outputs at t = 1..T, [T, images]."""
    return torch.cat([network(inputs).cumsum(0).argmax(-1) for inputs, _ in batches], 1)
