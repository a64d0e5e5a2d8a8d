"""SRP, light and parallel conversion against the same in plain torch, and calibration= through
networks and files.

The oracles here are loops over time of their own: nothing of cos_ext.reference or of the kernels is
in them.
"""

import copy
import json

import pytest
import torch
import zoo
from conftest import layouts
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

import cos_ext
from cos_ext import IFNode, convert, evaluate, fit_light
from cos_ext import functional as F
from cos_ext._files import write_tensors

pytestmark = pytest.mark.usefixtures("one_thread")
RIVALS = ("srp", "parallel", "light", "none")


def currents(*shape, dtype=torch.float32):
    """Multiples of 1/16 within (-1, 2): exact in every dtype, and so are their sums and those with
    θ, 3/4 and the like.
    """
    return torch.randint(-15, 32, shape).to(dtype) / 16


def run(x, theta, v):
    """IF with soft reset, step by step: spikes as booleans [T, ...] and the potential at the
    end.
    """
    fired = []
    for now in x:
        m = v + now
        fired.append(m >= theta)
        v = torch.where(fired[-1], m - theta, m)
    return torch.stack(fired), v


def plain_srp(x, theta, v, tau):
    _, residual = run(x[:tau].double(), theta.double(), v.double())
    fired, _ = run(x.double(), theta.double(), v.double())
    return fired & (residual > 0)


def plain_parallel(x, theta, v, rho):
    mean = x[:rho].double().mean(0)
    within = [
        (rho * mean + v.double()) / t >= theta.double() for t in range(1, rho + 1)
    ]  # the paper's, divided by t
    return torch.stack([within[t % rho] for t in range(len(x))])


# The functions


@pytest.mark.parametrize("tau", [1, 3, 6])
@pytest.mark.parametrize(
    "theta", [0.75, torch.tensor([0.5, 0.75, 1.5]).view(3, 1, 1)], ids=["scalar", "per_channel"]
)
def test_srp_is_the_plain_loop(dtype, tau, theta):
    x = currents(6, 2, 3, 4, 5, dtype=dtype)
    wide = torch.as_tensor(theta).expand(2, 3, 4, 5)
    threshold = theta.to(dtype) if isinstance(theta, torch.Tensor) else theta
    for v_init, start in (
        (None, wide / 2),
        (0.25, torch.full_like(wide, 0.25)),
        ((wide / 4).to(dtype), wide / 4),
    ):
        expected = plain_srp(x, wide, start, tau)
        result = F.srp_forward(x, threshold, v_init, tau=tau, return_count=True)
        assert torch.equal(result.spikes, torch.where(expected, wide, 0.0).to(dtype))
        assert (
            torch.equal(result.spike_count, expected.sum(0, dtype=torch.int32)) and result.v is None
        )
        own = x.clone()
        assert F.srp_forward(own, threshold, v_init, tau=tau, inplace=True).spikes is own
        assert torch.equal(own, result.spikes)
    muted = (
        (expected.any(0) != run(x.double(), wide.double(), start.double())[0].any(0)).float().mean()
    )
    assert 0.02 < muted < 0.9  # the data mute some, and not all


@pytest.mark.parametrize("rho", [1, 3, 4, 8])
@pytest.mark.parametrize(
    "theta", [0.75, torch.tensor([0.5, 0.75, 1.5]).view(3, 1, 1)], ids=["scalar", "per_channel"]
)
def test_parallel_is_the_plain_formula(dtype, rho, theta):
    # θ = 1/2, 3/4, 3/2 and rho <= 8: quotients by t and by rho are rounded, and never across a
    # threshold that is not met.
    x = currents(8, 2, 3, 4, 5, dtype=dtype) + 1 / 64
    wide = torch.as_tensor(theta).expand(2, 3, 4, 5)
    threshold = theta.to(dtype) if isinstance(theta, torch.Tensor) else theta
    for v_init, start in ((None, wide / 2), (0.25, torch.full_like(wide, 0.25))):
        expected = plain_parallel(x, wide, start, rho)
        result = F.parallel_forward(x, threshold, v_init, rho=rho, return_count=True)
        assert torch.equal(result.spikes, torch.where(expected, wide, 0.0).to(dtype))
        assert (
            torch.equal(result.spike_count, expected.sum(0, dtype=torch.int32)) and result.v is None
        )
        own = x.clone()
        assert F.parallel_forward(own, threshold, v_init, rho=rho, inplace=True).spikes is own
        assert torch.equal(own, result.spikes)


@pytest.mark.parametrize("name", sorted(layouts(torch.zeros(2, 1, 1, 1, 1))))
def test_layouts_and_static_input(name):
    x = layouts(currents(4, 2, 3, 2, 5))[name]
    theta = torch.tensor(0.75)
    assert torch.equal(F.srp_forward(x, 0.75, tau=3).spikes != 0, plain_srp(x, theta, theta / 2, 3))
    assert torch.equal(
        F.parallel_forward(x, 0.75, rho=3).spikes, F.parallel_forward(x.clone(), 0.75, rho=3).spikes
    )
    static = x[0].expand(5, *x.shape[1:])
    assert torch.equal(
        F.srp_forward(static, 0.75, tau=2).spikes != 0, plain_srp(static, theta, theta / 2, 2)
    )
    assert torch.equal(
        F.parallel_forward(static, 0.75, rho=4).spikes != 0,
        plain_parallel(static, theta, theta / 2, 4),
    )


@given(
    st.lists(st.integers(-40, 60), min_size=1, max_size=9), st.integers(1, 9), st.integers(1, 30)
)
@settings(max_examples=200, deadline=None)
def test_srp_mutes_exactly_those_without_a_residual_above_zero(values, tau, theta):
    tau = min(tau, len(values))
    x, theta = (
        torch.tensor(values, dtype=torch.float64).unsqueeze(1),
        torch.tensor(float(theta), dtype=torch.float64),
    )
    fired, _ = run(x, theta, theta / 2)
    _, residual = run(x[:tau], theta, theta / 2)
    spikes = F.srp_forward(x, theta.item(), tau=tau).spikes
    assert torch.equal(spikes, fired * theta if residual.item() > 0 else torch.zeros_like(x))
    # The theorem behind it: an ANN activation of zero whose neuron has fired leaves a residual
    # below zero.
    if x[:tau].sum() + theta / 2 < theta and fired[:tau].any():
        assert residual.item() < 0 and not spikes.any()


def test_srp_with_nan_and_infinity():
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([[nan, inf, -inf, 2.0], [2.0, 2.0, 2.0, 2.0], [2.0, 2.0, inf, 2.0]])
    spikes = F.srp_forward(x, 1.0, tau=2).spikes
    # NaN has no residual above zero; +inf has; -inf then +inf is NaN, and muted anyway.
    assert torch.equal(spikes, torch.tensor([[0.0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 0, 1]]))


def test_function_errors_come_before_anything_is_written():
    x = currents(4, 3)
    before = x.clone()
    for function, name in ((F.srp_forward, "tau"), (F.parallel_forward, "rho")):
        for value, error in ((0, ValueError), (5, ValueError), (2.0, TypeError), (True, TypeError)):
            with pytest.raises(error, match=name):
                function(x, 1.0, **{name: value}, inplace=True)
        with pytest.raises(ValueError, match="v_threshold must be positive"):
            function(x, -1.0, **{name: 2}, inplace=True)
        with pytest.raises(TypeError, match="v_init must have"):
            function(x, 1.0, torch.zeros(3, dtype=torch.int32), **{name: 2}, inplace=True)
        with pytest.raises(ValueError, match="v_init must not share memory"):
            function(x, 1.0, x[0], **{name: 2}, inplace=True)
        with pytest.raises(RuntimeError, match="have no gradient"):
            function(x.clone().requires_grad_(), 1.0, **{name: 2})
    with pytest.raises(TypeError, match="tau"):
        F.srp_forward(x, 1.0)
    assert torch.equal(x, before)


# The neuron


@pytest.mark.parametrize("static", [False, True])
def test_nodes_are_the_functions(static):
    theta = torch.tensor([0.5, 0.75, 1.5]).view(3, 1, 1)
    x = currents(2, 3, 4, 4) if static else currents(12, 3, 4, 4)
    x_seq = x.expand(6, *x.shape) if static else x.unflatten(0, (6, 2))
    expected = {
        "none": F.if_forward(x_seq, theta).spikes,
        "srp": F.srp_forward(x_seq, theta, tau=4).spikes,
        "parallel": F.parallel_forward(x_seq, theta, rho=4).spikes,
        "cos": F.cos_forward(x_seq, theta, rho=4, iterations=2).spikes,
        "light": F.if_forward(x_seq + torch.tensor([0.25, -0.5, 1.0]).view(3, 1, 1), theta).spikes,
    }
    for inplace in (False, True):
        node = IFNode(theta, timesteps=6, rho=4, iterations=2, inplace=inplace, static_input=static)
        node.bias = torch.tensor([0.25, -0.5, 1.0]).view(3, 1, 1)
        for calibration, spikes in expected.items():
            node.calibration = calibration
            assert node.watch_steps == (4 if calibration in ("cos", "srp", "parallel") else 0)
            own = x.clone()
            node.count_spikes, node.emitted = True, None
            assert torch.equal(node(own), spikes.flatten(0, 1)), calibration
            assert node.emitted == (int((spikes != 0).sum()), spikes.numel())
            if not inplace or static:
                assert torch.equal(own, x)
            node.rho = 0  # nothing to watch: plain IF, but for the bias
            assert torch.equal(
                node(x.clone()),
                expected["light" if calibration == "light" else "none"].flatten(0, 1),
            )
            node.rho = 4
    half = IFNode(theta, timesteps=6, calibration="light", static_input=static)
    half.bias = torch.tensor([0.25, -0.5, 1.0]).view(3, 1, 1)
    assert half(x.half()).dtype == torch.float16  # the bias does not change the dtype
    assert torch.equal(half(x.half()), expected["light"].flatten(0, 1).half())


def test_what_a_node_may_be():
    node = IFNode(calibration="light", timesteps=2, rho=9, v_reset=0.0)  # rho plays no part
    assert node.watch_steps == 0 and "calibration='light'" in repr(node)
    with pytest.raises(RuntimeError, match="call cos_ext.fit_light first"):
        node(torch.rand(4, 3))
    for bad, error in (("best", ValueError), (None, TypeError)):
        with pytest.raises(error, match="calibration must be"):
            node.calibration = bad
    for watching in ("cos", "srp", "parallel"):
        with pytest.raises(ValueError, match="rho must be at most timesteps = 2, got 9"):
            node.calibration = watching
        with pytest.raises(ValueError, match="rho must be 0 with hard reset"):
            node.configure(calibration=watching, rho=2)
    assert node.calibration == "light"
    stepped = IFNode(0.75, step_mode="s", calibration="light", rho=3)
    stepped.bias = torch.tensor(0.125)
    x = currents(5, 7)
    whole = F.if_forward(x + 0.125, 0.75).spikes
    assert torch.equal(torch.stack([stepped(now) for now in x]), whole)


def test_the_bias_is_in_the_state_dict_only_once_it_is_there():
    node = IFNode(timesteps=2)
    assert node.state_dict().keys() == {"v_threshold", "v_init"}
    old = node.state_dict()
    IFNode().load_state_dict(old)
    node.bias = torch.ones(3)
    assert node.state_dict().keys() == {"v_threshold", "v_init", "bias"}
    assert node.double().bias.dtype == torch.float64
    with pytest.raises(RuntimeError, match="bias must not be NaN"):
        node.load_state_dict(node.state_dict() | {"bias": torch.full((3,), torch.nan)})
    assert torch.equal(node.bias, torch.ones(3, dtype=torch.float64))


# Networks


def images_of(test_set, count, start=0):
    return test_set.normalise(test_set.images[start : start + count])


def plain_network(network, x, emitted):
    """The network's layers, each replaced by `emitted(site, theta, v_init, x_seq)` in plain torch;
    [T, B, classes].
    """
    plain = copy.deepcopy(network)
    plain.calibration = "none"
    steps = plain._steps
    for site, node in plain.nodes().items():

        def forward(x, site=site, node=node):
            x_seq = x.expand(steps, *x.shape) if node.static_input else x.unflatten(0, (steps, -1))
            return emitted(site, node.v_threshold, node.v_init, x_seq).flatten(0, 1)

        node.forward = forward
    return plain(x)


def in_double(shipped_model):
    return copy.deepcopy(shipped_model).double()


def test_the_shipped_network_under_srp_is_a_plain_simulation(shipped_model, test_set):
    network = convert(in_double(shipped_model), timesteps=4, rho=3, calibration="srp", fuse=False)
    x, muted = images_of(test_set, 4).double(), []

    def srp(site, theta, v, x_seq):
        fired, _ = run(x_seq, theta, v)
        silent = run(x_seq[:3], theta, v)[1] <= 0
        muted.append((fired.any(0) & silent).any().item())
        return torch.where(fired & ~silent, theta, 0.0)

    expected = plain_network(network, x, srp)
    assert len(muted) == 19 and all(muted[1:])  # a static input leaves no offset
    assert torch.equal(network(x), expected)
    network.calibration = "none"
    assert not torch.equal(network(x), expected)


def test_the_shipped_network_under_parallel_conversion_is_plain_counts(shipped_model, test_set):
    network = convert(
        in_double(shipped_model), timesteps=8, rho=8, calibration="parallel", fuse=False
    )
    x = images_of(test_set, 3).double()

    def sorted_train(site, theta, v, x_seq):
        count = ((x_seq.sum(0) + v) / theta).floor().clamp(0, 8)
        return torch.stack([torch.where(t <= count, theta, 0.0) for t in range(1, 9)])

    assert (network(x) - plain_network(network, x, sorted_train)).abs().max() <= 1e-9
    assert (
        network.rate(x) - in_double(shipped_model)(x)
    ).abs().max() <= 1e-9  # rho = T = L: without loss
    steps = network(x)
    network.calibration, network.emission = "cos", "front"
    assert torch.equal(network(x), steps)


def test_none_is_the_converted_network_and_rho_plays_no_part(shipped_model, test_set):
    x = images_of(test_set, 5)
    expected = convert(shipped_model, timesteps=3)(x)
    network = convert(shipped_model, timesteps=3, rho=6, calibration="none")
    assert torch.equal(network(x), expected) and network.watch_steps == 0
    assert {node.timesteps for node in network.nodes().values()} == {3}
    network.calibration = "cos"
    assert {node.timesteps for node in network.nodes().values()} == {6} and network.watch_steps == 6
    network.iterations = 0
    assert torch.equal(network(x), expected)


def plain_light(network, ann, x):
    """The biases of the light pipeline: layer after layer, each measured with the layers before it
    corrected.
    """
    desired, biases = {}, {}

    def note(site, a):
        desired[site] = a.mean((0, 2, 3))

    hooks = [
        ann.get_submodule(site).register_forward_hook(lambda m, i, a, site=site: note(site, a))
        for site in network.nodes()
    ]
    ann(x)
    for hook in hooks:
        hook.remove()
    for site in network.nodes():

        def emitted(at, theta, v, x_seq):
            if at in biases:
                x_seq = x_seq + biases[at].view(-1, 1, 1)
            spikes = torch.where(run(x_seq, theta, v)[0], theta, 0.0)
            if at == site:
                found.append(spikes.mean((0, 1, 3, 4)))
            return spikes

        found = []
        plain_network(network, x, emitted)
        biases[site] = desired[site] - found[0]
    return biases


def test_light_fits_the_biases_of_a_plain_computation(shipped_model, test_set):
    model = in_double(shipped_model)
    network = convert(model, timesteps=2, fuse=False)
    x = images_of(test_set, 4).double()
    expected = plain_light(network, model, x)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    fitted = fit_light(network, model, [x[:3], (x[3:], torch.zeros(1))], progress=False)
    assert network.calibration == "light" and list(fitted) == list(network.nodes())
    for site, node in network.nodes().items():
        assert node.bias.shape == (len(expected[site]), 1, 1)
        assert (node.bias.flatten() - expected[site]).abs().max() <= 1e-9, site
        assert torch.equal(fitted[site], node.bias)
    assert all(
        torch.equal(network.state_dict()[key], value) for key, value in before.items()
    )  # nothing else changed
    biases = {site: node.bias for site, node in network.nodes().items()}

    def corrected(site, theta, v, x_seq):
        return torch.where(run(x_seq + biases[site], theta, v)[0], theta, 0.0)

    assert torch.equal(network(x), plain_network(network, x, corrected))
    again = fit_light(
        network, model, iter([x]), progress=False
    )  # an earlier fit does not matter; a batch is as good as two
    assert all((again[site] - fitted[site]).abs().max() <= 1e-9 for site in fitted)
    assert network.watch_steps == 0 and not any(
        node._forward_hooks for node in network.nodes().values()
    )


def test_light_helps_on_images_that_it_was_not_fitted_on(shipped_model, test_set):
    network = convert(shipped_model, timesteps=1)
    subset = test_set.first(200)
    plain = evaluate(network, subset.batches(50), progress=False)
    fit_light(network, shipped_model, [images_of(test_set, 64, start=9000)], progress=False)
    light = evaluate(network, subset.batches(50), progress=False)
    assert light.accuracy[0] > plain.accuracy[0] + 0.15 and light.latency == plain.latency == [1]


def test_light_where_a_max_pooling_was_moved_before_the_neurons():
    torch.manual_seed(3)
    ann = (
        nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.ReLU(),
            nn.Conv2d(4, 5, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(5 * 4, 6),
            nn.ReLU(),
            nn.Linear(6, 3),
        )
        .double()
        .eval()
    )
    network = convert(
        ann, timesteps=3, thresholds={"1": 1.0, "3": 1.0, "7": 0.5}, max_pool="before"
    )
    x = torch.randn(10, 1, 8, 8, dtype=torch.float64)
    fitted = fit_light(network, ann, [x], progress=False)
    assert {site: tuple(bias.shape) for site, bias in fitted.items()} == {
        "1": (4, 1, 1),
        "3": (5, 1, 1),
        "7": (6,),
    }
    # The last layer, with what reaches it: the mean of the ANN's activation, less that of plain IF
    # neurons without a bias.
    reached = []
    network.nodes()["7"].register_forward_pre_hook(lambda m, args: reached.append(args[0].clone()))
    network(x)
    theta = torch.tensor(0.5, dtype=torch.float64)
    spikes = run(reached[0].unflatten(0, (3, 10)), theta, theta / 2)[0] * theta
    assert (fitted["7"] - (ann[:8](x).mean(0) - spikes.mean((0, 1)))).abs().max() <= 1e-12
    # And the pooled layer is held against the pooled activation.
    currents_of = []
    network.nodes()["3"].register_forward_pre_hook(
        lambda m, args: currents_of.append(args[0].clone())
    )
    network(x)
    one = torch.ones((), dtype=torch.float64)
    spikes = run(currents_of[0].unflatten(0, (3, 10)), one, one / 2)[0].double()
    assert (
        fitted["3"].flatten() - (ann[:5](x).mean((0, 2, 3)) - spikes.mean((0, 1, 3, 4)))
    ).abs().max() <= 1e-12


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)
    ).eval()


THRESHOLDS = {"1": torch.tensor([1.0, 0.5, 0.75]).view(3, 1, 1), "3": 0.5}


def state_of(network):
    return network.calibration, {site: node.bias for site, node in network.nodes().items()}


def test_fit_light_errors_leave_the_network_as_it_was():
    ann, x = small(), torch.randn(4, 1, 8, 8)
    network = convert(ann, timesteps=2, rho=2, thresholds=THRESHOLDS)
    before = state_of(network)
    with pytest.raises(TypeError, match="network must be a SpikingNetwork, got Sequential"):
        fit_light(ann, ann, [x])
    with pytest.raises(TypeError, match="ann must be an nn.Module, got str"):
        fit_light(network, "ann", [x])
    with pytest.raises(TypeError, match="got a SpikingNetwork"):
        fit_light(network, network, [x])
    with pytest.raises(TypeError, match="batches must be an iterable"):
        fit_light(network, ann, x)
    with pytest.raises(ValueError, match="activations at"):
        fit_light(network, nn.Sequential(nn.Linear(2, 2), nn.ReLU()), [x])
    with pytest.raises(
        ValueError, match="ann must have the network's dtype torch.float32, it has torch.float64"
    ):
        fit_light(network, copy.deepcopy(ann).double(), [x.double()])
    for empty in ([], [x[:0]]):
        with pytest.raises(ValueError, match="at least one sample"):
            fit_light(network, ann, empty, progress=False)
    with pytest.raises(ValueError, match="must give finite activations, those at '1'"):
        fit_light(network, ann, [torch.full_like(x, torch.inf)], progress=False)
    other = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)
    )
    with pytest.raises(
        ValueError, match="ann must be the model that the network was converted from.*'1'"
    ):
        fit_light(network, other.eval(), [x], progress=False)
    assert state_of(network) == before == ("cos", {"1": None, "3": None})
    fit_light(network, ann, [x], progress=False)
    calibration, biases = state_of(network)
    # The last batch breaks the second layer's pass, when the first one's bias is there already.
    handle = network.nodes()["3"].register_forward_pre_hook(lambda m, a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit_light(network, ann, [2 * x], progress=False)
    handle.remove()
    assert network.calibration == calibration
    assert all(node.bias is biases[site] for site, node in network.nodes().items())


def test_light_without_a_fit_says_so():
    network = convert(
        small(),
        timesteps=2,
        thresholds=THRESHOLDS,
        calibration="light",
        example_input=torch.randn(3, 1, 8, 8),
    )
    with pytest.raises(RuntimeError, match="call cos_ext.fit_light first"):
        network(torch.randn(1, 1, 8, 8))


@pytest.mark.parametrize("calibration", ["cos", *RIVALS])
def test_settings_make_a_round_trip_through_a_file(calibration, tmp_path):
    ann, x = small(), torch.randn(4, 1, 8, 8)
    network = convert(ann, timesteps=3, rho=2, thresholds=THRESHOLDS)
    fit_light(network, ann, [x], progress=False)  # biases are kept whatever is used
    network.calibration = calibration
    network.set_layer("3", calibration="srp", rho=4)
    assert network.watch_steps == 4 and network._steps == 4
    expected = network(x)
    network.save(tmp_path / "network")
    again = cos_ext.load_network(tmp_path / "network", small(seed=9))
    assert torch.equal(again(x), expected)
    assert (again.calibration, again.nodes()["3"].calibration, again.rho) == (calibration, "srp", 2)
    assert all(
        torch.equal(node.bias, network.nodes()[site].bias) for site, node in again.nodes().items()
    )
    again.set_layer("3")
    assert again.nodes()["3"].calibration == calibration
    with pytest.raises(ValueError, match="of its own"):
        again.set_layer("3", bias=1.0)


def test_files_from_before_the_rivals_still_load(tmp_path):
    ann, x = small(), torch.randn(4, 1, 8, 8)
    network = convert(ann, timesteps=3, rho=2, thresholds=THRESHOLDS)
    network.save(tmp_path / "new")
    with safe_open(tmp_path / "new", "pt") as file:
        header = json.loads(file.metadata()["cos_ext"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    assert "module.1.bias" not in tensors and "module.1.v_init" in tensors
    assert (header.pop("calibration"), header.pop("biases")) == ("cos", {})
    write_tensors(tmp_path / "old", tensors, header)
    again = cos_ext.load_network(tmp_path / "old", ann)
    assert again.calibration == "cos" and torch.equal(again(x), network(x))
    write_tensors(tmp_path / "bad", tensors, {**header, "biases": {"nowhere": [3]}})
    with pytest.raises(ValueError, match="has a bias for 'nowhere'"):
        cos_ext.load_network(tmp_path / "bad", ann)


def test_calibration_of_a_network_can_be_changed_and_is_checked():
    ann = small()
    network = convert(ann, timesteps=2, rho=5, thresholds=THRESHOLDS, calibration="none")
    for bad, error in (("late", ValueError), (3, TypeError)):
        with pytest.raises(error, match="calibration must be"):
            network.calibration = bad
        with pytest.raises(error, match="calibration must be"):
            convert(ann, timesteps=2, thresholds=THRESHOLDS, calibration=bad)
        with pytest.raises(error, match="calibration must be"):
            network.set_layer("1", calibration=bad)
    assert network.calibration == "none" and network(torch.randn(1, 1, 8, 8)).shape == (2, 1, 4)
    network.calibration = "srp"
    assert network.watch_steps == 5 and network(torch.randn(1, 1, 8, 8)).shape == (2, 1, 4)
    network.set_layer("1", calibration="none")
    network.set_layer("3", rho=3)
    assert network.watch_steps == 3


@pytest.mark.parametrize("calibration", RIVALS)
def test_latency_and_independence_of_the_batch(calibration, shipped_model, test_set):
    model = in_double(
        shipped_model
    )  # float64: convolutions may sum in another order for another batch size
    network = convert(model, timesteps=2, rho=3, calibration=calibration)
    x = images_of(test_set, 6).double()
    if calibration == "light":
        fit_light(network, model, [images_of(test_set, 2, start=50).double()], progress=False)
    whole = network(x)
    for parts in (1, 4):
        assert (
            torch.cat([network(part) for part in x.split(parts)], 1) - whole
        ).abs().max() <= 1e-9
    result = evaluate(network, [(x, test_set.labels[:6])], progress=False)
    assert result.latency == ([1, 2] if calibration in ("none", "light") else [4, 5])


@pytest.mark.parametrize("calibration", RIVALS)
def test_the_offset_report_takes_every_calibration(calibration):
    ann, x = small(), torch.randn(4, 1, 8, 8)
    network = convert(ann, timesteps=2, rho=3, thresholds=THRESHOLDS)
    fit_light(network, ann, [x], progress=False)
    network.calibration = calibration
    report = cos_ext.offset_spike_report(ann, network, [x], progress=False)
    assert report.rho == (3 if calibration in ("srp", "parallel") else 2)
    assert report.to_dict()["network_calibration"] == calibration
    if calibration != "none":
        assert f'calibration "{calibration}"' in str(report)
    if (
        calibration == "light"
    ):  # ψ is taken on the corrected currents: with them, exact calibration leaves nothing
        assert all(layer.histograms["exact"][4] == layer.neurons for layer in report.layers)
        node, seen = network.nodes()["3"], []
        node.register_forward_pre_hook(
            lambda m, a: seen.append((a[0] + node.bias).unflatten(0, (2, 4)))
        )
        network(x)
        theta = node.v_threshold
        wanted = ((seen[0].sum(0) + theta / 2) / theta).floor().clamp(0, 2)
        psi = (wanted - run(seen[0], theta, theta / 2)[0].sum(0)).flatten()
        assert report.layers[1].shares("before")[0] == pytest.approx(
            (psi == 0).double().mean().item()
        )
        assert report.layers[1].shares("before")[1] > 0


@pytest.mark.parametrize("calibration", ["srp", "parallel", "light"])
def test_rival_networks_compile_whole(calibration):
    torch._dynamo.reset()  # other tests' networks count towards its limit of recompilations
    ann, x = small(), torch.randn(4, 1, 8, 8)
    network = convert(ann, timesteps=3, rho=2, thresholds=THRESHOLDS)
    fit_light(network, ann, [x], progress=False)
    network.calibration = calibration
    assert torch.equal(torch.compile(network, fullgraph=True, backend="aot_eager")(x), network(x))


def test_light_on_a_network_of_every_shape():
    """Linear layers, a site that is called twice, and layers that keep a calibration of their
    own.
    """
    ann = zoo.prepared("rivals", lambda: zoo.ResNet(zoo.BasicBlock))
    x = torch.randn(3, 3, 32, 32)
    network = convert(
        ann,
        timesteps=2,
        rho=2,
        thresholds=dict.fromkeys(cos_ext.calibrate_thresholds(ann, [x], progress=False), 1.0),
    )
    first = next(iter(network.nodes()))
    network.set_layer(first, calibration="srp")
    fitted = fit_light(network, ann, [x], progress=False)
    assert (
        first not in fitted
        and network.nodes()[first].bias is None
        and len(fitted) == len(network.nodes()) - 1
    )
    assert network(x).shape[0] == 2 and network.watch_steps == 2
