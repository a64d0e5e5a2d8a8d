"""The parts of execution="counts", the desired count and the trains of spikes, against integers and
fractions.
"""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cos_ext.network import counts

pytestmark = pytest.mark.usefixtures("one_thread")

number = st.integers(-40, 120).map(lambda n: Fraction(n, 16))


@given(
    x=st.lists(number, min_size=1, max_size=6),
    theta=st.integers(1, 40).map(lambda n: Fraction(n, 8)),
    init=number,
    rho=st.integers(1, 9),
    wide=st.booleans(),
    inplace=st.booleans(),
)
def test_the_desired_count_is_that_of_exact_arithmetic(x, theta, init, rho, wide, inplace):
    dtype = torch.float64 if wide else torch.float32
    tensor = torch.tensor([float(value) for value in x], dtype=dtype)
    count = counts.desired_count(
        tensor.clone(), torch.tensor(float(theta)), torch.tensor(float(init)), rho, inplace=inplace
    )
    assert count.dtype == dtype
    assert count.tolist() == [
        min(max(math.floor((rho * value + init) / theta), 0), rho) for value in x
    ]


def test_the_desired_count_of_values_beyond_numbers():
    x = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30])
    kept = x.clone()
    assert counts.desired_count(x, torch.tensor(1.0), torch.tensor(0.5), 4).tolist() == [
        0,
        4,
        0,
        4,
        0,
    ]
    assert torch.equal(x.nan_to_num(), kept.nan_to_num())
    low = torch.tensor([0.5], dtype=torch.bfloat16)
    assert (
        counts.desired_count(low, torch.tensor(1.0), torch.tensor(0.5), 4, inplace=True).dtype
        == torch.float32
    )
    assert low.item() == 0.5


def emitted_by(desired, step, rho, emission):
    """n(t) in integers, from the definition in csrc/core/emission.h."""
    if emission == "even":
        return (2 * desired * step + rho) // (2 * rho)
    return step // rho * desired + min(desired, step % rho)


@given(
    rho=st.integers(1, 40),
    steps=st.integers(1, 100),
    emission=st.sampled_from(["even", "front"]),
    theta=st.floats(2.0**-10, 1024, width=32),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_trains_are_those_of_integers(rho, steps, emission, theta, dtype):
    every = torch.arange(rho + 1)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    threshold = torch.tensor(theta, dtype=state)
    spikes = counts.train(
        every.to(state), threshold, steps=steps, rho=rho, emission=emission, dtype=dtype
    )
    wanted = [
        [
            emitted_by(c, t, rho, emission) - emitted_by(c, t - 1, rho, emission)
            for c in range(rho + 1)
        ]
        for t in range(1, steps + 1)
    ]
    assert spikes.dtype == dtype
    assert torch.equal(spikes, torch.tensor(wanted, dtype=dtype) * threshold.to(dtype))
    total = counts.spikes_within(every.to(state), steps, rho, emission)
    assert total.tolist() == [emitted_by(c, steps, rho, emission) for c in range(rho + 1)]


def test_trains_over_thousands_of_steps():
    every = torch.arange(5001, dtype=torch.float32)
    spikes = counts.train(
        every.clone(), torch.tensor(0.3), steps=5000, rho=5000, emission="even", dtype=torch.float32
    )
    assert torch.equal((spikes != 0).sum(0), torch.arange(5001))
