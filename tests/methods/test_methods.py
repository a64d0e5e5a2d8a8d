"""Methods by name: what each makes of a converted network's neurons, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import cos_ext
from cos_ext import Neuron, convert, methods
from cos_ext.methods import METHODS, UNAVAILABLE

THETA = 1.5


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 4, 3), cos_ext.QCFS(64, THETA), nn.Flatten(), nn.Linear(4 * 36, 5))
    made = nn.Sequential(*layers).eval()
    nn.init.normal_(made[0].weight, std=0.5)
    return made


def images(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def converted(name, timesteps=4, **options):
    method = METHODS[name] if isinstance(name, str) else name
    rho = timesteps if method.watches else 0
    return convert(model(), timesteps=timesteps, rho=rho, method=name, **options)


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.needs == "nothing"])
def test_every_method_runs_and_comes_nearer_with_time(name, tmp_path):
    x, ann = images(), model()
    with torch.no_grad():
        exact = ann(x)
    errors = [(converted(name, steps).rate(x) - exact).abs().mean().item() for steps in (1, 4, 32)]
    assert errors[2] < 0.2 * exact.abs().mean(), errors
    network = converted(name)
    network.save(tmp_path / "network")
    again = cos_ext.load_network(tmp_path / "network", model())
    assert torch.equal(again(x), network(x)) and again.options["method"] == name


@pytest.mark.parametrize("members", [1, 2, 4, 7])
def test_group_neurons_are_their_published_form(members):
    network = converted(methods.group_neurons(members)).double()
    (node,) = network.nodes().values()
    node.static_input = False
    x = torch.randn(4, 3, 4, 6, 6, dtype=torch.float64)
    step = (torch.tensor(THETA) / members).double()
    v, sent = (step / 2).expand(x.shape[1:]), []
    for now in x:
        v = v + now
        spikes = sum((v >= k * step).double() for k in range(1, members + 1))
        v = v - spikes * step
        sent.append(spikes * step)
    assert torch.allclose(node(x.flatten(0, 1)).unflatten(0, (4, 3)), torch.stack(sent), atol=1e-12)


def test_what_is_added_at_every_step_is_half_a_level_over_all():
    network = converted("snn-calibration", 8)
    (node,) = network.nodes().values()
    assert torch.equal(node.v_init, torch.tensor(0.0))
    assert torch.allclose(node.neuron.step_bias, torch.full((8,), THETA / 16))
    with pytest.raises(ValueError, match="a value for each of the 4 steps"):
        network.timesteps = 4
        network(images())


def test_thresholds_by_channel_add_by_channel():
    theta = torch.tensor([0.5, 1.0, 1.5, 2.0])[:, None, None]
    network = convert(model(), timesteps=4, method="adafire", thresholds={"1": theta})
    (node,) = network.nodes().values()
    assert node.neuron.step_bias.shape == (4, 4)
    assert torch.allclose(node.neuron.step_bias[0], theta.flatten() / 4 / 8)
    plane = torch.ones(4, 6, 6)
    with pytest.raises(ValueError, match="one number for a layer or channel"):
        convert(model(), timesteps=4, method="adafire", thresholds={"1": plane})


@pytest.mark.parametrize("emission", ["even", "front", "block"])
def test_levels_are_exact_over_the_steps_watched(emission):
    network = convert(model(), timesteps=4, neuron=Neuron(levels=(0, 3)), thresholds={"1": 0.25})
    network.rho, network.emission, network = 4, emission, network.double()
    (node,) = network.nodes().values()
    node.static_input = False
    x = torch.randn(4, 3, 4, 6, 6, dtype=torch.float64)
    wanted = ((x.sum(0) + 0.125) / 0.25).floor().clamp(0, 12) * 0.25
    assert torch.allclose(node(x.flatten(0, 1)).unflatten(0, (4, 3)).sum(0), wanted)


def test_a_layer_may_have_neurons_of_its_own(tmp_path):
    network = convert(model(), timesteps=3)
    own = Neuron(levels=(-1, 2), lower=0.5, emitted=torch.rand(4, 1, 1), step_bias=torch.rand(3, 4))
    network.set_layer("1", neuron=own)
    x = images()
    before, (node,) = network(x), network.nodes().values()
    assert node.neuron == own and network.neuron is None
    network.save(tmp_path / "network")
    again = cos_ext.load_network(tmp_path / "network", model())
    assert torch.equal(again(x), before) and again.nodes()["1"].neuron == own
    again.iterations = None  # another setting leaves what was loaded
    assert torch.equal(again(x), before)
    network.set_layer("1")
    assert node.neuron is None and not torch.equal(network(x), before)


def test_a_neuron_that_is_set_past_the_network_does_not_stay():
    network = convert(model(), timesteps=4, rho=4, emission="even", execution="counts")
    x, (node,) = images(), network.nodes().values()
    before = network(x)
    node.neuron = Neuron(levels=(-2, 2), lower=0.5)
    with pytest.raises(RuntimeError, match="changed past the network"):
        network(x)
    network.timesteps = 4
    assert node.neuron is None and torch.equal(network(x), before)


def test_pickles_of_before_know_no_neurons():
    network = convert(model(), timesteps=4)
    state = network.__getstate__()
    del state["_neuron"], state["_given"]
    again = object.__new__(cos_ext.SpikingNetwork)
    again.__setstate__(state)
    again.timesteps = 2
    assert again.neuron is None and again(images()).shape[0] == 2


def test_a_tensor_of_a_neuron_is_finite():
    node = cos_ext.IFNode(1.0, timesteps=2)
    for tensors in (
        {"emitted": torch.tensor(torch.inf)},
        {"step_bias": torch.full((2,), torch.nan)},
    ):
        with pytest.raises(ValueError, match="must be finite"):
            node.neuron = Neuron(**tensors)
    assert node.neuron is None and node.emitted is None


def test_a_method_sets_iterations_too():
    method = methods.Method("mine", "", "nothing", "rho + t", settings={"iterations": None})
    assert converted(method).iterations is None


def test_levels_are_counted_as_levels():
    network = convert(model(), timesteps=2, neuron=Neuron(levels=(0, 4)), thresholds={"1": 0.25})
    x = images()
    loader = [(x, torch.zeros(len(x), dtype=torch.long))]
    result = cos_ext.evaluate(network, loader, progress=False)
    (node,) = network.nodes().values()
    sent = []
    node.register_forward_hook(lambda _m, _i, out: sent.append(out))
    network(x)
    levels = (sent[0] / 0.25).sum() / sent[0].numel()
    assert result.spike_rate == pytest.approx(levels.item(), rel=1e-6)


def test_a_record_of_levels_has_their_signs():
    signed = Neuron(levels=(-1, 3), lower=0.0)
    network, x = convert(model(), timesteps=4, neuron=signed), images()
    (node,), sent = network.nodes().values(), []
    node.register_forward_hook(lambda _m, _i, out: sent.append(out))
    with network.record() as recording:
        network(x)
    (site,) = recording
    spikes = recording[site].spikes
    assert torch.equal(spikes.flatten(0, 1), sent[0]) and spikes.shape[:2] == (4, len(x))
    assert (spikes < 0).any() and len(spikes.unique()) > 3
    assert recording.nbytes == spikes.numel() * spikes.element_size()


@pytest.mark.parametrize(
    "falls, neuron",
    [
        (True, Neuron(levels=(-1, 1), lower=0.5)),
        (True, Neuron(levels=(-1, 1), lower=0.5, count=(-2, None))),
        (True, Neuron(ladder=3)),
        (False, Neuron(levels=(-1, 1), lower=0.5, count=(0, 9))),
        (False, Neuron(ladder=3, gated=True)),
        (False, Neuron(levels=(0, 3))),
        (False, None),
    ],
)
def test_the_report_says_where_no_rectifier_is_left(falls, neuron):
    network = convert(model(), timesteps=4, neuron=neuron)
    reasons = [e.reason for e in network.report.entries if e.status == "converted"]
    assert reasons and all(("less than 0 in all" in reason) == falls for reason in reasons)


def test_what_needs_neurons_of_one_level_says_so():
    network = convert(model(), timesteps=2, neuron=Neuron(levels=(0, 2)))
    x = images()
    with pytest.raises(ValueError, match='what may have "v"'), network.record(what="v"):
        network(x)
    with pytest.raises(ValueError, match='what may have "counts"'), network.record(what="counts"):
        network(x)
    network.rho, network.emission = 2, "even"
    with pytest.raises(ValueError, match="neurons of one level"):
        network.execution = "counts"
    network.emission = "calibrated"
    with pytest.raises(ValueError, match="activations of rho levels, is for neurons of one"):
        cos_ext.offset_spike_report(model(), network, [x])
    network.rho = 0
    with pytest.raises(ValueError, match="one level"):
        cos_ext.fit_v_init(network, [x], rho=2)


@pytest.mark.parametrize("neuron", [Neuron(levels=(0, 4)), Neuron(ladder=3)])
def test_neurons_of_a_potential_alone_go_on_in_portions(neuron):
    network = convert(model(), timesteps=4, neuron=neuron, thresholds={"1": 0.25})
    x = images()
    expected, run = network(x), network.begin(x)
    assert torch.equal(torch.cat([run.advance(1), run.advance(3)]), expected)
    network.neuron = Neuron(levels=(-1, 1), lower=0.0, count=(0, None))
    with pytest.raises(ValueError, match="goes on from potentials alone"):
        network.begin(x)


def test_a_trainable_network_of_levels_has_gradients():
    for options in ({"neuron": Neuron(levels=(0, 4))}, {"method": "group-neurons"}):
        network = convert(model(), timesteps=2, trainable=True, **options)
        network.train()
        network(images()).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "cos"}, "needs rho >= 1"),
        ({"method": "group-neurons", "rho": 2}, "needs rho = 0"),
        ({"method": "srp", "rho": 2, "emission": "even"}, "sets neuron, emission and calibration"),
        ({"method": "qcfs", "neuron": Neuron()}, "sets neuron, emission and calibration"),
        ({"method": "group"}, "method must be one of"),
        *(({"method": name}, f"'{name}' does not run here") for name in UNAVAILABLE),
    ],
)
def test_methods_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        convert(model(), timesteps=4, **options)


def test_a_method_is_a_name_or_a_method():
    with pytest.raises(TypeError, match="a name or a Method, got int"):
        convert(model(), timesteps=4, method=3)
    listed = methods.table(METHODS)
    assert all(name in listed for name in METHODS) and not set(METHODS) & set(UNAVAILABLE)
    assert all(m.needs == ("data" if m.fit else "nothing") for m in METHODS.values())
    assert all(hasattr(cos_ext, m.fit) for m in METHODS.values() if m.fit)


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.fit])
def test_a_method_that_needs_data_is_completed_by_its_name(name):
    ann, data = model(), [images(8)]
    rho = 4 if METHODS[name].watches else 0
    network = convert(ann, timesteps=4, rho=rho, method=name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert cos_ext.fit(network, ann, data, progress=False) is not None
    after = network.state_dict()
    changed = [k for k in after if k not in before or not torch.equal(after[k], before[k])]
    assert changed or name == "adafire"  # which may choose the levels that there are
    assert network(images()).isfinite().all()


def test_fit_is_for_methods_that_are_fitted():
    for options in ({}, {"method": "group-neurons"}):
        network = convert(model(), timesteps=4, **options)
        with pytest.raises(ValueError, match="of a method that is fitted"):
            cos_ext.fit(network, model(), [images()])


def test_the_bound_of_a_step_is_what_an_activation_allows():
    """A neuron driven without end sends θ a step, but for what a method says it does not."""
    for name, method in METHODS.items():
        if method.needs != "nothing" or name in ("dcgs", "h-mt"):
            continue
        (node,) = converted(name, 16).nodes().values()
        sent = node(torch.full((16, 4, 6, 6), 100.0)).mean(0)
        assert torch.allclose(sent, torch.tensor(THETA)), name
    (node,) = converted("h-mt", 16).nodes().values()
    assert torch.allclose(node(torch.full((16, 1, 1, 1), 100.0)), torch.tensor(THETA * 15 / 16))
