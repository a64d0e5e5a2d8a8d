"""fit_rate_shift: the corrections ψ and φ of parallel conversion, from data and the ANN.

They are fitted here, and applied by neurons that are calibrated with emission "front". Nothing here
measures accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .._numbers import real
from ..general import Neuron
from ..network.network import SpikingNetwork
from ..neuron import IFNode
from .pairs import Pair, by_channel, channel_mean, check_finite, check_network, currents_of, watched


@torch.no_grad()
def fit_rate_shift(
    network: SpikingNetwork,
    ann: nn.Module,
    batches: Iterable[Any],
    *,
    momentum: float = 0.99,
    progress: bool = True,
) -> dict[str, tuple[Tensor, Tensor]]:
    r"""Shift the input and the output of every channel as parallel conversion does, and set
    ``rho = timesteps`` and ``emission = "front"``.

    Hao et al., "Faster and stronger: when ANN-SNN conversion meets parallel spiking calculation",
    ICML 2025 (arXiv 2412.13610). With x̄ the mean of a neuron's current over T steps, the neuron
    sends θ + φ at the first C* steps,

    .. math:: C^* = \mathrm{clip}\Big(\Big\lfloor \frac{T\bar x + v(0)}{\theta} \Big\rfloor,
              0, T\Big), \qquad v(0) = \theta/2 + T\psi

    ψ and φ are moving averages over the batches, from 0 on, of what is missing by channel before
    and after the activation. The ANN runs beside the network, which has the ψ and φ of then (x̄ is
    the current without ψ):

    .. math:: \psi_c \leftarrow \beta\psi_c + (1-\beta)\,\mu_c(x_\text{ANN} - \bar x), \qquad
              \varphi_c \leftarrow \beta\varphi_c + (1-\beta)\,\mu_c(a - \bar o)

    :math:`\mu_c` is the mean over the batch and over all positions of channel c (dimension 1), a
    the ANN's activation, and ō the mean of what the neurons send, with the new ψ and the old φ.
    Neurons without positions, [B, C], are not corrected.

    From 0 on, n batches reach :math:`1 - \beta^n` of the averages: 63% after 100. The authors take
    one pass over the training set. Plain ReLU networks need θ first, which they take as the
    largest activation of each channel (:func:`cos_ext.calibrate_thresholds`). Every layer waits for
    T steps, so that the answer at t has latency T + t here; the authors count T.

    ψ goes into v(0) and φ into ``emitted`` of the neurons (:class:`cos_ext.Neuron`): θ and v(0) as
    they are, plus these. They are saved with the network. What :meth:`SpikingNetwork.set_layer
    <cos_ext.SpikingNetwork.set_layer>` gave to single layers is taken back, but for their neurons.
    The rule was read in the authors' code (a copy, bjourne/hao_s2025, modules.py); of the paper
    only the abstract. There the reference of a quantised ANN has the 8 levels of ResNets as a
    number in the code; here it is the ANN as it is.

    Args:
        network: from :func:`cos_ext.convert`, with T ``timesteps`` and soft reset.
        ann: the model that it was converted from, in the network's dtype. A copy of it runs, in
            eval mode, where the network is.
        batches: an iterable, read once, of tensors [B, ...] or of tuples whose first n elements are
            the ANN's inputs and whose others (labels) are ignored. A step of the averages is a
            batch, which runs whole: their sizes play a part. Never the images on which the network
            is evaluated.
        momentum: β, in [0, 1).
        progress: a progress bar on stderr.

    Returns:
        (ψ, φ) by call site, [C, 1, ...] each, float64, of the neurons that were corrected.

    Raises:
        TypeError: ann is no nn.Module, network no SpikingNetwork, batches no iterable or one of
            something else, momentum no number. The network is unchanged then, and also after the
            following.
        ValueError: momentum is out of range; batches yields no sample; the network is trainable,
            runs by counts, has hard reset, potentials of :func:`cos_ext.fit_v_init` or neurons that
            cannot be calibrated; ann has other activation call sites, shapes or another dtype than
            the network's; neurons that correspond to no activation of it; currents or activations
            that are not finite.
    """
    beta = real("momentum", momentum)
    if not 0 <= beta < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {beta}")
    check_network(network)
    pair = Pair(network, ann, batches)
    own = ((site, layer) for site, layer in network._layers.items() if "neuron" in layer)
    settings: dict[str, Any] = {
        "rho": network.timesteps,
        "emission": "front",
        "calibration": "cos",
        "layers": {site: {"neuron": layer["neuron"]} for site, layer in own},
    }
    pair.copy._change(**settings)
    layers = {site: _Layer(pair, site, node, beta) for site, node in pair.nodes.items()}
    for inputs in pair.inputs(batches, title="rate shifts", progress=progress):
        with watched(
            pair.traced,
            pair.known,
            currents=lambda site, x: layers[site].wants_current(x),
            activations=lambda site, a: layers[site].wants(a),
        ):
            pair.run_ann(inputs)
        pair.run(inputs)
    shifts = {site: layer.shifts for site, layer in layers.items() if layer.shifts is not None}
    for site in shifts:
        check_finite(site, layers[site].sends)
    pair.finish(shifts, **settings)
    return shifts


class _Layer:
    """ψ and φ of a layer while they are fitted."""

    def __init__(self, pair: Pair, site: str, node: IFNode, beta: float) -> None:
        self.pair, self.site, self.beta = pair, site, beta
        self.start, self.neuron = node.v_init.double(), node.neuron or Neuron()
        emitted = node.v_threshold if self.neuron.emitted is None else self.neuron.emitted
        self.emitted = torch.as_tensor(emitted, dtype=torch.float64, device=self.start.device)
        self.shifts: tuple[Tensor, Tensor] | None = None
        node.register_forward_pre_hook(self._before)
        node.register_forward_hook(self._after)

    def wants_current(self, x: Tensor) -> None:
        """Take the ANN's current on the batch that comes next."""
        self.current = channel_mean(x)

    def wants(self, activation: Tensor) -> None:
        """Take its activation."""
        self.shape, self.activation = activation.shape, channel_mean(activation)

    def _before(self, node: IFNode, args: tuple[Tensor, ...]) -> None:
        x_seq = currents_of(node, args)
        self.pair.matching(self.site, self.shape, x_seq.shape[1:])
        if x_seq.dim() < 4:
            return
        x = x_seq[0]
        if self.shifts is None:
            zeros = torch.zeros_like(by_channel(self.current, x))
            self.shifts = zeros, zeros.clone()
            self._set(node)
        here = channel_mean(x_seq.flatten(0, 1))
        psi = self._moved(self.shifts[0], by_channel(self.current - here, x))
        check_finite(self.site, psi)
        self.shifts = psi, self.shifts[1]
        node.v_init = (self.start + node.timesteps * psi).to(node.v_threshold.dtype)

    def _after(self, node: IFNode, args: tuple[Tensor, ...], sent: Tensor) -> None:
        if self.shifts is not None:
            missing = by_channel(self.activation - channel_mean(sent), sent)
            self.shifts = self.shifts[0], self._moved(self.shifts[1], missing)
            self._set(node)

    def _moved(self, average: Tensor, now: Tensor) -> Tensor:
        return self.beta * average + (1 - self.beta) * now

    def _set(self, node: IFNode) -> None:
        assert self.shifts is not None  # made before
        self.sends = (self.emitted + self.shifts[1]).to(node.v_threshold.dtype)
        node.neuron = replace(self.neuron, emitted=self.sends)
