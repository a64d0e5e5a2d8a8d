"""A small vision transformer and a small MobileNetV3, for 28 x 28 images of one channel.

Plain torch, as one would write them: cos_ext is not imported here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Attention over tokens [B, N, width], written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=2)
        )
        weights = torch.softmax(q @ k.transpose(2, 3) * self.scale, dim=3)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a perceptron with GELU, each after a LayerNorm and beside the identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """49 tokens of 4 x 4 pixels, `blocks` blocks, the mean of the tokens to ten classes."""

    def __init__(self, width: int = 64, blocks: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 49, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class SqueezeExcitation(nn.Module):
    """Every channel times a gate that the means of all channels open."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.relu = nn.Conv2d(width, width // 4, 1), nn.ReLU()
        self.fc2, self.gate = nn.Conv2d(width // 4, width, 1), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.relu(self.fc1(self.pool(x)))))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class InvertedResidual(nn.Module):
    """Widened, convolved channel by channel, gated, narrowed; beside the identity where it fits."""

    def __init__(self, inputs: int, wide: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.beside = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            *(_convolution(inputs, wide, 1), nn.Hardswish()),
            *(_convolution(wide, wide, 3, stride, groups=wide), nn.Hardswish()),
            *(SqueezeExcitation(wide), _convolution(wide, outputs, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.beside else self.layers(x)


class MobileNet(nn.Module):
    """A MobileNetV3 in small: four inverted residuals with squeeze-and-excitation and hardswish."""

    PLAN = ((16, 48, 16, 1), (16, 64, 24, 2), (24, 96, 24, 1), (24, 96, 40, 1))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(1, 16, 3, 2), nn.Hardswish())
        self.blocks = nn.Sequential(*(InvertedResidual(*one) for one in self.PLAN))
        self.last = nn.Sequential(_convolution(40, 128, 1), nn.Hardswish())
        self.classifier = nn.Sequential(nn.Linear(128, 128), nn.Hardswish(), nn.Linear(128, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.last(self.blocks(self.stem(x))).mean((2, 3)))


NETS = {"vit": VisionTransformer, "mobilenet": MobileNet}
