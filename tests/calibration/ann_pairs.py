"""A small ANN, and plain loops over time and layers, written from the published equations, that fit
corrections to a network made from it. Nothing of the kernels is in them. No tests here.
"""

import pytest
import torch
from torch import nn

from cos_ext import Neuron, convert

SITES = ("1", "3", "6")
THRESHOLDS = {"1": torch.tensor([1.0, 0.5, 0.75]).view(3, 1, 1), "3": 0.5, "6": 0.375}


def small(dtype=torch.float64):
    """Two convolutions, and a layer after a Linear: neurons without positions."""
    torch.manual_seed(4)
    hidden = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.ReLU()]
    last = [nn.Flatten(), nn.Linear(32, 5), nn.ReLU(), nn.Linear(5, 4)]
    return nn.Sequential(*hidden, *last).to(dtype).eval()


def batches_of(*sizes, dtype=torch.float64):
    torch.manual_seed(5)
    return [torch.randn(size, 1, 8, 8, dtype=dtype) for size in sizes]


def network_of(ann, timesteps, levels=1, **options):
    neuron = None if levels == 1 else Neuron(levels=(0, levels))
    return convert(ann, timesteps=timesteps, thresholds=THRESHOLDS, neuron=neuron, **options)


def state_of(network):
    """All that a fit may change, to be compared."""
    names = ("timesteps", "rho", "iterations", "emission", "calibration", "neuron")
    tensors = {name: each.clone() for name, each in network.state_dict().items()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())
    return {name: getattr(network, name) for name in names}, dict(network._layers), tensors, hooks


def equal_states(a, b):
    same = a[2].keys() == b[2].keys() and all(torch.equal(a[2][k], b[2][k]) for k in a[2])
    return same and (a[0], a[1], a[3]) == (b[0], b[1], b[3])


# The ANN by layers
# What every fit refuses: the error, its words, and the arguments that are other than usual.
REFUSED = [
    (TypeError, "ann must be an nn.Module, got str", {"ann": "ann"}),
    (TypeError, "batches must be an iterable", {"batches": torch.zeros(2, 1, 8, 8)}),
    (ValueError, "at least one sample", {"batches": []}),
    (ValueError, "activations at", {"ann": nn.Sequential(nn.Linear(2, 2), nn.ReLU())}),
    (ValueError, "must give finite", {"batches": [torch.full((2, 1, 8, 8), torch.nan).double()]}),
]


def assert_refused(fit, error, words, changed):
    """The fit raises, and leaves the network as it was."""
    ann = small()
    network = network_of(ann, 2)
    before = state_of(network)
    with pytest.raises(error, match=words):
        fit(network, **{"ann": ann, "batches": batches_of(2), **changed})
    assert equal_states(state_of(network), before)


def layers_of(ann):
    """(site, what makes its currents, θ) in order."""
    makes = (ann[0], ann[2], ann[4:6])
    return [(s, make, torch.as_tensor(THRESHOLDS[s]).double()) for s, make in zip(SITES, makes)]


def of_ann(ann, x):
    """Its currents and activations by site."""
    currents, activations = {}, {}
    for site, make, _ in layers_of(ann):
        currents[site] = make(x)
        x = activations[site] = currents[site].clamp(min=0)
    return currents, activations


def mean(x):
    """By channel."""
    return x.mean((0, 2, 3)) if x.dim() == 4 else x.mean(0)


def wide(values, x):
    """[C] beside [B, C, ...]."""
    return values.view(-1, 1, 1) if x.dim() == 4 else values


def sent(m, theta, levels=1):
    return (m / theta).floor().clamp(0, levels) * theta


# Fits
def zeros(ann, steps):
    return {
        site: torch.zeros(steps, mean(a).numel(), dtype=torch.float64)
        for site, a in of_ann(ann, batches_of(1)[0])[1].items()
    }


def plain_replay(ann, batches, steps, alpha, levels=1):
    """FTBC for QCFS: b as it is taken off."""
    found = zeros(ann, steps)
    for batch in batches:
        activations, into = of_ann(ann, batch)[1], [batch] * steps
        for site, make, theta in layers_of(ann):
            x = [make(each) for each in into]
            v = torch.zeros_like(x[0]) + theta / 2
            for t in range(steps):  # without b
                m = v + x[t]
                error = sent(m, theta, levels) - activations[site]
                found[site][t] += alpha * mean(error)
                v = (m - error) - sent(m - error, theta, levels)
            v, into = torch.zeros_like(x[0]) + theta / 2, []
            for t in range(steps):  # with it, for the next layer
                m = v - wide(found[site][t], v) + x[t]
                into.append(sent(m, theta, levels))
                v = m - into[t]
    return found


def plain_stepwise(ann, batches, steps, alpha, levels=1, spread=False):
    """FTBC for SNN calibration: the whole network step by step."""
    found = zeros(ann, steps)
    for batch in batches:
        activations, potentials = of_ann(ann, batch)[1], {}
        for t in range(steps):
            into = batch
            for site, make, theta in layers_of(ann):
                x = make(into)
                head = theta / (2 * steps) if spread else 0.0
                start = torch.zeros_like(x) + (0.0 if spread else theta / 2)
                v = potentials.get(site, start)
                before = sent(v + x + head - wide(found[site][t], x), theta, levels)
                found[site][t] += alpha * (mean(before) - mean(activations[site]))
                m = v + x + head - wide(found[site][t], x)
                into = sent(m, theta, levels)
                potentials[site] = m - into
    return found


def plain_potentials(ann, x, steps):
    """SNN calibration's, layer after layer; x is all samples."""
    activations, into, found = of_ann(ann, x)[1], [x] * steps, {}
    for site, make, theta in layers_of(ann):
        currents = [make(each) + theta / (2 * steps) for each in into]
        for start in (torch.zeros_like(currents[0][0]), None):
            v, into = found[site] if start is None else start, []
            for current in currents:
                m = v + current
                into.append(sent(m, theta))
                v = m - into[-1]
            if start is not None:
                missing = activations[site] - sum(into) / steps
                found[site] = steps * missing.mean(0)
    return found


def plain_shifts(ann, batches, steps, beta):
    """ψ and φ of parallel conversion: an ANN whose activations are quantised, beside the ANN."""
    psi = {site: each[0] for site, each in zeros(ann, 1).items()}
    phi = {site: each[0] for site, each in zeros(ann, 1).items()}
    for batch in batches:
        currents, activations = of_ann(ann, batch)
        into = batch
        for site, make, theta in layers_of(ann):
            x = make(into)
            if x.dim() == 4:
                psi[site] = beta * psi[site] + (1 - beta) * mean(currents[site] - x)
            shifted = (x + wide(psi[site], x)) * steps + theta / 2
            rate = (shifted / theta).floor().clamp(0, steps) / steps
            into = rate * (theta + wide(phi[site], x))
            if x.dim() == 4:
                phi[site] = beta * phi[site] + (1 - beta) * mean(activations[site] - into)
    return psi, phi
