"""Published neurons are settings of the general neuron: the compiled kernels against their own
form (published_neurons.py), in float64, on the CPU and with the CUDA kernels' bodies on the host.

EXACT where the published arithmetic is in the same order; where it is scaled by θ, or sums in
another order, within 1e-9 of a value, so that not one level differs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import published_neurons as published
import pytest
import torch

from cos_ext import Neuron
from cos_ext import functional as F

THETA, STEPS, NEURONS = 1.3, 8, 4001
BACK_ENDS = ["cpu", pytest.param("cuda on host", marks=pytest.mark.slow)]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=BACK_ENDS)
def forward(request: pytest.FixtureRequest) -> Any:
    """neuron_forward from NumPy to NumPy, by one of the back ends."""
    on_host = None if request.param == "cpu" else request.getfixturevalue("on_host")

    def call(x: Any, theta: float, start: float, settings: dict[str, Any], **options: Any) -> Any:
        given = (torch.from_numpy(x), theta, start)
        options = {**options, "neuron": Neuron(**settings)}
        result = (
            on_host(F.neuron_forward, *given, **options)
            if on_host
            else F.neuron_forward(*given, **options)
        )
        return result.spikes.numpy()

    return call


@pytest.fixture
def x() -> Any:
    return np.random.default_rng(0).normal(0.4, 1.0, (STEPS, NEURONS))


def same(ours: Any, theirs: Any, exact: bool) -> None:
    assert ours.shape == theirs.shape and np.abs(theirs).max() > 0
    if exact:
        assert np.array_equal(ours, theirs)
    else:
        assert np.abs(ours - theirs).max() <= 1e-9


def mixed(x: Any) -> Any:
    """LM-HT's temporal-global information matrix, applied outside."""
    weights = np.random.default_rng(1).uniform(0, 2, (STEPS, STEPS)) / STEPS
    return np.tensordot(weights, x, 1)


def biased(value: float) -> torch.Tensor:
    return torch.full((STEPS,), value, dtype=torch.float64)


SIGNED = {"levels": (-1, 1), "lower": 0.0}
# name: what is published, θ, v(0), settings of Neuron, whether the arithmetic is in the same order
ROWS: dict[str, tuple[Any, float, float, dict[str, Any], bool]] = {
    "group neurons": (
        lambda x: published.group(x, THETA, 4),
        THETA / 4,
        THETA / 8,
        {"levels": (0, 4)},
        True,
    ),
    "AdaFire": (
        lambda x: published.ada_fire(x, THETA, 5),
        THETA,
        0.0,
        {"levels": (0, 5), "step_bias": biased(0.5 * THETA / STEPS)},
        True,
    ),
    "ST-BIF, activations": (
        lambda x: published.st_bif(x, THETA, 0, 15),
        THETA,
        THETA / 2,
        {**SIGNED, "count": (0, 15)},
        False,
    ),
    "ST-BIF, signed": (
        lambda x: published.st_bif(x, THETA, -8, 7),
        THETA,
        THETA / 2,
        {**SIGNED, "count": (-8, 7)},
        False,
    ),
    "IF_with_neg": (
        lambda x: published.if_with_neg(x, THETA),
        THETA,
        THETA / 2,
        {**SIGNED, "strict": False, "count": (0, None)},
        True,
    ),
    "signed IF with memory": (
        lambda x: published.signed_with_memory(x, THETA, 5),
        THETA,
        THETA / 2,
        {"levels": (-1, 1), "lower": 1.0, "strict": False, "count": (0, 5)},
        False,
    ),
    "MT neuron": (
        lambda x: published.multi_threshold(x, THETA, 4, False),
        THETA,
        0.0,
        {"ladder": 4},
        False,
    ),
    "MT neuron, gated": (
        lambda x: published.multi_threshold(x, THETA, 4, True),
        THETA,
        0.0,
        {"ladder": 4, "gated": True},
        False,
    ),
    "H-MT, basal": (
        lambda x: published.basal(x, 1.28, 4),
        1.28 / 8,
        1.28 / 16,
        {"levels": (0, 15)},
        False,
    ),
    "H-MT, pair": (
        lambda x: published.pair(x, 1.28, 4),
        1.28 / 8,
        1.28 / 16,
        {"levels": (-15, 15), "lower": 0.0},
        False,
    ),
    "DDTI": (lambda x: published.ddti(x, 0.8, 1.3), 1.3, 1.3 - 0.8, {}, False),
    "STA's encoder": (
        lambda x: published.sta(x, THETA),
        THETA,
        0.0,
        {"levels": (-(2**20), 2**20), "lower": 1.0, "strict": False},
        True,
    ),
}


@pytest.mark.parametrize("name", list(ROWS))
def test_published_neuron(name: str, forward: Any, x: Any) -> None:
    theirs, theta, start, settings, exact = ROWS[name]
    same(forward(x, theta, start, settings), theirs(x), exact)


def test_lm_ht_with_leak_and_mix(forward: Any, x: Any) -> None:
    theirs = published.lm_ht(mixed(x), THETA, 4, 0.9, THETA / 2)
    same(forward(mixed(x), THETA, THETA / 2, {"levels": (0, 4), "leak": 0.9}), theirs, True)


def test_several_spikes_a_step_settle_where_st_bif_does(forward: Any, x: Any) -> None:
    x = np.concatenate([x, np.zeros((40, NEURONS))])
    settled = THETA * np.clip(np.floor(x.sum(0) / THETA + 0.5), 0, 15)
    many = {"levels": (-99, 99), "lower": 0.0, "count": (0, 15)}
    ours = forward(x, THETA, THETA / 2, many)
    same(ours.sum(0), settled, False)
    same(published.st_bif(x, THETA, 0, 15).sum(0), settled, False)
    same(forward(x, THETA, THETA / 2, {**SIGNED, "count": (0, 15)}).sum(0), settled, False)


@pytest.mark.parametrize("gated", [False, True])
def test_differential_coding_is_prediction(gated: bool, forward: Any, x: Any) -> None:
    """Their inputs are differences; ours, the rates that they stand for."""
    bias = np.random.default_rng(2).normal(0, 0.2, NEURONS)
    mean, rates = bias.copy(), []
    for t, now in enumerate(x):
        rates.append(mean + now)
        mean = mean + now / (t + 1)
    settings = {"ladder": 4, "prediction": True, "gated": gated}
    ours = forward(np.stack(rates), THETA, 0.0, settings)
    theirs = published.differential(x + bias, bias, THETA, 4, gated)
    # Theirs sends the difference to the mean of what was sent before; ours, both together.
    before = np.zeros(NEURONS)
    for t in range(STEPS):
        same(ours[t] - before, theirs[t], False)
        before = before + theirs[t] / (t + 1)


def test_parallel_neuron_is_front_with_a_value_of_its_own(forward: Any, x: Any) -> None:
    x, before, after, each = x * 0.3 + 0.2, 1.3, 1.21, 0.05
    bias = 0.5 * before + each * STEPS
    theirs = published.parallel(x, before, after, bias)
    settings = {"emitted": after}
    same(forward(x, before, bias, settings, rho=STEPS, emission="front"), theirs, True)


def test_spike_llm_gif(forward: Any) -> None:
    whole = np.random.default_rng(3).integers(0, 32, NEURONS).astype(float)
    x = np.stack([whole, np.zeros(NEURONS)])
    same(forward(x, 1.0, 0.0, {"levels": (0, 15)}), published.gif(whole, 16, 2), True)


def test_ternary_lif_with_hard_reset(forward: Any, x: Any) -> None:
    settings = {"levels": (-1, 1), "upper": 0.5, "lower": 0.5, "strict": False}
    settings |= {"leak": 0.25, "emitted": 1.0}
    theirs = published.ternary_lif(x, THETA, 0.25)
    same(forward(x, THETA, 0.0, settings, v_reset=0.0), theirs, True)


def test_bit_planes_are_a_scale_by_step_after_silence(forward: Any) -> None:
    bits = 3
    weight = THETA / (2**bits - 1)
    whole = np.random.default_rng(4).normal(0.5, 0.6, NEURONS)
    x = np.concatenate([whole[None], np.zeros((bits, NEURONS))])
    settings = {"silent": 1, "step_scale": (1.0, *(2.0**i for i in reversed(range(bits))))}
    ours = forward(x, weight, weight / 2, settings)
    assert not ours[0].any()
    same(ours[1:], published.bit_planes(whole, weight, bits), False)


def test_pascal_is_front(forward: Any, x: Any) -> None:
    """Its first four steps: the count is that of all steps, and at most four are sent."""
    theirs = published.pascal(x, THETA, STEPS, 60)
    settings = {"count": (0, None)}
    same(forward(x, THETA, THETA / 2, settings, rho=STEPS, emission="front"), theirs, True)
    first = published.pascal(x, THETA, 4, 60)
    same(
        forward(x, THETA, THETA / 2, {"count": (0, 4)}, rho=STEPS, emission="front")[:4],
        first,
        True,
    )


def test_a_row_can_fail(x: Any) -> None:
    ours = torch.from_numpy(x)
    sent = F.neuron_forward(ours, THETA / 4, THETA / 8, neuron=Neuron(levels=(0, 3))).spikes
    with pytest.raises(AssertionError):
        same(sent.numpy(), published.group(x, THETA, 4), False)
