"""Captured forwards: what they check. The graph itself: test_gpu_runtime.py."""

import copy

import pytest
import torch
from chains import Chain, TwoInputs, images
from torch import nn

from cos_ext import convert
from cos_ext.network.capture import CapturedForward

pytestmark = pytest.mark.usefixtures("one_thread")


def test_capture_needs_cuda():
    network = convert(Chain(), timesteps=2)
    with pytest.raises(RuntimeError, match=r"capture needs CUDA: .* got \['cpu'\]"):
        network.capture(images(2, 1, 8, 8))
    with pytest.raises(TypeError, match="the inputs are"):
        network.capture()
    with pytest.raises(ValueError, match="one batch size"):
        convert(TwoInputs(), timesteps=2).capture(torch.rand(2, 6), torch.rand(3, 3))


def test_what_a_captured_forward_checks():
    """All but the graph itself, which a run into the same output stands for (the graph:
    test_gpu_runtime.py).
    """
    network = convert(Chain(), timesteps=2, rho=2)
    own = images(3, 1, 8, 8)
    out = network(own).clone()
    captured = CapturedForward(network, (own,), out, lambda: out.copy_(network(own)))
    x = images(3, 1, 8, 8)
    expected = network(x)
    first = captured(x)
    assert torch.equal(first, expected) and captured(x, clone=False) is out
    captured(images(3, 1, 8, 8))
    assert torch.equal(first, expected)
    for wrong, error, message in (
        ((x, x), TypeError, "takes 1 inputs, got 2"),
        (([1],), TypeError, "input 0 must be a tensor, got list"),
        (
            (x[:2],),
            ValueError,
            r"\(3, 1, 8, 8\) on cpu, as captured, got torch.float32 \(2, 1, 8, 8\)",
        ),
        ((x.double(),), ValueError, "got torch.float64"),
        ((x.to("meta"),), ValueError, "on meta"),
    ):
        with pytest.raises(error, match=message):
            captured(*wrong)
    network.load_state_dict(convert(Chain(), timesteps=2, rho=2).state_dict())  # in place: seen
    assert torch.equal(captured(x), network(x))
    changes = {
        "timesteps": lambda n: setattr(n, "timesteps", 4),
        "layer": lambda n: n.set_layer("act1", iterations=0),
        "limit": lambda n: setattr(n, "memory_limit", None),
        "dtype": lambda n: n.double(),
        "weight": lambda n: setattr(
            n.module.one, "weight", nn.Parameter(torch.zeros(3, 1, 3, 3), requires_grad=False)
        ),
        "potential": lambda n: setattr(n.nodes()["act1"], "v_init", torch.tensor(0.1)),
    }
    for change in changes.values():
        other = copy.deepcopy(network)
        stale = CapturedForward(other, (own,), out, lambda: None)
        stale(x)
        change(other)
        with pytest.raises(RuntimeError, match="changed since it was captured"):
            stale(x)
