"""calibrate_thresholds without its progress bar, and the error that its "mse" minimises. No tests
here.
"""

import torch
from torch import nn

from cos_ext.calibration.thresholds import (
    calibrate_thresholds,
)


def found(model, batches, **arguments):
    return calibrate_thresholds(model, batches, progress=False, **arguments)


def bare(x, activation=None, **arguments):
    """The threshold of a network that is one activation, on x in one batch or in several."""
    (threshold,) = found(
        activation or nn.ReLU(), x if isinstance(x, list) else [x], **arguments
    ).values()
    return threshold


def rms(x, theta, levels):
    """The root mean square error of the quantisation with the thresholds theta, as the docstring
    defines it.
    """
    a, theta = x.double().clamp(min=0).flatten(), theta.double().reshape(-1, 1)
    quantised = theta * ((a * levels / theta + 0.5).floor() / levels).clamp(0, 1)
    return (quantised - a).square().mean(1).sqrt()


def best_rms(x, levels, candidates=2500):
    top = x.max().double()
    return min(
        rms(x, part, levels).min()
        for part in (top * torch.arange(1, candidates + 1) / candidates).split(200)
    )
