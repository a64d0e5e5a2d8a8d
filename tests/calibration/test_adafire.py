"""fit_adafire against a plain computation, its dynamic programme against trying everything, and
what leaves the network as it was.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from rival_networks import THRESHOLDS, plain_network, small
from torch import nn

import cos_ext
from cos_ext import convert, fit_adafire, load_network
from cos_ext.calibration import level_choice
from cos_ext.calibration.level_choice import cheapest

pytestmark = pytest.mark.usefixtures("one_thread")


# The choice
def tried(harms, costs, budget):
    """The least harm of all choices within the budget, by trying all."""
    options = [range(len(own)) for own in harms]
    return min(
        (
            (sum(h[k] for h, k in zip(harms, ks)), sum(c[k] for c, k in zip(costs, ks)))
            for ks in itertools.product(*options)
            if sum(c[k] for c, k in zip(costs, ks)) <= budget
        ),
        default=None,
    )


@pytest.mark.parametrize("seed", range(30))
def test_the_choice_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    layers, options = rng.integers(1, 6), rng.integers(1, 5)
    # Few different numbers: many ties.
    harms = rng.integers(0, 6, (layers, options)).tolist()
    costs = rng.integers(0, 6, (layers, options)).tolist()
    for budget in {0, *range(0, 5 * layers + 2, 2)}:
        best = tried(harms, costs, budget)
        if best is None:
            with pytest.raises(ValueError, match=f"at least {sum(map(min, costs))}, got"):
                cheapest(harms, costs, budget)
            continue
        chosen = cheapest(harms, costs, budget)
        sums = tuple(sum(own[k] for own, k in zip(each, chosen)) for each in (harms, costs))
        assert sums == best  # of equal harm, the cheapest


def test_the_choice_keeps_to_the_budget_where_fronts_are_thinned(monkeypatch):
    rng = np.random.default_rng(0)
    harms, costs = rng.random((9, 4)).tolist(), rng.random((9, 4)).tolist()
    for budget in (1.001 * sum(map(min, costs)), 2.0, 3.5, 6.0):
        monkeypatch.setattr(level_choice, "KEPT", 1 << 16)
        exact = cheapest(harms, costs, budget)
        assert sum(h[k] for h, k in zip(harms, exact)) == pytest.approx(
            tried(harms, costs, budget)[0]
        )
        for kept in (3, 40):
            monkeypatch.setattr(level_choice, "KEPT", kept)
            thin = cheapest(harms, costs, budget)
            assert sum(c[k] for c, k in zip(costs, thin)) <= budget
        most = sum(h[k] for h, k in zip(harms, exact)) + 0.5
        assert sum(h[k] for h, k in zip(harms, thin)) <= most


# In a network
def adafire(x_seq, theta, levels, timesteps):
    """The neuron as published."""
    v, sent = torch.zeros_like(x_seq[0]), []
    for x in x_seq:
        v = v + x + theta / (2 * timesteps)
        s = (v / theta).floor().clamp(0, levels) * theta
        v = v - s
        sent.append(s)
    return torch.stack(sent)


def by_hand(network, ann, x, levels):
    """The divergence of the outputs, and the levels that each site sends."""
    costs = {}

    def emitted(site, theta, v, x_seq):
        sent = adafire(x_seq, theta, levels[site], network.timesteps)
        costs[site] = int((sent / theta).round().sum())
        return sent

    outputs = plain_network(network, x, emitted)
    p, q = ann(x).softmax(1), outputs.mean(0).softmax(1)
    kl = (p * (p / q).log()).sum(1) + (q * (q / p).log()).sum(1)
    return float(kl.mean()), costs


@pytest.fixture
def pair():
    ann = small().double()
    return ann, convert(ann, timesteps=3, thresholds=THRESHOLDS, fuse=False)


def images(count=7, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(count, 1, 8, 8, dtype=torch.float64, generator=generator)


@torch.no_grad()
def test_numbers_and_choice_are_those_of_a_plain_computation(pair):
    ann, network = pair
    x = images()
    found = fit_adafire(
        network, ann, [x[:3], (x[3:], torch.zeros(1))], levels=3, ratio=0.8, progress=False
    )
    assert list(found.levels) == list(network.nodes()) == ["1", "3"]
    plain = convert(ann, timesteps=3, thresholds=THRESHOLDS, fuse=False)
    usual = by_hand(plain, ann, x, {"1": 3, "3": 3})
    assert found.budget == pytest.approx(0.8 * sum(usual[1].values()))
    for site in found.levels:
        for level in (1, 2, 3):
            harm, costs = by_hand(plain, ann, x, {"1": 3, "3": 3, site: level})
            assert found.sensitivities[site][level] == pytest.approx(harm, rel=1e-9)
            assert found.costs[site][level] == costs[site]
    harms, costs = found.sensitivities, found.costs
    best = min(
        (harms["1"][a] + harms["3"][b], costs["1"][a] + costs["3"][b], a, b)
        for a in (1, 2, 3)
        for b in (1, 2, 3)
        if costs["1"][a] + costs["3"][b] <= found.budget
    )
    assert best[2:] != (3, 3)
    assert tuple(found.levels.values()) == best[2:] and found.cost == best[1] <= found.budget
    expected = plain_network(
        plain, x, lambda site, theta, v, x_seq: adafire(x_seq, theta, found.levels[site], 3)
    )
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)


def test_batches_do_not_matter(pair):
    ann, network = pair
    x = images()
    whole = fit_adafire(network, ann, [x], levels=2, choices=[1, 3], progress=False)
    parts = fit_adafire(
        network, ann, x.split([1, 0, 4, 2]), levels=2, choices=(3, 1), progress=False
    )
    assert whole.levels == parts.levels and whole.costs == parts.costs
    for site, own in whole.sensitivities.items():
        assert own == pytest.approx(parts.sensitivities[site], rel=1e-9)


def test_saved_and_loaded_and_changed_settings_keep_it(pair, tmp_path):
    ann, network = pair
    x = images()
    found = fit_adafire(network, ann, [x], levels=3, ratio=0.7, progress=False)
    network.iterations = None  # a change of settings
    for site, node in network.nodes().items():
        theta = node.v_threshold
        assert node.neuron.levels == (0, found.levels[site]) and not node.v_init.any()
        shape = (3, 3) if theta.numel() == 3 else (3,)
        assert node.neuron.step_bias.shape == shape
        assert torch.equal(node.neuron.step_bias[1].flatten(), theta.flatten() / 6)
    network.save(tmp_path / "network.safetensors")
    again = load_network(tmp_path / "network.safetensors", ann)
    assert torch.equal(again(x), network(x))


def test_a_single_choice_is_set(pair):
    ann, network = pair
    found = fit_adafire(network, ann, [images()], levels=5, choices=[5], progress=False)
    assert found.levels == {"1": 5, "3": 5} and found.cost == found.budget


def state_of(network):
    return {
        "state": {key: value.clone() for key, value in network.state_dict().items()},
        "neurons": [node.neuron for node in network.nodes().values()],
        "layers": network._layers,
    }


def unchanged(network, before):
    now = state_of(network)
    same = now["state"].keys() == before["state"].keys()
    return (
        same
        and all(torch.equal(value, before["state"][key]) for key, value in now["state"].items())
        and now["neurons"] == before["neurons"]
        and now["layers"] == before["layers"]
    )


class Interrupted(nn.Module):
    """Passes a few calls on, and then fails."""

    def __init__(self, calls):
        super().__init__()
        self.left = calls

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return x


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_an_interrupted_fit_leaves_the_network_as_it_was(pair, calls):
    ann, network = pair
    first = cos_ext.Neuron(levels=(0, 2), step_bias=torch.rand(3, dtype=torch.float64))
    network.set_layer("1", neuron=first)
    before = state_of(network)
    tail = Interrupted(calls)
    handle = network.register_forward_hook(lambda module, args, out: tail(out))
    with pytest.raises(KeyboardInterrupt):
        fit_adafire(network, ann, [images()], levels=3, progress=False)
    handle.remove()
    assert unchanged(network, before)
    network.timesteps = 3  # nor does the next change of settings
    assert unchanged(network, before)


def test_errors_leave_the_network_as_it_was(pair):
    ann, network = pair
    x, before = images(), state_of(network)

    def fails(error, match, network=network, ann=ann, batches=(x,), **arguments):
        with pytest.raises(error, match=match):
            fit_adafire(network, ann, batches, progress=False, **arguments)

    fails(TypeError, "network must be a SpikingNetwork, got Sequential", network=ann)
    fails(TypeError, "ann must be an nn.Module, got str", ann="ann")
    fails(TypeError, "batches must be an iterable", batches=x)
    fails(ValueError, "at least one sample", batches=[])
    fails(ValueError, "levels must be >= 1", levels=0)
    fails(TypeError, "levels must be an int", levels=2.5)
    for choices in ([], 3, "12"):
        fails(TypeError, "choices must be", choices=choices)
    fails(ValueError, "choices must be >= 1", choices=[0, 1])
    for ratio in (0.0, -1.0, math.inf, math.nan):
        fails(ValueError, "ratio must", ratio=ratio)
    fails(TypeError, "ratio must be a float", ratio="1")
    fails(ValueError, r"ratio must be at least 0\.\d+ for these choices, got 0.01", ratio=0.01)
    fails(ValueError, "finite", batches=[torch.full_like(x, math.nan)])
    fails(ValueError, "ann must have the network's dtype", ann=small())
    fails(ValueError, "model that the network was converted from", ann=small()[:3])
    assert unchanged(network, before)
    network.calibration = "srp"
    fails(ValueError, "calibration 'srp' is for neurons of one level")
    network.calibration = "cos"
    assert unchanged(network, before)


def test_networks_that_cannot_have_them():
    ann, x = small().double(), images()
    fit = {"batches": [x], "progress": False}
    network = convert(ann, timesteps=2, thresholds=THRESHOLDS)
    network.nodes()["1"].v_threshold = torch.ones(3, 6, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match="one for a layer or a channel, those of '1' are"):
        fit_adafire(network, ann, **fit)
    network = convert(ann, timesteps=2, thresholds=THRESHOLDS)
    network.nodes()["3"].v_reset = 0.0
    with pytest.raises(ValueError, match="soft reset, not so '3'"):
        fit_adafire(network, ann, **fit)
    network = convert(ann, timesteps=2, thresholds=THRESHOLDS, trainable=True)
    with pytest.raises(ValueError, match="must not be trainable"):
        fit_adafire(network, ann, **fit)
    one = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    network = convert(one, timesteps=2, thresholds={"2": 1.0})
    with pytest.raises(ValueError, match=r"K >= 2 classes, .* got \(7, 1\)"):
        fit_adafire(network, one, **fit)


def test_progress(pair, capsys):
    ann, network = pair
    fit_adafire(network, ann, [images()], levels=2)
    assert "adafire" in capsys.readouterr().err
    fit_adafire(network, ann, [images()], levels=2, progress=False)
    assert capsys.readouterr().err == ""
