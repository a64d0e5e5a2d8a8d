"""Convolutions by events in networks used in ways of their own: each gives what dense gives."""

import pytest
import torch
from test_layout import exact
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from cos_ext import QCFS, convert
from cos_ext import functional as F
from cos_ext.network.convolution import SpikeConv2d

X = torch.randint(0, 5, (2, 3, 6, 6)) / 4


class Net(nn.Module):
    def __init__(self, outputs=32, **settings):
        super().__init__()
        self.first, self.act = nn.Conv2d(3, 32, 3, padding=1), QCFS(4, 1.0)
        self.wide = nn.Conv2d(32, outputs, 3, padding=1, **settings)

    def forward(self, x):
        return self.wide(self.act(self.first(x)))


def network(model=None, **settings):
    made = convert(exact(model or Net()), timesteps=4, rho=4, **settings)
    made.convolution = "events"
    return made


def both(made, run=lambda made: made(X)):
    events = run(made)
    made.convolution = "dense"
    dense = run(made)
    made.convolution = "events"
    return events, dense


def through_data(made):
    made.module.wide.weight.data.mul_(-1)


def through_numpy(made):
    made.module.wide.weight.numpy()[:] *= -1


def through_an_alias(made):
    flat = torch.ones_like(made.module.wide.weight)
    made.module.wide.weight.data = flat
    made(X)
    flat.mul_(2)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("write", [through_data, through_numpy, through_an_alias])
def test_weights_written_past_autograd(write, inference):
    with torch.inference_mode(inference):
        made = network()
        before = made(X)
        write(made)
        after = made(X)
        assert not torch.equal(after, before)
        made.convolution = "dense"
        assert torch.equal(after, made(X))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_gradients_of_every_kind(name):
    made = network()
    value = getattr(made.module.wide, name)
    value.requires_grad_()
    assert made(X).requires_grad
    value.requires_grad_(False)

    def run(given):
        return functional_call(made, {f"module.wide.{name}": given}, (X,))

    for derivative in (
        lambda: torch.func.grad(lambda given: run(given).sum())(value),
        lambda: torch.func.jvp(run, (value,), (torch.ones_like(value),))[1],
    ):
        events, dense = both(made, lambda _, derivative=derivative: derivative())
        assert torch.equal(events, dense) and events.any()


def test_the_function_has_no_forward_derivative_either():
    h, w = torch.rand(1, 2, 4, 4), torch.rand(3, 2, 3, 3)
    with pytest.raises(RuntimeError, match="no gradient"):
        torch.func.jvp(lambda h: F.spike_conv2d(h, w), (h,), (h,))


def test_vmap_over_weights():
    made = network()
    weight = made.module.wide.weight
    out = torch.func.vmap(lambda w: functional_call(made, {"module.wide.weight": w}, (X,)))(
        torch.stack([weight, -weight])
    )
    assert torch.equal(made(X), out[0]) and not torch.equal(out[0], out[1])


def test_fewer_outputs_than_the_module_says():
    model = Net(64)
    model.wide.weight = nn.Parameter(model.wide.weight[:40].detach().clone())
    model.wide.bias = None
    events, dense = both(network(model))
    assert events.shape[2] == 40 and torch.equal(events, dense)


def test_a_trace_has_the_weights_that_are_loaded():
    made = network()
    made.memory_limit = None
    out = made(X)
    traced = torch.jit.trace(made, X)
    doubled = {k: v * 2 if "wide" in k else v for k, v in made.state_dict().items()}
    traced.load_state_dict(doubled)
    assert torch.equal(traced(X), 2 * out)


def test_what_else_a_convolution_has_stays():
    model = Net()
    model.wide.register_buffer("extra", torch.ones(3))
    weight = model.wide.weight.detach()
    del model.wide.weight
    model.wide.register_buffer("weight", weight)
    made = network(model)
    assert isinstance(made.module.wide, SpikeConv2d)
    assert "module.wide.extra" in made.state_dict()
    events, dense = both(made)
    assert torch.allclose(events, dense, atol=1e-5)


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_odd_sizes_stay_dense(name):
    model = Net()
    setattr(model.wide, name, (1,))
    made = network(model)
    assert not isinstance(made.module.wide, SpikeConv2d)
    assert made(X).shape == (4, 2, *model(X).shape[1:])
    assert "two ints" in made.plan().layers[1].reason
    large = network(Net(stride=2**31))
    assert not isinstance(large.module.wide, SpikeConv2d) and large(X).shape[-1] == 1


def test_the_layout_that_was_asked_for():
    made = network(memory_format=torch.contiguous_format)
    out, dense = both(made)
    assert out.is_contiguous() and torch.equal(out, dense)


def test_packed_weights_are_let_go():
    made = network()
    conv = made.module.wide
    for leave in (made.double, lambda: setattr(made, "convolution", "dense")):
        made(X)
        assert conv._packed is not None
        leave()
        assert conv._packed is None
        made.convolution = "events"


def test_operations_are_counted_alike():
    made = network()

    def count(made):
        with FlopCounterMode(display=False) as counter:
            made(X)
        return counter.get_total_flops()

    events, dense = both(made, count)
    assert events == dense > 0


def test_a_bias_of_another_dtype_is_no_more_taken_than_dense():
    made = network()
    made.module.wide.bias.data = made.module.wide.bias.double()
    with pytest.raises(RuntimeError, match="type"):
        made(X)


def test_arguments_on_several_devices_are_refused():
    x, weight = torch.ones(1, 2, 3, 3), torch.ones(4, 2, 3, 3)
    with pytest.raises(ValueError, match="like the others"):
        F.spike_conv2d(x, weight.to("meta"))
    with pytest.raises(ValueError, match="like the others"):
        F.spike_conv2d(x, weight, torch.ones(4, device="meta"))
    with pytest.raises(ValueError, match="weight not empty"):
        F.spike_conv2d(x, weight[:0])
    with pytest.raises(ValueError, match="an int or two"):
        F.spike_conv2d(x, weight, stride=b"ab")
