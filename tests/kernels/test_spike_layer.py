"""The operator spike_layer: every bit is that of spike_conv2d and then the neurons' operator."""

import pytest
import torch
from test_spike_conv import one_level, spikes, weights

from cos_ext import functional as F
from cos_ext._functional.events import layer, pack_weight

# Channels, outputs, kernel, stride, padding, dilation, size, steps, samples, pool.
CASES = [
    (16, 16, 3, 1, 1, 1, (28, 28), 8, 3, (0, 0)),
    (16, 16, 3, 1, 1, 1, (8, 12), 4, 5, (2, 2)),
    (5, 33, 3, 2, 1, 1, (9, 7), 1, 4, (0, 0)),
    (40, 70, 1, 1, 0, 1, (6, 6), 5, 2, (3, 2)),
    (70, 20, 1, 2, 0, 1, (7, 5), 3, 2, (0, 0)),
    (3, 64, 5, 1, 2, 2, (12, 9), 6, 2, (0, 0)),
    (64, 64, 3, 1, 1, 1, (7, 7), 16, 2, (7, 7)),
    (8, 1, 3, 1, 1, 1, (4, 6), 300, 1, (0, 0)),
    (20, 200, 3, 1, 0, 1, (40, 40), 8, 1, (2, 19)),
]
NEURONS = [
    {"rho": 0},
    {"rho": 0, "v_reset": 0.1},
    {"rho": 1, "iterations": 1},
    {"rho": 4, "iterations": -1},
    {"rho": 4, "iterations": 2, "emission": 1},
    {"rho": 4, "emission": 2},
]


def strides(tensor):
    """Of the dimensions that have several places."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape) if size > 1]


def both(case, neurons, dtype=torch.float32, operands=(), seed=0):
    """The spikes of one pass and of two."""
    torch.manual_seed(seed)
    channels, outputs, kernel, stride, padding, dilation, size, steps, samples, pool = case
    weight, bias = weights(channels, outputs, kernel, dtype)
    x = spikes(steps * samples, channels, size, 0.3, dtype)
    x = (one_level(x) if seed % 2 else x).contiguous(memory_format=torch.channels_last)
    currents = F.spike_conv2d(x, weight, bias, stride, padding, dilation)
    shape = currents.shape[1:]
    given = {name: make(shape, samples, steps).to(dtype) for name, make in operands}
    theta = given.pop("theta", torch.tensor(0.8, dtype=dtype))
    v_init = given.pop("v_init", theta / 2)
    settings = {"v_reset": None, "rho": 0, "iterations": 1, "emission": 0, **neurons}
    settings["rho"] = min(settings["rho"], steps)
    if settings["emission"]:
        settings["iterations"] = 1
    sizes = [side for side in (stride, padding, dilation) for _ in range(2)]
    ours = layer(
        x,
        pack_weight(weight),
        bias,
        outputs,
        *sizes,
        steps=steps,
        theta=theta,
        v_init=v_init,
        pool=pool,
        **settings,
        **given,
    )
    currents = currents.unflatten(0, (steps, samples))
    given["pool"] = pool if pool[0] else None
    if settings["rho"]:
        rounds = None if settings["iterations"] < 0 else settings["iterations"]
        emission = F.EMISSIONS[settings["emission"]]
        rho = settings["rho"]
        return ours, F.cos_forward(
            currents, theta, v_init, rho=rho, iterations=rounds, emission=emission, **given
        ).spikes
    return ours, F.if_forward(currents, theta, v_init, v_reset=settings["v_reset"], **given).spikes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("neurons", NEURONS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_pass_changes_no_bit(case, neurons, dtype):
    for seed in (0, 1):
        ours, two = both(case, neurons, dtype, seed=seed)
        assert ours.shape == two.shape and strides(ours) == strides(two)
        assert torch.equal(ours, two)
        assert two.any()


OPERANDS = {
    "theta by channel": ("theta", lambda s, n, t: torch.rand(s[0], 1, 1) + 0.2),
    "theta by neuron": ("theta", lambda s, n, t: torch.rand(n, *s) + 0.2),
    "v_init by neuron": ("v_init", lambda s, n, t: torch.rand(n, *s)),
    "scale": ("scale", lambda s, n, t: torch.rand(s[0], 1, 1) + 0.5),
    "bias": ("bias", lambda s, n, t: torch.rand(*s)),
    "residual": ("residual", lambda s, n, t: torch.rand(t, n, *s)),
    "residual, last": ("residual", lambda s, n, t: torch.rand(t, n, *s[1:], s[0]).movedim(-1, 2)),
}


@pytest.mark.parametrize("name", OPERANDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_operands(case, name):
    every = OPERANDS["scale"], OPERANDS["bias"], OPERANDS["residual"]
    for operands in ([OPERANDS[name]], [OPERANDS[name], *(o for o in every if o[0] not in name)]):
        for dtype in (torch.float32, torch.bfloat16):
            ours, two = both(case, {"rho": 3}, dtype, operands)
            assert torch.equal(ours, two)


def test_threads():
    threads = torch.get_num_threads()
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            for case in CASES:
                ours, two = both(case, {"rho": 4})
                assert torch.equal(ours, two)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck(case):
    channels, outputs, kernel, stride, padding, dilation, size, steps, samples, pool = case
    weight, bias = weights(channels, outputs, kernel)
    x = spikes(steps * samples, channels, size, 0.3).contiguous(memory_format=torch.channels_last)
    sizes = [side for side in (stride, padding, dilation) for _ in range(2)]
    convolution = (x, pack_weight(weight), bias, outputs, *sizes, steps)
    neurons = (torch.tensor(0.7), 0.0, None, 0.2, None, 1, 1, 0, None, None, None)
    torch.library.opcheck(torch.ops.cos_ext.spike_layer, (*convolution, *neurons, *pool))


def test_what_does_not_fit():
    with pytest.raises(RuntimeError, match="steps must divide the batch 5, got 2"):
        layer(
            torch.zeros(5, 3, 4, 4),
            pack_weight(torch.zeros(4, 3, 3, 3)),
            None,
            4,
            *[1] * 6,
            steps=2,
            theta=torch.tensor(1.0),
            v_init=torch.tensor(0.5),
            v_reset=None,
            rho=0,
            iterations=0,
            emission=0,
        )
    with pytest.raises(RuntimeError, match="residual"):
        both(
            CASES[0],
            {"rho": 0},
            operands=[("residual", lambda s, n, t: torch.zeros(t, n, 1, 1, 1))],
        )
