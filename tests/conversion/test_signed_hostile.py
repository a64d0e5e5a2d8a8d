"""Signed neurons where something could forget that they are: settings, counts, methods. What they
compute is tested elsewhere.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as TF

from cos_ext import Neuron, calibrate_thresholds, convert
from cos_ext.methods import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.rand(4, 6, dtype=torch.float64, generator=torch.manual_seed(0))


def plain(**options):
    """Linear, GELU, Linear: one signed site, "1_spikes"."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 5)).double()
    return convert(model, timesteps=4, thresholds={"1_spikes": 0.5}, **options)


def test_counts_are_refused_by_the_name_of_the_site():
    network = plain(rho=4, emission="even")
    with pytest.raises(ValueError, match=r"neurons of one level, got a neuron at \['1_spikes'\]"):
        network.execution = "counts"
    assert network.execution == "steps"
    with pytest.raises(ValueError, match="1_spikes"):
        network.counts(X)
    with pytest.raises(ValueError, match="1_spikes"):
        plain(rho=4, emission="even", execution="counts")


def test_neurons_of_one_level_of_its_own_may_be_counted():
    network = plain(rho=4, emission="even")
    network.set_layer("1_spikes", neuron=None)
    expected = network(X)
    network.execution = "counts"
    torch.testing.assert_close(network(X), expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="1_spikes"):
        network.set_layer("1_spikes")
    assert network.nodes()["1_spikes"].neuron is None


@pytest.mark.parametrize("calibration", ["srp", "parallel"])
def test_calibrations_of_one_level_are_refused_by_the_name_of_the_site(calibration):
    with pytest.raises(ValueError, match=f"'1_spikes' do not go with that: .*{calibration}"):
        plain(rho=4, calibration=calibration)
    network = plain(rho=4)
    network.set_layer("1_spikes", neuron=None)
    network.calibration = calibration
    with pytest.raises(ValueError, match="1_spikes"):
        network.set_layer("1_spikes")
    assert network.nodes()["1_spikes"].neuron is None


UNSIGNED = ("srp", "parallel")  # refused, above


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if not m.fit and n not in UNSIGNED])
def test_every_method_sends_negative_numbers(name):
    """A constant -θ/2 at a signed site is sent as such; a gated ladder would send nothing."""
    torch.manual_seed(0)
    layer, head = nn.Linear(6, 1), nn.Linear(1, 1, bias=False)
    model = nn.Sequential(layer, nn.Hardshrink(0.0), head).double()
    with torch.no_grad():
        layer.weight.zero_(), layer.bias.fill_(-0.5), head.weight.fill_(1.0)
    rho = 16 if METHODS[name].latency == "rho + t" else 0
    network = convert(
        model, timesteps=16, rho=rho, method=name, thresholds={"1_spikes": 1.0}, iterations=None
    )
    torch.testing.assert_close(network.rate(X), model(X), rtol=0, atol=0.1)


class OfConstants(nn.Module):
    """A gate that is made of parameters alone."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.constant = nn.Parameter(torch.rand(8))

    def forward(self, x):
        gate = TF.gelu(self.second(self.constant))
        return self.head(TF.gelu(self.first(x)) * gate)


def test_an_activation_of_constants_has_no_neurons_and_leaves_settings_alone():
    model = OfConstants().double()
    thresholds = calibrate_thresholds(model, [X], progress=False)
    network = convert(model, timesteps=64, rho=64, thresholds=thresholds, iterations=None)
    assert len(network.nodes()) == 1
    network.emission = "even"
    torch.testing.assert_close(network.rate(X), model(X), rtol=0, atol=0.02)


def test_a_gated_ladder_loses_its_gate():
    gated = Neuron(ladder=3, gated=True, prediction=True)
    assert gated.signed == Neuron(ladder=3, prediction=True)
