"""The offset-spike report: how far every layer's spike counts are from those of the ANN, before and
after calibration.

The calibration itself is in functional.py; what the report looks like, in offset_results.py.
Nothing here keeps an activation beyond its batch or changes a model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .._batches import check_batches, device_of
from .._loops import inputs_on
from .._neuron.runs import Run, running
from .._numbers import whole
from ..conversion.counterparts import check_ann, counterparts, traced_ann
from ..network.network import SpikingNetwork
from ..network.settings import check_one_level, steady
from ..neuron import IFNode
from .offset_counts import LayerWatch
from .offset_results import (
    OFFSETS,
    CountError,
    LayerOffsets,
    OffsetSpikeReport,
    iterations_in_words,
)

__all__ = ["OFFSETS", "CountError", "LayerOffsets", "OffsetSpikeReport", "offset_spike_report"]


@torch.no_grad()
def offset_spike_report(
    ann: nn.Module,
    network: SpikingNetwork,
    batches: Iterable[Any],
    *,
    iterations: int = 3,
    progress: bool = True,
) -> OffsetSpikeReport:
    """Offset spikes of every layer of a running network, and its spike counts against those of the
    ANN.

    The offset spike of a neuron on a sample is ψ = C* - N. N is the number of spikes of its first
    rho steps. C* is the count that its input over those steps asks for (Hao et al., "Bridging the
    gap between ANNs and SNNs by calibrating offset spikes", ICLR 2023, arXiv 2302.10685;
    :func:`cos_ext.functional.cos_forward`). Three things are measured:

    Offset spikes, before and after
        The network runs as it is configured. At every layer the input currents of the first rho
        steps are taken, and the neurons are simulated on them: from v_init ("before"), from the
        potentials that k = 1, ..., ``iterations`` iterations of the calibration give, and from
        those that as many as it takes give ("exact"). ψ is C* minus the count that this simulation
        had; nothing is concluded from theory. What the layers before have emitted does not change
        between these stages.
    Counts, isolated
        The layer is fed the ANN's own currents z (the input of its activation), the same at every
        step, from v_init. Its count over rho steps is compared with what the activation quantised
        to rho levels has on z, rho·clip(floor(z·rho/θ + 1/2)/rho, 0, 1). With v_init = θ/2 these
        agree but for rounding. What is left over in a network comes from spikes that arrive
        unevenly, and from what the layers before have accumulated. Calibration plays no part: it
        has nothing to do on such currents.
    Counts, accumulated
        The spikes that the layer emitted over the first rho steps of the running network (all
        settings as they are) are compared with the activation a of the ANN itself, run on the same
        images. Measured are the mean of abs(count/rho - a/θ), and the share of neurons with
        count = round(a·rho/θ), where a half (up to the rounding of a) rounds up, as in the
        quantised activation. QCFS activations have their own L levels: with L ≠ rho the two cannot
        agree everywhere. A ReLU may exceed θ, which a count cannot follow.

    rho is the network's; for a network that watches nothing (no calibration) it is its number of
    time-steps. θ is the neurons' threshold. Where a max pooling was moved before the neurons
    (``max_pool="before"``), the ANN's currents and activations are pooled likewise.

    Memory: a histogram for each layer and stage and a spike count for each neuron of one batch,
    beside what the two models need. How the data are split into batches plays no part, but for the
    models' own rounding and that of sums in float64.

    Args:
        ann: the model that the network was converted from, in the network's dtype. A copy of it
            runs, in eval mode, where the network is.
        network: from :func:`cos_ext.convert`; put in eval mode.
        batches: an iterable, read once, of tensors [B, ...] or of tuples whose first n elements are
            the ANN's inputs and whose others (labels) are ignored.
        iterations: the largest k, >= 0.
        progress: a progress bar on stderr.

    Returns:
        The report: layer by layer and in all.

    Raises:
        TypeError: ann is no nn.Module, network no SpikingNetwork, batches no iterable or one of
            something else, iterations no int.
        ValueError: iterations < 0; batches yields no sample; ann has other activation call sites,
            shapes or another dtype than the network's; neurons have a hard reset, for which
            calibration is not defined, or are not of one level (``network.statistics`` has their
            ψ).
    """
    _check_arguments(ann, network, batches, iterations)
    traced = traced_ann(ann, network)
    network.eval()
    nodes, rho = network.nodes(), network.watch_steps or network.timesteps
    check_one_level(
        network, "offset_spike_report, which compares counts with activations of rho levels,"
    )
    hard = [site for site, node in nodes.items() if node.v_reset is not None]
    if hard:
        raise ValueError(
            f"network must have soft reset (calibration is defined for v_reset=None), not so {hard}"
        )
    stages: dict[str, int | None] = {"before": 0}
    stages |= {iterations_in_words(k): k for k in range(1, iterations + 1)} | {"exact": None}
    known = counterparts(network, traced.sites)
    layers = [LayerWatch(site, node, rho, stages, known.get(site)) for site, node in nodes.items()]
    handles = [handle for layer in layers for handle in layer.watch_ann(traced.sites)]
    watched = Run(recorder=_Layers(layers))
    wanted, samples = traced.inputs, 0
    try:
        data = inputs_on(
            device_of(network), batches, wanted, title="offset spikes", progress=progress
        )
        for inputs in steady(network, data):
            # Copies: an activation that works in place may be the first to read them. The network
            # first: where one of the two must be kept, a count is smaller than an activation.
            with running(watched):
                network(*(tensor.clone() for tensor in inputs))
            wanted.call(traced.module, [tensor.clone() for tensor in inputs])
            samples += inputs[0].shape[0]
    finally:
        for handle in handles:
            handle.remove()
    return OffsetSpikeReport(
        layers=tuple(layer.result() for layer in layers),
        stages=tuple(stages),
        samples=samples,
        rho=rho,
        network_timesteps=network.timesteps,
        network_rho=network.watch_steps,
        network_iterations=network.iterations,
        network_emission=network.emission,
        network_calibration=network.calibration,
    )


class _Layers:
    """Hands what neurons do to the layer that watches them."""

    def __init__(self, layers: Iterable[LayerWatch]) -> None:
        self.layers = {layer.node: layer for layer in layers}

    def wants(self, node: nn.Module) -> bool:
        return node in self.layers

    def note(self, node: nn.Module, x_seq: Tensor, spikes: Tensor) -> None:
        assert isinstance(node, IFNode)  # wants() knows no others
        self.layers[node].note(x_seq, spikes)


def _check_arguments(
    ann: nn.Module, network: SpikingNetwork, batches: Iterable[Any], iterations: int
) -> None:
    check_ann(ann)
    if not isinstance(network, SpikingNetwork):
        raise TypeError(f"network must be a SpikingNetwork, got {type(network).__name__}")
    check_batches(batches)
    whole("iterations", iterations, 0)
