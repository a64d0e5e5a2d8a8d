"""CUDA equals CPU, bit for bit. Skipped without a GPU.

Whether the CPU operators are right is the subject of the other files; gradients and QCFS, of
test_gpu_learning.py; what only a GPU can show, of test_gpu_runtime.py.
"""

import copy

import pytest
import torch
from conftest import layouts
from on_gpu import (
    ALL,
    ALL_COS,
    GPU,
    WHY_NOT,
    assert_same_bits,
    bits,
    compare,
    currents,
    move,
    poisoned_memory,
    twin,
    with_marked_gaps,
)
from test_golden import CASES as GOLDEN
from test_golden import case as golden_case
from test_golden import is_excused
from test_spikingjelly import CASES as SPIKINGJELLY

import cos_ext
from cos_ext import functional as F

pytestmark = [
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
    pytest.mark.usefixtures("one_thread"),
]

SIZES = [1, 2, 3, 7, 8, 31, 33, 127, 128, 129, 4096, 4097]
STEPS_AND_RHO = [
    (1, 1),
    (2, 1),
    (2, 2),
    (3, 3),
    (4, 4),
    (5, 2),
    (8, 4),
    (8, 8),
    (9, 7),
    (12, 12),
    (16, 16),
    (17, 16),
    (18, 17),
    (20, 20),
    (32, 8),
    (33, 1),
    (33, 20),
]
ITERATIONS = (0, 1, 2, None)


@pytest.fixture(autouse=True)
def poisoned():
    with poisoned_memory():
        yield


def compare_all(x, theta=1.0, v_init=None, *, rho, iterations=ITERATIONS):
    """Every operator and option; returns what the last cos_forward gave on the CPU."""
    for v_reset in (None, 0.0, -0.3):
        compare(F.if_forward, x, theta, v_init, v_reset=v_reset, **ALL)
    compare(F.if_forward, x, theta, v_init, inplace=True, **ALL)
    for rounds in iterations:
        options = {"rho": rho, "iterations": rounds}
        compare(F.calibrate_v_init, x, theta, v_init, **options)
        compare(F.cos_forward, x, theta, v_init, inplace=True, **options, **ALL_COS)
        last = compare(F.cos_forward, x, theta, v_init, **options, **ALL_COS)
    return last


def test_fresh_memory_is_poisoned():
    assert torch.empty(3, device=GPU).isnan().all() and torch.empty(3).isnan().all()


@pytest.mark.parametrize("size", SIZES)
def test_every_size(size, dtype):
    for steps, rho in STEPS_AND_RHO:
        result = compare_all(currents(steps, size, dtype=dtype), rho=rho)
        if size >= 127 and rho > 1:  # else there was nothing to calibrate
            assert (result.offset_spikes > 0).any() and (result.offset_spikes < 0).any()
            assert set(result.spikes.unique().tolist()) == {0.0, 1.0}


def test_every_number_of_steps_and_every_rho(dtype):
    for steps in range(1, 34):
        x = currents(steps, 67, dtype=dtype)
        for rho in range(1, min(steps, 20) + 1):
            for iterations in (1, None):
                compare(F.cos_forward, x, 0.9, rho=rho, iterations=iterations, **ALL_COS)


def parameters(dtype):
    """θ and v_init of every shape, in x_seq's dtype and in the state dtype, for neurons [3, 5, 6,
    7].
    """
    state = F.state_dtype(dtype)

    def positive(*shape, of=state):
        return (torch.rand(shape) + 0.5).to(of)

    return {
        "scalars": (0.8, 0.1),
        "0-dim": (torch.tensor(0.8, dtype=state), torch.tensor(-0.2, dtype=dtype)),
        "per channel": (positive(5, 1, 1), None),
        "per channel, x's dtype": (positive(5, 1, 1, of=dtype), positive(5, 1, 1, of=dtype)),
        "per channel, v_init alone": (1.1, torch.randn(5, 1, 1).to(state)),
        "per column": (positive(7), torch.randn(7).to(dtype)),
        "per row": (positive(1, 6, 1), 0.25),
        "per sample": (positive(3, 1, 1, 1), None),
        "per neuron": (positive(3, 5, 6, 7), torch.randn(3, 5, 6, 7).to(state)),
        "per neuron, x's dtype": (
            positive(3, 5, 6, 7, of=dtype),
            torch.randn(3, 5, 6, 7).to(dtype),
        ),
        "per neuron, permuted": (
            positive(7, 6, 5, 3).permute(3, 2, 1, 0),
            torch.randn(5, 3, 6, 7).to(state).transpose(0, 1),
        ),
    }


@pytest.mark.parametrize("which", list(parameters(torch.float32)))
@pytest.mark.parametrize("layout", list(layouts(torch.zeros(2, 1, 1, 2, 2))))
def test_every_layout_and_parameter_shape(layout, which, dtype):
    x = with_marked_gaps(layouts(currents(9, 3, 5, 6, 7, dtype=dtype))[layout])
    compare_all(x, *parameters(dtype)[which], rho=5, iterations=(1, None))


@pytest.mark.parametrize(
    "neurons", [(5, 1, 1), (3, 2, 2), (8, 4, 4), (1, 3, 5), (64, 1, 3), (6, 8, 8), (130, 2, 1)]
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_channels_of_every_size(neurons, channels_last, dtype):
    # Channels that are smaller than a vector, that fill vectors exactly, and that end inside one.
    theta = (torch.rand(neurons[0], 1, 1) + 0.5).to(F.state_dtype(dtype))
    for batch in (1, 2, 5):
        x = currents(6, batch, *neurons, dtype=dtype)
        if channels_last:
            x = x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (6, batch))
        compare_all(x, theta, theta / 3, rho=4, iterations=(None,))


@pytest.mark.parametrize("pitch", [1029, 1032, 1056])
def test_every_alignment(pitch, dtype):
    # The start and, through the pitch, every later step lie on all offsets from a 16-byte boundary.
    x = currents(7, pitch, dtype=dtype)
    for offset in range(17):
        compare_all(
            with_marked_gaps(twin(x, "cpu")[:, offset : offset + 1000]),
            0.8,
            rho=4,
            iterations=(None,),
        )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_static_input(memory_format, dtype):
    image = currents(3, 5, 6, 7, dtype=dtype).to(memory_format=memory_format)
    for steps, rho in ((1, 1), (4, 4), (9, 8), (20, 17)):
        x = image.expand(steps, -1, -1, -1, -1)
        for theta in (0.8, (torch.rand(5, 1, 1) + 0.5).to(F.state_dtype(dtype))):
            compare(F.if_forward, x, theta, **ALL)
            for iterations in ITERATIONS:
                compare(F.calibrate_v_init, x, theta, rho=rho, iterations=iterations)
                static = compare(F.cos_forward, x, theta, rho=rho, iterations=iterations, **ALL_COS)
                copied = F.cos_forward(
                    x.contiguous().to(GPU), move(theta), rho=rho, iterations=iterations, **ALL_COS
                )
                assert torch.equal(bits(copied.spikes), bits(static.spikes))


@pytest.mark.parametrize("wanted", range(16))
@pytest.mark.parametrize("inplace", [False, True])
def test_every_choice_of_results(wanted, inplace, dtype):
    flags = {name: bool(wanted >> i & 1) for i, name in enumerate(ALL_COS)}
    x = currents(9, 3, 129, dtype=dtype)
    compare(F.cos_forward, x, rho=4, iterations=None, inplace=inplace, **flags)
    compare(
        F.if_forward,
        x,
        inplace=inplace,
        return_v=flags["return_v"],
        return_count=flags["return_count"],
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity(value, dtype):
    x = currents(8, 2, 5, 6, 7, dtype=dtype)
    x[torch.rand(x.shape) < 0.1] = value
    compare_all(x, 0.8, rho=5)


@pytest.mark.parametrize("shape", [(4, 0), (4, 3, 0, 2), (1, 0)])
def test_no_neurons(shape, dtype):
    compare_all(torch.empty(shape, dtype=dtype), rho=1)


def test_a_single_neuron_without_dimensions(dtype):
    compare_all(currents(6, dtype=dtype), rho=3)


FUSED = ("nothing", "scale", "bias", "residual", "all")


@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize(
    "shape", [(8, 2, 3, 8, 8), (5, 1, 7, 4, 6), (9, 2, 64, 16, 16), (18, 2, 8, 32, 32)], ids=str
)
def test_fused_input_pooled_spikes_statistics_and_rates(shape, fused, dtype):
    x, other = currents(*shape, dtype=dtype), currents(*shape, dtype=dtype)
    per_neuron, per_channel = (
        torch.rand(size).add(0.2).to(dtype) for size in (shape[2:], (shape[2], 1, 1))
    )
    last = {
        name: layouts(tensor)["channels_last"] for name, tensor in (("x", x), ("residual", other))
    }
    pairs = (
        (x, other),
        (last["x"], last["residual"]),
        (last["x"], other),
        (x, other[:1].expand(shape)),
        (x[:1].expand(shape), other),
    )
    for x, residual in pairs:
        given = {
            "nothing": {},
            "scale": {"scale": per_channel},
            "bias": {"bias": per_neuron},
            "residual": {"residual": residual},
            "all": {"scale": per_neuron, "bias": per_channel, "residual": residual},
        }[fused]
        there = {name: move(tensor) for name, tensor in given.items()}
        first = {
            name: tensor[0] if name == "residual" else tensor for name, tensor in given.items()
        }
        for theta, v_init in ((1.0, None), (per_channel, per_neuron)):
            calls = [
                (F.if_forward, {**ALL, "v_reset": reset}, x, given, there) for reset in (None, 0.1)
            ]
            calls += [(F.if_forward, {"pool": 2}, x, given, there)]
            for rho in {1, 4, min(8, shape[0]), shape[0]}:
                for emission in F.EMISSIONS:
                    options = {
                        "rho": rho,
                        "emission": emission,
                        "iterations": None,
                        "return_statistics": True,
                    }
                    results = {**ALL_COS, "return_v": emission == "calibrated"}
                    calls += [
                        (F.cos_forward, {**options, **results}, x, given, there),
                        (F.cos_forward, {**options, "pool": 2}, x, given, there),
                    ]
            for operator, options, x_seq, here, on_gpu in calls:
                assert_same_bits(
                    operator(twin(x_seq), move(theta), move(v_init), **options, **on_gpu),
                    operator(x_seq, theta, v_init, **options, **here),
                )
            rates = F.rate_forward(
                move(x[0]),
                move(theta),
                move(v_init),
                rho=5,
                **{n: move(t) for n, t in first.items()},
            )
            assert torch.equal(
                bits(rates), bits(F.rate_forward(x[0], theta, v_init, rho=5, **first))
            )


def test_a_network_that_fuses_is_that_of_the_cpu(shipped_model, test_set):
    images, _ = next(iter(test_set.first(32).batches(32)))
    for options in ({"rho": 4}, {"rho": 0}, {"rho": 4, "emission": "even"}):
        network = cos_ext.convert(shipped_model, timesteps=6, **options).double()
        on_gpu = cos_ext.convert(
            copy.deepcopy(shipped_model).cuda(), timesteps=6, **options
        ).double()
        assert on_gpu.options["fuse"] == "bias"
        assert torch.allclose(
            on_gpu(images.double().cuda()).cpu(), network(images.double()), atol=1e-9
        )


@pytest.mark.parametrize("index", GOLDEN)
@pytest.mark.parametrize("inplace", [False, True])
def test_golden_vectors(index, inplace):
    x, authors, rho, theta = golden_case(index)
    ours = compare(F.cos_forward, x, theta, rho=rho, inplace=inplace).spikes
    wrong = ((ours > 0) != (authors > 0)).any(0)
    assert not (wrong & ~is_excused(x, rho, theta)).any()


def test_spikingjelly_record():
    for case in SPIKINGJELLY:
        result = compare(F.if_forward, case.x, case.v_threshold, 0.0, v_reset=case.v_reset, **ALL)
        assert torch.equal(result.spikes > 0, case.spikes) and torch.equal(result.v, case.v)


def test_repeated_runs_are_equal(dtype):
    x = currents(8, 1_000_003, dtype=dtype)
    expected = compare(F.cos_forward, x, rho=4, iterations=None, **ALL_COS)
    on_gpu = x.to(GPU)
    for _ in range(20):
        again = F.cos_forward(on_gpu, 1.0, rho=4, iterations=None, **ALL_COS)
        assert_same_bits(again, expected)
