"""Whose memory an output is: what may be written over, and what may not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as TF
from wrapped import IMAGES, Wrapped, lossless

from cos_ext import QCFS, ConversionError, convert

FRESH = {
    "GroupNorm": (lambda m, x: m.norm(m.conv(x)), {"norm": nn.GroupNorm(2, 4)}),
    "InstanceNorm": (lambda m, x: m.norm(m.conv(x)), {"norm": nn.InstanceNorm2d(4)}),
    "LayerNorm": (lambda m, x: m.norm(m.conv(x)), {"norm": nn.LayerNorm([4, 6, 6])}),
    "max pooling": (lambda m, x: m.pool(m.conv(x)), {"pool": nn.MaxPool2d(3, 1, 1)}),
    "F.max_pool2d": (lambda m, x: TF.max_pool2d(m.conv(x), 3, 1, 1), {}),
    "average pooling": (lambda m, x: m.pool(m.conv(x)), {"pool": nn.AvgPool2d(3, 1, 1)}),
    "cat": (lambda m, x: torch.cat([m.conv(x)[:, :2], m.conv(x)[:, 2:]], 1), {}),
    "slice": (lambda m, x: m.conv(torch.cat([x, x], 2))[:, :, :6], {}),
    "sigmoid": (lambda m, x: torch.sigmoid(m.conv(x)), {}),
    "exp": (lambda m, x: m.conv(x).exp(), {}),
    "cast": (lambda m, x: m.conv(x).to(torch.float64), {}),
    "split": (lambda m, x: torch.split(m.conv(torch.cat([x, x], 2)), 6, 2)[0], {}),
    "softmax": (lambda m, x: m.conv(x).softmax(1), {}),
}


@pytest.mark.parametrize("name", FRESH)
@pytest.mark.parametrize("write", ["relu", "add"])
def test_what_is_fresh_may_be_written_over(name, write):
    make, layers = FRESH[name]

    def forward(m, x):
        y = make(m, x)
        if write == "add":
            y += 0.25
            return m.head(m.act(y).flatten(1))
        return m.head(m.act(m.second(m.relu(y))).flatten(1))

    torch.manual_seed(0)
    layers = {**layers, "relu": nn.Identity(), "second": nn.Conv2d(4, 4, 3, padding=1)}
    lossless(Wrapped(forward, **layers), spikes="rectifiers")
    if write == "relu":
        layers["relu"] = nn.ReLU(inplace=True)
        model = Wrapped(forward, **layers).double()
        convert(model, timesteps=4, rho=4, thresholds={"relu": 1.0}, example_input=IMAGES.double())


def test_embeddings_are_fresh():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.relu, self.head = nn.Embedding(7, 5), nn.ReLU(True), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.relu(self.words(x)).mean(1))

    x = torch.randint(0, 7, (2, 4))
    convert(Words(), timesteps=4, thresholds={"relu": 1.0}, example_input=x)
    convert(Words(), timesteps=4, thresholds={"relu": 1.0})


def test_a_skip_that_is_added_to_a_pooling():
    def forward(m, x):
        h = m.act(m.conv(x))
        y = m.pool(m.second(h))
        y += h
        return m.head(m.two(y).flatten(1))

    layers = {
        "second": nn.Conv2d(4, 4, 3, padding=1),
        "pool": nn.MaxPool2d(3, 1, 1),
        "two": QCFS(4, 1.0),
    }
    torch.manual_seed(0)
    lossless(Wrapped(forward, **layers), max_pool="before")


def test_what_others_read_is_still_refused():
    def forward(m, x):
        y = m.conv(x)
        z = y[:, :2]
        z += 1
        return m.head(m.act(y).flatten(1))

    with pytest.raises(ConversionError, match="others may read"):
        convert(Wrapped(forward), timesteps=4, rho=4)
    with pytest.raises(ConversionError, match="others may read"):
        convert(
            Wrapped(lambda m, x: m.head(m.act(torch.relu_(x.expand(-1, 4, -1, -1))).flatten(1))),
            timesteps=4,
            thresholds={"relu": 1.0},
        )
