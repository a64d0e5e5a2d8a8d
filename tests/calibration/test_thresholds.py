"""Every method of calibrate_thresholds against a direct computation on stored activations.

Through models, arguments, and files: test_threshold_models.py.
"""

import numpy as np
import pytest
import torch
from bare_thresholds import bare, best_rms, found, rms
from torch import nn

import cos_ext
from cos_ext.calibration import histograms
from cos_ext.calibration.thresholds import (
    METHODS,
)

pytestmark = pytest.mark.usefixtures("one_thread")

STATIC = ("max", "percentile", "mse", "ddti")  # methods that do not depend on the order of the data


@pytest.mark.parametrize("scale", [1e-20, 1.0, 3e15])
def test_percentile(scale):
    x = torch.randn(40, 50) * scale
    x *= torch.logspace(-4, 2, 40)[:, None]  # every batch exceeds the range of those before
    for percentile in (60, 90, 99.0, 99.9, 100):
        threshold = bare(list(x.split(3)), method="percentile", percentile=percentile)
        assert threshold.dtype == torch.float32
        assert (
            abs(threshold - np.percentile(x.clamp(min=0).double().numpy(), percentile))
            <= x.max() / 2048
        )
    assert bare(x, method="percentile", percentile=100) == x.max() == bare(x)


def test_percentile_between_values_far_apart():
    x = torch.tensor([[0.0, 1.0, 100.0, 101.0]])
    assert bare(x, method="percentile", percentile=50) == pytest.approx(50.5, abs=101 / 2048)
    assert bare(x, method="percentile", percentile=75) == pytest.approx(100.25, abs=101 / 2048)


@pytest.mark.parametrize("levels", [1, 2, 8, 32])
@pytest.mark.parametrize("kind", ["normal", "heavy tail", "always on"])
def test_mse_is_the_best_threshold(levels, kind):
    x = torch.randn(20, 300)
    x = {"normal": x, "heavy tail": x.pow(3), "always on": x.abs() + 3}[kind]
    error, best = (
        rms(x, bare(list(x.split(7)), method="mse", timesteps=levels), levels),
        best_rms(x, levels),
    )
    assert error <= best + x.max() / 2048 + x.max() / 1024  # the bound in the docstring
    assert error <= 1.01 * best


def test_mse_on_a_quantised_activation_finds_its_levels():
    x = torch.randint(0, 5, (10, 100)).float() * 0.75
    assert bare(x, method="mse", timesteps=4) == 3.0


def test_histogram_counts_are_those_of_binning_everything_at_the_end():
    x = (
        torch.randn(64, 4, 9)
        * torch.logspace(-12, 3, 64)[:, None, None]
        * torch.tensor([1.0, 1e-3, 0.0, 1e4])[:, None]
    )
    seen = histograms.Histogram("", x[:0], None, True)
    for part in x[torch.randperm(64)].split([1, 2, 13, 20, 28]):
        seen.see(part, inplace=False)
    assert torch.equal(
        histograms.merged(seen.counts, torch.zeros(4, dtype=torch.int64)), seen.counts
    )
    for channel, (counts, exponent) in enumerate(zip(seen.counts, seen.exponent)):
        a = x[:, channel].double().clamp(min=0).flatten()
        if channel == 2:
            assert counts[0] == counts.sum() == a.numel()
            continue
        width = 2.0 ** int(exponent) / histograms.BINS
        assert a.max() < width * histograms.BINS <= 2 * a.max()
        assert torch.equal(
            counts, torch.bincount((a / width).ceil().long(), minlength=histograms.BINS + 1)
        )


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("method", STATIC)
def test_splits_and_order_do_not_matter(method, per_channel):
    x = torch.randn(60, 4, 5, 5) * torch.logspace(-2, 2, 60)[:, None, None, None]
    arguments = {"method": method, "per_channel": per_channel}
    whole = bare(x, **arguments)
    for batches in (
        list(x.split(1)),
        list(x.split([7, 0, 50, 3])),
        list(x.flip(0).split(9)),
        [x.flip(0)],
    ):
        assert torch.equal(bare(batches, **arguments), whole)


def test_large_batches_are_binned_in_parts(monkeypatch):
    x = torch.randn(30, 4, 5, 5)
    for per_channel in (False, True):
        whole = bare(x, method="mse", per_channel=per_channel)
        monkeypatch.setattr(histograms, "_CHUNK", 250)
        assert torch.equal(bare(x, method="mse", per_channel=per_channel), whole)
        monkeypatch.undo()


@pytest.mark.parametrize("per_channel", [False, True])
def test_balance_is_the_papers_rule(per_channel):
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 3, 3),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(27, 6),
        nn.ReLU(),
    ).double()
    with torch.no_grad():
        model[2].weight *= 20
        model[5].weight *= 3
    batches = torch.randn(60, 2, 7, 7, dtype=torch.float64).split(4)
    conv1, _, conv2, _, _, linear, _ = model
    thetas, largest = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]

    def step(index, z, clip=float("inf")):
        """Equations 14 and 17 with η = 1/N, and no further than the largest activation; then
        equation 13.
        """
        dims = [dim for dim in range(z.dim()) if dim != 1] if per_channel else list(range(z.dim()))
        a = z.clamp(0, clip)
        theta = thetas[index]
        theta = theta + 2 * ((a - theta) * (a > theta)).mean(dims, keepdim=True)
        largest[index] = torch.maximum(torch.as_tensor(largest[index]), a.amax(dims, keepdim=True))
        thetas[index] = torch.minimum(theta, largest[index])
        return torch.minimum(a, thetas[index])

    with torch.no_grad():
        for x in batches:
            step(2, linear(step(1, conv2(step(0, conv1(x))), 6.0).flatten(1)))
    balanced = found(model, batches, method="balance", per_channel=per_channel)
    assert list(balanced) == ["1", "3", "6"]
    for theta, expected in zip(balanced.values(), thetas):
        torch.testing.assert_close(theta, expected[0] if per_channel else expected.squeeze())
    assert balanced["3"].max() < 6 < largest[1].max() + 1e-9
    for theta, top in zip(balanced.values(), largest):
        assert (theta.flatten() <= top.flatten()).all()


def test_balance_approaches_the_largest_activation_and_never_passes_it():
    assert bare([torch.full((3, 2), 5.0)] * 2, method="balance") == 5
    x = torch.rand(50, 40)
    few, many = (bare([x] * n, method="balance") for n in (3, 300))
    assert 0.5 < few < many < x.max() and many > 0.98 * x.max()


@pytest.mark.parametrize("method", METHODS)
def test_per_channel_is_each_channel_alone(method):
    x = torch.randn(30, 3, 4, 4) * torch.tensor([1.0, 10.0, 0.01])[:, None, None] + 0.1
    for clip in (None, 6.0):
        activation = nn.ReLU6() if clip else nn.ReLU()
        thresholds = bare(
            list(x.split(8)), activation, method=method, percentile=98, per_channel=True
        )
        alone = [
            bare(list(x[:, channel].split(8)), activation, method=method, percentile=98)
            for channel in range(3)
        ]
        assert thresholds.shape == (3, 1, 1)
        torch.testing.assert_close(thresholds.flatten(), torch.stack(alone), rtol=1e-6, atol=0)
        assert clip is None or thresholds.max() <= clip


@pytest.mark.parametrize("method", METHODS)
def test_channels_that_never_fire(method):
    x = torch.rand(50, 3, 20) * torch.tensor([1.0, -1.0, 4.0])[:, None]
    thresholds = bare(list(x.split(10)), method=method, per_channel=True)
    by_layer = (*STATIC, "gaussian")
    layer = bare(list(x.split(10)), method=method) if method in by_layer else thresholds.max()
    assert thresholds.shape == (3, 1) and thresholds[1] == layer > 0


def test_channels_whose_percentile_is_zero_get_their_maximum():
    x = torch.rand(100, 3)
    x[:, 1], x[:, 2] = -1.0, -1.0
    x[7, 1], x[8, 1] = 0.5, 0.25
    thresholds = bare(x, method="percentile", percentile=90, per_channel=True)
    assert thresholds[1] == 0.5 and thresholds[2] == bare(x, method="percentile", percentile=90)
    x[:, 0] = -1.0
    assert bare(x, method="percentile", percentile=90, per_channel=True).tolist() == [0.5] * 3


@pytest.mark.parametrize("neurons", [(3, 4, 5), (3, 4), (3,), (3, 2, 4, 5)])
@pytest.mark.parametrize("method", METHODS)
def test_per_channel_thresholds_fit_neurons(method, neurons):
    x = torch.rand(6, *neurons) + torch.arange(3.0).reshape(3, *[1] * (len(neurons) - 1))
    threshold = bare(x, method=method, per_channel=True)
    assert threshold.shape == (3, *[1] * (len(neurons) - 1))
    node = cos_ext.IFNode(threshold, timesteps=4)
    assert node(x.repeat(4, *[1] * len(neurons))).shape == (24, *neurons)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.Hardtanh(0, 2.5), nn.Hardtanh(0, 100.0)])
def test_a_clip_is_never_exceeded(activation, method):
    x = torch.randn(50, 20) * 5
    clip = activation.max_val
    threshold = bare([x] * 200, activation, method=method, percentile=100)
    assert 0 < threshold <= clip
    if method in ("max", "percentile"):
        assert threshold == min(clip, x.max())
    if method == "balance":
        assert threshold >= 0.8 * min(clip, x.max())
    if method == "mse":
        a = x.clamp(0, clip)
        assert rms(a, threshold, 8) <= 1.01 * best_rms(a, 8)
