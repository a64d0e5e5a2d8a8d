"""energy_report and statistics of networks with signed neurons, beside binary ones and differences,
against counts by hand and by layers of ones. Products of two tensors: test_energy_differences.py.
"""

import pytest
import torch
from energy_counts import inputs_and_kinds, inputs_of, layers_of, ones, report_of
from torch import nn

from cos_ext import calibrate_thresholds, convert

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 3
TOKENS = torch.rand(5, 3, 4, generator=torch.manual_seed(0))


class Curved(nn.Module):
    """A linear layer that passes its input on, a GELU, a linear layer of 2 outputs."""

    def __init__(self):
        super().__init__()
        self.first, self.gelu, self.last = nn.Linear(3, 3, bias=False), nn.GELU(), nn.Linear(3, 2)
        nn.init.eye_(self.first.weight)

    def forward(self, x):
        return self.last(self.gelu(self.first(x)))


@pytest.mark.parametrize("rho", [0, 4])
def test_a_spike_down_is_an_accumulate_as_one_up(rho):
    """gelu(x) = 0.63, -0.14 and -0.02 from v(0) = θ/2 = 0.25 on: the first neuron fires at every
    step, the second is below 0 at the second step, the third never.
    """
    network = convert(Curved(), timesteps=4, rho=rho, thresholds={"gelu_spikes": 0.5})
    report = report_of(network, torch.tensor([[0.8, -0.4, -2.5]]))
    first, last = report.layers
    assert (first.input, first.macs) == ("static", 9)
    assert (last.input, last.operation, last.per_step) == ("spikes", "AC", (2.0, 4.0, 2.0, 2.0))
    assert last.nonzero == 5 / 12 and report.acs == [2, 6, 8, 10]
    assert report.neuron_updates == tuple(3.0 * (rho + t) for t in (1, 2, 3, 4))
    assert report.uncounted == {}
    statistics = network.statistics([torch.tensor([[0.8, -0.4, -2.5]])], progress=False)
    assert statistics.layers["gelu_spikes"].spikes == 5


class Mixed(nn.Module):
    """Rectifiers and GELUs side by side and in a row, a residual, a norm, layers after each."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.relu, self.gelu = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.GELU()
        self.joined, self.silu = nn.Conv2d(8, 4, 1), nn.SiLU()
        self.third, self.norm = nn.Conv2d(4, 4, 1), nn.GroupNorm(1, 4)
        self.fourth, self.act, self.last = (
            nn.Conv2d(4, 4, 1),
            nn.ReLU(),
            nn.Linear(4, 2, bias=False),
        )

    def forward(self, x):
        x = self.first(x)
        y = torch.cat([self.relu(x), self.gelu(x)], 1)
        z = self.silu(self.joined(y))
        z = self.act(self.fourth(self.norm(self.third(z))))
        return self.last(z.flatten(2).transpose(1, 2))


PICTURES = torch.randn(4, 2, 5, 5, generator=torch.manual_seed(2))


def mixed(**settings):
    model = Mixed().eval()
    thresholds = calibrate_thresholds(model, [PICTURES], progress=False)
    thresholds["gelu_spikes"] = 0.15  # low enough for spikes down
    return convert(model, timesteps=STEPS, thresholds=thresholds, **settings)


@pytest.mark.parametrize("settings", [{"rho": 0}, {"rho": STEPS}], ids=str)
def test_binary_and_signed_neurons_with_differences_in_one_network(settings):
    network = mixed(**settings)
    report = report_of(network, PICTURES)
    found = layers_of(report)
    assert inputs_and_kinds(report) == {
        "first": ("static", found["first"].macs),
        "joined": ("spikes", 8 * 4 * 25),
        "third": ("spikes", 16 * 25),
        "fourth": ("graded", 16 * 25),
        "last": ("spikes", 8 * 25),
    }
    assert found["fourth"].per_step == (400.0,) * STEPS
    statistics = network.statistics([PICTURES], progress=False).layers
    assert list(statistics) == list(network.nodes()) and "silu_spikes" in statistics
    for site in ("joined", "third", "last"):
        x = inputs_of(network, site, PICTURES)
        layer = ones(network.module.get_submodule(site))
        sent = (x != 0).double()
        steps = [layer(step).sum().item() / 4 for step in sent]
        assert found[site].per_step == pytest.approx(steps, rel=1e-12), site
        assert found[site].nonzero == pytest.approx(sent.mean().item())
    for site in ("joined", "third"):
        assert (inputs_of(network, site, PICTURES) < 0).any()
    for site, reader in (("silu_spikes", "third"), ("act", "last")):
        x = inputs_of(network, reader, PICTURES)
        assert statistics[site].spikes == (x != 0).sum().item() > 0
        assert statistics[site].neurons == x[0].numel()
        silent = (x == 0).all(0).double().mean().item()
        assert statistics[site].silent_share == pytest.approx(silent)
    both = statistics["relu"].spikes + statistics["gelu_spikes"].spikes
    assert both == (inputs_of(network, "joined", PICTURES) != 0).sum().item()
    assert report.uncounted == {
        "running_mean": 2 * 100,
        "silu": 100,
        "native_group_norm": 100,
        "difference": 2 * 100,
    }


def test_neurons_before_every_layer_are_counted_too():
    model = Mixed().eval()
    thresholds = calibrate_thresholds(model, [PICTURES], spikes="inputs", progress=False)
    network = convert(model, timesteps=STEPS, rho=2, thresholds=thresholds, spikes="inputs")
    found = layers_of(report_of(network, PICTURES))
    assert [layer.input for layer in found.values()] == ["static"] + ["spikes"] * 4
    for site in ("joined", "third", "fourth", "last"):
        sent = (inputs_of(network, site, PICTURES) != 0).double()
        layer = ones(network.module.get_submodule(site))
        steps = [layer(step).sum().item() / 4 for step in sent]
        assert found[site].per_step == pytest.approx(steps, rel=1e-12), site


class Constants(nn.Module):
    """Products of spikes with constant matrices."""

    def __init__(self, product, width):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.gelu = nn.Linear(4, 4), nn.GELU()
        self.left, self.right = nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.randn(4, 5))
        self.product, self.last = product, nn.Linear(width, 2)

    def forward(self, x):
        return self.last(self.product(self.gelu(self.first(x)), self.left, self.right))


@pytest.mark.parametrize(
    "product, width, fan_out, macs",
    [
        (lambda s, left, right: left @ s, 4, 6, 6 * 3 * 4),
        (lambda s, left, right: s @ right, 5, 5, 3 * 4 * 5),
        (lambda s, left, right: torch.einsum("bnk,km->bnm", s, right), 5, 5, 3 * 4 * 5),
    ],
)
def test_products_of_signed_spikes_with_constants_accumulate(product, width, fan_out, macs):
    model = Constants(product, width).eval()
    network = convert(
        model, timesteps=STEPS, thresholds={"gelu_spikes": 0.25}, example_input=TOKENS - 0.5
    )
    spikes = []
    network.nodes()["gelu_spikes"].register_forward_hook(
        lambda m, args, out: spikes.append(out.clone())
    )
    network(TOKENS - 0.5)
    sent = spikes[0].unflatten(0, (STEPS, 5))
    assert (sent < 0).any() and (sent > 0).any()
    _, found, _ = report_of(network, TOKENS - 0.5).layers
    assert (found.input, found.macs) == ("spikes", macs)
    expected = (sent != 0).sum((1, 2, 3)) * fan_out / 5
    assert found.per_step == pytest.approx(expected.tolist())
    assert found.nonzero == pytest.approx((sent != 0).double().mean().item())
