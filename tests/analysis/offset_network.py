"""A small network in which every kind of offset spike occurs, and its report. No tests here."""

from torch import nn

from cos_ext import QCFS
from cos_ext.analysis.offsets import (
    offset_spike_report,
)

STAGES = {"before": 0, "1 iteration": 1, "2 iterations": 2, "3 iterations": 3, "exact": None}


class Small(nn.Module):
    """A static layer, one that feeds a max pooling and another reader, one that works in place, one
    after a Linear.
    """

    def __init__(self, activation=lambda: QCFS(4, 0.5), pooled=True):
        super().__init__()
        self.first, self.act1 = nn.Conv2d(2, 6, 3, padding=1), activation()
        self.second, self.act2 = nn.Conv2d(6, 6, 3, padding=1), activation()
        self.pool, self.other = nn.MaxPool2d(2) if pooled else nn.AvgPool2d(2), nn.AvgPool2d(2)
        self.hidden, self.act3 = nn.Linear(54, 12), activation()
        self.last = nn.Linear(12, 3)

    def forward(self, x):
        x = self.act2(self.second(self.act1(self.first(x))))
        x = self.pool(x) - 0.5 * self.other(x)
        return self.last(self.act3(self.hidden(x.flatten(1))))


SITES = ("act1", "act2", "act3")


def small(**options):
    model = Small(**options).double().eval()
    for layer, gain in ((model.first, 2), (model.second, 8), (model.hidden, 12)):
        layer.weight.data.mul_(gain)  # rates all over 0..1, and inputs that vary much over time
    return model


def report_of(ann, network, batches, **options):
    return offset_spike_report(ann, network, batches, progress=False, **options)
