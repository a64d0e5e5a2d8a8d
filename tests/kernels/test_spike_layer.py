"""The operators spike_layer and spike_bits: every bit is that of spike_conv2d and then the neurons'
operator, whether spikes come and go as values or as bits.
"""

import pytest
import torch
from test_spike_conv import one_level, spikes, weights

from cos_ext import functional as F
from cos_ext._functional.events import Bits, Neurons, bits_of, convolved, layer, pack_weight

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
    (20, 700, 1, 1, 0, 1, (1, 1), 4, 3, (1, 1)),  # more channels than a piece has neurons
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


def as_bits(values):
    """Of values of one level, bit by bit."""
    n, channels, height, width = values.shape
    bits = torch.zeros(n, height, width, -(-channels // 64), dtype=torch.int64)
    for c in range(channels):
        bits[..., c // 64] |= (values[:, c] != 0).long() << (c % 64)
    level = values[values != 0][:1]
    return Bits(bits, level if level.numel() else values.new_ones(1), channels)


def both(case, neurons, dtype=torch.float32, operands=(), seed=0, bits=False):
    """The spikes of one pass and of two. bits: those of one pass come and go as bits."""
    torch.manual_seed(seed)
    channels, outputs, kernel, stride, padding, dilation, size, steps, samples, pool = case
    weight, bias = weights(channels, outputs, kernel, dtype)
    x = spikes(steps * samples, channels, size, 0.3, dtype)
    x = one_level(x) if seed % 2 or bits else x
    x = x.contiguous(memory_format=torch.channels_last)
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
    described = Neurons(theta=theta, v_init=v_init, **settings, **given)
    if "residual" in given:
        residual = given["residual"].flatten(0, 1)
        described = described._replace(residual=as_bits(residual) if bits else residual)
    ours = layer(
        as_bits(x) if bits else x,
        (pack_weight(weight), bias, outputs, *sizes),
        described,
        steps,
        pool=pool,
        to_bits=bits and not pool[0],
    )
    if bits and not pool[0]:
        read = bits_of(currents.unflatten(0, (steps, samples)), described)
        assert torch.equal(read.bits, ours.bits)
    ours = (ours.values() if isinstance(ours, Bits) else ours).unflatten(0, (steps, samples))
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


SPIKES = ("residual", lambda s, n, t: 0.3 * (torch.rand(t, n, *s[1:], s[0]) < 0.2).movedim(-1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("neurons", NEURONS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_are_the_values(case, neurons, dtype):
    for operands in ([], [SPIKES], [SPIKES, OPERANDS["scale"], OPERANDS["bias"]]):
        ours, two = both(case, neurons, dtype, operands, bits=True)
        assert torch.equal(ours, two) and two.any()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_convolution_of_bits(case):
    channels, outputs, kernel, stride, padding, dilation, size, steps, samples, _ = case
    weight, bias = weights(channels, outputs, kernel)
    sizes = [side for side in (stride, padding, dilation) for _ in range(2)]
    for density in (0.0, 0.2, 1.0):
        x = one_level(spikes(steps * samples, channels, size, density))
        assert torch.equal(as_bits(x).values(), x)
        ours = convolved(as_bits(x), pack_weight(weight), bias, outputs, *sizes)
        assert torch.equal(ours, F.spike_conv2d(x, weight, bias, stride, padding, dilation))


def test_bits_of_one_value_at_every_step():
    x = torch.rand(3, 20, 5, 6).contiguous(memory_format=torch.channels_last)
    neurons = Neurons(torch.tensor(0.7), torch.tensor(0.2), None, 4, 1, 0)
    ours = bits_of(x.expand(8, *x.shape), neurons).values().unflatten(0, (8, 3))
    two = F.cos_forward(x.expand(8, *x.shape), 0.7, 0.2, rho=4).spikes
    assert torch.equal(ours, two) and two.any()


def test_bits_that_do_not_fit():
    x = torch.zeros(4, 20, 5, 6).contiguous(memory_format=torch.channels_last)
    weight = pack_weight(torch.zeros(4, 20, 3, 3))
    bits, convolution = as_bits(x), (weight, None, 4, *[1] * 6)
    for wrong in (
        bits._replace(bits=bits.bits.int()),
        bits._replace(bits=bits.bits[..., None].expand(-1, -1, -1, -1, 2).flatten(-2)),
        bits._replace(bits=bits.bits[:, :, ::2]),
        bits._replace(level=torch.ones(2)),
    ):
        with pytest.raises(RuntimeError, match="x must be contiguous int64|x's level must be one"):
            convolved(wrong, *convolution)
    neurons = Neurons(torch.tensor(0.7), torch.tensor(0.2), None, 0, 1, 0)
    for residual in (as_bits(torch.zeros(4, 20, 5, 5)), as_bits(torch.zeros(4, 65, 5, 6))):
        with pytest.raises(RuntimeError, match="residual must be contiguous int64"):
            bits_of(x.unflatten(0, (2, 2)), neurons._replace(residual=residual))
    with pytest.raises(RuntimeError, match="channels innermost"):
        bits_of(torch.zeros(2, 2, 20, 5, 6), neurons)
    with pytest.raises(RuntimeError, match="means of spikes are no bits"):
        layer(bits, convolution, neurons, 2, pool=(5, 6), to_bits=True)


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
    convolution = (pack_weight(weight), bias, outputs, *sizes)
    neurons = (torch.tensor(0.7), 0.0, None, 0.2, None, 1, 1, 0, None, None, None, None)
    check, ops = torch.library.opcheck, torch.ops.cos_ext
    check(ops.spike_layer, (x, None, *convolution, steps, *neurons, *pool))
    bits = as_bits(one_level(x))
    check(ops.spike_conv2d, (bits.bits, bits.level, *convolution))
    check(ops.spike_layer, (bits.bits, bits.level, *convolution, steps, *neurons, *pool))
    check(ops.spike_layer, (x, None, *convolution, steps, *neurons, 0, 0, True))
    check(ops.spike_bits, (x.unflatten(0, (steps, samples)), *neurons))


def test_what_does_not_fit():
    with pytest.raises(RuntimeError, match="steps must divide the batch 5, got 2"):
        layer(
            torch.zeros(5, 3, 4, 4),
            (pack_weight(torch.zeros(4, 3, 3, 3)), None, 4, *[1] * 6),
            Neurons(torch.tensor(1.0), torch.tensor(0.5), None, 0, 0, 0),
            2,
        )
    with pytest.raises(RuntimeError, match="residual"):
        both(
            CASES[0],
            {"rho": 0},
            operands=[("residual", lambda s, n, t: torch.zeros(t, n, 1, 1, 1))],
        )
