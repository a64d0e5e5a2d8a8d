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


def conv_bn(a: int, b: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(a, b, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(b)
    )


class BasicBlock(nn.Module):
    """torchvision's: one ReLU object at two places, `out += identity`."""

    def __init__(self, a: int, b: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b)
        self.conv2, self.bn2 = nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = conv_bn(a, b, 1, stride) if stride != 1 or a != b else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    def __init__(self, a: int, b: int, stride: int = 1) -> None:
        super().__init__()
        self.one, self.three, self.out = (
            conv_bn(a, b // 2, 1),
            conv_bn(b // 2, b // 2, 3, stride),
            conv_bn(b // 2, b, 1),
        )
        self.relu = nn.ReLU(inplace=True)
        self.downsample = conv_bn(a, b, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.out(self.relu(self.three(self.relu(self.one(x)))))
        out += self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, block: type[nn.Module], max_pool: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = (
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
        )
        self.maxpool = nn.MaxPool2d(3, 2, 1) if max_pool else nn.Identity()
        self.layers = nn.Sequential(block(8, 8), block(8, 12, 2))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(self.layers(x))
        x = torch.flatten(x, 1)
        return self.fc(x)


def vgg(max_pool: bool = True) -> nn.Module:
    layers: list[nn.Module] = []
    width = 3
    for item in (8, 8, "M", 12, "M"):
        if item == "M":
            layers.append(nn.MaxPool2d(2) if max_pool else nn.AvgPool2d(2))
        else:
            layers += [nn.Conv2d(width, item, 3, padding=1), nn.BatchNorm2d(item), nn.ReLU(True)]
            width = item
    return nn.Sequential(
        nn.Sequential(*layers),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, 16),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(16, 5),
    )


class InvertedResidual(nn.Module):
    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *conv_bn(a, 2 * a, 1),
            nn.ReLU6(inplace=True),
            *conv_bn(2 * a, 2 * a, 3, stride, 2 * a),
            nn.ReLU6(inplace=True),
            *conv_bn(2 * a, b, 1),
        )
        self.residual = stride == 1 and a == b

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *conv_bn(3, 8),
            nn.ReLU6(inplace=True),
            InvertedResidual(8, 8, 1),
            InvertedResidual(8, 12, 2),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = TF.adaptive_avg_pool2d(x, (1, 1))
        return self.classifier(torch.flatten(x, 1))


class DenseNet(nn.Module):
    """Pre-activation: BatchNorm follows a concatenation and cannot be folded; F.relu in forward; a
    list of features.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(
            nn.Conv2d(8 + 4 * i, 4, 3, padding=1, bias=False) for i in range(3)
        )
        self.norm, self.head = nn.BatchNorm2d(20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs):
            features.append(conv(TF.relu(norm(torch.cat(features, 1)))))
        x = TF.relu(self.norm(torch.cat(features, 1)), inplace=True)
        return self.head(TF.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


class UNet(nn.Module):
    """Skips that cross the max pooling: the neurons before it have two readers. Transposed
    convolution and interpolation.
    """

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.down1, self.down2 = (
            nn.Sequential(*conv_bn(3, 8), nn.ReLU(True)),
            nn.Sequential(*conv_bn(8, 12), nn.ReLU(True)),
        )
        self.pool = pool
        self.up = nn.Sequential(nn.ConvTranspose2d(12, 8, 2, 2), nn.BatchNorm2d(8), nn.ReLU(True))
        self.join, self.out = nn.Sequential(*conv_bn(16, 8), nn.ReLU(True)), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down1(x)
        x = self.up(self.down2(self.pool(skip)))
        x = self.join(torch.cat([x, skip], dim=1))
        return TF.interpolate(self.out(x), scale_factor=2.0, mode="bilinear", align_corners=False)


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
    """Control flow on shapes that torch.fx cannot follow; activations are modules."""

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
        if x.shape[-1] % 2:
            raise ValueError("even sizes only")
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
        if x.shape[0] < 0:
            raise ValueError
        y = self.relu(self.conv(x))
        return self.head((y * y).mean((2, 3)))


# By name: the model, and what the error must say.
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "gelu": (lambda: After(nn.GELU()), r"what \(GELU\).*rectifier"),
    "silu": (lambda: After(nn.SiLU()), r"what \(SiLU\).*rectifier"),
    "attention": (lambda: After(Attention()), "softmax.*not linear"),
    "lstm": (lambda: After(Recurrent()), r"what.lstm \(LSTM\).*state"),
    "layer norm": (lambda: After(nn.LayerNorm([8, 8, 8])), r"what \(LayerNorm\).*statistics"),
    "group norm": (lambda: After(nn.GroupNorm(2, 8)), r"what \(GroupNorm\).*statistics"),
    "hard-coded batch": (
        HardCodedBatch,
        r"view.*first size 2 fixes the batch.*zoo.py:\d+: return self.head",
    ),
    "data-dependent control flow": (DataDependent, "values of tensors"),
    "hidden function": (HiddenFunction, "is not the quantised ANN"),
}


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
