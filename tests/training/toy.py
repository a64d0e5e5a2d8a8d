"""A toy data set, a toy network and a run of training, for the tests of training. No tests here."""

import torch
from torch import nn

from cos_ext import QCFS
from cos_ext.data import ImageSet
from cos_ext.training.train import (
    TrainConfig,
    fit,
)

CONFIG = TrainConfig(epochs=2, learning_rate=0.05, seed=7)


def make_images():
    """64 noisy 8x8 images of four classes, each bright in its own quarter."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(64) % 4
    pixels = torch.randint(0, 120, (64, 1, 8, 8), generator=generator)
    for image, label in zip(pixels, labels):
        row, column = divmod(int(label), 2)
        image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 100
    return ImageSet(pixels.to(torch.uint8), labels, (0.4,), (0.25,), 4)


def network(seed=0, dropout=0.2, width=8):
    """Convolution, BatchNorm, QCFS, and dropout, so that torch's random state matters."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2),
        nn.BatchNorm2d(width),
        QCFS(4, 2.0),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(9 * width, 4),
    )


def shuffled(images, batch_size=16, own_generator=True):
    generator = torch.Generator().manual_seed(11) if own_generator else None
    return images.batches(batch_size, shuffle=True, augment=True, generator=generator)


def train(model, images, config=CONFIG, batches=None, **options):
    batches = shuffled(images) if batches is None else batches
    return fit(model, batches, images.batches(32), config, progress=False, **options)


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same(model, state):
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def without_time(history):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]
