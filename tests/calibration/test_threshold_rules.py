""" "ddti", "gaussian" and "adafire" of calibrate_thresholds against plain computations on stored
activations, and thresholds for neurons of several levels.
"""

import math

import numpy as np
import pytest
import torch
from bare_thresholds import bare, best_rms, found, rms
from torch import nn

import cos_ext
from cos_ext import Neuron
from cos_ext.calibration import averaged_grid, gaussian
from cos_ext.calibration.thresholds import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")


# ddti
def l1(a, low, out):
    """The error of one step: what fires at low sends out."""
    return np.where(a < low, a, np.abs(out - a)).sum()


def descended(a):
    """Coordinate descent on the sorted activations, every coordinate by trying all of them."""
    a = np.sort(a[a > 0])
    low, out = a[len(a) // 3], None
    while True:
        out_next = min(a, key=lambda value: l1(a, low, value))
        low_next = min(a, key=lambda value: l1(a, value, out_next))
        if (low_next, out_next) == (low, out):
            return low, out
        low, out = low_next, out_next


@pytest.mark.parametrize("seed", range(4))
def test_ddti_is_coordinate_descent_on_the_sorted_activations(seed):
    a = torch.randn(30, 7, generator=torch.Generator().manual_seed(seed)).exp() - 0.7
    low, out = descended(a.double().numpy())
    theta = bare(list(a.split(4)), method="ddti")
    w = a.max() / 2048
    assert abs(theta - out) <= w
    # What fires fires at θ/2, up to the gap between two activations.
    gap = a[(a < low) & (a > 0)].max()
    assert gap - w <= theta / 2 <= low + w


def test_ddti_no_pair_of_thresholds_errs_less():
    a = np.random.default_rng(1).exponential(size=60)
    theta = bare(torch.tensor(a)[:, None], method="ddti").item()
    pairs = [(low, out) for low in a for out in a if low <= out]
    least = min(l1(a, low, out) for low, out in pairs)
    # At a maximal error of one bin for each activation.
    assert l1(a, theta / 2, theta) <= least + 60 * a.max() / 2048
    assert l1(a, theta / 2, theta) < 0.97 * l1(a, theta * 0.4, theta * 0.8)


def test_ddti_of_one_value_is_that_value():
    assert bare(torch.full((5, 3), 0.75), method="ddti") == pytest.approx(0.75, abs=1 / 2048)


# gaussian
NUMBERS = [  # mean, σ, N: the least error and what 100 published steps give
    (0.0, 1.0, 64, 3.61, 3.19),
    (0.0, 1.0, 128, 3.92, 3.21),
    (0.2, 1.0, 16, 3.08, 3.05),
    (-0.8, 0.7, 8, 1.336, 1.336),
    (0.0, 2.0, 64, 7.23, 6.38),
]


def one(value):
    return torch.tensor([value], dtype=torch.float64)


def integrated(theta, mean, sigma, levels):
    """E[(q(x; θ) - relu(x))²] by the trapezium rule."""
    x = np.linspace(mean - 9 * sigma, mean + 9 * sigma, 50_001)
    density = np.exp(-((x - mean) ** 2) / 2 / sigma**2)
    q = theta / levels * np.clip(np.floor(x * levels / theta + 0.5), 0, levels)
    return ((q - np.maximum(x, 0)) ** 2 * density).sum() / density.sum()


def published(theta, mean, sigma, levels):
    """k(θ) as the paper writes it."""
    i = np.arange(1, levels + 1)
    z = ((2 * i - 1) / (2 * levels) * theta - mean) / (math.sqrt(2) * sigma)
    erf = np.array([math.erf(each) for each in z])
    above = mean / theta * (1 - erf.mean())
    above += sigma / (theta * math.sqrt(math.pi / 2)) * np.exp(-z * z).mean()
    return above / (1 - ((2 * i - 1) / levels**2 * erf).sum())


@pytest.mark.parametrize("mean, sigma, levels, least, short", NUMBERS)
def test_gaussian_is_solved_and_100_steps_stop_short(mean, sigma, levels, least, short):
    theta = gaussian.solved(one(mean), one(sigma), levels).item()
    assert theta == pytest.approx(least, abs=0.005)
    assert published(theta, mean, sigma, levels) == pytest.approx(1, abs=1e-9)
    error = integrated(theta, mean, sigma, levels)
    grid = np.linspace(0.5, 1.5, 51) * theta
    assert error <= min(integrated(each, mean, sigma, levels) for each in grid) * (1 + 1e-6)

    steps = gaussian.iterated(one(mean), one(sigma), levels, 100).item()
    expected = 1.0
    for _ in range(100):
        expected *= published(expected, mean, sigma, levels)
    assert steps == pytest.approx(expected, rel=1e-9) == pytest.approx(short, abs=0.005)
    assert integrated(steps, mean, sigma, levels) >= error * (1 - 1e-6)


def test_gaussian_short_by_how_much_the_error_is_more():
    for levels, least, more in ((64, 1.5e-4, 2.0e-4), (128, 0.44e-4, 1.16e-4)):
        solved = gaussian.solved(one(0.0), one(1.0), levels).item()
        steps = gaussian.iterated(one(0.0), one(1.0), levels, 100).item()
        assert integrated(solved, 0, 1, levels) == pytest.approx(least, rel=0.02)
        assert integrated(steps, 0, 1, levels) == pytest.approx(more, rel=0.02)


@pytest.mark.parametrize("levels", [1, 2, 3, 7])
@pytest.mark.parametrize("mean", [-6.0, -1.5, 0.0, 2.0, 9.0])
def test_gaussian_few_levels_and_means_far_from_zero(mean, levels):
    theta = gaussian.solved(one(mean), one(1.0), levels).item()
    grid = np.linspace(0.02, 2, 100) * theta
    x = np.linspace(max(mean - 9, -1), max(mean, 0) + 9, 20_001)
    density = np.exp(-((x - mean) ** 2) / 2)

    def error(theta):
        q = theta / levels * np.clip(np.floor(x * levels / theta + 0.5), 0, levels)
        return ((q - np.maximum(x, 0)) ** 2 * density).sum() / density.sum()

    assert error(theta) <= min(map(error, grid)) * (1 + 1e-3)


@pytest.mark.parametrize("per_channel", [False, True])
def test_gaussian_reads_mean_and_variance(per_channel, monkeypatch):
    x = torch.randn(60, 3, 5, 4, dtype=torch.float64) * torch.tensor([1.0, 3.0, 0.2])[:, None, None]
    x = x + torch.tensor([1e4, 0.0, -0.1])[:, None, None]
    arguments = {"method": "gaussian", "timesteps": 3, "per_channel": per_channel}
    theta = bare(list(x.split([1, 0, 20, 39])), **arguments)
    for each, of in zip(theta.flatten(), x.unbind(1) if per_channel else [x]):
        values = of.numpy()
        expected = gaussian.solved(one(values.mean()), one(values.std()), 3).item()
        assert each.item() == pytest.approx(expected, rel=1e-9)
    for batches in (list(x.split(1)), [x.flip(0)]):
        torch.testing.assert_close(bare(batches, **arguments), theta, rtol=1e-11, atol=0)
    monkeypatch.setattr(gaussian, "_CHUNK", 100)
    torch.testing.assert_close(bare(x, **arguments), theta, rtol=1e-11, atol=0)


def test_gaussian_is_good_where_data_are_normal():
    x = torch.randn(50, 200) - 0.5
    for levels in (1, 4, 16):
        theta = bare(x, method="gaussian", timesteps=levels)
        assert rms(x, theta, levels) <= 1.03 * best_rms(x, levels, 200)


def test_gaussian_of_a_constant_and_without_a_solution():
    assert bare(torch.full((5, 3), 2.5), method="gaussian") == 2.5
    # One value in a million: no normal distribution of this mean and variance gets there.
    x = torch.full((2000, 1000), -1.0)
    x[7, 7] = 0.01
    assert bare(x, method="gaussian") == pytest.approx(0.01)
    assert bare(x + 1, method="gaussian", iterations=100) > 0


# adafire
def best_of_grid(a, levels, timesteps):
    """Of 95 values the θ of least squared error, in float32 as published."""
    candidates = [a.max().double() * ((100 - index) / 100) for index in range(95)]

    def error(theta):
        own = theta.to(a.dtype)
        q = own / timesteps * ((a / own).clamp(0, levels) * timesteps).floor()
        return (q - a).square().double().sum()

    return min(candidates, key=error)


@pytest.mark.parametrize("levels, timesteps", [(1, 8), (4, 1), (4, 4), (3, 2)])
def test_adafire_is_the_best_of_a_grid_averaged_over_batches(levels, timesteps, monkeypatch):
    x = torch.randn(40, 3, 6) * torch.tensor([1.0, 4.0, 0.1])[:, None]
    neuron = None if levels == 1 else Neuron(levels=(0, levels))
    arguments = {"method": "adafire", "timesteps": timesteps, "neuron": neuron}
    batches = list(x.split([10, 0, 13, 17]))
    theta = bare(batches, per_channel=True, **arguments)
    assert theta.shape == (3, 1)
    for channel in range(3):
        expected = None
        for batch in (batches[0], *batches[2:]):
            new = best_of_grid(batch[:, channel].clamp(min=0), levels, timesteps)
            expected = new if expected is None else 0.9 * expected + 0.1 * new
        assert theta[channel].item() == pytest.approx(expected.item(), rel=1e-6)
    whole = best_of_grid(x.clamp(min=0), levels, timesteps)
    assert bare(x, **arguments).item() == pytest.approx(whole.item(), rel=1e-6)
    monkeypatch.setattr(averaged_grid, "_CHUNK", 20)
    assert torch.equal(bare(batches, per_channel=True, **arguments), theta)


def test_adafire_a_channel_that_is_silent_in_a_batch_keeps_its_average():
    first = torch.tensor([[1.0, 2.0]])
    silent = torch.tensor([[-1.0, 2.0]])
    theta = bare([first, silent, silent], method="adafire", timesteps=2, per_channel=True)
    assert theta.tolist() == [1.0, 2.0]
    theta = bare([silent, first], method="adafire", timesteps=2, per_channel=True)
    assert theta.tolist() == [1.0, 2.0]


# QCFS
def test_qcfs_gets_thresholds_where_they_are_asked_for():
    x = torch.randn(50, 3)
    qcfs = cos_ext.QCFS(4, 1.5)
    plain = nn.Sequential(nn.Linear(3, 3), nn.Hardtanh(0, 1.5))
    mixed = nn.Sequential(plain[0], qcfs)
    for method in METHODS:  # it saturates where it learned to
        expected = found(plain, [x], method=method, per_channel=True)
        assert torch.equal(
            found(mixed, [x], method=method, per_channel=True, qcfs=True)["1"], expected["1"]
        )
    thresholds = found(mixed, [x], method="mse", qcfs=True)
    network = cos_ext.convert(mixed, timesteps=4, thresholds=thresholds)
    assert torch.equal(network.nodes()["1"].v_threshold, thresholds["1"])
    with pytest.raises(TypeError, match="qcfs must be a bool, got int"):
        found(mixed, [x], qcfs=1)
    qcfs.threshold = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="several thresholds, as '1' has"):
        found(mixed, [x], qcfs=True)


# Neurons
@pytest.mark.parametrize("method", ["mse", "gaussian"])
def test_several_levels_share_the_range_of_their_steps(method):
    x = torch.randn(40, 50)
    four = bare(x, method=method, timesteps=2, neuron=Neuron(levels=(0, 4)))
    assert four == bare(x, method=method, timesteps=8) / 4
    signed = Neuron(levels=(-1, 1), lower=0.0, count=(0, 5))  # 5 levels in 8 steps
    bounded = bare(x, method=method, timesteps=8, neuron=signed)
    assert bounded == pytest.approx(bare(x, method=method, timesteps=5).item() * 8 / 5)
    ladder = bare(x, method=method, timesteps=2, neuron=Neuron(ladder=3))
    assert ladder == bare(x, method=method, timesteps=16)


def test_what_plays_no_part_by_levels_is_divided():
    x = torch.randn(40, 50)
    for method in ("max", "percentile", "balance"):
        whole = bare([x] * 3, method=method)
        assert bare([x] * 3, method=method, neuron=Neuron(levels=(0, 4))) == whole / 4
        assert bare([x] * 3, method=method, neuron=Neuron(ladder=4)) == whole


def test_neurons_of_several_levels_reach_what_their_thresholds_are_for():
    x = torch.rand(2000) * 3
    neuron = Neuron(levels=(0, 4))
    theta = bare(x[:, None], method="mse", timesteps=2, neuron=neuron)
    sent = cos_ext.functional.neuron_forward(x.expand(2, -1).contiguous(), theta, neuron=neuron)
    assert (sent.spikes.mean(0) - x).square().mean().sqrt() <= 1.001 * best_rms(x, 8)


@pytest.mark.parametrize(
    "error, match, change",
    [
        (TypeError, "neuron must be a cos_ext.Neuron or None, got int", {"neuron": 4}),
        (
            ValueError,
            "levels, not a ladder, for method 'ddti'",
            {"neuron": Neuron(ladder=2), "method": "ddti"},
        ),
        (
            ValueError,
            "levels, not a ladder, for method 'adafire'",
            {"neuron": Neuron(ladder=2), "method": "adafire"},
        ),
        (
            ValueError,
            'one level for method "ddti", got 4',
            {"neuron": Neuron(levels=(0, 4)), "method": "ddti"},
        ),
        (ValueError, "a count above 0", {"neuron": Neuron(count=(None, 0))}),
        (TypeError, "iterations must be an int or None", {"iterations": 1.5}),
        (ValueError, "iterations must be >= 1", {"iterations": 0, "method": "gaussian"}),
        (ValueError, "iterations are of method", {"iterations": 100, "method": "mse"}),
    ],
)
def test_bad_arguments(error, match, change):
    with pytest.raises(error, match=match):
        found(nn.Sequential(nn.ReLU()), [torch.ones(2, 3)], **change)
