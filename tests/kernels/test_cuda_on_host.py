"""The bodies of the CUDA kernels, run on the host by a shim (tests/cpp), against the CPU operators:
all results EQUAL.

The same operator bodies, checks and choice of kernel as on a device; only the launch differs. What
needs a device is in test_gpu.py; gradients, in test_gradients_on_host.py; that the kernels compile
for a device, in cuda_kernels.py; the same bodies under sanitizers, in cpp/test_core.cpp.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import DTYPES, layouts
from hypothesis import given, settings
from hypothesis import strategies as st
from test_golden import CASES, case, is_excused

from cos_ext import _ops
from cos_ext import functional as F

# Compiling the shim alone takes longer than a slow test.
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

ALL = {"return_v": True, "return_count": True}
ALL_COS = {**ALL, "return_v_init": True, "return_offset": True}
SIZES = [1, 2, 3, 7, 31, 33, 127, 129, 4097, 16, 24, 64, 1000, 4096]


def currents(*shape, dtype=torch.float32):
    return (torch.randn(*shape, dtype=torch.float64) * 1.2 + 0.35).to(dtype)


def assert_equal(ours, theirs):
    assert ours._fields == theirs._fields
    for name, a, b in zip(ours._fields, ours, theirs):
        if a is None or b is None:
            assert a is b, name
            continue
        assert a.dtype == b.dtype and a.stride() == b.stride(), name
        assert torch.equal(torch.nan_to_num(a, 7.5), torch.nan_to_num(b, 7.5)), name


@pytest.mark.parametrize("size", SIZES)
def test_every_size_bucket_and_option(size, dtype, on_host):
    for steps, rho, offset in itertools.product(
        (1, 2, 4, 5, 8, 9, 16, 17, 33), (1, 2, 4, 5, 8, 9, 16, 17, 20), (0, 1)
    ):
        if rho > steps:
            continue
        x = currents(steps * size + offset, dtype=dtype)[offset:].view(steps, size)
        for iterations in (0, 1, 2, None):
            options = {"rho": rho, "iterations": iterations}
            expected = F.cos_forward(x, 0.9, **options, **ALL_COS)
            assert_equal(on_host(F.cos_forward, x, 0.9, **options, **ALL_COS), expected)
            calibrated = on_host(F.calibrate_v_init, x, 0.9, **options)
            assert_equal(calibrated, F.calibrate_v_init(x, 0.9, **options))
        assert torch.equal(
            on_host(F.cos_forward, x, 0.9, rho=rho, iterations=None).spikes, expected.spikes
        )
        for emission in ("even", "front"):
            options = {
                "rho": rho,
                "emission": emission,
                "return_count": True,
                "return_offset": True,
                "return_v_init": True,
            }
            assert_equal(
                on_host(F.cos_forward, x, 0.9, **options), F.cos_forward(x, 0.9, **options)
            )


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 8, 9, 32])
@pytest.mark.parametrize("v_reset", [None, 0.0, 0.3])
def test_fire_without_calibration(steps, v_reset, dtype, on_host):
    for size in SIZES:
        x = currents(steps, size, dtype=dtype)
        assert_equal(
            on_host(F.if_forward, x, 0.8, -0.1, v_reset=v_reset, **ALL),
            F.if_forward(x, 0.8, -0.1, v_reset=v_reset, **ALL),
        )
        one = on_host(F.if_forward, x.clone(), 0.8, v_reset=v_reset, inplace=True)
        assert torch.equal(one.spikes, F.if_forward(x, 0.8, v_reset=v_reset).spikes)


NEURONS = [(2, 5, 6, 7), (3, 8, 4, 4), (2, 16, 7, 7), (4, 24, 1, 1), (2, 8, 1, 3), (2, 3, 40, 5)]
PARAMETERS = {
    "scalars": ((), (), False),
    "per channel": (("C", 1, 1), None, False),
    "per channel, both": (("C", 1, 1), ("C", 1, 1), False),
    "per channel and sample": (("B", "C", 1, 1), ("C", 1, 1), False),
    "per row": ((1, "H", 1), ("W",), False),
    "per neuron": (("B", "C", "H", "W"), ("B", "C", "H", "W"), False),
    "per neuron, permuted": (("B", "C", "H", "W"), ("C", "H", "W"), True),
    "misaligned": (("C", "H", "W"), ("C", "H", "W"), "misaligned"),
}


def parameter(kind, sizes, permuted, dtype):
    if kind is None:
        return None
    shape = [sizes[size] if isinstance(size, str) else size for size in kind]
    if permuted == "misaligned":
        value = torch.rand(1 + torch.Size(shape).numel())[1:].view(shape)
    elif permuted:
        value = torch.rand(shape[::-1]).permute(*reversed(range(len(shape))))
    else:
        value = torch.rand(shape)
    return (value + 0.5).to(F.state_dtype(dtype))


@pytest.mark.parametrize("which", list(PARAMETERS))
@pytest.mark.parametrize("neurons", NEURONS, ids=str)
def test_every_layout_and_parameter_shape(neurons, which, dtype, on_host):
    theta_kind, init_kind, permuted = PARAMETERS[which]
    sizes = dict(zip("BCHW", neurons))
    theta, v_init = (
        parameter(theta_kind, sizes, permuted, dtype),
        parameter(init_kind, sizes, permuted, dtype),
    )
    source = currents(9, *neurons, dtype=dtype)
    everything = {
        **layouts(source),
        "static": source[:1].expand(9, *neurons),
        "repeated": source[..., :1].expand_as(source),
        "one step": source[:1],
    }
    for name, x in everything.items():
        assert_equal(
            on_host(F.if_forward, x, theta, v_init, **ALL), F.if_forward(x, theta, v_init, **ALL)
        )
        for rho in {1, min(5, x.shape[0])}:
            options = {"rho": rho, "iterations": None, **ALL_COS}
            assert_equal(
                on_host(F.cos_forward, x, theta, v_init, **options),
                F.cos_forward(x, theta, v_init, **options),
            )
        if name not in ("static", "repeated"):
            a, b = (
                x.clone(memory_format=torch.preserve_format),
                x.clone(memory_format=torch.preserve_format),
            )
            options = {"rho": rho, "inplace": True, **ALL_COS}
            assert_equal(
                on_host(F.cos_forward, a, theta, v_init, **options),
                F.cos_forward(b, theta, v_init, **options),
            )


@pytest.mark.parametrize("fused", ["nothing", "scale", "bias", "residual", "all"])
@pytest.mark.parametrize("shape", [(8, 2, 3, 8, 8), (5, 1, 7, 4, 6), (18, 2, 4, 16, 16)], ids=str)
def test_fused_input_pooling_statistics_and_rates(shape, fused, dtype, on_host):
    x, other = currents(*shape, dtype=dtype), currents(*shape, dtype=dtype)
    per_neuron, per_channel = (
        torch.rand(size).add(0.2).to(dtype) for size in (shape[2:], (shape[2], 1, 1))
    )
    last = {
        name: layouts(tensor)["channels_last"] for name, tensor in (("x", x), ("residual", other))
    }
    pairs = [
        (x, other),
        (last["x"], last["residual"]),
        (last["x"], other),
        (x, other[:1].expand(shape)),
        (x[:1].expand(shape), other),
        (x[:1].expand(shape), other[:1].expand(shape)),
    ]
    thetas, inits = (1.0, per_channel, per_neuron), (None, per_channel, per_neuron)
    for index, (theta, v_init, (x, residual)) in enumerate(itertools.product(thetas, inits, pairs)):
        if (
            index + index // 6
        ) % 3:  # every pair of θ and v_init, with two of the pairs of layouts each
            continue
        given = {
            "nothing": {},
            "scale": {"scale": per_channel},
            "bias": {"bias": per_neuron},
            "residual": {"residual": residual},
            "all": {"scale": per_neuron, "bias": per_channel, "residual": residual},
        }[fused]
        rho, emission = ((4, "calibrated"), (5, "even"), (2, "front"), (shape[0], "calibrated"))[
            index % 4
        ]
        options = {
            **given,
            "rho": rho,
            "emission": emission,
            "iterations": None,
            "return_statistics": True,
        }
        results = {**ALL_COS, "return_v": emission == "calibrated"}
        assert_equal(
            on_host(F.cos_forward, x, theta, v_init, **options, **results),
            F.cos_forward(x, theta, v_init, **options, **results),
        )
        assert_equal(
            on_host(F.cos_forward, x, theta, v_init, **options, pool=2),
            F.cos_forward(x, theta, v_init, **options, pool=2),
        )
        for reset in (None, 0.1):
            plain = {**given, "v_reset": reset}
            assert_equal(
                on_host(F.if_forward, x, theta, v_init, **plain, **ALL),
                F.if_forward(x, theta, v_init, **plain, **ALL),
            )
            assert_equal(
                on_host(F.if_forward, x, theta, v_init, **plain, pool=2),
                F.if_forward(x, theta, v_init, **plain, pool=2),
            )
        first = {
            name: tensor[0] if name == "residual" else tensor for name, tensor in given.items()
        }
        rates = on_host(F.rate_forward, x[0], theta, v_init, rho=rho, **first)
        assert torch.equal(rates, F.rate_forward(x[0], theta, v_init, rho=rho, **first))


@pytest.mark.parametrize("index", CASES)
def test_spikes_equal_the_authors(index, on_host):
    x, expected, rho, theta = case(index)
    spikes = on_host(F.cos_forward, x, theta, rho=rho).spikes
    assert torch.equal(spikes, F.cos_forward(x, theta, rho=rho).spikes)
    wrong = ((spikes > 0) != (expected > 0)).any(0)
    assert not (wrong & ~is_excused(x, rho, theta)).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity(value, dtype, on_host):
    x = currents(9, 2, 5, 6, 8, dtype=dtype)
    x[torch.rand(x.shape) < 0.1] = value
    for layout in layouts(x).values():
        options = {"rho": 5, "iterations": None, **ALL_COS}
        assert_equal(
            on_host(F.cos_forward, layout, 0.8, **options), F.cos_forward(layout, 0.8, **options)
        )


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("size", [0, *SIZES, 20_011])
def test_qcfs(size, noisy, dtype, shim):
    z, grad = (currents(size + 1, dtype=dtype) for _ in range(2))
    noise = (torch.rand(size) - 0.5).to(dtype) if noisy else None
    theta = torch.tensor(1.1, dtype=F.state_dtype(dtype))
    for x in (z[:size], z[1:], z.repeat_interleave(2)[: 2 * size : 2]):  # aligned, and not
        cpu, ours = torch.ops.cos_ext, shim
        assert torch.equal(ours.qcfs(x, theta, 5, noise), cpu.qcfs(x, theta, 5, noise))
        results = [library.qcfs_backward(grad[1:], x, theta, 5, noise) for library in (ours, cpu)]
        assert torch.equal(results[0][0], results[1][0])
        # The sum is in float64, in another order.
        slack = 2e-7 if dtype != torch.float64 else 1e-14
        assert abs(results[0][1] - results[1][1]) <= slack * (1 + grad.double().abs().sum())


@pytest.mark.parametrize("elements", [2**19, 2**19 + 1, 2**20 + 77])
def test_qcfs_of_more_than_the_threads_of_a_launch(elements, shim):
    z, grad, theta = currents(elements), torch.randn(elements), torch.tensor(1.1)
    assert torch.equal(shim.qcfs(z, theta, 5), torch.ops.cos_ext.qcfs(z, theta, 5))
    ours = shim.qcfs_backward(grad, z, theta, 5)
    theirs = torch.ops.cos_ext.qcfs_backward(grad, z, theta, 5)
    assert torch.equal(ours[0], theirs[0]) and torch.allclose(ours[1], theirs[1], rtol=1e-6)


def test_more_dimensions_than_a_walk_can_hold_are_refused(on_host):
    with pytest.raises(ValueError, match="16 neuron dimensions"):
        on_host(F.if_forward, torch.ones((2,) * 18), torch.rand((2, 1) * 8 + (2,)) + 0.5)


@st.composite
def jobs(draw):
    """x of any dtype, shape and layout, θ and v_init of any broadcastable shape, and options."""
    dtype = draw(st.sampled_from(DTYPES))
    steps = draw(st.integers(1, 36))
    neurons = draw(st.lists(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 16]), min_size=0, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    order = draw(st.permutations(range(1 + len(neurons))))
    shape = [steps, *neurons]
    base = (
        torch.randn([shape[d] for d in order], generator=generator)
        * draw(st.sampled_from([0.4, 1.2]))
        + 0.35
    )
    x = base.to(dtype).permute([order.index(d) for d in range(len(shape))])
    if draw(st.booleans()) and neurons:
        x = x[..., : draw(st.integers(1, neurons[-1]))]
    if draw(st.integers(0, 4)) == 0:
        x = x[:1].expand(steps, *x.shape[1:])

    def values(optional):
        kind = draw(
            st.sampled_from(["float", "tensor", "none"] if optional else ["float", "tensor"])
        )
        if kind == "none":
            return None
        if kind == "float":
            return draw(st.sampled_from([0.5, 0.8, 1.7]))
        own = draw(st.integers(0, x.dim() - 1))
        sizes = [size if draw(st.booleans()) else 1 for size in x.shape[x.dim() - own :]]
        return (torch.rand(sizes, generator=generator) + 0.5).to(
            draw(st.sampled_from([dtype, F.state_dtype(dtype)]))
        )

    rho = draw(st.integers(0, steps))
    iterations = draw(st.sampled_from([0, 1, 2, 3, None]))
    return x, values(False), values(True), rho, iterations, draw(st.sampled_from([None, 0.1]))


def test_any_job(shim):
    seen = set()

    @settings(max_examples=400, deadline=None, derandomize=True)
    @given(jobs())
    def check(job):
        x, theta, v_init, rho, iterations, v_reset = job
        seen.add((x.dtype, min(rho, 17) // 4, x.is_contiguous()))
        cpu = _ops.ops
        for name in ("ops", "shim"):
            _ops.ops = cpu if name == "ops" else shim
            try:
                if rho:
                    result = F.cos_forward(
                        x, theta, v_init, rho=rho, iterations=iterations, **ALL_COS
                    )
                else:
                    result = F.if_forward(x, theta, v_init, v_reset=v_reset, **ALL)
            finally:
                _ops.ops = cpu
            if name == "ops":
                expected = result
        assert_equal(result, expected)

    check()
    assert {dtype for dtype, _, _ in seen} == set(DTYPES) and len(seen) > 20
