"""A small network and batches for it, the same at every call, for the tests of evaluate(). No tests
here.
"""

from dataclasses import asdict

import torch
from torch import nn

import cos_ext

SIZES = (7, 7, 7, 7, 3)


def tiny(classes=7, **changes):
    """A small network, the same at every call."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        cos_ext.QCFS(4, 1.0),
        nn.Conv2d(6, 8, 3),
        cos_ext.QCFS(4, 1.0),
        nn.Flatten(),
        nn.Linear(32, classes),
    )
    return cos_ext.convert(model, **{"timesteps": 4, "rho": 4, "iterations": 1, **changes})


def batches(sizes=SIZES, classes=7):
    generator = torch.Generator().manual_seed(2)
    return [
        (
            3 * torch.randn(size, 1, 6, 6, generator=generator),
            torch.randint(0, classes, (size,), generator=generator),
        )
        for size in sizes
    ]


def numbers(result):
    """All of an Evaluation but the speed."""
    return {key: value for key, value in asdict(result).items() if key != "images_per_second"}
