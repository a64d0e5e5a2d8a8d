"""fit_adafire: AdaFire neurons in a network, and how many levels each layer may send in a step.

Thresholds are calibrated before (thresholds.py); the choice among options is in level_choice.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from tqdm import tqdm

from .._batches import check_batches, device_of
from .._loops import inputs_on
from .._neuron.runs import Run, running
from .._numbers import real, whole
from ..conversion.counterparts import check_ann, traced_ann
from ..general import MOST_LEVELS, Neuron
from ..network.network import SpikingNetwork
from ..neuron import IFNode
from .level_choice import cheapest


@dataclass(frozen=True)
class AdaFire:
    """What :func:`cos_ext.fit_adafire` found, by call site in the order of execution.

    Attributes:
        levels: φ, the most levels of a step that were chosen.
        sensitivities: of each choice the mean divergence of the outputs, where this layer alone
            departs from the usual φ.
        costs: of each choice the levels that the layer then sent.
        budget: the most that the costs of the chosen ones may sum to.
    """

    levels: dict[str, int]
    sensitivities: dict[str, dict[int, float]]
    costs: dict[str, dict[int, int]]
    budget: float

    @property
    def cost(self) -> int:
        """The sum of the chosen ones' costs."""
        return sum(self.costs[site][level] for site, level in self.levels.items())


@torch.no_grad()
def fit_adafire(
    network: SpikingNetwork,
    ann: nn.Module,
    batches: Iterable[Any],
    *,
    levels: int = 4,
    choices: Sequence[int] | None = None,
    ratio: float = 1.0,
    progress: bool = True,
) -> AdaFire:
    r"""Make a network's neurons AdaFire neurons, with as many levels a step in each layer as pays.

    Wang et al., "Adaptive calibration: a unified conversion framework of spiking neural networks",
    AAAI 2025 (arXiv 2412.16219). A neuron of layer l starts at v(0) = 0 and sends up to
    :math:`\varphi_l` levels in a step:

    .. math:: m = v(t-1) + x(t) + \frac{\theta}{2T}, \quad
              s = \mathrm{clip}(\lfloor m/\theta \rfloor, 0, \varphi_l), \quad v(t) = m - \theta s

    Their sensitivity spike compression chooses :math:`\varphi_l`. Let P be the softmax of the ANN's
    outputs, and Q that of the network's mean outputs over T steps. For each layer and each choice
    the sensitivity is S = E[KL(P, Q) + KL(Q, P)], and the cost is the number of levels that this
    layer sends. A dynamic programme finds the choices of least ΣS whose costs sum to at most
    ``ratio`` times that of φ = ``levels`` everywhere.

    As in the authors' code (bic-L/burst-ann2snn), of which the rule was read. While one layer is
    tried, the others have φ = ``levels`` here. Their second variant, which scales thresholds in the
    same search, is not part of this. The thresholds do not change:
    ``calibrate_thresholds(method="adafire")`` finds them before conversion.

    It takes a pass over the data for every layer and choice. All is saved with the network. The
    current θ/(2T) is fitted to the network's ``timesteps``: for another T, fit again.

    Args:
        network: from :func:`cos_ext.convert`, without calibration by rho in the paper; put in eval
            mode. Its neurons of before are replaced, and their v(0).
        ann: the model that it was converted from, in the network's dtype. A copy of it runs.
        batches: an iterable, read once, of tensors [B, ...] or of tuples whose first n elements are
            the ANN's inputs and whose others (labels) are ignored. The inputs are kept until the
            end, where the network is. Training images, never those on which the network is
            evaluated; the authors take one batch.
        levels: φ where nothing is chosen, >= 1.
        choices: those for each layer, >= 1; None: 1, ..., ``levels``. ``(levels,)`` sets that.
        ratio: of the cost, > 0.
        progress: a progress bar on stderr.

    Returns:
        The choices, and the numbers that they were made by. How the data are split into batches
        plays no part, but for rounding.

    Raises:
        TypeError: ann is no nn.Module, network no SpikingNetwork, or batches no iterable or one of
            something else. The network is as it was then, and also after the following.
        ValueError: an argument is out of range; ratio allows no choice; batches yields no sample;
            ann has other activation call sites or another dtype; the outputs are not [B, K, ...]
            with K >= 2, or not finite; thresholds by neuron, hard reset, a trainable network, or
            one with fitted potentials.
    """
    options = _check_arguments(network, ann, batches, levels, choices, ratio)
    traced = traced_ann(ann, network)
    network.eval()
    where, nodes = device_of(network), network.nodes()
    data = list(
        inputs_on(where, batches, traced.inputs, title="adafire: ANN", progress=progress, copy=True)
    )
    before = {site: (node.neuron, node.v_init) for site, node in nodes.items()}
    try:
        wanted = [_log_softmax(traced.inputs.call(traced.module, _copies(x)), x) for x in data]
        for node in nodes.values():
            _set(node, levels, network.timesteps)
        usual = _measured(network, data, wanted)
        harms: dict[str, dict[int, float]] = {}
        costs: dict[str, dict[int, int]] = {}
        pairs = [(site, level) for site in nodes for level in options]
        for site, level in tqdm(pairs, "adafire", disable=not progress, leave=False):
            harm, spikes = usual
            if level != levels:
                _set(nodes[site], level, network.timesteps)
                harm, spikes = _measured(network, data, wanted)
                _set(nodes[site], levels, network.timesteps)
            harms.setdefault(site, {})[level] = harm
            costs.setdefault(site, {})[level] = spikes[site]
        budget = ratio * sum(usual[1].values())
        chosen = _chosen(harms, costs, budget, ratio)
        for site, node in nodes.items():
            _set(node, chosen[site], network.timesteps)
        layers = network._layers
        own = {
            site: {**layers.get(site, {}), "neuron": node.neuron} for site, node in nodes.items()
        }
        network._change(layers=own)
    except BaseException:  # an interrupt, too, must not leave some layers tried and others not
        for site, node in nodes.items():
            node.neuron, node.v_init = before[site]
        raise
    return AdaFire(chosen, harms, costs, budget)


def _check_arguments(
    network: SpikingNetwork,
    ann: nn.Module,
    batches: Iterable[Any],
    levels: int,
    choices: Sequence[int] | None,
    ratio: float,
) -> list[int]:
    """The choices in rising order."""
    if not isinstance(network, SpikingNetwork):
        raise TypeError(f"network must be a SpikingNetwork, got {type(network).__name__}")
    check_ann(ann)
    check_batches(batches)
    whole("levels", levels, 1, MOST_LEVELS)
    if choices is None:
        choices = range(1, levels + 1)
    if not isinstance(choices, Sequence) or not choices:
        raise TypeError(f"choices must be a sequence of ints, one at least, got {choices!r}")
    options = sorted({whole("choices", each, 1, MOST_LEVELS) for each in choices})
    if not 0 < real("ratio", ratio) < float("inf"):
        raise ValueError(f"ratio must be positive and finite, got {ratio}")
    if network.execution != "steps":
        raise ValueError(
            f"network must have execution 'steps' to be fitted, got {network.execution!r}"
        )
    if network.trainable or network.static_calibration is not None:
        raise ValueError(
            "network must not be trainable, nor have potentials of fit_v_init: its v(0) become 0; "
            "convert anew"
        )
    for site, node in network.nodes().items():
        if node.v_reset is not None:
            raise ValueError(f"network must have neurons with soft reset, not so {site!r}")
        theta = node.v_threshold
        if theta.numel() not in (1, *theta.shape[:1]):
            raise ValueError(
                f"thresholds must be one for a layer or a channel, those of {site!r} are "
                f"{tuple(theta.shape)}"
            )
    return options


def _set(node: IFNode, levels: int, timesteps: int) -> None:
    """Make the neurons of a node AdaFire neurons of so many levels a step."""
    theta, steps = node.v_threshold, node.timesteps
    current = theta / (2 * timesteps)
    rows = current.reshape(1, -1) if theta.numel() > 1 else current.reshape(1)
    rows = rows.repeat(steps, *[1] * (rows.dim() - 1))
    node.neuron = Neuron(levels=(0, levels), step_bias=rows)
    node.v_init = torch.zeros_like(theta)


def _copies(inputs: list[Tensor]) -> list[Tensor]:
    """In memory of their own: an activation that works in place may write over them."""
    return [x.clone() for x in inputs]


def _log_softmax(outputs: Any, inputs: list[Tensor]) -> Tensor:
    """Of outputs [B, K, ...], in float64; in whatever structure, but one tensor."""
    scores = [each for each in pytree.tree_leaves(outputs) if isinstance(each, Tensor)]
    if len(scores) != 1 or scores[0].dim() < 2 or scores[0].shape[1] < 2:
        shown = ", ".join(str(tuple(each.shape)) for each in scores)
        raise ValueError(
            f"outputs must be scores [B, K, ...] of K >= 2 classes, which have a divergence; got "
            f"{shown} for {inputs[0].shape[0]} samples"
        )
    return scores[0].double().log_softmax(1)


def _measured(
    network: SpikingNetwork, data: list[list[Tensor]], wanted: list[Tensor]
) -> tuple[float, dict[str, int]]:
    """The divergence from the ANN's outputs, and the levels that every layer sends."""
    total, places = torch.zeros((), dtype=torch.float64, device=wanted[0].device), 0
    with running(Run(counts=True)) as run:
        for inputs, p in zip(data, wanted):
            q = _log_softmax(network.rate(*_copies(inputs)), inputs)
            total += ((p.exp() - q.exp()) * (p - q)).sum()
            places += p.numel() // p.shape[1]
    harm = float(total) / places
    if harm != harm or harm in (float("inf"), -float("inf")):
        raise ValueError("batches must give finite outputs, the divergence of these is not")
    nothing = (0, 0)
    return harm, {
        site: int(run.emitted.get(node, nothing)[0]) for site, node in network.nodes().items()
    }


def _chosen(
    harms: dict[str, dict[int, float]],
    costs: dict[str, dict[int, int]],
    budget: float,
    ratio: float,
) -> dict[str, int]:
    least = sum(min(own.values()) for own in costs.values())
    if least > budget:
        raise ValueError(
            f"ratio must be at least {least * ratio / budget:.4g} for these choices, got {ratio}"
        )
    options = list(next(iter(costs.values())))
    places = cheapest(
        [list(own.values()) for own in harms.values()],
        [list(own.values()) for own in costs.values()],
        budget,
    )
    return {site: options[place] for site, place in zip(costs, places)}
