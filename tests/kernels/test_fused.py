"""What the operators take in beside the simulation: scale, bias and residual of the input, pooling
of the spikes, rates. EQUAL to passes apart.

The separate passes are plain torch operations; the kernels of CUDA are held against these operators
in test_cuda_on_host.py.
"""

from __future__ import annotations

import pytest
import torch
from conftest import layouts
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as TF

from cos_ext import functional as F
from cos_ext._ops import ops

ALL = {"return_v": True, "return_count": True}
ALL_COS = {**ALL, "return_v_init": True, "return_offset": True, "return_statistics": True}
pytestmark = pytest.mark.usefixtures("one_thread")


def currents(x, scale=None, bias=None, residual=None):
    """The passes apart: each result is stored in x's dtype."""
    state = F.state_dtype(x.dtype)
    if scale is not None or bias is not None:
        scale = torch.ones((), dtype=state) if scale is None else scale.to(state)
        bias = torch.zeros((), dtype=state) if bias is None else bias.to(state)
        x = (x.to(state) * scale + bias).to(x.dtype)
    return x if residual is None else x + residual


def equal(a, b):
    return all((p is None and q is None) or torch.equal(p, q) for p, q in zip(a, b))


def operands(x, kind):
    """scale, bias and residual by name, for neurons x.shape[1:]."""
    per_channel = torch.rand(x.shape[2], 1, 1).add(0.5).to(x.dtype)
    each = torch.randn(x.shape[1:]).to(x.dtype)
    residual = torch.randn(x.shape).to(x.dtype)
    return {
        "scale": {"scale": per_channel},
        "bias": {"bias": per_channel - 1},
        "bias by neuron, in the state dtype": {"bias": each.to(F.state_dtype(x.dtype))},
        "affine": {"scale": each, "bias": per_channel},
        "residual": {"residual": residual},
        "static residual": {"residual": residual[:1].expand_as(x)},
        "all": {"scale": per_channel, "bias": each, "residual": residual},
    }[kind]


KINDS = [
    "scale",
    "bias",
    "bias by neuron, in the state dtype",
    "affine",
    "residual",
    "static residual",
    "all",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(6, 2, 3, 5, 7), (9, 3, 8, 16, 16)], ids=str)
def test_equal_to_passes_apart(dtype, shape, kind):
    x = torch.randn(shape).to(dtype)
    given = operands(x, kind)
    for layout, laid in layouts(x).items():
        apart = currents(x, **given)
        theta = torch.rand(shape[2], 1, 1).add(0.3).to(dtype)
        for emission, v in (("calibrated", True), ("even", False)):
            options = {**ALL_COS, "return_v": v, "rho": 4, "iterations": None, "emission": emission}
            assert equal(
                F.cos_forward(laid, theta, **given, **options),
                F.cos_forward(apart, theta, **options),
            ), layout
        for reset in (None, 0.1):
            expected = F.if_forward(apart, 0.7, v_reset=reset, **ALL)
            assert equal(F.if_forward(laid, 0.7, v_reset=reset, **given, **ALL), expected), layout
            kept = laid.clone()
            assert equal(
                F.if_forward(kept, 0.7, v_reset=reset, **given, **ALL, inplace=True), expected
            ), layout
            assert torch.equal(kept, expected.spikes)


def test_a_residual_in_another_layout(dtype):
    x, residual = torch.randn(5, 2, 4, 6, 8).to(dtype), torch.randn(5, 2, 4, 6, 8).to(dtype)
    expected = F.cos_forward(x + residual, 1.0, rho=3, return_count=True)
    for laid in layouts(residual).values():
        assert equal(F.cos_forward(x, 1.0, rho=3, return_count=True, residual=laid), expected)


def test_static_input_with_a_residual_that_changes():
    x, residual = torch.randn(3, 4, 5), torch.randn(6, 3, 4, 5)
    static = x.expand(6, 3, 4, 5)
    assert equal(
        F.cos_forward(static, 1.0, rho=4, residual=residual),
        F.cos_forward(static + residual, 1.0, rho=4),
    )
    spikes = F.cos_forward(static, 1.0, rho=4, emission="front", residual=residual).spikes
    assert torch.equal(
        spikes, F.cos_forward(static + residual, 1.0, rho=4, emission="front").spikes
    )


@pytest.mark.parametrize("window", [2, (2, 2), (4, 2), (8, 8), (1, 4)], ids=str)
@pytest.mark.parametrize("shape", [(5, 2, 3, 8, 8), (4, 3, 70, 8, 16), (3, 1, 1, 16, 8)], ids=str)
def test_pooled_spikes(dtype, shape, window):
    x = torch.randn(shape).to(dtype)
    for layout in ("contiguous", "channels_last", "strided", "batch_major"):
        laid = layouts(x)[layout]
        for call in (
            lambda x, **k: F.if_forward(x, 0.8, **k),
            lambda x, **k: F.cos_forward(x, 0.8, rho=3, iterations=None, **k),
            lambda x, **k: F.cos_forward(
                x, 0.8, rho=3, emission="even", bias=torch.full((1,), 0.25, dtype=dtype), **k
            ),
        ):
            expected = TF.avg_pool2d(call(laid).spikes.flatten(0, 1), window).unflatten(
                0, shape[:2]
            )
            pooled = call(laid, pool=window).spikes
            # Sums of four are EQUAL; in longer ones, torch adds in another order.
            exact = window in (2, (2, 2))
            assert pooled.shape == expected.shape and pooled.dtype == dtype
            assert (
                torch.equal(pooled, expected)
                if exact
                else torch.allclose(pooled, expected, atol=2 * torch.finfo(dtype).eps)
            )
            if layout == "channels_last" and shape[2] > 1:
                assert pooled.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_pooling_splits_over_threads_and_counts_once():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        x = torch.randn(4, 3, 32, 32, 32)
        result = F.cos_forward(x, 1.0, rho=4, pool=2, return_statistics=True)
        apart = F.cos_forward(x, 1.0, rho=4, return_statistics=True)
        assert torch.equal(
            result.spikes.flatten(0, 1), TF.avg_pool2d(apart.spikes.flatten(0, 1), 2)
        )
        assert torch.equal(result.statistics, apart.statistics)
    finally:
        torch.set_num_threads(threads)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 12), st.integers(0, 2**32 - 1), st.sampled_from([torch.float32, torch.float64])
)
def test_rates_are_the_counts_of_a_calibrated_neuron(rho, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    # Multiples of 1/64: sums are exact, so that the mean says what the sum says.
    x = torch.randint(-128, 192, (rho, 257), generator=generator).to(dtype) * rho / 64
    theta = torch.randint(1, 5, (257,), generator=generator).to(dtype)
    calibration = F.calibrate_v_init(x, theta, rho=rho)
    desired = (calibration.spike_count + calibration.offset_spikes).to(dtype)
    assert torch.equal(F.rate_forward(x.mean(0), theta, rho=rho), theta * desired / rho)


def test_rates_in_every_dtype_with_fused_input(dtype):
    x, given = (
        torch.randn(2, 3, 4, 5).to(dtype),
        operands(torch.randn(1, 2, 3, 4, 5).to(dtype), "all"),
    )
    given["residual"] = given["residual"][0]
    z = currents(x, **given)
    state = F.state_dtype(dtype)
    quantised = (z.to(state) * 4 + 0.5).floor().clamp(0, 4) / 4
    rates = F.rate_forward(x, 1.0, rho=4, **given)
    assert torch.equal(rates, quantised.to(dtype))
    assert F.rate_forward(x, 1.0, rho=4, **given, inplace=True) is x and torch.equal(x, rates)
    assert F.rate_forward(
        torch.tensor([float("nan"), float("inf"), -float("inf")]), 1.0, rho=4
    ).tolist() == [0, 1, 0]


@pytest.mark.parametrize("compiled", [False, True])
def test_fakes_and_schemas(compiled):
    x = (
        torch.randn(4, 2, 3, 4, 6)
        .flatten(0, 1)
        .to(memory_format=torch.channels_last)
        .unflatten(0, (4, 2))
    )
    bias, residual = torch.randn(3, 1, 1), torch.randn(4, 2, 3, 4, 6)

    def run(x):
        pooled = F.cos_forward(
            x, 1.0, rho=2, bias=bias, residual=residual, pool=2, return_statistics=True
        )
        return (
            pooled.spikes,
            pooled.statistics,
            F.if_forward(x, 1.0, scale=bias).spikes,
            F.rate_forward(x[0], 1.0, rho=3, bias=bias),
        )

    if compiled:
        assert equal(torch.compile(run, fullgraph=True, backend="aot_eager")(x), run(x))
        return
    none = (None, 1.0, None, None)
    torch.library.opcheck(
        ops.if_forward, (x, *none, None, False, False, None, bias, residual, 2, 2)
    )
    torch.library.opcheck(
        ops.if_forward_, (x.clone(), *none, None, True, False, None, bias, residual)
    )
    torch.library.opcheck(
        ops.cos_forward, (x, *none, 2, 1, *[False] * 4, 0, True, bias, bias, residual, 2, 2)
    )
    torch.library.opcheck(ops.cos_forward, (x, *none, 2, 1, *[True] * 4, 0, True))
    torch.library.opcheck(
        ops.cos_forward_, (x.clone(), *none, 2, 1, *[True] * 4, 0, True, None, bias, None)
    )
    torch.library.opcheck(ops.rate_forward, (x[:1], *none, 5, None, bias, residual[:1]))
    torch.library.opcheck(ops.rate_forward_, (x[:1].clone(), *none, 5, None, bias, residual[:1]))


X = torch.zeros(4, 2, 3, 4, 6)
BAD = [
    ({"bias": 1.0}, TypeError, "bias must be a tensor or None, got float"),
    (
        {"scale": torch.ones(3, 1, 1, dtype=torch.float64)},
        TypeError,
        "scale must have x_seq's dtype",
    ),
    ({"bias": torch.ones(5)}, ValueError, "bias must broadcast to the neurons"),
    (
        {"residual": torch.zeros(4, 2, 3, 4, 6, dtype=torch.float64)},
        TypeError,
        "residual must have x_seq's dtype",
    ),
    ({"residual": torch.zeros(1, 2, 3, 4, 6)}, ValueError, "residual must have x_seq's shape"),
    ({"pool": 3}, ValueError, "pool must divide"),
    ({"pool": (2, 0)}, ValueError, "pool must divide"),
    ({"pool": 2.0}, TypeError, "pool must be an int"),
    ({"pool": (2, 2, 2)}, TypeError, "pool must be an int"),
    ({"pool": 2, "inplace": True}, ValueError, "inplace must be False"),
    ({"pool": 2, "return_count": True}, ValueError, "no results by neuron"),
]


@pytest.mark.parametrize("options, error, words", BAD, ids=lambda value: str(value)[:30])
def test_bad_arguments(options, error, words):
    x = X.clone()
    for call in (
        lambda **o: F.if_forward(x, 1.0, **o),
        lambda **o: F.cos_forward(x, 1.0, rho=2, **o),
    ):
        with pytest.raises(error, match=words):
            call(**options)
    assert torch.equal(x, X)


def test_what_overlaps_or_is_too_long_is_refused():
    x = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="residual must not share memory"):
        F.if_forward(x, 1.0, residual=x, inplace=True)
    with pytest.raises(ValueError, match="T <= 4096"):
        F.if_forward(torch.zeros(4097, 1), 1.0, bias=torch.zeros(1))
    with pytest.raises(ValueError, match="rho must be at most 256 with return_statistics"):
        F.cos_forward(torch.zeros(300, 1), 1.0, rho=257, return_statistics=True)
    with pytest.raises(ValueError, match="rho must be >= 1"):
        F.rate_forward(torch.zeros(3), 1.0, rho=0)
    none = (None, 1.0, None, None)
    for arguments in (
        (torch.zeros(4, 2, 4, 4), *none, None, False, False, None, None, None, 3, 2),
        (torch.zeros(4, 2, 4, 4), *none, None, False, False, None, None, torch.zeros(1)),
    ):
        with pytest.raises(RuntimeError):
            ops.if_forward(*arguments)
