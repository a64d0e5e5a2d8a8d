"""Models whose outputs are structures, small: segmentation, feature pyramids, a detection head,
records. Models only, no tests.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as TF
from zoo_families import conv_bn


class Auxiliary(NamedTuple):
    """As GoogLeNet and Inception give it while they train."""

    logits: Tensor
    auxiliary: Tensor | None


@dataclass
class Parts:
    """A plain dataclass."""

    scores: Tensor
    features: list[Any]
    loss: Tensor | None = None


@dataclass
class Record(OrderedDict):
    """A dataclass that is a dict, too, of what is not None: as language models give it."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("loss", "logits", "hidden_states"):
            if getattr(self, name) is not None:
                self[name] = getattr(self, name)


class Backbone(nn.Module):
    """Features of three sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = conv_bn(3, 6), conv_bn(6, 8, stride=2), conv_bn(8, 8)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        first = self.relu(self.one(x))
        second = self.relu(self.two(first))
        return OrderedDict(low=first, high=second, top=self.relu(self.three(second)))


class Segmentation(nn.Module):
    """torchvision's: a dict of two maps of the input's size."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.out, self.aux = Backbone(), nn.Conv2d(8, 5, 1), nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        found, size = self.backbone(x), x.shape[-2:]
        out = TF.interpolate(self.out(found["top"]), size, mode="bilinear", align_corners=False)
        return OrderedDict(out=out, aux=self.aux(found["low"]))


class LastLevel(nn.Module):
    """torchvision's, which only calls a function."""

    def forward(self, x: Tensor) -> Tensor:
        return TF.max_pool2d(x, kernel_size=1, stride=2, padding=0)


class Pyramid(nn.Module):
    """Feature maps as a list: spikes themselves, sums of them, and the image."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.lateral, self.last = Backbone(), nn.Conv2d(8, 6, 1), LastLevel()

    def forward(self, x: Tensor) -> list[Tensor]:
        found = self.backbone(x)
        fine = found["low"] + TF.interpolate(self.lateral(found["top"]), scale_factor=2.0)
        return [x, found["low"], found["high"], fine, self.last(found["top"])]


class Detection(nn.Module):
    """RetinaNet's head: scores and boxes of all levels, each [B, places, ...], and the anchors, a
    constant.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.levels = nn.ModuleList([nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 1)])
        self.tower = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.scores, self.boxes = nn.Conv2d(8, 2 * 3, 1), nn.Conv2d(8, 2 * 4, 1)
        self.register_buffer("anchors", torch.rand(10, 4))

    def spread(self, maps: Tensor, size: int) -> Tensor:
        batch, _, height, width = maps.shape
        maps = maps.view(batch, -1, size, height, width).permute(0, 3, 4, 1, 2)
        return maps.reshape(batch, -1, size)

    def forward(self, x: Tensor) -> dict[str, Any]:
        found = self.backbone(x)
        scores, boxes = [], []
        for level, name in zip(self.levels, ("low", "top")):
            maps = self.tower(level(found[name]))
            scores.append(self.spread(self.scores(maps), 3))
            boxes.append(self.spread(self.boxes(maps), 4))
        return {
            "scores": torch.cat(scores, 1),
            "boxes": torch.cat(boxes, 1),
            "levels": scores,
            "anchors": self.anchors,
            "stride": 2,
        }


class Inception(nn.Module):
    """A second classifier that is there while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head, self.auxiliary = Backbone(), nn.Linear(8, 5), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Auxiliary | Tensor:
        found = self.backbone(x)
        logits = self.head(found["top"].mean((2, 3)))
        second = self.auxiliary(found["low"].mean((2, 3)))
        return Auxiliary(logits, second) if self.training else logits


class Classifier(nn.Module):
    """Two heads; `give` makes the output of (model, x, features [B, 8], first, second logits)."""

    def __init__(self, give: Any) -> None:
        super().__init__()
        self.backbone, self.give = Backbone(), give
        self.first, self.second = nn.Linear(8, 5), nn.Linear(8, 4)
        self.register_buffer("names", torch.arange(5))

    def forward(self, x: Tensor) -> Any:
        features = self.backbone(x)["top"].mean((2, 3))
        return self.give(self, x, features, self.first(features), self.second(features))


def record(model: Any, x: Tensor, features: Tensor, first: Tensor, second: Tensor) -> Any:
    return Record(logits=first, hidden_states=(features, second))


def parts(model: Any, x: Tensor, features: Tensor, first: Tensor, second: Tensor) -> Any:
    return Parts(first, [features, {"mean": x.mean((1, 2, 3)), "names": model.names}])


def named(model: Any, x: Tensor, features: Tensor, first: Tensor, second: Tensor) -> Any:
    return (Auxiliary(first, None), first, [second, x.shape[1], "done", 0.5])


STRUCTURES = {
    "segmentation": Segmentation,
    "pyramid": Pyramid,
    "detection": Detection,
    "inception": Inception,
    "record": lambda: Classifier(record),
    "dataclass": lambda: Classifier(parts),
    "nested, twice": lambda: Classifier(named),
}
