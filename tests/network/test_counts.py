"""execution="counts" against the step-by-step run, and its parts against integers and fractions.
Nothing about its speed.
"""

from __future__ import annotations

import copy
import json
import math
from fractions import Fraction

import pytest
import torch
import zoo
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from test_zoo import thresholds_of
from torch import nn

import cos_ext
from cos_ext import convert
from cos_ext.network import counts

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = [(4, 2), (4, 4), (4, 9), (8, 8)]  # rho, T
TRACED = [name for name in zoo.CONVERTS if name != "untraceable"]


def converted(name, dtype=torch.float64, **options):
    """A network of the zoo, and inputs that it was not converted with."""
    make, shapes = zoo.CONVERTS[name]
    model = zoo.prepared(name, make).to(dtype)
    inputs = tuple(x.to(dtype) for x in zoo.inputs_of(shapes))
    with torch.no_grad():
        thresholds = thresholds_of(model, inputs)
    if any(isinstance(m, nn.MaxPool2d) for m in model.modules()):
        options = {"max_pool": "before", **options}
    network = convert(
        model,
        thresholds=thresholds,
        example_input=inputs,
        **{"timesteps": 4, "rho": 4, "emission": "even", **options},
    )
    return network, tuple(x.to(dtype) for x in zoo.inputs_of(shapes, batch=5))


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


def plain(**options):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
    return convert(
        model,
        **{
            "timesteps": 4,
            "rho": 4,
            "emission": "even",
            "thresholds": {"1": 0.7, "3": 0.5},
            **options,
        },
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"emission": "calibrated"}, r"emission to be one of \('even', 'front'\)"),
        ({"rho": 0}, "rho >= 1"),
    ],
)
def test_convert_refuses_what_does_not_hold(options, message):
    with pytest.raises(ValueError, match=message):
        plain(execution="counts", **options)
    network = plain(**options)
    with pytest.raises(ValueError, match=message):
        network.execution = "counts"
    assert network.execution == "steps"
    with pytest.raises(ValueError, match=message):
        network.counts(torch.randn(2, 6))
    with pytest.raises(ValueError, match=message):
        network.spike_train("1", torch.randn(2, 6))


def test_names_of_modes_and_sites():
    for make in (lambda: plain(execution="count"), lambda: setattr(plain(), "execution", "count")):
        with pytest.raises(
            ValueError, match=r"execution must be one of \('steps', 'counts'\), got 'count'"
        ):
            make()
    with pytest.raises(
        ValueError,
        match=r"site must be a call site of the network, got '0'; those are \['1', '3'\]",
    ):
        plain().spike_train("0", torch.randn(2, 6))


def test_settings_that_would_break_it_are_refused_and_change_nothing():
    network, x = plain(execution="counts"), torch.randn(3, 6)
    expected = network(x)
    for change, message in (
        (lambda: setattr(network, "emission", "calibrated"), "emission to be one of"),
        (lambda: setattr(network, "rho", 0), "rho >= 1"),
        (lambda: network.set_layer("3", rho=2), r"one rho for all layers.*'1': 4, '3': 2"),
        (lambda: network.set_layer("3", rho=0), r"rho = 0 for \['3'\]"),
        (lambda: network.set_layer("1", emission="calibrated"), r"got {'1': 'calibrated'}"),
    ):
        with pytest.raises(ValueError, match=message):
            change()
        assert (network.execution, network.rho, network.emission, network._layers) == (
            "counts",
            4,
            "even",
            {},
        )
        assert torch.equal(network(x), expected)
    network.execution = "steps"
    for site in ("1", "3"):
        network.set_layer(site, rho=2)
    network.execution = "counts"  # one rho again, though not the network's
    assert [count.amax() <= 2 for count in network.counts(x).values()] == [True, True]
    network.rho = 3  # plays no part
    by_counts = network(x)
    network.execution = "steps"
    assert torch.allclose(network(x), by_counts, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="one rho for all layers"):
        network.set_layer("3")
        network.execution = "counts"
    assert network.execution == "steps"


def test_refusals_of_static_calibration_and_of_models_without_a_graph():
    network = plain()
    network.options["static"] = True
    with pytest.raises(ValueError, match="static calibration"):
        network.execution = "counts"
    network, _ = converted("untraceable")
    with pytest.raises(ValueError, match="could not be traced"):
        network.execution = "counts"


def test_a_layer_changed_past_the_network_is_noticed():
    network = plain(execution="counts")
    network.nodes()["3"].rho = 2
    with pytest.raises(RuntimeError, match="changed past the network"):
        network(torch.randn(2, 6))


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


def test_settings_follow_without_converting_again():
    network, x = plain(execution="counts").double(), torch.randn(5, 6).double()
    assert network(x).dtype == torch.float64
    network.timesteps, network.rho, network.emission = 11, 6, "front"
    by_counts = network(x)
    assert by_counts.shape == (11, 5, 5) and torch.equal(network.rate(x), by_counts.mean(0))
    network.timesteps = 2
    assert torch.equal(network(x), by_counts[:2])
    network.execution, network.timesteps = "steps", 11
    assert torch.allclose(network(x), by_counts, rtol=0, atol=1e-9)


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
            {key: file.get_tensor(key) for key in file.keys()},
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


def test_it_compiles_and_exports_whole():
    network, inputs = converted("vgg", execution="counts")
    expected = network(*inputs)
    torch._dynamo.reset()
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


def test_gradients_are_refused_as_in_the_step_by_step_run():
    network = plain(execution="counts")
    with pytest.raises(RuntimeError, match="no gradient"):
        network(torch.randn(2, 6, requires_grad=True))


number = st.integers(-40, 120).map(lambda n: Fraction(n, 16))


@given(
    x=st.lists(number, min_size=1, max_size=6),
    theta=st.integers(1, 40).map(lambda n: Fraction(n, 8)),
    init=number,
    rho=st.integers(1, 9),
    wide=st.booleans(),
    inplace=st.booleans(),
)
def test_the_desired_count_is_that_of_exact_arithmetic(x, theta, init, rho, wide, inplace):
    dtype = torch.float64 if wide else torch.float32
    tensor = torch.tensor([float(value) for value in x], dtype=dtype)
    count = counts.desired_count(
        tensor.clone(), torch.tensor(float(theta)), torch.tensor(float(init)), rho, inplace=inplace
    )
    assert count.dtype == dtype
    assert count.tolist() == [
        min(max(math.floor((rho * value + init) / theta), 0), rho) for value in x
    ]


def test_the_desired_count_of_values_beyond_numbers():
    x = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30])
    kept = x.clone()
    assert counts.desired_count(x, torch.tensor(1.0), torch.tensor(0.5), 4).tolist() == [
        0,
        4,
        0,
        4,
        0,
    ]
    assert torch.equal(x.nan_to_num(), kept.nan_to_num())
    low = torch.tensor([0.5], dtype=torch.bfloat16)
    assert (
        counts.desired_count(low, torch.tensor(1.0), torch.tensor(0.5), 4, inplace=True).dtype
        == torch.float32
    )
    assert low.item() == 0.5


def emitted_by(desired, step, rho, emission):
    """n(t) in integers, from the definition in csrc/core/emission.h."""
    if emission == "even":
        return (2 * desired * step + rho) // (2 * rho)
    return step // rho * desired + min(desired, step % rho)


@given(
    rho=st.integers(1, 40),
    steps=st.integers(1, 100),
    emission=st.sampled_from(["even", "front"]),
    theta=st.floats(2.0**-10, 1024, width=32),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_trains_are_those_of_integers(rho, steps, emission, theta, dtype):
    every = torch.arange(rho + 1)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    threshold = torch.tensor(theta, dtype=state)
    spikes = counts.train(
        every.to(state), threshold, steps=steps, rho=rho, emission=emission, dtype=dtype
    )
    wanted = [
        [
            emitted_by(c, t, rho, emission) - emitted_by(c, t - 1, rho, emission)
            for c in range(rho + 1)
        ]
        for t in range(1, steps + 1)
    ]
    assert spikes.dtype == dtype
    assert torch.equal(spikes, torch.tensor(wanted, dtype=dtype) * threshold.to(dtype))
    total = counts.spikes_within(every.to(state), steps, rho, emission)
    assert total.tolist() == [emitted_by(c, steps, rho, emission) for c in range(rho + 1)]


def test_trains_over_thousands_of_steps():
    every = torch.arange(5001, dtype=torch.float32)
    spikes = counts.train(
        every.clone(), torch.tensor(0.3), steps=5000, rho=5000, emission="even", dtype=torch.float32
    )
    assert torch.equal((spikes != 0).sum(0), torch.arange(5001))


def test_the_shipped_network_in_float64(shipped_model, test_set):
    images = next(iter(test_set.first(20).batches(20)))[0].double()
    network = convert(copy.deepcopy(shipped_model).double(), timesteps=8, rho=8, emission="even")
    expected, spikes = run_with_spikes(network, (images,))
    network.execution = "counts"
    assert torch.allclose(network(images), expected, rtol=0, atol=1e-9)
    found = network.counts(images)
    assert len(found) == 19
    assert all(torch.equal(found[site], (spikes[site] != 0).sum(0).int()) for site in found)


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
