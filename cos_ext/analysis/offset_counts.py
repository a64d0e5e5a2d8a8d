"""What the offset-spike report takes at one layer while the network and its ANN run: sums that
stay on the device.

No activation is kept beyond its batch, and nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as F
from ..conversion.counterparts import Counterpart
from ..neuron import IFNode
from .offset_results import BEYOND, OFFSETS, CountError, LayerOffsets


class _Sums:
    """Running sums of a comparison of counts [B, ...] with desired ones. They stay on the data's
    device and are never waited for.
    """

    def __init__(self) -> None:
        self.error: Tensor | float = 0.0
        self.equal: Tensor | int = 0
        self.neurons = 0

    def add(self, error: Tensor, equal: Tensor) -> None:
        self.error = self.error + error.sum(dtype=torch.float64)
        self.equal = self.equal + equal.sum()
        self.neurons += equal.numel()

    def result(self) -> CountError | None:
        if not self.neurons:
            return None
        return CountError(float(self.error) / self.neurons, int(self.equal) / self.neurons)


class LayerWatch:
    """What is measured at one site: of its neurons as they run, of the ANN's activation by hooks.

    Args:
        site: the neurons' call site.
        node: the neurons.
        rho: steps over which spikes are counted.
        stages: by name, the iterations of the calibration; None: as many as it takes.
        counterpart: what the neurons stand for in the ANN, where that is known.
    """

    def __init__(
        self,
        site: str,
        node: IFNode,
        rho: int,
        stages: Mapping[str, int | None],
        counterpart: Counterpart | None,
    ) -> None:
        self.site, self.node, self.rho, self.stages = site, node, rho, stages
        self.activation: str | None = None
        self.pool: nn.Module | None = None
        if counterpart is not None:
            self.activation, self.pool = counterpart
        self.histograms: dict[str, Tensor] = {}
        self.isolated, self.accumulated = _Sums(), _Sums()
        self.counts: list[Tensor] = []  # [B, ...], of the batch that is running, part by part

    def watch_ann(self, sites: Mapping[str, nn.Module]) -> list[Any]:
        """Set hooks on the ANN's activation, given all by site; the handles remove them."""
        if self.activation is None:
            return []
        activation = sites[self.activation]
        # Before and after the activation: it may work in place.
        return [
            activation.register_forward_pre_hook(self._ann_currents, with_kwargs=True),
            activation.register_forward_hook(lambda _, args, a: self._ann_activations(a)),
        ]

    def note(self, x_seq: Tensor, spikes: Tensor) -> None:
        """Take in the currents and the spikes of the network's neurons, ``[T, B, ...]`` each."""
        self._offsets(x_seq[: self.rho])
        if self.activation is not None:
            kind = torch.uint8 if self.rho < 256 else torch.int32
            self.counts.append((spikes[: self.rho] != 0).sum(0, dtype=kind))

    def result(self) -> LayerOffsets:
        """What was found. Waits for the device."""
        histograms = {stage: tuple(counts.tolist()) for stage, counts in self.histograms.items()}
        known = self.activation is not None
        return LayerOffsets(
            site=self.site,
            neurons=sum(histograms["before"]),
            histograms=histograms,
            isolated=self.isolated.result(),
            accumulated=self.accumulated.result(),
            note="" if known else "no activation of the ANN corresponds to these neurons",
        )

    def _parameters(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """θ and v_init in a dtype that the operators take beside x."""
        state = F.state_dtype(x.dtype)
        theta, v_init = (
            p if p.dtype in (x.dtype, state) else p.to(state)
            for p in (self.node.v_threshold, self.node.v_init)
        )
        return theta, v_init

    def _offsets(self, x_seq: Tensor) -> None:
        theta, v_init = self._parameters(x_seq)
        for stage, k in self.stages.items():
            start, psi, count = F.calibrate_v_init(x_seq, theta, v_init, rho=self.rho, iterations=k)
            actual = F.if_forward(x_seq, theta, start, return_count=True).spike_count
            assert actual is not None  # it was asked for
            remaining = (count + psi - actual).clamp_(-BEYOND, BEYOND).add_(BEYOND)
            histogram = torch.bincount(remaining.flatten(), minlength=len(OFFSETS))
            earlier = self.histograms.get(stage)
            self.histograms[stage] = histogram if earlier is None else earlier + histogram

    def _ann_currents(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        z = self._pooled(args[0] if args else next(iter(kwargs.values())))
        theta, v_init = self._parameters(z)
        z_seq = z.expand(self.rho, *z.shape)
        emitted = F.if_forward(z_seq, theta, v_init, return_count=True).spike_count
        assert emitted is not None  # it was asked for
        wide = z.to(F.state_dtype(z.dtype))
        desired = (wide * self.rho / theta.to(wide.dtype) + 0.5).floor().clamp(0, self.rho)
        count = emitted.to(wide.dtype)
        self.isolated.add((count - desired).abs() / self.rho, count == desired)

    def _ann_activations(self, a: Tensor) -> None:
        # The network ran before the ANN.
        a, emitted, self.counts = self._pooled(a), torch.cat(self.counts), []
        if a.shape != emitted.shape:
            raise ValueError(
                f"ann must be the model that the network was converted from: its activation at "
                f"{self.activation!r} is {tuple(a.shape)}, the network's neurons are "
                f"{tuple(emitted.shape)}"
            )
        rate, count = a.double() / self.node.v_threshold.double(), emitted.double()
        # The rounding of a = level · θ: a level that is a half in exact arithmetic must not round
        # down.
        slack = 2 * torch.finfo(a.dtype).eps * (rate * self.rho).clamp(min=1)
        wanted = (rate * self.rho + 0.5 + slack).floor()
        self.accumulated.add((count / self.rho - rate).abs(), count == wanted)

    def _pooled(self, x: Tensor) -> Tensor:
        return x if self.pool is None else self.pool(x)
