"""A labelled image set in memory, and its batches: normalised, shuffled, augmented, shared out
among processes.

No file is read here, and no training or evaluation code lives here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """A labelled image set in memory.

    ``len()`` and indexing (a normalised float32 [C, H, W] and an int) make it usable as a torch
    map-style data set.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N], from 0 to num_classes - 1.
        mean: per channel, for pixels scaled to [0, 1].
        std: likewise.
        num_classes: how many classes there are.
        classes: their names, where they are known.

    Raises:
        ValueError: images have another dtype or shape, labels another length or other values, or
            mean and std other lengths.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images must be uint8 [N, C, H, W], got {self.images.dtype} "
                f"{tuple(self.images.shape)}"
            )
        if len(self.images) != len(self.labels):
            raise ValueError(
                f"images and labels must have one length, got {len(self.images)} and "
                f"{len(self.labels)}"
            )
        kind = self.labels.dtype
        if self.labels.ndim != 1 or kind.is_floating_point or kind.is_complex or kind == torch.bool:
            raise ValueError(f"labels must be int64 [N], got {kind} {tuple(self.labels.shape)}")
        if (
            len(self.labels)
            and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.num_classes
        ):
            raise ValueError(
                f"labels must lie in 0..{self.num_classes - 1}, got "
                f"{self.labels.min()}..{self.labels.max()}"
            )
        if not len(self.mean) == len(self.std) == self.images.shape[1]:
            raise ValueError(
                f"mean and std must have one value per channel, got {self.mean} and {self.std} "
                f"for {self.images.shape[1]} channels"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        one = self.images[index : index + 1] if index >= 0 else self.images[[index]]
        return self.normalise(one)[0], int(self.labels[index])

    def first(self, count: int | None) -> ImageSet:
        """The first ``count`` images (all for None), sharing memory.

        Raises:
            ValueError: count is below 1 or above the number of images.
        """
        if count is None:
            return self
        if not 1 <= count <= len(self):
            raise ValueError(f"samples must lie in 1..{len(self)}, got {count}")
        return replace(self, images=self.images[:count], labels=self.labels[:count])

    def split(self, count: int) -> tuple[ImageSet, ImageSet]:
        """All but the last ``count`` images, and those, sharing memory.

        Raises:
            ValueError: count is below 1, or nothing would be left.
        """
        if not 1 <= count < len(self):
            raise ValueError(f"count must lie in 1..{len(self) - 1}, got {count}")
        last = replace(self, images=self.images[-count:], labels=self.labels[-count:])
        return self.first(len(self) - count), last

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to float32, scaled to [0, 1], then (pixel - mean) / std per
        channel.
        """
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        scale = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return images.float().div_(255).sub_(mean).div_(scale)

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> Batches:
        """An iterable of (float32 [B, C, H, W], int64 [B]).

        Args:
            batch_size: B, >= 1; the last batch may be smaller.
            shuffle: each pass draws a new order.
            augment: a random crop (padding 1/8) and a mirror.
            drop_last: leave a smaller last batch out.
            generator: of the order and the augmentation; None: torch's own.
            shard: (i, n) gives the batches i, i + n, i + 2n, ... alone: without padding or
                repetition, perhaps none.

        Raises:
            ValueError: batch_size < 1, shard is not (i, n) with 0 <= i < n, or it comes with
                shuffle.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        check_shard(shard, shuffle)
        return Batches(self, batch_size, shuffle, augment, drop_last, generator, shard)


@dataclass
class Batches:
    """What :meth:`cos_ext.data.ImageSet.batches` returns: re-iterable, with a length. Where it
    shuffles, each pass draws a new order.
    """

    source: ImageSet
    batch_size: int
    shuffle: bool = False
    augment: bool = False
    drop_last: bool = False
    generator: torch.Generator | None = field(default=None, repr=False)
    shard: tuple[int, int] = (0, 1)

    def __len__(self) -> int:
        return len(self._numbers())

    def _numbers(self) -> range:
        count = len(self.source) / self.batch_size
        stop = math.floor(count) if self.drop_last else math.ceil(count)
        return range(self.shard[0], stop, self.shard[1])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        total = len(self.source)
        order = torch.randperm(total, generator=self.generator) if self.shuffle else None
        for index in self._numbers():
            chosen = slice(index * self.batch_size, (index + 1) * self.batch_size)
            picked = order[chosen] if order is not None else chosen
            images = self.source.images[picked]
            if self.augment:
                images = self._augmented(images)
            yield self.source.normalise(images), self.source.labels[picked]

    def _augmented(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        pad = max(1, height // 8)
        padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
        top, left = (
            torch.randint(0, 2 * pad + 1, (count,), generator=self.generator) for _ in range(2)
        )
        mirrored = torch.rand(count, generator=self.generator) < 0.5
        columns = torch.arange(width).expand(count, width)
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns) + left[:, None]
        rows = torch.arange(height) + top[:, None]
        sample = torch.arange(count)[:, None, None]
        cropped = padded.movedim(1, -1)[sample, rows[:, :, None], columns[:, None, :]]
        return cropped.movedim(-1, 1).contiguous()


def check_shard(shard: tuple[int, int], shuffle: bool) -> None:
    """ValueError unless ``shard`` is (i, n) with 0 <= i < n, and one order holds for all n."""
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard must be (i, n) with 0 <= i < n, got {tuple(shard)}")
    if count > 1 and shuffle:
        raise ValueError(
            "shuffle must be False with a shard: processes that draw other orders would share out "
            "no whole set"
        )
