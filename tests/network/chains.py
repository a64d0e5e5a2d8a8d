"""Small networks whose memory can be worked out by hand, and images for them. No tests here."""

import torch
from torch import nn

import cos_ext


def images(count, *shape):
    return torch.rand(count, *(shape or (1, 28, 28)))


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.act1 = nn.Conv2d(1, 3, 3, padding=1), cos_ext.QCFS(4, 1.0)
        self.two, self.act2 = nn.Conv2d(3, 5, 3, padding=1), cos_ext.QCFS(4, 1.0)
        self.out = nn.Linear(5 * 64, 7)

    def forward(self, x):
        return self.out(self.act2(self.two(self.act1(self.one(x)))).flatten(1))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 9), nn.Linear(3, 9)
        self.act1, self.act2, self.out = cos_ext.QCFS(4, 1.0), cos_ext.QCFS(4, 1.0), nn.Linear(9, 4)

    def forward(self, x, y):
        return self.out(self.act2(self.act1(self.a(x)) + self.b(y)))
