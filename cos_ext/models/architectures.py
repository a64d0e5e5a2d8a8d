"""The architectures of the ANN-SNN conversion literature, with QCFS activations and average
pooling.

Only module definitions and their initialisation live here, no weights. Every activation is a module
of its own, so that ``cos_ext.convert`` gives each its own neurons.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..qcfs import QCFS

_STEMS = ("cifar", "imagenet")


def _check_stem(stem: str) -> None:
    if stem not in _STEMS:
        raise ValueError(f"stem must be one of {_STEMS}, got {stem!r}")


def _initialise(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


def _conv(in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a residual. The activation follows the sum, so the block converts
    without loss.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, activation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, channels, stride=stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = activation()
        self.conv2 = _conv(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and in_channels == channels
            else nn.Sequential(_conv(in_channels, channels, 1, stride), nn.BatchNorm2d(channels))
        )
        self.act2 = activation()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Residual network of basic blocks. Input [B, in_channels, H, W]; output [B, num_classes]."""

    def __init__(
        self,
        blocks: list[int],
        channels: list[int],
        num_classes: int,
        in_channels: int,
        stem: str,
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        _check_stem(stem)
        width = channels[0]
        if stem == "cifar":
            self.stem = nn.Sequential(
                _conv(in_channels, width), nn.BatchNorm2d(width), activation()
            )
        else:
            self.stem = nn.Sequential(
                _conv(in_channels, width, 7, 2),
                nn.BatchNorm2d(width),
                activation(),
                nn.AvgPool2d(3, 2, padding=1),
            )
        stages = []
        for stage, (count, out_width) in enumerate(zip(blocks, channels)):
            layers = []
            for index in range(count):
                layers.append(
                    BasicBlock(width, out_width, 2 if stage and not index else 1, activation)
                )
                width = out_width
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(width, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flatten(self.pool(self.stages(self.stem(x)))))


class VGG(nn.Module):
    """VGG-16 with BatchNorm and average pooling. Input [B, in_channels, H, W]; output
    [B, num_classes].
    """

    # Channels of the convolutions between two pools.
    _PLAN = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        stem: str,
        dropout: float,
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        _check_stem(stem)
        layers: list[nn.Module] = []
        width = in_channels
        for stage, channels in enumerate(self._PLAN):
            if stage:
                layers.append(nn.AvgPool2d(2))
            for out_width in channels:
                layers += [_conv(width, out_width), nn.BatchNorm2d(out_width), activation()]
                width = out_width
        # The fifth pool is global for small images, so that 28x28 (1x1 by now) and 32x32 (2x2) both
        # give one value a channel.
        side = 1 if stem == "cifar" else 7
        layers.append(nn.AdaptiveAvgPool2d(1) if stem == "cifar" else nn.AvgPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(width * side * side, 4096),
            activation(),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            activation(),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def _activation(
    levels: int, threshold: float, activation: Callable[[], nn.Module] | None
) -> Callable[[], nn.Module]:
    return activation if activation is not None else lambda: QCFS(levels, threshold)


def resnet20(
    num_classes: int,
    in_channels: int = 3,
    *,
    levels: int = 8,
    threshold: float = 8.0,
    stem: str = "cifar",
    activation: Callable[[], nn.Module] | None = None,
) -> ResNet:
    """ResNet-20 (He et al., "Deep residual learning for image recognition", CVPR 2016, section
    4.2): three stages of three blocks, 16, 32 and 64 channels.

    Args:
        num_classes: width of the output.
        in_channels: channels of the input image.
        levels: L of every QCFS activation.
        threshold: the θ that they begin with.
        stem: "cifar" (3x3, stride 1; 28x28 and 32x32 images) or "imagenet" (7x7, stride 2, average
            pool; 224x224).
        activation: makes one activation module per call site, instead of QCFS(levels, threshold).

    Raises:
        ValueError: there is no such stem.
    """
    return ResNet(
        [3, 3, 3],
        [16, 32, 64],
        num_classes,
        in_channels,
        stem,
        _activation(levels, threshold, activation),
    )


def resnet18(
    num_classes: int,
    in_channels: int = 3,
    *,
    levels: int = 8,
    threshold: float = 8.0,
    stem: str = "cifar",
    activation: Callable[[], nn.Module] | None = None,
) -> ResNet:
    """ResNet-18 of basic blocks, 64 to 512 channels. Arguments as for :func:`resnet20`."""
    return ResNet(
        [2, 2, 2, 2],
        [64, 128, 256, 512],
        num_classes,
        in_channels,
        stem,
        _activation(levels, threshold, activation),
    )


def resnet34(
    num_classes: int,
    in_channels: int = 3,
    *,
    levels: int = 8,
    threshold: float = 8.0,
    stem: str = "imagenet",
    activation: Callable[[], nn.Module] | None = None,
) -> ResNet:
    """ResNet-34 of basic blocks, 64 to 512 channels, with the ImageNet stem by default. Arguments
    as for :func:`resnet20`.
    """
    return ResNet(
        [3, 4, 6, 3],
        [64, 128, 256, 512],
        num_classes,
        in_channels,
        stem,
        _activation(levels, threshold, activation),
    )


def vgg16(
    num_classes: int,
    in_channels: int = 3,
    *,
    levels: int = 8,
    threshold: float = 8.0,
    stem: str = "cifar",
    dropout: float = 0.0,
    activation: Callable[[], nn.Module] | None = None,
) -> VGG:
    """VGG-16 with BatchNorm (Simonyan, Zisserman, "Very deep convolutional networks for large-scale
    image recognition", ICLR 2015). Arguments as for :func:`resnet20`; ``dropout`` is the
    classifier's rate.
    """
    return VGG(num_classes, in_channels, stem, dropout, _activation(levels, threshold, activation))


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet34": resnet34,
    "vgg16": vgg16,
}


def build(architecture: str, num_classes: int, in_channels: int = 3, **options: Any) -> nn.Module:
    """The model of this name, one of ``ARCHITECTURES``; options as for :func:`resnet20`.

    Raises:
        ValueError: there is no such name; it lists the known ones.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"architecture must be one of {sorted(ARCHITECTURES)}, got {architecture!r}"
        )
    return ARCHITECTURES[architecture](num_classes, in_channels, **options)
