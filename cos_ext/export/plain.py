"""A spiking network as plain torch: every neuron by the loops of reference.py, no kernel of this
package. For exporters, which know torch's operators alone; files are written elsewhere.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import reference
from .._functional.currents import composed
from .._neuron.settings import is_general, watch_steps
from .._neuron.simulation import over_time
from ..general import Neuron
from ..network.finite import Unfit
from ..network.inputs import as_inputs, batch_size, check_shapes, in_dtype_of
from ..network.modules import Walked, twin
from ..network.network import SpikingNetwork
from ..network.over_time import UnfitOverTime
from ..network.pooling import PooledBefore
from ..neuron import IFNode


class PlainNeurons(nn.Module):
    """What an IFNode of a network does with float32 currents, in torch's operators.

    θ, v(0) and the fused scale and bias are buffers. The pooling that a node does on the way out is
    not here.
    """

    theta: Tensor
    v_init: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, node: IFNode) -> None:
        super().__init__()
        current = torch.empty(0)  # of the currents' dtype
        theta, v_init = node._parameters_for(current)
        given = node._operands(current)
        self.register_buffer("theta", theta.detach().clone())
        self.register_buffer("v_init", v_init.detach().clone())
        for name in ("scale", "bias"):
            value = given.get(name)
            self.register_buffer(name, None if value is None else value.detach().clone())
        self.settings = node._settings
        self.neuron = node.neuron

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The spikes [T*B, ...] for currents [T*B, ...], or [B, ...] where they are static."""
        return self.run(x, residual, *self.operands())

    def operands(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """θ, v(0), scale and bias."""
        return self.theta, self.v_init, self.scale, self.bias

    def run(
        self,
        x: Tensor,
        residual: Tensor | None,
        theta: Tensor,
        v_init: Tensor,
        scale: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        """:meth:`forward` with other tensors."""
        x_seq = over_time(composed(x, scale, bias, residual), self.settings)
        return self._spikes(x_seq, theta, v_init).flatten(0, 1)

    def _spikes(self, x_seq: Tensor, theta: Tensor, v_init: Tensor) -> Tensor:
        settings, rho = self.settings, watch_steps(self.settings)
        calibration, emission = settings["calibration"], settings["emission"]
        rounds = settings["iterations"]
        if is_general(settings):
            return reference.neuron_forward(
                x_seq,
                theta,
                v_init,
                neuron=self.neuron or Neuron(),
                v_reset=settings["v_reset"],
                rho=rho,
                iterations=rounds,
                emission=emission if rho else "calibrated",
            ).spikes
        if rho == 0:
            return reference.if_forward(x_seq, theta, v_init, v_reset=settings["v_reset"]).spikes
        if calibration == "srp":
            left = reference.if_forward(x_seq[:rho], theta, v_init).v
            assert left is not None
            start = torch.where(left > 0, v_init, -torch.inf)
            return reference.if_forward(x_seq, theta, start).spikes
        order = "front" if calibration == "parallel" else emission
        return reference.cos_forward(
            x_seq, theta, v_init, rho=rho, iterations=rounds, emission=order
        ).spikes


class PlainUnfit(nn.Module):
    """What :class:`cos_ext.network.finite.Unfit` marks. Runtimes may leave NaN out of a maximum."""

    def __init__(self, unfit: Unfit) -> None:
        super().__init__()
        self.sums = unfit.sums

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x.new_zeros(x.shape[:1], dtype=torch.bool)
        unfit = (x < torch.inf).logical_not()
        if self.sums:
            unfit = unfit | (x > -torch.inf).logical_not()
        return unfit.flatten(1).any(1) if x.dim() > 1 else unfit


class PlainUnfitOverTime(nn.Module):
    """What :class:`cos_ext.network.over_time.UnfitOverTime` marks."""

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self.timesteps, self.unfit = timesteps, PlainUnfit(Unfit(sums=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.unfit(x).unflatten(0, (self.timesteps, -1)).any(0)


class PlainNetwork(nn.Module):
    """A network's forward: inputs [B, ...] to the tensors of its output, [T, B, ...], in a tuple
    where there are several; of modules that export.
    """

    def __init__(self, network: SpikingNetwork, module: nn.Module) -> None:
        super().__init__()
        self.module, self.outputs = module, network.outputs
        self.steps, self.timesteps = network._steps, network.timesteps

    def forward(self, *inputs: Tensor) -> Any:
        flat = self.outputs.by_step(self.module(*inputs), -1, self.steps, self.timesteps)
        return flat[0] if len(flat) == 1 else flat


def plain(network: SpikingNetwork) -> PlainNetwork:
    """A copy of a network on the CPU, in eval mode and without hooks, its neurons plain.

    Raises:
        TypeError: network is none.
        ValueError: its model could not be traced, or is not float32 throughout.
        RuntimeError: calibration "light" without a fitted bias.
    """
    check_plain(network)
    module = twin(network.module, {}).cpu().eval().requires_grad_(False)
    for name, each in list(module.named_modules(remove_duplicate=False)):
        if isinstance(each, IFNode):
            module.set_submodule(name, PlainNeurons(each))
        elif isinstance(each, PooledBefore):
            module.set_submodule(name, each.pool)
        elif isinstance(each, Unfit):
            module.set_submodule(name, PlainUnfit(each))
        elif isinstance(each, UnfitOverTime):
            module.set_submodule(name, PlainUnfitOverTime(each.timesteps))
    return PlainNetwork(network, module)


def check_network(network: SpikingNetwork) -> None:
    """TypeError where network is none; ValueError where its model could not be traced."""
    if not isinstance(network, SpikingNetwork):
        raise TypeError(
            f"network must be a SpikingNetwork, as convert() returns, got {type(network).__name__}"
        )
    if isinstance(network.module, Walked):
        raise ValueError(
            "network must be one of a model that could be traced: the control flow of this one "
            "depends on values, and a file has none"
        )


def check_plain(network: SpikingNetwork) -> None:
    """TypeError or ValueError where a network has no plain copy; as for :func:`plain`."""
    check_network(network)
    tensors = (*network.named_parameters(), *network.named_buffers())
    others = {name: t.dtype for name, t in tensors if t.is_floating_point()}
    others = {name: dtype for name, dtype in others.items() if dtype != torch.float32}
    if others:
        name, dtype = next(iter(others.items()))
        raise ValueError(
            f"network must be float32 throughout, got {name} in {dtype}; use network.float()"
        )


def example_for(network: SpikingNetwork, example: object) -> tuple[Tensor, ...]:
    """An example's inputs as the plain copy takes them: on the CPU, in its dtype, and at least two
    samples, since exporters take a size of 1 for a constant.

    Raises:
        TypeError, ValueError: as for the network's inputs.
    """
    inputs = as_inputs(cast(Tensor, example))
    inputs = tuple(in_dtype_of(network, x.detach().cpu()) for x in network.inputs.bound(inputs, {}))
    if batch_size(inputs) == 0:
        raise ValueError("example_input must have at least one sample, got a batch of 0")
    check_shapes(inputs, network.options.get("ranks", ()), network.options.get("shapes", ()))
    return tuple(torch.cat([x, x]) if len(x) == 1 else x for x in inputs)
