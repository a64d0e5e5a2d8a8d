"""Networks with differences, in every way to run, save and train one: portions, streams, parts of a
batch, other dtypes, compiled, with gradients.
"""

import copy
import functools
import json

import pytest
import torch
from differences import X, made, net, plain
from safetensors import safe_open
from torch import nn

import cos_ext
from cos_ext._files import write_tensors

pytestmark = pytest.mark.usefixtures("one_thread")
convert = functools.partial(cos_ext.convert, spikes="rectifiers")  # GELU and others have none
NEAR = {"rtol": 0, "atol": 1e-12}
# One of each kind: a gate, a product, attention, samples in pieces, two forms, a static operand.
SOME = ["squeeze and excitation", "softmax attention", "imul", "pieces", "two forms", "static"]


@pytest.mark.parametrize("name", SOME)
def test_portions_are_one_run(name):
    network = made(net(name), timesteps=6, example_input=X)
    expected = network(X)
    running = network.begin(X)
    outputs = [running.advance(steps) for steps in (1, 3, 2)]
    torch.testing.assert_close(torch.cat(outputs), expected, **NEAR)
    torch.testing.assert_close(torch.stack([network.step(X) for _ in range(6)]), expected, **NEAR)
    network.reset()
    torch.testing.assert_close(network.step(X), expected[0], **NEAR)


@pytest.mark.parametrize(
    "name", ["squeeze and excitation", "softmax attention", "two forms", "sum"]
)
def test_frames_of_a_stream_may_differ(name):
    """What is affine in the frames takes part with its running mean, too."""
    model = net(name)
    network = made(model, timesteps=6, example_input=X)
    frames = torch.rand(6, *X.shape, dtype=torch.float64, generator=torch.manual_seed(5))
    outputs = torch.stack([network.step(frame) for frame in frames])
    torch.testing.assert_close(network.run(frames), outputs, **NEAR)
    means = frames.cumsum(0) / torch.arange(1.0, 7, dtype=torch.float64).view(6, 1, 1, 1, 1)
    torch.testing.assert_close(outputs, plain(model, means, 6), **NEAR)


@pytest.mark.parametrize("name", SOME)
def test_samples_that_are_kept_go_on_as_before(name):
    network = made(net(name), timesteps=6, example_input=X)
    expected, running = network(X), network.begin(X)
    running.advance(2)
    running.keep(torch.tensor([2, 0]))
    torch.testing.assert_close(running.advance(2), expected[2:4, [2, 0]], **NEAR)
    running.keep(torch.tensor([1]))
    torch.testing.assert_close(running.advance(2), expected[4:, [0]], **NEAR)
    running.keep(torch.tensor([], dtype=torch.int64))
    assert running.advance(1).shape == (1, 0, 3)


@pytest.mark.parametrize("name", SOME)
def test_parts_of_a_batch_are_the_batch(name):
    network = made(net(name), timesteps=6, example_input=X)
    expected = network(X)
    network.memory_limit = network.activation_bytes(X) - 8
    torch.testing.assert_close(network(X), expected, **NEAR)
    running = network.begin(X)
    outputs = torch.cat([running.advance(6) for _ in range(2)])  # in parts, too
    network.memory_limit, network.timesteps = None, 12
    torch.testing.assert_close(outputs, network(X), **NEAR)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize(
    "dtype, off", [(torch.float32, 1e-6), (torch.float16, 0.02), (torch.bfloat16, 0.06)]
)
def test_the_mean_in_other_dtypes_is_near_that_in_float64(name, dtype, off):
    """Spikes that move by a step move the mean by θ/T of one neuron."""
    network = made(net(name), timesteps=8, rho=8, example_input=X)
    wide = network.rate(X)
    narrow = network.to(dtype).rate(X.to(dtype))
    assert narrow.dtype == dtype
    assert (narrow.double() - wide).abs().max() < off


@pytest.mark.parametrize("name", ["softmax attention", "pieces", "two forms"])
def test_it_compiles_whole(name):
    network = made(net(name), timesteps=4, rho=4, emission="even", example_input=X)
    for execution in ("steps", "counts"):
        network.execution = execution
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(X), network(X), **NEAR)


class Ramp(torch.autograd.Function):
    """Whether v reaches θ; backward as cos_ext.surrogate.Triangle() of (v - θ) / θ."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad * (1 - u.abs()).clamp_min(0)


@pytest.mark.parametrize("name", SOME)
def test_gradients_are_those_of_a_plain_loop(name):
    model = net(name)
    network = made(model, timesteps=5, trainable=True, example_input=X)
    weights = torch.randn(5, 3, 3, dtype=torch.float64, generator=torch.manual_seed(2))
    (network(X) * weights).sum().backward()
    twin = copy.deepcopy(model)
    outputs = plain(twin, X, 5, spike=Ramp.apply)
    torch.testing.assert_close(network(X), outputs, **NEAR)
    (outputs * weights).sum().backward()
    found = dict(network.module.named_parameters())
    compared = 0
    for key, parameter in twin.named_parameters():
        if parameter.grad is not None and key in found and "threshold" not in key:
            assert found[key].grad.abs().max() > 0
            torch.testing.assert_close(found[key].grad, parameter.grad, rtol=0, atol=1e-10)
            compared += 1
    assert compared >= 6


@pytest.mark.parametrize("name", ["softmax attention", "max pooling after a sum"])
def test_a_saved_network_has_its_differences_again(name, tmp_path):
    model = net(name)
    network = made(model, timesteps=5, rho=5, example_input=X)
    network.save(tmp_path / "file")
    loaded = cos_ext.load_network(tmp_path / "file", model, example_input=X)
    assert torch.equal(loaded(X), network(X))
    statuses = [(entry.site, entry.status) for entry in network.report.entries]
    assert [(entry.site, entry.status) for entry in loaded.report.entries] == statuses
    again = copy.deepcopy(network)
    assert torch.equal(again(X), network(X))


def test_a_file_from_before_differences_loads_as_it_was(tmp_path):
    model = nn.Sequential(nn.Linear(5, 8), cos_ext.QCFS(4, 1.0), nn.Linear(8, 2)).eval()
    network, x = made(model, timesteps=4, max_pool="error"), torch.rand(3, 5)
    network.save(tmp_path / "file")
    with safe_open(tmp_path / "file", "pt") as file:
        header = json.loads(file.metadata()["cos_ext"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no dict
    assert header.pop("nonlinear") == "difference"
    write_tensors(tmp_path / "older", tensors, header)
    loaded = cos_ext.load_network(tmp_path / "older", model)
    assert torch.equal(loaded(x), network(x)) and loaded.options["nonlinear"] == "error"
