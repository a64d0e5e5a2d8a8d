"""The energy report: synaptic operations of a running network, the multiplications of its ANN, and
what both would cost.

Here is what is counted, in words, and the arguments. The counting is in operation_counter.py, the
numbers and how they print in energy_results.py. Nothing here changes a network, and no claim is
made about hardware beyond the arithmetic of :func:`energy_report`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .. import functional as F
from .._batches import check_batches, device_of
from .._loops import inputs_on
from .._numbers import whole
from ..network.network import SpikingNetwork
from ..network.reports import report
from ..network.settings import steady
from ..neuron import IFNode
from .energy_results import EnergyReport, LayerEnergy
from .operation_counter import OperationCounter

__all__ = ["AC_ENERGY", "MAC_ENERGY", "EnergyReport", "LayerEnergy", "energy_report"]

# pJ; float32 at 45 nm: an addition, and a multiplication (3.7) with an addition.
AC_ENERGY, MAC_ENERGY = 0.9, 4.6


@report("energy")
@torch.no_grad()
def energy_report(
    network: SpikingNetwork,
    batches: Iterable[Any],
    *,
    ac_energy: float = AC_ENERGY,
    mac_energy: float = MAC_ENERGY,
    neuron_energy: float | None = None,
    bits: int | None = None,
    quantised_mac_energy: float | None = None,
    progress: bool = True,
) -> EnergyReport:
    """Operations and energy per image of a network as it is configured, beside those of its ANN;
    and latency.

    What is counted:

    Synaptic operations
        A layer with weights is a convolution, transposed or not, Linear, or a product with a
        constant matrix; module or function. One that reads spikes does one accumulate (AC) for
        every input that is not 0 and every output that this input reaches: near the border of a
        padded convolution fewer than elsewhere. Weights that happen to be 0 count. A layer that
        reads values other than 0 and one value per channel, such as average-pooled spikes, cannot
        do without multiplying. Its operations are counted in the same way, as MACs, and it is
        marked "graded". This is judged by the data.
    Differences
        What is computed on running means, or comes from a difference, is no spikes, up to the next
        neurons. A layer that reads such values is graded, whatever the data: all of its MACs count
        at every step, those of zeros, too.
    Products
        A product of two tensors that both depend on the input: of matrices (``matmul``, ``bmm``,
        ``einsum``, both of ``scaled_dot_product_attention``), or element by element, one MAC an
        element. All of its MACs count, at every step, zeros or not, and once in the ANN. It is
        marked "product". Scaling by parameters or numbers is none.
    Levels
        Where general neurons (:class:`cos_ext.Neuron`), such as the signed ones of
        ``convert(spikes=...)``, send s levels in a step, up or down, an input costs s accumulates
        for every output that it reaches, as s spikes would. A rung of a ladder costs one, of a
        shifted weight. Of neurons that predict, what they send beside the prediction is counted, as
        published: those that read them can hold the prediction, weights included, at an addition
        for each output and step. What stays levels when elements are moved is counted so; their
        averages are graded.
    Steps
        Calibrated neurons are first watched for their rho steps, on the calibrated spikes of the
        layer before; then they answer. Spikes are taken to be stored, currents not. So the layer
        before the neurons accumulates its input over the rho steps, and again over the steps of the
        answer: t of them, or rho if that is more and the neurons feed others that watch. An answer
        at t therefore costs rho + t steps in a hidden layer, as latency has it, and t in the last
        one, which no neurons watch. With rho = 0 it is t everywhere. Neurons that emit "even" or
        "front" read the rho steps alone; those that emit "block", every block of rho steps once,
        the whole of it before its first spike. ``kept_joules`` is for hardware that keeps the
        currents: no step is accumulated twice.
    Static layers
        What comes before the first neurons is computed once, as MACs; products, too.
    Neurons
        One update, an addition, per neuron and step, watched or emitted, of however many levels.
    The ANN
        The MACs of the same layers and products in one pass, over all inputs, zero or not. Products
        with the zeros of a convolution's padding are left out, as they are for spikes, so that the
        number lies a little below the customary one. (Zeros that F.pad or nn.ZeroPad put there
        before are inputs.) Activations cost nothing.
    The quantised ANN
        An ANN whose activations have b = ceil(log2(n + 1)) bits, as many values as counts of n
        steps (Yan, Bai, Wong, "Reconsidering the energy efficiency of spiking neural networks",
        arXiv 2409.08290), n = rho, or T without calibration, times the most levels that one of the
        layers sends up in a step (a ladder counts its smallest rungs; a sign takes no bit). The MAC
        of a b-bit activation is taken as b conditional additions of a shifted weight, b ACs, at
        most a MAC. Layers that are static or graded in the network cost a MAC in this ANN, too, and
        so do products. Its zeros are not skipped.

    Not counted are biases, predictions, additions of residuals, poolings, BatchNorm that is not
    folded, functions between neurons (softmax, norms, GELU, sigmoid, quotients), scaling, and the
    two ends of what is computed on running means ("running_mean", "difference": an addition and a
    scaling for every element). ``uncounted`` has their sizes. Nor is counted what calibration
    computes from the currents of the steps watched (all its iterations), thresholds and resets. Nor
    is memory, which in hardware can outweigh all of this (Dampfhoffer et al., "Are SNNs really more
    energy-efficient than ANNs?", IEEE TETCI 7(3), 2023). The energies are those of float32
    arithmetic at 45 nm (Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC
    2014).

    Args:
        network: from :func:`cos_ext.convert`; put in eval mode.
        batches: an iterable, read once, of tensors [B, ...] or of tuples whose first n elements are
            the network's inputs and whose others (labels) are ignored. How the data are split into
            batches plays no part.
        ac_energy: pJ of an accumulate.
        mac_energy: pJ of a multiplication with its accumulate.
        neuron_energy: pJ of one update of a neuron; None: ac_energy. 0 leaves neurons out of the
            energies.
        bits: of the quantised ANN's activations; None: b as above.
        quantised_mac_energy: pJ of its MAC; None: min(bits · ac_energy, mac_energy).
        progress: a progress bar on stderr.

    Returns:
        Operations by layer, energies in joules per image, latency in time-steps.

    Raises:
        TypeError: network is no SpikingNetwork, batches no iterable of tensors, or an argument has
            another type.
        ValueError: an energy is negative or not finite, bits < 1, batches yields no sample;
            calibration 'srp'; or the network computes in a way that cannot be counted (recurrent
            layers, convolutions whose weights depend on the input, time elsewhere than in the first
            dimension): every such call is listed.
    """
    _check_arguments(network, batches)
    ac_energy, mac_energy = _checked("ac_energy", ac_energy), _checked("mac_energy", mac_energy)
    neuron_energy = ac_energy if neuron_energy is None else _checked("neuron_energy", neuron_energy)
    if bits is None:
        steps = network.watch_steps or network.timesteps
        bits = (steps * max(map(_most, network.nodes().values()), default=1)).bit_length()
    bits = whole("bits", bits, 1, or_=" or None")
    if quantised_mac_energy is None:
        quantised_mac_energy = min(bits * ac_energy, mac_energy)
    else:
        quantised_mac_energy = _checked("quantised_mac_energy", quantised_mac_energy)

    network.eval()
    wanted = network.inputs
    samples, counter = 0, OperationCounter(network)
    data = inputs_on(
        device_of(network), batches, wanted, title="energy", progress=progress, one_size=True
    )
    for inputs in steady(network, data):
        counter.run(inputs)
        samples += inputs[0].shape[0]
    read = _Steps(counter, network.nodes(), network.timesteps)
    return EnergyReport(
        layers=tuple(_layers(counter, read, samples)),
        neurons=sum(counter.neurons.values()) / samples,
        neuron_updates=tuple(updates / samples for updates in read.updates()),
        uncounted={
            name: count / samples / counter.steps for name, count in counter.uncounted.items()
        },
        samples=samples,
        timesteps=network.timesteps,
        rho=network.watch_steps,
        iterations=network.iterations,
        emission=network.emission,
        ac_energy=ac_energy,
        mac_energy=mac_energy,
        neuron_energy=neuron_energy,
        bits=bits,
        quantised_mac_energy=quantised_mac_energy,
    )


def _check_arguments(network: SpikingNetwork, batches: Iterable[Any]) -> None:
    if not isinstance(network, SpikingNetwork):
        raise TypeError(f"network must be a SpikingNetwork, got {type(network).__name__}")
    check_batches(batches)
    nodes = network.nodes().items()
    twice = [site for site, node in nodes if node.calibration == "srp" and node.watch_steps]
    if twice:
        raise ValueError(
            "network must have another calibration than 'srp', which runs its neurons twice, at "
            f"{twice}"
        )


def _checked(name: str, value: float) -> float:
    number = F.check_number(name, value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be a finite energy >= 0 in pJ, got {number}")
    return number


class _Steps:
    """How many steps are read and emitted for an answer at t = 1, ..., T."""

    def __init__(
        self, counter: OperationCounter, nodes: Mapping[str, IFNode], timesteps: int
    ) -> None:
        self.counter, self.nodes, self.timesteps = counter, nodes, timesteps
        # Of the output (None), and of neurons by site: who reads them is known before they are.
        self.emitted: dict[str | None, list[int]] = {None: list(range(1, timesteps + 1))}
        for site in reversed(counter.neurons):
            self.emitted[site] = self.read(counter.readers[site], watched=True)

    def read(self, readers: Iterable[str | None], *, watched: bool) -> list[int]:
        """The steps that these need of what they read: for the answer and, where ``watched``, to
        watch.
        """
        steps = [0] * self.timesteps
        for reader in readers:
            node = self.nodes[reader] if reader is not None else None
            least = node.watch_steps if node is not None and watched else 0
            steps = [
                max(most, least, self._followed(node, own))
                for most, own in zip(steps, self.emitted[reader])
            ]
        return steps

    def _followed(self, node: IFNode | None, own: int) -> int:
        """The steps of their input that neurons read as they emit ``own`` steps, or the output."""
        if node is None or not node.watch_steps or _follows_its_input(node):
            return own
        if node.emission != "block" or own <= node.watch_steps:
            return 0  # they emit from what they have watched
        blocks = -(-own // node.watch_steps)
        return min(blocks * node.watch_steps, self.counter.steps)

    def once(self, readers: Iterable[str | None]) -> int:
        """The first steps that none of these reads again once they are watched."""
        nodes = [None if reader is None else self.nodes[reader] for reader in readers]
        again = [each is None or not each.watch_steps or _follows_its_input(each) for each in nodes]
        return 0 if any(again) else self.watched(readers)

    def watched(self, readers: Iterable[str | None]) -> int:
        """The most steps that one of these watches."""
        return max((self.nodes[r].watch_steps for r in readers if r is not None), default=0)

    def updates(self) -> list[int]:
        """Updates of all neurons, of all samples."""
        return [
            sum(
                count * (self.nodes[site].watch_steps + self.emitted[site][t])
                for site, count in self.counter.neurons.items()
            )
            for t in range(self.timesteps)
        ]


def _follows_its_input(node: IFNode) -> bool:
    """Whether neurons that watch read their input again when they emit."""
    return node.emission == "calibrated" and node.calibration != "parallel"


def _most(node: IFNode) -> int:
    """How many levels, of a ladder how many of its smallest rungs, neurons send up in a step."""
    neuron = node.neuron
    if neuron is None:
        return 1
    return neuron.levels[1] if neuron.ladder is None else 2 ** (neuron.ladder - 1)


def _layers(counter: OperationCounter, steps: _Steps, samples: int) -> Iterable[LayerEnergy]:
    for (site, number), layer in counter.layers.items():
        yield layer.result(
            f"{site} ({number + 1})" if number else site,
            samples,
            counter.steps,
            watch=0 if layer.input == "static" else steps.watched(layer.readers),
            reads=steps.read(layer.readers, watched=False),
            again=steps.once(layer.readers),
        )
