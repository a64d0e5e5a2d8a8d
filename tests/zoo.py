"""Networks as people write them, small: what convert() must take, and what it must refuse. Models
only, no tests.

Each entry is (model, inputs): the architecture's habits are the point (shared ReLU objects,
functional calls, concatenation, sizes in forward), not its width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as TF
from untraced import untraced
from zoo_families import BasicBlock, Bottleneck, DenseNet, MobileNetV2, ResNet, UNet, conv_bn, vgg


class Functional(nn.Module):
    """Parameters of its own, functions only."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = (
            nn.Parameter(torch.randn(8, 3, 3, 3) / 4),
            nn.Parameter(torch.randn(8, 8, 3, 3) / 6),
        )
        self.w3, self.b3, self.scale = (
            nn.Parameter(torch.randn(5, 8)),
            nn.Parameter(torch.zeros(5)),
            nn.Parameter(torch.rand(8, 1, 1)),
        )
        self.register_buffer("mean", torch.rand(8) / 4)
        self.register_buffer("var", torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = TF.relu(TF.conv2d(x, self.w1, padding=1))
        x = TF.avg_pool2d(x, 2)
        x = TF.batch_norm(
            TF.conv2d(TF.pad(x, (1, 1, 1, 1)), self.w2), self.mean, self.var, training=self.training
        )
        x = torch.relu(x * self.scale).sub(0.05)
        x = TF.dropout(x, 0.5, self.training).mean([2, 3])
        return TF.linear(x, self.w3, self.b3)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector = nn.Sequential(*conv_bn(3, 8), nn.ReLU()), nn.Linear(6, 8)
        self.mix, self.head = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        a = self.image(image).mean((2, 3))
        b = self.vector(vector)  # static: never meets neurons before the concatenation
        return self.head(self.mix(torch.cat((a, b), 1)).relu_())


class BySize(nn.Module):
    """Sizes in forward: `x.size(0)` of the input and of a feature map, unpacked shapes, channel
    shuffle, split.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side, self.relu = (
            nn.Sequential(*conv_bn(3, 8), nn.ReLU()),
            nn.Sequential(*conv_bn(4, 4)),
            nn.ReLU(),
        )
        self.fc = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.size(0)
        y = self.stem(x)
        left, right = y.chunk(2, dim=1)
        y = torch.cat([left, self.relu(self.side(right))], dim=1)
        b, c, h, w = y.shape
        y = y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        y = TF.avg_pool2d(y, 2)
        return self.fc(y.view(batch, -1))


class Reused(nn.Module):
    """One block called three times: shared weights, and as many neurons as calls."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Sequential(*conv_bn(8, 8), nn.ReLU()),
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = self.block(x)
        return self.head(x.mean((-2, -1)))


class Tokens(nn.Module):
    """Linear on more than two dimensions, hard clips, and BatchNorm1d whose channels are not the
    Linear's outputs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.mlp = nn.Linear(12, 8), nn.BatchNorm1d(16), nn.Linear(8, 8)
        self.clip, self.head = nn.Hardtanh(0, 2.0), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2).reshape(x.shape[0], 16, -1)
        x = self.clip(self.norm(self.embed(x)))
        x = torch.clamp(self.mlp(x), 0, 1.5)
        return self.head(x[:, 0] + x.sum(1))


class Untraceable(nn.Module):
    """Control flow on the batch that torch.fx cannot follow; activations are modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu1 = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
        )
        self.blocks = nn.ModuleList(nn.Sequential(*conv_bn(8, 8), nn.ReLU()) for _ in range(2))
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        untraced(x)
        x = self.relu1(self.norm(self.conv(x)))
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.pool(x).flatten(1))


IMAGE, VECTOR = (3, 8, 8), (6,)
CONVERTS: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]]]] = {
    "resnet, basic blocks": (lambda: ResNet(BasicBlock), [IMAGE]),
    "resnet, bottlenecks": (lambda: ResNet(Bottleneck), [IMAGE]),
    "resnet, max pooling": (lambda: ResNet(BasicBlock, max_pool=True), [IMAGE]),
    "vgg": (vgg, [IMAGE]),
    "mobilenet v2": (MobileNetV2, [IMAGE]),
    "densenet": (DenseNet, [IMAGE]),
    "u-net": (lambda: UNet(nn.MaxPool2d(2)), [IMAGE]),
    "u-net, average pooling": (lambda: UNet(nn.AvgPool2d(2)), [IMAGE]),
    "functional": (Functional, [IMAGE]),
    "two inputs": (TwoInputs, [IMAGE, VECTOR]),
    "sizes in forward": (BySize, [IMAGE]),
    "reused blocks": (Reused, [IMAGE]),
    "tokens": (Tokens, [(3, 8, 8)]),
    "untraceable": (Untraceable, [IMAGE]),
}


class After(nn.Module):
    """conv, ReLU, and then what is given: a module, or a function of (model, x)."""

    def __init__(self, what: nn.Module | Callable) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()
        self.what = what
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.what(self.relu(self.conv(x)))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        return (torch.softmax(tokens @ tokens.transpose(1, 2), -1) @ tokens).unflatten(
            2, x.shape[2:]
        )


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).unsqueeze(-1)


class HardCodedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.head = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Linear(8 * 64, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.conv(x)).view(2, -1))


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.conv(x))
        if y.mean() > 0:
            y = 2 * y
        return self.head(y.mean((2, 3)))


class HiddenFunction(nn.Module):
    """Untraceable, and forward squares the spikes: only the check on an example can see it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        untraced(x)
        y = self.relu(self.conv(x))
        return self.head((y * y).mean((2, 3)))


# By name: the model, and what the error must say.
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "gelu": (lambda: After(nn.GELU()), r"what \(GELU\).*rectifier"),
    "silu": (lambda: After(nn.SiLU()), r"what \(SiLU\).*rectifier"),
    "attention": (lambda: After(Attention()), "softmax.*not linear"),
    "lstm": (lambda: After(Recurrent()), r"what.lstm \(LSTM\).*not linear"),
    "layer norm": (lambda: After(nn.LayerNorm([8, 8, 8])), r"what \(LayerNorm\).*statistics"),
    "group norm": (lambda: After(nn.GroupNorm(2, 8)), r"what \(GroupNorm\).*statistics"),
    "hard-coded batch": (
        HardCodedBatch,
        r"view.*first size 2 fixes the batch.*zoo.py:\d+: return self.head",
    ),
    "data-dependent control flow": (DataDependent, "values of tensors"),
    "hidden function": (HiddenFunction, "is not the quantised ANN"),
}

# Those of them that are refused with nonlinear="error" only.
DIFFERENCES = {"gelu", "silu", "attention", "lstm", "layer norm", "group norm"}


def prepared(name: str, make: Callable[[], nn.Module]) -> nn.Module:
    """A model with weights and BatchNorm statistics that let signals through, in eval mode, the
    same in every run.
    """
    torch.manual_seed(sum(map(ord, name)))
    model = make()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0.1, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.3, 1.0)
    return model.eval()


def inputs_of(shapes: list[tuple[int, ...]], batch: int = 3) -> tuple[Tensor, ...]:
    return tuple(torch.randn(batch, *shape) for shape in shapes)
