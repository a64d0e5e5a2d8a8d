"""fit_potentials: the initial potentials of "SNN calibration", from data and the ANN.

fit_v_init, the static calibration of offset spikes, is in potentials.py. Nothing here measures
accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._batches import model_inputs
from ..network.network import SpikingNetwork
from ..network.spread import spread
from .means import ann_means, emitted_mean, missing
from .pairs import Pair, check_network, check_unwatched


@torch.no_grad()
def fit_potentials(
    network: SpikingNetwork, ann: nn.Module, batches: Iterable[Any], *, progress: bool = True
) -> dict[str, Tensor]:
    r"""Give every neuron the initial potential that corrects its mean output.

    Of the advanced pipeline of Li, Deng, Dong, Gong, Gu, "A free lunch from ANN: towards efficient,
    accurate spiking neural networks calibration", ICML 2021 (arXiv 2106.06984). The neurons begin
    at 0 and have θ/(2T) more at every step (:func:`cos_ext.spread_v_init`). Let a be the ANN's
    activation and o(t) what the neurons in its place send then. For every neuron

    .. math:: v(0) = T\,\mu\Big(a - \frac1T \sum_{t=1}^{T} o(t)\Big)

    where μ is the mean over the samples. Layers are corrected one after another, in the order of
    execution, each measured with those before it corrected. That takes a pass over the data for
    each layer. :func:`cos_ext.fit_light` does the same by channel, with a current.

    v(0) and ``step_bias`` of the neurons are saved with the network, which then answers at this
    ``timesteps`` and for inputs of this size alone. A network is fitted once; then v(0) cannot be
    spread any more, and another fit is refused.

    How this differs from the authors' code (a copy was read, in bjourne/FTBC-tmp; of the paper only
    the abstract). The code corrects a layer's potentials batch by batch, where several are given,
    each batch in place of the one before; here all samples count the same. Its pipeline then fits
    the weights, which is not part of this; for CIFAR that copy leaves them, too.

    Args:
        network: from :func:`cos_ext.convert`, with rho = 0 and soft reset. Its weights do not
            change.
        ann: the model that it was converted from, in the network's dtype. A copy of it runs, in
            eval mode, where the network is.
        batches: an iterable, read once, of tensors [B, ...] or of tuples whose first n elements are
            the ANN's inputs and whose others (labels) are ignored. The inputs are kept until the
            end, in the memory that they came in. Never those on which the network is evaluated.
        progress: a progress bar on stderr.

    Returns:
        The potentials by call site, ``[*neurons]``, in the dtype of their threshold. How the data
        are split into batches plays no part, but for the models' own rounding and that of sums in
        float64.

    Raises:
        TypeError: ann is no nn.Module, network no SpikingNetwork, or batches no iterable or one of
            something else. The network is unchanged then, and also after the following.
        ValueError: batches yields no sample, or samples of several sizes; the network is trainable,
            runs by counts, watches (rho > 0), has hard reset or v(0) per neuron; ann has other
            activation call sites, shapes or another dtype than the network's; neurons that
            correspond to no activation of it; a mean that is not finite.
    """
    check_network(network)
    check_unwatched(network)
    pair = Pair(network, ann, batches)
    every = (model_inputs(batch, pair.traced.inputs) for batch in batches)
    data = [inputs for inputs in every if inputs[0].shape[0]]

    def inputs_of(title: str) -> Iterator[list[Tensor]]:
        return pair.inputs(data, title=title, progress=progress)

    for site, node in pair.nodes.items():
        node.neuron = spread(site, node, network.timesteps)
        node.v_init = torch.zeros_like(node.v_init)
    desired = ann_means(pair.traced, pair.known, inputs_of("potentials: ANN"), per="neuron")
    for site, node in pair.nodes.items():
        sent = emitted_mean(pair.copy, site, inputs_of(f"potentials: {site}"), per="neuron")
        potential = network.timesteps * missing(site, desired[site], sent)
        node.v_init = potential.to(node.v_threshold.dtype)
    pair.finish(pair.nodes)
    return {site: node.v_init.clone() for site, node in pair.nodes.items()}
