"""Small networks of the families between whose neurons not all is affine: gates, other activations,
norms, attention, windows, several outputs. Models only, no tests.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as TF
from zoo_families import conv_bn

WIDTH, HEADS = 8, 2


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, gate: nn.Module) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)
        self.relu, self.gate = nn.ReLU(inplace=True), gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.relu(self.down(x.mean((2, 3), keepdim=True)))))


class GatedBlock(nn.Module):
    """An inverted residual block of MobileNetV3 and EfficientNet."""

    def __init__(self, activation: Callable[[], nn.Module], gate: nn.Module) -> None:
        super().__init__()
        self.expand, self.act1 = conv_bn(WIDTH, 16, 1), activation()
        self.depth, self.act2 = conv_bn(16, 16, 3, groups=16), activation()
        self.gate, self.project = SqueezeExcite(16, gate), conv_bn(16, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act2(self.depth(self.act1(self.expand(x))))
        return x + self.project(self.gate(y))


def gated(activation: Callable[[], nn.Module], gate: Callable[[], nn.Module]) -> nn.Module:
    blocks = (GatedBlock(activation, gate()) for _ in range(2))
    return nn.Sequential(
        *(conv_bn(3, WIDTH, 3, 2), activation(), *blocks),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 5)),
    )


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, LayerNorm over the channels, GELU, a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.norm = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), nn.LayerNorm(8)
        self.up, self.act, self.down = nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH)
        self.scale = nn.Parameter(torch.full((WIDTH, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        return x + self.scale * self.down(self.act(self.up(y))).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    blocks = (ConvNeXtBlock() for _ in range(3))
    return nn.Sequential(
        *(nn.Conv2d(3, WIDTH, 2, 2), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)),
    )


class MixerBlock(nn.Module):
    """MLP-Mixer: one perceptron over the tokens, one over the channels."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.tokens = nn.Sequential(nn.Linear(tokens, 12), nn.GELU(), nn.Linear(12, tokens))
        self.channels = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Attention(nn.Module):
    """timm's: one layer for queries, keys and values, which are taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, HEADS, width // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        shares = (q @ k.transpose(-2, -1) * (width // HEADS) ** -0.5).softmax(dim=-1)
        return self.out((shares @ v).transpose(1, 2).reshape(batch, tokens, width))


class TransformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(8)
        self.up, self.act, self.down = nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(self.act(self.up(self.norm2(x))))


class Tokens(nn.Module):
    """Patches of an image, a class token, positions, blocks, and a head on the class token."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.first = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, 5, WIDTH))
        self.blocks, self.norm = nn.Sequential(*blocks), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit(depth: int) -> nn.Module:
    return Tokens(*(TransformerBlock() for _ in range(depth)))


class Windows(nn.Module):
    """Swin: attention within windows, which are samples of their own meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.block = nn.Conv2d(3, WIDTH, 2, 2), TransformerBlock()
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.roll(self.patches(x).permute(0, 2, 3, 1), (-1, -1), (1, 2))
        batch, height, width, channels = x.shape
        x = x.view(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
        x = self.block(x.reshape(-1, 4, channels))
        x = x.view(-1, 16, channels)
        return self.head(x.mean(1))


class Words(nn.Module):
    """A BERT-like encoder of torch's own layers, with an embedding and a dict for an output."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, WIDTH), nn.Embedding(6, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.pool, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.words(x) + self.places(torch.arange(6))
        h = self.layers(h)
        return {"logits": self.head(torch.tanh(self.pool(h[:, 0]))), "last": h}


class Inception(nn.Module):
    """Branches with max pooling of sums, PReLU, and a second output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = conv_bn(3, WIDTH), nn.PReLU(WIDTH)
        self.one, self.three = conv_bn(WIDTH, 4, 1), conv_bn(WIDTH, 4)
        self.aux, self.head = nn.Linear(WIDTH, 5), nn.Linear(2 * WIDTH, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.act(self.stem(x))
        pooled = TF.max_pool2d(x + TF.relu(x - 0.2), 3, 1, 1)
        y = TF.leaky_relu(torch.cat([self.one(x), self.three(x), pooled], 1), 0.1)
        return self.head(y.amax((2, 3))), self.aux(x.mean((2, 3)))


class Lines(nn.Module):
    """CRNN: convolutions, then a recurrent layer over the columns of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, WIDTH, 3, 2), nn.ReLU())
        self.second, self.relu = conv_bn(WIDTH, WIDTH, 3), nn.ReLU()
        self.over = nn.GRU(WIDTH * 4, 5, num_layers=2, batch_first=True, bidirectional=True)
        self.between, self.act, self.head = nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.relu(self.second(self.stem(x))).permute(0, 3, 1, 2).flatten(2)
        return self.head(self.act(self.between(self.over(columns)[0]))[:, -1])


IMAGE = (3, 8, 8)
# By name: the model, the shape of a sample, and where neurons stand. Words are integers below 20.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "mobilenet v3": (lambda: gated(nn.Hardswish, nn.Hardsigmoid), IMAGE, "activations"),
    "mobilenet v3, inputs": (lambda: gated(nn.Hardswish, nn.Hardsigmoid), IMAGE, "inputs"),
    "efficientnet": (lambda: gated(nn.SiLU, nn.Sigmoid), IMAGE, "activations"),
    "se-resnet": (lambda: gated(nn.ReLU, nn.Sigmoid), IMAGE, "rectifiers"),
    "convnext": (convnext, IMAGE, "activations"),
    "convnext, inputs": (convnext, IMAGE, "inputs"),
    "mixer": (lambda: Tokens(MixerBlock(5), MixerBlock(5)), IMAGE, "inputs"),
    "vit": (lambda: vit(2), IMAGE, "inputs"),
    "vit, activations": (lambda: vit(3), IMAGE, "activations"),
    "swin": (Windows, IMAGE, "inputs"),
    "bert": (Words, (6,), "inputs"),
    "inception": (Inception, IMAGE, "activations"),
    "crnn": (Lines, IMAGE, "activations"),
}
