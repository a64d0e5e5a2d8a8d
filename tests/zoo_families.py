"""The well-known families of zoo.py: ResNet, VGG, MobileNetV2, DenseNet, U-Net. Models only, no
tests.
"""

from __future__ import annotations

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
