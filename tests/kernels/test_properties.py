"""Properties of the arithmetic, with hypothesis, against the float64 oracle. Layouts and devices
are in test_operators.py.
"""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import desired_count, qcfs_count, simulate

from cos_ext import _core
from cos_ext import functional as F

settings.register_profile("cos_ext", max_examples=60, deadline=None)
settings.load_profile("cos_ext")


@st.composite
def populations(draw, dtype=np.float64, max_steps=12):
    """x [T, N], θ, rho: smooth currents, bursts and long silences, so that |ψ| > 1 occurs."""
    steps = draw(st.integers(1, max_steps))
    rho = draw(st.integers(1, steps))
    neurons = draw(st.sampled_from([1, 5, 63, 64, 65, 200, 1030]))
    theta = draw(st.floats(0.05, 20, allow_nan=False).map(lambda value: float(np.float32(value))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0.3, 1.0, 2.5]))
    x = rng.normal(draw(st.sampled_from([-0.3, 0.2, 0.6])), spread, (steps, neurons))
    if draw(st.booleans()):
        x *= rng.random((steps, neurons)) < 0.4
    return (x * theta).astype(dtype), theta, rho


def calibrated(x, theta, rho, iterations, v_init=None):
    spikes, _, _, shifted, psi = _core.cos_forward(x, theta, v_init, rho=rho, iterations=iterations)
    return spikes > 0, shifted, psi


@given(populations())
def test_offset_spikes_are_the_desired_count_minus_the_count(case):
    x, theta, rho = case
    spikes, _, after = simulate(x[:rho], theta, theta / 2)
    count = spikes.sum(0)
    _, _, psi = calibrated(x, theta, rho, 0)
    assert np.array_equal(psi, np.clip(np.floor(after[-1] / theta), -count, rho - count))
    total = (x[:rho].sum(0) + theta / 2) / theta
    settled = np.abs(total - np.round(total)) > 1e-9  # the sum is rounded in another order
    assert np.array_equal((count + psi)[settled], desired_count(x, theta, theta / 2, rho)[settled])


@given(populations(), st.integers(0, 5))
def test_after_k_iterations_exactly_the_neurons_beyond_k_are_wrong(case, iterations):
    x, theta, rho = case
    spikes, _, psi = calibrated(x, theta, rho, iterations)
    before = simulate(x[:rho], theta, theta / 2)[0].sum(0)
    after = spikes[:rho].sum(0)
    # Each shift moved the count by exactly one, towards the desired count.
    assert np.array_equal(after - before, np.sign(psi) * np.minimum(np.abs(psi), iterations))
    assert np.array_equal(after != before + psi, np.abs(psi) > iterations)


@given(populations(), st.sampled_from([np.float32, np.float64]))
def test_exact_calibration_leaves_no_offset_spike(case, dtype):
    x, theta, rho = case
    x = x.astype(dtype)
    spikes, shifted, psi = calibrated(x, theta, rho, None)
    before = _core.if_forward(x[:rho], theta)[2]
    assert np.array_equal(spikes[:rho].sum(0), before + psi)
    untouched = psi == 0
    assert np.array_equal(shifted[untouched], np.full(untouched.sum(), dtype(theta) / 2, dtype))


@given(populations(dtype=np.float32))
def test_float32_spikes_equal_the_oracle_where_rounding_cannot_matter(case):
    x, theta, _ = case
    spikes, before, _ = simulate(x.astype(np.float64), theta, theta / 2)
    clear = (np.abs(before - theta) > 1e-4 * (1 + np.abs(before))).all(0)
    assert np.array_equal((_core.if_forward(x, theta)[0] > 0)[:, clear], spikes[:, clear])


@given(st.integers(1, 16), st.floats(0.1, 10), st.integers(0, 2**32 - 1))
def test_constant_input_gives_the_qcfs_level(levels, theta, seed):
    z = np.random.default_rng(seed).normal(0.4, 0.7, 500) * theta
    x = np.broadcast_to(z, (levels, 500))
    position = z * levels / theta + 0.5
    clear = np.abs(position - np.round(position)) > 1e-9
    spikes, _, _ = calibrated(x, theta, levels, None)
    assert np.array_equal(spikes.sum(0)[clear], qcfs_count(z, theta, levels)[clear])


@given(populations(dtype=np.float32), st.integers(-40, 40))
def test_offset_spikes_have_the_exact_floor_at_multiples_of_the_threshold(case, multiple):
    # r is k·θ rounded to float32, above or below the real multiple; a rounded quotient would lose
    # the difference.
    _, theta, _ = case
    rho = 60
    target = np.float32(np.float64(multiple) * np.float64(np.float32(theta)))
    x = np.zeros((rho, 1), np.float32)
    x[-1] = target
    _, _, count, _, psi = _core.cos_forward(x, theta, 0.0, rho=rho, iterations=0)
    residual = float(_core.if_forward(x, theta, 0.0)[1][0])
    floor = (Fraction(residual) / Fraction(float(np.float32(theta)))).__floor__()
    assert psi[0] == min(max(floor, -int(count[0])), rho - int(count[0]))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "value, fired, psi",
    [(np.nan, [1, 0, 0, 0], 0), (np.inf, [1, 1, 1, 1], 0), (-np.inf, [1, 0, 0, 0], -1)],
)
def test_nan_and_infinity_after_a_spike(dtype, value, fired, psi):
    x = np.array([[1.5], [value], [0.0], [0.0]], dtype)
    spikes, _, _, _, offset = _core.cos_forward(x, 1.0, 0.0, rho=4, iterations=0)
    assert (spikes > 0)[:, 0].astype(int).tolist() == fired
    assert offset[0] == psi
    exact = F.cos_forward(
        torch.from_numpy(x),
        1.0,
        0.0,
        rho=4,
        iterations=None,
        return_v_init=True,
        return_offset=True,
    )
    assert exact.offset_spikes.item() == psi
    assert torch.isfinite(exact.v_init).all()


def test_inputs_far_beyond_the_precision_do_not_shift_to_infinity():
    x = np.array([[1e9], [-1e9], [3e8], [-3e8]] * 2, np.float32)
    _, _, _, shifted, _ = _core.cos_forward(x, 1e-3, rho=8, iterations=None)
    assert np.isfinite(shifted).all()


@given(populations(dtype=np.float32), st.sampled_from([1, 2, 3, 7]))
def test_numpy_threads_change_nothing(case, threads):
    x, theta, rho = case
    one = _core.cos_forward(x, theta, rho=rho, iterations=None)
    many = _core.cos_forward(x, theta, rho=rho, iterations=None, threads=threads)
    assert all(np.array_equal(a, b) for a, b in zip(one, many))
