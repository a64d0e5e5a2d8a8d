"""fit_light: the bias correction of "SNN calibration", a rival of COS, from data and the ANN.

The biases are fitted here and applied in neuron.py. Nothing here measures accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._batches import check_batches, device_of, model_inputs
from .._loops import inputs_on
from ..conversion.counterparts import check_ann, traced_ann
from ..network.network import SpikingNetwork
from .means import ann_means, emitted_mean, missing
from .pairs import check_network, known_sites


@torch.no_grad()
def fit_light(
    network: SpikingNetwork, ann: nn.Module, batches: Iterable[Any], *, progress: bool = True
) -> dict[str, Tensor]:
    r"""Correct the mean output of every channel by a constant current, and set
    ``network.calibration = "light"``.

    The light pipeline of Li, Deng, Dong, Gong, Gu, "A free lunch from ANN: towards efficient,
    accurate spiking neural networks calibration", ICML 2021 (arXiv 2106.06984). Let a be the ANN's
    activation after its ReLU (or QCFS) and s the spikes, 0 or θ, that the neurons in its place
    emit:

    .. math:: b_c \leftarrow b_c + \mu_c\Big(a - \frac1T \sum_{t=1}^{T} s(t)\Big)

    :math:`\mu_c` is the mean over the samples and over all positions of channel c (dimension 1).
    The error is taken after the activation; b is added before it, to the layer's current at every
    step. Layers are corrected one after another, in the order of execution, each measured with
    those before it corrected. That takes a pass over the data for each layer.

    The rule was read in the authors' code (yhhhli/SNN_Calibration, models/calibration.py); of the
    paper only the abstract was to be had. Their code takes one batch, and for three dimensions a
    mean for every position. Its thresholds (the least squares of
    :func:`cos_ext.calibrate_thresholds`) and its advanced pipeline (potentials, weights) are not
    part of this.

    The biases are stored in the neurons (``IFNode.bias``, [C, 1, ...], the dtype of their
    threshold), in the state_dict and in what :meth:`cos_ext.SpikingNetwork.save` writes. They are
    fitted for the network's ``timesteps``. With another T they stay as they are, and fitting again
    is better. Biases of an earlier fit do not matter. A layer for which
    :meth:`cos_ext.SpikingNetwork.set_layer` has set another calibration keeps that and gets none.

    Args:
        network: from :func:`cos_ext.convert`; put in eval mode. Its weights do not change.
        ann: the model that it was converted from, in the network's dtype. A copy of it runs, in
            eval mode, where the network is.
        batches: an iterable, read once, of tensors [B, ...] or of tuples whose first n elements are
            the ANN's inputs and whose others (labels) are ignored. The inputs are kept until the
            end, in the memory that they came in. Training images, never those on which the network
            is evaluated; the authors take one batch of some hundred.
        progress: a progress bar on stderr.

    Returns:
        The biases by call site, in the order of execution. How the data are split into batches
        plays no part, but for the models' own rounding and that of sums in float64.

    Raises:
        TypeError: ann is no nn.Module, network no SpikingNetwork, or batches no iterable or one of
            something else. The network is as it was then, and also after the following.
        ValueError: batches yields no sample; ann has other activation call sites, shapes or another
            dtype than the network's; neurons that correspond to no activation of it; a mean that is
            not finite.
    """
    check_network(network)
    check_ann(ann)
    check_batches(batches)
    traced = traced_ann(ann, network)
    network.eval()
    wanted = traced.inputs
    every = (model_inputs(batch, wanted) for batch in batches)
    data = [inputs for inputs in every if inputs[0].shape[0]]
    where = device_of(network)

    def inputs_of(title: str) -> Iterator[list[Tensor]]:
        # Copies: an activation that works in place may be the first to read them.
        return inputs_on(where, data, wanted, title=title, progress=progress, copy=True)

    calibration, nodes = network.calibration, network.nodes()
    old = {site: node.bias for site, node in nodes.items()}
    try:
        network.calibration = "light"
        fitted = {site: node for site, node in nodes.items() if node.calibration == "light"}
        known = known_sites(network, traced, fitted)
        desired = ann_means(traced, known, inputs_of("light: ANN"), per="channel")
        for node in fitted.values():
            node.bias = node.v_threshold.new_zeros(())
        biases = {}
        for site, node in fitted.items():
            emitted = emitted_mean(network, site, inputs_of(f"light: {site}"), per="channel")
            biases[site] = missing(site, desired[site], emitted).to(node.v_threshold.dtype)
            node.bias = biases[site]
    except BaseException:  # an interrupt, too, must not leave some layers corrected and others not
        for site, node in nodes.items():
            node.bias = old[site]
        network.calibration = calibration
        raise
    return {site: bias.clone() for site, bias in biases.items()}
