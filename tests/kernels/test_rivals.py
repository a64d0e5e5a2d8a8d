"""SRP, light and parallel conversion, as functions and as settings of IFNode, against loops."""

import pytest
import torch
from conftest import layouts
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import currents, plain_parallel, plain_srp, run

from cos_ext import IFNode
from cos_ext import functional as F
from cos_ext._neuron.runs import Run, running

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.mark.parametrize("v_init", [None, 0.25])
def test_srp_makes_no_tensor_of_a_number_on_the_host(v_init, monkeypatch):
    # On CUDA such a tensor is copied, which waits for the device and is an error under capture.
    def refused(*_, **__):
        raise AssertionError("a tensor was made on the host")

    for name in ("as_tensor", "tensor", "scalar_tensor", "from_numpy"):
        monkeypatch.setattr(torch, name, refused)
    for x in (torch.empty(4, 3, device="meta"), torch.ones(4, 3)):
        assert F.srp_forward(x, 1.0, v_init, tau=2).spikes.shape == (4, 3)


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
        with pytest.raises(RuntimeError, match="has no gradient"):
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
            with running(Run(counts=True)) as run:
                assert torch.equal(node(own), spikes.flatten(0, 1)), calibration
            assert run.emitted[node] == (int((spikes != 0).sum()), spikes.numel())
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
