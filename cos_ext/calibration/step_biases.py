"""fit_step_bias: forward temporal bias correction (FTBC), a current for every channel and step.

The currents are fitted here, and added by the general neuron. Nothing here measures accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as F
from .._functional.checks import check_choice
from .._numbers import real
from ..general import Neuron
from ..network.network import SpikingNetwork
from ..neuron import IFNode
from .pairs import (
    Pair,
    by_channel,
    channel_mean,
    check_finite,
    check_network,
    check_unwatched,
    currents_of,
    watched,
)

ALPHA = {"replay": 0.4, "stepwise": 0.5}  # the published ones, by variant


@torch.no_grad()
def fit_step_bias(
    network: SpikingNetwork,
    ann: nn.Module,
    batches: Iterable[Any],
    *,
    variant: str = "replay",
    alpha: float | None = None,
    progress: bool = True,
) -> dict[str, Tensor]:
    r"""Correct the mean output of every channel at every step by a current of its own.

    Forward temporal bias correction (FTBC; Wu et al., "FTBC: forward temporal bias correction for
    optimizing ANN-SNN conversion", ECCV 2024, arXiv 2403.18388). With x(t) the currents of a layer
    in the running network, a the ANN's activation there and o(t) what its neurons send, a layer
    has a bias b[t, c] that the neuron takes off its current, from 0 on. It is found batch by batch,
    in every batch layer by layer in the order of execution, on what the corrected layers before it
    send. :math:`\mu_c` is the mean over the batch and over all positions of channel c (dimension
    1). Two procedures are published under this name:

    "replay"
        Of networks with QCFS activations. The layer is simulated without its b, and every sample is
        corrected by the error of its own:

        .. math:: m = v + x(t), \quad e = \theta[m \ge \theta] - a, \quad
                  b_{t,c} \leftarrow b_{t,c} + \alpha\,\mu_c(e), \quad
                  v \leftarrow (m - e) - \theta[m - e \ge \theta]

        The replay does not see b. So n batches add up to n α times the mean error: give few. The
        authors take 3 of 200 images with α = 0.4 (ImageNet: 3 of 32).
    "stepwise"
        Of networks with ReLU, for "SNN calibration" and RTS. Step by step with b, corrected by the
        mean error:

        .. math:: b_{t,c} \leftarrow b_{t,c} + \alpha\,\mu_c(o(t) - a)

        The step is then taken again, with the new b. More batches go on from one another. The
        authors take α = 0.5; 10 batches for ImageNet, 100 times 5 batches for CIFAR, 100 for RTS.
        Their neurons begin at v(0) = 0 and have θ/(2T) more at every step:
        :func:`cos_ext.spread_v_init` before the fit.

    Layers come one after another here, each with all its steps. In a network without feedback that
    is the same as stepping the whole of it.

    -b is added to what the neurons' ``step_bias`` (:class:`cos_ext.Neuron`) is, which they add to
    their current; another fit goes on from there. It is saved with the network. It has a row for
    each of T steps: a network that was fitted answers at this ``timesteps`` alone.

    How this differs from the authors' code (a third party's copy of it was read, bjourne/FTBC-tmp
    at eb4db06; of the paper, its poster). The poster adds b, the code subtracts it. The code of
    "stepwise" takes its steps again with a strict >, here it is >=. Its script for CIFAR reports
    the iteration that is best on the test images; calibration data should be training images.

    Args:
        network: from :func:`cos_ext.convert`, with rho = 0, soft reset and T ``timesteps``.
        ann: the model that it was converted from, in the network's dtype. A copy of it runs, in
            eval mode, where the network is.
        batches: an iterable, read once, of tensors [B, ...] or of tuples whose first n elements are
            the ANN's inputs and whose others (labels) are ignored. A step of the fit is a batch,
            which runs whole: their sizes play a part. Never the images on which the network is
            evaluated.
        variant: "replay" or "stepwise".
        alpha: α > 0; None: 0.4 or 0.5, as published.
        progress: a progress bar on stderr.

    Returns:
        The neurons' step biases by call site, [T, C], in the dtype of their threshold.

    Raises:
        TypeError: ann is no nn.Module, network no SpikingNetwork, batches no iterable or one of
            something else, alpha no number. The network is unchanged then, and also after the
            following.
        ValueError: variant or alpha is out of range; batches yields no sample; the network is
            trainable, runs by counts, watches (rho > 0) or has hard reset; neurons whose step
            depends on more than their potential (prediction, a bounded count, silent steps,
            step_scale, a gated ladder), or that correspond to no activation of ann; ann has other
            activation call sites, shapes or another dtype than the network's; currents or
            activations that are not finite.
    """
    check_choice("variant", variant, tuple(ALPHA))
    rate = ALPHA[variant] if alpha is None else real("alpha", alpha, or_=" or None")
    if not 0 < rate < float("inf"):
        raise ValueError(f"alpha must be positive and finite, got {rate}")
    check_network(network)
    check_unwatched(network)
    pair = Pair(network, ann, batches)
    layers = {site: _Layer(pair, site, node, variant, rate) for site, node in pair.nodes.items()}
    for site, node in pair.nodes.items():
        node.register_forward_pre_hook(layers[site])
    for inputs in pair.inputs(batches, title="step biases", progress=progress):
        with watched(pair.traced, pair.known, activations=lambda site, a: layers[site].wants(a)):
            pair.run_ann(inputs)
        pair.run(inputs)
    for site, layer in layers.items():
        check_finite(site, layer.result)
    pair.finish(layers)
    return {site: layer.result.clone() for site, layer in layers.items()}


class _Layer:
    """The step biases of a layer while they are fitted. Called before its neurons, with what they
    are called with, it sets those for them.
    """

    def __init__(self, pair: Pair, site: str, node: IFNode, variant: str, alpha: float) -> None:
        neuron = node.neuron or Neuron()
        _check_neuron(site, neuron)
        self.pair, self.site, self.alpha = pair, site, alpha
        self.replays = variant == "replay"
        self.leak, self.before = neuron.leak, neuron.step_bias
        self.sending = _one_step(neuron, F.state_dtype(node.v_threshold.dtype))
        node.neuron = neuron  # from now on it is general, and reads its step_bias
        self.added: Tensor | None = None  # -b [T, C], or [T] of neurons [B], float64
        self.activation: Tensor | None = None  # or its means

    def wants(self, activation: Tensor) -> None:
        """Take the ANN's activation on the batch that comes next."""
        self.shape = activation.shape
        self.activation = activation.clone() if self.replays else channel_mean(activation)

    def __call__(self, node: IFNode, args: tuple[Tensor, ...]) -> None:
        x_seq = currents_of(node, args)
        self.pair.matching(self.site, self.shape, x_seq.shape[1:])
        state = F.state_dtype(x_seq.dtype)
        theta, v = (each.to(state) for each in node._parameters_for(x_seq))
        steps, channels = x_seq.shape[0], x_seq.shape[2:3]
        before = torch.zeros(steps, *channels, dtype=torch.float64, device=x_seq.device)
        if self.before is not None:
            own = self.before.double()
            before += own.unsqueeze(1) if own.dim() < before.dim() else own
        if self.added is None:
            self.added = torch.zeros_like(before)
        (self._replay if self.replays else self._correct)(x_seq, theta, v, before)
        self.result = (before + self.added).to(node.v_threshold.dtype)
        node.step_bias = self.result
        self.activation = None  # of one batch

    def _replay(self, x_seq: Tensor, theta: Tensor, v: Tensor, before: Tensor) -> None:
        assert self.added is not None and self.activation is not None
        for t, x in enumerate(x_seq):
            m = self.leak * v + x.to(v.dtype) + by_channel(before[t], x).to(v.dtype)
            error = self._send(m, theta)[0] - self.activation.to(v.dtype)
            self.added[t] -= self.alpha * channel_mean(error)
            v = self._send(m - error, theta)[1]

    def _correct(self, x_seq: Tensor, theta: Tensor, v: Tensor, before: Tensor) -> None:
        assert self.added is not None and self.activation is not None

        def current(t: int) -> Tensor:
            assert self.added is not None
            return by_channel(before[t] + self.added[t], x_seq[t]).to(v.dtype)

        for t, x in enumerate(x_seq):
            held = self.leak * v + x.to(v.dtype)
            sent, _ = self._send(held + current(t), theta)
            self.added[t] -= self.alpha * (channel_mean(sent) - self.activation)
            v = self._send(held + current(t), theta)[1]

    def _send(self, m: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """What neurons send at m, and what is left."""
        sent = F.neuron_forward(m.unsqueeze(0), theta, 0.0, neuron=self.sending, return_v=True)
        assert sent.v is not None  # it was asked for
        return sent.spikes.squeeze(0), sent.v


def _one_step(neuron: Neuron, state: torch.dtype) -> Neuron:
    """What a neuron does with the potential that it is given as a current."""
    emitted = neuron.emitted
    emitted = emitted.to(state) if isinstance(emitted, Tensor) else emitted
    return replace(neuron, leak=1.0, step_bias=None, emitted=emitted)


def _check_neuron(site: str, neuron: Neuron) -> None:
    """ValueError where a step cannot be taken by itself."""
    more = {
        "prediction": neuron.prediction,
        "a bounded count": neuron.count != (None, None),
        "silent steps": neuron.silent > 0,
        "step_scale": neuron.step_scale is not None,
        "a gated ladder": neuron.gated,
    }
    named = [name for name, holds in more.items() if holds]
    if named:
        raise ValueError(
            f"the neurons at {site!r} must depend on their potential alone in a step to be "
            f"corrected step by step, they have {' and '.join(named)}"
        )
