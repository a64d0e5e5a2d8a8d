"""Small image networks as tutorials and papers have them, written out: classifiers, generators,
image restoration.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .networks import Network, image


class LeNet(nn.Module):
    """Convolutions, max pooling as a function, flatten by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.layers = nn.ModuleList([nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(x)), (2, 2))
        x = F.max_pool2d(F.relu(self.second(x)), 2)
        x = x.view(x.size(0), -1)
        x = F.relu(self.layers[0](x))
        x = F.relu(self.layers[1](x))
        return self.layers[2](x)


class Digits(nn.Module):
    """Dropout and log_softmax at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 3)
        self.drop, self.hidden, self.last = nn.Dropout(0.5), nn.Linear(2304, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        x = torch.flatten(F.max_pool2d(x, 2), 1)
        return F.log_softmax(self.last(self.drop(F.relu(self.hidden(x)))), dim=1)


def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """A residual block; before: norm and activation come before the convolutions."""

    def __init__(self, channels: int, gate: nn.Module | None = None, before: bool = False) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(channels, channels, 3, 1, 1) for _ in range(2))
        self.norm, self.other = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.gate, self.before = gate, before

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            return x + self.two(F.relu(self.other(self.one(F.relu(self.norm(x))))))
        y = self.other(self.two(F.relu(self.norm(self.one(x)))))
        return F.relu(x + (y if self.gate is None else self.gate(y)))


class Squeeze(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, channels // 2), nn.Linear(channels // 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        s = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return x * s[:, :, None, None]


class Attended(nn.Module):
    """CBAM: gates by channel, from mean and maximum, and by place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, channels // 4, 1), nn.ReLU(), nn.Conv2d(channels // 4, channels, 1)
        )
        self.space = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        mean, most = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
        x = x * torch.sigmoid(self.mlp(mean) + self.mlp(most))
        place = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.space(place))


class Classifier(nn.Module):
    """A stem, blocks, global average pooling, one Linear."""

    def __init__(self, *blocks: nn.Module, channels: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(block(3, 16), *blocks)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean([2, 3]))


class Highway(nn.Module):
    """T(x) relu(x) + (1 - T(x)) x."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Linear(48, 32), nn.Linear(32, 10)
        self.plain, self.gate = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x.flatten(1)))
        t = torch.sigmoid(self.gate(x))
        return self.last(t * F.relu(self.plain(x)) + (1 - t) * x)


class UNet(nn.Module):
    """Skips by concatenation, transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([block(3, 8), block(8, 16), block(16, 32)])
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(32, 16, 2, stride=2), nn.ConvTranspose2d(16, 8, 2, stride=2)]
        )
        self.join = nn.ModuleList([block(32, 16), block(16, 8)])
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down[0](x)
        b = self.down[1](F.max_pool2d(a, 2))
        c = self.down[2](F.max_pool2d(b, 2))
        b = self.join[0](torch.cat([b, self.up[0](c)], dim=1))
        return self.last(self.join[1](torch.cat([a, self.up[1](b)], dim=1)))


class Autoencoder(nn.Module):
    """Ends in a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 2, 2), nn.ReLU(), nn.ConvTranspose2d(8, 1, 2, 2), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class Variational(nn.Module):
    """Returns an image, a mean and a log variance; in eval mode the code is the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(784, 64), nn.Linear(8, 64)
        self.mean, self.log_variance, self.last = (
            nn.Linear(64, 8),
            nn.Linear(64, 8),
            nn.Linear(64, 784),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.relu(self.encoder(x.view(-1, 784)))
        mean, log_variance = self.mean(h), self.log_variance(h)
        code = mean
        if self.training:
            code = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return torch.sigmoid(self.last(F.relu(self.decoder(code)))), mean, log_variance


class Siamese(nn.Module):
    """Two images, one body, the distance of what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(block(1, 8, stride=2), block(8, 16, stride=2), nn.Flatten())
        self.last = nn.Linear(16 * 49, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.last(torch.abs(self.body(a) - self.body(b)))


class Upscaler(nn.Module):
    """EDSR: residual blocks without norms, scaled; pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 12, 3, 1, 1)
        self.pairs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU(True), nn.Conv2d(16, 16, 3, 1, 1))
            for _ in range(2)
        )
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        h = y = self.stem(x)
        for pair in self.pairs:
            y = pair(y).mul(0.1) + y
        return self.shuffle(self.last(y + h))


class Style(nn.Module):
    """Instance norms, reflected borders, nearest upsampling, tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1), nn.InstanceNorm2d(16, affine=True), nn.ReLU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(16, 3, 3, 1, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Localised(nn.Module):
    """A spatial transformer: the image is sampled where a network says."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Sequential(block(1, 8, stride=4), nn.Flatten(), nn.Linear(392, 6))
        self.body = nn.Sequential(block(1, 8, stride=2), block(8, 16, stride=2), nn.Flatten())
        self.last = nn.Linear(16 * 49, 10)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.where(x).view(-1, 2, 3)
        grid = F.affine_grid(theta, x.size(), align_corners=False)
        return self.last(self.body(F.grid_sample(x, grid, align_corners=False)))


class Anchors(nn.Module):
    """A detector's heads: boxes and classes of two scales, in a dictionary of lists."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = block(3, 16, stride=4), block(16, 32, stride=2)
        self.boxes = nn.ModuleList([nn.Conv2d(c, 8, 3, 1, 1) for c in (16, 32)])
        self.classes = nn.ModuleList([nn.Conv2d(c, 6, 3, 1, 1) for c in (16, 32)])

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        a = self.one(x)
        maps = [a, self.two(a)]
        found: dict[str, list[Tensor]] = {"boxes": [], "classes": []}
        for feature, box, kind in zip(maps, self.boxes, self.classes):
            found["boxes"].append(box(feature).permute(0, 2, 3, 1).flatten(1, 2))
            found["classes"].append(kind(feature).permute(0, 2, 3, 1).flatten(1, 2))
        return found


class Patches(nn.Module):
    """ConvMixer, with any activation."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, 4), activation(), nn.BatchNorm2d(16))
        self.depth = nn.Sequential(nn.Conv2d(16, 16, 5, 1, 2, groups=16), activation())
        self.point = nn.Sequential(nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1), activation())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.point(self.depth(x) + x))


def network_in_network() -> nn.Module:
    return nn.Sequential(
        block(3, 16, 5), block(16, 16, 1), nn.MaxPool2d(3, 2, 1), nn.Dropout(0.5),
        block(16, 16, 5), block(16, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def super_resolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 9, 1, 4), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.ReLU(),
        nn.Conv2d(8, 1, 5, 1, 2),
    )  # fmt: skip


def sub_pixel() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, 1, 2), nn.Tanh(), nn.Conv2d(16, 8, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(8, 4, 3, 1, 1), nn.PixelShuffle(2),
    )  # fmt: skip


def denoiser() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), block(16, 16), block(16, 16),
        nn.Conv2d(16, 1, 3, 1, 1),
    )  # fmt: skip


def generator() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(16, 32, 4), nn.BatchNorm2d(32), nn.ReLU(True),
        nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.ReLU(True),
        nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip


def discriminator() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 16, 4, 2, 1),
        nn.BatchNorm2d(16), nn.LeakyReLU(0.2), nn.Conv2d(16, 1, 8), nn.Sigmoid(),
    )  # fmt: skip


def tutorials() -> list[Network]:
    grey, colour = image(28, 1), image(32)
    return [
        Network("lenet", LeNet, image(32, 1)),
        Network("digits", Digits, grey),
        Network("network in network", network_in_network, colour),
        Network("resnet", lambda: Classifier(Residual(16), Residual(16)), colour),
        Network("pre-activation resnet", preactivated, colour),
        Network("se-resnet", lambda: Classifier(Residual(16, Squeeze(16))), colour),
        Network("cbam", lambda: Classifier(Residual(16, Attended(16))), colour),
        Network("highway", Highway, image(4)),
        Network("convmixer, GELU", partial(Patches, nn.GELU), colour),
        Network("convmixer, PReLU", partial(Patches, nn.PReLU), colour),
        Network("unet", UNet, colour),
        Network("autoencoder", Autoencoder, grey),
        Network("variational autoencoder", Variational, grey),
        Network("siamese", Siamese, (*grey, *grey)),
        Network("spatial transformer", Localised, grey),
        Network("dcgan generator", generator, image(1, 16)),
        Network("dcgan discriminator", discriminator, colour),
        Network("srcnn", super_resolution, grey),
        Network("espcn", sub_pixel, grey),
        Network("edsr", Upscaler, image(16)),
        Network("dncnn", denoiser, grey),
        Network("style transfer", Style, colour),
        Network("detector's heads", Anchors, colour),
    ]


def preactivated() -> nn.Module:
    return Classifier(Residual(16, before=True), Residual(16, before=True), nn.ReLU())
