"""energy_report of general neurons: a level is an accumulate for every output that it reaches.
Against counts by hand, and by layers of ones on the levels.
"""

import pytest
import torch
from energy_counts import inputs_of, make_net, ones, report_of
from torch import nn
from untraced import untraced

from cos_ext import QCFS, Neuron, convert

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(*last):
    """Neurons on the input itself, θ = 1/4, and a linear layer of 3 outputs."""
    return nn.Sequential(QCFS(4, 0.25), *last, nn.Linear(3, 3))


# x = 0.6, 0.25 and -0.6 from v(0) = 1/8 on: the levels at three steps.
BY_HAND = {
    "four levels": (Neuron(levels=(0, 4)), [[2, 1, 0], [3, 1, 0], [2, 1, 0]]),
    "signed": (Neuron(levels=(-1, 1), lower=1.0), [[1, 1, 1], [1, 1, 1], [1, 1, 1]]),
    # |0.725| takes θ, the largest; 0.375 takes θ, -0.475 -θ.
    "a ladder": (Neuron(ladder=2), [[1, 1, 1], [1, 1, 1], [1, 1, 1]]),
    "emitted": (Neuron(levels=(0, 4), emitted=0.7), [[2, 1, 0], [3, 1, 0], [2, 1, 0]]),
    "steps of their own": (
        Neuron(levels=(0, 4), step_scale=(4.0, 2.0, 1.0)),
        [[0, 0, 0], [2, 1, 0], [3, 1, 0]],
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_levels_counted_by_hand(name):
    neuron, levels = BY_HAND[name]
    network = convert(tiny(), timesteps=3, neuron=neuron)
    (layer,) = report_of(network, torch.tensor([[0.6, 0.25, -0.6]])).layers
    assert layer.input == "spikes" and layer.operation == "AC"
    assert layer.per_step == tuple(3.0 * sum(step) for step in levels)
    fires = sum(level != 0 for step in levels for level in step)
    assert layer.nonzero == pytest.approx(fires / 9) and layer.macs == 9


def test_energy_and_bits_follow():
    network = convert(tiny(), timesteps=3, neuron=Neuron(levels=(0, 4)))
    report = report_of(network, torch.tensor([[0.6, 0.25, -0.6]]))
    assert report.acs == [9.0, 21.0, 30.0] and report.graded_macs == [0, 0, 0]
    assert report.snn_joules == pytest.approx([0.9e-12 * n for n in (9 + 3, 21 + 6, 30 + 9)])
    assert report.bits == 4  # 0..12
    network.neuron = Neuron(ladder=3)
    assert report_of(network, torch.ones(1, 3)).bits == 4  # 0..12 quarters
    network.neuron = Neuron(levels=(0, 3))
    network.rho = 1
    assert report_of(network, torch.ones(1, 3)).bits == 2  # 0..3


DIFFERENTIAL = Neuron(ladder=3, gated=True, prediction=True)


def predicting(x, neuron):
    """The levels, or rungs, of six steps of a neuron on x, θ = 1/4."""
    v, mean, total, sent = 0.125, 0.0, 0.0, []
    for t in range(1, 7):
        d = v + x - mean
        if neuron.ladder is None:
            o = 0.25 * min(max(int(d // 0.25), 0), 2)
        else:
            rungs = [0.25 / 2**i for i in range(3)]
            taken = [r for r in rungs if abs(d) >= 0.75 * r and (d >= 0 or total + mean >= r)]
            o = (taken[0] if d >= 0 else -taken[0]) if taken else 0.0
        v, total, mean = d - o, total + o + mean, mean + o / t
        sent.append(round(o / 0.25) if neuron.ladder is None else int(o != 0))
    return sent


LEVELS = Neuron(levels=(-2, 3), lower=0.5)


class Moves(nn.Module):
    """What moves spikes, and a layer after each."""

    def __init__(self):
        super().__init__()
        self.first, self.act = nn.Conv2d(2, 4, 3, padding=1), QCFS(4, 0.25)
        self.other, self.act2 = nn.Conv2d(2, 2, 1), QCFS(4, 0.75)
        self.pad = nn.ReflectionPad2d(1)
        self.padded, self.shuffled = nn.Conv2d(4, 3, 3), nn.Conv2d(1, 2, 2)
        self.joined, self.flat = nn.Conv2d(6, 3, 1), nn.Linear(4 * 36, 3)
        self.mixed = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        a, b = self.act(self.first(x)), self.act2(self.other(x))
        one = self.padded(self.pad(a)).flatten(1)
        two = self.shuffled(nn.functional.pixel_shuffle(a, 2)).flatten(1)
        three = self.joined(torch.cat([a, b], 1)).flatten(1)
        four = self.flat(a.transpose(2, 3).flatten(1))
        five = self.mixed(nn.functional.avg_pool2d(a, 2)).flatten(1)
        return torch.cat([one, two, three, four, five], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_levels_are_known_wherever_they_are_moved(dtype):
    torch.manual_seed(0)
    theta = torch.tensor([0.25, 0.5, 0.125, 1.0])[:, None, None]
    network = convert(Moves(), timesteps=3, neuron=LEVELS, thresholds={"act": theta}).to(dtype)
    x = (2 * torch.randn(5, 2, 6, 6)).to(dtype)
    found = {layer.site: layer for layer in report_of(network, x).layers}
    wide = theta.expand(4, 6, 6)
    sizes = {
        "padded": theta,
        "shuffled": nn.functional.pixel_shuffle(wide, 2),
        "joined": torch.cat([theta, torch.full((2, 1, 1), 0.75)]),
        "flat": wide.flatten(),
    }
    for site, size in sizes.items():
        levels = (inputs_of(network, site, x).double() / size).round().abs()
        assert levels.max() == 3 and found[site].input == "spikes", site
        layer = ones(network.module.get_submodule(site))
        steps = [layer(step).sum().item() / 5 for step in levels]
        assert found[site].per_step == pytest.approx(steps, rel=1e-12), site
        assert found[site].nonzero == pytest.approx((levels != 0).double().mean().item())
    assert found["mixed"].input == "graded"


def test_what_is_written_into_is_levels_no_more():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.fc = QCFS(4, 0.25), nn.Linear(3, 3)

        def forward(self, x):
            y = self.act(x)
            if written:
                untraced(x)
                y[:, 1] *= 0.3
            return self.fc(y)

    for written in (False, True):
        x = torch.tensor([[0.6, 0.25, 1.0], [0.1, 0.9, 0.5]])
        network = convert(Written(), timesteps=2, neuron=Neuron(levels=(0, 4)), example_input=x)
        (layer,) = report_of(network, x).layers
        assert layer.input == ("graded" if written else "spikes")


@pytest.mark.parametrize("neuron", [Neuron(levels=(0, 2), prediction=True), DIFFERENTIAL])
def test_of_neurons_that_predict_only_the_rest_counts(neuron):
    torch.manual_seed(0)
    network = convert(tiny(), timesteps=6, neuron=neuron).double()  # as Python counts
    x = torch.randn(40, 3, dtype=torch.float64)
    (layer,) = report_of(network, x).layers
    assert layer.input == "spikes"
    sent, count = torch.zeros(6), 0
    for one in x.flatten().tolist():
        levels = predicting(one, neuron)
        count += sum(levels)
        sent += torch.tensor(levels, dtype=torch.float32)
    assert layer.per_step == pytest.approx((3 * sent / 40).tolist()) and count > 0
    sent = network.statistics([x], progress=False).layers["0"].spikes
    assert sum(layer.per_step) == pytest.approx(3 * sent / 40)


def test_blocks_are_read_once_and_whole():
    torch.manual_seed(0)
    network = convert(make_net(), timesteps=5, rho=2, emission="block")
    report = report_of(network, torch.randn(3, 2, 6, 6))
    found = {layer.site: layer for layer in report.layers}
    for site in ("second", "third"):
        layer = found[site]
        assert (layer.watch, layer.reads, layer.again) == (2, (0, 0, 4, 4, 5), 2)
        steps = layer.per_step
        assert steps[2] > 0 and steps[4] > 0
        whole = [sum(steps[:n]) for n in (2, 2, 4, 4, 5)]
        assert layer.operations == layer.kept_operations == pytest.approx(whole, rel=1e-12)
    assert (found["fc"].reads, found["fc"].again) == ((1, 2, 3, 4, 5), 0)
    last, neurons = report.neuron_updates, 6 * 6 * 6
    # act1 sends whole blocks, for act2 needs them; act2 for act3; act3 what is asked for.
    assert list(last) == [
        neurons * (3 * 2 + sum(own))
        for own in ((2, 2, 1), (2, 2, 2), (4, 4, 3), (4, 4, 4), (5, 5, 5))
    ]


def test_levels_by_batches_add_up():
    torch.manual_seed(0)
    network = convert(make_net(), timesteps=4, rho=2, neuron=Neuron(levels=(0, 3)))
    x = torch.randn(6, 2, 6, 6)
    whole, parts = report_of(network, x), report_of(network, x[:1], x[1:])
    for one, other in zip(whole.layers, parts.layers):
        assert one.per_step == pytest.approx(other.per_step, rel=1e-12)
