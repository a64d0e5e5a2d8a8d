"""execution="counts" against the step-by-step run. Nothing about its speed.

Settings: test_count_settings.py; its parts against integers: test_count_arithmetic.py.
"""

from __future__ import annotations

import copy
import json

import pytest
import torch
import zoo
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from zoo_networks import converted

import cos_ext
from cos_ext import convert

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = [(4, 2), (4, 4), (4, 9), (8, 8)]  # rho, T
TRACED = [name for name in zoo.CONVERTS if name != "untraceable"]


def run_with_spikes(network, inputs):
    """The step-by-step outputs, and what every neuron emitted, [S, B, ...] by call site."""
    seen = {}
    hooks = [
        node.register_forward_hook(lambda m, i, o, site=site: seen.__setitem__(site, o.clone()))
        for site, node in network.nodes().items()
    ]
    with network._by_steps():  # nothing pooled on the way out
        network(*inputs)
    for hook in hooks:
        hook.remove()
    outputs = network(*inputs)
    steps, batch = max(network.timesteps, network.rho), inputs[0].shape[0]
    return outputs, {site: spikes.unflatten(0, (steps, batch)) for site, spikes in seen.items()}


@pytest.mark.parametrize("name", TRACED)
def test_outputs_spikes_and_counts_are_those_of_the_steps(name):
    network, inputs = converted(name)
    varied = 0
    for rho, timesteps in SETTINGS:
        for emission in ("even", "front"):
            network.execution = "steps"
            network.timesteps, network.rho, network.emission = timesteps, rho, emission
            expected, spikes = run_with_spikes(network, inputs)
            network.execution = "counts"
            before = [x.clone() for x in inputs]
            outputs = network(*inputs)
            assert outputs.shape == expected.shape and outputs.dtype == expected.dtype
            assert torch.allclose(outputs, expected, rtol=0, atol=1e-9), (rho, timesteps, emission)
            assert all(map(torch.equal, inputs, before))
            found = network.counts(*inputs)
            assert found.keys() == spikes.keys() == network.nodes().keys()
            for site, emitted in spikes.items():
                assert found[site].dtype == torch.int32
                assert torch.equal(found[site], (emitted[:rho] != 0).sum(0).int()), site
                assert torch.equal(network.spike_train(site, *inputs), emitted[:timesteps]), site
            varied += int((expected - expected[:1]).abs().max() > 1e-3)
    assert varied >= 5, "the outputs hardly depend on the step, so that equality would prove little"


@pytest.mark.parametrize("timesteps, rho", [(1, 3), (3, 2), (7, 4), (8, 4)])
@pytest.mark.parametrize("emission", ["even", "front"])
def test_evaluate_finds_the_same(timesteps, rho, emission):
    network, inputs = converted(
        "resnet, basic blocks", timesteps=timesteps, rho=rho, emission=emission
    )
    network.set_layer("relu", emission="front" if emission == "even" else "even")
    loader = [(x, torch.arange(len(x)) % 5) for x in inputs[0].split(2)]
    steps = cos_ext.evaluate(network, loader, progress=False)
    network.execution = "counts"
    by_counts = cos_ext.evaluate(network, loader, progress=False)
    assert by_counts.spike_rate == steps.spike_rate > 0
    assert (by_counts.accuracy, by_counts.samples, by_counts.latency) == (
        steps.accuracy,
        steps.samples,
        steps.latency,
    )


class Crossing(nn.Module):
    """Tensors that neurons and the output read, so that they are needed in both worlds: what
    spikes, added in place to a static tensor; and the spikes of neurons that may write over their
    currents."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 4, 3, padding=1) for _ in range(3))
        self.d, self.e, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

    def forward(self, x):
        y = self.a(x)
        y += self.b(x).relu()
        z = self.d(y).relu()
        u = self.e(z).relu()
        return self.head(y.mean((2, 3)) + z.mean((2, 3)) - u.mean((2, 3))) + self.c(x).amax(
            (1, 2, 3)
        ).unsqueeze(1)


@pytest.mark.parametrize("timesteps, rho", [(1, 1), (1, 4), (5, 4)])
def test_a_tensor_that_is_needed_as_a_mean_and_by_step(timesteps, rho):
    model, x = zoo.prepared("crossing", Crossing).double(), torch.randn(3, 3, 6, 6).double()
    thresholds = {"relu": 0.8, "relu_1": 0.5, "relu_2": 0.4}
    network = convert(
        model, timesteps=timesteps, rho=rho, emission="even", thresholds=thresholds, example_input=x
    )
    node = network.nodes()["relu_1"]
    assert node.inplace
    node.v_init = (
        1.3 * node.v_threshold
    )  # else the count of a rate is the count again, and overwritten currents would not show
    expected, spikes = run_with_spikes(network, (x,))
    loader = [(x, torch.zeros(3, dtype=torch.int64))]
    rate = cos_ext.evaluate(network, loader, progress=False).spike_rate
    network.execution = "counts"
    assert torch.allclose(network(x), expected, rtol=0, atol=1e-9)
    assert torch.equal(network(x), network(x))
    assert all(
        torch.equal(network.counts(x)[site], (spikes[site][:rho] != 0).sum(0).int())
        for site in thresholds
    )
    assert cos_ext.evaluate(network, loader, progress=False).spike_rate == rate


def test_neurons_may_be_the_output():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU()).double()
    x = torch.randn(7, 6).double()
    network = convert(model, timesteps=6, rho=4, emission="front", thresholds={"1": 0.9, "3": 0.3})
    expected = network(x)
    network.execution = "counts"
    assert torch.equal(network(x), expected) and (expected > 0).any()


def test_a_maximum_over_spikes_is_exact_behind_the_last_neurons_and_refused_before_others():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 5)
    ).double()
    x = torch.randn(4, 3, 8, 8).double()
    network = convert(
        model, timesteps=5, rho=4, emission="even", thresholds={"1": 0.7}, max_pool="spike"
    )
    expected = network(x)
    network.execution = "counts"
    assert torch.allclose(network(x), expected, rtol=0, atol=1e-9)
    deeper = nn.Sequential(
        model[:3], nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 5)
    ).double()
    network = convert(
        deeper,
        timesteps=5,
        rho=4,
        emission="even",
        thresholds={"0.1": 0.7, "2": 0.7},
        max_pool="spike",
    )
    with pytest.raises(ValueError, match=r"0\.2, a maximum over the spikes of each step.*does not"):
        network.execution = "counts"
    assert network.execution == "steps"


def test_what_watches_steps_runs_by_steps():
    ann = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).double()
    x = torch.randn(7, 6).double()
    network = cos_ext.convert(ann, timesteps=5, rho=3, emission="even", thresholds={"1": 1.5})
    by_steps = [
        network.statistics([x], progress=False),
        network.energy_report([x], progress=False),
        cos_ext.offset_spike_report(ann, network, [x], progress=False),
    ]
    network.execution = "counts"
    again = [
        network.statistics([x], progress=False),
        network.energy_report([x], progress=False),
        cos_ext.offset_spike_report(ann, network, [x], progress=False),
    ]
    assert again == by_steps and network.execution == "counts"
    with pytest.raises(ValueError, match="calibration 'cos' in every layer"):
        network.calibration = "srp"


def test_files_and_copies_keep_the_mode(tmp_path):
    network, inputs = converted("resnet, max pooling", execution="counts")
    make, _ = zoo.CONVERTS["resnet, max pooling"]
    expected, model = network(*inputs), zoo.prepared("others", make).double()
    network.save(tmp_path / "network")
    loaded = cos_ext.load_network(tmp_path / "network", model, example_input=inputs)
    assert loaded.execution == "counts" and torch.equal(loaded(*inputs), expected)
    copied = copy.deepcopy(network)
    assert copied.execution == "counts" and torch.equal(copied(*inputs), expected)
    for parameter in copied.parameters():  # it calls its own modules
        parameter.zero_()
    assert not torch.equal(copied(*inputs), expected) and torch.equal(network(*inputs), expected)
    torch.save(network, tmp_path / "pickled")
    assert torch.equal(torch.load(tmp_path / "pickled", weights_only=False)(*inputs), expected)

    # A file from before there were modes.
    with safe_open(tmp_path / "network", "pt") as file:
        header, tensors = (
            json.loads(file.metadata()["cos_ext"]),
            {key: file.get_tensor(key) for key in file.keys()},  # noqa: SIM118 (a file of safetensors is no dict)
        )
    assert header.pop("execution") == "counts"
    save_file(tensors, tmp_path / "old", metadata={"cos_ext": json.dumps(header)})
    assert cos_ext.load_network(tmp_path / "old", model, example_input=inputs).execution == "steps"


def test_the_mode_adds_no_modules_and_no_weights():
    network, inputs = converted("u-net")
    keys, modules = list(network.state_dict()), list(network.modules())
    network.execution = "counts"
    network(*inputs)
    network.counts(*inputs)
    assert list(network.state_dict()) == keys and list(map(id, network.modules())) == list(
        map(id, modules)
    )


@pytest.mark.slow
def test_it_compiles_and_exports_whole():
    network, inputs = converted("vgg", execution="counts")
    expected = network(*inputs)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), expected)
    network.execution = "steps"
    assert torch.allclose(compiled(*inputs), expected, rtol=0, atol=1e-9)
    network.execution = "counts"
    assert torch.equal(torch.export.export(network, inputs).module()(*inputs), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype):
    network, inputs = converted("vgg", execution="counts")
    expected = network.rate(*inputs)
    low = copy.deepcopy(network).to(dtype)
    outputs = low.rate(*(x.to(dtype) for x in inputs))
    assert outputs.dtype == dtype
    # Counts of single neurons may be off by one; the outputs stay near those in float64.
    assert (outputs - expected).abs().mean() < 0.1 * expected.abs().mean()
    spikes = low.spike_train("0.2", *(x.to(dtype) for x in inputs))
    assert spikes.dtype == dtype and set(spikes.unique().tolist()) <= {
        0.0,
        *low.nodes()["0.2"].v_threshold.flatten().tolist(),
    }


@pytest.mark.slow
def test_the_shipped_network_in_float64(shipped_model, test_set):
    images = next(iter(test_set.first(20).batches(20)))[0].double()
    network = convert(copy.deepcopy(shipped_model).double(), timesteps=8, rho=8, emission="even")
    expected, spikes = run_with_spikes(network, (images,))
    network.execution = "counts"
    assert torch.allclose(network(images), expected, rtol=0, atol=1e-9)
    found = network.counts(images)
    assert len(found) == 19
    assert all(torch.equal(found[site], (spikes[site] != 0).sum(0).int()) for site in found)


@pytest.mark.slow
def test_the_shipped_network_in_float32(shipped_model, test_set, capsys):
    network = convert(shipped_model, timesteps=8, rho=8, emission="even")
    same, close, total = torch.zeros(8, dtype=torch.int64), 0, 0
    for images, _ in test_set.first(200).batches(50):
        network.execution = "steps"
        steps = network(images)
        network.execution = "counts"
        ours = network(images)
        same += (ours.cumsum(0).argmax(-1) == steps.cumsum(0).argmax(-1)).sum(1)
        close += int(((ours - steps).abs().amax((0, 2)) <= 1e-3).sum())
        total += len(images)
    with capsys.disabled():
        print(
            f"\ncounts against steps, float32, {total} images: same class at t = 1..8 "
            f"{same.tolist()}, same outputs {close}"
        )
    assert total == 200
    assert (same >= 0.99 * total).all() and close >= 0.9 * total
