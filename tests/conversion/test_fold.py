"""BatchNorm folded into the layer before it, and why it is kept where it cannot be."""

from __future__ import annotations

import pytest
import torch
from quantised import LEVELS, Quantised
from torch import nn

from cos_ext import convert

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "layer, norm, shape",
    [
        (nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4), (3, 9)),
        (nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6), (3, 8, 8)),
        (nn.Conv3d(3, 4, 2, bias=False), nn.BatchNorm3d(4, affine=False), (3, 4, 4, 4)),
        (nn.ConvTranspose2d(3, 4, 3, 2), nn.BatchNorm2d(4), (3, 5, 5)),
        (nn.Linear(12, 4), nn.BatchNorm1d(4), (12,)),
        (
            nn.Conv2d(3, 4, 3, padding=2, padding_mode="circular", dilation=2),
            nn.BatchNorm2d(4, eps=1e-3),
            (3, 8, 8),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_batchnorm_is_folded(layer, norm, shape):
    torch.manual_seed(2)
    model = nn.Sequential(layer, norm, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).double()
    x = torch.randn(5, *shape).double()
    model(x)  # in training mode: statistics of their own
    model.eval()
    network = convert(
        model, timesteps=LEVELS, rho=LEVELS, iterations=None, thresholds={"2": 0.7}, example_input=x
    )
    assert {e.site: (e.status, e.reason) for e in network.report.entries}["1"] == (
        "folded",
        "into 0",
    )
    assert not any(
        isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) for m in network.modules()
    )
    with torch.no_grad(), Quantised([0.7]):
        expected = model(x)
    torch.testing.assert_close(network.rate(x), expected, rtol=1e-7, atol=1e-7)


def test_batchnorm_that_cannot_be_folded_says_why():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.shared, self.wide = (
                nn.Conv2d(3, 4, 3),
                nn.Conv2d(4, 4, 1),
                nn.ConvTranspose2d(4, 4, 1, groups=2),
            )
            self.a, self.b, self.c, self.d, self.e = (nn.BatchNorm2d(4) for _ in range(5))
            self.relu, self.head = nn.ReLU(), nn.Linear(4, 2)

        def forward(self, x):
            y = self.conv(x)
            y = self.relu(self.a(y) + y)
            y = self.relu(self.b(self.shared(y)) + self.c(self.shared(y)))
            return self.head(self.e(self.relu(self.d(self.wide(y)))).mean((2, 3)))

    model, x = Net().eval(), torch.randn(2, 3, 6, 6)
    sites = {"relu": 1.0, "relu_1": 1.0, "relu_2": 1.0}
    network = convert(model, timesteps=4, thresholds=sites, example_input=x)
    reasons = {e.site: e.reason for e in network.report.entries}
    statuses = {e.site: e.status for e in network.report.entries if e.site in "abcde"}
    assert statuses == {**dict.fromkeys("abce", "kept"), "d": "fused"}
    assert (
        "others read conv too" in reasons["a"]
        and "shared is called at 2 places" in reasons["b"] == reasons["c"]
    )
    assert "grouped transposed" in reasons["d"] and "does not follow" in reasons["e"]
