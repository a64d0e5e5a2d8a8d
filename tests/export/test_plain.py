"""Networks in plain torch, as exporters are given them: EQUAL to the kernels'."""

import pytest
import torch
from every_neuron import FAMILIES, arguments, currents, node_of
from torch import nn

from cos_ext import convert
from cos_ext.export.plain import PlainNeurons, PlainUnfit, example_for, plain
from cos_ext.network.finite import Unfit

SETTINGS = [settings for family in FAMILIES.values() for settings in family]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_neurons(settings):
    node, x = node_of(**settings), currents(4)
    given = arguments(node, x, currents(4))
    found, expected = PlainNeurons(node)(*given), node(*given)
    assert expected.count_nonzero() > 10
    assert torch.equal(found.nan_to_num(-7), expected.nan_to_num(-7))


@pytest.mark.parametrize("options", [{}, {"emission": "even", "timesteps": 3}, {"rho": 0}], ids=str)
def test_a_network(options):
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(4, 4, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3)),
    ).eval()
    settings = {"timesteps": 4, "rho": 4, "max_pool": "before", **options}
    network = convert(model.double(), thresholds={"2": 0.5, "5": 0.3}, **settings).float()
    network.convolution = "dense"
    x = torch.rand(5, 1, 8, 8)
    x[3, 0, 0, 0] = torch.inf
    copy = plain(network)
    found, expected = copy(x), network(x)
    assert found.shape == expected.shape == (network.timesteps, 5, 3)
    assert found.isnan().all(2).any(0).tolist() == [False, False, False, True, False]
    assert torch.allclose(found, expected, atol=1e-5, equal_nan=True)
    assert network.nodes().keys() and not any(type(m).__name__ == "IFNode" for m in copy.modules())
    assert not any(p.requires_grad for p in copy.parameters())


def test_an_example_has_two_samples():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    network = convert(model, timesteps=2, thresholds={"1": 0.5})
    (x,) = example_for(network, torch.ones(1, 3, dtype=torch.float64))
    assert x.shape == (2, 3) and x.dtype == torch.float32


@pytest.mark.parametrize("sums", [False, True])
def test_marks(sums):
    unfit = Unfit(sums)
    x = torch.zeros(5, 2, 3)
    x[1, 0, 1], x[2, 1, 2], x[3, 0, 0] = torch.nan, torch.inf, -torch.inf
    for given in (x, x[:, 0, 1], x.nan_to_num().long()):
        assert torch.equal(PlainUnfit(unfit)(given), unfit(given))
    assert unfit(x).tolist() == [False, True, True, sums, False]
