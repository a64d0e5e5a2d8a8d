"""energy_report by step: the steps watched and those of the answer under every setting, batches,
and a model that cannot be traced. By layer: test_energy_layers.py.
"""

import copy

import pytest
import torch
from energy_counts import Net, expected, make_net, ones, report_of

import cos_ext
from cos_ext import convert
from cos_ext.network.modules import Walked

pytestmark = pytest.mark.usefixtures("one_thread")


class Untraceable(Net):
    def forward(self, x):
        if (
            x.sum(dtype=torch.float32).shape == torch.Size([]) and len(x) > 0
        ):  # len() of a proxy: torch.fx gives up
            y = self.act1(self.first(x))
        z = torch.zeros(len(x), 6, 6, 6, dtype=x.dtype)
        z[:, :4] = self.second(y)[:, :4]  # into memory that did not depend on spikes
        z[:, 4:] = self.second(y)[:, 4:]
        z = self.act2(z + self.image(x))
        z = self.act3(self.third(z) + y)
        return self.fc(self.pool(z).flatten(1))


@pytest.fixture
def net():
    return make_net()


@pytest.fixture
def images():
    return torch.randn(7, 2, 6, 6)


def cumulative(per_step, watch, reads):
    return pytest.approx(
        [sum(per_step[:watch]) + sum(per_step[:steps]) for steps in reads], rel=1e-12
    )


# For T = 3: settings, and by layer the steps watched and those read for an answer at t; by neurons
# the steps emitted.
STEPS = {
    "not calibrated": (
        {"rho": 0},
        {"second": (0, [1, 2, 3]), "third": (0, [1, 2, 3]), "fc": (0, [1, 2, 3])},
        {"act1": [1, 2, 3], "act2": [1, 2, 3], "act3": [1, 2, 3]},
    ),
    # act1 and act2 feed neurons that watch 2 steps, whatever t is.
    "calibrated": (
        {"rho": 2},
        {"second": (2, [2, 2, 3]), "third": (2, [1, 2, 3]), "fc": (0, [1, 2, 3])},
        {"act1": [2, 2, 3], "act2": [2, 2, 3], "act3": [1, 2, 3]},
    ),
    "rho > T": (
        {"rho": 5},
        {"second": (5, [5, 5, 5]), "third": (5, [1, 2, 3]), "fc": (0, [1, 2, 3])},
        {"act1": [5, 5, 5], "act2": [5, 5, 5], "act3": [1, 2, 3]},
    ),
    # These neurons emit their count from the steps that they watched; the currents after those are
    # not read.
    "front": (
        {"rho": 2, "emission": "front"},
        {"second": (2, [0, 0, 0]), "third": (2, [0, 0, 0]), "fc": (0, [1, 2, 3])},
        {"act1": [2, 2, 2], "act2": [2, 2, 2], "act3": [1, 2, 3]},
    ),
    "a layer of its own": (
        {"rho": 1, "act3": {"rho": 4}},
        {"second": (1, [4, 4, 4]), "third": (4, [1, 2, 3]), "fc": (0, [1, 2, 3])},
        {"act1": [4, 4, 4], "act2": [4, 4, 4], "act3": [1, 2, 3]},
    ),
    "the first not calibrated": (
        {"rho": 2, "act1": {"rho": 0}, "act3": {"emission": "even"}},
        {"second": (2, [2, 2, 2]), "third": (2, [0, 0, 0]), "fc": (0, [1, 2, 3])},
        {"act1": [2, 2, 2], "act2": [2, 2, 2], "act3": [1, 2, 3]},
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_steps_watched_and_those_of_the_answer(name, net, images):
    given_settings, layers, emitted = STEPS[name]
    own = {site: value for site, value in given_settings.items() if site.startswith("act")}
    network = convert(
        net, timesteps=3, **{key: v for key, v in given_settings.items() if key not in own}
    )
    for site, changes in own.items():
        network.set_layer(site, **changes)
    report = report_of(network, images)
    found = {layer.site: layer for layer in report.layers}
    assert list(found) == ["first", "second", "image", "third", "fc"]
    for site, (watch, reads) in layers.items():
        steps, macs = expected(network, site, images)
        layer = found[site]
        assert layer.per_step == steps and layer.macs == macs
        assert (layer.watch, list(layer.reads)) == (watch, reads)
        assert layer.watched == pytest.approx(sum(layer.per_step[:watch]), rel=1e-12)
        assert list(layer.operations) == cumulative(layer.per_step, watch, reads)
        assert list(layer.kept_operations) == cumulative(
            layer.per_step, 0, [max(watch, steps) for steps in reads]
        )
    nodes, neurons = network.nodes(), 6 * 6 * 6
    assert report.neurons == 3 * neurons
    updates = [
        neurons * sum(nodes[site].rho + steps[t] for site, steps in emitted.items())
        for t in range(3)
    ]
    assert list(report.neuron_updates) == updates
    assert report.rho == max(node.rho for node in nodes.values())
    assert report.latency == [report.rho + t for t in (1, 2, 3)]
    for site in ("first", "image"):  # static: one pass, whatever t and rho are
        layer, (_, macs) = (
            found[site],
            (None, ones(getattr(net, site))(torch.ones(1, 2, 6, 6).double()).sum().item()),
        )
        assert layer.input == "static" and layer.operation == "MAC" and layer.watched == 0
        assert layer.macs == macs and layer.operations == layer.kept_operations == (macs,) * 3
    assert found["fc"].input == "graded" and found["fc"].operation == "MAC"
    assert found["second"].input == found["third"].input == "spikes"
    # The two sums before neurons and the pooling, of all 6 channels of 6 x 6.
    assert report.uncounted == {"add": 2 * neurons, "avg_pool2d": neurons}


def test_how_the_data_are_split_into_batches_plays_no_part(net, images):
    network = convert(net, timesteps=4, rho=2)
    whole = report_of(network, images).to_dict()
    labels = torch.zeros(7)
    assert (
        report_of(
            network, images[:3], images[3:3], (images[3:4], labels[3:4]), images[4:]
        ).to_dict()
        == whole
    )
    generator = (images[i : i + 2] for i in range(0, 7, 2))
    assert network.energy_report(generator, progress=False).to_dict() == whole


def test_the_network_is_as_it_was_and_inference_mode_changes_nothing(net, images):
    network = convert(net, timesteps=4, rho=2)
    before, original = network(images), images.clone()
    report = report_of(network, images).to_dict()
    assert torch.equal(network(images), before) and torch.equal(images, original)
    with torch.inference_mode():
        assert report_of(network, images).to_dict() == report
        assert report_of(network, images + 0).to_dict() == report
    assert report_of(copy.deepcopy(network), images).to_dict() == report


def test_a_model_that_cannot_be_traced_counts_like_its_traced_twin(net, images):
    twin = Untraceable().eval()
    twin.load_state_dict(net.state_dict())
    network = convert(twin, timesteps=3, rho=4, example_input=images)
    assert isinstance(network.module, Walked)
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in network.modules()]
    ours, theirs = report_of(network, images), report_of(convert(net, timesteps=3, rho=4), images)
    by_site = {layer.site: layer for layer in ours.layers}
    assert list(by_site) == ["first", "second", "second (2)", "image", "third", "fc"]
    for layer in theirs.layers:
        assert by_site[layer.site] == layer
    assert by_site["second (2)"].per_step == by_site["second"].per_step
    assert ours.neuron_updates == theirs.neuron_updates and ours.latency == theirs.latency
    assert hooks == [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in network.modules()]
    with pytest.raises(RuntimeError):
        report_of(network, images[:, :1])
    with pytest.raises(TypeError, match="batches must yield tensors"):
        report_of(network, images, "labels")
    assert hooks == [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in network.modules()]
    assert report_of(network, images).to_dict() == ours.to_dict()


def test_neurons_whose_spikes_do_not_come_step_by_step_are_refused(net, images):
    network = convert(net, timesteps=2, rho=2)
    node = network.nodes()["act2"]
    node._emit = lambda x, *_: cos_ext.functional.calibrate_v_init(x, 1.0, rho=2).v_init
    with pytest.raises(ValueError, match="step by step to be counted; act2 calls calibrate_v_init"):
        report_of(network, images)
